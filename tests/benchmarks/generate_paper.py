"""Photograph to 24 frames at the size of the paper: TensorRT and our kernels against PyTorch and gsplat 1.5.3, one run.

Two programs take the same tensors and make the same film in turns, each in the interpreter that has its libraries. A
time is that from the network's inputs in the host's memory (photograph, depth, instances, DINOv2 features, noise) to
24 frames of 832x256 there, in 8 bits: Gaussians, motion and pictures. First all are compared with PyTorch in float32.

    python tests/benchmarks/paper_bundle.py -o out/paper.e4d
    python tests/benchmarks/generate_paper.py --bundle out/paper.e4d [--tensorrt-python FILE] [--modes MODE ...]

This interpreter needs torch and gsplat. Engines and compiled code are made first, which takes minutes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import report
from numpy.typing import NDArray
from workers import Contender, Worker, alternating, contender, contenders
from workloads import PAPER_SIZE, paper_inputs

from edge4d.runtime.metrics import psnr

HERE = Path(__file__).resolve().parent
LEAST_DB = 45.0  # between the videos of two precisions, CONVENTIONS.md
MOST_ERROR = 0.01  # of an output's 2-norm: a rounding to half is 5e-4, and a network adds up some of them
REFERENCE = "float32"
NOTES = {
    "ours_ms": "median, from the network's inputs in the host's memory to 24 frames there; `peer_ms`: the peer's, with "
    "the layout of convolutions and the frames per call of gsplat that are fastest",
    "ours_scene_ms": "until the Gaussians are on the GPU, and no frame is drawn; `peer_scene_ms`: the peer's",
    "speedup": "the peer's time over ours, in the same run",
    "psnr_db": "of our frames against those of PyTorch in float32; `peer_psnr_db`: of the peer's",
    "output_error": "the largest of the network's outputs' distances from PyTorch in float32, as part of their 2-norm",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True, help="NAME.e4d, with NAME.safetensors beside it")
    parser.add_argument(
        "--tensorrt-python", default=sys.executable, metavar="FILE", help="has TensorRT; this one if not given"
    )
    parser.add_argument(
        "--modes", nargs="*", default=["reduce-overhead", "max-autotune"], help="of torch.compile, besides eager"
    )
    parser.add_argument("--precision", default="fp16", help="of the engine")
    parser.add_argument("--repeats", type=int, default=40)
    options = parser.parse_args()
    for path in (options.bundle, options.bundle.with_suffix(".safetensors")):
        if not path.exists():
            parser.error(f"{path} is not there: make it with paper_bundle.py")
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(options, Path(folder))
    report.write("generate_paper", rows, on_gpu=True, notes=NOTES)
    if any(row["wrong"] for row in rows):
        raise SystemExit("Some films are wrong; their rows say by which measure.")
    if len(rows) < 1 + len(options.modes):
        raise SystemExit("Some modes could not be compiled: see above.")


def measure(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """One row for each variant of the peer's."""
    inputs = folder / "inputs.npz"
    np.savez(inputs, **paper_inputs()._asdict())
    weights = options.bundle.with_suffix(".safetensors")
    tensorrt = Worker("TensorRT", options.tensorrt_python, [HERE / "paper_tensorrt.py", options.bundle, inputs])
    torch = Worker("PyTorch", sys.executable, [HERE / "paper_torch.py", weights, inputs])
    # One after the other: engines and compiled code are chosen by measuring.
    ours = contender(tensorrt, options.precision)
    reference = contender(torch, REFERENCE)
    peers = [contender(torch, "eager"), *contenders(torch, options.modes)]
    expected = torch.outputs(reference.variant)
    qualities = {made.variant: quality(made.worker.outputs(made.variant), expected) for made in (ours, *peers)}
    times = alternating([ours, *peers], options.repeats)
    for worker in (tensorrt, torch):
        worker.close()
    return [row(ours, peer, qualities, times, options.repeats) for peer in peers]


# ---- quality --------------------------------------------------------------------------------------------------------


def quality(found: dict[str, NDArray[Any]], expected: dict[str, NDArray[Any]]) -> dict[str, float]:
    """How far a film and what it was made of are from those expected."""
    pairs = {name: (array.astype(np.float64), expected[name].astype(np.float64)) for name, array in found.items()}
    frames, expected_frames = pairs.pop("frames")
    errors = {name: float(np.linalg.norm(a - b) / np.linalg.norm(b)) for name, (a, b) in pairs.items()}
    return {
        "psnr_db": round(psnr(frames / 255, expected_frames / 255), 1),
        "first_psnr_db": round(psnr(frames[0] / 255, expected_frames[0] / 255), 1),
        "output_error": round(max(errors.values()), 5),
    }


def wrong(found: dict[str, float]) -> list[str]:
    """The measures that are missed; NaN misses them."""
    missed = [name for name in ("psnr_db", "first_psnr_db") if not found[name] >= LEAST_DB]
    return missed + ([] if found["output_error"] <= MOST_ERROR else ["output_error"])


# ---- time -----------------------------------------------------------------------------------------------------------


def row(
    ours: Contender,
    peer: Contender,
    qualities: dict[str, dict[str, float]],
    times: dict[str, dict[str, list[float]]],
    repeats: int,
) -> dict[str, Any]:
    figures: dict[str, Any] = {"name": f"photograph to 24 frames, {PAPER_SIZE[0]}x{PAPER_SIZE[1]}"}
    for side, made in (("ours", ours), ("peer", peer)):
        p5, median, p95 = np.percentile(times[made.variant]["film"], [5, 50, 95]).round(3).tolist()
        figures.update({side: made.about["by"], f"{side}_ms": median, f"{side}_ms_p5": p5, f"{side}_ms_p95": p95})
        figures[f"{side}_scene_ms"] = round(float(np.median(times[made.variant]["scene"])), 3)
    figures["speedup"] = round(figures["peer_ms"] / figures["ours_ms"], 2)
    figures.update(qualities[ours.variant])
    figures.update({f"peer_{name}": value for name, value in qualities[peer.variant].items()})
    figures.update({name: value for name, value in peer.about.items() if name != "by"})
    figures.update(repeats=repeats, wrong=wrong(qualities[ours.variant]) + wrong(qualities[peer.variant]))
    print(figures, flush=True)
    return figures


if __name__ == "__main__":
    main()
