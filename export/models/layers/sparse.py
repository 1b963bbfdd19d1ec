"""Networks on occupied voxels, by edge4d's operators: what a voxel needs of others is in tables of indices.

`edge4d.runtime.voxels` makes the tables. Their -1 means nobody there, which counts as zeros.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def register_operators() -> None:
    """Makes `torch.ops.edge4d` work. That needs onnx, which networks without these layers do not."""
    from edge4d.export import custom_ops  # noqa: F401


class SubmanifoldConv3d(nn.Module):
    """3×3×3 convolution at occupied voxels, of occupied voxels; weights [outputs,3,3,3,inputs] as spconv has them."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        register_operators()
        bound = 1 / math.sqrt(27 * inputs)  # PyTorch's for convolutions
        self.weight = nn.Parameter(torch.empty(outputs, 3, 3, 3, inputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor, neighbours: Tensor) -> Tensor:
        """x [V,inputs], neighbours [V,27] → [V,outputs]."""
        weight = self.weight.permute(1, 2, 3, 4, 0).flatten(0, 2)
        convolved: Tensor = torch.ops.edge4d.submanifold_convolution(x, neighbours, weight, self.bias)
        return convolved


class Downsample(nn.Module):
    """Fine voxels to coarse ones: the sum over one more than there are children.

    Official networks were trained with a mean that counts a zero.
    """

    def __init__(self) -> None:
        super().__init__()
        register_operators()

    def forward(self, x: Tensor, children: Tensor) -> Tensor:
        """x [V,C], children [P,8] → [P,C]."""
        means: Tensor = torch.ops.edge4d.gather_mean(x, children, zeros=1)
        return means


class WindowAttention(nn.Module):
    """Self-attention among the voxels of each window."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        register_operators()
        self.heads = heads
        self.to_qkv = nn.Linear(dim, 3 * dim)
        self.to_out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, windows: Tensor) -> Tensor:
        """x [V,dim], windows [W,K] → [V,dim]."""
        qkv = torch.unflatten(self.to_qkv(x), 1, (3, self.heads, -1))
        projected: Tensor = self.to_out(torch.ops.edge4d.window_attention(qkv, windows).flatten(1))
        return projected
