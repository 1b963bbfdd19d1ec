"""Times of the layers of a stage on ONNX Runtime: its own profile of each session, and a clock at each operator."""

from __future__ import annotations

import json
import tempfile
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edge4d.runtime.backends.onnxruntime import Arrays, Call, OnnxRuntimeEngine, SessionCall
from edge4d.runtime.bundle import OperatorStep, SessionStep, Stage, Step
from edge4d.runtime.layers import LayerRun, TensorType

Tensors = Mapping[str, NDArray[Any]]

_RUN = "model_run"
_NODE = "_kernel_time"  # the end of the name of a node's event
_DTYPES = {"float": "float32", "double": "float64"}  # the others have NumPy's names


def layer_runs(
    stage: Stage, precision: str, inputs: Tensors, runs: int, options: Callable[[], Any]
) -> list[list[LayerRun]]:
    """The layers of a stage in each of `runs` runs; `options` makes those of a session.

    Where ONNX Runtime packs weights for speed, it forgets what they were: a run without that tells the tensors.
    """
    unpacked = options()
    unpacked.add_session_config_entry("session.disable_prepacking", "1")
    timed, (told,) = _noted(stage, precision, inputs, runs, options()), _noted(stage, precision, inputs, 1, unpacked)
    whole = {layer.name: layer for layer in told if layer.weights_bytes}
    return [[_described(layer, whole.get(layer.name, layer)) for layer in run] for run in timed]


def _noted(stage: Stage, precision: str, inputs: Tensors, runs: int, options: Any) -> list[list[LayerRun]]:
    with tempfile.TemporaryDirectory(prefix="edge4d-") as folder:
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder, stage.name))
        with closing(LayerClock(stage, precision, options)) as clock:
            for _ in range(runs):
                clock.run(inputs)
            return clock.layer_runs()


def _described(timed: LayerRun, whole: LayerRun) -> LayerRun:
    """With the weights, if they were packed away."""
    packed = whole.weights_bytes > timed.weights_bytes
    return whole._replace(start_ms=timed.start_ms, ms=timed.ms) if packed else timed


class LayerClock(OnnxRuntimeEngine):
    """A stage whose runs are noted layer by layer.

    Args:
        options: of the sessions, with profiling enabled.
    """

    def __init__(self, stage: Stage, precision: str, options: Any) -> None:
        super().__init__(stage, precision, options)
        self._timed = [_Timed(call) for call in self._calls]
        self._calls = list(self._timed)

    def _call(self, stage: Stage, step: Step, options: Any) -> Call:
        if isinstance(step, SessionStep):  # by the millisecond alone, the files of two sessions may have the same name
            options.profile_file_prefix = str(Path(options.profile_file_prefix).with_name(step.onnx.stem))
        return super()._call(stage, step, options)

    def layer_runs(self) -> list[list[LayerRun]]:
        """The layers of each `run` so far, in order of execution. Ends the notes: afterwards there are no more runs."""
        begins = [start for start, _ in self._timed[0].spans]
        steps = [timed.layer_runs(begins) for timed in self._timed]
        return [[layer for step in run for layer in step] for run in zip(*steps)]

    def close(self) -> None:
        super().close()
        self._timed.clear()


class _Timed:
    """A call, and the seconds at which each of its runs began and ended."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self.step = call.step
        self.spans: list[tuple[float, float]] = []
        self._inputs: tuple[TensorType, ...] = ()
        self._outputs: tuple[TensorType, ...] = ()
        self._bytes = 0

    def __call__(self, values: Arrays) -> Arrays:
        start = time.perf_counter()
        results = self._call(values)
        self.spans.append((start, time.perf_counter()))
        inputs = {name: values[name] for name in self.step.inputs}
        self._inputs, self._outputs = _types_of_arrays(inputs), _types_of_arrays(results)
        self._bytes = sum(array.nbytes for array in (*inputs.values(), *results.values()))
        return results

    def layer_runs(self, begins: list[float]) -> list[list[LayerRun]]:
        """The layers of every run; `begins` are those of the stage."""
        starts = [1e3 * (start - begin) for (start, _), begin in zip(self.spans, begins)]
        if isinstance(self._call, SessionCall):
            events = json.loads(Path(self._call.session.end_profiling()).read_bytes())
            return [
                [_node(event, start + (event["ts"] - begin) / 1e3) for event in nodes]
                for start, (begin, nodes) in zip(starts, _runs(events))
            ]
        return [[self._layer(start, 1e3 * (end - begin))] for start, (begin, end) in zip(starts, self.spans)]

    def _layer(self, start_ms: float, ms: float) -> LayerRun:
        """The call as a layer of its own."""
        kind = self.step.operator if isinstance(self.step, OperatorStep) else ""
        return LayerRun(self.step.outputs[0], kind, start_ms, ms, self._inputs, self._outputs, 0, self._bytes)


def _types_of_arrays(arrays: Arrays) -> tuple[TensorType, ...]:
    return tuple(TensorType(name, str(array.dtype), array.shape) for name, array in arrays.items())


# ---- ONNX Runtime's profile: a list of events, whose times are microseconds -----------------------------------------


def _runs(events: list[dict[str, Any]]) -> list[tuple[int, list[dict[str, Any]]]]:
    """When each run began, and the events of its nodes in order."""
    events = sorted(events, key=lambda event: int(event["ts"]))
    runs: list[tuple[int, list[dict[str, Any]]]] = [(event["ts"], []) for event in events if event["name"] == _RUN]
    begins = [begin for begin, _ in runs]
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith(_NODE):
            runs[bisect_right(begins, event["ts"]) - 1][1].append(event)
    return runs


def _node(event: dict[str, Any], start_ms: float) -> LayerRun:
    about = event["args"]
    weights = int(about.get("parameter_size", 0))
    return LayerRun(
        name=event["name"][: -len(_NODE)],
        kind=about["op_name"],
        start_ms=start_ms,
        ms=event["dur"] / 1e3,
        inputs=_types(about.get("input_type_shape", ())),
        outputs=_types(about.get("output_type_shape", ())),
        weights_bytes=weights,
        bytes=weights + int(about.get("activation_size", 0)) + int(about.get("output_size", 0)),
    )


def _types(tensors: Iterable[Mapping[str, list[int]]]) -> tuple[TensorType, ...]:
    """Of [{"float": [1, 3, 256, 448]}, ...]; ONNX Runtime does not say their names."""
    return tuple(
        TensorType("", _DTYPES.get(dtype, dtype), tuple(shape)) for tensor in tensors for dtype, shape in tensor.items()
    )
