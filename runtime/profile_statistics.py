"""Figures that a profile's measurements are summed up in."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Sequence

from edge4d.runtime.profile import Layer, Profile


def percentile(values: Sequence[float], percent: float) -> float:
    """Of a sequence that is not empty; between two values it is interpolated."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


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
