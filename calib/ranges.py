"""Ranges of a bundle's tensors, seen while the whole pipeline runs on photographs: each stage is fed by the one before.

Values are collected, and ranges chosen, by the collector behind ONNX Runtime's calibrators. "minmax" takes the largest
value that was seen, "percentile" leaves out the largest 0.001 % of all values, and "entropy" finds the range whose
128 steps keep most of the distribution (least Kullback-Leibler divergence).
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Optional

import numpy as np
from numpy.typing import NDArray

from edge4d.calib.photos import CalibrationData
from edge4d.runtime.backends.onnxruntime import OnnxRuntimeBackend
from edge4d.runtime.bundle import Bundle, Graph, SessionStep, Stage, TensorSpec
from edge4d.runtime.engine import Engine
from edge4d.runtime.errors import InvalidCalibration, InvalidRequest
from edge4d.runtime.systems import system

METHODS = ("minmax", "entropy", "percentile")
PERCENTILE = 99.999
_BINS = {"minmax": 512, "entropy": 512, "percentile": 2048}
_STEPS = 128
_OBSERVED = "observed."


class Range(NamedTuple):
    """What was seen of a tensor.

    Attributes:
        low, high: the smallest and largest value.
        largest: the magnitude that int8 is to reach.
        histogram: how many values had which magnitude, in bins of equal width from 0.
        edge: where the last bin ends.
    """

    low: float
    high: float
    largest: float
    histogram: tuple[int, ...]
    edge: float


Ranges = dict[str, Range]  # by the tensors' names


@dataclass(frozen=True)
class Watched:
    """What is to be seen of a stage: per session step, the names of tensors."""

    tensors: Mapping[Path, tuple[str, ...]]
    channels: frozenset[str] = frozenset()  # tensors whose largest magnitude per channel (last axis) is seen too


@dataclass(frozen=True)
class Seen:
    """Ranges of a stage's tensors, and the largest magnitude per channel [C] of those for which it was asked."""

    ranges: Ranges
    channels: dict[str, NDArray[np.float32]]

    def as_json(self) -> dict[str, Any]:
        channels = {name: array.tolist() for name, array in self.channels.items()}
        return {"ranges": {name: list(range_) for name, range_ in self.ranges.items()}, "channels": channels}

    @classmethod
    def from_json(cls, node: Mapping[str, Any]) -> Seen:
        ranges = {
            name: Range(low, high, largest, tuple(histogram), edge)
            for name, (low, high, largest, histogram, edge) in node["ranges"].items()
        }
        return cls(ranges, {name: np.array(values, np.float32) for name, values in node["channels"].items()})


def observe(
    watched: Mapping[str, Watched], run: Callable[[WatchingBackend], None], folder: Path, *, method: str
) -> dict[str, Seen]:
    """What the stages' tensors hold while they run.

    Args:
        watched: by stage.
        run: runs engines of the backend that it is given, in "fp32".
        folder: where the bundle's weights lie, for graphs that are written there and removed.

    Raises:
        InvalidCalibration: a tensor holds NaN or infinity.
        InvalidRequest: there is no such method.
    """
    check_method(method)
    backend = WatchingBackend(watched, folder, method)
    try:
        run(backend)
        return {stage: collector.seen() for stage, collector in backend.collectors.items()}
    finally:
        backend.remove_graphs()


def making_scenes(
    bundle: Bundle, data: CalibrationData, progress: Callable[[], None] = lambda: None
) -> Callable[[WatchingBackend], None]:
    """What runs the whole pipeline on photographs, each with another motion: noise of zero has no range.

    Args:
        progress: called after every photograph.

    Raises:
        InvalidRequest: the network cannot see pictures of this size.
    """

    def run(backend: WatchingBackend) -> None:
        with system(bundle.system)(bundle, backend, "fp32") as pipeline:
            for seed, photo in enumerate(data.photos):
                backend.data = photo.name
                pipeline.generate(photo.image, seed=seed, size=data.size, **photo.known)
                progress()

    return run


def check_method(method: str) -> None:
    if method not in METHODS:
        raise InvalidRequest(f"There is no calibration method '{method}'.", hint=f"Use {', '.join(METHODS)}.")


# ---- collecting -----------------------------------------------------------------------------------------------------


