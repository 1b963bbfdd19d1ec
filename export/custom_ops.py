"""edge4d's operators in PyTorch: `torch.ops.edge4d.*`, and their translation to ONNX nodes.

Everything follows the schemas of `edge4d.kernels.ops`. The operators run on the CPU and have no gradient: they are here
to be exported, and to say what an exported graph computes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import torch
from onnxscript.values import Opset
from torch import Tensor

from edge4d.kernels import reference
from edge4d.kernels.ops import DOMAIN, OPERATORS, PLUGIN_ATTRIBUTES, VERSION, Operator
from edge4d.kernels.ops import Tensor as OperatorTensor
from edge4d.runtime.errors import ExportFailed, LibraryNotFound

_FLOATS = "T"  # of a schema: what may be float32 or float16
_ONNX_TYPES: dict[type, onnx.defs.OpSchema.AttrType] = {
    int: onnx.defs.OpSchema.AttrType.INT,
    float: onnx.defs.OpSchema.AttrType.FLOAT,
    str: onnx.defs.OpSchema.AttrType.STRING,
}


def _torch_schema(operator: Operator) -> str:
    inputs = [f"Tensor {tensor.name}" for tensor in operator.inputs]
    attributes = [
        f"{a.type.__name__} {a.name}" + ("" if a.default is None else f"={a.default!r}") for a in operator.attributes
    ]
    outputs = ", ".join("Tensor" for _ in operator.outputs)
    keyword = ["*", *attributes] if attributes else []
    return f"({', '.join([*inputs, *keyword])}) -> ({outputs})"


@cache
def _kernels() -> ModuleType:
    """The native operators, or where the library is missing their slow twins."""
    from edge4d.kernels import cpu
    from edge4d.kernels._library import load

    try:
        load()
    except LibraryNotFound:
        return reference
    return cpu


def _attributes(operator: Operator, given: dict[str, Any]) -> dict[str, Any]:
    """Every attribute with its value; torch leaves out those that have their default."""
    return {attribute.name: given.get(attribute.name, attribute.default) for attribute in operator.attributes}


def _implementation(operator: Operator) -> Callable[..., Any]:
    def run(*inputs: Tensor, **given: Any) -> Any:
        arrays = [tensor.detach().contiguous().numpy() for tensor in inputs]
        results = getattr(_kernels(), operator.function)(*arrays, **_attributes(operator, given))
        if len(operator.outputs) == 1:
            return torch.from_numpy(np.ascontiguousarray(results))
        return tuple(torch.from_numpy(np.ascontiguousarray(result)) for result in results)

    return run


def _fake(operator: Operator) -> Callable[..., Any]:
    """Shapes and dtypes without values, for tracing."""

    def results(*inputs: Tensor, **given: Any) -> Any:
        attributes = _attributes(operator, given)
        sizes: dict[Any, Any] = dict(attributes)
        for tensor, value in zip(operator.inputs, inputs, strict=True):
            # A letter's last tensor decides: SH colours have other dimensions than the schema's RGB, `background` not.
            sizes.update(
                {dim: size for dim, size in zip(tensor.dims, value.shape, strict=False) if dim not in attributes}
            )
        floats = (x.dtype for tensor, x in zip(operator.inputs, inputs, strict=True) if tensor.dtype == "float")
        dtypes = {"float": next(floats, None)}  # what may be float32 or float16 is like the inputs that may be
        made = [
            inputs[0].new_empty([sizes.get(dim, dim) for dim in dims], dtype=dtypes.get(dtype) or getattr(torch, dtype))
            for dims, dtype in _results(operator, attributes)
        ]
        return tuple(made) if len(made) > 1 else made[0]

    return results


def _results(operator: Operator, attributes: dict[str, Any]) -> list[tuple[tuple[Any, ...], str]]:
    """Dimensions and dtype of each output; those that `outputs` leaves out have size 0."""
    results: list[tuple[tuple[Any, ...], str]] = []
    for index, tensor in enumerate(operator.outputs):
        dims, dtype = tensor.dims, tensor.dtype
        if dtype == "out_dtype":
            dims = dims if attributes["outputs"] >> index & 1 else (0,)
            dtype = attributes["out_dtype"]
            dtype = "float32" if dtype == "uint8" and tensor.name != "image" else dtype
        results.append((dims, dtype))
    return results


# ---- ONNX -----------------------------------------------------------------------------------------------------------


def _onnx_schema(operator: Operator) -> onnx.defs.OpSchema:
    """The schema that torch's exporter wants to know before it writes a node of a domain that onnx does not have."""
    parameter, attribute = onnx.defs.OpSchema.FormalParameter, onnx.defs.OpSchema.Attribute
    return onnx.defs.OpSchema(
        operator.name,
        DOMAIN,
        VERSION,
        inputs=[parameter(t.name, _onnx_type(t)) for t in operator.inputs],
        outputs=[parameter(t.name, _onnx_type(t)) for t in operator.outputs],
        attributes=[
            *(attribute(a.name, _ONNX_TYPES[a.type]) for a in operator.attributes),
            *(attribute(name, onnx.defs.OpSchema.AttrType.STRING) for name in PLUGIN_ATTRIBUTES),
        ],
        type_constraints=[(_FLOATS, ["tensor(float)", "tensor(float16)"], "float32 or float16, one of them in a node")],
    )


def _onnx_type(tensor: OperatorTensor) -> str:
    return {"float": _FLOATS, "int32": "tensor(int32)"}.get(tensor.dtype, "tensor(float)")


def _translation(operator: Operator) -> Callable[..., Any]:
    def translate(*inputs: Any, **given: Any) -> Any:
        written = _attributes(operator, given)  # all of them, so that the node's meaning depends on no default
        if written.get("out_dtype", "float32") != "float32":
            raise ExportFailed(
                f"{operator.name} inside a network cannot give {written['out_dtype']}.",
                hint="Render to float32 there, and cast the image.",
            )
        return getattr(Opset(DOMAIN, VERSION), operator.name)(*inputs, **written, **PLUGIN_ATTRIBUTES)

    # The exporter reads names, kinds and defaults off the signature.
    keyword, positional = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    translate.__name__ = operator.function
    translate.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            *(inspect.Parameter(tensor.name, positional, annotation=Tensor) for tensor in operator.inputs),
            *(
                inspect.Parameter(a.name, keyword, annotation=a.type, default=a.default)
                if a.default is not None
                else inspect.Parameter(a.name, keyword, annotation=a.type)
                for a in operator.attributes
            ),
        ]
    )
    return translate


@cache
def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """`custom_translation_table` for `torch.onnx.export`; registers the operators' ONNX schemas."""
    for operator in OPERATORS.values():
        onnx.defs.register_schema(_onnx_schema(operator))
    return {
        getattr(torch.ops.edge4d, operator.function).default: _translation(operator) for operator in OPERATORS.values()
    }


def _register(operator: Operator) -> None:
    defined = torch.library.custom_op(
        f"{DOMAIN}::{operator.function}",
        _implementation(operator),
        mutates_args=(),
        device_types="cpu",
        schema=_torch_schema(operator),
    )
    defined.register_fake(_fake(operator))


for _operator in OPERATORS.values():
    _register(_operator)
