"""The TensorRT plugins against the headers of every TensorRT at hand: they follow kernels/ops.py, and what they are
called with reaches the launchers. Neither TensorRT nor a GPU is needed; the launchers launch nothing."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import tensorrt_probe
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensorrt_probe import CHW2, FIELD_TYPES, FLOAT, HALF, INT32, Probe, Refused, TensorDesc, attributes_of, same

from edge4d.kernels import _library
from edge4d.kernels.ops import ALPHA, DEPTH, DOMAIN, GAUSSIAN_RASTERIZE, IMAGE, OPERATORS, VERSION, Operator

HEADERS = tensorrt_probe.header_sets()
SIZES = {"B": 2, "N": 50, "C": 3, "V": 4, "Q": 6, "M": 70, "T": 8, "K": 9, "D": 10, "H": 11, "W": 12}
GIVEN: dict[str, dict[str, Any]] = {
    "GaussianRasterize": {"width": 40, "height": 24, "max_pairs": 1000},
    "KnnInterpolate": {},
    "FarthestPointSample": {"count": 5},
    "VoxelNeighbours": {"resolution": 64},
    "SubmanifoldConvolution": {},
    "GatherMean": {},
    "WindowAttention": {},
}
OTHERS: dict[str, dict[str, Any]] = {  # than the defaults, every one
    "GaussianRasterize": {
        "width": 33,
        "height": 17,
        "near": 0.5,
        "far": 64.0,
        "eps2d": 0.125,
        "antialiased": 1,
        "compensation_floor": 0.25,
        "alpha_max": 0.75,
        "sh_degree": 2,
        "max_pairs": 12345,
        "outputs": IMAGE | DEPTH,
        "out_dtype": "float16",
        "fast": 1,
    },
    "KnnInterpolate": {"k": 3, "beta": 2.5, "radius_mask": 0},
    "FarthestPointSample": {"count": 7},
    "VoxelNeighbours": {"resolution": 32},
    "SubmanifoldConvolution": {},
    "GatherMean": {"zeros": 1},
    "WindowAttention": {},
}
operators = pytest.mark.parametrize("operator", OPERATORS.values(), ids=list(OPERATORS))
# What a struct calls the schema's letters.
MEMBERS = {
    "GaussianRasterize": {"B": "batch", "V": "cameras", "N": "gaussians", "C": "channels", "K": "coefficients"},
    "KnnInterpolate": {"Q": "query_count", "M": "point_count", "T": "frames", "C": "channels"},
    "FarthestPointSample": {"N": "point_count"},
    "VoxelNeighbours": {"N": "voxel_count"},
    "SubmanifoldConvolution": {"N": "voxel_count", "C": "inputs", "D": "outputs"},
    "GatherMean": {"N": "row_count", "C": "channels", "M": "mean_count", "K": "most_rows"},
    "WindowAttention": {"N": "row_count", "W": "window_count", "K": "longest", "H": "heads", "D": "channels"},
}


@pytest.fixture(scope="module", params=list(HEADERS) or ["none"])
def probe(request, tmp_path_factory) -> Probe:
    if request.param not in HEADERS:
        pytest.skip("there are no TensorRT headers here; EDGE4D_TENSORRT_HEADERS says where they are")
    if shutil.which("g++") is None or tensorrt_probe.cuda_headers() is None:
        pytest.skip("there is no g++, or no nvcc, here")
    headers = HEADERS[request.param]
    path = tmp_path_factory.mktemp("plugins") / f"probe-{request.param}.so"
    return Probe(tensorrt_probe.probe_library(headers, path), tensorrt_probe.major_version(headers))


def inputs_of(operator: Operator, attributes: dict[str, Any], stored: int = FLOAT) -> list[TensorDesc]:
    """Inputs of the schema's shapes, with SIZES."""
    descs = []
    for tensor in operator.inputs:
        dims = tensor.dims
        if tensor.name == "colors" and attributes["sh_degree"] >= 0:
            dims = ("B", "N", "K", 3)
        shape = tuple(SIZES[dim] if isinstance(dim, str) else dim for dim in dims)
        descs.append(TensorDesc(shape, {"float": stored, "float32": FLOAT, "int32": INT32}[tensor.dtype]))
    return descs


