"""How well the bundle `animals` follows animals that it never saw, as `edge4d evaluate` counts it, in 16 steps.

All animals in fp32; and the first eight in each precision, and with fewer Gaussians decoded. Takes ten minutes.

    python tests/benchmarks/evaluate_objects_cpu.py [--data DIR]
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any, Optional

import report

import edge4d
from edge4d.runtime.evaluate_objects import evaluate_objects
from edge4d.runtime.object_world_files import ObjectWorld

COUNT, SEED, STEPS = 16, 7, 16
SHOWN = {"psnr": 2, "ssim": 3, "psnr_static": 2, "ssim_static": 3}
STAGES = {"sample_ms": ("sample",), "decode_ms": ("vae_latent", "decode", "interpolate")}

NOTES = {
    "decoded": "Gaussians whose changes are decoded (--anchors); the others' are interpolated",
    "psnr": "dB from the true pictures of 23 times, 4 views each; psnr_static: of the same Gaussians held still",
    "sample_ms": "median over animals, 24 frames; decode_ms likewise, with interpolation",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="that world, made before")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        world = ObjectWorld.load(options.data or make_world(Path(folder, "world")))
        some = dataclasses.replace(world, sequences=world.sequences[:8])
        rows = [measure(world, "fp32")]
        rows += [measure(some, precision) for precision in ("fp32", "fp16")]
        rows += [measure(some, "fp32", anchors) for anchors in (2048, 1024, 512)]
    report.write("evaluate_objects_cpu", rows, notes=NOTES)


def make_world(folder: Path) -> Path:
    from edge4d.export.worlds import write_world  # needs torch

    write_world("animals", folder, count=COUNT, seed=SEED)
    return folder


def measure(world: ObjectWorld, precision: str, anchors: Optional[int] = None) -> dict[str, Any]:
    milliseconds: dict[str, list[float]] = defaultdict(list)
    with edge4d.load("animals", backend="onnxruntime", precision=precision) as pipeline:

        def note_times(done: int, count: int) -> None:
            seconds = {stage.name: stage.seconds for stage in pipeline.timings.stages}
            for name, stages in STAGES.items():
                milliseconds[name].append(1e3 * sum(seconds.get(stage, 0.0) for stage in stages))

        figures = evaluate_objects(pipeline, world, steps=STEPS, anchors=anchors, progress=note_times)
    row = {
        "name": f"{len(world.sequences)} animals, seed {world.seed}, {precision}",
        "decoded": anchors or "all 8192",
        **{name: round(figures[name], digits) for name, digits in SHOWN.items()},
        **{name: round(median(times)) for name, times in milliseconds.items()},
    }
    print(row, flush=True)
    return row


if __name__ == "__main__":
    main()
