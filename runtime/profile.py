"""What `edge4d profile` measured: stages, their layers, and the frames drawn after them, as data and as JSON."""

from __future__ import annotations

import collections.abc
import dataclasses
import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

from edge4d.runtime.errors import InvalidRequest

FORMAT = 2  # of the JSON; a reader refuses every other number
_KINDS = {str: "a text", int: "a whole number from 0", float: "a finite number from 0"}


@dataclass(frozen=True)
class Layer:
    """One layer of a stage: a node of ONNX Runtime, a layer of TensorRT, or an operator of edge4d.

    Attributes:
        name: as the backend calls it.
        kind: "Conv", "MatMul", ...; an operator of edge4d by its name.
        dtype: of its first floating output, such as "float32", "float16" or "int8"; "" where not known.
        ms: median milliseconds of a run.
        average_ms: mean milliseconds of a run.
        start_ms: milliseconds from the stage's begin, in the run of median length.
        flops: of one run, where a multiplication with its addition counts as 2; 0 where not known.
        bytes: of inputs, weights and outputs, each once.
        inputs, outputs: "name float32[1,3,256,448]", or what of it is known.
        tactic: the kernel that TensorRT chose for it; "" where not known.
    """

    name: str
    kind: str
    dtype: str
    ms: float
    average_ms: float
    start_ms: float
    flops: int
    bytes: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    tactic: str = ""


@dataclass(frozen=True)
class GpuRun:
    """Where the time of one run went, in milliseconds.

    Attributes:
        enqueue_ms: the host's, until it had put the computing into the GPU's queue.
        h2d_ms, compute_ms, d2h_ms: the GPU's, for copying the inputs to it, computing, and copying the outputs back.
    """

    enqueue_ms: float
    h2d_ms: float
    compute_ms: float
    d2h_ms: float


@dataclass(frozen=True)
class StageProfile:
    """One stage in one precision.

    Attributes:
        name, precision: which one.
        runs_ms: milliseconds on the host's clock of each measured run, without per-layer profiling.
        layers: measured in separate runs, in order of execution; none where the backend cannot.
        inputs, outputs: the type of each tensor, such as "float32[1,3,256,448]".
        weights_bytes: constants as the backend holds them, maybe wider than in the graph's file; 0 where unknown.
        activation_bytes: the most that a layer's inputs and outputs take, or the backend's own figure; 0 where unknown.
        io_bytes: its inputs and outputs.
        engine_bytes: of what was built from its graph, weights and kernels; 0 where nothing is built.
        gpu_runs: other runs than those of `runs_ms`, as many; none where nothing runs on a GPU.
        layer_info: the backend's own words on its layers, as `trtexec --exportLayerInfo` writes them; empty elsewhere.
    """

    name: str
    precision: str
    runs_ms: tuple[float, ...]
    layers: tuple[Layer, ...]
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    weights_bytes: int
    activation_bytes: int
    io_bytes: int = 0
    engine_bytes: int = 0
    gpu_runs: tuple[GpuRun, ...] = ()
    layer_info: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Peaks:
    """What a machine does at best.

    Attributes:
        flops: operations per second by the type that is computed in; with "float32", or empty where unknown.
        bandwidth: bytes per second that are read from and written to memory; 0 where unknown.
        source: who says so, such as "measured".
    """

    flops: Mapping[str, float] = field(default_factory=dict)
    bandwidth: float = 0.0
    source: str = ""


@dataclass(frozen=True)
class Profile:
    """A bundle on one machine.

    Attributes:
        bundle, backend: their names.
        about: what was measured with what: versions, machine, cores or GPU, command, date.
        size: (width, height) of the scene, and of the photograph where it is made of one.
        stages: every precision of the first stage, then of the next one.
        render_ms: milliseconds of each frame drawn after the stages; none where there is nothing to draw.
        peaks: of the machine that ran the stages.
    """

    bundle: str
    backend: str
    about: Mapping[str, str]
    size: tuple[int, int]
    stages: tuple[StageProfile, ...]
    render_ms: tuple[float, ...]
    peaks: Peaks


def to_json(profile: Profile) -> dict[str, Any]:
    """A profile as an object of JSON: the attributes' names, lists, and `format`."""
    return {"format": FORMAT, **dataclasses.asdict(profile, dict_factory=_with_lists)}


def profile_from_json(node: object) -> Profile:
    """The profile that `to_json` made `node` of; members that it does not know are skipped.

    Raises:
        InvalidRequest: a member is missing or has a value that no profile has. The message names it.
    """
    if isinstance(node, dict) and node.get("format") != FORMAT:
        _refuse("profile.format", node.get("format"), f"{FORMAT}, the format of this version")
    profile: Profile = _value(Profile, node, "profile")
    if 0 in profile.size:
        _refuse("profile.size", list(profile.size), "two numbers from 1")
    return profile


def _with_lists(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in pairs}


def _value(kind: Any, node: object, where: str) -> Any:
    """`node` as a value of the annotation `kind`: a dataclass, a tuple, a mapping, a text, a number, or anything."""
    if dataclasses.is_dataclass(kind):
        return _object(kind, node, where)
    if get_origin(kind) is tuple:
        return _tuple(get_args(kind), node, where)
    if get_origin(kind) is collections.abc.Mapping:
        return _mapping(get_args(kind)[1], node, where)
    if kind is Any:
        return node
    if type(node) is kind and (kind is str or _in_range(node)):
        return node
    if kind is float and type(node) is int and _in_range(node):  # JSON has one kind of number
        return float(node)
    return _refuse(where, node, _KINDS[kind])


def _object(kind: Any, node: object, where: str) -> Any:
    if not isinstance(node, dict):
        _refuse(where, node, "an object")
    values = {}
    for name, annotation in get_type_hints(kind).items():
        if name not in node:
            _refuse(f"{where}.{name}", None, "there")
        values[name] = _value(annotation, node[name], f"{where}.{name}")
    return kind(**values)


def _tuple(kinds: tuple[Any, ...], node: object, where: str) -> tuple[Any, ...]:
    if not isinstance(node, list):
        _refuse(where, node, "a list")
    if kinds[-1] is Ellipsis:
        kinds = (kinds[0],) * len(node)
    if len(node) != len(kinds):
        _refuse(where, node, f"a list of {len(kinds)}")
    return tuple(_value(kind, part, f"{where}[{index}]") for index, (kind, part) in enumerate(zip(kinds, node)))


def _mapping(kind: Any, node: object, where: str) -> dict[str, Any]:
    if not isinstance(node, dict):
        _refuse(where, node, "an object")
    return {str(key): _value(kind, value, f"{where}.{key}") for key, value in node.items()}


def _in_range(number: Any) -> bool:
    """Whether it is finite, not negative, and small enough for a float."""
    try:
        return math.isfinite(number) and number >= 0
    except OverflowError:
        return False


def _refuse(where: str, found: object, expected: str) -> NoReturn:
    raise InvalidRequest(
        "That is not a profile of edge4d.",
        note=f"{where} is {reprlib.repr(found)}, expected to be {expected}.",
        hint="Measure again with this version: edge4d profile BUNDLE -o DIR",
    )