def expected_outputs(
    operator: Operator, attributes: dict[str, Any], stored: int = FLOAT
) -> list[tuple[tuple[int, ...], int]]:
    types = {"float": stored, "float32": FLOAT, "float16": HALF, "int32": INT32, "out_dtype": FLOAT}
    if "out_dtype" in attributes:
        types["out_dtype"] = types[attributes["out_dtype"]]
    result = []
    for index, tensor in enumerate(operator.outputs):
        shape = tuple({**SIZES, **attributes}[dim] if isinstance(dim, str) else dim for dim in tensor.dims)
        if tensor.dtype == "out_dtype" and not attributes["outputs"] >> index & 1:
            shape = (0,)
        result.append((shape, types[tensor.dtype]))
    return result


def launched(plugin: tensorrt_probe.Plugin, attributes: dict[str, Any], stored: int = FLOAT) -> tuple[Any, Any]:
    operator = OPERATORS[plugin.operator]
    read = [0x10000 + 16 * i for i in range(len(operator.inputs))]
    written = [0x20000 + 16 * i for i in range(len(operator.outputs))]
    return plugin.enqueue(inputs_of(operator, attributes, stored), read, written)


# ---- schemas --------------------------------------------------------------------------------------------------------


@operators
def test_fields_are_the_attributes_of_the_schema(probe, operator) -> None:
    expected = [(attribute.name, FIELD_TYPES[attribute.type]) for attribute in operator.attributes]
    assert probe.field_names(operator.name) == expected


@operators
def test_a_plugin_is_named_after_its_operator(probe, operator) -> None:
    plugin = probe.create(operator.name, GIVEN[operator.name])
    assert (plugin.name, plugin.version, plugin.namespace) == (operator.name, str(VERSION), DOMAIN)
    assert plugin.output_count() == len(operator.outputs)
    plugin.destroy()


@operators
def test_attributes_that_are_not_given_have_the_defaults_of_the_schema(probe, operator) -> None:
    given = GIVEN[operator.name]
    check_launch(probe.create(operator.name, given), attributes_of(operator, **given))


@operators
def test_every_attribute_reaches_the_launcher(probe, operator) -> None:
    others = OTHERS[operator.name]
    assert list(others) == [attribute.name for attribute in operator.attributes]
    assert all(others[attribute.name] != attribute.default for attribute in operator.attributes)
    check_launch(probe.create(operator.name, others), others)


def check_launch(plugin: tensorrt_probe.Plugin, attributes: dict[str, Any], stored: int = FLOAT) -> None:
    """The struct holds the attributes, the sizes and the addresses; destroys the plugin."""
    operator = OPERATORS[plugin.operator]
    call, launch = launched(plugin, attributes, stored)
    assert call.size == ctypes.sizeof(call)
    for name, value in attributes.items():
        assert same(getattr(call, name), _library.DTYPES[value] if isinstance(value, str) else value), name
    letters = {dim for tensor in operator.inputs for dim in tensor.dims if isinstance(dim, str)}
    letters |= {"K"} if attributes.get("sh_degree", -1) >= 0 else set()
    for letter in letters:
        assert getattr(call, MEMBERS[operator.name][letter]) == SIZES[letter], letter
    for index, tensor in enumerate(operator.inputs):
        assert getattr(call, tensor.name) == 0x10000 + 16 * index, tensor.name
    for index, tensor in enumerate(operator.outputs):
        name = "interpolated" if tensor.name == "values" else tensor.name
        assert getattr(call, name) == 0x20000 + 16 * index, tensor.name
    assert (launch.workspace, launch.stream) == (0x1000, 0x2000)
    assert launch.workspace_bytes == plugin.workspace(inputs_of(operator, attributes, stored)) > 0
    plugin.destroy()


