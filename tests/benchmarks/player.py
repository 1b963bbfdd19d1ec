"""The player on a photograph's scene: latency from pose to picture, missed deadlines and memory, steered a thousand
times a second along a drive.

One frame is compared with the CPU renderer's first. Rates of 60 and 120 frames per second are kept for --seconds each;
then --frames are drawn as fast as they come. Fails when memory grows meanwhile.

    python tests/benchmarks/player.py [--scene FILE] [--seconds S] [--frames N] [--backend auto]
"""

from __future__ import annotations

import argparse
import gc
import time
from pathlib import Path
from typing import Any, Optional

import numpy as np
import report
from workloads import photograph

from edge4d.runtime.backends import cuda
from edge4d.runtime.player import Player
from edge4d.runtime.renderer import Frame, Renderer
from edge4d.runtime.scene import Scene4D
from edge4d.runtime.trajectories import trajectory

STEERING = 1000.0  # poses per second
SLACK_MB = 8.0  # what the allocator of the host and the driver may take for their own books


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scene", type=Path, help="a saved scene; examples/street.png goes through the bundle without")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--frames", type=int, default=20_000)
    parser.add_argument("--backend", default="auto")
    options = parser.parse_args()
    scene = Scene4D.load(options.scene) if options.scene else photograph()
    check(scene, options.backend)
    renderer = Renderer(scene, backend=options.backend)
    plays = [(60.0, round(60 * options.seconds)), (120.0, round(120 * options.seconds)), (None, options.frames)]
    rows = [measure(renderer, fps, frames) for fps, frames in plays]
    report.write("player", rows, on_gpu=renderer.on_gpu)


def check(scene: Scene4D, backend: str) -> None:
    """The bars of CONVENTIONS.md between what is measured and the CPU kernels, or no figures."""
    t = 0.5 * (scene.t0 + scene.t1)
    ours, expected = (
        Renderer(scene, outputs=("image",), dtype="float32", backend=name).render(scene.camera, t).image
        for name in (backend, "onnxruntime")
    )
    error = np.abs(ours - expected)
    if np.mean(error > 2e-4) > 1e-3 or error.mean() > 1e-5:
        raise SystemExit(f"The renderer is wrong: largest error {error.max():.3g}, mean {error.mean():.3g}.")


def measure(renderer: Renderer, fps: Optional[float], frames: int) -> dict[str, Any]:
    """At least so many frames, steered all the while."""
    scene = renderer.scene
    path = trajectory("drive", scene.camera, 200, 200 / max(scene.t1 - scene.t0, 1e-3))

    def show(frame: Frame) -> None:
        frame.image.max()  # looks at every pixel, as a user would

    with Player(renderer, show, fps=fps) as player:
        while player.statistics().frames < 100:  # both graphs are recorded, everything is in its place
            time.sleep(0.01)
        begin = memory(renderer)
        pose = 0
        while player.statistics().frames < frames:
            player.steer(path.cameras[pose % len(path)], float(path.times[pose % len(path)]))
            pose += 1
            time.sleep(1 / STEERING)
        end = memory(renderer)
    result = player.statistics()
    width, height = scene.camera.width, scene.camera.height
    row = {
        "name": "as fast as it can" if fps is None else f"{fps:g} frames per second",
        "gaussians": len(scene),
        "size": f"{width}x{height}",
        "frames": result.frames,
        "frames_per_second": round(result.frames / result.seconds, 1),
        "missed": result.missed,
        "latency_ms": round(result.p50_ms, 3),
        "latency_ms_p95": round(result.p95_ms, 3),
        "latency_ms_p99": round(result.p99_ms, 3),
        **{f"{where}_mb_before": round(megabytes, 1) for where, megabytes in begin.items()},
        **{f"{where}_mb_after": round(megabytes, 1) for where, megabytes in end.items()},
    }
    print(row)
    for where, megabytes in end.items():
        if megabytes > begin[where] + SLACK_MB:
            raise SystemExit(f"Memory of the {where} grew from {begin[where]:.1f} to {megabytes:.1f} MB.")
    return row


def memory(renderer: Renderer) -> dict[str, float]:
    """Megabytes in use, of this process on the host and of everyone on the GPU."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    host = pages * 4096 / 1e6
    return {"host": host, "gpu": cuda.memory_in_use() / 1e6} if renderer.on_gpu else {"host": host}


if __name__ == "__main__":
    main()
