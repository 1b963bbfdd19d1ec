"""Which layers can be int8: each one alone, then as many together as the rendered video allows.

A layer's error is that of the video when it alone is int8, not the layer's own. Where all together are too much, those
go back to float first that err most for the work that int8 saves there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from edge4d.calib.ledger import Ledger
from edge4d.calib.mixes import ENGINE, Mixes
from edge4d.calib.score import Reference, Score
from edge4d.runtime.errors import InvalidCalibration

Report = Callable[[], None]  # is told that one more mix was scored


class Choice(NamedTuple):
    """What became int8.

    Attributes:
        int8: ids of layers.
        in_engine: those that are int8 on TensorRT too.
        alone: the video's score when a layer alone is int8, by its id.
        cpu, engine: scores of the whole choice, as ONNX Runtime computes it and as TensorRT's graph says.
    """

    int8: frozenset[str]
    in_engine: frozenset[str]
    alone: Mapping[str, Score]
    cpu: Score
    engine: Score


class Trials:
    """Scores of mixes, each measured once."""

    def __init__(self, mixes: Mixes, reference: Reference, ledger: Ledger, report: Report = lambda: None) -> None:
        self._mixes, self._reference, self._ledger, self._report = mixes, reference, ledger, report

    def score(self, chosen: Collection[str], variant: str = "int8") -> Score:
        """Of a mix; `variant` is "int8" or `ENGINE`, or another of the bundle's, for a mix of no layers."""
        name = f"{variant}: {' '.join(sorted(chosen))}"
        found = self._ledger.get(name, lambda: self._reference.score(self._mixes.bundle_with(chosen), variant))
        self._report()
        return Score(*found)


def choose(trials: Trials, ids: Sequence[str], work: Mapping[str, float], keep_above: float) -> Choice:
    """As many layers as keep the video's PSNR above `keep_above` dB, in both graphs.

    Args:
        ids: of the layers that there are.
        work: multiplications that a layer needs, by its id.

    Raises:
        InvalidCalibration: not even one layer can be int8.
    """
    half = trials.score((), "fp16")
    if half.mean < keep_above:
        raise InvalidCalibration(
            f"No layer can be int8 with the video above {keep_above:g} dB.",
            note=f"Already fp16, which the layers that stay float have on TensorRT, leaves {half.mean:.1f} dB.",
            hint="Use a lower --keep-above, or keep more of the network in float32 when it is exported.",
        )
    alone = {name: trials.score({name}) for name in ids}
    order = sorted(ids, key=lambda name: (-_error(alone[name]) / work[name], name))

    def holds(back: int) -> bool:
        kept = set(order[back:])
        return trials.score(kept).mean >= keep_above and trials.score(kept, ENGINE).mean >= keep_above

    back = next(filter(holds, _numbers(len(order))), None)
    if back is None:
        best = max(score.mean for score in alone.values())
        raise InvalidCalibration(
            f"No layer can be int8 with the video above {keep_above:g} dB.",
            note=f"The best one alone leaves {best:.1f} dB.",
            hint="Use a lower --keep-above, another --method, or more photographs.",
        )
    kept = frozenset(order[back:])
    return Choice(kept, kept, alone, trials.score(kept), trials.score(kept, ENGINE))


def _error(score: Score) -> float:
    """The mean square that a PSNR stands for."""
    return float(10.0 ** (-score.mean / 10.0))


def _numbers(most: int) -> Iterator[int]:
    """0, 1, 2, ... and, from 10 on, in steps of a tenth, below `most`. Not halving: scores do not fall evenly, because
    objects at the edge of being one or two jump with the smallest change."""
    number = 0
    while number < most:
        yield number
        number += 1 + number // 10
