"""What the tests' references share: layers written out in NumPy, float64, one row and one head at a time."""

from __future__ import annotations

import math

import numpy as np
import torch


class Weights(dict):
    """A network's parameters and buffers as float64 arrays, by name, and the layers that use them."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__({name: value.double().numpy() for name, value in model.state_dict().items()})

    def linear(self, name: str, x: np.ndarray) -> np.ndarray:
        return x @ self[f"{name}.weight"].T + self.get(f"{name}.bias", 0.0)

    def norm(self, name: str, x: np.ndarray) -> np.ndarray:
        return norm(x) * self[f"{name}.weight"] + self[f"{name}.bias"]


def norm(x: np.ndarray, eps: float = 1e-6) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps)


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, heads: int) -> np.ndarray:
    """q [L,C], k and v [S,C], head after head in the channels → [L,C]."""
    size = q.shape[1] // heads
    parts = []
    for head in range(heads):
        channels = slice(head * size, (head + 1) * size)
        weights = np.exp(q[:, channels] @ k[:, channels].T / math.sqrt(size))
        parts.append(weights / weights.sum(1, keepdims=True) @ v[:, channels])
    return np.concatenate(parts, axis=1)


def waves(position: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
    """One position [3]: sines, then cosines, of x; then of y; then of z."""
    return np.concatenate([wave(value * frequencies) for value in position for wave in (np.sin, np.cos)])


def every_weight_matters(model: torch.nn.Module) -> torch.nn.Module:
    """The model with weights of which none is 0 or 1, from one seed."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        scale = 1 / math.sqrt(parameter[0].numel()) if parameter.ndim > 1 else 0.5
        torch.nn.init.normal_(parameter, std=scale, generator=generator)
    return model.eval()


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
