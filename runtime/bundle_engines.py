"""The engines of a bundle: which of its graphs become engines, for which shapes and GPU; from the cache, or built.

TensorRT takes a stage's graph whole, with our operators as plugins. TensorRT-RTX has no plugins: it takes the graphs
between them.
"""

from __future__ import annotations

import hashlib
import platform
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, Optional

from edge4d.kernels._library import library_path
from edge4d.runtime.backends import cuda
from edge4d.runtime.bundle import Bundle, OperatorStep, SessionStep, Stage
from edge4d.runtime.engine_cache import CachedEngine, EngineCache, EngineKey
from edge4d.runtime.engine_from_onnx import (
    DEFAULTS,
    RECIPE,
    BuildOptions,
    BuildRequest,
    Profile,
    Progress,
    engine_from_onnx,
    library_version,
)
from edge4d.runtime.errors import BackendUnavailable, InvalidRequest, LibraryNotFound
from edge4d.runtime.onnx_files import external_locations

PLUGINS_HINT = "Build them with CMake and -DEDGE4D_TENSORRT_INCLUDE=, the folder of TensorRT's headers."
_DEVICE = re.compile(r"(?:sm_?)?([1-9]\d{1,2})")


class Target(NamedTuple):
    """Who builds, and for which GPU.

    Attributes:
        library: "tensorrt" or "tensorrt_rtx", of `version`.
        compute_capability: such as "89".
        device: the GPU's name; "" for all of that compute capability.
        cuda: major version that the driver here speaks; "" where none is asked.
    """

    library: str
    version: str
    compute_capability: str
    device: str = ""
    cuda: str = ""


class Part(NamedTuple):
    """One engine to be: a graph, and what it takes."""

    name: str
    onnx: Path
    inputs: tuple[str, ...]
    has_operators: bool = False  # of ours


def target(library: str, device: Optional[str] = None, *, version: Optional[str] = None) -> Target:
    """What `library` builds for here.

    Args:
        library: "tensorrt" or "tensorrt_rtx".
        device: a compute capability, such as "sm_89"; the GPU that is here without it. TensorRT builds for that alone.
        version: the library's, if it is known; finding it out takes a process.

    Raises:
        InvalidRequest: `device` is none, or another than the GPU's with TensorRT.
        BackendUnavailable: the library is not installed, or there is no GPU and it needs one.
    """
    version = version or library_version(library)
    wanted = None if device is None else _compute_capability(device)
    if library == "tensorrt_rtx" and wanted is not None:
        return Target(library, version, wanted)
    try:
        cuda.check_device()
    except BackendUnavailable as error:
        hint = "Say which one: --device sm_89." if library == "tensorrt_rtx" else error.hint
        raise BackendUnavailable("There is no GPU here to build engines for.", note=error.note, hint=hint) from error
    here = cuda.compute_capability()
    if wanted not in (None, here):
        raise InvalidRequest(
            "TensorRT builds for the GPU that it runs on.",
            note=f"That is sm_{here}; asked for sm_{wanted}.",
            hint="Leave --device out, or use --backend tensorrt_rtx.",
        )
    if library == "tensorrt_rtx":
        return Target(library, version, here)
    return Target(library, version, here, cuda.device_name(), cuda.driver_cuda())


def _compute_capability(device: str) -> str:
    match = _DEVICE.fullmatch(device.lower())
    if match is None:
        raise InvalidRequest(f"'{device}' is not a kind of GPU.", hint="Give its compute capability, such as sm_89.")
    return match[1]


def engines(
    bundle: Bundle,
    precision: str,
    target: Target,
    cache: EngineCache,
    *,
    options: BuildOptions = DEFAULTS,
    report: Callable[[str, Progress], None] = lambda part, progress: None,
) -> Iterator[tuple[str, CachedEngine]]:
    """Every engine of a bundle with the name of its part, one after the other.

    Args:
        report: is told a part's name and the progress of its build.

    Raises:
        PrecisionNotInBundle: a stage has no such graph.
        EngineNotBuilt: TensorRT refused a graph.
    """
    for stage in bundle.stages.values():
        for part in parts(stage, precision, target.library):
            say = partial(report, part.name)
            yield part.name, cached_engine(bundle, stage, part, precision, target, cache, options=options, report=say)


def cached_engine(
    bundle: Bundle,
    stage: Stage,
    part: Part,
    precision: str,
    target: Target,
    cache: EngineCache,
    *,
    options: BuildOptions = DEFAULTS,
    check: Callable[[bytes], object] = lambda data: None,
    report: Callable[[Progress], None] = lambda progress: None,
) -> CachedEngine:
    """The engine of a part of a stage.

    Args:
        check: raises InvalidEngine for one that cannot be loaded; see `EngineCache.get`.
        report: is told the progress of its build.

    Raises:
        EngineNotBuilt: TensorRT refused the graph.
    """
    wanted = request(stage, part, precision, target, options)
    return built_or_cached(wanted, key(bundle, part, target, wanted), cache, check=check, report=report)


