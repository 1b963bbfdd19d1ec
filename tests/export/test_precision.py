"""The fp16 variant: which nodes are half, where casts stand, and that islands keep their digits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("torch")

import onnxruntime  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper  # noqa: E402

from edge4d.export.cut import cut  # noqa: E402
from edge4d.export.precision import fp16_from_fp32, rounded_to_half, with_half_weights  # noqa: E402
from edge4d.kernels.ops import PLUGIN_ATTRIBUTES  # noqa: E402
from edge4d.runtime.errors import ExportFailed  # noqa: E402

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16


def node(op: str, inputs: str, outputs: str, scope: str = "", **attributes: object) -> NodeProto:
    return helper.make_node(op, inputs.split(), outputs.split(), name=f"{scope}/{op}_{outputs}", **attributes)


def model_of(nodes: list[NodeProto], constants: dict[str, NDArray[np.generic]], **kinds: int) -> ModelProto:
    """x [N,4] → y; `kinds` gives the type of further inputs."""
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info(name, kind, ["N", 4])
            for name, kind in {"x": FLOAT, **{key: kind for key, kind in kinds.items() if key != "y"}}.items()
        ],
        [helper.make_tensor_value_info("y", kinds.get("y", FLOAT), None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("edge4d", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    model.graph.output[0].CopyFrom(onnx.shape_inference.infer_shapes(model).graph.output[0])
    return model


def half_of(model: ModelProto, *scopes: str) -> ModelProto:
    half = fp16_from_fp32(model, fp32_scopes=scopes)
    onnx.checker.check_model(half, full_check=True)
    return half


def types(model: ModelProto) -> dict[str, int]:
    """The type of each node's first output, by operator; casts left out."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)}
    return {n.op_type: kinds[n.output[0]] for n in graph.node if n.op_type != "Cast"}


def casts(model: ModelProto) -> list[tuple[str, int]]:
    return [(n.input[0], n.attribute[0].i) for n in model.graph.node if n.op_type == "Cast"]


def run(model: ModelProto, **inputs: NDArray[np.generic]) -> NDArray[np.generic]:
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, inputs)[0]


WEIGHT = np.linspace(-1, 1, 16, dtype=np.float32).reshape(4, 4)


def test_weights_and_activations_are_half_and_the_edges_float32() -> None:
    model = model_of([node("MatMul", "x w", "a"), node("Relu", "a", "y")], {"w": WEIGHT})
    half = half_of(model)
    assert types(half) == {"MatMul": HALF, "Relu": HALF}
    assert casts(half) == [("x", HALF), ("y.fp16", FLOAT)]
    assert [tensor.data_type for tensor in half.graph.initializer] == [HALF]
    assert [value.type.tensor_type.elem_type for value in (*half.graph.input, *half.graph.output)] == [FLOAT, FLOAT]
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    # Inputs, weights and products of size 1 to 3 are rounded to half: 2^-11 of each, four products.
    np.testing.assert_allclose(run(half, x=x), run(model, x=x), atol=4 * 3 * 2**-11)


def test_the_original_is_not_changed() -> None:
    model = model_of([node("MatMul", "x w", "y")], {"w": WEIGHT})
    before = model.SerializeToString(deterministic=True)
    fp16_from_fp32(model)
    assert model.SerializeToString(deterministic=True) == before


def test_normalisations_and_softmax_stay_float32() -> None:
    ones = np.ones(4, np.float32)
    nodes = [
        node("MatMul", "x w", "a"),
        node("LayerNormalization", "a one one", "b"),
        node("Relu", "b", "c"),
        node("Softmax", "c", "d"),
        node("MatMul", "d w", "y"),
    ]
    half = half_of(model_of(nodes, {"w": WEIGHT, "one": ones}))
    assert types(half) == {"MatMul": HALF, "LayerNormalization": FLOAT, "Relu": HALF, "Softmax": FLOAT}


