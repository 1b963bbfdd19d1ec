"""render.onnx on ONNX Runtime and the CPU kernels, cut at our operator, against the renderer on the CPU."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from renderer_scenes import CAMERA, GROUPS, SCENES, assert_parity, delta, poly, scene, view

from edge4d.kernels.ops import ALPHA, DEPTH, GAUSSIAN_RASTERIZE, IMAGE
from edge4d.runtime.camera import Camera
from edge4d.runtime.engine_from_onnx import BuildRequest, engine_from_onnx
from edge4d.runtime.errors import BackendUnavailable, InvalidRequest
from edge4d.runtime.motion import Poly
from edge4d.runtime.render_onnx import RenderSpec, polynomial_of, render_onnx, scene_inputs, spec_of
from edge4d.runtime.renderer import Frame, Renderer
from edge4d.runtime.scene import Scene4D

COUNT = 3000
PAIRS = 1 << 18  # more than any picture here needs
SPEC = RenderSpec(8, 16, 16, 1000)


def graph_of(spec: RenderSpec) -> Any:
    onnx = pytest.importorskip("onnx")
    return onnx.load_from_string(render_onnx(spec))


class Drawing:
    """A scene drawn by its graph."""

    def __init__(self, drawn: Scene4D, folder: Path, gaussians: int = 0, **others: Any) -> None:
        pytest.importorskip("torch")
        from edge4d.export.cut import write_graphs
        from edge4d.runtime.backends.onnxruntime import OnnxRuntimeBackend
        from edge4d.runtime.bundle import Stage, TensorSpec

        size = (CAMERA.width, CAMERA.height)
        spec = spec_of(drawn, gaussians=gaussians or len(drawn), size=size, max_pairs=PAIRS, **others)
        graphs = write_graphs({"fp32": graph_of(spec)}, folder, "render")
        inputs, outputs = (
            tuple(TensorSpec(name, dtype, shape) for name, (shape, dtype) in arrays.items())
            for arrays in (spec.inputs(), spec.results())
        )
        self._engine = OnnxRuntimeBackend().stage_engine(Stage("render", {}, inputs, outputs, graphs), "fp32")
        self._inputs = scene_inputs(drawn, spec, np.asarray(drawn.background, np.float32))
        self._names = spec.inputs()

    def arrays(self, camera: Camera, t: float) -> dict[str, np.ndarray]:
        changing = {"viewmats": camera.viewmat[None, None], "Ks": camera.K[None, None], "time": np.array([t])}
        told = {name: array.astype(np.float32) for name, array in changing.items() if name in self._names}
        return self._engine.run({**self._inputs, **told})

    def frame(self, camera: Camera, t: float) -> Frame:
        found = self.arrays(camera, t)
        planes = (found[name][0, 0, ..., 0] for name in ("alpha", "depth"))
        return Frame(found["image"][0, 0], *planes, found["stats"][0, 0])


def polynomial(linear: int, angular: int) -> Poly:
    """One with so many coefficients. Group 0 has some too, which must not move it."""
    rng = np.random.default_rng(1)
    shapes = ((GROUPS, 3), (GROUPS, linear, 3), (GROUPS, angular, 3))
    return Poly(*(np.asarray(rng.normal(0, 0.5, shape), np.float32) for shape in shapes))


def small(name: str) -> Scene4D:
    """The first Gaussians of a scene that moves by no differences."""
    whole = SCENES[name]()
    arrays = ("means", "quats", "scales", "opacities", "colors", "groups")
    return dataclasses.replace(whole, **{array: getattr(whole, array)[:COUNT] for array in arrays})


@pytest.mark.parametrize("name", ["static", "static harmonics", "static with activations"])
@pytest.mark.parametrize("padding", [0, 1000])
def test_what_stands_still_is_drawn_to_the_last_bit(name: str, padding: int, tmp_path: Path) -> None:
    drawn = small(name)
    frame = Drawing(drawn, tmp_path, COUNT + padding).frame(view(), 0.5)
    expected = Renderer(drawn, dtype="float32", backend="onnxruntime").render(view(), 0.5)
    for array, wanted in zip(frame[:3], expected[:3]):
        np.testing.assert_array_equal(array, wanted)
    # What was added is neither seen nor counted; the pairs that there is room for are what was asked for.
    np.testing.assert_array_equal(frame.stats[[0, 1, 2, 4]], expected.stats[[0, 1, 2, 4]])
    assert frame.stats[3] == PAIRS


@pytest.mark.parametrize(("linear", "angular"), [(2, 2), (1, 0), (0, 1), (3, 8), (0, 0)])
def test_polynomials_move_as_they_do_on_the_cpu(linear: int, angular: int, tmp_path: Path) -> None:
    drawn = scene(COUNT, motion=(polynomial(linear, angular),))
    by_graph = Drawing(drawn, tmp_path, COUNT + 96)
    by_kernels = Renderer(drawn, dtype="float32", backend="onnxruntime")
    for t in (-0.4, 0.37, 1.2):
        assert_parity(by_graph.frame(view(), t), by_kernels.render(view(), t))


def test_at_time_0_nothing_has_moved(tmp_path: Path) -> None:
    drawn = scene(COUNT, motion=(polynomial(2, 2),))
    frame = Drawing(drawn, tmp_path).frame(view(), 0.0)
    expected = Renderer(drawn, dtype="float32", backend="onnxruntime").render(view(), 0.0)
    np.testing.assert_array_equal(frame.image, expected.image)


def test_moving_harmonics(tmp_path: Path) -> None:
    drawn = scene(COUNT, coefficients=16, antialiased=True, eps2d=0.1, motion=(polynomial(2, 2),))
    expected = Renderer(drawn, dtype="float32", backend="onnxruntime").render(view(), 0.3)
    assert_parity(Drawing(drawn, tmp_path).frame(view(), 0.3), expected)


@pytest.mark.parametrize("turn", [0.0, 1e-30, 1e-12, 1e-3, 3.0, 40.0])
def test_means_and_quats_are_those_of_poly(turn: float, tmp_path: Path) -> None:
    """Small turns, whose angle squared is no float32 any more, and many turns."""
    onnxruntime, _ = pytest.importorskip("onnxruntime"), pytest.importorskip("torch")
    from edge4d.export.cut import cut

    drawn = scene(COUNT, motion=(polynomial(2, 2),))
    moved = dataclasses.replace(drawn.motion[0], angular=drawn.motion[0].angular * np.float32(turn))
    drawn = dataclasses.replace(drawn, motion=(moved,))
    spec = spec_of(drawn, gaussians=COUNT, size=(32, 32), max_pairs=1)
    before = next(part.model for part in cut(graph_of(spec)) if part.model)
    session = onnxruntime.InferenceSession(before.SerializeToString(), providers=["CPUExecutionProvider"])
    inputs = {**scene_inputs(drawn, spec, np.zeros(3, np.float32)), "time": np.float32([0.7])}
    asked = next(node for node in graph_of(spec).graph.node if node.domain == "edge4d").input[:2]
    means, quats = session.run(list(asked), {value.name: inputs[value.name] for value in session.get_inputs()})
    expected = drawn.evaluate(float(np.float32(0.7)))
    # Half a unit in the last place of the angle, at the end of an arm of up to 25 m, and of two sums.
    angle = float(np.abs(moved.angular).sum(axis=(1, 2)).max())
    tolerance = 6e-8 * (2 + angle)
    np.testing.assert_allclose(means[0], expected.means, atol=25 * tolerance)
    np.testing.assert_allclose(quats[0], expected.quats, atol=2 * tolerance)
    still = drawn.groups == 0
    np.testing.assert_array_equal(means[0][still], drawn.means[still])
    np.testing.assert_array_equal(quats[0][still], expected.quats[still])


def test_bytes_are_the_floats_rounded(tmp_path: Path) -> None:
    drawn = scene(COUNT, motion=(polynomial(2, 2),))
    frame = Drawing(drawn, tmp_path, dtype="uint8").frame(view(), 0.3)
    floats = Drawing(drawn, tmp_path).frame(view(), 0.3)
    assert frame.image.dtype == np.uint8
    np.testing.assert_array_equal(
        frame.image, np.floor(np.clip(floats.image, 0, 1) * np.float32(255) + np.float32(0.5))
    )
    np.testing.assert_array_equal(frame.depth, floats.depth)


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
@pytest.mark.parametrize("outputs", [0, IMAGE, ALPHA | DEPTH, IMAGE | DEPTH])
def test_only_what_is_asked_for_is_drawn(dtype: str, outputs: int, tmp_path: Path) -> None:
    drawn = scene(COUNT)
    found = Drawing(drawn, tmp_path, outputs=outputs, dtype=dtype).arrays(view(), 0.0)
    names = [name for bit, name in ((IMAGE, "image"), (ALPHA, "alpha"), (DEPTH, "depth")) if outputs & bit]
    assert list(found) == [*names, "stats"]
    expected = Renderer(drawn, dtype="float32", backend="onnxruntime").render(view(), 0.0)
    if "depth" in names:
        assert found["depth"].dtype == (np.float16 if dtype == "float16" else np.float32)
        # Half precision has 11 bits.
        np.testing.assert_allclose(found["depth"][0, 0, ..., 0], expected.depth, rtol=2**-11)


def test_the_background_is_an_input(tmp_path: Path) -> None:
    empty = scene(COUNT, opacities=np.zeros(COUNT, np.float32), background=(0.25, 0.5, 0.75))
    image = Drawing(empty, tmp_path).frame(view(), 0.0).image
    np.testing.assert_array_equal(image, np.broadcast_to(np.float32([0.25, 0.5, 0.75]), image.shape))


def test_no_gaussians_at_all(tmp_path: Path) -> None:
    names = ("means", "quats", "scales", "opacities", "colors", "groups")
    nobody = dataclasses.replace(scene(1), **{name: getattr(scene(1), name)[:0] for name in names})
    frame = Drawing(nobody, tmp_path, 64).frame(view(), 0.0)
    assert not frame.alpha.any()
    assert not frame.stats[[0, 1, 2, 4]].any()


# ---- the file -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
@pytest.mark.parametrize("terms", [(0, 0), (2, 2), (0, 3)])
@pytest.mark.parametrize("sh_degree", [-1, 2])
def test_the_file_is_valid(dtype: str, terms: tuple[int, int], sh_degree: int) -> None:
    onnx = pytest.importorskip("onnx")
    P, Q = terms
    spec = SPEC._replace(
        groups=5 * bool(P + Q), linear_terms=P, angular_terms=Q, sh_degree=sh_degree, dtype=dtype, outputs=IMAGE
    )
    model = graph_of(spec)
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version == 8
    assert {opset.domain: opset.version for opset in model.opset_import} == {"": 17, "edge4d": 1}
    for values, arrays in ((model.graph.input, spec.inputs()), (model.graph.output, spec.results())):
        assert [value.name for value in values] == list(arrays)
    # TensorRT 8.6 has neither.
    made = onnx.shape_inference.infer_shapes(model).graph.value_info
    types = {value.type.tensor_type.elem_type for value in (*made, *model.graph.input, *model.graph.output)}
    assert not types & {onnx.TensorProto.DOUBLE, onnx.TensorProto.INT64}


def test_every_attribute_is_written_out() -> None:
    onnx = pytest.importorskip("onnx")
    spec = SPEC._replace(eps2d=0.125, antialiased=True, sh_degree=1, outputs=IMAGE | DEPTH, dtype="uint8")
    (node,) = (node for node in graph_of(spec).graph.node if node.domain == "edge4d")
    found = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    assert (found.pop("plugin_namespace"), found.pop("plugin_version")) == (b"edge4d", b"1")
    assert list(found) == [attribute.name for attribute in GAUSSIAN_RASTERIZE.attributes]
    told = {"width": 16, "height": 16, "max_pairs": 1000, "eps2d": 0.125, "antialiased": 1, "sh_degree": 1}
    # Plugins give no uint8.
    assert {**told, "outputs": 5, "out_dtype": b"float32"}.items() <= found.items()
    (node,) = (node for node in graph_of(SPEC._replace(dtype="float16")).graph.node if node.domain == "edge4d")
    assert [a.s for a in node.attribute if a.name == "out_dtype"] == [b"float16"]


def test_the_same_specs_are_the_same_bytes() -> None:
    pytest.importorskip("onnx")
    assert render_onnx(SPEC) == render_onnx(SPEC._replace())
    assert render_onnx(SPEC) != render_onnx(SPEC._replace(max_pairs=1001))


def test_only_inputs_that_are_read_are_there() -> None:
    assert not {"time", "groups", "centres", "linear", "angular"} & set(SPEC.inputs())
    assert "centres" not in SPEC._replace(groups=4, linear_terms=2).inputs()
    assert "linear" not in SPEC._replace(groups=4, angular_terms=2).inputs()


@pytest.mark.parametrize(
    "motion", [(delta(20_000, {"colors": 3}, 0.1),), (poly(), poly())], ids=["differences", "two polynomials"]
)
def test_motion_that_a_graph_does_not_express(motion: tuple[Any, ...]) -> None:
    with pytest.raises(InvalidRequest, match=r"cannot draw how this scene moves[\s\S]*CUDA kernels"):
        polynomial_of(scene(motion=motion))


def test_without_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(BackendUnavailable, match=r"not installed[\s\S]*edge4d\[tensorrt\]"):
        render_onnx(SPEC)


@pytest.mark.rtx
@pytest.mark.parametrize("terms", [(0, 0), (2, 2)])
def test_tensorrt_builds_what_lies_around_the_operator(terms: tuple[int, int], tmp_path: Path) -> None:
    """TensorRT-RTX, which has no plugins, but the parser of TensorRT, and needs no GPU."""
    pytest.importorskip("onnx")
    pytest.importorskip("torch")
    from edge4d.export.cut import cut

    spec = SPEC._replace(groups=3, linear_terms=terms[0], angular_terms=terms[1], dtype="uint8")
    models = [part.model for part in cut(graph_of(spec)) if part.model]
    assert len(models) == 2
    for model in models:
        path = tmp_path / "part.onnx"
        path.write_bytes(model.SerializeToString())
        assert engine_from_onnx(BuildRequest(path, "tensorrt_rtx", "fp32", {}, "89"))
