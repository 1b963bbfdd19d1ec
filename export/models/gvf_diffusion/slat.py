"""What the voxels of an object hold: the flow of TRELLIS (arXiv 2412.01506), with the official names of weights.

It makes a latent for each occupied voxel of a picture's features. Convolutions on the voxels lead to half their
resolution, where a transformer works, and back.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from edge4d.export.models.layers.dit import EPS, ConditionedBlock, PositionEmbedder, TimestepEmbedder
from edge4d.export.models.layers.sparse import Downsample, SubmanifoldConv3d


@dataclass(frozen=True)
class SlatFlowConfig:
    """Sizes of the flow; the default is `slat_flow_img_dit_L_64l8p2`.

    Attributes:
        channels: of a voxel's latent.
        width: of a voxel in the convolutions.
        dim, depth, heads: of the transformer.
        context_dim: channels of the picture's features.
    """

    channels: int = 8
    width: int = 128
    dim: int = 1024
    depth: int = 24
    heads: int = 16
    context_dim: int = 1024


class SparseResidualBlock(nn.Module):
    """Norm, SiLU, convolution, twice, around a skip; the time modulates the second norm."""

    def __init__(self, inputs: int, outputs: int, time_dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(inputs, eps=EPS)
        self.conv1 = nn.ModuleDict({"conv": SubmanifoldConv3d(inputs, outputs)})  # official names end in conv.weight
        self.conv2 = nn.ModuleDict({"conv": SubmanifoldConv3d(outputs, outputs)})
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time_dim, 2 * outputs))
        self.skip_connection = nn.Linear(inputs, outputs) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, time: Tensor, neighbours: Tensor) -> Tensor:
        """x [V,inputs], time [1,time_dim] embedded, neighbours [V,27] → [V,outputs]."""
        scale, shift = self.emb_layers(time).chunk(2, dim=-1)
        y = self.conv1["conv"](functional.silu(self.norm1(x)), neighbours)
        y = functional.layer_norm(y, y.shape[-1:], eps=EPS) * (1 + scale) + shift
        y = self.conv2["conv"](functional.silu(y), neighbours)
        added: Tensor = y + self.skip_connection(x)
        return added


class SlatFlow(nn.Module):
    """The flow for one object."""

    def __init__(self, config: SlatFlowConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or SlatFlowConfig()
        dim, width = config.dim, config.width
        self.t_embedder = TimestepEmbedder(dim)
        self.pos_embedder = PositionEmbedder(dim)
        self.input_layer = nn.Linear(config.channels, width)
        self.input_blocks = nn.ModuleList(
            [SparseResidualBlock(width, width, dim), SparseResidualBlock(width, dim, dim)]
        )
        self.downsample = Downsample()
        self.blocks = nn.ModuleList(
            ConditionedBlock(dim, config.heads, config.context_dim) for _ in range(config.depth)
        )
        self.out_blocks = nn.ModuleList(
            [SparseResidualBlock(2 * dim, width, dim), SparseResidualBlock(2 * width, width, dim)]
        )
        self.out_layer = nn.Linear(width, config.channels)
        nn.init.zeros_(self.out_layer.weight)
        nn.init.zeros_(self.out_layer.bias)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        condition: Tensor,
        neighbours: Tensor,
        parents: Tensor,
        children: Tensor,
        coarse_neighbours: Tensor,
        coarse_coords: Tensor,
    ) -> Tensor:
        """v of noisy latents [V,channels].

        Args:
            x: [V,channels].
            t: [1], 1000 (noise) to 0 (data).
            condition: [1,S,context_dim] features of the picture, zeros for none.
            neighbours, parents, children, coarse_neighbours, coarse_coords: [V,27], [V], [P,8], [P,27] and [P,3] int32
                as `edge4d.runtime.voxels` makes them.
        """
        time = self.t_embedder(t)
        fine = self.input_blocks[0](self.input_layer(x), time, neighbours)
        coarse = self.input_blocks[1](self.downsample(fine, children), time, coarse_neighbours)
        tokens = (coarse + self.pos_embedder(coarse_coords.to(x.dtype)))[None]
        for block in self.blocks:
            tokens = block(tokens, time, condition)
        y = torch.cat([tokens[0], coarse], dim=-1).index_select(0, parents)
        y = self.out_blocks[0](y, time, neighbours)
        y = self.out_blocks[1](torch.cat([y, fine], dim=-1), time, neighbours)
        v: Tensor = self.out_layer(functional.layer_norm(y, y.shape[-1:]))
        return v
