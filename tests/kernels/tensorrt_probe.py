"""TensorRT's plugins without TensorRT: builds them with plugin_probe.cpp, and calls them as TensorRT would.

$EDGE4D_TENSORRT_HEADERS is a folder of folders, such as 8.6/include, that hold NvInfer.h; without it, .headers beside
the kernels is looked into.
"""

from __future__ import annotations

import ctypes
import math
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from ctypes import POINTER, Structure, c_char, c_char_p, c_float, c_int32, c_int64, c_uint64, c_void_p
from pathlib import Path
from typing import Any, NamedTuple, Optional, Union

from edge4d.kernels import _library
from edge4d.kernels.ops import Operator

ROOT = Path(__file__).resolve().parents[2]
CALLS = {
    "GaussianRasterize": _library.GaussianRasterizeCall,
    "KnnInterpolate": _library.KnnInterpolateCall,
    "FarthestPointSample": _library.FarthestPointSampleCall,
    "VoxelNeighbours": _library.VoxelNeighboursCall,
    "SubmanifoldConvolution": _library.SubmanifoldConvolutionCall,
    "GatherMean": _library.GatherMeanCall,
    "WindowAttention": _library.WindowAttentionCall,
}
FLOAT, HALF, INT32 = 0, 1, 3  # nvinfer1::DataType
LINEAR, CHW2 = 0, 1  # nvinfer1::TensorFormat
FIELD_TYPES = {float: 1, int: 5, str: 6}  # nvinfer1::PluginFieldType
Value = Union[int, float, str]


class Field(Structure):
    """nvinfer1::PluginField."""

    _fields_ = (("name", c_char_p), ("data", c_void_p), ("type", c_int32), ("length", c_int32))


class Collection(Structure):
    """nvinfer1::PluginFieldCollection."""

    _fields_ = (("count", c_int32), ("fields", POINTER(Field)))


class Tensor(Structure):
    _fields_ = (("type", c_int32), ("format", c_int32), ("rank", c_int32), ("sizes", c_int64 * 8))


class Launch(Structure):
    _fields_ = (("call", c_char * 512), ("workspace", c_void_p), ("workspace_bytes", c_uint64), ("stream", c_void_p))


# ---- building -------------------------------------------------------------------------------------------------------


def header_sets() -> dict[str, Path]:
    """Folders with NvInfer.h, by their version's name."""
    root = Path(os.environ.get("EDGE4D_TENSORRT_HEADERS") or ROOT / ".headers")
    return {path.parents[1].name: path.parent for path in sorted(root.glob("*/include/NvInfer.h"))}


def cuda_headers() -> Optional[Path]:
    """The folder that nvcc takes cuda_runtime_api.h from."""
    if shutil.which("nvcc") is None:
        return None
    # To nvcc no file needs to exist that it only says it would compile.
    said = subprocess.run(["nvcc", "--dryrun", "-E", "none.cu"], capture_output=True, text=True, check=False).stderr
    found = re.search(r'INCLUDES="-I(.+?)"', said)
    return Path(found[1]) if found else None


def major_version(headers: Path) -> int:
    text = (headers / "NvInferVersion.h").read_text()
    found = re.search(r"#define (?:NV_TENSORRT_MAJOR|TRT_MAJOR_ENTERPRISE) (\d+)", text)
    assert found is not None
    return int(found[1])


