"""Reads `calibration.json`, with which a bundle says how its int8 variant came to be; `edge4d.calib.results` writes it.

    {"format": 1, "method", "smooth", "keep_above", "data": {...}, "scored": {"photographs", "frames"},
     "psnr": {"cpu": {"mean", "worst"}, "engine": {...}}, "warnings": [...],
     "layers": [{"stage", "name", "kind", "int8", "int8_in_engine", "alone_psnr", "share",
                 "range": {"low", "high", "reached"}}, …]}

PSNR, in dB, is the rendered video's from that of the fp32 variant; `share` is of the multiplications of all layers that
could be int8.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from edge4d.runtime.bundle import Bundle
from edge4d.runtime.errors import InvalidBundle

CALIBRATION = "calibration.json"
FORMAT = 1
MAX_BYTES = 16 << 20


class StageInt8(NamedTuple):
    """How much of a stage computes in int8: layers, of how many, and their share of the work of those."""

    stage: str
    int8: int
    in_engine: int  # on TensorRT: where a GPU decided it may be fewer
    layers: int
    share: float
    left: tuple[str, ...]  # the layers that stay float


class Int8Summary(NamedTuple):
    """What an int8 variant is. `cpu` and `engine` are PSNR in dB, as ONNX Runtime and as TensorRT compute it."""

    method: str
    data: str
    cpu: float
    engine: float
    stages: tuple[StageInt8, ...]


def int8_summary(bundle: Bundle) -> Int8Summary:
    """Of a bundle that has `calibration.json`.

    Raises:
        InvalidBundle: the file is not what it should be.
    """
    path = bundle.folder / CALIBRATION
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES} bytes")
        return _summary(json.loads(path.read_bytes()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidBundle(
            f"'{CALIBRATION}' of '{bundle.name}' cannot be read.",
            note=f"{type(error).__name__}: {str(error)[:200]}.",
            hint="Calibrate the bundle again: edge4d calibrate.",
        ) from error


def _summary(node: Any) -> Int8Summary:
    if node["format"] != FORMAT:
        raise ValueError(f"format {node['format']!r}, this edge4d reads {FORMAT}")
    stages = {str(layer["stage"]): None for layer in node["layers"]}
    return Int8Summary(
        method=str(node["method"]),
        data=", ".join(f"{name} {value}" for name, value in node["data"].items()),
        cpu=float(node["psnr"]["cpu"]["mean"]),
        engine=float(node["psnr"]["engine"]["mean"]),
        stages=tuple(_stage(name, node["layers"]) for name in stages),
    )


def _stage(name: str, layers: list[Any]) -> StageInt8:
    own = [layer for layer in layers if layer["stage"] == name]
    int8 = [layer for layer in own if layer["int8"] is True]
    total = sum(float(layer["share"]) for layer in own)
    share = sum(float(layer["share"]) for layer in int8) / total if total else 0.0
    left = tuple(str(layer["name"]) for layer in own if layer["int8"] is not True)
    in_engine = sum(layer["int8_in_engine"] is True for layer in own)
    return StageInt8(name, len(int8), in_engine, len(own), share, left)


def summary_lines(bundle: Bundle) -> Iterator[str]:
    """What `edge4d info` says of an int8 variant. Raises InvalidBundle."""
    if CALIBRATION not in bundle.files:
        yield f"int8        not made by edge4d calibrate: there is no {CALIBRATION}"
        return
    summary = int8_summary(bundle)
    psnr = f"{summary.cpu:.1f} dB from fp32, {summary.engine:.1f} dB on TensorRT"
    yield f"int8        {summary.method} on {summary.data}; video {psnr}"
    for stage in summary.stages:
        left = f"; float: {', '.join(stage.left)}" if stage.left else ""
        share = f"{100 * stage.share:.0f} % of their work"
        fewer = f" ({stage.in_engine} on TensorRT)" if stage.in_engine != stage.int8 else ""
        yield f"int8        {stage.stage}: {stage.int8} of {stage.layers} layers{fewer}, {share}{left}"
