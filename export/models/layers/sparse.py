"""Networks on occupied voxels: what a voxel needs of others is gathered by tables of indices (`edge4d.runtime.voxels`).

A table's -1 means nobody there, which counts as zeros.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


def gathered(x: Tensor, table: Tensor) -> Tensor:
    """Rows of x [V,C] for a table of any shape [...] → [...,C]; zeros for -1."""
    return functional.embedding(table + 1, torch.cat([torch.zeros_like(x[:1]), x]))


def averaged(x: Tensor, children: Tensor) -> Tensor:
    """Fine voxels x [V,C] to coarse ones [P,C], children [P,8].

    The sum over one more than there are children: official networks were trained with a mean that counts a zero.
    """
    count = (children >= 0).sum(dim=1, keepdim=True).to(x.dtype)
    return gathered(x, children).sum(dim=1) / (count + 1)


class SubmanifoldConv3d(nn.Module):
    """3×3×3 convolution at occupied voxels, of occupied voxels; weights [outputs,3,3,3,inputs] as spconv has them."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(27 * inputs)  # PyTorch's for convolutions
        self.weight = nn.Parameter(torch.empty(outputs, 3, 3, 3, inputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor, neighbours: Tensor) -> Tensor:
        """x [V,inputs], neighbours [V,27] → [V,outputs]."""
        outputs, inputs = self.weight.shape[0], self.weight.shape[-1]
        if inputs <= outputs:
            return gathered(x, neighbours).flatten(1) @ self.weight.reshape(outputs, -1).T + self.bias
        # Fewer channels are gathered when each voxel first makes its part for all 27 that it is near to.
        parts = x @ self.weight.permute(4, 1, 2, 3, 0).reshape(inputs, -1)
        places = torch.where(neighbours < 0, neighbours, neighbours * 27 + torch.arange(27, dtype=neighbours.dtype))
        return gathered(parts.reshape(-1, outputs), places).sum(dim=1) + self.bias
