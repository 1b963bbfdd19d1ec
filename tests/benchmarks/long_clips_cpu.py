"""Whether segments show in clips of 120 frames that the bundle `animals` follows, and whether errors add up.

A step is the mean difference of a picture from the one before, in medians of the clip's: at seams, which are all frames
that segments share, elsewhere, and in the true video at the same frames. Takes two minutes.

    python tests/benchmarks/long_clips_cpu.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import report
from numpy.typing import NDArray

import edge4d
from edge4d.export.worlds import write_world
from edge4d.runtime.evaluate_objects import on_white
from edge4d.runtime.metrics import psnr
from edge4d.runtime.object_world_files import ObjectSequence, ObjectWorld
from edge4d.runtime.systems.gvf_diffusion import GvfDiffusion, segments

FRAMES, TOGETHER, STEPS = 120, 24, 16

NOTES = {
    "seam_steps": "mean over the seams; seam_step: the largest there; other_step: the largest elsewhere",
    "seam_steps_over_true": "mean over the seams of the step over the true video's",
    "psnr_start": "dB of the first 24 frames, from the video's side; psnr_end: of the last 24",
}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, edge4d.load("animals", backend="onnxruntime") as pipeline:
        write_world("animals", Path(folder, "world"), count=4, seed=7, frames=FRAMES)
        world = ObjectWorld.load(Path(folder, "world"))
        rows = [measure(pipeline, world.sequence(name)) for name in world.sequences]
    report.write("long_clips_cpu", rows, notes=NOTES)


def measure(pipeline: GvfDiffusion, sequence: ObjectSequence) -> dict[str, Any]:
    size = sequence.video.shape[2], sequence.video.shape[1]
    scene = pipeline.generate(
        sequence.video, canonical=sequence.canonical, azimuth=0.0, steps=STEPS, source_fps=12, size=size
    )
    renderer = edge4d.Renderer(scene, background=(1.0, 1.0, 1.0), outputs=("image",), dtype="float32")
    found = np.stack([np.clip(renderer.render(scene.camera, float(t)).image, 0.0, 1.0) for t in sequence.times])
    true = on_white(sequence.video)
    steps, true_steps = steps_of(found), steps_of(true)
    at_seam = np.zeros(len(steps), bool)
    parts = list(segments(FRAMES, TOGETHER))
    for (_, stop), (start, _) in zip(parts, parts[1:]):
        at_seam[start - 1 : stop] = True
    decibels = [psnr(a, b) for a, b in zip(found, true)]
    figures = {
        "seam_steps": steps[at_seam].mean(),
        "seam_step": steps[at_seam].max(),
        "other_step": steps[~at_seam].max(),
        "true_seam_step": true_steps[at_seam].max(),
        "seam_steps_over_true": (steps / true_steps)[at_seam].mean(),
        "psnr_start": np.mean(decibels[1:TOGETHER]),
        "psnr_end": np.mean(decibels[-TOGETHER:]),
    }
    row = {"name": sequence.name, **{name: round(float(value), 2) for name, value in figures.items()}}
    print(row, flush=True)
    return row


def steps_of(pictures: NDArray[np.float32]) -> NDArray[np.float64]:
    """[T-1] of pictures [T,H,W,3]."""
    steps: NDArray[np.float64] = np.abs(np.diff(pictures, axis=0)).mean((1, 2, 3), dtype=np.float64)
    return steps / np.median(steps)


if __name__ == "__main__":
    main()
