"""Parts of diffusion transformers (Peebles & Xie 2023) as TRELLIS has them, with the official names of weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

EPS = 1e-6


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x normalised over its channels, times 1 + scale, plus shift, which broadcast."""
    return functional.layer_norm(x, x.shape[-1:], eps=EPS) * (1 + scale) + shift


def adaptive_modulation(dim: int, parts: int) -> nn.Sequential:
    """A time's embedding [B,dim] to shifts, scales and gates [B,parts·dim]: zero before training ("adaLN-Zero")."""
    linear = nn.Linear(dim, parts * dim)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.SiLU(), linear)


class TimestepEmbedder(nn.Module):
    """Times [B] to [B,dim], by cosines and sines of 128 frequencies each. Kept in float32."""

    frequencies: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, dim), nn.SiLU(), nn.Linear(dim, dim))
        frequencies = torch.exp(torch.arange(128, dtype=torch.float32) * (-math.log(10000) / 128))
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        angles = t[:, None] * self.frequencies
        embedding: Tensor = self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1))
        return embedding


class PositionEmbedder(nn.Module):
    """Positions [...,3] to [...,dim]: per coordinate dim/6 sines and as many cosines; zeros fill up. No weights."""

    frequencies: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        count = dim // 6
        self.padding = dim - 6 * count
        frequencies = 1.0 / 10000 ** (torch.arange(count, dtype=torch.float32) / count)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, positions: Tensor) -> Tensor:
        angles = positions[..., None] * self.frequencies  # [...,3,dim/6]
        waves = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)
        return functional.pad(waves, (0, self.padding))


class HeadNorm(nn.Module):
    """RMS norm of each head's queries or keys [B,heads,L,D], with a learned factor for each channel."""

    def __init__(self, heads: int, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(heads, dim))

    def forward(self, x: Tensor) -> Tensor:
        return functional.normalize(x, dim=-1) * (self.gamma[:, None] * math.sqrt(self.gamma.shape[1]))


class SelfAttention(nn.Module):
    """Multi-head self-attention whose queries and keys are normalised."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(dim, 3 * dim)
        self.q_rms_norm = HeadNorm(heads, dim // heads)
        self.k_rms_norm = HeadNorm(heads, dim // heads)
        self.to_out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B,L,dim] → [B,L,dim]."""
        q, k, v = torch.unflatten(self.to_qkv(x), -1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        attended = functional.scaled_dot_product_attention(self.q_rms_norm(q), self.k_rms_norm(k), v)
        projected: Tensor = self.to_out(attended.transpose(1, 2).flatten(2))
        return projected


class CrossAttention(nn.Module):
    """Multi-head attention to a context; its keys and values can be computed once and used again."""

    def __init__(self, dim: int, heads: int, context_dim: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, dim)
        self.to_kv = nn.Linear(context_dim or dim, 2 * dim)
        self.to_out = nn.Linear(dim, dim)

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """[B,S,context_dim] → keys and values [B,heads,S,dim/heads]."""
        keys, values = torch.unflatten(self.to_kv(context), -1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return keys, values

    def attend(self, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """x [B,L,dim] → [B,L,dim], with what `keys_values` gave."""
        queries = torch.unflatten(self.to_q(x), -1, (self.heads, -1)).transpose(1, 2)
        attended = functional.scaled_dot_product_attention(queries, keys, values)
        projected: Tensor = self.to_out(attended.transpose(1, 2).flatten(2))
        return projected

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x [B,L,dim], context [B,S,context_dim] → [B,L,dim]."""
        return self.attend(x, *self.keys_values(context))


class Mlp(nn.Module):
    """Two linear layers around a GELU (its tanh form)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU("tanh"), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """[...,dim] → [...,dim]."""
        y: Tensor = self.mlp(x)
        return y
