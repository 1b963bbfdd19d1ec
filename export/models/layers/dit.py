"""Parts of diffusion transformers (Peebles & Xie 2023) as TRELLIS has them, with the official names of weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from edge4d.export.models.layers.attention import attend, split_heads

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
    """RMS norm of each head's queries or keys [B,heads,L,D], with a learned factor per channel. Kept in float32."""

    def __init__(self, heads: int, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(heads, dim))

    def forward(self, x: Tensor) -> Tensor:
        length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp(min=1e-12)
        return x / length * (self.gamma[:, None] * math.sqrt(self.gamma.shape[1]))


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
        q, k, v = (split_heads(part, self.heads) for part in self.to_qkv(x).chunk(3, dim=-1))
        projected: Tensor = self.to_out(attend(self.q_rms_norm(q), self.k_rms_norm(k), v))
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
        keys, values = self.to_kv(context).chunk(2, dim=-1)
        return split_heads(keys, self.heads), split_heads(values, self.heads)

    def attend(self, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """x [B,L,dim] → [B,L,dim], with what `keys_values` gave."""
        projected: Tensor = self.to_out(attend(split_heads(self.to_q(x), self.heads), keys, values))
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


class ConditionedBlock(nn.Module):
    """Self-attention, attention to a condition, two linear layers; the time modulates the first and the last."""

    def __init__(self, dim: int, heads: int, context_dim: int) -> None:
        super().__init__()
        self.self_attn = SelfAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=EPS)
        self.cross_attn = CrossAttention(dim, heads, context_dim)
        self.mlp = Mlp(dim)
        self.adaLN_modulation = adaptive_modulation(dim, 6)

    def forward(self, x: Tensor, time: Tensor, context: Tensor) -> Tensor:
        """x [B,L,dim], time [B,dim] embedded, context [B,S,context_dim] → [B,L,dim]."""
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.adaLN_modulation(time)[:, None].chunk(6, dim=-1)
        x = x + gate * self.self_attn(modulated(x, shift, scale))
        x = x + self.cross_attn(self.norm2(x), context)
        y: Tensor = x + mlp_gate * self.mlp(modulated(x, mlp_shift, mlp_scale))
        return y