def test_an_island_keeps_its_digits() -> None:
    # 2049 is no half; the island subtracts two such numbers. A converter that casts inside the island gives 0 or 2.
    nodes = [
        node("Transpose", "x", "moved", perm=[0, 1]),
        node("Add", "moved big", "a", "lift.depth"),
        node("Sub", "a big", "b", "lift.depth"),
        node("Neg", "b", "c", "lift"),
        node("Relu", "c", "y", "lifted"),
    ]
    model = model_of(nodes, {"big": np.float32([2048])})
    half = half_of(model, "lift")
    assert types(half) == {"Transpose": FLOAT, "Add": FLOAT, "Sub": FLOAT, "Neg": FLOAT, "Relu": HALF}
    assert casts(half) == [("c", HALF), ("y.fp16", FLOAT)]  # "lifted" is not below "lift"
    x = np.full((1, 4), -1.0, np.float32)
    np.testing.assert_array_equal(run(half, x=x), run(model, x=x))


def test_the_empty_scope_is_everything() -> None:
    model = model_of([node("MatMul", "x w", "a"), node("Relu", "a", "y", "inner")], {"w": WEIGHT})
    assert casts(half_of(model, "")) == []


def test_a_scope_that_no_node_is_in_is_refused() -> None:
    model = model_of([node("Relu", "x", "y", "head")], {})
    with pytest.raises(ExportFailed, match="in the scope 'heads'") as caught:
        fp16_from_fp32(model, fp32_scopes=("heads",))
    assert "Scopes: head." in caught.value.note


def test_each_value_is_cast_once_and_each_constant_kept_in_the_forms_used() -> None:
    nodes = [
        node("MatMul", "x w", "a"),
        node("MatMul", "x w", "b"),
        node("MatMul", "x w", "c", "head"),
        node("Sum", "a b c", "y"),
    ]
    half = half_of(model_of(nodes, {"w": WEIGHT}), "head")
    assert casts(half) == [("x", HALF), ("c", HALF), ("y.fp16", FLOAT)]
    assert {tensor.name: tensor.data_type for tensor in half.graph.initializer} == {"w": FLOAT, "w.fp16": HALF}


def test_constants_that_half_cannot_hold_keep_their_node_in_float32() -> None:
    for constant in (1e-9, 1e6):
        nodes = [node("Relu", "x", "a"), node("Max", "a c", "y")]
        half = half_of(model_of(nodes, {"c": np.float32(constant)}))
        assert types(half) == {"Relu": HALF, "Max": FLOAT}
        assert run(half, x=np.zeros((1, 4), np.float32))[0, 0] == np.float32(constant)


def test_whole_numbers_become_float32_and_truth_values_half() -> None:
    nodes = [node("Cast", "ids", "a", to=FLOAT), node("Add", "x a", "y")]
    half = half_of(model_of(nodes, {}, ids=TensorProto.INT32))
    assert casts(half) == [("ids", FLOAT), ("x", HALF), ("a", HALF), ("y.fp16", FLOAT)]
    nodes = [node("Cast", "seen", "a", to=FLOAT), node("Add", "x a", "y")]
    half = half_of(model_of(nodes, {}, seen=TensorProto.BOOL))
    assert casts(half)[0] == ("seen", HALF)


def test_inputs_that_must_be_float32_stay_so() -> None:
    nodes = [
        node("Reshape", "x shape", "a"),
        node("Resize", "a empty scales", "b", mode="nearest"),
        node("Relu", "b", "y"),
    ]
    constants = {
        "shape": np.array([1, 1, -1, 4]),
        "scales": np.array([1, 1, 2, 2], np.float32),
        "empty": np.zeros(0, np.float32),
    }
    half = half_of(model_of(nodes, constants))
    assert types(half)["Resize"] == HALF
    assert {t.name: t.data_type for t in half.graph.initializer}["scales"] == FLOAT
    assert run(half, x=np.ones((2, 4), np.float32)).shape == (1, 1, 4, 8)


