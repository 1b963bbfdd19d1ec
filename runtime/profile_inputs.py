"""What a bundle is measured on: a picture with sky, ground and things, and what the stages make of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Optional

import numpy as np
from numpy.typing import NDArray

from edge4d.runtime.backends import Backend
from edge4d.runtime.bundle import Bundle, Stage
from edge4d.runtime.engine import Engine
from edge4d.runtime.scene import Scene4D
from edge4d.runtime.systems import SYSTEMS, system

Tensors = Mapping[str, NDArray[Any]]
_DEPTH, _INSTANCE = 8.0, 1  # metres, and the id of the thing: for bundles that cannot see them


class Sample(NamedTuple):
    """Inputs of a bundle's stages, by their names.

    Attributes:
        size: (width, height) of the picture.
        scene: what the bundle made of it; None where nothing here runs the bundle's system.
    """

    inputs: Mapping[str, Tensors]
    size: tuple[int, int]
    scene: Optional[Scene4D] = None


def sample(bundle: Bundle, backend: Backend, precision: str, size: Optional[tuple[int, int]] = None) -> Sample:
    """Runs the bundle once on a picture of `size` and keeps what each stage took.

    A stage that did not run, or that belongs to a system that nothing here runs, gets random numbers.

    Raises:
        PrecisionNotInBundle: the bundle has no such variant.
        InvalidRequest: a size that the bundle cannot see.
        EngineFailed: a network could not be run.
    """
    taken: dict[str, Tensors] = {}
    scene = None
    if bundle.system in SYSTEMS:
        scene = _scene(bundle, _Listening(backend, taken), precision, size)
        size = scene.camera.width, scene.camera.height
    size = size or (bundle.camera.width, bundle.camera.height)
    inputs = {stage.name: taken.get(stage.name) or _random(stage, size) for stage in bundle.stages.values()}
    return Sample(inputs, size, scene)


class _Listening:
    """A backend whose engines put what they take into `taken`, by the names of their stages."""

    def __init__(self, backend: Backend, taken: dict[str, Tensors]) -> None:
        self._backend, self._taken = backend, taken
        self.name = backend.name

    def engine(self, bundle: Bundle, stage: str, precision: str) -> Engine:
        return _ListeningEngine(self._backend.engine(bundle, stage, precision), stage, self._taken)


class _ListeningEngine:
    def __init__(self, engine: Engine, stage: str, taken: dict[str, Tensors]) -> None:
        self._engine, self._stage, self._taken = engine, stage, taken
        self.inputs, self.outputs, self.close = engine.inputs, engine.outputs, engine.close

    def run(self, inputs: Tensors) -> dict[str, NDArray[Any]]:
        self._taken[self._stage] = inputs
        return self._engine.run(inputs)

    def __enter__(self) -> _ListeningEngine:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _scene(bundle: Bundle, backend: Backend, precision: str, size: Optional[tuple[int, int]]) -> Scene4D:
    image, instances = picture(*(size or bundle.config["size"]))
    seen = "perceive" in bundle.stages
    depth = None if seen else np.full(instances.shape, _DEPTH, np.float32)
    with system(bundle.system)(bundle, backend, precision) as pipeline:
        scene: Scene4D = pipeline.generate(image, size=size, depth=depth, instances=None if seen else instances)
    return scene


def picture(width: int, height: int) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """A thing on the ground under the sky, [H,W,3], with detail of every size as photographs have it; and ids [H,W]."""
    rng = np.random.default_rng(0)
    image = np.empty((height, width, 3), np.float32)
    image[: height // 2] = (150, 180, 220)
    image[height // 2 :] = (110, 105, 100)
    instances = np.zeros((height, width), np.int32)
    thing = slice(2 * height // 5, 4 * height // 5), slice(width // 3, width // 2)
    image[thing], instances[thing] = (190, 60, 50), _INSTANCE
    for block in (1, 4, 16, 64):
        noise = rng.normal(0, 8, (-(-height // block), -(-width // block), 1))
        image += noise.repeat(block, 0).repeat(block, 1)[:height, :width]
    return image.clip(0, 255).astype(np.uint8), instances


def _random(stage: Stage, size: tuple[int, int]) -> Tensors:
    """Numbers from 0 to 1, zeros and ones for whole ones; axes that are not the picture's have their best size."""
    sizes = {name: axis.opt for name, axis in stage.axes.items()}
    sizes.update({name: side for name, side in zip("WH", size) if name in sizes})
    rng = np.random.default_rng(0)
    return {tensor.name: _numbers(rng, tensor.dtype, tensor.shape_at(sizes)) for tensor in stage.inputs}


def _numbers(rng: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    if dtype.startswith("float"):
        return rng.random(shape, np.float32).astype(dtype)
    return rng.integers(0, 2, shape).astype(dtype)
