"""How well a bundle foresees how objects that it never saw move, in views that it was not shown.

The pipeline gets each sequence's video, seen from azimuth 0, and Gaussians of the object as it is in the first frame,
nothing else. Their motion is drawn as the other cameras see it, on white. Every figure is a mean over all times but the
first, all views and all sequences; the same Gaussians held still are judged beside them (`_static`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any, Optional

import numpy as np
from numpy.typing import NDArray

from edge4d.runtime.evaluate import Scores, checked_frames, description
from edge4d.runtime.metrics import psnr, ssim
from edge4d.runtime.object_world_files import ObjectSequence, ObjectWorld
from edge4d.runtime.renderer import Renderer
from edge4d.runtime.scene import Scene4D
from edge4d.runtime.systems.gvf_diffusion import GvfDiffusion

FIGURES = ("psnr", "ssim", "psnr_static", "ssim_static", "psnr_first")


def evaluate_objects(
    pipeline: GvfDiffusion,
    world: ObjectWorld,
    *,
    frames: Optional[int] = None,
    steps: Optional[int] = None,
    anchors: Optional[int] = None,
    seed: int = 0,
    backend: str = "auto",
    progress: Optional[Callable[[int, int], None]] = None,
) -> dict[str, Any]:
    """Scores `pipeline` on every sequence of `world`.

    Args:
        frames: how many of each sequence, the first included; all of them without it.
        steps, anchors: see `GvfDiffusion.generate`. seed: of the sampler's noise; one sample is made of each sequence.
        backend: what draws; see `edge4d.runtime.renderer.Renderer`.
        progress: called with (sequences done, sequences in all).

    Returns:
        A flat dictionary: psnr, ssim, psnr_static, ssim_static; psnr_first, of the first time, where nothing has moved
        yet: how well the Gaussians show the object at all; bundle, world, count, seed, frames, fps, size, precision,
        backend. PSNR is the mean of the pictures' PSNR, in dB.

    Raises:
        InvalidWorld, InvalidPicture, InvalidPly: files that cannot be used.
    """
    frames = checked_frames(world, frames)
    scores: Scores = defaultdict(list)
    for done, name in enumerate(world.sequences, 1):
        sequence = world.sequence(name)
        scene = pipeline.generate(
            sequence.video[:frames],
            canonical=sequence.canonical,
            azimuth=0.0,
            steps=steps,
            anchors=anchors,
            seed=seed,
            source_fps=world.fps,
            size=world.size,
        )
        score(scores, scene, sequence, frames, backend)
        if progress:
            progress(done, len(world.sequences))
    return {
        **{name: round(float(np.mean(scores[name])), 4) for name in FIGURES},
        **description(pipeline, world, frames),
    }


def score(scores: Scores, scene: Scene4D, sequence: ObjectSequence, frames: int, backend: str = "auto") -> None:
    """Adds what all views of all times but the first make of FIGURES; of the first, `psnr_first`."""
    moving, still = (
        Renderer(part, background=(1.0, 1.0, 1.0), outputs=("image",), dtype="float32", backend=backend)
        for part in (scene, scene.without_motion())
    )
    for number, camera in enumerate(sequence.cameras[1:], 1):
        held = np.clip(still.render(camera, 0.0).image, 0.0, 1.0)
        scores["psnr_first"].append(psnr(held, on_white(sequence.view(0, number))))
        for index in range(1, frames):
            target = on_white(sequence.view(index, number))
            image = np.clip(moving.render(camera, float(sequence.times[index])).image, 0.0, 1.0)
            for name, picture in (("", image), ("_static", held)):
                scores["psnr" + name].append(psnr(picture, target))
                scores["ssim" + name].append(ssim(picture, target))


def on_white(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """[H,W,4] uint8 to [H,W,3] in 0..1."""
    unit = pixels.astype(np.float32) / np.float32(255.0)
    flat: NDArray[np.float32] = unit[..., :3] * unit[..., 3:] + (1 - unit[..., 3:])
    return flat
