"""What a bundle is measured on: what its stages take while it makes a scene of an input that is made up."""

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


class Sample(NamedTuple):
    """Inputs of a bundle's stages, by their names.

    Attributes:
        size: (width, height) of the scene's picture.
        scene: what the bundle made; None where nothing here runs the bundle's system.
        trajectory: the path of `edge4d.runtime.trajectories` that shows it best.
    """

    inputs: Mapping[str, Tensors]
    size: tuple[int, int]
    scene: Optional[Scene4D] = None
    trajectory: str = "static"


def sample(bundle: Bundle, backend: Backend, precision: str, size: Optional[tuple[int, int]] = None) -> Sample:
    """Lets the bundle make its example, a scene of `size`, and keeps what each stage took last.

    A stage that did not run, or that belongs to a system that nothing here runs, gets random numbers.

    Raises:
        PrecisionNotInBundle: the bundle has no such variant.
        InvalidRequest: a size that the bundle cannot make.
        EngineFailed: a network could not be run.
    """
    taken: dict[str, Tensors] = {}
    if bundle.system not in SYSTEMS:
        size = size or (bundle.camera.width, bundle.camera.height)
        return Sample(_inputs(bundle, taken, size), size)
    with system(bundle.system)(bundle, _Listening(backend, taken), precision) as pipeline:
        scene = pipeline.example_scene(size)
    size = scene.camera.width, scene.camera.height
    return Sample(_inputs(bundle, taken, size), size, scene, pipeline.trajectory)


def _inputs(bundle: Bundle, taken: Mapping[str, Tensors], size: tuple[int, int]) -> dict[str, Tensors]:
    return {stage.name: taken.get(stage.name) or _random(stage, size) for stage in bundle.stages.values()}


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
