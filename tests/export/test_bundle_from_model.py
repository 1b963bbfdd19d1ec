"""Bundles from models: they can be read and run, are the same each time, and replace an old one as a whole."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from torch import Tensor, nn  # noqa: E402

from edge4d.export.bundle_from_model import bundle_from_model  # noqa: E402
from edge4d.export.onnx_from_torch import example_arrays  # noqa: E402
from edge4d.export.stage import ExportStage  # noqa: E402
from edge4d.runtime.backends import backend  # noqa: E402
from edge4d.runtime.bundle import Axis, Bundle, OperatorStep, SessionStep, TensorSpec  # noqa: E402
from edge4d.runtime.camera import Camera  # noqa: E402
from edge4d.runtime.errors import ExportFailed, InvalidRequest  # noqa: E402

AXES = (Axis("H", 16, 32, 64, 8), Axis("W", 16, 24, 64, 8))
IMAGE = TensorSpec("image", "float32", (1, 3, "H", "W"))


class Render(nn.Module):
    """conv → Gaussians → GaussianRasterize → conv."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Conv2d(3, 14, 4, 4)
        self.after = nn.Conv2d(4, 3, 3, padding=1)
        self.register_buffer("K", torch.tensor([[[[12.0, 0, 8], [0, 12, 8], [0, 0, 1]]]]))
        self.register_buffer("viewmat", torch.eye(4)[None, None])

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        raw = self.before(image).flatten(2).transpose(1, 2)
        offset, quats, scales, opacities, colors = raw.split([3, 4, 3, 1, 3], -1)
        picture, alpha, _depth, stats = torch.ops.edge4d.gaussian_rasterize(
            torch.tanh(offset) + torch.tensor([0.0, 0.0, 3.0]),
            quats + torch.tensor([1.0, 0.0, 0.0, 0.0]),
            0.2 * torch.exp(scales),
            torch.sigmoid(opacities[..., 0]),
            torch.sigmoid(colors),
            self.viewmat,
            self.K,
            torch.zeros(3),
            width=16,
            height=16,
            eps2d=0.1,
            antialiased=1,
        )
        return self.after(torch.cat([picture, alpha], -1)[:, 0].permute(0, 3, 1, 2)), stats[..., 0]


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 24, 3, padding=1)
        self.mix = nn.Conv2d(24, 2, 1)
        self.head = nn.Softplus()

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.mix(self.conv(image)))


class Model:
    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.render, self.plain = Render().eval(), Plain().eval()

    def stages(self) -> list[ExportStage]:
        def example(sizes: dict[str, int]) -> tuple[Tensor]:
            return (torch.rand(1, 3, sizes["H"], sizes["W"]),)

        drawn = TensorSpec("drawn", "float32", (1, 3, 16, 16)), TensorSpec("visible", "int32", (1, 1))
        depth = TensorSpec("depth", "float32", (1, 2, "H", "W"))
        return [
            ExportStage("render", self.render, (IMAGE,), drawn, AXES, example),
            ExportStage("plain", self.plain, (IMAGE,), (depth,), AXES, example, fp32_scopes=("head",)),
        ]


def write(folder: Path, model: object = None, **changes: object) -> Bundle:
    description = {
        "system": "test",
        "config": {"layers": 1},
        "camera": Camera.from_fov(24, 32, 60.0),
        "licence": "Apache-2.0",
        "provenance": {"seed": 0},
    }
    return bundle_from_model(model or Model(), folder, **{**description, **changes})


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write(tmp_path_factory.mktemp("bundles") / "tiny.e4d")


def test_the_description_is_what_was_given(bundle: Bundle) -> None:
    assert (bundle.name, bundle.system, bundle.config) == ("tiny", "test", {"layers": 1})
    assert bundle.precisions == ("fp32", "fp16")
    assert bundle.provenance == {"seed": 0}
    assert bundle.camera.intrinsics == Camera.from_fov(24, 32, 60.0).intrinsics
    stage = Model().stages()[1]
    assert bundle.stage("plain").inputs == stage.inputs
    assert bundle.stage("plain").outputs == stage.outputs
    assert tuple(bundle.stage("plain").axes.values()) == stage.axes