def test_our_operators_on_positions_stay_float32() -> None:
    sample = helper.make_node("FarthestPointSample", ["a"], ["i"], domain="edge4d", count=2, **PLUGIN_ATTRIBUTES)
    nodes = [node("Relu", "x", "a"), sample, node("Gather", "a i", "y")]
    model = model_of(nodes, {})
    model.graph.value_info.append(helper.make_tensor_value_info("i", TensorProto.INT32, [2]))
    half = fp16_from_fp32(model)
    assert casts(half) == [("x", HALF), ("a", FLOAT), ("y.fp16", FLOAT)]
    assert [value.name for value in half.graph.value_info] == ["i"]


@pytest.mark.parametrize("scope", ["", "island"])
def test_our_operators_on_features_are_half_outside_of_islands(scope: str) -> None:
    """Their types are in the graph, since nobody could infer them; also of one that gives an output."""
    attributes = {"domain": "edge4d", **PLUGIN_ATTRIBUTES}
    nodes = [
        node("Relu", "x", "a"),
        node("GatherMean", "a table", "b", scope, zeros=1, **attributes),
        node("GatherMean", "b table", "y", zeros=0, **attributes),
    ]
    model = model_of(nodes, {"table": np.array([[1, 0], [0, -1]], np.int32)})
    model.graph.value_info.append(helper.make_tensor_value_info("b", FLOAT, [2, 4]))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", FLOAT, [2, 4]))
    half = fp16_from_fp32(model, fp32_scopes=["island"] if scope else [])
    onnx.checker.check_model(half, full_check=True)
    kinds = {value.name: value.type.tensor_type.elem_type for value in half.graph.value_info}
    assert kinds == {"b": FLOAT if scope else HALF, "y.fp16": HALF}
    island = [("a", FLOAT), ("b", HALF)] if scope else []
    assert casts(half) == [("x", HALF), *island, ("y.fp16", FLOAT)]
    rounded = rounded_to_half(half)
    exact = {value.name: value.type.tensor_type.elem_type for value in rounded.graph.value_info}
    assert exact == {"b" if scope else "b.exact": FLOAT, "y.fp16.exact": FLOAT}
    assert HALF not in [t.data_type for t in rounded.graph.initializer]
    assert len(cut(rounded)) == 5  # sessions before, between and after the two


def test_outputs_that_are_also_read_inside() -> None:
    nodes = [node("MatMul", "x w", "y"), node("Relu", "y", "unused")]
    half = half_of(model_of(nodes, {"w": WEIGHT}))
    assert casts(half) == [("x", HALF), ("y.fp16", FLOAT)]
    assert half.graph.node[2].input[0] == "y.fp16"


LARGE = np.random.default_rng(2).normal(size=(4, 600)).astype(np.float32)


def shared(nodes: list[NodeProto], constants: dict[str, NDArray[np.generic]], *scopes: str) -> ModelProto:
    model = onnx.shape_inference.infer_shapes(model_of(nodes, constants))
    result = with_half_weights(model, half_of(model, *scopes))
    onnx.checker.check_model(result, full_check=True)
    return result


def test_the_fp32_graph_takes_the_weights_of_the_fp16_one() -> None:
    nodes = [node("MatMul", "x w", "a"), node("MatMul", "a large", "b"), node("Add", "b scalar", "y")]
    weights = {"w": WEIGHT / 3, "large": LARGE}
    scalar = np.float32(0.1)
    result = shared(nodes, {**weights, "scalar": scalar})
    kinds = {t.name: t.data_type for t in result.graph.initializer}
    assert kinds == {"w": FLOAT, "large.fp16": HALF, "scalar": FLOAT}
    assert casts(result) == [("large.fp16", FLOAT)]
    assert set(types(result).values()) == {FLOAT}
    halves = {name: weight.astype(np.float16).astype(np.float32) for name, weight in weights.items()}
    assert (halves["w"] != weights["w"]).any()
    exact = model_of(nodes, {**halves, "scalar": scalar})
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    np.testing.assert_array_equal(run(result, x=x), run(exact, x=x))  # the same weights, the same arithmetic