def compiled(headers: Path, output: Path, sources: Sequence[Path]) -> Path:
    """A shared library of sources that include NVIDIA's headers; warnings are errors, unless they are NVIDIA's own."""
    command = ["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-Wl,-z,defs"]
    command += [f"-I{ROOT / 'kernels' / folder}" for folder in ("include", "cpu")]
    command += ["-isystem", str(headers), "-isystem", str(cuda_headers()), "-o", str(output), *map(str, sources)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return output


def probe_library(headers: Path, output: Path) -> Path:
    """The plugins for the version of these headers, with launchers that launch nothing."""
    plugin = "plugin_v2.cpp" if major_version(headers) < 10 else "plugin_v3.cpp"
    kernels = ROOT / "kernels"
    ours = [kernels / "tensorrt" / "operators.cpp", kernels / "tensorrt" / plugin, kernels / "cpu" / "status.cpp"]
    return compiled(headers, output, [*ours, Path(__file__).with_name("plugin_probe.cpp")])


# ---- calling --------------------------------------------------------------------------------------------------------


class TensorDesc(NamedTuple):
    shape: tuple[int, ...]
    type: int = FLOAT
    format: int = LINEAR


class Refused(Exception):
    """What the plugin wrote to TensorRT's log."""


class Probe:
    """The plugins of one library."""

    def __init__(self, path: Path, major: int) -> None:
        self.path, self.major = path, major
        self.library = ctypes.CDLL(str(path))
        results = {
            c_void_p: "create restore deserialize clone attach",
            c_char_p: "log name version namespace",
            c_uint64: "workspace serialized_bytes",
            ctypes.c_bool: "supports",
            POINTER(Collection): "serialized_fields field_names",
            POINTER(Launch): "last_launch",
        }
        for result, names in results.items():
            for name in names.split():
                getattr(self.library, f"probe_{name}", c_int32).restype = result

    def field_names(self, operator: str) -> list[tuple[str, int]]:
        collection = self.library.probe_field_names(operator.encode()).contents
        return [(field.name.decode(), field.type) for field in collection.fields[: collection.count]]

    def create(self, operator: str, attributes: Mapping[str, Value]) -> Plugin:
        """Raises Refused."""
        return self._plugin("create", operator, *_field_array(attributes))

    def restore(self, operator: str, serialized: Any) -> Plugin:
        """A plugin from what `Plugin.serialized` gave: bytes on 8.6, from 10 on attributes by name. Raises Refused."""
        if self.major < 10:
            data = (c_char * len(serialized)).from_buffer_copy(serialized)
            return self._plugin("deserialize", operator, data, c_uint64(len(serialized)))
        return self._plugin("restore", operator, *_field_array(serialized))

    def _plugin(self, function: str, operator: str, *arguments: Any) -> Plugin:
        address = self.call(function, operator.encode(), *arguments)
        if not address:
            raise Refused(self.log())
        return Plugin(self, operator, address)

    def call(self, function: str, *arguments: Any) -> Any:
        self.library.probe_start_log()
        return getattr(self.library, f"probe_{function}")(*arguments)

    def log(self) -> str:
        return str(self.library.probe_log().decode())


class Plugin:
    """A plugin, until `destroy`."""

    def __init__(self, probe: Probe, operator: str, address: int) -> None:
        self.probe, self.operator, self.address = probe, operator, address

    def __getattr__(self, name: str) -> str:
        if name not in ("name", "version", "namespace"):
            raise AttributeError(name)
        return str(self._call(name).decode())

    def _call(self, function: str, *arguments: Any) -> Any:
        return self.probe.call(function, c_void_p(self.address), *arguments)

    def copy(self, function: str = "clone") -> Plugin:
        return Plugin(self.probe, self.operator, self._call(function))

    def destroy(self) -> None:
        self._call("destroy")

    def output_count(self) -> int:
        return int(self._call("output_count"))

    def outputs(self, inputs: Sequence[TensorDesc]) -> list[tuple[tuple[int, ...], int]]:
        """Shape and type of each output. Raises Refused."""
        result = []
        for output in range(self.output_count()):
            sizes = (c_int64 * 8)()
            rank = self._call("output_sizes", _tensors(inputs), len(inputs), output, sizes)
            if rank < 0:
                raise Refused(self.probe.log())
            type_ = self._call("output_type", _tensors(inputs), len(inputs), output)
            result.append((tuple(sizes[:rank]), type_))
        return result

    def supports(self, tensors: Sequence[TensorDesc], position: int) -> bool:
        inputs = len(tensors) - self.output_count()
        return bool(self._call("supports", _tensors(tensors), inputs, self.output_count(), position))

    def workspace(self, inputs: Sequence[TensorDesc]) -> int:
        return int(self._call("workspace", _tensors(inputs), len(inputs)))

    def enqueue(
        self, inputs: Sequence[TensorDesc], addresses: Sequence[int], results: Sequence[int]
    ) -> tuple[Any, Launch]:
        """The struct that reached the launcher, and what came with it. Raises Refused."""
        read, written = (c_void_p * len(addresses))(*addresses), (c_void_p * len(results))(*results)
        arguments = (read, written, c_void_p(0x1000), c_void_p(0x2000))
        if self._call("enqueue", _tensors(inputs), len(inputs), *arguments):
            raise Refused(self.probe.log())
        launch = self.probe.library.probe_last_launch().contents
        copied = Launch.from_buffer_copy(launch)
        return CALLS[self.operator].from_buffer_copy(bytearray(copied)[: ctypes.sizeof(CALLS[self.operator])]), copied

    def serialized(self) -> Any:
        if self.probe.major < 10:
            buffer = (c_char * self._call("serialized_bytes"))()
            self._call("serialize", buffer)
            return bytes(buffer)
        collection = self._call("serialized_fields").contents
        return {field.name.decode(): _value(field) for field in collection.fields[: collection.count]}


def attributes_of(operator: Operator, **given: Value) -> dict[str, Value]:
    """Every attribute: what is given, else its default."""
    return {a.name: given[a.name] if a.default is None else given.get(a.name, a.default) for a in operator.attributes}


def _value(field: Field) -> Value:
    if field.type == FIELD_TYPES[str]:
        return ctypes.string_at(field.data, field.length).decode()
    kind = c_float if field.type == FIELD_TYPES[float] else c_int32
    assert field.length == 1
    return kind.from_address(field.data).value  # type: ignore[no-any-return]


def _field_array(attributes: Mapping[str, Value]) -> tuple[Any, int]:
    fields = (Field * len(attributes))()
    for field, (name, value) in zip(fields, attributes.items()):
        data: Any
        if isinstance(value, str):
            data = ctypes.create_string_buffer(value.encode())
        else:
            data = (c_float if isinstance(value, float) else c_int32)(value)
        length = len(value) if isinstance(value, str) else 1
        field.name, field.type, field.length = name.encode(), FIELD_TYPES[type(value)], length
        field.data = ctypes.addressof(data)
        fields.__dict__.setdefault("kept", []).append(data)  # lives as long as the array
    return fields, len(attributes)


def _tensors(descs: Sequence[TensorDesc]) -> Any:
    return (Tensor * len(descs))(*(Tensor(d.type, d.format, len(d.shape), (c_int64 * 8)(*d.shape)) for d in descs))


def same(one: Value, other: Value) -> bool:
    """Whether a value is the other, as float32 holds it."""
    if isinstance(one, float) and isinstance(other, (int, float)):
        return math.isclose(one, other, rel_tol=1e-7)  # half a unit in float32's last place
    return one == other
