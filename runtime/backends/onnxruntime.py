"""ONNX Runtime on the CPU: sessions, and edge4d's native CPU operators between them."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Optional, Protocol

from numpy.typing import NDArray

from edge4d.kernels.ops import OPERATORS
from edge4d.runtime import machine
from edge4d.runtime.bundle import Bundle, OperatorStep, SessionStep, Stage, Step
from edge4d.runtime.engine import StageEngine
from edge4d.runtime.errors import (
    BackendUnavailable,
    Edge4DError,
    EngineFailed,
    InvalidBundle,
    InvalidRequest,
    LibraryNotFound,
)
from edge4d.runtime.layers import Measurement

Arrays = dict[str, NDArray[Any]]
_TENSOR_TYPES = {
    "float32": "tensor(float)",
    "float16": "tensor(float16)",
    "int32": "tensor(int32)",
    "int64": "tensor(int64)",
    "uint8": "tensor(uint8)",
    "bool": "tensor(bool)",
}


class OnnxRuntimeBackend:
    """Makes engines that run on the CPU.

    Args:
        threads: threads inside an operator; None uses every core that this process may use.

    Raises:
        BackendUnavailable: ONNX Runtime is not installed.
        InvalidRequest: `threads` is below 1.
    """

    name = "onnxruntime"

    def __init__(self, threads: Optional[int] = None) -> None:
        self._onnxruntime = _onnxruntime()
        if threads is not None and threads < 1:
            raise InvalidRequest("A backend needs at least one thread.", note=f"Asked for {threads}.")
        self.threads = threads or machine.cores()

    def engine(self, bundle: Bundle, stage: str, precision: str) -> OnnxRuntimeEngine:
        """One stage of a bundle, ready to run.

        Raises:
            PrecisionNotInBundle: the stage has no such graph.
            InvalidBundle: there is no such stage, ONNX Runtime cannot load a graph, or a graph's tensors are not the
                ones that the bundle describes.
        """
        return self.stage_engine(bundle.stage(stage), precision)

    def stage_engine(self, stage: Stage, precision: str) -> OnnxRuntimeEngine:
        """`engine` for a stage that is in no bundle yet."""
        return OnnxRuntimeEngine(stage, precision, self._options())

    def look_inside(
        self, bundle: Bundle, stage: str, precision: str, inputs: Mapping[str, NDArray[Any]], runs: int
    ) -> Measurement:
        """The nodes that ONNX Runtime ran after its optimisations, and the operators; see `LooksInside`."""
        from edge4d.runtime.backends.onnxruntime_layers import layer_runs

        return Measurement(layer_runs(bundle.stage(stage), precision, inputs, runs, self._options))

    def _options(self) -> Any:
        options = self._onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors only: they also come back as exceptions
        # Stages take turns, and an arena keeps each one's largest memory for ever: without it a stage of 7 MB takes
        # 100 MB less and 20 ms of 130 more. A memory pattern belongs to one input size, and ours vary.
        options.enable_cpu_mem_arena = False
        options.enable_mem_pattern = False
        # Threads that spin while they wait take the cores from the native operators and the renderer.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return options


class OnnxRuntimeEngine(StageEngine):
    """A stage on the CPU: its steps, one after the other. Made by `OnnxRuntimeBackend.engine`."""

    def __init__(self, stage: Stage, precision: str, options: Any) -> None:
        super().__init__(stage)
        steps = stage.graph(precision).steps
        self._calls: list[Call] = [self._call(stage, step, options) for step in steps]
        self._dead = _names_after_last_use(steps, keep={tensor.name for tensor in stage.outputs})

    def _call(self, stage: Stage, step: Step, options: Any) -> Call:
        if isinstance(step, SessionStep):
            return SessionCall(stage, step, options)
        return OperatorCall(stage, step, options.intra_op_num_threads)

    def _run(self, inputs: Arrays) -> Arrays:
        values = dict(inputs)
        for call, dead in zip(self._calls, self._dead):
            values.update(call(values))
            for name in dead:
                del values[name]
        return {tensor.name: values[tensor.name] for tensor in self.outputs}

    def close(self) -> None:
        super().close()
        self._calls.clear()  # the sessions, and their weights with them


def _onnxruntime() -> Any:
    try:
        return import_module("onnxruntime")
    except ImportError as error:
        raise BackendUnavailable(
            "ONNX Runtime is not installed.", note=f"{error}.", hint="pip install onnxruntime"
        ) from error


def _names_after_last_use(steps: tuple[Step, ...], keep: set[str]) -> list[set[str]]:
    """Per step, the values that no later step reads: their memory can go."""
    dead: list[set[str]] = []
    needed = set(keep)
    for step in reversed(steps):
        touched = {*step.inputs, *step.outputs}
        dead.append(touched - needed)
        needed |= set(step.inputs)
    return dead[::-1]


class Call(Protocol):
    """A step that is ready to run: the tensors so far by name in, those that it makes out."""

    @property
    def step(self) -> Step: ...

    def __call__(self, values: Arrays) -> Arrays: ...


# ---- sessions -------------------------------------------------------------------------------------------------------


class SessionCall:
    """A graph between operators."""

    def __init__(self, stage: Stage, step: SessionStep, options: Any) -> None:
        self.step = step
        self.session = _session(stage, step, options)
        self._stage = stage.name
        _check_session(stage, step, self.session)

    def __call__(self, values: Arrays) -> Arrays:
        step = self.step
        try:
            results = self.session.run(list(step.outputs), {name: values[name] for name in step.inputs})
        except Exception as error:  # ONNX Runtime's exceptions have no base of their own
            raise EngineFailed(
                f"ONNX Runtime stopped in stage '{self._stage}'.",
                note=_first_line(error),
                hint="A smaller --size needs less memory.",
            ) from error
        return dict(zip(step.outputs, results))


def _session(stage: Stage, step: SessionStep, options: Any) -> Any:
    onnxruntime = _onnxruntime()
    try:
        return onnxruntime.InferenceSession(str(step.onnx), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # as above
        raise InvalidBundle(
            f"ONNX Runtime cannot load '{step.onnx.name}' of stage '{stage.name}'.",
            note=_first_line(error),
            hint=f"ONNX Runtime here is {onnxruntime.__version__}; 1.19 or newer loads every bundle of this version.",
        ) from error


def _check_session(stage: Stage, step: SessionStep, session: Any) -> None:
    for kind, found, named in (
        ("inputs", session.get_inputs(), step.inputs),
        ("outputs", session.get_outputs(), step.outputs),
    ):
        types = {node.name: node.type for node in found}
        expected = {tensor.name: _TENSOR_TYPES[tensor.dtype] for tensor in (*stage.inputs, *stage.outputs)}
        wrong = [name for name in types if types[name] != expected.get(name, types[name])]
        if set(types) != set(named) or wrong:
            raise InvalidBundle(
                f"The {kind} of '{step.onnx.name}' are not the ones that the bundle describes.",
                note=f"The graph has {types}, the bundle says {sorted(named)}; wrong dtype: {wrong or 'none'}.",
                hint="Export the bundle again.",
            )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:500] if lines else type(error).__name__


# ---- operators ------------------------------------------------------------------------------------------------------


class OperatorCall:
    """One of edge4d's operators."""

    def __init__(self, stage: Stage, step: OperatorStep, threads: int) -> None:
        self.step = step
        self._function = getattr(import_module("edge4d.kernels.cpu"), OPERATORS[step.operator].function)
        self._stage, self._threads = stage.name, threads

    def __call__(self, values: Arrays) -> Arrays:
        step = self.step
        try:
            results = self._function(*(values[name] for name in step.inputs), **step.attributes, threads=self._threads)
        except LibraryNotFound:
            raise
        except (Edge4DError, MemoryError) as error:
            raise EngineFailed(
                f"{step.operator} stopped in stage '{self._stage}'.", note=" ".join(str(error).splitlines())
            ) from error
        return dict(zip(step.outputs, results if isinstance(results, tuple) else (results,)))