def test_onnx_runtime_folds_the_casts(tmp_path: Path) -> None:
    result = shared([node("MatMul", "x large", "y")], {"large": LARGE})
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(result.SerializeToString(), options)
    optimized = onnx.load(tmp_path / "optimized.onnx")
    assert [n.op_type for n in optimized.graph.node] == ["MatMul"]


@pytest.mark.parametrize(
    ("weight", "scopes"),
    [
        (LARGE, ("head",)),  # read in float32
        (LARGE * 1e5, ()),  # beyond 65504
        (LARGE * 1e-6, ()),  # below 6e-5: one digit is left
        (np.arange(2400).reshape(4, 600), ()),  # whole numbers
    ],
)
def test_weights_that_half_would_spoil_stay_as_they_are(weight: NDArray[np.generic], scopes: tuple[str, ...]) -> None:
    nodes = [node("Cast", "large", "w", "head", to=FLOAT), node("MatMul", "x w", "y", "head")]
    nodes = nodes if weight.dtype.kind == "i" else [node("MatMul", "x large", "y", "head")]
    weight = weight if weight.dtype.kind == "i" else weight.astype(np.float32)
    result = shared(nodes, {"large": weight}, *scopes)
    assert len(result.graph.initializer) == 1
    np.testing.assert_array_equal(numpy_helper.to_array(result.graph.initializer[0]), weight)


def test_a_weight_of_zeros_is_shared() -> None:
    assert casts(shared([node("MatMul", "x large", "y")], {"large": LARGE * 0})) == [("large.fp16", FLOAT)]


def test_rounding_shows_what_half_hardware_gives() -> None:
    nodes = [node("Add", "x big", "a"), node("Sub", "a big", "b"), node("Mul", "b b", "c"), node("Mul", "c c", "y")]
    half = half_of(model_of(nodes, {"big": np.float32([2048])}))
    rounded = rounded_to_half(half)
    onnx.checker.check_model(rounded, full_check=True)
    assert set(types(rounded).values()) == {FLOAT}
    x = np.float32([[1, 3, 4, 200]])
    # 2049 and 2051 lie between halves and round to even: 2048 and 2052. 200^4 is beyond 65504.
    np.testing.assert_array_equal(run(rounded, x=x), np.float32([[0, 256, 256, np.inf]]))


@settings(max_examples=60, deadline=None)
@given(
    # Two Exp take values of size 1 to 15 at most; a third would pass 65504, where half ends.
    ops=st.lists(
        st.sampled_from(["Relu", "MatMul", "Softmax", "Transpose", "Exp", "Clip"]), min_size=1, max_size=8
    ).filter(lambda ops: ops.count("Exp") <= 2),
    islands=st.lists(st.booleans(), min_size=8, max_size=8),
)
def test_any_chain_stays_valid_and_near(ops: list[str], islands: list[bool]) -> None:
    names = ["x", *(f"v{i}" for i in range(len(ops) - 1)), "y"]
    more = {"MatMul": " w", "Clip": " low high"}
    nodes = [
        node(op, names[i] + more.get(op, ""), names[i + 1], "island" if island else "sea")
        for i, (op, island) in enumerate(zip(ops, islands, strict=False))
    ]
    constants = {"w": WEIGHT / 4, "low": np.float32(-3), "high": np.float32(3)}
    model = model_of(nodes, constants)
    model.graph.input[0].type.tensor_type.shape.dim[0].ClearField("dim_param")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    half = half_of(model, *(["island"] if any(islands[: len(ops)]) else []))
    x = np.random.default_rng(1).uniform(-1, 1, (4, 4)).astype(np.float32)
    expected, found = run(model, x=x), run(rounded_to_half(half), x=x)
    # At most eight roundings of 2^-11, and Exp multiplies a relative error by its argument, which is below 7.
    assert np.abs(found - expected).max() <= 8 * 7 * 2**-11 * max(1.0, np.abs(expected).max())
