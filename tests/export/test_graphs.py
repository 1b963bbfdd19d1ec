"""Copies of graphs, and what is known of them without their large weights."""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from onnx import ModelProto, TensorProto, helper, numpy_helper  # noqa: E402

from edge4d.export.graphs import check_graph, inner_types, is_large, like  # noqa: E402


def model(width: int = 300, axis: int = 1) -> ModelProto:
    """x times a large weight, in a shape that small whole numbers say, twice."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Reshape", ["a", "shape"], ["b"]),
        helper.make_node("Concat", ["b", "b"], ["y"], axis=axis),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["M", "C"])]
    weight = np.random.default_rng(0).standard_normal((4, width)).astype(np.float32)
    constants = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.array([-1, 2]), "shape")]
    graph = helper.make_graph(nodes, "g", inputs, outputs, constants, doc_string="about")
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="edge4d")


def test_a_copy_is_equal_and_apart():
    original = model()
    copy = like(original)
    assert copy == original
    copy.graph.node[0].op_type = "Gemm"
    copy.graph.initializer[0].name = "other"
    assert original == model()


def test_parts_are_replaced():
    original = model()
    found = like(original, node=original.graph.node[:1], initializer=[])
    assert [node.op_type for node in found.graph.node] == ["MatMul"]
    assert not found.graph.initializer
    assert (found.graph.input, found.producer_name) == (original.graph.input, "edge4d")


@settings(deadline=None)
@given(st.integers(1, 200))
def test_types_are_those_that_weights_would_give(half_width):
    found = model(2 * half_width)
    assert is_large(found.graph.initializer[0]) == (4 * 4 * 2 * half_width >= 1000)
    expected = {value.name: value for value in onnx.shape_inference.infer_shapes(found).graph.value_info}
    assert {value.name: value for value in inner_types(found)} == expected
    assert list(expected) == ["a", "b"]


def test_graphs_that_contradict_themselves():
    check_graph(model())
    inner_types(model(axis=7))
    with pytest.raises(onnx.shape_inference.InferenceError):
        inner_types(model(axis=7), strict=True)
    with pytest.raises(Exception, match="axis"):
        check_graph(model(axis=7))
