"""What an int8 variant is and what it costs, as the `calibration.json` of a bundle holds it.

Nothing in it depends on the time or the machine's speed: the same data gives the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple, Optional

from edge4d.calib.mixes import Calibrated, layer_id
from edge4d.calib.ranges import Range
from edge4d.calib.score import Score
from edge4d.calib.sensitivity import Choice
from edge4d.runtime.calibration_file import FORMAT

_DIGITS = 6


class LayerResult(NamedTuple):
    """One layer that can be int8.

    Attributes:
        stage, name, kind: which one.
        int8: whether it is.
        in_engine: whether it is on TensorRT too.
        alone: the video's PSNR when it alone is int8, in dB; None for a layer that takes nothing but zeros.
        share: of the multiplications of all such layers.
        range: of what it takes.
    """

    stage: str
    name: str
    kind: str
    int8: bool
    in_engine: bool
    alone: Optional[float]
    share: float
    range: Range


class Settings(NamedTuple):
    """What was asked for."""

    method: str
    smooth: Optional[float]
    keep_above: float


class Results(NamedTuple):
    """What came of a calibration.

    Attributes:
        data: where the photographs are from, and how many.
        scored: how many photographs and frames the scores are of.
        cpu, engine: the video's PSNR from fp32, as ONNX Runtime computes it and as TensorRT's graph says.
        warnings: sentences.
    """

    settings: Settings
    data: Mapping[str, Any]
    scored: Mapping[str, int]
    layers: tuple[LayerResult, ...]
    cpu: Score
    engine: Score
    warnings: tuple[str, ...]

    def json_bytes(self) -> bytes:
        layers = [_layer_json(layer) for layer in self.layers]
        node = {
            "format": FORMAT,
            **self.settings._asdict(),
            "data": dict(self.data),
            "scored": dict(self.scored),
            "psnr": {"cpu": _rounded(self.cpu._asdict()), "engine": _rounded(self.engine._asdict())},
            "layers": layers,
            "warnings": list(self.warnings),
        }
        return (json.dumps(node, indent=1) + "\n").encode()


def layer_results(
    stages: Mapping[str, Calibrated], ranges: Mapping[str, Mapping[str, Range]], choice: Choice
) -> tuple[LayerResult, ...]:
    """Of all layers, stage by stage."""
    work = work_of(stages, ranges)
    total = sum(work.values())
    found = []
    for name, stage in stages.items():
        sources = {part_layer.name: part for part in stage.floating.parts for part_layer in part.layers}
        for layer in stage.floating.layers:
            key = layer_id(name, layer)
            taken = ranges[name][sources[layer.name].wiring.source(layer.input)]
            alone = choice.alone[key].mean if key in choice.alone else None
            share = work.get(key, 0.0) / total
            int8, in_engine = key in choice.int8, key in choice.in_engine
            found.append(LayerResult(name, layer.name, layer.kind, int8, in_engine, alone, share, taken))
    return tuple(found)


def work_of(stages: Mapping[str, Calibrated], ranges: Mapping[str, Mapping[str, Range]]) -> dict[str, float]:
    """Multiplications of each layer over all photographs, by its id: what a histogram counts are values."""
    work = {}
    for name, stage in stages.items():
        for part in stage.floating.parts:
            for layer in part.layers:
                tensor = part.wiring.source(layer.output if layer.kind == "Conv" else layer.input)
                channels = stage.floating.weights[layer.name].weight.shape[
                    0
                ]  # of the output, or those that a product takes
                work[layer_id(name, layer)] = float(sum(ranges[name][tensor].histogram)) * layer.weights / channels
    return work


def _layer_json(layer: LayerResult) -> dict[str, Any]:
    low, high, largest = layer.range[:3]
    alone = None if layer.alone is None else round(layer.alone, _DIGITS)
    return {
        "stage": layer.stage,
        "name": layer.name,
        "kind": layer.kind,
        "int8": layer.int8,
        "int8_in_engine": layer.in_engine,
        "alone_psnr": alone,
        "share": round(layer.share, _DIGITS),
        "range": _rounded({"low": low, "high": high, "reached": largest}),
    }


def _rounded(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, _DIGITS) for name, value in figures.items()}
