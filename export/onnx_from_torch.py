"""PyTorch → ONNX: one stage of a model becomes one graph that computes the same, at every size it allows."""

from __future__ import annotations

import ast
import inspect
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto, helper, numpy_helper
from torch import Tensor

from edge4d.export import custom_ops
from edge4d.export.cut import keep_operator_types, write_graphs
from edge4d.export.graphs import check_graph
from edge4d.export.stage import ExportStage
from edge4d.runtime.backends.onnxruntime import OnnxRuntimeBackend
from edge4d.runtime.bundle import Stage, TensorSpec, factors
from edge4d.runtime.errors import ExportFailed
from edge4d.runtime.onnx_files import IR_VERSION, OPSET

TOLERANCE = 1e-4
"""Largest difference from torch, relative to the largest value of a tensor. Both sides compute in float32 and add the
same products in another order: a sum of n terms then differs by about sqrt(n)·eps, 6e-6 for a 3x3 convolution of 256
channels, and a deep network adds up some ten of these."""

INTEGER_TOLERANCE = 1e-3
"""Largest share of whole numbers that may differ: an argmax flips where its two best values are equal to rounding."""

_EXPORTER_OPSET = 18  # the oldest that torch's exporter writes; `_to_opset_17` does the rest


def onnx_from_torch(stage: ExportStage) -> ModelProto:
    """One ONNX graph (opset 17, IR version 8) that computes the stage, with edge4d's operators as nodes.

    Nodes are named `module.path/Operator_number`, which is where `ExportStage.fp32_scopes` is matched later. Nothing
    of this machine stays in the file: no paths, no stack traces. ONNX Runtime and edge4d's CPU operators must compute
    what torch computes, within `TOLERANCE`, at the smallest sizes and at the best ones.

    Raises:
        ExportFailed: torch cannot trace or translate the module, it holds an operator that opset 17 lacks, or the
            graph computes something else.
    """
    if stage.module.training:
        raise ExportFailed(f"The module of stage '{stage.name}' is in training mode.", hint="Call eval() on it first.")
    try:
        with _quiet(), torch.no_grad():
            program = torch.export.export(
                stage.module, _example(stage, trace_sizes(stage)), dynamic_shapes=_dims(stage)
            )
            exported = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=_EXPORTER_OPSET,
                input_names=[tensor.name for tensor in stage.inputs],
                output_names=[tensor.name for tensor in stage.outputs],
                custom_translation_table=custom_ops.translations(),
                verbose=False,
            )
    except Exception as error:  # torch raises many kinds, some of them private
        raise ExportFailed(
            f"torch cannot export stage '{stage.name}'.",
            note=str(error).strip()[:2000],
            hint="Dynamic axes may not meet a fixed size; operators need an ONNX translation of opset 17.",
        ) from error
    assert exported is not None
    model: ModelProto = exported.model_proto
    _name_nodes(model.graph)
    _strip(model)
    _to_opset_17(model)
    _slice_shapes(model.graph)
    _describe(model.graph, stage)
    _check(model, stage)
    for sizes in check_sizes(stage):
        _check_against_torch(stage, model, sizes)
    return model


def trace_sizes(stage: ExportStage) -> dict[str, int]:
    """Small sizes to trace with: all different, and none of 0 or 1 steps, which torch would take for constants."""
    sizes = {}
    for index, axis in enumerate(stage.axes):
        size = max((index + 2) * axis.multiple_of, axis.min + index * axis.multiple_of)
        sizes[axis.name] = size if size <= axis.max else axis.max
    return sizes


def check_sizes(stage: ExportStage) -> list[dict[str, int]]:
    """The sizes to compare at: the smallest and the best; with fixed axes only, the one there is."""
    smallest = {axis.name: axis.min for axis in stage.axes}
    best = {axis.name: axis.opt for axis in stage.axes}
    return [smallest] if smallest == best else [smallest, best]


