"""What is asked of a world."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class WorldRequest:
    """`count` sequences of `seed`; width and height; `frames` of each, `fps` of them a second."""

    count: int
    seed: int
    size: tuple[int, int]
    frames: int
    fps: float
