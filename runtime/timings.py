"""How long each stage of a run took, and what tensors came out of it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray


@dataclass
class StageTime:
    """One stage: its name, wall-clock seconds, and the size of each tensor that it made."""

    name: str
    seconds: float = 0.0
    tensors: dict[str, str] = field(default_factory=dict)

    def record(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        """Notes the sizes of `tensors`; the arrays themselves are not kept."""
        for name, tensor in tensors.items():
            self.tensors[name] = tensor_size(tensor.shape, tensor.dtype)


def tensor_size(shape: tuple[int, ...], dtype: object) -> str:
    """In words, such as "1x3x256x448"; the dtype is named when it is not float32."""
    dims = "x".join(map(str, shape))
    return dims if str(dtype) == "float32" else f"{dims} {dtype}"


class Timings:
    """The stages of one run, in order. One that runs several times is there once, with all of its seconds.

    Example:
        with timings.stage("perceive") as stage:
            stage.record(engine.run(inputs))
    """

    def __init__(self) -> None:
        self.stages: list[StageTime] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[StageTime]:
        stage = next((stage for stage in self.stages if stage.name == name), None) or StageTime(name)
        start = time.perf_counter()
        yield stage
        stage.seconds += time.perf_counter() - start
        if stage not in self.stages:
            self.stages.append(stage)