def example_arrays(stage: ExportStage, sizes: Mapping[str, int]) -> dict[str, NDArray[Any]]:
    """The stage's example as named arrays."""
    return {spec.name: value.numpy() for spec, value in zip(stage.inputs, _example(stage, sizes), strict=True)}


def _example(stage: ExportStage, sizes: Mapping[str, int]) -> tuple[Tensor, ...]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # whatever the example draws, it draws the same each time
        example = stage.example(sizes)
    for tensor, value in zip(stage.inputs, example, strict=True):
        shape = tensor.shape_at(sizes)
        if tuple(value.shape) != shape or str(value.dtype) != f"torch.{tensor.dtype}":
            raise ExportFailed(
                f"The example of input '{tensor.name}' of stage '{stage.name}' is not what the stage says.",
                note=f"It is {value.dtype} {list(value.shape)}; the stage says {tensor.dtype} {list(shape)}.",
            )
    return example


def _dims(stage: ExportStage) -> tuple[Any, ...]:
    """Per input, torch's symbol of each dynamic dimension: `multiple_of` steps of a symbol of its own per axis.

    Inputs that the module takes as `*inputs` are one tuple to torch.
    """
    symbols = {
        axis.name: torch.export.Dim(axis.name, min=axis.min // axis.multiple_of, max=axis.max // axis.multiple_of)
        for axis in stage.axes
        if axis.min < axis.max
    }
    steps = {axis.name: axis.multiple_of for axis in stage.axes}
    dims: tuple[Any, ...] = tuple(
        {index: dim for index, dim in enumerate(_dim(d, symbols, steps) for d in tensor.shape) if dim is not None}
        for tensor in stage.inputs
    )
    parameters = list(inspect.signature(stage.module.forward).parameters.values())
    if parameters and parameters[-1].kind is inspect.Parameter.VAR_POSITIONAL:
        named = len(parameters) - 1
        dims = (*dims[:named], dims[named:])
    return dims


def _dim(dim: int | str, symbols: Mapping[str, Any], steps: Mapping[str, int]) -> Any:
    if isinstance(dim, int):
        return None
    number, names, divisor = factors(dim)
    if not any(name in symbols for name in names):
        return None
    if len(names) > 1:
        return torch.export.Dim.AUTO  # torch cannot write a product of symbols; it finds the relation itself
    factor = number * steps[names[0]] // divisor
    return symbols[names[0]] if factor == 1 else factor * symbols[names[0]]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences what torch says about itself during an export and what a user can do nothing about."""
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")  # "torchvision is not installed"
    level = registration.level
    registration.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # torch copies its own tree specifications through a constructor that it has deprecated.
            warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)`", category=FutureWarning)
            yield
    finally:
        registration.setLevel(level)


# ---- after torch: names, nothing of this machine, opset 17 ----------------------------------------------------------


def _name_nodes(graph: GraphProto) -> None:
    for index, node in enumerate(graph.node):
        metadata = {entry.key: entry.value for entry in node.metadata_props}
        # From the whole module down to torch's own node: "['', 'decoder', 'decoder.conv', 'conv2d_3']".
        scopes = ast.literal_eval(metadata.get("pkg.torch.onnx.name_scopes", "['']"))
        node.name = f"{scopes[max(len(scopes) - 2, 0)]}/{node.op_type}_{index}"


def _strip(model: ModelProto) -> None:
    """Leaves what is computed and its names: no metadata, no symbols of torch's, attributes in one order."""
    for message in (model, model.graph, *_parts(model.graph)):
        message.ClearField("metadata_props")
        message.ClearField("doc_string")
    model.ClearField("producer_version")
    model.producer_name = "edge4d"
    model.graph.name = "graph"
    keep_operator_types(model.graph)
    for node in model.graph.node:
        attributes = sorted(node.attribute, key=lambda attribute: attribute.name)
        del node.attribute[:]
        node.attribute.extend(attributes)


def _parts(graph: GraphProto) -> Iterator[Any]:
    yield from (*graph.node, *graph.initializer, *graph.input, *graph.output)


def _to_opset_17(model: ModelProto) -> None:
    """Opset 18 → 17, for what torch writes. onnx's own converter stops at axes that are initialisers."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.domain == "" and onnx.defs.get_schema(node.op_type, _EXPORTER_OPSET).since_version > OPSET:
            _REWRITES.get(node.op_type, _no_rewrite)(node, constants)
    for opset in model.opset_import:
        opset.version = OPSET if opset.domain == "" else opset.version
    _drop_unused(model.graph)
    model.ir_version = IR_VERSION


def _no_rewrite(node: NodeProto, constants: Mapping[str, Any]) -> None:
    raise ExportFailed(
        f"Operator {node.op_type} of node '{node.name}' does not exist in opset {OPSET} in this form.",
        hint="Write that line of the model with operators that opset 17 has.",
    )


def _axes_to_attribute(node: NodeProto, constants: Mapping[str, Any]) -> None:
    """Reductions: `axes` was an attribute until 17."""
    if _pop_attribute(node, "noop_with_empty_axes", 0) != 0 and len(node.input) < 2:
        _no_rewrite(node, constants)
    if len(node.input) > 1 and node.input[1]:
        if node.input[1] not in constants:
            _no_rewrite(node, constants)
        node.attribute.append(helper.make_attribute("axes", numpy_helper.to_array(constants[node.input[1]]).tolist()))
    del node.input[1:]


def _drop_num_outputs(node: NodeProto, constants: Mapping[str, Any]) -> None:
    """Split: without sizes, 17 always makes equal parts, as many as there are outputs."""
    _pop_attribute(node, "num_outputs", len(node.output))


def _pad_all_axes(node: NodeProto, constants: Mapping[str, Any]) -> None:
    if len(node.input) > 3 and node.input[3]:
        _no_rewrite(node, constants)
    del node.input[3:]


def _resize_all_axes(node: NodeProto, constants: Mapping[str, Any]) -> None:
    new = (("antialias", 0), ("keep_aspect_ratio_policy", b"stretch"), ("axes", None))
    if any(_pop_attribute(node, name, default) != default for name, default in new):
        _no_rewrite(node, constants)


def _scatter_add_or_mul(node: NodeProto, constants: Mapping[str, Any]) -> None:
    if any(attribute.name == "reduction" and attribute.s in (b"min", b"max") for attribute in node.attribute):
        _no_rewrite(node, constants)


_REWRITES: dict[str, Callable[[NodeProto, Mapping[str, Any]], None]] = {
    **dict.fromkeys(
        ("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin"),
        _axes_to_attribute,
    ),
    **dict.fromkeys(("ReduceProd", "ReduceSumSquare"), _axes_to_attribute),
    **dict.fromkeys(("ScatterElements", "ScatterND"), _scatter_add_or_mul),
    "Split": _drop_num_outputs,
    "Pad": _pad_all_axes,
    "Resize": _resize_all_axes,
}


def _pop_attribute(node: NodeProto, name: str, default: Any) -> Any:
    """Removes an attribute; its value, or `default` where the node has none."""
    for attribute in node.attribute:
        if attribute.name == name:
            value = helper.get_attribute_value(attribute)
            node.attribute.remove(attribute)
            return value
    return default


def _slice_shapes(graph: GraphProto) -> None:
    """Shape without `start` and `end`, which TensorRT 8.6 reads over, and a Slice behind it."""
    for index, node in reversed(list(enumerate(graph.node))):
        if node.op_type != "Shape" or not node.attribute:
            continue
        start, end = _pop_attribute(node, "start", 0), _pop_attribute(node, "end", np.iinfo(np.int64).max)
        part, whole = node.output[0], f"{node.output[0]}_whole"
        node.output[0] = whole
        bounds = {f"{part}_start": [start], f"{part}_end": [end], f"{part}_axes": [0]}
        for name, value in bounds.items():
            graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), name))
        graph.node.insert(index + 1, helper.make_node("Slice", [whole, *bounds], [part], name=f"{node.name}_part"))


def _describe(graph: GraphProto, stage: ExportStage) -> None:
    """Inputs and outputs as the stage says: the tensors' axes instead of torch's symbols."""
    for kind, values, tensors in (("inputs", graph.input, stage.inputs), ("outputs", graph.output, stage.outputs)):
        found = [(value.name, _dtype(value), len(value.type.tensor_type.shape.dim)) for value in values]
        expected = [(tensor.name, tensor.dtype, len(tensor.shape)) for tensor in tensors]
        if found != expected:
            raise ExportFailed(
                f"The module of stage '{stage.name}' does not have the {kind} that the stage says.",
                note=f"Name, dtype, dimensions are {found}; the stage says {expected}.",
            )
        del values[:]
        values.extend(
            helper.make_tensor_value_info(
                tensor.name, helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype)), tensor.shape
            )
            for tensor in tensors
        )


def _dtype(value: ValueInfoProto) -> str:
    return str(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))


def _drop_unused(graph: GraphProto) -> None:
    used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _check(model: ModelProto, stage: ExportStage) -> None:
    if model.functions:
        raise ExportFailed(f"The graph of stage '{stage.name}' has local functions, which TensorRT 8.6 cannot read.")
    try:
        check_graph(model)
    except Exception as error:  # checker and shape inference raise kinds of their own
        raise ExportFailed(f"The graph of stage '{stage.name}' is not valid ONNX.", note=str(error)[:2000]) from error


# ---- does it compute the same? --------------------------------------------------------------------------------------


def _check_against_torch(stage: ExportStage, model: ModelProto, sizes: Mapping[str, int]) -> None:
    with torch.no_grad():
        expected = stage.module(*_example(stage, sizes))
    expected = expected if isinstance(expected, tuple) else (expected,)
    found = run_onnx(stage, model, example_arrays(stage, sizes))
    for tensor, value in zip(stage.outputs, expected, strict=True):
        _check_same(stage, tensor, found[tensor.name], value.numpy(), sizes)


def run_onnx(stage: ExportStage, model: ModelProto, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Runs a graph of a stage as a bundle would: cut at edge4d's operators, through the ONNX Runtime backend."""
    with tempfile.TemporaryDirectory() as folder:
        graphs = write_graphs({"fp32": model}, Path(folder), stage.name)
        axes = {axis.name: axis for axis in stage.axes}
        runnable = Stage(stage.name, axes, stage.inputs, stage.outputs, graphs)
        with OnnxRuntimeBackend().stage_engine(runnable, "fp32") as engine:
            return engine.run(inputs)


def _check_same(
    stage: ExportStage, tensor: TensorSpec, found: NDArray[Any], expected: NDArray[Any], sizes: Mapping[str, int]
) -> None:
    where = f"Output '{tensor.name}' of stage '{stage.name}' at {dict(sizes)}"
    if found.shape != expected.shape or found.shape != tensor.shape_at(sizes):
        raise ExportFailed(
            f"{where} has different shapes.",
            note=f"ONNX {found.shape}, torch {expected.shape}, the stage says {tensor.shape_at(sizes)}.",
        )
    if found.dtype.kind != "f":
        differing = float(np.mean(found != expected))
        if differing > INTEGER_TOLERANCE:
            raise ExportFailed(f"{where} differs from torch.", note=f"{differing:.2%} of its whole numbers differ.")
        return
    scale = float(np.abs(expected).max(initial=0.0))
    error = float(np.abs(found.astype(np.float64) - expected).max(initial=0.0))
    if not (np.isfinite(scale) and error <= TOLERANCE * scale):
        raise ExportFailed(
            f"{where} differs from torch.",
            note=f"Largest difference {error:.3g}, largest value {scale:.3g}, allowed {TOLERANCE * scale:.3g}.",
            hint="A size that became a constant, or arithmetic that loses digits (large minus large), does this.",
        )
