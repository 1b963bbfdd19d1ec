"""Photograph to first frame on one GPU, networks by TensorRT: latency, frames per second, memory, and how good it is.

A row is one precision of the shipped bundle. First its videos are compared with those of the CPU in fp32, and the world
is foreseen (`edge4d evaluate`). Then photographs are taken as a camera gives them, as bytes in the host's memory at the
network's size, one when the one before is through: latency is the time until the first frame lies in the host's memory.
Fails when the videos differ, or memory grows.

    python tests/benchmarks/generate_gpu.py --world DIR [--photo FILE ...] [--runs N] [--frames N]

DIR is what `edge4d world street` writes; Python without torch is enough for the rest.
"""

from __future__ import annotations

import argparse
import gc
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import player
import report
from numpy.typing import NDArray

import edge4d
from edge4d.runtime.evaluate import evaluate
from edge4d.runtime.metrics import psnr
from edge4d.runtime.photo import read_photo
from edge4d.runtime.renderer import Renderer
from edge4d.runtime.systems.pixel_to_4d import PixelTo4D
from edge4d.runtime.world_files import World

LEAST_DB = 45.0  # between the videos of two precisions, CONVENTIONS.md
WARM_UP = 100
GROWTH = 10_000  # runs after which memory is looked at again
NOTES = {
    "latency_ms": "median, from the photograph's bytes in the host's memory to the first frame's; `latency_ms_p99`: of "
    "a hundred, all but one are faster",
    "frames_per_second": "of `Player`, each from another pose, in the host's memory",
    "parity_db": "mean PSNR of a video's frames against those of the CPU in fp32; the least of all photographs",
    "psnr": "of `edge4d evaluate` on the world named in the command; `psnr_moving`: on what moves",
    "gpu_mb_grown": f"over {GROWTH:,} photographs; `host_mb_grown`: of the process",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--world", type=Path, required=True, help="a folder that `edge4d world` wrote")
    parser.add_argument(
        "--photo", type=Path, nargs="+", default=[report.ROOT / "examples" / "street.png"], help="times are the first's"
    )
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--frames", type=int, default=20_000, help="of the player")
    options = parser.parse_args()
    with edge4d.load("street", backend="onnxruntime", precision="fp32") as pipeline:
        expected = [video(pipeline, photo) for photo in options.photo]
    rows = []
    for precision in ("fp32", "fp16"):
        with edge4d.load("street", backend="tensorrt", precision=precision) as pipeline:
            rows.append(measure(pipeline, options, expected))
    report.write("generate_gpu", rows, on_gpu=True, notes=NOTES)


def measure(pipeline: PixelTo4D, options: argparse.Namespace, expected: list[NDArray[Any]]) -> dict[str, Any]:
    videos = [video(pipeline, photo) for photo in options.photo]
    parity = min(fmean(map(psnr, found, true)) for found, true in zip(videos, expected))
    if parity < LEAST_DB:
        raise SystemExit(f"A video in {pipeline.precision} is {parity:.1f} dB from that of the CPU in fp32.")
    figures = evaluate(pipeline, World.load(options.world), backend="cuda")
    live = pipeline.live()
    photo = (read_photo(options.photo[0], live.size).image * 255).round().astype(np.uint8)
    renderer = Renderer(live.scene, backend="cuda", outputs=("image",))
    run(live, renderer, photo, WARM_UP)
    latencies = run(live, renderer, photo, options.runs)
    row = {
        "name": f"photograph to first frame, street, {live.size[0]}x{live.size[1]}",
        "precision": pipeline.precision,
        "tensorrt": pipeline.backend.target.version,
        "latency_ms": round(float(np.median(latencies)), 3),
        "latency_ms_p99": round(float(np.percentile(latencies, 99)), 3),
        "runs": options.runs,
        "frames_per_second": player.measure(Renderer(live.scene, backend="cuda"), None, options.frames)[
            "frames_per_second"
        ],
        "parity_db": round(parity, 1),
        "psnr": round(figures["psnr"], 2),
        "psnr_moving": round(figures["psnr_moving"], 2),
        **growth(live, renderer, photo),
    }
    print(row, flush=True)
    return row


def video(pipeline: PixelTo4D, photo: Path) -> NDArray[Any]:
    """[24,H,W,3] in 0..1, along a drive."""
    scene = pipeline.generate(photo)
    backend = "onnxruntime" if pipeline.backend.name == "onnxruntime" else "cuda"
    frames = edge4d.render(scene, camera="drive", frames=24, backend=backend)
    return np.stack([frame.image for frame in frames]) / 255


def run(live: Any, renderer: Renderer, photo: NDArray[np.uint8], count: int) -> list[float]:
    """Milliseconds from the photograph to its first frame, so often."""
    latencies = []
    for _ in range(count):
        begin = time.perf_counter()
        scene = live.generate(photo, fov=60.0)
        renderer.submit(scene.camera, 0.0)
        renderer.fetch()
        latencies.append((time.perf_counter() - begin) * 1e3)
    return latencies


def growth(live: Any, renderer: Renderer, photo: NDArray[np.uint8]) -> dict[str, float]:
    """Megabytes more than before, after `GROWTH` photographs; ends the program when that is more than the books of
    allocators."""
    gc.collect()
    before = player.memory(renderer)
    run(live, renderer, photo, GROWTH)
    grown = {where: after - before[where] for where, after in player.memory(renderer).items()}
    if max(grown.values()) > player.SLACK_MB:
        raise SystemExit(f"Memory grew over {GROWTH} photographs: {grown}.")
    return {f"{where}_mb_grown": round(megabytes, 1) for where, megabytes in grown.items()}


if __name__ == "__main__":
    main()
