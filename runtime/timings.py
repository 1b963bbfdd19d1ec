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
    """One stage: its name, wall-clock seconds, and the shape and dtype of each tensor that it made."""

    name: str
    seconds: float = 0.0
    tensors: dict[str, str] = field(default_factory=dict)

    def record(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        """Notes the sizes of `tensors`; the arrays themselves are not kept."""
        for name, tensor in tensors.items():
            self.tensors[name] = f"{'x'.join(map(str, tensor.shape))} {tensor.dtype}"


class Timings:
    """The stages of one run, in order.

    Example:
        with timings.stage("perceive") as stage:
            stage.record(engine.run(inputs))
    """

    def __init__(self) -> None:
        self.stages: list[StageTime] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[StageTime]:
        stage = StageTime(name)
        start = time.perf_counter()
        yield stage
        stage.seconds = time.perf_counter() - start
        self.stages.append(stage)
