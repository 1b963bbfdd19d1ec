"""Stages on ONNX Runtime: sessions, the native operators between them, and errors with names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edge4d.runtime.backends import BACKENDS, available_backends, backend
from edge4d.runtime.backends.onnxruntime import OnnxRuntimeBackend
from edge4d.runtime.bundle import Axis, Graph, OperatorStep, SessionStep, Stage, TensorSpec
from edge4d.runtime.errors import BackendUnavailable, EngineFailed, InvalidBundle, InvalidRequest, PrecisionNotInBundle

POINTS = TensorSpec("points", "float32", ("N", 3))


def write_onnx(path: Path, text: str) -> Path:
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}')
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return path


def stage_of(*steps: SessionStep | OperatorStep, outputs: tuple[TensorSpec, ...], precision: str = "fp32") -> Stage:
    axes = {"N": Axis("N", 1, 8, 64)}
    return Stage("small", axes, (POINTS,), outputs, {precision: Graph(Path("unused"), steps)})


@pytest.fixture
def doubled(tmp_path: Path) -> Stage:
    path = write_onnx(tmp_path / "double.onnx", "g (float[n, 3] points) => (float[n, 3] y) { y = Add(points, points) }")
    output = TensorSpec("y", "float32", ("N", 3))
    return stage_of(SessionStep(path, ("points",), ("y",)), outputs=(output,))


def test_runs_one_session(doubled: Stage) -> None:
    points = np.arange(12, dtype=np.float32).reshape(4, 3)
    with OnnxRuntimeBackend(threads=1).stage_engine(doubled, "fp32") as engine:
        first = engine.run({"points": points})["y"]
        second = engine.run({"points": points + 1})["y"]
    np.testing.assert_array_equal(first, 2 * points)  # exact: doubling only changes the exponent
    np.testing.assert_array_equal(second, 2 * (points + 1))  # and the first result was not overwritten


def test_alternates_sessions_and_native_operators(tmp_path: Path) -> None:
    before = write_onnx(tmp_path / "before.onnx", "g (float[n, 3] points) => (float[n, 3] p) { p = Neg(points) }")
    after = write_onnx(
        tmp_path / "after.onnx",
        "g (float[n, 3] p, int32[2] i) => (float[2, 3] chosen) { chosen = Gather(p, i) }",
    )
    stage = stage_of(
        SessionStep(before, ("points",), ("p",)),
        OperatorStep("FarthestPointSample", ("p",), ("i",), {"count": 2}),
        SessionStep(after, ("p", "i"), ("chosen",)),
        outputs=(TensorSpec("chosen", "float32", (2, 3)), TensorSpec("i", "int32", (2,))),
    )
    points = np.array([[0, 0, 0], [1, 0, 0], [5, 0, 0], [2, 0, 0]], np.float32)
    with OnnxRuntimeBackend().stage_engine(stage, "fp32") as engine:
        outputs = engine.run({"points": points})
    assert set(outputs) == {"chosen", "i"}
    np.testing.assert_array_equal(outputs["i"], [0, 2])
    np.testing.assert_array_equal(outputs["chosen"], [[0, 0, 0], [-5, 0, 0]])


def test_half_precision_inside_runs_too(tmp_path: Path) -> None:
    path = write_onnx(
        tmp_path / "half.onnx",
        """g (float[n, 3] points) => (float[n, 3] y) {
            h = Cast<to = 10>(points)
            s = Add(h, h)
            y = Cast<to = 1>(s)
        }""",
    )
    stage = stage_of(
        SessionStep(path, ("points",), ("y",)), outputs=(TensorSpec("y", "float32", ("N", 3)),), precision="fp16"
    )
    with OnnxRuntimeBackend().stage_engine(stage, "fp16") as engine:
        y = engine.run({"points": np.full((2, 3), 1.5, np.float32)})["y"]
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y, 3.0)  # 1.5 and 3 are exact in half


def test_a_precision_is_never_replaced(doubled: Stage) -> None:
    with pytest.raises(PrecisionNotInBundle):
        OnnxRuntimeBackend().stage_engine(doubled, "fp16")


@pytest.mark.parametrize("data", [b"", b"not a graph", b"\x08\x08" * 100])
def test_files_that_are_no_graph_are_named(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(data)
    stage = stage_of(SessionStep(path, ("points",), ("y",)), outputs=(TensorSpec("y", "float32", ("N", 3)),))
    with pytest.raises(InvalidBundle, match=r"cannot load 'broken.onnx' of stage 'small'"):
        OnnxRuntimeBackend().stage_engine(stage, "fp32")


def test_a_graph_with_operators_of_ours_must_have_been_cut(tmp_path: Path) -> None:
    node = helper.make_node("FarthestPointSample", ["points"], ["i"], domain="edge4d", count=2)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("points", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("i", TensorProto.INT32, [2])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("edge4d", 1)]
    path = tmp_path / "whole.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())
    stage = stage_of(SessionStep(path, ("points",), ("i",)), outputs=(TensorSpec("i", "int32", (2,)),))
    with pytest.raises(InvalidBundle, match="FarthestPointSample"):
        OnnxRuntimeBackend().stage_engine(stage, "fp32")


@pytest.mark.parametrize(
    ("output", "names"),
    [(TensorSpec("y", "float32", ("N", 3)), ("z",)), (TensorSpec("y", "int32", ("N", 3)), ("y",))],
)
def test_graphs_must_be_what_the_bundle_describes(tmp_path: Path, output: TensorSpec, names: tuple[str, ...]) -> None:
    path = write_onnx(tmp_path / "g.onnx", "g (float[n, 3] points) => (float[n, 3] y) { y = Neg(points) }")
    stage = stage_of(SessionStep(path, ("points",), names), outputs=(output,))
    with pytest.raises(InvalidBundle, match="not the ones that the bundle describes"):
        OnnxRuntimeBackend().stage_engine(stage, "fp32")


def test_failures_while_running_are_named(tmp_path: Path) -> None:
    path = write_onnx(
        tmp_path / "g.onnx",
        """g (float[n, 3] points) => (float[4, 3] y)
            <int64[2] shape = {4, 3}> { y = Reshape(points, shape) }""",
    )
    stage = stage_of(SessionStep(path, ("points",), ("y",)), outputs=(TensorSpec("y", "float32", (4, 3)),))
    with OnnxRuntimeBackend().stage_engine(stage, "fp32") as engine, pytest.raises(EngineFailed, match="'small'"):
        engine.run({"points": np.ones((3, 3), np.float32)})


def test_failures_of_operators_are_named(doubled: Stage) -> None:
    step = OperatorStep("FarthestPointSample", ("points",), ("i",), {"count": 9})
    stage = stage_of(step, outputs=(TensorSpec("i", "int32", (9,)),))
    with OnnxRuntimeBackend().stage_engine(stage, "fp32") as engine, pytest.raises(EngineFailed, match="FarthestPoint"):
        engine.run({"points": np.ones((3, 3), np.float32)})


def test_backends_by_name() -> None:
    assert isinstance(backend(), OnnxRuntimeBackend)
    assert backend("onnxruntime", threads=1).name == "onnxruntime"
    with pytest.raises(BackendUnavailable, match="builds engines of TensorRT-RTX and does not run them"):
        backend("tensorrt_rtx")
    with pytest.raises(InvalidRequest, match="no backend 'vulkan'"):
        backend("vulkan")
    with pytest.raises(InvalidRequest, match="at least one thread"):
        backend(threads=0)


def test_available_backends_say_why_not() -> None:
    reasons = available_backends()
    assert tuple(reasons) == BACKENDS
    assert reasons["onnxruntime"] == ""
    assert "does not run them" in reasons["tensorrt_rtx"]
