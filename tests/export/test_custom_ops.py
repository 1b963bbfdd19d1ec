"""The operators in PyTorch: shapes known without values, and the results of the kernels."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edge4d.export import custom_ops  # noqa: E402
from edge4d.kernels import reference  # noqa: E402
from edge4d.kernels.ops import OPERATORS  # noqa: E402


def gaussians(count: int = 20) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    means = torch.rand(1, count, 3, generator=generator) * 2 + torch.tensor([-1.0, -1.0, 3.0])
    K = torch.tensor([[20.0, 0, 12], [0, 20, 8], [0, 0, 1]])
    return [
        means,
        torch.randn(1, count, 4, generator=generator),
        torch.rand(1, count, 3, generator=generator) * 0.2 + 0.05,
        torch.rand(1, count, generator=generator),
        torch.rand(1, count, 3, generator=generator),
        torch.eye(4).expand(1, 2, 4, 4).contiguous(),
        K.expand(1, 2, 3, 3).contiguous(),
        torch.zeros(3),
    ]


def voxels(count: int = 30) -> torch.Tensor:
    """Coordinates [count, 3] of voxels in a cube of 4, none twice."""
    cells = torch.randperm(64, generator=torch.Generator().manual_seed(1))[:count]
    return torch.stack([cells // 16, cells // 4 % 4, cells % 4], 1).to(torch.int32)


def neighbours() -> torch.Tensor:
    return torch.from_numpy(reference.voxel_neighbours(voxels().numpy(), resolution=4))


def windows() -> torch.Tensor:
    """Rows 0 to 19 in windows of 7, 1 and 12; the others are in none."""
    members = [list(range(7)), [7], list(range(8, 20))]
    return torch.tensor([row + [-1] * (12 - len(row)) for row in members], dtype=torch.int32)


CALLS = {
    "GaussianRasterize": lambda: (gaussians(), {"width": 24, "height": 16, "antialiased": 1}),
    "KnnInterpolate": lambda: ([torch.rand(7, 3), torch.rand(12, 3), torch.rand(2, 12, 5)], {"k": 4}),
    "FarthestPointSample": lambda: ([torch.rand(9, 3)], {"count": 4}),
    "VoxelNeighbours": lambda: ([voxels()], {"resolution": 4}),
    "SubmanifoldConvolution": lambda: (
        [torch.rand(30, 6), neighbours(), torch.rand(27, 6, 5) / 50, torch.rand(5)],
        {},
    ),
    "GatherMean": lambda: ([torch.rand(30, 6), neighbours()[:9, :8].contiguous()], {"zeros": 1}),
    "WindowAttention": lambda: ([torch.randn(30, 3, 2, 8), windows()], {}),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_results_are_the_twins(name: str) -> None:
    inputs, attributes = CALLS[name]()
    function = OPERATORS[name].function
    results = getattr(torch.ops.edge4d, function)(*inputs, **attributes)
    expected = getattr(reference, function)(*(tensor.numpy() for tensor in inputs), **attributes)
    if isinstance(expected, np.ndarray):
        results, expected = (results,), (expected,)
    for result, twin in zip(results, expected, strict=True):
        # Parity of the kernels is their own tests' business: here it is enough that the same thing was computed.
        # The twin has no tiles, so the last three of `stats` are the kernels' alone.
        last = 2 if result.shape[-1] == 5 and result.dtype == torch.int32 else None
        assert np.mean(np.abs(result.numpy() - twin)[..., :last]) < 1e-3


@pytest.mark.parametrize("name", OPERATORS)
def test_shapes_and_dtypes_are_known_without_values(name: str) -> None:
    inputs, attributes = CALLS[name]()
    operator = getattr(torch.ops.edge4d, OPERATORS[name].function)
    torch.library.opcheck(operator, tuple(inputs), attributes, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("name", [name for name, operator in OPERATORS.items() if operator.outputs[0].dtype == "float"])
def test_half_precision_comes_out_as_it_goes_in(name: str) -> None:
    inputs, attributes = CALLS[name]()
    halves = [tensor.half() if tensor.is_floating_point() else tensor for tensor in inputs]
    operator = getattr(torch.ops.edge4d, OPERATORS[name].function)
    assert operator(*halves, **attributes).dtype == torch.float16
    torch.library.opcheck(operator, tuple(halves), attributes, test_utils="test_faketensor")


@pytest.mark.parametrize("out_dtype", ["float32", "float16", "uint8"])
def test_outputs_that_are_left_out_have_size_zero(out_dtype: str) -> None:
    attributes = {"width": 24, "height": 16, "outputs": 1, "out_dtype": out_dtype}
    operator = torch.ops.edge4d.gaussian_rasterize
    image, alpha, depth, _stats = operator(*gaussians(), **attributes)
    assert image.shape == (1, 2, 16, 24, 3)
    assert alpha.numel() == depth.numel() == 0
    torch.library.opcheck(operator, tuple(gaussians()), attributes, test_utils="test_faketensor")


def test_spherical_harmonics_keep_three_channels() -> None:
    inputs = gaussians()
    inputs[4] = torch.rand(1, 20, 4, 3)
    attributes = {"width": 24, "height": 16, "sh_degree": 1}
    torch.library.opcheck(torch.ops.edge4d.gaussian_rasterize, tuple(inputs), attributes, test_utils="test_faketensor")


def test_there_is_a_translation_for_every_operator() -> None:
    table = custom_ops.translations()
    assert len(table) == len(OPERATORS)
    assert custom_ops.translations() is table  # onnx refuses to register a schema twice
