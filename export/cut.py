"""Cuts an ONNX graph at edge4d's operators, and writes both forms with one copy of the weights."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from edge4d.export.custom_ops import PLUGIN_ATTRIBUTES
from edge4d.kernels.ops import DOMAIN, OPERATORS
from edge4d.runtime.bundle import Graph, OperatorStep, SessionStep
from edge4d.runtime.errors import ExportFailed

_SHARED_BYTES = 1024  # smaller tensors stay in the graph, where shape inference reads them
_ALIGNMENT = 64


class Part(NamedTuple):
    """A piece of a cut graph: a model without operators of ours, or one node that is one."""

    model: ModelProto | None
    node: NodeProto | None


def cut(model: ModelProto) -> list[Part]:
    """The graph in the order to run it: what needs no operator of ours, then the operators it feeds, and so on.

    A node's level is the largest number of our operators on any path to it. All other nodes of a level are one part.

    Raises:
        ExportFailed: a node of our domain is not an operator that edge4d has.
    """
    model = onnx.shape_inference.infer_shapes(_with_constants_as_values(model))
    levels = _levels(model.graph)
    parts: list[Part] = []
    for level in range(max(levels, default=0) + 1):
        nodes = [node for node, at in zip(model.graph.node, levels, strict=True) if at == level]
        plain = [node for node in nodes if node.domain != DOMAIN]
        if plain:
            parts.append(Part(_submodel(model, plain), None))
        parts.extend(Part(None, node) for node in nodes if node.domain == DOMAIN)
    return parts


def _with_constants_as_values(model: ModelProto) -> ModelProto:
    """A copy in which our operators read no initialiser: a session makes every value that they are called with."""
    result = ModelProto()
    result.CopyFrom(model)
    constants = {tensor.name for tensor in model.graph.initializer}
    ours = [node for node in result.graph.node if node.domain == DOMAIN]
    read = _ordered(name for node in ours for name in node.input if name in constants)
    for node in ours:
        node.input[:] = [f"{name}.value" if name in constants else name for name in node.input]
    copies = [helper.make_node("Identity", [name], [f"{name}.value"], name=f"cut/{name}") for name in read]
    nodes = [*copies, *result.graph.node]
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    return result


def _levels(graph: GraphProto) -> list[int]:
    level_of: dict[str, int] = {}
    levels = []
    for node in graph.node:
        level = max((level_of.get(name, 0) for name in node.input), default=0)
        levels.append(level)
        for name in node.output:
            level_of[name] = level + (node.domain == DOMAIN)
    return levels


def _submodel(model: ModelProto, nodes: list[NodeProto]) -> ModelProto:
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    read = _ordered(name for node in nodes for name in node.input if name)
    made = _ordered(name for node in nodes for name in node.output if name)
    inside = set(map(id, nodes))
    wanted = {name for node in graph.node if id(node) not in inside for name in node.input}
    wanted |= {value.name for value in graph.output}
    types = {value.name: value for value in (*graph.value_info, *graph.input, *graph.output)}
    part = helper.make_graph(
        nodes,
        graph.name,
        [_typed(types, name) for name in read if name not in constants and name not in made],
        [_typed(types, name) for name in made if name in wanted],
        [constants[name] for name in read if name in constants],
    )
    opsets = [opset for opset in model.opset_import if opset.domain != DOMAIN]
    return helper.make_model(part, opset_imports=opsets, ir_version=model.ir_version, producer_name=model.producer_name)


def keep_operator_types(graph: GraphProto) -> None:
    """Drops the types of inner values, which shape inference finds again, but for what our operators give.

    Of those the sizes that are symbols of the exporter go: their names depend on the process.
    """
    ours = {name for node in graph.node if node.domain == DOMAIN for name in node.output}
    kept = [value for value in graph.value_info if value.name in ours]
    for value in kept:
        for dim in value.type.tensor_type.shape.dim:
            dim.ClearField("dim_param")
    graph.ClearField("value_info")
    graph.value_info.extend(kept)


def _ordered(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _typed(types: dict[str, ValueInfoProto], name: str) -> ValueInfoProto:
    if name not in types:
        raise ExportFailed(f"The type of value '{name}', where the graph is cut, is not known.")
    return types[name]


def _operator_step(node: NodeProto) -> OperatorStep:
    """The call that a node of ours stands for."""
    if node.op_type not in OPERATORS:
        raise ExportFailed(f"There is no operator {node.op_type}.", note=f"Known: {', '.join(OPERATORS)}.")
    given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    types = {attribute.name: attribute.type for attribute in OPERATORS[node.op_type].attributes}
    if set(given) != {*types, *PLUGIN_ATTRIBUTES}:
        raise ExportFailed(
            f"Node '{node.name}' does not write out every attribute of {node.op_type}.",
            note=f"It has {sorted(given)}, expected {sorted({*types, *PLUGIN_ATTRIBUTES})}.",
        )
    attributes = {name: _python_value(given[name], types[name]) for name in types}
    return OperatorStep(node.op_type, tuple(node.input), tuple(node.output), attributes)


def _python_value(value: Any, kind: type) -> Any:
    if kind is str:
        return value.decode()
    # ONNX has no booleans, and holds 0.3 as the float32 that prints so.
    return float(str(np.float32(value))) if kind is float else kind(value)


def write_graph(model: ModelProto, folder: Path, stem: str) -> Graph:
    """Writes `stem.onnx`; for a graph with operators of ours also its parts, and `stem.weights`, which all share."""
    whole = folder / f"{stem}.onnx"
    if all(node.domain != DOMAIN for node in model.graph.node):
        step = SessionStep(whole, *_names(model))
        _write(model, whole)
        return Graph(whole, (step,))
    shared = _write_weights(model, folder / f"{stem}.weights")
    steps: list[SessionStep | OperatorStep] = []
    for index, part in enumerate(cut(model)):
        if part.node is not None:
            steps.append(_operator_step(part.node))
        elif part.model is not None:
            path = folder / f"{stem}.{index}.onnx"
            steps.append(SessionStep(path, *_names(part.model)))
            _write(_with_external(part.model, shared), path)
    _write(_with_external(model, shared), whole)
    return Graph(whole, tuple(steps))


def _names(model: ModelProto) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return tuple(value.name for value in model.graph.input), tuple(value.name for value in model.graph.output)


def _write(model: ModelProto, path: Path) -> None:
    path.write_bytes(model.SerializeToString(deterministic=True))


def _write_weights(model: ModelProto, path: Path) -> dict[str, TensorProto]:
    """Writes the large initialisers to one file; returns what stands for them in a graph beside it."""
    large = [tensor for tensor in model.graph.initializer if tensor.ByteSize() >= _SHARED_BYTES]
    shared: dict[str, TensorProto] = {}
    if large:
        with path.open("wb") as file:
            for tensor in large:
                data = _little_endian(tensor)
                file.write(bytes(-file.tell() % _ALIGNMENT))
                shared[tensor.name] = _external(tensor, path.name, file.tell(), len(data))
                file.write(data)
    return shared


def _little_endian(tensor: TensorProto) -> bytes:
    array = np.ascontiguousarray(numpy_helper.to_array(tensor))
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def _external(tensor: TensorProto, location: str, offset: int, length: int) -> TensorProto:
    external = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    external.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        external.external_data.add(key=key, value=str(value))
    return external


def _with_external(model: ModelProto, shared: dict[str, TensorProto]) -> ModelProto:
    result = ModelProto()
    result.CopyFrom(model)
    tensors = [shared.get(tensor.name, tensor) for tensor in model.graph.initializer]
    del result.graph.initializer[:]
    result.graph.initializer.extend(tensors)
    return result
