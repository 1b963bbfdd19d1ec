"""fp16 from fp32: the same graph in half precision, with the islands that half precision would spoil left alone.

Types are in the graph (strongly typed TensorRT takes them as they are): half initialisers, half activations, and a Cast
wherever the two meet. The converters of onnxruntime and onnxconverter-common cast every island's inner values to half
and back, which loses the digits that the island is there to keep; here a value changes type at an island's edge only.

A bundle with both variants has the same weights in both, the large ones once, in half: the fp32 graph casts them up and
computes in float32 from there on. That makes the bundle three times smaller than a copy per variant, and it brings the
variants closer: a bias that is rounded in one of them alone shows in every pixel. Rounding moves a weight by at most
2^-11 of itself, 5e-4, far below how well training determines it; a weight that half would move further stays float32.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from edge4d.export.cut import keep_operator_types
from edge4d.export.graphs import inner_types, is_large, like
from edge4d.kernels.ops import DOMAIN, OPERATORS
from edge4d.runtime.errors import ExportFailed

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16

WEIGHT_LOSS = 1e-3
"""Largest relative error, in the 2-norm, of a weight that both variants share in half. Half's own digits give 5e-4 at
most; what is beyond has values below 6e-5, where half runs out of digits."""

# Normalisations and reductions add up thousands of values, whose sum or squares pass 65504, half's largest.
_NORMALISATIONS = {"BatchNormalization", "InstanceNormalization", "LayerNormalization", "LogSoftmax", "Softmax"}
_REDUCTIONS = {"CumSum", "GlobalAveragePool", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMean"}
_REDUCTIONS |= {"ReduceProd", "ReduceSum", "ReduceSumSquare"}
# Steep: rounding the argument to half would show in the result's leading digits.
_STEEP = {"Atan", "Cos", "Exp", "Log", "Pow", "Reciprocal", "Sin"}
# Constants and coordinates: cast where they are used.
_SOURCES = {"Constant", "ConstantOfShape", "EyeLike", "RandomNormal", "RandomUniform", "Range"}

KEEP = frozenset(_NORMALISATIONS | _REDUCTIONS | _STEEP | _SOURCES)
"""Operators that stay in float32 wherever they are."""

_MOVES = {"Concat", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Pad", "Reshape", "Slice"}
_MOVES |= {"Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"}
# They only move values: float32 in, float32 out, so that an island's inputs arrive whole.


def fp16_from_fp32(model: ModelProto, *, fp32_scopes: Iterable[str] = ()) -> ModelProto:
    """The half-precision variant of a graph from `onnx_from_torch`; inputs and outputs stay float32.

    Args:
        fp32_scopes: module paths whose nodes stay in float32, with everything below them; "" is the whole module.

    Raises:
        ExportFailed: no node is in one of the scopes, or a value's type is unknown.
    """
    scopes = tuple(fp32_scopes)
    _check_scopes(model, scopes)
    return _Halving(model, scopes).result()


def with_half_weights(model: ModelProto, half: ModelProto) -> ModelProto:
    """A graph with the weights of `half`, its fp16 variant. It shares the large ones, each with a Cast to float32.

    A weight stays as it is where `half` reads it in float32 too, or half does not hold it to `WEIGHT_LOSS`. ONNX
    Runtime and TensorRT fold the casts when they load the graph.
    """
    halves = {tensor.name: tensor for tensor in half.graph.initializer}
    tensors, casts = [], []
    for tensor in model.graph.initializer:
        name, rounded = tensor.name, halves.get(f"{tensor.name}.fp16")
        if rounded is None or name in halves or not rounded.dims or _loss(tensor, rounded) > WEIGHT_LOSS:
            tensors.append(tensor)
        elif is_large(rounded):
            tensors.append(rounded)
            casts.append(helper.make_node("Cast", [rounded.name], [name], name=f"cast/{name}", to=FLOAT))
        else:  # TensorRT takes no biases that are computed, by a Cast either
            tensors.append(_single(rounded, name))
    return like(model, node=[*casts, *model.graph.node], initializer=tensors)


def _loss(tensor: TensorProto, rounded: TensorProto) -> float:
    exact, found = (numpy_helper.to_array(value).astype(np.float64) for value in (tensor, rounded))
    size = float(np.linalg.norm(exact))
    return float(np.linalg.norm(found - exact)) / size if size else 0.0


def rounded_to_half(model: ModelProto) -> ModelProto:
    """An fp16 graph in float32 arithmetic, every half value rounded as half hardware does: overflow becomes infinite.

    ONNX Runtime computes half graphs on the CPU in float32 and leaves the roundings between nodes out, so that it shows
    less of what half precision loses than a GPU does; this graph shows all of it.
    """
    types = _types(model, inner_types(model, strict=True))
    values = model.graph.value_info
    return like(
        model,
        node=[made for node in model.graph.node for made in _rounding(node, types)],
        value_info=[_retyped(v, f"{v.name}.exact", FLOAT) if types[v.name] == HALF else v for v in values],
        initializer=[_single(t, t.name) if t.data_type == HALF else t for t in model.graph.initializer],
    )


def _rounding(node: NodeProto, types: dict[str, int]) -> list[NodeProto]:
    exact = NodeProto()
    exact.CopyFrom(node)
    if node.op_type == "Cast" and HALF in (types[node.input[0]], types[node.output[0]]):
        exact.attribute[0].i = FLOAT if types[node.output[0]] == HALF else types[node.output[0]]
    nodes = [exact]
    for index, name in enumerate(node.output):
        if name and types[name] == HALF:
            exact.output[index] = f"{name}.exact"
            nodes.append(helper.make_node("Cast", [f"{name}.exact"], [f"{name}.half"], to=HALF))
            nodes.append(helper.make_node("Cast", [f"{name}.half"], [name], to=FLOAT))
    return nodes


def _retyped(value: ValueInfoProto, name: str, kind: int) -> ValueInfoProto:
    """The same shape under another name, of another type."""
    result = ValueInfoProto()
    result.CopyFrom(value)
    result.name = name
    result.type.tensor_type.elem_type = kind
    return result


def scope_of(node: NodeProto) -> str:
    """The module path in a node's name: `decoder.head/Conv_3` → `decoder.head`."""
    return node.name.rpartition("/")[0]


