"""Which voxels an object fills: two networks of TRELLIS (arXiv 2412.01506), with the official names of weights.

A flow makes a latent grid of a picture's features, a convolutional decoder makes the occupied voxels of that.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from edge4d.export.models.layers.dit import ConditionedBlock, PositionEmbedder, TimestepEmbedder


@dataclass(frozen=True)
class StructureFlowConfig:
    """Sizes of the flow; the default is `ss_flow_img_dit_L_16l8`.

    Attributes:
        resolution: R, cells along a side of the latent grid.
        channels: of a cell.
        dim, depth, heads: of the transformer.
        context_dim: channels of the picture's features.
    """

    resolution: int = 16
    channels: int = 8
    dim: int = 1024
    depth: int = 24
    heads: int = 16
    context_dim: int = 1024


class StructureFlow(nn.Module):
    """The flow: every cell of the latent grid is a token."""

    pos_emb: Tensor

    def __init__(self, config: StructureFlowConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or StructureFlowConfig()
        self.t_embedder = TimestepEmbedder(config.dim)
        self.input_layer = nn.Linear(config.channels, config.dim)
        self.blocks = nn.ModuleList(
            ConditionedBlock(config.dim, config.heads, config.context_dim) for _ in range(config.depth)
        )
        self.out_layer = nn.Linear(config.dim, config.channels)
        nn.init.zeros_(self.out_layer.weight)
        nn.init.zeros_(self.out_layer.bias)
        side = torch.arange(config.resolution, dtype=torch.float32)
        cells = torch.cartesian_prod(side, side, side)
        self.register_buffer("pos_emb", PositionEmbedder(config.dim)(cells))

    def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """v of a noisy grid.

        Args:
            x: [B,channels,R,R,R].
            t: [B], 1000 (noise) to 0 (data).
            condition: [B,S,context_dim] features of the picture, zeros for none.

        Returns:
            [B,channels,R,R,R].
        """
        time = self.t_embedder(t)
        tokens = self.input_layer(x.flatten(2).transpose(1, 2)) + self.pos_emb
        for block in self.blocks:
            tokens = block(tokens, time, condition)
        v: Tensor = self.out_layer(functional.layer_norm(tokens, tokens.shape[-1:]))
        return v.transpose(1, 2).reshape(x.shape)


@dataclass(frozen=True)
class StructureDecoderConfig:
    """Sizes of the decoder; the default is `ss_dec_conv3d_16l8`.

    Attributes:
        latent_channels: of a cell of the latent grid.
        channels: at each resolution, coarsest first; each is twice the resolution of the one before.
        blocks: residual blocks at each resolution, and as many before the first.
    """

    latent_channels: int = 8
    channels: tuple[int, ...] = (512, 128, 32)
    blocks: int = 2


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of a grid [B,C,D,H,W]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class ResidualBlock(nn.Module):
    """Norm, SiLU, convolution, twice, around a skip."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = ChannelNorm(channels)
        self.conv1 = nn.Conv3d(channels, channels, 3, padding=1)
        self.norm2 = ChannelNorm(channels)
        self.conv2 = nn.Conv3d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B,C,D,H,W] → the same shape."""
        y = self.conv1(functional.silu(self.norm1(x)))
        y = self.conv2(functional.silu(self.norm2(y)))
        added: Tensor = x + y
        return added


class Upsample(nn.Module):
    """Twice the resolution: a convolution makes the eight children of each cell as channels."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inputs, 8 * outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B,inputs,R,R,R] → [B,outputs,2R,2R,2R]."""
        children = torch.unflatten(self.conv(x), 1, (-1, 2, 2, 2)).permute(0, 1, 5, 2, 6, 3, 7, 4)
        return children.flatten(6, 7).flatten(4, 5).flatten(2, 3)


class StructureDecoder(nn.Module):
    """The decoder: latent grid to logits of occupied voxels."""

    def __init__(self, config: StructureDecoderConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or StructureDecoderConfig()
        channels = config.channels
        self.input_layer = nn.Conv3d(config.latent_channels, channels[0], 3, padding=1)
        self.middle_block = nn.Sequential(*(ResidualBlock(channels[0]) for _ in range(config.blocks)))
        self.blocks = nn.ModuleList()
        for level, width in enumerate(channels):
            self.blocks.extend(ResidualBlock(width) for _ in range(config.blocks))
            if level < len(channels) - 1:
                self.blocks.append(Upsample(width, channels[level + 1]))
        self.out_layer = nn.Sequential(ChannelNorm(channels[-1]), nn.SiLU(), nn.Conv3d(channels[-1], 1, 3, padding=1))

    def forward(self, latent: Tensor) -> Tensor:
        """[B,latent_channels,R,R,R] → [B,1,4R,4R,4R] with three resolutions; above 0 is occupied."""
        x = self.middle_block(self.input_layer(latent))
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.out_layer(x)
        return logits
