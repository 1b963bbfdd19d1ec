"""How much of the picture a variant of a bundle keeps: PSNR of rendered video, against the fp32 variant's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge4d.calib.photos import CalibrationPhoto
from edge4d.runtime.backends.onnxruntime import OnnxRuntimeBackend
from edge4d.runtime.bundle import Bundle
from edge4d.runtime.metrics import psnr
from edge4d.runtime.renderer import Renderer
from edge4d.runtime.scene import Scene4D
from edge4d.runtime.systems import system
from edge4d.runtime.trajectories import CameraPath, trajectory

PATHS = ("drive", "orbit", "spiral", "pan")  # of the photographs' videos, in turn
FRAMES = 4  # of each video, evenly chosen, the last one among them
_BACKEND = "onnxruntime"  # for networks and drawing: everywhere the same result


class Score(NamedTuple):
    """Of a variant, in dB: the mean over all frames of the frame's PSNR, and the worst frame's."""

    mean: float
    worst: float


class Reference:
    """Frames of the fp32 variant's scenes of some photographs, to compare others with.

    A scene is drawn along a path of its photograph, of as many seconds as the bundle foresees.

    Attributes:
        photos: of which.
        frames: `FRAMES` of each.
    """

    def __init__(self, bundle: Bundle, photos: Sequence[CalibrationPhoto], size: tuple[int, int]) -> None:
        self.photos, self._size = photos, size
        scenes = self._scenes(bundle, "fp32")
        self._paths = [_path(scene, PATHS[i % len(PATHS)], bundle) for i, scene in enumerate(scenes)]
        self.frames = [frame for scene, path in zip(scenes, self._paths) for frame in _frames(scene, path)]

    def score(self, bundle: Bundle, precision: str = "int8") -> Score:
        """How near the variant's frames are to these."""
        found = [psnr(ours, theirs) for ours, theirs in zip(self.draw(bundle, precision), self.frames)]
        return Score(float(np.mean(found)), min(found))

    def draw(self, bundle: Bundle, precision: str) -> list[NDArray[np.float32]]:
        """The variant's frames, photograph by photograph."""
        scenes = self._scenes(bundle, precision)
        return [frame for scene, path in zip(scenes, self._paths) for frame in _frames(scene, path)]

    def _scenes(self, bundle: Bundle, precision: str) -> list[Scene4D]:
        with system(bundle.system)(bundle, OnnxRuntimeBackend(), precision) as pipeline:
            return [
                pipeline.generate(photo.image, temperature=0.0, size=self._size, **photo.known) for photo in self.photos
            ]


def _path(scene: Scene4D, name: str, bundle: Bundle) -> CameraPath:
    config: dict[str, Any] = dict(bundle.config)
    whole = trajectory(name, scene.camera, int(config["frames"]), float(config["fps"]))
    chosen = [(i + 1) * (len(whole) - 1) // FRAMES for i in range(FRAMES)]
    return CameraPath(whole.times[chosen], tuple(whole.cameras[i] for i in chosen))


def _frames(scene: Scene4D, path: CameraPath) -> list[NDArray[np.float32]]:
    renderer = Renderer(scene, outputs=("image",), dtype="float32", backend=_BACKEND)
    return [np.clip(renderer.render(camera, t).image, 0.0, 1.0) for camera, t in zip(path.cameras, path.times)]
