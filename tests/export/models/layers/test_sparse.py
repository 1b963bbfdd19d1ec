"""Sparse layers against dense ones on a grid that is empty elsewhere, and against plain forms."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional  # noqa: E402

from edge4d.export.models.layers.sparse import Downsample, SubmanifoldConv3d, WindowAttention  # noqa: E402
from edge4d.runtime.voxels import coarse, neighbours, windows  # noqa: E402

RESOLUTION = 6


def scattered() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.permutation(np.argwhere(rng.random((RESOLUTION,) * 3) < 0.4)).astype(np.int32)


@torch.no_grad()
@pytest.mark.parametrize(("inputs", "outputs"), [(3, 5), (5, 3), (4, 4)])
def test_a_convolution_is_the_dense_one_at_occupied_voxels(inputs, outputs):
    torch.manual_seed(0)
    coords, conv = scattered(), SubmanifoldConv3d(inputs, outputs)
    x = torch.randn(len(coords), inputs)
    grid = torch.zeros(1, inputs, *(RESOLUTION,) * 3)
    at = tuple(torch.from_numpy(coords).long().T)
    grid[0][(slice(None), *at)] = x.T
    dense = functional.conv3d(grid, conv.weight.permute(0, 4, 1, 2, 3), conv.bias, padding=1)
    found = conv(x, torch.from_numpy(neighbours(coords, RESOLUTION)))
    torch.testing.assert_close(found, dense[0][(slice(None), *at)].T, atol=1e-5, rtol=0)


def test_children_are_averaged_with_one_zero_more():
    x = torch.tensor([[2.0, 8.0], [4.0, 10.0], [7.0, 1.0]])
    children = torch.tensor([[-1, 0, -1, -1, 1, -1, -1, -1], [2, *[-1] * 7]], dtype=torch.int32)
    assert Downsample()(x, children).tolist() == [[2.0, 6.0], [3.5, 0.5]]


def test_averages_are_those_of_scatter_reduce():
    """The official networks' own call, whose zeros count."""
    coords = scattered()
    table = coarse(coords, RESOLUTION)
    x = torch.randn(len(coords), 3, generator=torch.Generator().manual_seed(0))
    index = torch.from_numpy(table.parents).long()[:, None].expand(-1, 3)
    expected = torch.scatter_reduce(torch.zeros(len(table.coords), 3), 0, index, x, "mean")
    torch.testing.assert_close(Downsample()(x, torch.from_numpy(table.children)), expected)


@torch.no_grad()
@pytest.mark.parametrize("shift", [0, 4])
def test_attention_is_that_of_each_window_alone(shift):
    torch.manual_seed(0)
    coords, attention = 3 * scattered(), WindowAttention(24, 3)
    table, x = torch.from_numpy(windows(coords, 8, shift)), torch.randn(len(coords), 24)
    found = attention(x, table)
    for window in table:
        rows = window[window >= 0].long()
        q, k, v = attention.to_qkv(x[rows]).unflatten(1, (3, 3, 8)).permute(1, 2, 0, 3)
        plain = functional.scaled_dot_product_attention(q, k, v).transpose(0, 1).flatten(1)
        torch.testing.assert_close(found[rows], attention.to_out(plain), atol=1e-5, rtol=0)
