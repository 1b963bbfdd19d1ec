"""The schemas, and that twins, native faces, ctypes structs and the C header all agree with them."""

from __future__ import annotations

import ctypes
import inspect
import re
from pathlib import Path

import pytest

from edge4d.kernels import _library, cpu, reference
from edge4d.kernels.ops import ALPHA, DEPTH, IMAGE, OPERATORS, Operator

STRUCTS = {
    "GaussianRasterize": _library.GaussianRasterizeCall,
    "KnnInterpolate": _library.KnnInterpolateCall,
    "FarthestPointSample": _library.FarthestPointSampleCall,
    "VoxelNeighbours": _library.VoxelNeighboursCall,
    "SubmanifoldConvolution": _library.SubmanifoldConvolutionCall,
    "GatherMean": _library.GatherMeanCall,
    "WindowAttention": _library.WindowAttentionCall,
}
HEADER = (Path(__file__).parents[2] / "kernels" / "include" / "edge4d.h").read_text()
C_TYPES = {"uint64_t": ctypes.c_uint64, "int32_t": ctypes.c_int32, "float": ctypes.c_float}

every_operator = pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS.keys())


def header_fields(struct: str) -> list[tuple[str, type]]:
    """Names and ctypes of a struct's members, as the header declares them."""
    body = re.search(rf"typedef struct {struct} {{(.*?)}} {struct};", HEADER, re.DOTALL)
    declarations = re.sub(r"/\*.*?\*/", "", body[1], flags=re.DOTALL).split(";")
    fields = []
    for declaration in filter(str.strip, declarations):
        kind, names = re.fullmatch(r"(?:const )?(\w+)\s+(.*)", declaration.strip(), re.DOTALL).groups()
        for name in names.split(","):
            pointer = "*" in name
            fields.append((name.strip(" *\n"), ctypes.c_void_p if pointer else C_TYPES[kind]))
    return fields


@every_operator
@pytest.mark.parametrize("module", [reference, cpu])
def test_functions_follow_the_schema(operator: Operator, module) -> None:
    parameters = dict(inspect.signature(getattr(module, operator.function)).parameters)
    parameters.pop("threads", None)  # how the CPU computes, not what
    names = [tensor.name for tensor in operator.inputs]
    assert list(parameters)[: len(names)] == names
    attributes = {name: parameters[name] for name in list(parameters)[len(names) :]}
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in attributes.values())
    defaults = {attribute.name: attribute.default for attribute in operator.attributes}
    empty = inspect.Parameter.empty
    assert {name: None if p.default is empty else p.default for name, p in attributes.items()} == defaults
    assert list(attributes) == list(defaults)


@every_operator
def test_the_struct_is_that_of_the_header(operator: Operator) -> None:
    struct = "edge4d_" + operator.function
    assert list(STRUCTS[operator.name]._fields_) == header_fields(struct)


@every_operator
def test_the_struct_holds_every_input_and_attribute(operator: Operator) -> None:
    fields = {name for name, _ in STRUCTS[operator.name]._fields_}
    assert {tensor.name for tensor in operator.inputs} <= fields
    assert {attribute.name for attribute in operator.attributes} <= fields
    kinds = {int: ctypes.c_int32, float: ctypes.c_float, str: ctypes.c_int32}  # a text becomes a code
    types = dict(STRUCTS[operator.name]._fields_)
    assert {a.name: types[a.name] for a in operator.attributes} == {a.name: kinds[a.type] for a in operator.attributes}


def test_codes_are_those_of_the_header() -> None:
    def value(name: str) -> int:
        return int(re.search(rf"{name} = (\d+)", HEADER)[1])

    assert [value("EDGE4D_IMAGE"), value("EDGE4D_ALPHA"), value("EDGE4D_DEPTH")] == [IMAGE, ALPHA, DEPTH]
    assert {name: value(f"EDGE4D_{name.upper()}") for name in _library.DTYPES} == _library.DTYPES
    names = ("OK", "INVALID", "OUT_OF_MEMORY", "TOO_MANY_PAIRS")
    assert [value(f"EDGE4D_{name}") for name in names] == [getattr(_library, name) for name in names]
    assert int(re.search(r"EDGE4D_ABI_VERSION (\d+)", HEADER)[1]) == _library.ABI_VERSION


@every_operator
def test_defaults_have_their_attributes_type(operator: Operator) -> None:
    for attribute in operator.attributes:
        assert attribute.default is None or type(attribute.default) is attribute.type, attribute.name


@every_operator
def test_dimensions_are_sizes_numbers_or_attributes(operator: Operator) -> None:
    attributes = {attribute.name for attribute in operator.attributes}
    sizes = {dim for tensor in operator.inputs for dim in tensor.dims}
    for tensor in operator.outputs:
        assert all(dim in sizes | attributes or isinstance(dim, int) for dim in tensor.dims), tensor.name
