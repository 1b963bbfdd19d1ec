"""How well the bundle `animals` follows animals that it never saw: `edge4d evaluate`, and the same with less decoded.

Each row is what one sample of each animal scores from four unseen views. Takes about a quarter of an hour.

    python tests/benchmarks/evaluate_objects_cpu.py
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any, Optional

import report

import edge4d
from edge4d.export.worlds import write_world
from edge4d.runtime.evaluate_objects import evaluate_objects
from edge4d.runtime.object_world_files import ObjectWorld

SHOWN = ("psnr", "ssim", "psnr_static", "ssim_static")
STAGES = {"sample_ms": ("sample",), "decode_ms": ("vae_latent", "decode", "interpolate")}

NOTES = {
    "decoded": "Gaussians whose changes are decoded, with --anchors; the others' are interpolated",
    "psnr": "dB from the true pictures, 24 frames, 4 views; psnr_static: of the same Gaussians held still",
    "sample_ms": "the sampler, which chooses its steps: median over animals; decode_ms likewise, with interpolation",
}


def main() -> None:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for count, seed in ((16, 7), (8, 11)):
            write_world("animals", Path(folder, str(seed)), count=count, seed=seed)
        known, others = (ObjectWorld.load(Path(folder, seed)) for seed in ("7", "11"))
        rows += [measure(known, precision) for precision in ("fp32", "fp16")]
        rows += [measure(known, "fp32", anchors) for anchors in (2048, 1024, 512)]
        rows += [measure(others, "fp32")]
    report.write("evaluate_objects_cpu", rows, notes=NOTES)


def measure(world: ObjectWorld, precision: str, anchors: Optional[int] = None) -> dict[str, Any]:
    milliseconds: dict[str, list[float]] = defaultdict(list)
    with edge4d.load("animals", backend="onnxruntime", precision=precision) as pipeline:

        def note_times(done: int, count: int) -> None:
            seconds = {stage.name: stage.seconds for stage in pipeline.timings.stages}
            for name, stages in STAGES.items():
                milliseconds[name].append(1e3 * sum(seconds.get(stage, 0.0) for stage in stages))

        figures = evaluate_objects(pipeline, world, anchors=anchors, progress=note_times)
    row = {
        "name": f"{len(world.sequences)} animals, seed {world.seed}, {precision}",
        "decoded": anchors or "all 8192",
        **{name: round(figures[name], 3 if name.startswith("ssim") else 2) for name in SHOWN},
        **{name: round(median(times)) for name, times in milliseconds.items()},
    }
    print(row, flush=True)
    return row


if __name__ == "__main__":
    main()
