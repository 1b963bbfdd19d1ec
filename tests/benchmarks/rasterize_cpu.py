"""Frames per second of GaussianRasterize on the CPU: a photograph's scene of 229,376 Gaussians at 448x256.

Two pixel-aligned layers, every Gaussian 0.5 to 1.5 pixels wide, seen from a little beside the photograph. The result is
checked against the NumPy twin first, on a quarter of the size.

    python tests/benchmarks/rasterize_cpu.py [--repeats N] [--threads N ...]
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import report
from numpy.typing import NDArray

from edge4d.kernels import _library, cpu, reference

Inputs = tuple[NDArray[np.float32], ...]
OPACITIES = {"opacity 0.05 to 0.95": (0.05, 0.95), "mostly opaque": (0.7, 0.99)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--threads", type=int, nargs="+", default=[0, 1], help="0: all cores")
    options = parser.parse_args()
    rows = []
    for name, opacities in OPACITIES.items():
        check(photograph(112, 64, opacities), 112, 64)
        rows += [measure(name, opacities, threads, options.repeats) for threads in options.threads]
    report.write("rasterize_cpu", rows)


def photograph(width: int, height: int, opacities: tuple[float, float], layers: int = 2) -> Inputs:
    """The operator's inputs for a rolling landscape of pixel-aligned layers, and one camera."""
    rng = np.random.default_rng(0)
    focal = 0.5 * width / np.tan(np.radians(30))
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    z = np.stack([4 + 6 * k + 2 * np.sin(12 * x / width) + np.cos(9 * y / height) for k in range(layers)])
    means = np.stack([(x - width / 2) / focal * z, (y - height / 2) / focal * z, z], -1).reshape(1, -1, 3)
    count = means.shape[1]
    viewmat = np.eye(4)
    viewmat[:3, 3] = -0.1, 0, 0.2
    inputs = (
        means,
        rng.normal(size=(1, count, 4)),
        rng.uniform(0.5, 1.5, (1, count, 3)) * means[..., 2:] / focal,
        rng.uniform(*opacities, (1, count)),
        rng.uniform(0, 1, (1, count, 3)),
        viewmat[None, None],
        np.array([[[[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]]]]),
        np.zeros(3),
    )
    return tuple(array.astype(np.float32) for array in inputs)


def check(inputs: Inputs, width: int, height: int) -> None:
    """The bars of CONVENTIONS.md, or no figures."""
    ours = cpu.gaussian_rasterize(*inputs, width=width, height=height).image
    error = np.abs(ours - reference.gaussian_rasterize(*inputs, width=width, height=height).image)
    if np.mean(error > 2e-4) > 1e-3 or error.mean() > 1e-5:
        raise SystemExit(f"The kernel is wrong: largest error {error.max():.3g}, mean {error.mean():.3g}.")


def measure(name: str, opacities: tuple[float, float], threads: int, repeats: int) -> dict[str, Any]:
    width, height = 448, 256
    inputs = photograph(width, height, opacities)
    times = []
    for _ in range(repeats + 5):
        start = time.perf_counter()
        result = cpu.gaussian_rasterize(*inputs, width=width, height=height, threads=threads)
        times.append((time.perf_counter() - start) * 1e3)
    p5, median, p95 = np.percentile(times[5:], [5, 50, 95])
    return {
        "name": f"GaussianRasterize, {name}",
        "gaussians": inputs[0].shape[1],
        "size": f"{width}x{height}",
        "pairs": int(result.stats[0, 0, 2]),
        "threads": threads or "all",
        "instructions": _library.load().edge4d_cpu_instructions().decode(),
        "ours_ms": round(float(median), 2),
        "ours_ms_p5": round(float(p5), 2),
        "ours_ms_p95": round(float(p95), 2),
        "frames_per_second": round(1000 / float(median), 1),
        "repeats": repeats,
    }


if __name__ == "__main__":
    main()
