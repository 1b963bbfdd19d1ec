"""A network of edge4d's sparse operators, from the module to the bundle that runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

from torch import Tensor, nn  # noqa: E402

from edge4d.export.bundle_from_model import bundle_from_model  # noqa: E402
from edge4d.export.stage import ExportStage  # noqa: E402
from edge4d.runtime import voxels  # noqa: E402
from edge4d.runtime.backends import backend  # noqa: E402
from edge4d.runtime.bundle import Axis, OperatorStep, TensorSpec  # noqa: E402
from edge4d.runtime.camera import Camera  # noqa: E402

RESOLUTION = 16
COORDS = np.argwhere(np.random.default_rng(0).random((RESOLUTION,) * 3) < 0.1).astype(np.int32)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


class Block(nn.Module):
    """A convolution and attention on voxels, and means over each window, of 12 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(27, 12, 12) / 10)
        self.bias = nn.Parameter(torch.randn(12))
        self.to_qkv = nn.Linear(12, 36)

    def forward(self, x: Tensor, coords: Tensor, windows: Tensor) -> tuple[Tensor, Tensor]:
        ops = torch.ops.edge4d
        near = ops.voxel_neighbours(coords, resolution=RESOLUTION)
        x = x + ops.submanifold_convolution(x, near, self.weight, self.bias)
        x = x + ops.window_attention(self.to_qkv(x).unflatten(1, (3, 2, 6)), windows).flatten(1)
        return x, ops.gather_mean(x, windows, zeros=1)


class Model:
    """Stages of one block."""

    def __init__(self) -> None:
        self.block = Block().eval()

    def stages(self) -> list[ExportStage]:
        def example(sizes: Mapping[str, int]) -> tuple[Tensor, ...]:
            coords = COORDS[: sizes["V"]]
            table = np.full((sizes["W"], sizes["K"]), -1, np.int32)  # larger than need be, as with a capacity
            found = voxels.windows(coords, 8)[: sizes["W"], : sizes["K"]]
            table[: found.shape[0], : found.shape[1]] = found
            return torch.randn(sizes["V"], 12), torch.from_numpy(coords), torch.from_numpy(table)

        inputs = (
            TensorSpec("x", "float32", ("V", 12)),
            TensorSpec("coords", "int32", ("V", 3)),
            TensorSpec("windows", "int32", ("W", "K")),
        )
        outputs = (TensorSpec("y", "float32", ("V", 12)), TensorSpec("means", "float32", ("W", 12)))
        axes = (Axis("V", 10, 200, 400), Axis("W", 1, 8, 20), Axis("K", 20, 100, 512))
        return [ExportStage("block", self.block, inputs, outputs, axes, example)]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_networks_with_the_operators_are_exported_and_run(tmp_path: Path, precision: str) -> None:
    model = Model()
    bundle = bundle_from_model(
        model,
        tmp_path / "voxels.e4d",
        system="test",
        config={},
        camera=Camera.from_fov(24, 32, 60.0),
        licence="Apache-2.0",
        provenance={},
        precisions=[precision],  # with both, fp32 would have weights that are rounded to half
    )
    graph = bundle.stage("block").graph(precision)
    steps = [step.operator for step in graph.steps if isinstance(step, OperatorStep)]
    assert sorted(steps) == ["GatherMean", "SubmanifoldConvolution", "VoxelNeighbours", "WindowAttention"]
    arguments = model.stages()[0].example({"V": 300, "W": 9, "K": 90})
    inputs = dict(zip(("x", "coords", "windows"), (tensor.numpy() for tensor in arguments)))
    with torch.no_grad():
        expected = model.block(*arguments)
    with backend().engine(bundle, "block", precision) as engine:
        found = engine.run(inputs)
    # fp32: sums in other orders. fp16: weights and values of up to 10 with 11 bits, a few of them summed.
    limit = {"fp32": 1e-4, "fp16": 5e-2}[precision]
    for result, twin in zip((found["y"], found["means"]), expected):
        np.testing.assert_allclose(result, twin.numpy(), rtol=0, atol=limit)
