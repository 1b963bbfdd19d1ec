"""Cuts ONNX graphs at edge4d's operators, and writes all files of a stage with one copy of the weights."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from edge4d.export.graphs import inner_types, is_large, like
from edge4d.kernels.ops import DOMAIN, OPERATORS, PLUGIN_ATTRIBUTES
from edge4d.runtime.bundle import Graph, OperatorStep, SessionStep, Step
from edge4d.runtime.errors import ExportFailed

_ALIGNMENT = 64
_FILE_BYTES = 1 << 30  # of weights that may stay in a graph's own file; protobuf ends at 2 GiB


class Part(NamedTuple):
    """A piece of a cut graph: a model without operators of ours, or one node that is one."""

    model: ModelProto | None
    node: NodeProto | None


def cut(model: ModelProto) -> list[Part]:
    """The graph in the order to run it: what needs no operator of ours, then the operators it feeds, and so on.

    A node's level is the largest number of our operators on any path to it. All other nodes of a level are one part. A
    weight that a Cast makes from an initialiser is made again in every part that reads it: passed on, it would be a
    value like any other, which a session cannot fold.

    Raises:
        ExportFailed: a node of our domain is not an operator that edge4d has.
    """
    model = _with_constants_as_values(model)
    types = {value.name: value for value in (*inner_types(model), *model.graph.input, *model.graph.output)}
    levels = _levels(model.graph)
    casts = _weight_casts(model.graph)
    parts: list[Part] = []
    for level in range(max(levels, default=0) + 1):
        nodes = [node for node, at in zip(model.graph.node, levels, strict=True) if at == level]
        plain = [node for node in nodes if node.domain != DOMAIN and node.output[0] not in casts]
        if plain:
            read = _ordered(name for node in plain for name in node.input if name in casts)
            parts.append(Part(_submodel(model, types, [*(casts[name] for name in read), *plain]), None))
        parts.extend(Part(None, node) for node in nodes if node.domain == DOMAIN)
    return parts


def _with_constants_as_values(model: ModelProto) -> ModelProto:
    """A copy in which our operators read no initialiser: a session makes every value that they are called with."""
    casts = _weight_casts(model.graph)
    constants = {tensor.name for tensor in model.graph.initializer} | set(casts)
    nodes = [node for node in model.graph.node if node.output[0] not in casts]
    read = _ordered(name for node in nodes if node.domain == DOMAIN for name in node.input if name in constants)
    copies = [helper.make_node("Identity", [name], [f"{name}.value"], name=f"cut/{name}") for name in read]
    result = like(model, node=[*casts.values(), *copies, *nodes])
    for node in result.graph.node:
        if node.domain == DOMAIN:
            node.input[:] = [f"{name}.value" if name in constants else name for name in node.input]
    return result


def _weight_casts(graph: GraphProto) -> dict[str, NodeProto]:
    """The weights that are casts of an initialiser, and their nodes."""
    constants = {tensor.name for tensor in graph.initializer}
    outputs = {value.name for value in graph.output}
    casts = {node.output[0]: node for node in graph.node if node.op_type == "Cast" and node.input[0] in constants}
    return {name: node for name, node in casts.items() if name not in outputs}


def _levels(graph: GraphProto) -> list[int]:
    level_of: dict[str, int] = {}
    levels = []
    for node in graph.node:
        level = max((level_of.get(name, 0) for name in node.input), default=0)
        levels.append(level)
        for name in node.output:
            level_of[name] = level + (node.domain == DOMAIN)
    return levels


def _submodel(model: ModelProto, types: Mapping[str, ValueInfoProto], nodes: list[NodeProto]) -> ModelProto:
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    read = _ordered(name for node in nodes for name in node.input if name)
    made = _ordered(name for node in nodes for name in node.output if name)
    inside = set(map(id, nodes))
    wanted = {name for node in graph.node if id(node) not in inside for name in node.input} - set(_weight_casts(graph))
    wanted |= {value.name for value in graph.output}
    part = like(
        model,
        node=nodes,
        input=[_typed(types, name) for name in read if name not in constants and name not in made],
        output=[_typed(types, name) for name in made if name in wanted],
        initializer=[constants[name] for name in read if name in constants],
        value_info=[],
    )
    opsets = [opset for opset in model.opset_import if opset.domain != DOMAIN]
    part.ClearField("opset_import")
    part.opset_import.extend(opsets)
    return part


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


def _typed(types: Mapping[str, ValueInfoProto], name: str) -> ValueInfoProto:
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


# ---- files -----------------------------------------------------------------------------------------------------------


def write_graphs(variants: Mapping[str, ModelProto], folder: Path, stage: str) -> dict[str, Graph]:
    """Writes `STAGE.VARIANT.onnx` per variant, and for one with operators of ours also its parts.

    Large float tensors that several of the files hold go to `STAGE.weights`, once, as ONNX external data; all others
    stay inside, unless the file would be too large for protobuf.
    """
    models: dict[Path, ModelProto] = {}
    graphs = {}
    for variant, model in variants.items():
        stem = f"{stage}.{variant}"
        models[folder / f"{stem}.onnx"] = model
        steps = tuple(_steps(model, folder, stem, models))
        graphs[variant] = Graph(folder / f"{stem}.onnx", steps)
    shared = _write_weights(models.values(), folder / f"{stage}.weights")
    for path, model in models.items():
        path.write_bytes(_with_external(model, shared).SerializeToString(deterministic=True))
    return graphs


def _steps(model: ModelProto, folder: Path, stem: str, models: dict[Path, ModelProto]) -> Iterator[Step]:
    """The steps of a graph; adds the files that only steps have to `models`."""
    if all(node.domain != DOMAIN for node in model.graph.node):
        yield SessionStep(folder / f"{stem}.onnx", *_names(model))
        return
    for index, part in enumerate(cut(model)):
        if part.node is not None:
            yield _operator_step(part.node)
        elif part.model is not None:
            path = folder / f"{stem}.{index}.onnx"
            models[path] = part.model
            yield SessionStep(path, *_names(part.model))


def _names(model: ModelProto) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return tuple(value.name for value in model.graph.input), tuple(value.name for value in model.graph.output)


def _write_weights(models: Iterable[ModelProto], path: Path) -> dict[bytes, TensorProto]:
    """Writes the tensors to share; returns, by `_identity`, what stands for each in a graph beside the file."""
    count: Counter[bytes] = Counter()
    tensors: dict[bytes, TensorProto] = {}
    for model in models:
        large = [tensor for tensor in model.graph.initializer if is_large(tensor)]
        identities = [_identity(tensor) for tensor in large]
        crowded = sum(tensor.ByteSize() for tensor in large) > _FILE_BYTES
        count.update([*identities, *identities] if crowded else identities)
        tensors.update(zip(identities, large, strict=True))
    tensors = {key: tensor for key, tensor in tensors.items() if count[key] > 1}
    shared: dict[bytes, TensorProto] = {}
    if tensors:
        with path.open("wb") as file:
            for key, tensor in tensors.items():
                data = _little_endian(tensor)
                file.write(bytes(-file.tell() % _ALIGNMENT))
                shared[key] = _external(tensor, path.name, file.tell(), len(data))
                file.write(data)
    return shared


def _identity(tensor: TensorProto) -> bytes:
    """Equal for tensors of the same name, type, shape and values."""
    return hashlib.sha256(tensor.SerializeToString(deterministic=True)).digest()


def _little_endian(tensor: TensorProto) -> bytes:
    array = np.ascontiguousarray(numpy_helper.to_array(tensor))
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def _external(tensor: TensorProto, location: str, offset: int, length: int) -> TensorProto:
    external = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    external.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        external.external_data.add(key=key, value=str(value))
    return external


def _with_external(model: ModelProto, shared: Mapping[bytes, TensorProto]) -> ModelProto:
    if not shared:
        return model
    tensors = model.graph.initializer
    return like(model, initializer=[shared.get(_identity(t), t) if is_large(t) else t for t in tensors])
