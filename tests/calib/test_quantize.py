"""Q/DQ graphs: what they compute, what ONNX Runtime makes of them, and what its own quantizer would have made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from edge4d.calib.layers import Wiring  # noqa: E402
from edge4d.calib.quantize import LayerWeights, cpu_graph, engine_graph, scale_of, weight_scales  # noqa: E402


def two_convolutions(half: bool = False):
    """x → Conv → Relu → Conv → y, the second one a head; all weights random."""
    rng = np.random.default_rng(0)
    kind = np.float16 if half else np.float32
    weights = {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (2, 8, 3, 3)}
    tensors = [
        onnx.numpy_helper.from_array(rng.standard_normal(dims).astype(np.float16).astype(kind), name)
        for name, dims in weights.items()
    ]
    nodes = [
        onnx.helper.make_node("Conv", ["h" if half else "x", "w1", "b1"], ["t"], name="first", pads=[1] * 4),
        onnx.helper.make_node("Relu", ["t"], ["u"], name="relu"),
        onnx.helper.make_node("Conv", ["u", "w2"], ["v" if half else "y"], name="head", pads=[1] * 4),
    ]
    if half:
        nodes.insert(0, onnx.helper.make_node("Cast", ["x"], ["h"], to=onnx.TensorProto.FLOAT16))
        nodes.append(onnx.helper.make_node("Cast", ["v"], ["y"], to=onnx.TensorProto.FLOAT))
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes, "g", [value("x", 1, [1, 3, 16, 16])], [value("y", 1, [1, 2, 16, 16])], tensors
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((1, 3, 16, 16)).astype(np.float32)


def run(model, picture: np.ndarray, optimized: Path | None = None) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": picture})[0])


def rounded(values: np.ndarray, scale, low: int, high: int) -> np.ndarray:
    return np.clip(np.rint(values / scale), low, high) * scale


def quantized_by_hand(picture: np.ndarray, scales: dict[str, float], steps: int | None) -> np.ndarray:
    """The same in NumPy: what the first convolution takes, its weights, and what its Relu gives if that has steps."""
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in two_convolutions().graph.initializer}
    weight = tensors["w1"]
    per_channel = weight_scales(weight, 0).reshape(-1, 1, 1, 1)
    first = convolved(rounded(picture, scales["x"], -128, 127), rounded(weight, per_channel, -127, 127))
    middle = np.maximum(first + tensors["b1"].reshape(1, -1, 1, 1), 0)
    if steps is not None:
        middle = rounded(middle, scales["u"] * 127 / steps, 0, steps)
    return convolved(middle, tensors["w2"])


def convolved(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    padded = np.pad(x[0], ((0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
    return np.einsum("chwij,ocij->ohw", windows, w)[None]


@pytest.fixture(scope="module")
def layer():
    (found,) = Wiring(two_convolutions()).layers()
    return found


@pytest.fixture(scope="module")
def weights(layer):
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in two_convolutions().graph.initializer}
    return {layer.name: LayerWeights(tensors["w1"], tensors["b1"])}


SCALES = {"x": scale_of(3.0), "u": scale_of(12.0)}


def test_the_cpu_graph_computes_what_it_says(picture, layer, weights):
    graph = cpu_graph(two_convolutions(), [layer], SCALES, weights, {})
    onnx.checker.check_model(graph, full_check=True)
    # ONNX Runtime rounds the bias to 32 bits and multiplies scales in float32: values at the middle between two steps
    # of u may fall to either side, and one step of 12/255 times weights of about 1 is 0.05.
    np.testing.assert_allclose(run(graph, picture), quantized_by_hand(picture, SCALES, 255), atol=0.2)
    difference = np.abs(run(graph, picture) - quantized_by_hand(picture, SCALES, 255))
    assert np.median(difference) < 1e-3


def test_the_engine_graph_computes_what_it_says(picture, layer, weights):
    graph = engine_graph(two_convolutions(half=True), [layer], SCALES, weights, {})
    onnx.checker.check_model(graph, full_check=True)
    kinds = [node.op_type for node in graph.graph.node]
    assert kinds.count("QuantizeLinear") == kinds.count("DequantizeLinear") == 2
    # Nothing rounds u to 8 bits. As float16, an x at the middle between two steps of 3/127 may go to the other one: at
    # a pixel next to it that is 0.024 over 8 channels, with two weights of up to 2 each, 0.75 at most.
    difference = np.abs(run(graph, picture) - quantized_by_hand(picture, SCALES, None))
    assert difference.max() < 0.75
    assert np.median(difference) < 0.01


def test_onnx_runtime_sees_int8(picture, layer, weights, tmp_path):
    graph = cpu_graph(two_convolutions(), [layer], SCALES, weights, {})
    run(graph, picture, tmp_path / "optimized.onnx")
    kinds = {node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node}
    assert "QLinearConv" in kinds
    assert "Relu" not in kinds


def test_no_layers_leave_the_graph_as_it_is(picture):
    assert cpu_graph(two_convolutions(), [], {}, {}, {}) == two_convolutions()
    assert engine_graph(two_convolutions(half=True), [], {}, {}, {}) == two_convolutions(half=True)


def test_scales_are_those_of_quantize_static(picture, layer, weights, tmp_path):
    """ONNX Runtime's own quantizer, with the settings that TensorRT takes, on the same picture."""
    import logging

    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    from edge4d.calib.ranges import Collector

    logging.getLogger().setLevel(logging.ERROR)
    onnx.save(two_convolutions(), tmp_path / "float.onnx")
    quantize_static(
        str(tmp_path / "float.onnx"),
        str(tmp_path / "int8.onnx"),
        _Pictures([{"x": picture}]),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
        nodes_to_quantize=["first"],
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "AddQDQPairToWeight": True,
        },
    )
    theirs = {tensor.name: tensor for tensor in onnx.load(tmp_path / "int8.onnx").graph.initializer}
    collector = Collector("minmax")
    collector.add("x", picture)
    ours = scale_of(collector.seen().ranges["x"].largest)
    assert ours == pytest.approx(float(onnx.numpy_helper.to_array(theirs["x_scale"])), rel=1e-6)
    np.testing.assert_allclose(
        weight_scales(weights[layer.name].weight, 0), onnx.numpy_helper.to_array(theirs["w1_scale"]).ravel(), rtol=1e-6
    )


class _Pictures:
    """A CalibrationDataReader."""

    def __init__(self, inputs) -> None:
        self._left = list(inputs)

    def get_next(self):
        return self._left.pop(0) if self._left else None


def test_a_channel_of_zeros_has_a_scale():
    weight = np.zeros((2, 3), np.float32)
    weight[0] = (1, -2, 0.5)
    np.testing.assert_array_equal(weight_scales(weight, 0), np.array([2 / 127, 1], np.float32))
    np.testing.assert_array_equal(weight_scales(weight, 1), np.array([1, 2, 0.5], np.float32) / np.float32(127))
