"""ONNX → engine, by TensorRT or TensorRT-RTX in a process of its own.

The builder keeps what memory it took, can crash on a graph that it does not understand, and one process cannot hold
both libraries: so each build is a `python -m edge4d.runtime.engine_from_onnx`, which gets its request through standard
input and ends when that does, says its progress through standard output, and writes the engine to a file.

Features are asked for by name, not by version: an attribute that TensorRT 11 has lost or 8.6 does not have yet.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional

from edge4d.runtime.errors import BackendUnavailable, EngineNotBuilt

LIBRARIES = ("tensorrt", "tensorrt_rtx")
RECIPE = 3
"""Goes up when a build does something else with the same request: engines of before are then built again."""

_COMPLAINTS = ("[E]", "[!]")  # marks of TensorRT's and Polygraphy's errors
_NOTE_LENGTH = 600  # characters of them that an error shows

Profile = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]  # the smallest, usual and largest shape of an input


class BuildOptions(NamedTuple):
    """How long and how freely TensorRT looks for a fast engine."""

    level: Optional[int] = None  # 0 to 5; TensorRT's own choice without it
    workspace_mib: Optional[int] = None  # memory that layers may use; all of the GPU's without it
    hardware_compatible: bool = False  # runs on every GPU from Ampere on, slower


DEFAULTS = BuildOptions()


class BuildRequest(NamedTuple):
    """An engine to be built.

    Attributes:
        onnx: the graph; its external data lies beside it.
        precision: that the graph has: "fp32", "fp16" or "int8".
        profiles: of every input whose shape varies.
        compute_capability: of the GPU that will run it, such as "89"; None for the GPU that is here. TensorRT-RTX alone
            builds for others.
        plugins: a library of plugins that the graph needs.
        timing_cache: a file that remembers how fast TensorRT's kernels were, read and written.
    """

    onnx: Path
    library: str
    precision: str
    profiles: Mapping[str, Profile]
    compute_capability: Optional[str] = None
    plugins: Optional[Path] = None
    options: BuildOptions = DEFAULTS
    timing_cache: Optional[Path] = None


class Progress(NamedTuple):
    """What the builder does now, and how much of that it has done."""

    phase: str
    step: int = 0
    steps: int = 0  # 0: not known


def library_version(library: str) -> str:
    """The version of "tensorrt" or "tensorrt_rtx" that a build would use.

    Raises:
        BackendUnavailable: it, or Polygraphy, is not installed.
    """
    script = f"import {library}, polygraphy; print({library}.__version__)"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    if found.returncode:
        raise BackendUnavailable(
            f"{_title(library)} is not installed.",
            note=_complaints(found.stderr),
            hint=f"pip install {library.replace('_', '-')} polygraphy",
        )
    return found.stdout.split()[-1]


def engine_from_onnx(request: BuildRequest, report: Callable[[Progress], None] = lambda progress: None) -> bytes:
    """Builds an engine; seconds to minutes.

    Args:
        report: is told the progress.

    Raises:
        EngineNotBuilt: TensorRT refused the graph, or stopped; the note has its last words.
    """
    rtx = request.library == "tensorrt_rtx"
    environment = {**os.environ, "POLYGRAPHY_USE_TENSORRT_RTX": "1" if rtx else "0"}
    command = [sys.executable, "-m", "edge4d.runtime.engine_from_onnx"]
    with tempfile.TemporaryDirectory(prefix="edge4d-") as folder, tempfile.TemporaryFile() as log:
        engine = Path(folder) / "engine"
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                process.stdin.write(json.dumps({**_plain(request), "engine": str(engine)}) + "\n")
                process.stdin.flush()  # it stays open: its end tells that nobody waits any more
                for line in process.stdout:
                    report(Progress(*json.loads(line)))
            except BaseException:  # nobody waits for the engine any more
                process.kill()
                raise
        if process.returncode == 0:
            return engine.read_bytes()
        log.seek(0)
        raise _not_built(request, process.returncode, log.read().decode(errors="replace"))


def _plain(request: BuildRequest) -> dict[str, Any]:
    paths = {name: value and str(value) for name, value in request._asdict().items() if name in _PATHS}
    return {**request._asdict(), **paths, "options": request.options._asdict()}


_PATHS = ("onnx", "plugins", "timing_cache")


def _not_built(request: BuildRequest, status: int, log: str) -> EngineNotBuilt:
    end = f"Its process was ended by signal {-status}. " if status < 0 else ""
    return EngineNotBuilt(
        f"{_title(request.library)} could not build an engine from '{request.onnx.name}'.",
        note=end + _complaints(log),
        hint="Use --backend onnxruntime, which runs every bundle.",
    )


def _complaints(log: str) -> str:
    """The errors in a log, each once; its last line where none is marked as one."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    marked = dict.fromkeys(line for line in lines if any(mark in line for mark in _COMPLAINTS))
    return " ".join(marked or lines[-1:])[:_NOTE_LENGTH]


