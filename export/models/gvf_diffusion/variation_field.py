"""The variation-field diffusion transformer of GVFDiffusion (arXiv 2507.23785), with the official names of weights.

It predicts v for the latents of a clip, T frames of L tokens, from DINOv2 features of each frame and from points of the
canonical Gaussians. Nothing in it knows the order of the frames: what tells them apart is their pictures.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from edge4d.export.models.layers.dit import (
    EPS,
    CrossAttention,
    Mlp,
    PositionEmbedder,
    SelfAttention,
    TimestepEmbedder,
    adaptive_modulation,
    modulated,
)

KeysValues = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class VariationFieldConfig:
    """Sizes of the network; the default is the official one.

    Attributes:
        dim: channels of a token.
        depth: blocks.
        heads: attention heads; divide `dim`.
        latent_channels: of the motion VAE.
        gaussian_channels: of a canonical Gaussian (see `edge4d.runtime.variation_field`).
        image_channels: of the pictures' features.
    """

    dim: int = 512
    depth: int = 12
    heads: int = 16
    latent_channels: int = 16
    gaussian_channels: int = 14
    image_channels: int = 1024


class Block(nn.Module):
    """Attention within frames, over time, to the frames' pictures, to the canonical Gaussians; then a linear pair."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.spatial_self_attn = SelfAttention(dim, heads)
        self.temporal_self_attn = SelfAttention(dim, heads)
        self.norm3 = nn.LayerNorm(dim, eps=EPS)
        self.image_cross_attn = CrossAttention(dim, heads)
        self.norm4 = nn.LayerNorm(dim, eps=EPS)
        self.static_cross_attn = CrossAttention(dim, heads)
        self.mlp = Mlp(dim)
        self.adaLN_modulation = adaptive_modulation(dim, 6)
        self.adaLN_modulation_temporal = adaptive_modulation(dim, 3)

    def forward(self, x: Tensor, time: Tensor, image: KeysValues, static: KeysValues) -> Tensor:
        """x [B,T,L,dim] to the same shape.

        Args:
            time: [B,dim] embedded.
            image, static: keys and values [n,heads,S,dim/heads] with n = B·T, or n = B where frames share them.
        """
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.adaLN_modulation(time)[:, None, None].chunk(6, dim=-1)
        x = x + gate * _per_group(self.spatial_self_attn, modulated(x, shift, scale))
        shift, scale, gate = self.adaLN_modulation_temporal(time)[:, None, None].chunk(3, dim=-1)
        over_time = modulated(x, shift, scale).transpose(1, 2)
        x = x + gate * _per_group(self.temporal_self_attn, over_time).transpose(1, 2)
        x = x + _cross(self.image_cross_attn, self.norm3(x), image)
        x = x + _cross(self.static_cross_attn, self.norm4(x), static)
        updated: Tensor = x + mlp_gate * self.mlp(modulated(x, mlp_shift, mlp_scale))
        return updated


def _per_group(attention: nn.Module, x: Tensor) -> Tensor:
    """Self-attention along the third of [B,groups,L,dim]."""
    attended: Tensor = attention(x.flatten(0, 1))
    return attended.reshape(x.shape)


def _cross(attention: CrossAttention, x: Tensor, context: KeysValues) -> Tensor:
    """Cross-attention of [B,T,L,dim]; tokens of frames that share their keys attend as one long sequence."""
    queries = x.reshape(context[0].shape[0], -1, x.shape[-1])
    return attention.attend(queries, *context).reshape(x.shape)


class FinalLayer(nn.Module):
    """Tokens to latents."""

    def __init__(self, dim: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, outputs)
        self.adaLN_modulation = adaptive_modulation(dim, 2)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x [B,T,L,dim], time [B,dim] → [B,T,L,outputs]."""
        shift, scale = self.adaLN_modulation(time)[:, None, None].chunk(2, dim=-1)
        y: Tensor = self.linear(modulated(x, shift, scale))
        return y


class VariationField(nn.Module):
    """The network. `forward` is its plain form; engines compute the keys and values of a clip once (`fast`)."""

    def __init__(self, config: VariationFieldConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or VariationFieldConfig()
        self.t_embedder = TimestepEmbedder(config.dim)
        self.pos_embedder = PositionEmbedder(config.dim)
        self.input_layer = nn.Linear(config.latent_channels, config.dim)
        self.static_cond_proj = nn.Linear(config.gaussian_channels, config.dim)
        self.image_cond_proj = nn.Linear(config.image_channels, config.dim)
        self.blocks = nn.ModuleList(Block(config.dim, config.heads) for _ in range(config.depth))
        self.final_layer = FinalLayer(config.dim, config.latent_channels)

    def forward(self, x: Tensor, t: Tensor, images: Tensor, static: Tensor, positions: Tensor) -> Tensor:
        """v of noisy latents.

        Args:
            x: [B,T,L,latent_channels].
            t: [B] times of the training schedule, 0 to 999.
            images: [B,T,S,image_channels] tokens of each frame's picture, patches first, CLS last.
            static: [B,M,gaussian_channels] canonical Gaussians in query order, less the mean, over the deviation.
            positions: [B,L,3] of the latents' Gaussians.

        Returns:
            [B,T,L,latent_channels].
        """
        of_each_frame = static.repeat_interleave(x.shape[1], dim=0)
        return self.velocity(x, t, positions, self.keys_values(images.flatten(0, 1), of_each_frame))

    def keys_values(self, images: Tensor, static: Tensor) -> Iterator[tuple[KeysValues, KeysValues]]:
        """Keys and values of pictures [n,S,image_channels] and of Gaussians [m,M,gaussian_channels], block by block."""
        pictures, points = self.image_cond_proj(images), self.static_cond_proj(static)
        for block in cast("Iterable[Block]", self.blocks):
            yield block.image_cross_attn.keys_values(pictures), block.static_cross_attn.keys_values(points)

    def velocity(
        self, x: Tensor, t: Tensor, positions: Tensor, contexts: Iterable[tuple[KeysValues, KeysValues]]
    ) -> Tensor:
        """`forward` with the keys and values of pictures (n = B·T) and Gaussians (m = B·T, or B) for each block."""
        time = self.t_embedder(t)
        x = self.input_layer(x) + self.pos_embedder(positions)[:, None]
        for block, (image, static) in zip(self.blocks, contexts):
            x = block(x, time, image, static)
        v: Tensor = self.final_layer(x, time)
        return v
