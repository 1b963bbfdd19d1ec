"""What all systems share: a bundle and its engines, which are made when first needed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Any, Optional, TypeVar

from numpy.typing import NDArray

from edge4d.runtime.backends import Backend
from edge4d.runtime.bundle import Bundle
from edge4d.runtime.engine import Engine
from edge4d.runtime.scene import Scene4D
from edge4d.runtime.timings import Timings

Tensors = dict[str, NDArray[Any]]
_Self = TypeVar("_Self", bound="Pipeline")


class Pipeline(ABC):
    """A bundle, ready to generate. Engines are kept until `close`.

    Attributes:
        bundle: what runs.
        precision: which of its variants.
        timings: the stages of the last `generate`.
        camera_source: in words, where the camera of the last `generate` came from.
        trajectory: the path of `edge4d.runtime.trajectories` that shows its scenes best.
    """

    trajectory = "static"

    def __init__(self, bundle: Bundle, backend: Backend, precision: str) -> None:
        self.bundle, self.backend, self.precision = bundle, backend, precision
        self.timings = Timings()
        self.camera_source = ""
        self._engines: dict[str, Engine] = {}

    @abstractmethod
    def example_scene(self, size: Optional[tuple[int, int]] = None) -> Scene4D:
        """A scene of an input that is made up; every stage of the bundle runs for it, which is what profiles need.

        Args:
            size: (width, height) of its camera; the bundle's default without it.

        Raises:
            InvalidRequest: a size that cannot be used.
            EngineFailed: a network could not be run.
        """

    def close(self) -> None:
        """Frees the engines."""
        for engine in self._engines.values():
            engine.close()
        self._engines.clear()

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()

    def _engine(self, name: str) -> Engine:
        """A stage's; making it is timed by itself."""
        if name not in self._engines:
            with self.timings.stage(f"load {name}"):
                self._engines[name] = self.backend.engine(self.bundle, name, self.precision)
        return self._engines[name]

    def _run(self, name: str, inputs: Tensors) -> Tensors:
        """One stage, timed, given those of `inputs` that it takes."""
        engine = self._engine(name)
        with self.timings.stage(name) as stage:
            outputs = engine.run({tensor.name: inputs[tensor.name] for tensor in engine.inputs})
            stage.record(outputs)
        return outputs