def _title(library: str) -> str:
    return {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}[library]


# ---- in the process that builds -------------------------------------------------------------------------------------


def main() -> None:
    """Builds what the first line of standard input asks for."""
    ours = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what TensorRT prints is log

    def report(*progress: Any) -> None:
        ours.write(json.dumps(progress) + "\n")

    fields = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_standard_input, daemon=True).start()
    target = Path(fields.pop("engine"))
    fields.update({name: fields[name] and Path(fields[name]) for name in _PATHS})
    fields["options"] = BuildOptions(**fields["options"])
    try:
        target.write_bytes(_build(BuildRequest(**fields), report))
    except Exception as error:  # whatever it is, its message is what the other process shows
        sys.exit(f"[!] {error}")


def _end_with_standard_input() -> None:
    """A build takes minutes of a GPU, and whoever asked for it may be gone."""
    while os.read(0, 1):  # not through sys.stdin, whose lock the interpreter wants when it ends
        pass
    os._exit(1)


def _build(request: BuildRequest, report: Callable[..., None]) -> bytes:
    trt = importlib.import_module(request.library)
    polygraphy = importlib.import_module("polygraphy.backend.trt")
    importlib.import_module("polygraphy.logger").G_LOGGER.module_severity = 30  # warnings
    if request.plugins:
        importlib.import_module("edge4d.runtime.backends.tensorrt").load_plugins(request.plugins)
    report("parse")
    builder, network, parser = polygraphy.network_from_onnx_path(
        str(request.onnx), strongly_typed=hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")
    )
    arguments = config_arguments(trt, request)
    if weakly_typed(trt):
        types = graph_types(request.onnx)
        arguments.update(flags_of_types(types))
        keep_types(trt, network, types)
    if hasattr(trt, "IProgressMonitor"):
        arguments["progress_monitor"] = _monitor(trt, report)
    arguments["profiles"] = [_profile(polygraphy, request.profiles)]
    if request.library == "tensorrt_rtx":
        config = importlib.import_module("polygraphy.backend.tensorrt_rtx").CreateConfigRTX(**arguments)
    else:
        config = polygraphy.CreateConfig(**arguments)
    report("build")
    network_and_parser = (builder, network, parser)
    if request.timing_cache is None or weakly_typed(trt):  # 8.6 writes timings that it cannot read
        return bytes(polygraphy.engine_bytes_from_network(network_and_parser, config))
    partial = request.timing_cache.with_suffix(f".{os.getpid()}.partial")
    engine = bytes(polygraphy.engine_bytes_from_network(network_and_parser, config, save_timing_cache=str(partial)))
    if partial.exists():  # TensorRT-RTX measures nothing
        partial.replace(request.timing_cache)  # whole, whenever this process may die
    partial.with_name(f"{partial.name}.lock").unlink(missing_ok=True)  # Polygraphy's
    return engine


def weakly_typed(trt: Any) -> bool:
    """Whether this TensorRT (8.6) chooses layers' types itself: from 10 on the graph's types hold."""
    return not hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED") and hasattr(trt.BuilderFlag, "FP16")


