"""ONNX graphs whose weights are of any size: protobuf neither copies nor writes messages of more than 2 GiB at once.

What looks at a whole graph looks at one without its large weights; copies are made tensor by tensor.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import onnx
from onnx import ModelProto, TensorProto, ValueInfoProto, helper

_LARGE_BYTES = 1024


def is_large(tensor: TensorProto) -> bool:
    """Whether nobody needs a tensor's values to know the graph: shape inference reads small ones and whole numbers."""
    return tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16) and tensor.ByteSize() >= _LARGE_BYTES


def like(model: ModelProto, **parts: Iterable[Any]) -> ModelProto:
    """A copy of a model, with other nodes, initialisers, … of its graph where `parts` gives them by their field."""
    result = ModelProto()
    for field, value in model.ListFields():
        if field.name != "graph":
            _set(result, field.name, value)
    for field, value in model.graph.ListFields():
        if field.name not in parts:
            _set(result.graph, field.name, value)
    for name, values in parts.items():
        getattr(result.graph, name).extend(values)
    return result


def _set(message: Any, name: str, value: Any) -> None:
    if hasattr(value, "extend"):
        getattr(message, name).extend(value)
    elif hasattr(value, "CopyFrom"):
        getattr(message, name).CopyFrom(value)
    else:
        setattr(message, name, value)


def inner_types(model: ModelProto, *, strict: bool = False) -> list[ValueInfoProto]:
    """Types and shapes of all values that are neither inputs, nor outputs, nor initialisers.

    Raises:
        onnx.shape_inference.InferenceError: the graph contradicts itself; only with `strict`.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    inferred = onnx.shape_inference.infer_shapes(_without_large_weights(model), strict_mode=strict)
    return [value for value in inferred.graph.value_info if value.name not in weights]


def check_graph(model: ModelProto) -> None:
    """Raises an error of onnx's for a graph that is not valid."""
    onnx.checker.check_model(_without_large_weights(model), full_check=True)


def _without_large_weights(model: ModelProto) -> ModelProto:
    """With them as inputs instead, which have types and no values."""
    large = [tensor for tensor in model.graph.initializer if is_large(tensor)]
    inputs = [helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims) for tensor in large]
    small = [tensor for tensor in model.graph.initializer if not is_large(tensor)]
    return like(model, initializer=small, input=[*model.graph.input, *inputs])
