"""Cutting graphs at our operators: the order of the parts, what passes between them, and the shared weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("torch")

from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper  # noqa: E402

from edge4d.export.cut import cut, write_graphs  # noqa: E402
from edge4d.kernels.ops import PLUGIN_ATTRIBUTES  # noqa: E402
from edge4d.runtime.backends.onnxruntime import OnnxRuntimeBackend  # noqa: E402
from edge4d.runtime.bundle import Axis, Graph, OperatorStep, SessionStep, Stage, TensorSpec  # noqa: E402
from edge4d.runtime.errors import ExportFailed  # noqa: E402

BIG = np.linspace(-1, 1, 3 * 300, dtype=np.float32).reshape(3, 300)


def sample(source: str, target: str, count: int = 2, **more: object) -> NodeProto:
    attributes = {"count": count, **PLUGIN_ATTRIBUTES, **more}
    return helper.make_node("FarthestPointSample", [source], [target], domain="edge4d", **attributes)


def model_of(nodes: list[NodeProto], outputs: dict[str, tuple[int, list[object]]], inner: dict[str, int]) -> ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("points", TensorProto.FLOAT, ["N", 3])],
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in outputs.items()],
        [numpy_helper.from_array(BIG, "big"), numpy_helper.from_array(np.eye(3, dtype=np.float32), "eye")],
        value_info=[helper.make_tensor_value_info(name, TensorProto.INT32, [size]) for name, size in inner.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("edge4d", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def two_levels() -> ModelProto:
    """points → sample → gather → sample → gather → times a large weight; and a branch that needs no sample."""
    nodes = [
        helper.make_node("MatMul", ["points", "eye"], ["p"], name="a"),
        sample("p", "i", 4),
        helper.make_node("Gather", ["p", "i"], ["four"], name="b"),
        sample("four", "j", 2),
        helper.make_node("Gather", ["four", "j"], ["two"], name="c"),
        helper.make_node("MatMul", ["two", "big"], ["y"], name="d"),
        helper.make_node("MatMul", ["points", "big"], ["z"], name="e"),
    ]
    outputs = {"y": (TensorProto.FLOAT, [2, 300]), "z": (TensorProto.FLOAT, ["N", 300])}
    return model_of(nodes, outputs, {"i": 4, "j": 2})


def kinds(model: ModelProto) -> list[object]:
    return [part.node.op_type if part.node else [n.name for n in part.model.graph.node] for part in cut(model)]


def test_parts_come_in_the_order_to_run_them() -> None:
    assert kinds(two_levels()) == [["a", "e"], "FarthestPointSample", ["b"], "FarthestPointSample", ["c", "d"]]


def test_parts_pass_only_what_is_needed() -> None:
    first, second, third = (part.model.graph for part in cut(two_levels()) if part.model)
    assert [value.name for value in first.input] == ["points"]
    assert [value.name for value in first.output] == ["p", "z"]
    assert [value.name for value in second.input] == ["p", "i"]
    assert [value.name for value in third.input] == ["four", "j"]
    assert [tensor.name for tensor in third.initializer] == ["big"]
    for part in cut(two_levels()):
        if part.model:
            onnx.checker.check_model(part.model, full_check=True)


def test_operators_of_one_level_follow_each_other() -> None:
    nodes = [sample("points", "i"), sample("points", "j", 3), helper.make_node("Concat", ["i", "j"], ["y"], axis=0)]
    model = model_of(nodes, {"y": (TensorProto.INT32, [5])}, {"i": 2, "j": 3})
    assert kinds(model) == ["FarthestPointSample", "FarthestPointSample", [""]]


def test_a_graph_without_our_operators_is_one_part() -> None:
    nodes = [helper.make_node("MatMul", ["points", "eye"], ["y"], name="a")]
    assert kinds(model_of(nodes, {"y": (TensorProto.FLOAT, ["N", 3])}, {})) == [["a"]]


def write_graph(model: ModelProto, folder: Path) -> Graph:
    return write_graphs({"fp32": model}, folder, "core")["fp32"]


def stage_of(graph: object, *outputs: TensorSpec) -> Stage:
    axes = {"N": Axis("N", 4, 8, 64)}
    return Stage("cut", axes, (TensorSpec("points", "float32", ("N", 3)),), outputs, {"fp32": graph})


def test_the_cut_graph_runs_and_shares_one_copy_of_the_weights(tmp_path: Path) -> None:
    graph = write_graph(two_levels(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "core.fp32.0.onnx",
        "core.fp32.2.onnx",
        "core.fp32.4.onnx",
        "core.fp32.onnx",
        "core.weights",
    ]
    assert (tmp_path / "core.weights").stat().st_size == BIG.nbytes
    assert sum(path.stat().st_size for path in tmp_path.glob("*.onnx")) < BIG.nbytes
    points = np.array([[0, 0, 0], [1, 0, 0], [5, 0, 0], [2, 0, 0], [0, 3, 0]], np.float32)
    stage = stage_of(graph, TensorSpec("y", "float32", (2, 300)), TensorSpec("z", "float32", ("N", 300)))
    with OnnxRuntimeBackend().stage_engine(stage, "fp32") as engine:
        outputs = engine.run({"points": points})
    # float32 sums of three products against NumPy's, of values up to 5: a few roundings of 3e-7.
    np.testing.assert_allclose(outputs["y"], points[[0, 2]] @ BIG, atol=2e-6)
    np.testing.assert_allclose(outputs["z"], points @ BIG, atol=2e-6)


def test_weights_leave_a_file_that_would_be_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [helper.make_node("MatMul", ["points", "big"], ["y"], name="a")]
    model = model_of(nodes, {"y": (TensorProto.FLOAT, ["N", 300])}, {})
    monkeypatch.setattr("edge4d.export.cut._FILE_BYTES", BIG.nbytes - 1)
    graph = write_graph(model, tmp_path)
    assert (tmp_path / "core.weights").stat().st_size == BIG.nbytes
    assert graph.whole.stat().st_size < BIG.nbytes
    points = np.eye(3, dtype=np.float32)
    with OnnxRuntimeBackend().stage_engine(stage_of(graph, TensorSpec("y", "float32", ("N", 300))), "fp32") as engine:
        np.testing.assert_array_equal(engine.run({"points": points[[0, 1, 2, 0]]})["y"], BIG[[0, 1, 2, 0]])


def test_the_whole_graph_keeps_our_operators_and_its_weights(tmp_path: Path) -> None:
    model = two_levels()
    graph = write_graph(model, tmp_path)
    whole = onnx.load(graph.whole)
    assert [node.op_type for node in whole.graph.node] == [node.op_type for node in model.graph.node]
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in whole.graph.initializer}
    np.testing.assert_array_equal(constants["big"], BIG)


def test_without_our_operators_there_is_one_file_with_its_weights(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["points", "big"], ["y"])]
    graph = write_graph(model_of(nodes, {"y": (TensorProto.FLOAT, ["N", 300])}, {}), tmp_path)
    assert graph.steps == (SessionStep(graph.whole, ("points",), ("y",)),)
    assert [path.name for path in tmp_path.iterdir()] == ["core.fp32.onnx"]


def with_cast_weight() -> ModelProto:
    """`two_levels` with its large weight, which two parts read, as a half and a Cast."""
    model = two_levels()
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(BIG.astype(np.float16), "big.fp16"))
    model.graph.node.insert(0, helper.make_node("Cast", ["big.fp16"], ["big"], name="cast/big", to=TensorProto.FLOAT))
    return model


def test_a_cast_weight_is_made_in_each_part_that_reads_it() -> None:
    model = with_cast_weight()
    assert kinds(model) == [
        ["cast/big", "a", "e"],
        "FarthestPointSample",
        ["b"],
        "FarthestPointSample",
        ["cast/big", "c", "d"],
    ]
    first, _, third = (part.model.graph for part in cut(model) if part.model)
    assert [value.name for value in first.output] == ["p", "z"]
    assert [value.name for value in third.input] == ["four", "j"]


def test_a_cast_weight_that_is_an_output_or_read_by_our_operators() -> None:
    nodes = [
        helper.make_node("Cast", ["big.fp16"], ["big"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["big"], ["more"], name="a"),
        sample("big", "i"),
        helper.make_node("Gather", ["more", "i"], ["y"], name="b"),
    ]
    model = model_of(nodes, {"y": (TensorProto.FLOAT, [2, 3])}, {"i": 2})
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(BIG.astype(np.float16), "big.fp16"))
    assert kinds(model) == [["cast", "cut/big", "a"], "FarthestPointSample", ["b"]]
    model.graph.output.append(helper.make_tensor_value_info("big", TensorProto.FLOAT, [3, 300]))
    first = cut(model)[0].model
    assert [value.name for value in first.graph.output] == ["big", "more"]  # a value like any other


def test_variants_share_what_they_both_have(tmp_path: Path) -> None:
    graphs = write_graphs(
        {"fp32": with_cast_weight(), "other": two_levels(), "fp16": with_cast_weight()}, tmp_path, "s"
    )
    assert (tmp_path / "s.weights").stat().st_size == BIG.nbytes // 2 + -BIG.nbytes // 2 % 64 + BIG.nbytes
    for graph in graphs.values():
        for path in (graph.whole, *(step.onnx for step in graph.steps if isinstance(step, SessionStep))):
            for tensor in onnx.load(path, load_external_data=False).graph.initializer:
                entries = {entry.key: entry.value for entry in tensor.external_data}
                assert bool(entries) == (tensor.name != "eye")
                assert not entries or (entries["location"] == "s.weights" and int(entries["offset"]) % 64 == 0)
    points = np.array([[0, 0, 0], [1, 0, 0], [5, 0, 0], [2, 0, 0], [0, 3, 0]], np.float32)
    stage = stage_of(graphs["fp32"], TensorSpec("y", "float32", (2, 300)), TensorSpec("z", "float32", ("N", 300)))
    with OnnxRuntimeBackend().stage_engine(stage, "fp32") as engine:
        found = engine.run({"points": points})["z"]
    # The weights are exactly the rounded ones: what is left is float32, as above.
    np.testing.assert_allclose(found, points @ BIG.astype(np.float16).astype(np.float32), atol=2e-6)


def test_constants_reach_our_operators_through_a_session(tmp_path: Path) -> None:
    nodes = [sample("eye", "i"), helper.make_node("Gather", ["points", "i"], ["y"])]
    graph = write_graph(model_of(nodes, {"y": (TensorProto.FLOAT, [2, 3])}, {"i": 2}), tmp_path)
    assert isinstance(graph.steps[1], OperatorStep)
    assert graph.steps[1].attributes == {"count": 2}
    points = np.arange(12, dtype=np.float32).reshape(4, 3)
    with OnnxRuntimeBackend().stage_engine(stage_of(graph, TensorSpec("y", "float32", (2, 3))), "fp32") as engine:
        np.testing.assert_array_equal(engine.run({"points": points})["y"], points[[0, 1]])


def test_what_cannot_be_cut_is_refused(tmp_path: Path) -> None:
    unknown = helper.make_node("Teleport", ["points"], ["i"], domain="edge4d")
    half_written = helper.make_node("FarthestPointSample", ["points"], ["i"], domain="edge4d", count=2)
    for node, message in ((unknown, "no operator Teleport"), (half_written, "every attribute")):
        with pytest.raises(ExportFailed, match=message):
            write_graph(model_of([node], {"i": (TensorProto.INT32, [2])}, {}), tmp_path)
    untyped = [sample("points", "i"), helper.make_node("Gather", ["points", "i"], ["y"])]
    with pytest.raises(ExportFailed, match="type of value 'i'"):
        cut(model_of(untyped, {"y": (TensorProto.FLOAT, [2, 3])}, {}))
