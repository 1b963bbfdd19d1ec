"""edge4d's sparse operators and the networks' modules, which gather in PyTorch, compute the same."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edge4d.export import custom_ops  # noqa: E402, F401 (torch.ops.edge4d)
from edge4d.export.models.gvf_diffusion.gaussian_decoder import WindowAttention  # noqa: E402
from edge4d.export.models.layers.sparse import SubmanifoldConv3d, averaged  # noqa: E402
from edge4d.runtime import voxels  # noqa: E402

RESOLUTION = 16
COORDS = np.argwhere(np.random.default_rng(0).random((RESOLUTION,) * 3) < 0.1).astype(np.int32)
TOLERANCE = 1e-5  # sums of up to 27 * 24 products near 1, each with float32's 6e-8, in another order


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def neighbours() -> torch.Tensor:
    return torch.ops.edge4d.voxel_neighbours(torch.from_numpy(COORDS), resolution=RESOLUTION)


def test_the_table_is_the_one_that_networks_gather_by() -> None:
    np.testing.assert_array_equal(neighbours().numpy(), voxels.neighbours(COORDS, RESOLUTION))


@pytest.mark.parametrize(("inputs", "outputs"), [(24, 40), (24, 8)])  # the module has a way for each
def test_convolution(inputs: int, outputs: int) -> None:
    module, x = SubmanifoldConv3d(inputs, outputs), torch.randn(len(COORDS), inputs)
    weight = module.weight.permute(1, 2, 3, 4, 0).reshape(27, inputs, outputs)
    found = torch.ops.edge4d.submanifold_convolution(x, neighbours(), weight, module.bias)
    torch.testing.assert_close(found, module(x, neighbours()), rtol=0, atol=TOLERANCE)


def test_down_and_up() -> None:
    coarse = voxels.coarse(COORDS, RESOLUTION)
    x, children, parents = torch.randn(len(COORDS), 24), *map(torch.from_numpy, (coarse.children, coarse.parents))
    down = torch.ops.edge4d.gather_mean(x, children, zeros=1)
    torch.testing.assert_close(down, averaged(x, children), rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(torch.ops.edge4d.gather_mean(down, parents[:, None]), down.index_select(0, parents))


@pytest.mark.parametrize("shift", [0, 4])
def test_attention(shift: int) -> None:
    module, x = WindowAttention(24, 3), torch.randn(len(COORDS), 24)
    windows = voxels.windows(COORDS, 8, shift)
    table, places = torch.from_numpy(windows.voxels), torch.from_numpy(windows.places)
    attended = torch.ops.edge4d.window_attention(module.to_qkv(x).unflatten(1, (3, 3, 8)), table)
    found = module.to_out(attended.flatten(1))
    torch.testing.assert_close(found, module(x, table, places), rtol=0, atol=TOLERANCE)
