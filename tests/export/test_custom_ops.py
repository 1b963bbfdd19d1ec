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


CALLS = {
    "GaussianRasterize": lambda: (gaussians(), {"width": 24, "height": 16, "antialiased": 1}),
    "KnnInterpolate": lambda: ([torch.rand(7, 3), torch.rand(12, 3), torch.rand(2, 12, 5)], {"k": 4}),
    "FarthestPointSample": lambda: ([torch.rand(9, 3)], {"count": 4}),
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