def _in_scope(node: NodeProto, scopes: Iterable[str]) -> bool:
    path = scope_of(node)
    return any(scope in ("", path) or path.startswith(f"{scope}.") for scope in scopes)


def _check_scopes(model: ModelProto, scopes: Iterable[str]) -> None:
    for scope in scopes:
        if not any(_in_scope(node, (scope,)) for node in model.graph.node):
            raise ExportFailed(
                f"No node of the graph is in the scope '{scope}'.",
                note=f"Scopes: {', '.join(sorted({scope_of(node) for node in model.graph.node}))}.",
                hint="Use a module's path, as in named_modules().",
            )


class _Halving:
    """One conversion: walks the nodes in order and keeps, per float value, the name of each form that exists."""

    def __init__(self, model: ModelProto, scopes: tuple[str, ...]) -> None:
        self.model = model
        self.graph = model.graph
        self.scopes = scopes
        self.opset = next(opset.version for opset in model.opset_import if opset.domain == "")
        self.constants = {tensor.name: tensor for tensor in self.graph.initializer}
        self.values = inner_types(model, strict=True)
        self.types = _types(model, self.values)
        self.outputs = [value.name for value in self.graph.output]
        self.nodes: list[NodeProto] = []
        self.halves: list[TensorProto] = []
        self.made_as: dict[str, int] = {}  # the type in which a value is made; the other form is a cast of it
        self.forms: dict[tuple[str, int], str] = {}
        for value in (*self.graph.input, *self.graph.initializer):
            self._made(value.name, FLOAT, value.name)

    def result(self) -> ModelProto:
        for node in self.graph.node:
            self._convert(node)
        for name in self.outputs:
            if self._is_float(name):
                self._form(name, FLOAT)
        return self._assembled()

    def _is_float(self, name: str) -> bool:
        return bool(name) and self.types[name] == FLOAT

    def _made(self, name: str, kind: int, actual: str) -> None:
        self.made_as[name] = kind
        self.forms[name, kind] = actual

    def _convert(self, node: NodeProto) -> None:
        single = self._stays_single(node)
        converted = NodeProto()
        converted.CopyFrom(node)
        for index, name in enumerate(node.input):
            if self._is_float(name):
                kind = FLOAT if single or not _takes_half(node, index, self.opset) else HALF
                converted.input[index] = self._form(name, kind)
        kind = FLOAT if single or not _gives_half(node, self.opset) else HALF
        for index, name in enumerate(node.output):
            if self._is_float(name):
                if kind == HALF and node.op_type == "Cast":
                    converted.attribute[0].i = HALF
                converted.output[index] = f"{name}.fp16" if kind == HALF and name in self.outputs else name
                self._made(name, kind, converted.output[index])
        self.nodes.append(converted)

    def _stays_single(self, node: NodeProto) -> bool:
        if node.op_type in KEEP or _in_scope(node, self.scopes):
            return True
        floats = [name for name in node.input if self._is_float(name)]
        if node.op_type == "Cast":  # truth values are exact in half; whole numbers above 2048 are not
            return self.types[node.input[0]] != TensorProto.BOOL
        if any(not _half_holds(self.constants[name]) for name in floats if name in self.constants):
            return True
        values = [name for name in floats if name not in self.constants]
        return node.op_type in _MOVES and bool(values) and all(self.made_as[name] == FLOAT for name in values)

    def _form(self, name: str, kind: int) -> str:
        """The value's name in that type; casts it, once, where it only exists in the other."""
        if (name, kind) not in self.forms:
            actual = f"{name}.fp16" if kind == HALF else name if name in self.outputs else f"{name}.fp32"
            if name in self.constants:
                self.halves.append(_half(self.constants[name], actual))
            else:
                source = self.forms[name, self.made_as[name]]
                self.nodes.append(helper.make_node("Cast", [source], [actual], name=f"cast/{actual}", to=kind))
            self.forms[name, kind] = actual
        return self.forms[name, kind]

    def _assembled(self) -> ModelProto:
        used = {name for node in self.nodes for name in node.input} | set(self.outputs)
        constants = [tensor for tensor in (*self.graph.initializer, *self.halves) if tensor.name in used]
        result = like(self.model, node=self.nodes, initializer=constants, value_info=self._made_types())
        keep_operator_types(result.graph)
        return result

    def _made_types(self) -> list[ValueInfoProto]:
        """Of inner values, in the form in which each is made."""
        halves = [value for value in (*self.values, *self.graph.output) if self.made_as.get(value.name) == HALF]
        others = [value for value in self.values if self.made_as.get(value.name) != HALF]
        return [*others, *(_retyped(value, self.forms[value.name, HALF], HALF) for value in halves)]


