"""Latent voxels to Gaussians: the decoder of TRELLIS (arXiv 2412.01506) as GVFDiffusion trained it, eight per voxel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from edge4d.export.models.layers.dit import EPS, Mlp, PositionEmbedder
from edge4d.export.models.layers.sparse import WindowAttention

LATENTS = (
    (-2.1687545776, 2.3776507378),
    (-0.0043470464, 2.3863782883),
    (-0.1335234940, 2.1244180202),
    (-0.0841807276, 2.1748552322),
    (-0.5271206498, 2.6639447212),
    (0.7238689065, 2.3711922169),
    (-1.1414450407, 2.6217446327),
    (1.2039363384, 2.6845231056),
)
"""Mean and deviation of each channel of the latents that the official flow was trained on; its samples have 0 and 1."""

CHANNELS = (3, 3, 3, 4, 1)
"""Of a Gaussian: offset, colour, scale, rotation, opacity."""


@dataclass(frozen=True)
class GaussianDecoderConfig:
    """Sizes of the decoder; the default is the official one.

    Attributes:
        latent_channels: of a voxel.
        dim, depth, heads: of the transformer.
        resolution: voxels along a side of the cube that objects lie in.
        gaussians: per voxel.
    """

    latent_channels: int = 8
    dim: int = 768
    depth: int = 12
    heads: int = 12
    resolution: int = 64
    gaussians: int = 8


class RawGaussians(NamedTuple):
    """G·V Gaussians, voxel by voxel, before activation (`edge4d.runtime.variation_field.ACTIVATION`); z is up.

    Attributes:
        means: [G·V,3] within ±0.5 but for what sticks out of its voxel.
        colors: [G·V,1,3] constant coefficients of spherical harmonics.
        scales: [G·V,3].
        quats: [G·V,4] wxyz.
        opacities: [G·V].
    """

    means: Tensor
    colors: Tensor
    scales: Tensor
    quats: Tensor
    opacities: Tensor


class WindowBlock(nn.Module):
    """Attention within windows, then two linear layers."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.attn = WindowAttention(dim, heads)
        self.mlp = Mlp(dim)

    def forward(self, x: Tensor, windows: Tensor) -> Tensor:
        """x [V,dim], windows [W,K] → [V,dim]."""
        x = x + self.attn(functional.layer_norm(x, x.shape[-1:], eps=EPS), windows)
        y: Tensor = x + self.mlp(functional.layer_norm(x, x.shape[-1:], eps=EPS))
        return y


class GaussianDecoder(nn.Module):
    """The network. Windows are cubes of 8 voxels a side, shifted by 4 in every other block."""

    offset_perturbation: Tensor

    def __init__(self, config: GaussianDecoderConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or GaussianDecoderConfig()
        self.pos_embedder = PositionEmbedder(config.dim)
        self.input_layer = nn.Linear(config.latent_channels, config.dim)
        self.blocks = nn.ModuleList(WindowBlock(config.dim, config.heads) for _ in range(config.depth))
        self.out_layer = nn.Linear(config.dim, config.gaussians * sum(CHANNELS))
        nn.init.zeros_(self.out_layer.weight)
        nn.init.zeros_(self.out_layer.bias)
        self.register_buffer("offset_perturbation", _spread(config.gaussians))
        self.lift = Lift(config)

    def forward(self, latents: Tensor, coords: Tensor, windows: Tensor, shifted_windows: Tensor) -> RawGaussians:
        """Gaussians of occupied voxels.

        Args:
            latents: [V,latent_channels].
            coords: [V,3] int32.
            windows: [W,K] int32, of 8 voxels a side.
            shifted_windows: the same, shifted by 4.
        """
        x = self.input_layer(latents) + self.pos_embedder(coords.to(latents.dtype))
        for index, block in enumerate(self.blocks):
            x = block(x, windows if index % 2 == 0 else shifted_windows)
        decoded = self.out_layer(functional.layer_norm(x, x.shape[-1:]))
        lifted: RawGaussians = self.lift(decoded, coords, self.offset_perturbation)
        return lifted


class Lift(nn.Module):
    """What is decoded to Gaussians at their voxels. Kept in float32."""

    def __init__(self, config: GaussianDecoderConfig) -> None:
        super().__init__()
        self.gaussians, self.resolution = config.gaussians, config.resolution

    def forward(self, decoded: Tensor, coords: Tensor, perturbation: Tensor) -> RawGaussians:
        """decoded [V,G·14], coords [V,3], perturbation [G,3]."""
        parts = torch.split(decoded, [self.gaussians * channels for channels in CHANNELS], dim=1)
        offsets, colors, scales, quats, opacities = (
            part.reshape(-1, self.gaussians, channels) for part, channels in zip(parts, CHANNELS)
        )
        centres = (coords.to(decoded.dtype) + 0.5) / self.resolution - 0.5
        reach = 0.75 / self.resolution  # three quarters of a voxel from its centre
        means = centres[:, None] + torch.tanh(offsets + perturbation) * reach
        return RawGaussians(
            means.flatten(0, 1),
            colors.reshape(-1, 1, 3),
            scales.flatten(0, 1),
            0.1 * quats.flatten(0, 1),
            opacities.flatten(),
        )


def _spread(count: int) -> Tensor:
    """Offsets [count,3] of a voxel's Gaussians before training: Hammersley points, as tanh gives them within reach."""
    points = torch.tensor([[i / count, _radical_inverse(2, i), _radical_inverse(3, i)] for i in range(count)])
    return torch.atanh((2 * points - 1) / 1.5)


def _radical_inverse(base: int, number: int) -> float:
    """The digits of a number mirrored at the point."""
    value, weight = 0.0, 1.0 / base
    while number:
        value += number % base * weight
        number, weight = number // base, weight / base
    return value


def official_key(key: str) -> str | None:
    """A weight's name here for its name in `ema_static_vae_0.9999_200000.pt`, which also holds the encoder: None."""
    name, _, rest = key.removeprefix("module.").partition(".")
    here = {"decoder": "blocks", "from_latent": "input_layer", "out_layer": "out_layer"}
    if name in here:
        return f"{here[name]}.{rest}"
    return name if name == "offset_perturbation" else None