@pytest.mark.parametrize("name", [name for name, operator in OPERATORS.items() if operator.inputs[0].dtype == "float"])
def test_the_struct_holds_the_dtype_that_tensors_are_stored_in(probe, name) -> None:
    operator = OPERATORS[name]
    for stored, dtype in ((FLOAT, "float32"), (HALF, "float16")):
        plugin = probe.create(name, GIVEN[name])
        complete = attributes_of(operator, **GIVEN[name])
        call, _ = launched(plugin, complete, stored)
        assert call.dtype == _library.DTYPES[dtype]
        assert plugin.outputs(inputs_of(operator, complete, stored)) == expected_outputs(operator, complete, stored)
        plugin.destroy()


# ---- attributes that cannot be --------------------------------------------------------------------------------------


@operators
def test_a_missing_attribute_is_named(probe, operator) -> None:
    for attribute in operator.attributes:
        if attribute.default is None:
            given = {name: value for name, value in GIVEN[operator.name].items() if name != attribute.name}
            with pytest.raises(Refused, match=f"{operator.name}: attribute {attribute.name} is missing"):
                probe.create(operator.name, given)


@pytest.mark.parametrize(
    ("operator", "attributes", "reason"),
    [
        ("GaussianRasterize", {"out_dtype": "uint8"}, "no plugins that give uint8"),
        ("GaussianRasterize", {"out_dtype": "bfloat16"}, "out_dtype is 'bfloat16'; allowed: float32, float16"),
        ("GaussianRasterize", {"max_pairs": 0}, "max_pairs must be positive"),
        ("GaussianRasterize", {"width": 0}, "width and height must be positive"),
        ("GaussianRasterize", {"sh_degree": 4}, "sh_degree must lie in -1 .. 3"),
        ("GaussianRasterize", {"outputs": 8}, "outputs is a sum of 1, 2 and 4"),
        ("GaussianRasterize", {"near": 1}, "near is an int32; expected a float32"),
        ("GaussianRasterize", {"fast": "yes"}, "fast is a string; expected an int32"),
        ("KnnInterpolate", {"k": 17}, "k must lie in 1 .. 16"),
        ("FarthestPointSample", {"count": 0}, "count must lie in 1"),
        ("VoxelNeighbours", {"resolution": 257}, "resolution must lie in 1 .. 256"),
        ("GatherMean", {"zeros": -1}, "zeros must not be negative"),
    ],
)
def test_attributes_that_cannot_work_are_refused_when_the_graph_is_parsed(probe, operator, attributes, reason) -> None:
    with pytest.raises(Refused, match=reason):
        probe.create(operator, {**GIVEN[operator], **attributes})


# ---- tensors --------------------------------------------------------------------------------------------------------


@operators
@pytest.mark.parametrize("attributes", [GIVEN, OTHERS], ids=["defaults", "others"])
def test_outputs_have_the_shapes_and_types_of_the_schema(probe, operator, attributes) -> None:
    complete = attributes_of(operator, **attributes[operator.name])
    plugin = probe.create(operator.name, attributes[operator.name])
    assert plugin.outputs(inputs_of(operator, complete)) == expected_outputs(operator, complete)
    plugin.destroy()


@pytest.mark.parametrize("outputs", [0, IMAGE, ALPHA, DEPTH, ALPHA | DEPTH])
def test_outputs_that_are_left_out_have_size_0(probe, outputs) -> None:
    given = {**GIVEN["GaussianRasterize"], "outputs": outputs}
    complete = attributes_of(GAUSSIAN_RASTERIZE, **given)
    plugin = probe.create("GaussianRasterize", given)
    found = plugin.outputs(inputs_of(GAUSSIAN_RASTERIZE, complete))
    assert found == expected_outputs(GAUSSIAN_RASTERIZE, complete)
    assert [shape == (0,) for shape, _ in found[:3]] == [not outputs >> bit & 1 for bit in range(3)]
    plugin.destroy()


