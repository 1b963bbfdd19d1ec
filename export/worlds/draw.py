"""Random numbers of procedural worlds: each scene has a key and a generator of its own."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

MAX_SEED = (1 << 32) - 1
TRAINING, EVALUATION = 0, 1


def scene_key(domain: int, seed: int, index: int) -> tuple[int, int]:
    """128-bit key of a scene's random numbers; training and evaluation differ in a bit of their own and never meet."""
    return (domain << 63) | (seed & ((1 << 63) - 1)), index


class Draw:
    """Uniform numbers of S scenes, each from its own generator, handed out column by column."""

    def __init__(self, keys: list[tuple[int, int]], columns: int = 2400) -> None:
        # Philox takes the whole key; torch's CPU generator would keep 32 bits of it.
        streams = [np.random.Generator(np.random.Philox(key=np.array(key, np.uint64))) for key in keys]
        self.table = torch.from_numpy(np.stack([stream.random(columns, np.float32) for stream in streams]))
        self.scenes, self.used = len(keys), 0

    def uniform(self, low: float | Tensor, high: float | Tensor, *shape: int) -> Tensor:
        """[S, *shape] between low and high."""
        count = math.prod(shape)
        values = self.table[:, self.used : self.used + count].reshape(self.scenes, *shape)
        self.used += count
        return low + (high - low) * values

    def chance(self, probability: float, *shape: int) -> Tensor:
        """[S, *shape] bool."""
        return self.uniform(0, 1, *shape) < probability

    def sign(self, *shape: int) -> Tensor:
        """[S, *shape] −1 or +1."""
        return self.uniform(-1, 1, *shape).sign()

    def index(self, count: int, *shape: int) -> Tensor:
        """[S, *shape] int64 below `count`."""
        return self.uniform(0, count, *shape).long().clamp_max(count - 1)

    def pick(self, palette: list[list[float]], *shape: int, spread: float = 0.05) -> Tensor:
        """[S, *shape, 3] colours near those of a palette."""
        choice = self.index(len(palette), *shape)
        return (torch.tensor(palette)[choice] + self.uniform(-spread, spread, *shape, 3)).clamp(0.02, 0.98)
