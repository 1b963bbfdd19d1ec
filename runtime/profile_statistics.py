"""Figures that a profile's measurements are summed up in."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Sequence

import numpy as np

from edge4d.runtime.profile import Layer, Profile, StageProfile


def percentile(values: Sequence[float], percent: float) -> float:
    """Of a sequence that is not empty; between two values it is interpolated."""
    return float(np.percentile(values, percent))


def overlap(old: Sequence[float], new: Sequence[float]) -> float:
    """How little two sets of runs differ: 1 if a run of either is as often the faster one, 0 if always the same one is.

    It is twice the smaller share of the pairs (old run, new run) in which one side is faster; a tie counts half.
    """
    ordered = sorted(old)
    faster = sum(bisect.bisect_left(ordered, run) + bisect.bisect_right(ordered, run) for run in new) / 2
    share = faster / (len(old) * len(new))
    return 2 * min(share, 1 - share)


def chains(profile: Profile) -> dict[str, float]:
    """Milliseconds of all stages after each other, by precision: the sum of the medians.

    Without the precisions in which a stage was not measured.
    """
    names = {stage.name for stage in profile.stages}
    sums: dict[str, float] = {}
    for precision in precisions(profile):
        measured = [stage for stage in profile.stages if stage.precision == precision and stage.runs_ms]
        if {stage.name for stage in measured} == names:
            sums[precision] = sum(median(stage.runs_ms) for stage in measured)
    return sums


def median(values: Sequence[float]) -> float:
    return percentile(values, 50)


def precisions(profile: Profile) -> list[str]:
    return list(dict.fromkeys(stage.precision for stage in profile.stages))


def layer_ms(layers: Iterable[Layer]) -> float:
    return sum(layer.ms for layer in layers)


def length_ms(stage: StageProfile) -> float:
    """How long a stage is when what is inside it is shown below it: the clocks at layers make those the longer ones."""
    usual = median(stage.runs_ms) if stage.runs_ms else 0.0
    begin = layers_begin_ms(stage)
    inside = [start + ms for _, start, ms in gpu_spans_ms(stage)]
    return max([usual, *inside, *(begin + layer.start_ms + layer.ms for layer in stage.layers)])


def gpu_spans_ms(stage: StageProfile) -> list[tuple[str, float, float]]:
    """Name, start and length of what the GPU does in a stage, by the medians; empty where nothing runs on one."""
    spans, start = [], 0.0
    if stage.gpu_runs:
        for name in ("h2d", "compute", "d2h"):
            ms = median([getattr(run, f"{name}_ms") for run in stage.gpu_runs])
            spans.append((name, start, ms))
            start += ms
    return spans


def layers_begin_ms(stage: StageProfile) -> float:
    """When the first layer begins: after the inputs came to the GPU."""
    return next((start for name, start, _ in gpu_spans_ms(stage) if name == "compute"), 0.0)


def rooms_ms(layers: Sequence[Layer]) -> list[float]:
    """From each layer's start to the next one's. Starts are of one run and times of all: a layer may be longer."""
    starts = [layer.start_ms for layer in layers]
    return [following - start for start, following in zip(starts, [*starts[1:], math.inf])]
