"""The flow of voxels' latents: its size, names and formulas."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from formulas import (  # noqa: E402
    Weights,
    conditioned_block,
    every_weight_matters,
    norm,
    position,
    random,
    silu,
    time_embedding,
)

from edge4d.export.models.gvf_diffusion.slat import SlatFlow, SlatFlowConfig  # noqa: E402
from edge4d.runtime.voxels import coarse, neighbours  # noqa: E402

TINY = SlatFlowConfig(channels=3, width=8, dim=32, depth=2, heads=4, context_dim=10)
RESOLUTION = 6


def voxels() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.permutation(np.argwhere(rng.random((RESOLUTION,) * 3) < 0.3)).astype(np.int32)


def tables(coords: np.ndarray) -> list[torch.Tensor]:
    """neighbours, parents, children, coarse_neighbours, coarse_coords."""
    above = coarse(coords, RESOLUTION)
    near, near_above = neighbours(coords, RESOLUTION), neighbours(above.coords, RESOLUTION // 2)
    return [torch.from_numpy(table) for table in (near, above.parents, above.children, near_above, above.coords)]


def test_the_official_size_and_names():
    with torch.device("meta"):
        model = SlatFlow()
    assert sum(value.numel() for value in model.parameters()) == 600_432_520
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    expected = {
        "t_embedder.mlp.2.weight": (1024, 1024),
        "input_layer.weight": (128, 8),
        "input_blocks.0.norm1.weight": (128,),
        "input_blocks.0.conv1.conv.weight": (128, 3, 3, 3, 128),
        "input_blocks.0.emb_layers.1.weight": (256, 1024),
        "input_blocks.1.conv1.conv.weight": (1024, 3, 3, 3, 128),
        "input_blocks.1.conv2.conv.bias": (1024,),
        "input_blocks.1.skip_connection.weight": (1024, 128),
        "blocks.23.cross_attn.to_kv.weight": (2048, 1024),
        "out_blocks.0.norm1.weight": (2048,),
        "out_blocks.0.conv1.conv.weight": (128, 3, 3, 3, 2048),
        "out_blocks.0.skip_connection.weight": (128, 2048),
        "out_blocks.1.conv1.conv.weight": (128, 3, 3, 3, 256),
        "out_blocks.1.emb_layers.1.bias": (256,),
        "out_layer.weight": (8, 128),
    }
    assert {name: shapes.get(name) for name in expected} == expected
    assert len(shapes) == 4 + 2 + 4 * 8 + 3 * 2 + 24 * 20 + 2  # the first block has no skip_connection


class Reference:
    """The flow with dictionaries of voxels, cell by cell."""

    def __init__(self, model: SlatFlow) -> None:
        self.weights = Weights(model)

    def convolution(self, name, grid):
        kernel, bias = self.weights[f"{name}.conv.weight"], self.weights[f"{name}.conv.bias"]
        result = {}
        for cell in grid:
            value = bias.copy()
            for offset in itertools.product(range(3), repeat=3):
                near = tuple(c + o - 1 for c, o in zip(cell, offset))
                if near in grid:
                    value += kernel[(slice(None), *offset)] @ grid[near]
            result[cell] = value
        return result

    def residual(self, name, grid, time):
        scale, shift = np.split(self.weights.linear(f"{name}.emb_layers.1", silu(time)), 2)
        y = {cell: silu(self.weights.norm(f"{name}.norm1", x)) for cell, x in grid.items()}
        y = self.convolution(f"{name}.conv1", y)
        y = {cell: silu(norm(x) * (1 + scale) + shift) for cell, x in y.items()}
        y = self.convolution(f"{name}.conv2", y)
        has_skip = f"{name}.skip_connection.weight" in self.weights
        return {
            cell: y[cell] + (self.weights.linear(f"{name}.skip_connection", x) if has_skip else x)
            for cell, x in grid.items()
        }

    def __call__(self, x, coords, t, condition):
        time = time_embedding(self.weights, t)
        cells = [tuple(cell) for cell in coords.tolist()]
        fine = {cell: self.weights.linear("input_layer", value) for cell, value in zip(cells, x)}
        fine = self.residual("input_blocks.0", fine, time)
        sums: dict[tuple[int, ...], list[np.ndarray]] = {}
        for cell, value in fine.items():
            sums.setdefault(tuple(c // 2 for c in cell), []).append(value)
        halved = {cell: sum(values) / (len(values) + 1) for cell, values in sums.items()}
        halved = self.residual("input_blocks.1", halved, time)
        tokens = np.array([value + position(cell, TINY.dim) for cell, value in halved.items()])
        for block in range(TINY.depth):
            tokens = conditioned_block(self.weights, f"blocks.{block}", tokens, time, condition, TINY.heads)
        above = {cell: np.concatenate([token, halved[cell]]) for cell, token in zip(halved, tokens)}
        y = self.residual("out_blocks.0", {cell: above[tuple(c // 2 for c in cell)] for cell in fine}, time)
        y = self.residual("out_blocks.1", {cell: np.concatenate([y[cell], fine[cell]]) for cell in fine}, time)
        return np.array([self.weights.linear("out_layer", norm(y[cell], 1e-5)) for cell in cells])


@torch.no_grad()
def test_the_flow_is_the_formula():
    model, coords = every_weight_matters(SlatFlow(TINY)), voxels()
    x, condition = random(len(coords), 3), random(1, 5, 10, seed=1)
    found = model(x, torch.tensor([640.0]), condition, *tables(coords))
    expected = Reference(model)(x.double().numpy(), coords, 640.0, condition[0].double().numpy())
    assert np.abs(expected).max() > 0.5
    # float32 against float64: sums of some hundred terms of order 1 through six blocks.
    np.testing.assert_allclose(found, expected, atol=2e-4)


@torch.no_grad()
def test_voxels_in_another_order_give_the_same_in_that_order():
    model, coords = every_weight_matters(SlatFlow(TINY)), voxels()
    x, rest = random(len(coords), 3), (torch.tensor([640.0]), random(1, 5, 10, seed=1))
    order = np.random.default_rng(1).permutation(len(coords))
    found = model(x[order], *rest, *tables(coords[order]))
    torch.testing.assert_close(found, model(x, *rest, *tables(coords))[order], atol=1e-5, rtol=0)