def test_only_stages_with_our_operators_are_there_twice(bundle: Bundle) -> None:
    steps = bundle.stage("render").graph("fp32").steps
    assert [type(step) for step in steps] == [SessionStep, OperatorStep, SessionStep]
    assert steps[1].attributes["eps2d"] == 0.1
    whole = onnx.load(bundle.stage("render").graph("fp32").whole)
    node = next(node for node in whole.graph.node if node.domain == "edge4d")
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert (attributes["plugin_namespace"], attributes["plugin_version"]) == (b"edge4d", b"1")
    graph = bundle.stage("plain").graph("fp16")
    assert [step.onnx for step in graph.steps] == [graph.whole]
    assert sorted(path.name for path in bundle.folder.iterdir()) == sorted([*bundle.files, "bundle.json"])


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("index", [0, 1])
def test_the_bundle_runs_like_torch(bundle: Bundle, precision: str, index: int) -> None:
    stage = Model().stages()[index]
    sizes = {"H": 48, "W": 40}  # neither traced nor compared during the export
    inputs = example_arrays(stage, sizes)
    with torch.no_grad():
        for weight in stage.module.parameters():  # the bundle has them in half, in either precision
            weight.copy_(weight.half())
        expected = stage.module(torch.from_numpy(inputs["image"]))
    expected = expected if isinstance(expected, tuple) else (expected,)
    with backend().engine(bundle, stage.name, precision) as engine:
        outputs = engine.run(inputs)
    # fp32: other orders of sums. fp16: a few roundings of 2^-11, which exp and the Gaussians' flanks amplify by ten.
    limit = {"fp32": 1e-4, "fp16": 2e-2}[precision]
    for tensor, value in zip(stage.outputs, expected, strict=True):
        assert outputs[tensor.name].dtype == tensor.dtype
        assert np.abs(outputs[tensor.name] - value.numpy()).max() <= limit * float(value.abs().max())


def test_large_weights_are_there_once_in_half(bundle: Bundle) -> None:
    for index, name, large in ((0, "render", "before.weight"), (1, "plain", "conv.weight")):
        weight = Model().stages()[index].module.get_parameter(large).detach().numpy()
        assert (bundle.folder / f"{name}.weights").read_bytes() == weight.astype(np.float16).tobytes()
        assert f"{name}.weights" in bundle.files


def test_fp32_alone_has_the_weights_as_they_are(tmp_path: Path) -> None:
    folder = write(tmp_path / "one.e4d", One(), precisions=("fp32",)).folder
    assert sorted(path.name for path in folder.iterdir()) == ["bundle.json", "plain.fp32.onnx"]
    weights = [onnx.numpy_helper.to_array(t) for t in onnx.load(folder / "plain.fp32.onnx").graph.initializer]
    expected = One().stages()[0].module.conv.weight.detach().numpy()
    assert any(np.array_equal(weight, expected) for weight in weights)


def test_the_same_weights_give_the_same_bytes(bundle: Bundle, tmp_path: Path) -> None:
    again = write(tmp_path / "tiny.e4d")
    for path in bundle.folder.iterdir():
        assert (again.folder / path.name).read_bytes() == path.read_bytes(), path.name


class One(Model):
    """A model with the stage `plain` alone; `broken` gives a module that computes something else each time."""

    def __init__(self, seed: int = 0, broken: bool = False) -> None:
        super().__init__(seed)
        self.broken = broken

    def stages(self) -> list[ExportStage]:
        stage = super().stages()[1]
        if self.broken:
            calls = iter(range(100))
            stage.module.head.register_forward_hook(lambda module, inputs, output: output + next(calls))
        return [stage]


def test_an_old_bundle_is_replaced_or_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "one.e4d"
    first = write(folder, One(), precisions=("fp32",))
    assert first.precisions == ("fp32",)
    with pytest.raises(ExportFailed):
        write(folder, One(broken=True))
    assert Bundle.load(folder).files == first.files
    second = write(folder, One(seed=1), precisions=("fp32",))
    assert second.files != first.files
    assert [path.name for path in tmp_path.iterdir()] == ["one.e4d"]  # nothing temporary is left


def test_half_precision_that_loses_the_result_is_refused(tmp_path: Path) -> None:
    class Large(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return ((image[:, :2] + 4096) * 8 - 8 * 4096) * 2  # the image is below half's eleven bits

    model = One()
    model.plain = Large().eval()
    stage = model.stages()[0]
    unsafe = ExportStage("plain", model.plain, stage.inputs, stage.outputs, stage.axes, stage.example)
    model.stages = lambda: [unsafe]
    with pytest.raises(ExportFailed, match="'depth' of stage 'plain' is lost in half"):
        write(tmp_path / "large.e4d", model)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precisions": ("int8",)}, "Cannot export the precisions"),
        ({"precisions": ()}, "Cannot export the precisions"),
        ({"config": {"x": float("nan")}}, "JSON's types"),
        ({"provenance": {"x": object()}}, "JSON's types"),
    ],
)
def test_values_that_cannot_be_written_are_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        write(tmp_path / "one.e4d", One(), **{"precisions": ("fp32",), **changes})
    assert list(tmp_path.iterdir()) == []


def test_folders_that_are_no_bundle_are_left_alone(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"End the name in \.e4d"):
        write(tmp_path / "bundle")
    (tmp_path / "mine.e4d").mkdir()
    (tmp_path / "mine.e4d" / "thesis.txt").write_text("important")
    with pytest.raises(InvalidRequest, match="exists and is not a bundle"):
        write(tmp_path / "mine.e4d")


def test_the_description_is_text_that_people_can_read(bundle: Bundle) -> None:
    text = (bundle.folder / "bundle.json").read_text()
    assert json.loads(text)["stages"][1]["name"] == "plain"
    assert len(text.splitlines()) > 50
