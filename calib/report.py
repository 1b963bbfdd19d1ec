"""The page on a calibration, `calibration.html`: pictures, layers and times, in one file that loads nothing."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Optional

import numpy as np
from numpy.typing import NDArray

from edge4d.calib.calibrate import Calibration
from edge4d.calib.mixes import ENGINE, with_engine_variant
from edge4d.calib.results import LayerResult, Results
from edge4d.calib.score import FRAMES, Reference
from edge4d.calib.speed import StageSpeed
from edge4d.runtime import profile_page as page
from edge4d.runtime.backends.onnxruntime import OnnxRuntimeBackend
from edge4d.runtime.evaluate import evaluate
from edge4d.runtime.metrics import psnr, ssim
from edge4d.runtime.profile_pictures import number, text
from edge4d.runtime.systems import system
from edge4d.runtime.world_files import World

AMPLIFIED = 8  # times, for differences to be seen
_SHOWN = 3  # frames: the worst, the middle and the best
_TRUE = 4  # photographs whose true frames are compared with
_BARS = 64  # of a histogram

_FIGURE = "margin:0;flex:1;min-width:220px"  # three beside each other where there is room

_VARIANTS = {"fp16": "fp16", "int8": "int8, ONNX Runtime", ENGINE: "int8, as TensorRT gets it"}

Image = NDArray[np.float32]


class Likeness(NamedTuple):
    """How near a variant's frames are to the fp32 variant's, frame by frame."""

    psnr: tuple[float, ...]
    ssim: tuple[float, ...]


def html(calibration: Calibration, speeds: Sequence[StageSpeed], truth: Mapping[str, Mapping[str, Any]]) -> str:
    """The page.

    Args:
        speeds: of all stages and precisions, on each backend that was there.
        truth: what `edge4d.runtime.evaluate.evaluate` says, by precision; empty without a world.
    """
    reference, bundle = calibration.reference, with_engine_variant(calibration.bundle)
    drawn = {variant: reference.draw(bundle, variant) for variant in _VARIANTS}
    likeness = {variant: _likeness(frames, reference.frames) for variant, frames in drawn.items()}
    results = calibration.results
    sections = {
        "Picture": _picture(likeness, truth, results),
        "Frames": _frames(reference, drawn["int8"], likeness["int8"]),
        "Layers": _layers(results.layers),
        "Speed and size": _speeds(speeds) + _sizes(calibration),
    }
    title = f"{calibration.bundle.name}: int8"
    return page.page(title, _head(calibration, results), sections)


# ---- head -----------------------------------------------------------------------------------------------------------


def _head(calibration: Calibration, results: Results) -> str:
    int8 = [layer for layer in results.layers if layer.int8]
    share = sum(layer.share for layer in int8)
    facts = {
        "method": results.settings.method,
        "data": ", ".join(f"{name} {value}" for name, value in results.data.items()),
        "SmoothQuant": "off" if results.settings.smooth is None else f"alpha {results.settings.smooth:g}",
        "kept above": f"{results.settings.keep_above:g} dB",
        "scored by": f"{results.scored['frames']} frames of {results.scored['photographs']} photographs",
    }
    listed = "".join(f"<dt>{text(name)}</dt><dd>{text(fact)}</dd>" for name, fact in facts.items())
    warnings = "".join(f'<p class="result">Warning: {text(warning)}</p>\n' for warning in results.warnings)
    return (
        f"<h1>{text(calibration.bundle.name)} <small>int8</small></h1>\n"
        f'<p class="result"><b>{len(int8)} of {len(results.layers)}</b> layers compute in int8, with '
        f"<b>{100 * share:.0f} %</b> of the work; the video stays at <b>{results.cpu.mean:.1f} dB</b> from fp32, "
        f"<b>{results.engine.mean:.1f} dB</b> on TensorRT.</p>\n{warnings}<dl>{listed}</dl>\n"
    )


# ---- pictures -------------------------------------------------------------------------------------------------------


def _likeness(frames: Sequence[Image], reference: Sequence[Image]) -> Likeness:
    pairs = list(zip(frames, reference))
    return Likeness(tuple(psnr(*pair) for pair in pairs), tuple(ssim(*pair) for pair in pairs))


def _picture(likeness: Mapping[str, Likeness], truth: Mapping[str, Mapping[str, Any]], results: Results) -> str:
    rows = [
        [_VARIANTS[variant], number(float(np.mean(found.psnr))), number(min(found.psnr)), f"{np.mean(found.ssim):.4f}"]
        for variant, found in likeness.items()
    ]
    columns = ["Against the frames of fp32", "PSNR dB", "worst frame dB", "SSIM"]
    parts = [page.table(columns, rows, "left")]
    if truth:
        rows = [
            [text(precision), *map(number, _psnrs(figures)), f"{figures['ssim']:.4f}"]
            for precision, figures in truth.items()
        ]
        columns = ["Against the true frames", "PSNR dB", "without motion dB", "photograph repeated dB", "SSIM"]
        frames = next(iter(truth.values()))
        parts.append(page.table(columns, rows, "left"))
        parts.append(
            page.note(f"{frames['count']} photographs of the world, {frames['frames'] - 1} later frames each.")
        )
    else:
        parts.append(page.note("Photographs have no true frames to compare with; a world has: --data world:street."))
    parts.append(page.note("PSNR is the mean over frames of the frame's, as everywhere."))
    return "".join(parts)


def _psnrs(figures: Mapping[str, Any]) -> list[float]:
    return [figures[name] for name in ("psnr", "psnr_static", "psnr_copy")]


def _frames(reference: Reference, frames: Sequence[Image], likeness: Likeness) -> str:
    order = sorted(range(len(frames)), key=lambda index: likeness.psnr[index])
    shown = dict.fromkeys((order[0], order[len(order) // 2], order[-1]))
    parts = []
    for index, name in zip(shown, ("Worst", "Middle", "Best")):
        photo = reference.photos[index // FRAMES].name
        pictures = {
            "fp32": reference.frames[index],
            "int8": frames[index],
            f"difference, {AMPLIFIED} times": np.clip(
                AMPLIFIED * np.abs(frames[index] - reference.frames[index]), 0, 1
            ),
        }
        cells = "".join(
            f'<figure style="{_FIGURE}">{_image(picture)}<figcaption>{text(caption)}</figcaption></figure>'
            for caption, picture in pictures.items()
        )
        parts.append(f"<h3>{name}: {number(likeness.psnr[index])} dB, {text(photo)}, frame {index % FRAMES + 1}</h3>\n")
        parts.append(f'<div style="display:flex;flex-wrap:wrap;gap:8px">{cells}</div>\n')
    return "".join(parts)


def _image(picture: Image) -> str:
    from PIL import Image as Pillow

    buffer = io.BytesIO()
    Pillow.fromarray(np.round(picture * 255).astype(np.uint8)).save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    height, width = picture.shape[:2]
    size = f'width="{width}" height="{height}" style="width:100%;height:auto"'
    return f'<img src="data:image/png;base64,{data}" {size} alt="">'


# ---- layers ---------------------------------------------------------------------------------------------------------


def _layers(layers: Sequence[LayerResult]) -> str:
    columns = [
        "Stage",
        "Layer",
        "Computes in",
        "alone dB",
        "of the work",
        "smallest",
        "largest",
        "int8 reaches",
        "Values",
    ]
    rows = [
        [
            text(layer.stage),
            f"{page.name(layer.name)} <small>{text(layer.kind)}</small>",
            _computes_in(layer),
            page.UNKNOWN if layer.alone is None else number(layer.alone),
            page.percent(layer.share, 1.0),
            *(_signed(value) for value in layer.range[:3]),
            _histogram(layer),
        ]
        for layer in sorted(layers, key=lambda layer: 0.0 if layer.alone is None else layer.alone)
    ]
    note = (
        "The most sensitive first. Alone: PSNR of the video when nothing else is int8. Layers go back to float in the "
        "order of their error for the work that int8 saves there. Smallest, largest and the values are those of what a "
        "layer takes, by magnitude, the count on a logarithmic scale; the line is where int8 ends, and what lies "
        "behind it is cut off."
    )
    return page.table(columns, rows, "left name left") + page.note(note)


def _computes_in(layer: LayerResult) -> str:
    if layer.int8:
        return "<b>int8</b>" if layer.in_engine else "<b>int8</b>, fp16 on TensorRT"
    return "float"


def _signed(value: float) -> str:
    return f"-{number(-value)}" if value < 0 else number(value)


def _histogram(layer: LayerResult) -> str:
    """Counts by magnitude, with a line where int8 ends."""
    counts = np.array(layer.range.histogram, np.float64)
    heights = np.log1p([part.sum() for part in np.array_split(counts, min(_BARS, len(counts)))])
    width, height = 2 * len(heights), 22
    tops = height - (height - 2) * heights / (heights.max() or 1.0)
    points = " ".join(f"{2 * i},{top:.1f} {2 * i + 2},{top:.1f}" for i, top in enumerate(tops))
    reach = width * min(layer.range.largest / (layer.range.edge or 1.0), 1.0)
    return (
        f'<svg width="{width}" height="{height}" role="img"><polygon class="int8" points="0,{height} {points} '
        f'{width},{height}"/><line class="line" x1="{reach:.1f}" y1="0" x2="{reach:.1f}" y2="{height}"/></svg>'
    )


# ---- speed and size -------------------------------------------------------------------------------------------------


def _speeds(speeds: Sequence[StageSpeed]) -> str:
    if not speeds:
        return page.missing("Nothing was timed.")
    longest = max(speed.ms for speed in speeds)
    rows = []
    for speed in speeds:
        same = [other for other in speeds if (other.backend, other.stage) == (speed.backend, speed.stage)]
        ms = {other.precision: other.ms for other in same}
        ratios = [page.speed(ms.get(precision, 0.0), speed.ms) for precision in ("fp32", "fp16")]
        bar = page.bar(speed.ms, longest, page.precision_colour(speed.precision))
        size = page.megabytes(speed.engine_bytes) or page.UNKNOWN
        rows.append([*map(text, (speed.backend, speed.stage, speed.precision)), bar, number(speed.ms), *ratios, size])
    columns = ["Backend", "Stage", "Precision", "Median", "ms", "speed to fp32", "speed to fp16", "engine MB"]
    note = "A run of the stage, precisions in turn; on TensorRT the GPU's time for computing, without copies."
    return page.table(columns, rows, "left left left wide") + page.note(note)


def _sizes(calibration: Calibration) -> str:
    bundle = calibration.bundle
    int8 = sum(entry.bytes for path, entry in bundle.files.items() if "int8" in path.split("."))
    rest = sum(entry.bytes for entry in bundle.files.values()) - int8
    return page.note(
        f"The int8 graphs take {number(int8 / 1e6)} MB of the bundle's {number((int8 + rest) / 1e6)} MB: their weights "
        "are the floats that the other graphs share, and become 8 bits when a graph is loaded or an engine is built."
    )


def truth_of(calibration: Calibration, world: Optional[World]) -> dict[str, dict[str, Any]]:
    """Figures of the fp32 and int8 variants on a world's first sequences; none without a world."""
    if world is None:
        return {}
    few = replace(world, sequences=world.sequences[:_TRUE])
    bundle = calibration.bundle
    found = {}
    for precision in ("fp32", "int8"):
        with system(bundle.system)(bundle, OnnxRuntimeBackend(), precision) as pipeline:
            found[precision] = evaluate(pipeline, few, backend="onnxruntime")
    return found