@operators
def test_tensors_are_linear_and_of_the_schemas_types(probe, operator) -> None:
    complete = attributes_of(operator, **GIVEN[operator.name])
    plugin = probe.create(operator.name, GIVEN[operator.name])
    for stored in (FLOAT, HALF):
        inputs = inputs_of(operator, complete, stored)
        tensors = [*inputs, *(TensorDesc(*output) for output in expected_outputs(operator, complete, stored))]
        for position, tensor in enumerate(tensors):
            assert plugin.supports(tensors, position), position
            for other in (tensor._replace(format=CHW2), tensor._replace(type=2)):  # int8
                assert not plugin.supports([*tensors[:position], other, *tensors[position + 1 :]], position), position
    plugin.destroy()


def test_gaussians_are_all_float32_or_all_float16(probe) -> None:
    given = GIVEN["GaussianRasterize"]
    complete = attributes_of(GAUSSIAN_RASTERIZE, **given)
    plugin = probe.create("GaussianRasterize", given)
    results = [TensorDesc(*output) for output in expected_outputs(GAUSSIAN_RASTERIZE, complete)]
    half, single = (inputs_of(GAUSSIAN_RASTERIZE, complete, stored) for stored in (HALF, FLOAT))
    mixed = [half[0], *single[1:], *results]
    assert [plugin.supports(mixed, position) for position in range(8)] == [True] + 4 * [False] + 3 * [True]
    plugin.destroy()


def test_workspace_is_that_of_the_largest_shapes(probe) -> None:
    # The launchers' stand-ins say how many Gaussians there are, times the bytes of one of their numbers.
    plugin = probe.create("GaussianRasterize", GIVEN["GaussianRasterize"])
    complete = attributes_of(GAUSSIAN_RASTERIZE, **GIVEN["GaussianRasterize"])
    assert plugin.workspace(inputs_of(GAUSSIAN_RASTERIZE, complete)) == 4 * SIZES["N"]
    assert plugin.workspace(inputs_of(GAUSSIAN_RASTERIZE, complete, HALF)) == 2 * SIZES["N"]
    plugin.destroy()


@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [
        ("quats", (2, 51, 4), "quats has size 51 along axis 1; expected 50"),
        ("quats", (2, 50, 3), "quats has size 3 along axis 2; expected 4"),
        ("colors", (2, 50, 9, 3), r"colors has 4 dimensions; expected 3 \(BNC\)"),
        ("means", (2, 2**31, 3), "means has size 2147483648 along axis 1; expected 2147483647"),
        ("background", (4,), "background has size 4 along axis 0; expected 3"),
    ],
)
def test_shapes_that_do_not_agree_are_refused(probe, name, shape, reason) -> None:
    if probe.major < 10 and max(shape) >= 2**31:
        pytest.skip("sizes are int32 there")
    plugin = probe.create("GaussianRasterize", GIVEN["GaussianRasterize"])
    inputs = inputs_of(GAUSSIAN_RASTERIZE, attributes_of(GAUSSIAN_RASTERIZE, **GIVEN["GaussianRasterize"]))
    index = [tensor.name for tensor in GAUSSIAN_RASTERIZE.inputs].index(name)
    inputs[index] = TensorDesc(shape)
    with pytest.raises(Refused, match=f"GaussianRasterize: {reason}"):
        plugin.enqueue(inputs, range(16, 24), range(32, 36))
    if len(shape) != len(GAUSSIAN_RASTERIZE.inputs[index].dims):
        with pytest.raises(Refused, match=f"GaussianRasterize: {reason}"):
            plugin.outputs(inputs)
    plugin.destroy()


