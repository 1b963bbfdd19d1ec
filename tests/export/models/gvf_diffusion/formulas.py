"""What the tests' references share: layers written out in NumPy, float64, one object and one head at a time."""

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


def time_embedding(weights: Weights, t: float) -> np.ndarray:
    angles = t * np.exp(-math.log(10000) * np.arange(128) / 128)
    hidden = weights.linear("t_embedder.mlp.0", np.concatenate([np.cos(angles), np.sin(angles)]))
    return weights.linear("t_embedder.mlp.2", silu(hidden))


def position(cell, dim: int) -> np.ndarray:
    count = dim // 6
    encoded = waves(np.array(cell, float), 10000.0 ** -(np.arange(count) / count))
    return np.pad(encoded, (0, dim - 6 * count))


def conditioned_block(
    weights: Weights, name: str, x: np.ndarray, time: np.ndarray, context: np.ndarray, heads: int
) -> np.ndarray:
    dim = x.shape[1]
    modulation = weights.linear(f"{name}.adaLN_modulation.1", silu(time))
    shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = np.split(modulation, 6)
    qkv = weights.linear(f"{name}.self_attn.to_qkv", norm(x) * (1 + scale) + shift)
    q, k, v = np.split(qkv.reshape(len(x), 3 * heads, -1), 3, axis=1)
    q, k = (
        value / np.linalg.norm(value, axis=-1, keepdims=True) * weights[f"{name}.self_attn.{which}_rms_norm.gamma"]
        for value, which in ((q, "q"), (k, "k"))
    )
    q, k, v = (value.reshape(len(x), dim) for value in (q * math.sqrt(dim / heads), k * math.sqrt(dim / heads), v))
    x = x + gate * weights.linear(f"{name}.self_attn.to_out", attention(q, k, v, heads))
    q = weights.linear(f"{name}.cross_attn.to_q", weights.norm(f"{name}.norm2", x))
    k, v = np.split(weights.linear(f"{name}.cross_attn.to_kv", context), 2, axis=1)
    x = x + weights.linear(f"{name}.cross_attn.to_out", attention(q, k, v, heads))
    return x + mlp_gate * mlp(weights, f"{name}.mlp", norm(x) * (1 + mlp_scale) + mlp_shift)


def mlp(weights: Weights, name: str, x: np.ndarray) -> np.ndarray:
    y = weights.linear(f"{name}.mlp.0", x)
    y = 0.5 * y * (1 + np.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
    return weights.linear(f"{name}.mlp.2", y)


def every_weight_matters(model: torch.nn.Module) -> torch.nn.Module:
    """The model with weights of which none is 0 or 1, from one seed."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        scale = 1 / math.sqrt(parameter[0].numel()) if parameter.ndim > 1 else 0.5
        torch.nn.init.normal_(parameter, std=scale, generator=generator)
    return model.eval()


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
