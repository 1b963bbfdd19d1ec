"""int8 from float: a stage's graphs with pairs of QuantizeLinear and DequantizeLinear around what computes in int8.

One calibration makes two graphs with the same ranges, symmetric, per tensor for activations, per channel for weights:
    for TensorRT, the fp16 graph with int8 pairs on what layers take. QuantizeLinear of opset 17 takes no float16, so
        each pair stands between casts. What a convolution gives is rounded where the next one takes it, or not at all.
    for ONNX Runtime on the CPU, the fp32 graph. Its activations are uint8: around 128, or from 0 behind a Relu, with
        twice as many steps. x86 multiplies unsigned by signed, and ONNX Runtime drops a Relu whose range begins at 0;
        with int8 it runs slower than float. What convolutions give is rounded too, and their biases are int32: releases
        before 1.21 see no int8 in them otherwise.

Weights stay the floats that the other graphs of the stage share, behind pairs of their own: TensorRT wants them so, and
a bundle grows by the graphs alone. TensorRT knows no int32 biases: there they stay float.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Optional

import numpy as np
from numpy.typing import NDArray

from edge4d.calib.layers import Layer, Wiring

Scales = Mapping[str, float]  # of a stage's tensors, by their names in the fp32 graph
Smoothing = Mapping[str, NDArray[np.float32]]  # per input channel of a layer, by its name; see `edge4d.calib.smooth`

_STEPS = 127  # of int8 on either side of zero


class LayerWeights(NamedTuple):
    """The constants of a layer: its weights, and a bias [channels] where it has one."""

    weight: NDArray[np.float32]
    bias: Optional[NDArray[np.float32]] = None


Weights = Mapping[str, LayerWeights]  # of a stage's layers, by the layers' names


def scale_of(largest: float) -> float:
    """The scale with which int8 reaches `largest`."""
    return float(np.float32(largest) / np.float32(_STEPS))


def weight_scales(weight: NDArray[np.float32], channel_axis: int) -> NDArray[np.float32]:
    """One scale per channel; a channel of zeros gets 1."""
    others = tuple(axis for axis in range(weight.ndim) if axis != channel_axis)
    largest = np.abs(weight).max(axis=others)
    return np.where(largest > 0, largest / np.float32(_STEPS), 1).astype(np.float32)


def cpu_graph(model: Any, layers: Iterable[Layer], scales: Scales, weights: Weights, smoothing: Smoothing) -> Any:
    """The fp32 graph with `layers` in int8, for ONNX Runtime.

    Args:
        scales: of at least `Wiring.tensors(layers)`.
    """
    wiring, chosen = Wiring(model), {layer.name: layer for layer in layers}
    tensors = wiring.tensors(layer for layer in chosen.values() if layer.name not in smoothing)
    graph = _Copy(model)

    def scale(name: str) -> Any:
        steps = 255 if wiring.is_never_negative(name) else _STEPS
        return np.float32(scales[name] * (_STEPS / steps))

    def pair(name: str) -> str:
        return graph.pair(name, scale(name), np.uint8(0 if wiring.is_never_negative(name) else 128))

    read = {name: pair(name) for name in sorted(tensors & wiring.inputs)}
    for node in wiring.nodes:
        copy = graph.copy(node)
        copy.input[:] = [read.get(name, name) for name in node.input]
        if node.name in chosen:
            layer = chosen[node.name]
            smooth = smoothing.get(layer.name)
            if smooth is not None:
                copy.input[0] = graph.smoothed(layer, smooth, np.float32(scales[layer.name]), np.uint8(128))
            weight, bias = weights[layer.name]
            copy.input[1] = graph.weight_pair(layer, layer.weight, weight, smooth)
            if layer.kind == "Conv" and bias is not None:
                copy.input[2] = graph.bias(layer, bias, scale(layer.input) * weight_scales(weight, 0), copy.input[2])
        graph.add(copy)
        read.update({name: pair(name) for name in node.output if name in tensors})
    return graph.model()


def engine_graph(model: Any, layers: Iterable[Layer], scales: Scales, weights: Weights, smoothing: Smoothing) -> Any:
    """The fp16 graph with `layers` in int8, for TensorRT. Arguments as in `cpu_graph`; `model` is the fp16 graph."""
    wiring, chosen = Wiring(model), {layer.name: layer for layer in layers}
    residuals = wiring.residuals(chosen.values())
    graph = _Copy(model, half=True)
    read: dict[str, str] = {}

    def pair(name: str, scale: float) -> str:
        if name not in read:
            read[name] = graph.pair(name, np.float32(scale), np.int8(0))
        return read[name]

    for node in wiring.nodes:
        copy = graph.copy(node)
        if node.name in chosen:
            layer = chosen[node.name]
            smooth = smoothing.get(layer.name)
            if smooth is None:
                copy.input[0] = pair(node.input[0], scales[layer.input])
            else:
                taken = layer._replace(input=node.input[0])
                copy.input[0] = graph.smoothed(taken, smooth, np.float32(scales[layer.name]), np.int8(0))
            copy.input[1] = graph.weight_pair(layer, node.input[1], weights[layer.name].weight, smooth)
        elif node.name in residuals:
            added = residuals[node.name]
            copy.input[:] = [read.get(name, name) if name == added else name for name in node.input]
        graph.add(copy)
    return graph.model()


class _Copy:
    """A graph that is copied node by node, with pairs in between.

    Args:
        half: the graph computes in float16, so that pairs stand between casts.
    """

    def __init__(self, model: Any, half: bool = False) -> None:
        self._model, self._half = model, half
        self._nodes: list[Any] = []
        self._constants: list[Any] = []

    def copy(self, node: Any) -> Any:
        copy = type(node)()
        copy.CopyFrom(node)
        return copy

    def add(self, node: Any) -> None:
        self._nodes.append(node)

    def pair(self, name: str, scale: NDArray[np.float32] | np.float32, zero: Any, axis: int = 1) -> str:
        """Rounds a tensor to 8 bits; returns the name of the result."""
        value = self._cast(name, f"{name}.float", "FLOAT") if self._half else name
        return self._rounded(value, name, scale, zero, axis)

    def weight_pair(self, layer: Layer, name: str, weight: NDArray[np.float32], smooth: Any) -> str:
        value = self._cast(name, f"{name}.float", "FLOAT") if self._half else name
        if smooth is not None:
            weight = weight * smooth[:, None]
            value = self._times(value, f"{layer.name}.smooth", smooth[:, None])
        scales = weight_scales(weight, layer.channel_axis)
        zeros = np.zeros(scales.shape, np.int8)
        return self._rounded(value, f"{layer.name}.weight", scales, zeros, layer.channel_axis)

    def bias(self, layer: Layer, bias: NDArray[np.float32], scales: NDArray[np.float32], name: str) -> str:
        """A convolution's bias in the steps of its sums, as int32; as it is, where they are too many."""
        from onnx import helper

        steps = np.rint(bias / scales)
        if not (np.abs(steps) < 2**31).all():
            return name
        inputs = [
            self._constant(f"{layer.name}.bias.int32", steps.astype(np.int32)),
            self._constant(f"{layer.name}.bias.scale", scales),
        ]
        result = f"{layer.name}.bias.rounded"
        self.add(helper.make_node("DequantizeLinear", inputs, [result], name=f"DequantizeLinear/{result}", axis=0))
        return result

    def smoothed(self, layer: Layer, smooth: NDArray[np.float32], scale: np.float32, zero: Any) -> str:
        """What a layer takes, each channel divided by its share of what its weights are multiplied by."""
        value = self._cast(layer.input, f"{layer.name}.float", "FLOAT") if self._half else layer.input
        return self._rounded(
            self._times(value, f"{layer.name}.smoothed", np.float32(1) / smooth), layer.name, scale, zero
        )

    def _rounded(self, value: str, name: str, scale: Any, zero: Any, axis: int = 1) -> str:
        from onnx import helper

        parameters = [self._constant(f"{name}.scale", scale), self._constant(f"{name}.zero", zero)]
        for kind, source, result in (
            ("QuantizeLinear", value, f"{name}.int8"),
            ("DequantizeLinear", f"{name}.int8", f"{name}.rounded"),
        ):
            self.add(helper.make_node(kind, [source, *parameters], [result], name=f"{kind}/{name}", axis=axis))
        return self._cast(f"{name}.rounded", f"{name}.half", "FLOAT16") if self._half else f"{name}.rounded"

    def _cast(self, name: str, result: str, kind: str) -> str:
        from onnx import TensorProto, helper

        self.add(helper.make_node("Cast", [name], [result], name=f"cast/{result}", to=getattr(TensorProto, kind)))
        return result

    def _times(self, name: str, result: str, factors: NDArray[np.float32]) -> str:
        from onnx import helper

        factor = self._constant(f"{result}.factors", factors.astype(np.float32))
        self.add(helper.make_node("Mul", [name, factor], [result], name=f"smooth/{result}"))
        return result

    def _constant(self, name: str, value: Any) -> str:
        from onnx import numpy_helper

        self._constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def model(self) -> Any:
        read = {name for node in self._nodes for name in node.input} | {
            value.name for value in self._model.graph.output
        }
        kept = [tensor for tensor in self._model.graph.initializer if tensor.name in read]
        result = type(self._model)()
        result.CopyFrom(self._model)
        del result.graph.node[:], result.graph.initializer[:]
        result.graph.node.extend(self._nodes)
        result.graph.initializer.extend([*kept, *self._constants])
        return result
