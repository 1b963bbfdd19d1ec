"""How well a bundle foresees a world that it never saw: predicted frames against the true ones.

The network gets each sequence's photograph and its intrinsics, nothing else; one scene is made, at temperature 0. Every
figure is a mean over all frames with t > 0 of all sequences. Two baselines are judged on the same frames: the same
scene with its motion removed (`psnr_static`), and the photograph itself, repeated (`psnr_copy`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any, Optional, Union

import numpy as np
from numpy.typing import NDArray

from edge4d.runtime.errors import InvalidWorld
from edge4d.runtime.metrics import depth_abs_rel, psnr, ssim
from edge4d.runtime.object_world_files import ObjectWorld
from edge4d.runtime.renderer import Renderer
from edge4d.runtime.scene import Scene4D
from edge4d.runtime.systems.pipeline import Pipeline
from edge4d.runtime.systems.pixel_to_4d import PixelTo4D
from edge4d.runtime.world_files import World, WorldSequence

MIN_MOVING_PIXELS = 64  # frames that show less of moving objects do not count in the `_moving` figures
MAX_DEPTH = 80.0  # metres; surfaces beyond it, and the sky, do not count in `depth_abs_rel`

FIGURES = (
    "psnr",
    "ssim",
    "depth_abs_rel",
    "psnr_static",
    "psnr_copy",
    "psnr_moving",
    "psnr_static_moving",
    "psnr_copy_moving",
)

Scores = dict[str, list[float]]


def evaluate(
    pipeline: PixelTo4D,
    world: World,
    *,
    frames: Optional[int] = None,
    background: tuple[float, float, float] = (0.0, 0.0, 0.0),
    backend: str = "auto",
    progress: Optional[Callable[[int, int], None]] = None,
) -> dict[str, Any]:
    """Scores `pipeline` on every sequence of `world`.

    Args:
        frames: how many of each sequence, the photograph included; all of them without it.
        background: RGB in 0..1 behind the scene.
        backend: what draws; see `edge4d.runtime.renderer.Renderer`.
        progress: called with (sequences done, sequences in all).

    Returns:
        A flat dictionary: psnr, ssim, depth_abs_rel, psnr_static, psnr_copy, and psnr_moving, psnr_static_moving,
        psnr_copy_moving on the pixels of moving objects (None where nothing moves); bundle, world, count, seed, frames,
        fps, size, precision, backend. PSNR is the mean over frames of the frame's PSNR, in dB.

    Raises:
        InvalidWorld, InvalidPicture: files that cannot be used.
        InvalidRequest: the network cannot see pictures of the world's size.
    """
    frames = checked_frames(world, frames)
    scores: Scores = defaultdict(list)
    for done, name in enumerate(world.sequences, 1):
        sequence = world.sequence(name)
        scene = pipeline.generate(
            sequence.photo,
            intrinsics=sequence.cameras[0].intrinsics,
            temperature=0.0,
            size=world.size,
            background=background,
        )
        _score(scores, scene, sequence, frames, backend)
        if progress:
            progress(done, len(world.sequences))
    return {
        **{name: _mean(scores[name]) for name in FIGURES},
        **description(pipeline, world, frames),
    }


def checked_frames(world: Union[World, ObjectWorld], frames: Optional[int]) -> int:
    """How many frames of each sequence are judged; all of them without `frames`. Raises InvalidWorld."""
    frames = world.frames if frames is None else frames
    if not 2 <= frames <= world.frames:
        raise InvalidWorld(
            "The world does not have the frames asked for.", note=f"{frames} frames; it has 2 to {world.frames}."
        )
    return frames


def description(pipeline: Pipeline, world: Union[World, ObjectWorld], frames: int) -> dict[str, Any]:
    """What was judged, on what."""
    return {
        "bundle": pipeline.bundle.name,
        "world": world.name,
        "count": len(world.sequences),
        "seed": world.seed,
        "frames": frames,
        "fps": world.fps,
        "size": f"{world.size[0]}x{world.size[1]}",
        "precision": pipeline.precision,
        "backend": pipeline.backend.name,
    }


def _score(scores: Scores, scene: Scene4D, sequence: WorldSequence, frames: int, backend: str) -> None:
    ours = Renderer(scene, dtype="float32", backend=backend)
    static = Renderer(scene.without_motion(), outputs=("image",), dtype="float32", backend=backend)
    copy = _unit(sequence.photo)
    for index in range(1, frames):
        camera, t = sequence.cameras[index], float(sequence.times[index])
        target = _unit(sequence.frame(index))
        frame = ours.render(camera, t)
        images = {
            "psnr": np.clip(frame.image, 0.0, 1.0),
            "psnr_static": np.clip(static.render(camera, t).image, 0.0, 1.0),
            "psnr_copy": copy,
        }
        moving = sequence.moving[index]
        for name, image in images.items():
            scores[name].append(psnr(image, target))
            if np.count_nonzero(moving) >= MIN_MOVING_PIXELS:
                scores[f"{name}_moving"].append(psnr(image, target, moving))
        scores["ssim"].append(ssim(images["psnr"], target))
        _score_depth(scores, frame.depth, sequence.depth[index].astype(np.float32))


def _score_depth(scores: Scores, depth: NDArray[np.float32], target: NDArray[np.float32]) -> None:
    measured = (target > 0) & (target < MAX_DEPTH)
    if measured.any():
        scores["depth_abs_rel"].append(depth_abs_rel(depth, target, measured))


def _unit(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = pixels.astype(np.float32) / np.float32(255.0)
    return unit


def _mean(values: list[float]) -> Optional[float]:
    return round(float(np.mean(values)), 4) if values else None