def _types(model: ModelProto, inner: Iterable[ValueInfoProto]) -> dict[str, int]:
    graph = model.graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*inner, *graph.input, *graph.output)}
    types.update({tensor.name: tensor.data_type for tensor in graph.initializer})
    unknown = [name for node in graph.node for name in node.output if name and not types.get(name)]
    if unknown:
        raise ExportFailed("The types of some values of the graph are unknown.", note=", ".join(unknown[:10]))
    return types


def _takes_half(node: NodeProto, index: int, opset: int) -> bool:
    if node.domain == DOMAIN:
        return _gives_half(node, opset) and OPERATORS[node.op_type].inputs[index].dtype == "float"
    schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    return "tensor(float16)" in schema.inputs[min(index, len(schema.inputs) - 1)].types  # the last may be variadic


def _gives_half(node: NodeProto, opset: int) -> bool:
    if node.domain == DOMAIN:
        # What takes positions gives float32 whatever it takes: half would spoil them.
        return OPERATORS[node.op_type].outputs[0].dtype == "float"
    return "tensor(float16)" in onnx.defs.get_schema(node.op_type, opset, node.domain).outputs[0].types


def _half_holds(tensor: TensorProto) -> bool:
    """Whether half has the tensor: nothing becomes infinite, and no single number becomes zero."""
    array = numpy_helper.to_array(tensor)
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    lost = array.size == 1 and bool((half == 0).any() and (array != 0).any())
    return not lost and bool(np.isfinite(half).all())


def _single(tensor: TensorProto, name: str) -> TensorProto:
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), name)


def _half(tensor: TensorProto, name: str) -> TensorProto:
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), name)