def test_tables_of_neighbours_have_27_columns(probe) -> None:
    plugin = probe.create("SubmanifoldConvolution", {})
    inputs = [TensorDesc((50, 3)), TensorDesc((50, 26), INT32), TensorDesc((27, 3, 10)), TensorDesc((10,))]
    with pytest.raises(Refused, match="SubmanifoldConvolution: neighbours has size 26 along axis 1; expected 27"):
        plugin.enqueue(inputs, range(16, 20), [32])
    plugin.destroy()


def test_a_node_with_too_few_inputs_is_refused(probe) -> None:
    plugin = probe.create("KnnInterpolate", {})
    with pytest.raises(Refused, match="KnnInterpolate: a node with 2 inputs and 3 outputs; expected 3 and 3"):
        plugin.outputs([TensorDesc((6, 3)), TensorDesc((70, 3))])
    plugin.destroy()


# ---- copies ---------------------------------------------------------------------------------------------------------


@operators
def test_a_serialized_plugin_comes_back_as_it_was(probe, operator) -> None:
    plugin = probe.create(operator.name, OTHERS[operator.name])
    serialized = plugin.serialized()
    plugin.destroy()
    again = probe.restore(operator.name, serialized)
    assert again.serialized() == serialized
    check_launch(again, OTHERS[operator.name])


@operators
def test_copies_outlive_what_they_are_copied_from(probe, operator) -> None:
    plugin = probe.create(operator.name, OTHERS[operator.name])
    copies = [plugin.copy(), *([plugin.copy("attach")] if probe.major >= 10 else [])]
    plugin.destroy()
    for copy in copies:
        check_launch(copy, OTHERS[operator.name])


@operators
def test_incomplete_and_foreign_serialized_plugins_are_refused(probe, operator) -> None:
    plugin = probe.create(operator.name, OTHERS[operator.name])
    serialized = plugin.serialized()
    plugin.destroy()
    for broken, reason in broken_copies(serialized):
        with pytest.raises(Refused, match=f"{operator.name}: .*{reason}"):
            probe.restore(operator.name, broken)


def broken_copies(serialized: Any) -> list[tuple[Any, str]]:
    if isinstance(serialized, bytes):
        whole = len(serialized)
        short = [(serialized[:n], f"has {n} bytes; it should have {whole}" if n >= 8 else "") for n in range(whole)]
        later = serialized[:4] + (2).to_bytes(4, "little") + serialized[8:]
        return [
            *short,
            (serialized + b"\0", f"has {whole + 1} bytes"),
            (later, "has format 2; this library reads 1"),
            (b"xxxx" + serialized[4:], "no serialized plugin of edge4d"),
        ]
    assert serialized["format"] == 1
    missing = [name for name in serialized if name != "format"]
    return [
        *(({n: v for n, v in serialized.items() if n != name}, f"attribute {name} is missing") for name in missing),
        ({**serialized, "format": 2}, "not of format 1"),
        ({name: serialized[name] for name in missing}, "not of format 1"),
    ]


words = st.one_of(st.integers(0, 3), st.sampled_from([-1, 0x3F000000, 0x3F800000]), st.integers(-(2**31), 2**31 - 1))


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(values=st.lists(words, min_size=13, max_size=13))
def test_serialized_attributes_are_checked(probe, values) -> None:
    """Whatever four bytes each attribute has (0x3f800000: 1.0), the plugin has attributes that work, or is refused."""
    if probe.major >= 10:
        pytest.skip("from 10 on TensorRT keeps the attributes, and they are checked as those of a node")
    plugin = probe.create("GaussianRasterize", OTHERS["GaussianRasterize"])
    serialized = plugin.serialized()[:8] + b"".join(value.to_bytes(4, "little", signed=True) for value in values)
    plugin.destroy()
    with contextlib.suppress(Refused):
        plugin = probe.restore("GaussianRasterize", serialized)
        assert plugin.serialized() == serialized
        width, height, sh_degree, max_pairs, outputs, out_dtype = (values[i] for i in (0, 1, 8, 9, 10, 11))
        assert min(width, height, max_pairs) > 0
        assert -1 <= sh_degree <= 3
        assert 0 <= outputs <= 7
        assert out_dtype in (0, 1)
        plugin.destroy()


