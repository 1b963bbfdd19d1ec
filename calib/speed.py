"""How fast the variants of a bundle are, and the layers that are slower in int8 than in fp16 on TensorRT."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Optional, Protocol

from edge4d.calib.mixes import Mixes
from edge4d.runtime.backends import Backend
from edge4d.runtime.bundle import Bundle
from edge4d.runtime.errors import BackendUnavailable
from edge4d.runtime.layers import LayerRun, LooksInside
from edge4d.runtime.profile_inputs import Tensors, sample

RUNS = 30
_WARM_UP = 5
_SAME = 1.02  # times that differ by less are the same


class TimingBackend(Backend, LooksInside, Protocol):
    """A backend that can measure what happens inside its stages."""


class StageSpeed(NamedTuple):
    """A stage in one precision on one backend: the median of a run, and the engine's size; 0 where there is none."""

    backend: str
    stage: str
    precision: str
    ms: float
    engine_bytes: int


def tensorrt_backend() -> Optional[TimingBackend]:
    """TensorRT, where it and a GPU are; else None."""
    from edge4d.runtime.backends.tensorrt import TensorRtBackend

    try:
        return TensorRtBackend()
    except BackendUnavailable:
        return None


def speeds(bundle: Bundle, backend: Backend, size: tuple[int, int], runs: int = RUNS) -> list[StageSpeed]:
    """Every stage in every precision; precisions take turns, so that what else the machine does meets all of them.

    On TensorRT it is the GPU's time for computing, without copies.
    """
    inputs = sample(bundle, backend, bundle.precisions[0], size).inputs
    measure = _inside if backend.name == "tensorrt" else _outside
    return [speed for stage in bundle.stages for speed in measure(bundle, backend, stage, inputs[stage], runs)]


def _outside(bundle: Bundle, backend: Backend, stage: str, inputs: Tensors, runs: int) -> Iterable[StageSpeed]:
    engines = {precision: backend.engine(bundle, stage, precision) for precision in bundle.precisions}
    times: dict[str, list[float]] = {precision: [] for precision in engines}
    for _ in range(_WARM_UP + runs):
        for precision, engine in engines.items():
            start = time.perf_counter()
            engine.run(inputs)
            times[precision].append(1e3 * (time.perf_counter() - start))
    for precision, engine in engines.items():
        engine.close()
        yield StageSpeed(backend.name, stage, precision, statistics.median(times[precision][_WARM_UP:]), 0)


def _inside(bundle: Bundle, backend: Any, stage: str, inputs: Tensors, runs: int) -> Iterable[StageSpeed]:
    for precision in bundle.precisions:
        inside = backend.look_inside(bundle, stage, precision, inputs, _WARM_UP + runs)
        ms = statistics.median(run.compute_ms for run in inside.gpu_runs[_WARM_UP:])
        yield StageSpeed(backend.name, stage, precision, ms, inside.engine_bytes)


# ---- the mix that is not slower --------------------------------------------------------------------------------------


class _Timed(NamedTuple):
    """A stage on TensorRT: of a run as a whole, and of each layer."""

    ms: float
    layers: Mapping[str, float]


def not_slower(
    mixes: Mixes,
    chosen: Iterable[str],
    backend: LooksInside,
    inputs: Mapping[str, Tensors],
    runs: int = RUNS,
    report: Callable[[], None] = lambda: None,
) -> frozenset[str]:
    """Those of the layers `chosen` with which no stage is slower than in fp16 on TensorRT.

    Where a stage is slower, the layers go back to fp16 that take longer than there, and all of them where it is none of
    its layers alone; then it is timed again.

    Args:
        inputs: by stage.
        report: called after every engine.
    """
    kept = frozenset(chosen)

    def timed(bundle: Bundle, stage: str, precision: str) -> _Timed:
        inside = backend.look_inside(bundle, stage, precision, inputs[stage], _WARM_UP + runs)
        report()
        ms = statistics.median(run.compute_ms for run in inside.gpu_runs[_WARM_UP:])
        return _Timed(ms, _medians(inside.layer_runs[_WARM_UP:]))

    for stage in mixes.stages:
        half = timed(mixes.bundle, stage, "fp16")
        while own := {name for name in kept if name.startswith(f"{stage}/")}:
            int8 = timed(mixes.bundle_with(kept), stage, "int8")
            if int8.ms <= half.ms:
                break
            kept -= {name for name in own if _of(name, int8) > _SAME * _of(name, half)} or own
    return kept


def _medians(by_run: Iterable[Iterable[LayerRun]]) -> dict[str, float]:
    times: dict[str, list[float]] = {}
    for run in by_run:
        for layer in run:
            times.setdefault(layer.name, []).append(layer.ms)
    return {name: statistics.median(found) for name, found in times.items()}


def _of(name: str, timed: _Timed) -> float:
    """Milliseconds of what a layer became: TensorRT joins the names of nodes that it runs as one."""
    node = name.partition("/")[2]
    own = re.compile(rf"(?<![\w./]){re.escape(node)}(?!\w)")
    return sum(ms for layer, ms in timed.layers.items() if own.search(layer))