def keep_types(trt: Any, network: Any, types: Mapping[str, str]) -> None:
    """Makes every layer compute in the types that the graph gives it: without this a flag for half precision would also
    let those run in it that are kept in float32 on purpose.

    Args:
        types: "float32", "float16" or another, of the graph's tensors by name.
    """
    kinds = trt.LayerType
    # The first three say themselves what they give. What reshapes is left to 8.6, which fuses it into nodes that have
    # one type for all such layers, and fails where that is not theirs: float32 may pass through halves there.
    decided = (kinds.CAST, kinds.QUANTIZE, kinds.DEQUANTIZE, kinds.SHUFFLE)
    floats = {"float32": trt.float32, "float16": trt.float16}
    wanted = None
    for index in reversed(range(network.num_layers)):
        layer = network.get_layer(index)
        names = [layer.get_output(i).name for i in range(layer.num_outputs)]
        # What the parser put in front of a node's last layer has names of its own, and computes as that one does.
        wanted = next((floats.get(types[name]) for name in names if name in types), wanted)
        if wanted is None or layer.type in decided:
            continue
        if layer.num_inputs and layer.get_input(0).is_shape_tensor:  # computed on the host
            continue
        outputs = [i for i in range(layer.num_outputs) if layer.get_output(i).dtype in floats.values()]
        if outputs:
            layer.precision = wanted
        for i in outputs:
            layer.set_output_type(i, wanted)


def graph_types(onnx_path: Path) -> dict[str, str]:
    """The types of a graph's tensors by name, such as "float16"; "int8" for what is made of rounded tensors: TensorRT
    computes that in int8 where it can."""
    onnx = importlib.import_module("onnx")
    graph = onnx.shape_inference.infer_shapes(onnx.load(onnx_path, load_external_data=False)).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input, *graph.output)}
    names = {name: onnx.helper.tensor_dtype_to_np_dtype(number).name for name, number in types.items() if number}
    rounded: set[str] = set()
    for node in graph.node:
        if node.op_type == "DequantizeLinear" or (node.op_type == "Cast" and node.input[0] in rounded):
            rounded.update(node.output)
        elif rounded.intersection(node.input):
            names.update(dict.fromkeys(node.output, "int8"))
    return names


def config_arguments(trt: Any, request: BuildRequest) -> dict[str, Any]:
    """Polygraphy's arguments for the builder's configuration, as far as this TensorRT has what they ask for."""
    options = request.options
    arguments: dict[str, Any] = {"profiling_verbosity": trt.ProfilingVerbosity.DETAILED}
    if options.level is not None:
        arguments["builder_optimization_level"] = options.level
    if options.workspace_mib is not None:
        arguments["memory_pool_limits"] = {trt.MemoryPoolType.WORKSPACE: options.workspace_mib << 20}
    if options.hardware_compatible:
        arguments["hardware_compatibility_level"] = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if request.timing_cache and request.timing_cache.is_file() and not weakly_typed(trt):
        arguments["load_timing_cache"] = str(request.timing_cache)
    if request.compute_capability:
        major, minor = request.compute_capability[:-1], request.compute_capability[-1]
        arguments["compute_capabilities"] = [(int(major), int(minor))]
    if weakly_typed(trt):
        arguments["precision_constraints"] = "obey"
        arguments["tactic_sources"] = _tactic_sources(trt)
    return arguments


def flags_of_types(types: Mapping[str, str]) -> dict[str, bool]:
    """Polygraphy's arguments that let 8.6 compute in the types of a graph, and in no other: what has no half in it is
    exact to float32 whatever is made of it."""
    found = set(types.values())
    return {"fp16": bool(found & {"float16", "int8"}), "int8": "int8" in found}


def _tactic_sources(trt: Any) -> list[Any]:
    """All but other libraries' kernels: 8.6 stops a build when it does not find the cuBLAS or cuDNN that it was made
    with, and later versions do without them."""
    return [source for name, source in trt.TacticSource.__members__.items() if not name.startswith(("CUBLAS", "CUDNN"))]


def _profile(polygraphy: Any, profiles: Mapping[str, Sequence[Sequence[int]]]) -> Any:
    profile = polygraphy.Profile()
    for name, (smallest, usual, largest) in profiles.items():
        profile.add(name, min=smallest, opt=usual, max=largest)
    return profile


def _monitor(trt: Any, report: Callable[..., None]) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Passes on the outermost phase: the inner ones come and go too fast to be read."""

        def __init__(self) -> None:
            super().__init__()
            self._steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: Optional[str], steps: int) -> None:
            if not self._steps:
                self._steps[phase] = steps
                report(phase, 0, steps)

        def step_complete(self, phase: str, step: int) -> bool:
            if phase in self._steps:
                report(phase, step + 1, self._steps[phase])
            return True

        def phase_finish(self, phase: str) -> None:
            self._steps.pop(phase, None)

    return Monitor()


if __name__ == "__main__":
    main()