# ---- the libraries --------------------------------------------------------------------------------------------------


def test_libraries_load_without_tensorrt(probe) -> None:
    """From 10 on no symbol of libnvinfer is wanted; on 8.6 the registry's and the log's are used where they are."""
    if shutil.which("nm") is None:
        pytest.skip("there is no nm here")
    said = subprocess.run(["nm", "-D", str(probe.path)], capture_output=True, text=True, check=True).stdout
    wanted = {line.split()[-1]: line.split()[-2] for line in said.splitlines() if line.split()[-2] in ("U", "w")}
    ours = {name: kind for name, kind in wanted.items() if "@" not in name and not name.startswith("_")}
    assert ours == ({"getPluginRegistry": "w", "getLogger": "w"} if probe.major < 10 else {})


def test_reasons_go_to_stderr_where_there_is_no_log(probe) -> None:
    script = """
        import ctypes, sys
        create = ctypes.CDLL(sys.argv[1]).probe_create
        create.restype = ctypes.c_void_p
        assert not create(b"FarthestPointSample", None, 0)
    """
    assert run(script, str(probe.path)).stderr == "edge4d: FarthestPointSample: attribute count is missing.\n"


def test_plugins_of_8_register_themselves_where_there_is_a_registry(probe, tmp_path) -> None:
    if probe.major >= 10:
        pytest.skip("from 10 on the registry asks for the creators")
    headers = next(path for path in HEADERS.values() if tensorrt_probe.major_version(path) == probe.major)
    fake = tensorrt_probe.compiled(headers, tmp_path / "registry.so", [Path(__file__).with_name("fake_registry.cpp")])
    script = """
        import ctypes, sys
        plugins, *before = sys.argv[1:]
        for path in before:
            registry = ctypes.CDLL(path, ctypes.RTLD_GLOBAL)
            registry.fake_registered.restype = ctypes.c_char_p
        library, count = ctypes.CDLL(plugins), ctypes.c_int32(-1)
        library.getPluginCreators(ctypes.byref(count))
        print(count.value)
        if before:
            print(registry.fake_registered().decode())
    """
    assert run(script, str(probe.path)).stdout.split() == [str(len(OPERATORS))]
    assert run(script, str(probe.path), str(fake)).stdout.split() == [
        "0",
        *(word for name in OPERATORS for word in (f"{DOMAIN}::{name}", str(VERSION))),
    ]


def test_tensorrt_rtx_finds_and_makes_the_plugins(probe) -> None:
    """TensorRT-RTX runs no plugins, but its registry is that of TensorRT 11."""
    if probe.major != 11:
        pytest.skip("TensorRT-RTX is of the generation of 11")
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("tensorrt_rtx is not installed")
    script = """
        import sys
        import numpy, tensorrt_rtx as trt
        trt.Logger(trt.Logger.ERROR)
        registry = trt.get_plugin_registry()
        assert registry.load_library(sys.argv[1]) is not None
        for creator in registry.all_creators:
            if creator.plugin_namespace == "edge4d":
                print(creator.name, *(field.name for field in creator.field_names))
        creator = registry.get_creator("FarthestPointSample", "1", "edge4d")
        field = trt.PluginField("count", numpy.array([5], numpy.int32), trt.PluginFieldType.INT32)
        plugin = creator.create_plugin("node", trt.PluginFieldCollection([field]), trt.TensorRTPhase.BUILD)
        print(plugin is not None)
    """
    lines = run(script, str(probe.path)).stdout.splitlines()
    expected = {" ".join([o.name, *(a.name for a in o.attributes)]) for o in OPERATORS.values()}
    assert set(lines[:-1]) == expected
    assert lines[-1] == "True"


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(script), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result