def built_or_cached(
    request: BuildRequest,
    key: EngineKey,
    cache: EngineCache,
    *,
    check: Callable[[bytes], object] = lambda data: None,
    report: Callable[[Progress], None] = lambda progress: None,
) -> CachedEngine:
    """The engine that `request` asks for, whose key is `key`. Else as `cached_engine`."""
    if request.library == "tensorrt":
        request = request._replace(timing_cache=cache.timings(key))
    return cache.get(
        key,
        build=lambda _: engine_from_onnx(request, report),
        check=check,
        report=lambda text: report(Progress(text)),
    )


def parts(stage: Stage, precision: str, library: str) -> list[Part]:
    """The graphs of a stage that `library` makes engines of: the whole one, but where TensorRT-RTX would find operators
    of ours in it."""
    graph = stage.graph(precision)
    has_operators = any(isinstance(step, OperatorStep) for step in graph.steps)
    if library == "tensorrt" or not has_operators:
        return [Part(stage.name, graph.whole, tuple(tensor.name for tensor in stage.inputs), has_operators)]
    steps = [step for step in graph.steps if isinstance(step, SessionStep)]
    names = [stage.name] if len(steps) == 1 else [f"{stage.name}.{i}" for i in range(len(steps))]
    return [Part(name, step.onnx, step.inputs) for name, step in zip(names, steps)]


def profiles(stage: Stage, inputs: Sequence[str]) -> dict[str, Profile]:
    """The smallest, usual and largest shape of every input whose shape varies.

    Raises:
        InvalidRequest: an input is none of the stage's: what an operator made may vary as only it knows.
    """
    if not stage.axes:
        return {}
    known = {tensor.name: tensor for tensor in stage.inputs}
    unknown = sorted(set(inputs) - set(known))
    if unknown:
        raise InvalidRequest(
            f"The engines of stage '{stage.name}' cannot be built.",
            note=f"A graph takes {', '.join(unknown)} from an operator, and its shapes are not in the bundle.",
            hint="Use --backend onnxruntime.",
        )
    smallest, usual, largest = (
        {name: getattr(axis, size) for name, axis in stage.axes.items()} for size in ("min", "opt", "max")
    )
    return {
        name: (known[name].shape_at(smallest), known[name].shape_at(usual), known[name].shape_at(largest))
        for name in inputs
        if known[name].axes()
    }


def request(stage: Stage, part: Part, precision: str, target: Target, options: BuildOptions) -> BuildRequest:
    """What the builder is asked for."""
    return BuildRequest(
        part.onnx,
        target.library,
        precision,
        profiles(stage, part.inputs),
        target.compute_capability if target.library == "tensorrt_rtx" else None,
        plugin_library(target.version) if part.has_operators else None,
        options,
    )


def key(bundle: Bundle, part: Part, target: Target, request: BuildRequest) -> EngineKey:
    """All that the engine of a part depends on."""
    return engine_key(f"{bundle.name}.{part.name}", _content(bundle, part.onnx), target, request)


def engine_key(name: str, onnx: str, target: Target, request: BuildRequest) -> EngineKey:
    """All that an engine depends on.

    Args:
        onnx: the SHA-256 of the graph and its weights.

    Raises:
        LibraryNotFound: the plugins that it needs are not there.
    """
    return EngineKey(
        name=name,
        onnx=onnx,
        plugins=_plugins_content(request.plugins),
        precision=request.precision,
        profiles={name: [list(shape) for shape in shapes] for name, shapes in request.profiles.items()},
        options={**request.options._asdict(), "recipe": RECIPE},
        builder=f"{target.library} {target.version}",
        device=f"sm{target.compute_capability} {target.device}".strip(),
        cuda=target.cuda,
        platform=f"{platform.system()}-{platform.machine()}".lower(),
    )


def plugin_library(version: str) -> Path:
    """Where the plugins for a TensorRT of this version, such as "8.6.0", lie."""
    return library_path(f"libedge4d_trt{version.split('.')[0]}.so")


def check_plugins(library: Path) -> None:
    """Raises LibraryNotFound unless the library of plugins is there."""
    if not library.is_file():
        raise LibraryNotFound("The TensorRT plugins are not there.", note=f"Looked for '{library}'.", hint=PLUGINS_HINT)


def _plugins_content(library: Optional[Path]) -> str:
    """The SHA-256 of a library of plugins; "" without one.

    Raises:
        LibraryNotFound: it is not there.
    """
    if library is None:
        return ""
    check_plugins(library)
    return hashlib.sha256(library.read_bytes()).hexdigest()


def _content(bundle: Bundle, onnx: Path) -> str:
    """The SHA-256 of what a graph is: that of its file and those of its external data, which the bundle knows."""
    files = [onnx.name, *sorted(external_locations(onnx))]
    return hashlib.sha256("".join(bundle.files[name].sha256 for name in files).encode()).hexdigest()
