"""Export to ONNX: a network with every kind of layer that ours use computes the same, at sizes it was not traced at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from torch import Tensor, nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402, N812

from edge4d.export.onnx_from_torch import (  # noqa: E402
    check_sizes,
    onnx_from_torch,
    trace_sizes,
)
from edge4d.export.precision import scope_of  # noqa: E402
from edge4d.export.stage import ExportStage  # noqa: E402
from edge4d.runtime.bundle import Axis, TensorSpec  # noqa: E402
from edge4d.runtime.errors import ExportFailed, InvalidRequest  # noqa: E402
from edge4d.runtime.onnx_files import IR_VERSION, OPSET  # noqa: E402

AXES = (Axis("H", 32, 128, 256, 32), Axis("W", 32, 160, 256, 32))


class Attention(nn.Module):
    """A DINOv2 block's arithmetic, with two heads."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.scale = nn.Parameter(torch.full((width,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        batch, width, height, columns = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        qkv = self.qkv(self.norm(tokens)).reshape(batch, height * columns, 3, 2, width // 2).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(*qkv.unbind(0)).transpose(1, 2).flatten(2)
        return (tokens + self.scale * F.gelu(attended)).transpose(1, 2).reshape(x.shape)


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3)
        self.norm = nn.GroupNorm(2, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.elu(self.norm(self.conv(F.pad(x, (1, 1, 1, 1), mode="reflect"))))


class Readout(nn.Module):
    """Positions, one-hot means per id, and the nearest of some centres."""

    def forward(self, maps: Tensor, ids: Tensor, intrinsics: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        height, width = ids.shape[-2:]
        fx, fy, cx, cy = intrinsics[..., None, None].unbind(1)
        x = (torch.arange(width) + 0.5 - cx) / fx
        y = (torch.arange(height)[:, None] + 0.5 - cy) / fy
        means = torch.stack([x.expand(1, height, width), y.expand(1, height, width), torch.exp(maps[:, 0])], -1)
        means = means.flatten(1, 2)
        hot = (ids.flatten(1)[..., None] == torch.arange(8)).float()
        centres = hot.transpose(1, 2) @ means / hot.sum(1).clamp(min=1)[..., None]
        nearest = (means[:, :, None] - centres[:, None]).square().sum(-1).argmin(-1).int()
        return F.normalize(means, dim=-1), centres, nearest


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.down = nn.Conv2d(8, 8, 3, 2, 1)
        self.attention = Attention(8)
        self.up = Block(16, 8)
        self.noise = nn.Conv2d(4, 8, 1)
        self.head = nn.Conv2d(8, 4, 3, padding=1)
        self.readout = Readout()
        nn.init.uniform_(self.stem[1].running_mean)
        nn.init.uniform_(self.stem[1].weight)

    def forward(self, image: Tensor, noise: Tensor, ids: Tensor, intrinsics: Tensor) -> tuple[Tensor, ...]:
        fine = self.stem(image)
        coarse = F.max_pool2d(self.down(fine), 3, 2, 1)
        coarse = self.attention(coarse) + F.interpolate(
            self.noise(noise), size=coarse.shape[-2:], mode="bilinear", align_corners=False
        )
        merged = torch.cat([F.interpolate(coarse, scale_factor=4, mode="nearest"), fine], 1)
        maps = self.head(F.interpolate(self.up(merged), scale_factor=2, mode="bilinear", align_corners=False))
        best = torch.topk(maps[:, 1].flatten(1), 5).values
        return (*self.readout(maps, ids, intrinsics), best)


def example(sizes: dict[str, int]) -> tuple[Tensor, ...]:
    height, width = sizes["H"], sizes["W"]
    return (
        torch.rand(1, 3, height, width),
        torch.randn(1, 4, height // 16, width // 16),
        torch.randint(0, 8, (1, height, width), dtype=torch.int32),
        torch.tensor([[0.8 * width, 0.8 * width, width / 2, height / 2]]),
    )


def network_stage() -> ExportStage:
    torch.manual_seed(0)
    return ExportStage(
        name="core",
        module=Network().eval(),
        inputs=(
            TensorSpec("image", "float32", (1, 3, "H", "W")),
            TensorSpec("noise", "float32", (1, 4, "H/16", "W/16")),
            TensorSpec("ids", "int32", (1, "H", "W")),
            TensorSpec("intrinsics", "float32", (1, 4)),
        ),
        outputs=(
            TensorSpec("directions", "float32", (1, "H*W", 3)),
            TensorSpec("centres", "float32", (1, 8, 3)),
            TensorSpec("nearest", "int32", (1, "H*W")),
            TensorSpec("best", "float32", (1, 5)),
        ),
        axes=AXES,
        example=example,
    )


@pytest.fixture(scope="module")
def network() -> onnx.ModelProto:
    return onnx_from_torch(network_stage())  # compares with torch at check_sizes, which are not trace_sizes


def test_sizes_checked_are_not_the_one_traced() -> None:
    stage = network_stage()
    assert trace_sizes(stage) == {"H": 64, "W": 96}
    assert check_sizes(stage) == [{"H": 32, "W": 32}, {"H": 128, "W": 160}]


def test_versions_are_those_that_old_readers_know(network: onnx.ModelProto) -> None:
    assert network.ir_version == IR_VERSION == 8
    assert [(opset.domain, opset.version) for opset in network.opset_import] == [("", OPSET)]
    for node in network.graph.node:
        assert onnx.defs.get_schema(node.op_type, OPSET).since_version <= OPSET


def test_shapes_are_whole_and_sliced_behind(network: onnx.ModelProto) -> None:
    """TensorRT 8.6 does not see that a Shape has a start or an end."""
    shapes = [node for node in network.graph.node if node.op_type == "Shape"]
    assert shapes
    assert not any(node.attribute for node in shapes)


def test_names_and_axes_are_the_stages(network: onnx.ModelProto) -> None:
    def shape(value: onnx.ValueInfoProto) -> list[object]:
        return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]

    assert {value.name: shape(value) for value in network.graph.input} == {
        "image": [1, 3, "H", "W"],
        "noise": [1, 4, "H/16", "W/16"],
        "ids": [1, "H", "W"],
        "intrinsics": [1, 4],
    }
    assert [value.name for value in network.graph.output] == ["directions", "centres", "nearest", "best"]
    assert shape(network.graph.output[0]) == [1, "H*W", 3]


def test_nodes_are_named_by_module(network: onnx.ModelProto) -> None:
    scopes = {scope_of(node) for node in network.graph.node}
    assert {"", "attention", "attention.norm", "up.conv", "up.norm", "head", "readout"} <= scopes
    names = [node.name for node in network.graph.node]
    assert len(set(names)) == len(names)


def test_batch_norm_is_folded(network: onnx.ModelProto) -> None:
    assert "BatchNormalization" not in {node.op_type for node in network.graph.node}


def test_nothing_of_this_machine_is_in_the_file(network: onnx.ModelProto) -> None:
    data = network.SerializeToString()
    for trace in (str(Path(__file__).resolve()), str(Path(torch.__file__).parent), "site-packages", 'File "', ".py"):
        assert trace.encode() not in data


def test_the_same_weights_give_the_same_bytes(network: onnx.ModelProto) -> None:
    again = onnx_from_torch(network_stage())
    assert again.SerializeToString(deterministic=True) == network.SerializeToString(deterministic=True)


# ---- what is refused ------------------------------------------------------------------------------------------------

X = TensorSpec("x", "float32", (1, 2, "H", "W"))
Y = TensorSpec("y", "float32", (1, 2, "H", "W"))


class Function(nn.Module):
    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def small_stage(function: object, output: TensorSpec = Y, axes: tuple[Axis, ...] = AXES) -> ExportStage:
    def some(sizes: dict[str, int]) -> tuple[Tensor]:
        return (torch.rand(1, 2, sizes["H"], sizes["W"]),)

    return ExportStage("small", Function(function).eval(), (X,), (output,), axes, some)


def test_a_size_that_becomes_a_constant_is_refused() -> None:
    with pytest.raises(ExportFailed, match=r"torch cannot export|differs from torch|different shapes"):
        onnx_from_torch(small_stage(lambda x: x[..., :64, :96] + torch.zeros(64, 96)))


def test_a_constant_that_depends_on_the_example_is_refused() -> None:
    calls = iter(range(100))
    stage = small_stage(lambda x: x + next(calls))
    with pytest.raises(ExportFailed, match="differs from torch"):
        onnx_from_torch(stage)


def test_operators_without_translation_are_refused() -> None:
    with pytest.raises(ExportFailed, match="torch cannot export stage 'small'"):
        onnx_from_torch(small_stage(lambda x: torch.linalg.inv(x[..., :2, :2]).sum() + x))


def test_other_outputs_than_the_stage_says_are_refused() -> None:
    with pytest.raises(ExportFailed, match="does not have the outputs"):
        onnx_from_torch(small_stage(lambda x: x.int()))
    wrong = TensorSpec("y", "float32", (1, 3, "H", "W"))
    with pytest.raises(ExportFailed, match=r"different shapes|not valid ONNX"):
        onnx_from_torch(small_stage(lambda x: 2 * x, output=wrong))


def test_examples_must_be_what_the_stage_says() -> None:
    stage = small_stage(lambda x: x)
    wrong = ExportStage("small", stage.module, (X,), (Y,), AXES, lambda sizes: (torch.rand(1, 2, 32, 32),))
    with pytest.raises(ExportFailed, match="example of input 'x'"):
        onnx_from_torch(wrong)


def test_training_mode_is_refused() -> None:
    stage = small_stage(lambda x: x)
    stage.module.train()
    with pytest.raises(ExportFailed, match="training mode"):
        onnx_from_torch(stage)


def test_stages_are_checked_when_they_are_made() -> None:
    with pytest.raises(InvalidRequest, match="uses axes"):
        small_stage(lambda x: x, output=TensorSpec("y", "float32", ("N",)))


def test_fixed_axes_stay_fixed() -> None:
    axes = (Axis("H", 32, 32, 32, 32), Axis("W", 64, 64, 64, 32))
    model = onnx_from_torch(small_stage(lambda x: 2 * x, axes=axes))
    assert [node.op_type for node in model.graph.node] == ["Mul"]
    assert np.isclose(onnx.numpy_helper.to_array(model.graph.initializer[0]), 2)


class Sum(nn.Module):
    def forward(self, first: Tensor, *rest: Tensor) -> Tensor:
        return first + rest[0] * 2 + rest[1].sum(0)


def test_a_module_may_take_any_number_of_inputs() -> None:
    shapes = {"a": ("H", 3), "b": ("H", 3), "c": (4, 3)}
    inputs = tuple(TensorSpec(name, "float32", shape) for name, shape in shapes.items())
    stage = ExportStage(
        "sum",
        Sum().eval(),
        inputs,
        (TensorSpec("d", "float32", ("H", 3)),),
        (Axis("H", 1, 5, 8),),
        lambda sizes: tuple(torch.randn(tensor.shape_at(sizes)) for tensor in inputs),
    )
    graph = onnx_from_torch(stage).graph
    assert [[dim.dim_param or dim.dim_value for dim in v.type.tensor_type.shape.dim] for v in graph.input] == [
        ["H", 3],
        ["H", 3],
        [4, 3],
    ]