class Collector:
    """Histograms of tensors of one stage."""

    def __init__(self, method: str, channels: Iterable[str] = ()) -> None:
        HistogramCollector = import_module("onnxruntime.quantization.calibrate").HistogramCollector

        self._method = method
        kind = "entropy" if method == "minmax" else method  # every histogram knows its extremes
        self._histograms = HistogramCollector(kind, True, _BINS[method], _STEPS, PERCENTILE, "same")
        self._channels: dict[str, Any] = dict.fromkeys(channels)

    def add(self, name: str, array: NDArray[np.float32]) -> None:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does
            self._histograms.collect({name: array})
        if name in self._channels:
            largest = np.abs(array).reshape(-1, array.shape[-1]).max(0)
            before = self._channels[name]
            self._channels[name] = largest if before is None else np.maximum(before, largest)

    def seen(self) -> Seen:
        with contextlib.redirect_stdout(io.StringIO()):
            chosen = {} if self._method == "minmax" else self._histograms.compute_collection_result()
        ranges = {
            name: _range(collected, chosen.get(name)) for name, collected in self._histograms.histogram_dict.items()
        }
        return Seen(ranges, {name: array for name, array in self._channels.items() if array is not None})


def _range(collected: tuple[Any, ...], chosen: Optional[tuple[Any, ...]]) -> Range:
    counts, edges, low, high = collected[:4]
    low, high = float(low), float(high)
    largest = max(-low, high) if chosen is None else max(-float(chosen[0]), float(chosen[1]))
    if edges[0] < 0:  # of both signs, and symmetric
        half = len(counts) // 2
        counts = counts[half + len(counts) % 2 :] + counts[:half][::-1]
    return Range(low, high, largest, tuple(int(count) for count in counts), float(edges[-1]))


# ---- the pipeline, watched -------------------------------------------------------------------------------------------


class WatchingBackend:
    """ONNX Runtime on the CPU, whose engines show what is inside them to collectors.

    Attributes:
        data: the name of what they run on, for messages.
        collectors: by stage.
    """

    name = "onnxruntime"

    def __init__(self, watched: Mapping[str, Watched], folder: Path, method: str) -> None:
        self.data = ""
        self.collectors = {stage: Collector(method, what.channels) for stage, what in watched.items()}
        self._watched, self._folder = watched, folder
        self._backend = OnnxRuntimeBackend()
        self._written: list[Path] = []

    def engine(self, bundle: Bundle, stage: str, precision: str) -> Engine:
        if stage not in self._watched:
            return self._backend.engine(bundle, stage, precision)
        opened, names = self._opened(bundle.stage(stage), precision)
        engine = self._backend.stage_engine(opened, precision)
        return _WatchedEngine(engine, bundle.stage(stage), names, self)

    def _opened(self, stage: Stage, precision: str) -> tuple[Stage, dict[str, str]]:
        """The stage with the watched tensors among its outputs, and what each of those is called inside."""
        names: dict[str, str] = {}
        steps = []
        graph = stage.graph(precision)
        for step in graph.steps:
            if isinstance(step, SessionStep) and self._watched[stage.name].tensors.get(step.onnx):
                inside = self._watched[stage.name].tensors[step.onnx]
                outputs = {f"{_OBSERVED}{len(names) + i}": name for i, name in enumerate(inside)}
                step = replace(step, onnx=self._with_outputs(step, outputs), outputs=(*step.outputs, *outputs))
                names.update(outputs)
            steps.append(step)
        more = tuple(TensorSpec(name, "float32", ()) for name in names)
        opened = Graph(graph.whole, tuple(steps))
        return replace(stage, outputs=(*stage.outputs, *more), graphs={precision: opened}), names

    def _with_outputs(self, step: SessionStep, outputs: Mapping[str, str]) -> Path:
        import onnx

        model = onnx.load(step.onnx, load_external_data=False)
        for output, name in outputs.items():
            model.graph.node.append(onnx.helper.make_node("Identity", [name], [output]))
            model.graph.output.append(onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None))
        path = self._folder / f"watched.{step.onnx.name}"
        path.write_bytes(model.SerializeToString())
        self._written.append(path)
        return path

    def remove_graphs(self) -> None:
        for path in self._written:
            path.unlink(missing_ok=True)


class _WatchedEngine:
    """An engine that gives its collector what it computes on the way."""

    def __init__(self, engine: Engine, stage: Stage, names: Mapping[str, str], backend: WatchingBackend) -> None:
        self._engine, self._stage, self._names, self._backend = engine, stage, names, backend

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._stage.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._stage.outputs

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        outputs = self._engine.run(inputs)
        collector = self._backend.collectors[self._stage.name]
        for output, name in self._names.items():
            array = outputs.pop(output)
            self._check(name, array)
            collector.add(name, array)
        return outputs

    def _check(self, name: str, array: NDArray[np.float32]) -> None:
        wrong = array.size - int(np.count_nonzero(np.isfinite(array)))
        if wrong:
            raise InvalidCalibration(
                f"Tensor '{name}' of stage '{self._stage.name}' has no range.",
                note=f"On '{self._backend.data}', {wrong} of its {array.size} values are NaN or infinite.",
                hint="Leave the photograph out, or look at the network: its fp32 graph already gives them.",
            )

    def close(self) -> None:
        self._engine.close()

    def __enter__(self) -> _WatchedEngine:
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()
