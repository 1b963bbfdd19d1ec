"""The sections of the profile report that are about layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from edge4d.runtime import profile_page as page
from edge4d.runtime import profile_pictures as pictures
from edge4d.runtime.profile import Layer, Profile, StageProfile
from edge4d.runtime.profile_pictures import Box, Dot, Row, number, quantity, text
from edge4d.runtime.profile_statistics import (
    gpu_spans_ms,
    layer_ms,
    layers_begin_ms,
    length_ms,
    median,
    precisions,
    rooms_ms,
)

TOP_LAYERS = 10
_COLOURS = 7  # k0 to k6 of the style sheet; rarer kinds are grey


def timeline(profile: Profile) -> str:
    rows, total = [], 0.0
    colours = _kind_colours(profile)
    for precision in precisions(profile):
        tracks, total_of_precision = _tracks(profile, precision, colours)
        rows += [Row("" if number else precision, boxes) for number, boxes in enumerate(tracks)]
        total = max(total, total_of_precision)
    if not total:
        return page.missing("No stage was timed.")
    if not colours:
        return pictures.timeline(rows, total) + page.note("Stages after each other.")
    note = (
        "Stages after each other, and below them their layers in a run of median length with per-layer profiling, "
        "which can make a stage longer than in the table above. A layer is as long as its median: where that run was "
        "slower, a gap follows. Point at a box to see its name."
    )
    if any(stage.gpu_runs for stage in profile.stages):
        note += " Between them: copies to the GPU, its computing and copies back, without per-layer profiling."
    return pictures.timeline(rows, total) + page.legend(colours) + page.note(note)


def _tracks(profile: Profile, precision: str, colours: Mapping[str, str]) -> tuple[list[tuple[Box, ...]], float]:
    """Boxes of the stages in one precision, of what the GPU does and of the layers; and when the last stage ends."""
    stages: list[Box] = []
    gpu: list[Box] = []
    layers: list[Box] = []
    start = 0.0
    for stage in profile.stages:
        if stage.precision == precision:
            length = length_ms(stage)
            title = f"{stage.name}, {precision}: {number(length)} ms"
            stages.append(Box(start, length, stage.name, title, "stage"))
            gpu += _gpu_boxes(stage, start)
            layers += _layer_boxes(stage.layers, start + layers_begin_ms(stage), colours)
            start += length
    return [tuple(stages), *(tuple(boxes) for boxes in (gpu, layers) if boxes)], start


def _gpu_boxes(stage: StageProfile, start: float) -> Iterator[Box]:
    for name, begin, ms in gpu_spans_ms(stage):
        colour = "stage" if name == "compute" else "other"
        yield Box(start + begin, ms, name, f"{stage.name}, {name}: {number(ms)} ms", colour)


def _layer_boxes(layers: Sequence[Layer], start: float, colours: Mapping[str, str]) -> Iterator[Box]:
    for layer, room in zip(layers, rooms_ms(layers)):
        size = min(layer.ms, room) if room > 0 else layer.ms
        title = f"{layer.name}, {layer.kind} {layer.dtype}: {number(layer.ms)} ms"
        yield Box(start + layer.start_ms, size, layer.kind, title, colours.get(layer.kind, "other"))


def layers(profile: Profile) -> dict[str, str]:
    """The sections on the layers by themselves: one that says why if there are none."""
    if not any(stage.layers for stage in profile.stages):
        return {"Layers": page.missing(f"No layers were timed with the backend {text(profile.backend)}.")}
    return {
        "Longest layers": _top_layers(profile),
        "Kinds of layers": _kinds(profile),
        "Precision of layers": _dtypes(profile),
    }


def _top_layers(profile: Profile) -> str:
    stages = [stage for stage in profile.stages if stage.layers]
    tables = []
    for stage in stages:
        total = layer_ms(stage.layers)
        count = f"{len(stage.layers)} layers, {number(total)} ms"
        whole = [run.compute_ms for run in stage.gpu_runs] or stage.runs_ms
        alone = f" ({number(median(whole))} ms without per-layer profiling)" if whole else ""
        name = f"{text(stage.name)} in {text(stage.precision)}"
        tables.append(f"<details open><summary><b>{name}</b>: {count}{alone}</summary>{_longest(stage)}</details>\n")
    note = "Median of each layer, in runs of their own with per-layer profiling. Point at a name to see its tensors."
    if any(stage.gpu_runs for stage in profile.stages):
        note += (
            " Layers are what TensorRT reports, after its fusions; below the name stands the kernel that it chose, "
            "where it tells. Kernels themselves are not timed: Nsight Systems does that, and shows layers as ranges of "
            "the same names, with the package nvtx stages too."
        )
    return "".join(tables) + page.note(note)


def _longest(stage: StageProfile) -> str:
    total = layer_ms(stage.layers)
    layers = sorted(stage.layers, key=lambda layer: -layer.ms)[:TOP_LAYERS]
    rows = [
        [
            f'<span title="{text(_tensors(layer))}">{page.name(layer.name)}</span>{_tactic(layer)}',
            text(layer.kind),
            text(layer.dtype),
            page.bar(layer.ms, layers[0].ms, page.dtype_colour(layer)),
            number(layer.ms),
            page.percent(layer.ms, total),
        ]
        for layer in layers
    ]
    return page.table(["Layer", "Kind", "Type", "", "ms", "of stage"], rows, "name left left wide")


def _tactic(layer: Layer) -> str:
    return f"<br><small>{page.name(layer.tactic)}</small>" if layer.tactic else ""


def _tensors(layer: Layer) -> str:
    return f"{', '.join(layer.inputs)} → {', '.join(layer.outputs)}"


def _kinds(profile: Profile) -> str:
    colours = _kind_colours(profile)
    bars = _shares(profile, lambda layer: layer.kind if layer.kind in colours else "other", colours)
    return bars + page.legend(colours)


def _dtypes(profile: Profile) -> str:
    colours = {**page.DTYPES, "other": "other"}
    bars = _shares(profile, lambda layer: layer.dtype if layer.dtype in colours else "other", colours)
    note = "Share of each stage's time by the type that its layers write; other: whole numbers, or not known."
    return f"{bars}{page.legend(colours)}{''.join(_other_types(profile))}{page.note(note)}"


def _other_types(profile: Profile) -> Iterator[str]:
    """Says where a precision is one by name only: a backend may convert what it has no fast operators for."""
    for dtype, precision in page.DTYPES.items():
        layers = [layer for stage in profile.stages if stage.precision == precision for layer in stage.layers]
        total, own = layer_ms(layers), layer_ms(layer for layer in layers if layer.dtype == dtype)
        if own < total / 2:
            yield (
                f"<p><b>{precision}</b>: only {page.percent(own, total)} of the time goes to layers that write "
                f"{dtype}. The backend or the graph does the rest in other types.</p>\n"
            )


def _shares(profile: Profile, group: Callable[[Layer], str], colours: Mapping[str, str]) -> str:
    """A bar for each stage and precision: which part of its layers' time goes to which group, the longest first."""
    rows = []
    for stage in profile.stages:
        total = layer_ms(stage.layers)
        if total:
            boxes = tuple(_share_boxes(_times(stage.layers, group), total, colours))
            rows.append(Row(f"{stage.name} {stage.precision}", boxes, f"{number(total)} ms"))
    return pictures.bars(rows, 1.0) if rows else ""


def _share_boxes(times: Mapping[str, float], total: float, colours: Mapping[str, str]) -> Iterator[Box]:
    start = 0.0
    for name in sorted(times, key=lambda name: (name == "other", -times[name])):
        share = times[name] / total
        title = f"{name}: {number(times[name])} ms, {share:.1%}"
        yield Box(start, share, f"{name} {share:.0%}", title, colours[name])
        start += share


def _times(layers: Iterable[Layer], group: Callable[[Layer], str]) -> dict[str, float]:
    """Milliseconds of the layers of each group."""
    times: dict[str, float] = {}
    for layer in layers:
        times[group(layer)] = times.get(group(layer), 0.0) + layer.ms
    return times


def _kind_colours(profile: Profile) -> dict[str, str]:
    """The colours of the kinds that take most time in the whole profile."""
    times = _times((layer for stage in profile.stages for layer in stage.layers), lambda layer: layer.kind)
    longest = sorted(times, key=lambda kind: -times[kind])
    colours = {kind: f"k{index}" for index, kind in enumerate(longest[:_COLOURS])}
    return {**colours, "other": "other"} if len(longest) > _COLOURS else colours


# Roofline


class _Work(NamedTuple):
    """A layer with known work, and how near it comes to what the machine can do."""

    stage: str
    layer: Layer
    roof: str  # the type whose flat roof it stands under
    intensity: float  # FLOP per byte
    rate: float  # FLOP per second
    by_memory: bool
    of_roof: float


def roofline(profile: Profile) -> str:
    peaks = profile.peaks
    if not any(peaks.flops.values()) or not peaks.bandwidth:
        return page.missing(f"The peaks of {text(profile.about.get('gpu', 'this machine'))} are not known.")
    works = {precision: _works(profile, precision) for precision in precisions(profile)}
    if not any(works.values()):
        return page.missing("The operations of the layers are not known.")
    flat = _flat_roofs(profile, (work for group in works.values() for work in group))
    rates = [f"{quantity(peak, 'FLOP/s')} in {text(name)}" for name, peak in flat.items()]
    note = (
        f"{page.enumerated([*rates, quantity(peaks.bandwidth, 'B/s')])}: {text(peaks.source)}. A dot is a layer, its "
        "area its time; left of where the roofs meet a layer is limited by memory. Tensors count once and as if they "
        "came from memory: dots above the slanted roof found them in a cache. A type without a flat roof of its own "
        "may pass the one that is there. Dots far below the roofs are limited by neither: layers too small to fill the "
        "machine, or waits."
    )
    colours = {"limited by memory": "by-memory", "limited by arithmetic": "by-arithmetic"}
    every = [_dot(work) for group in works.values() for work in group]
    roofs = "".join(_roof(profile, precision, group, every, flat) for precision, group in works.items() if group)
    pair = f'{page.legend(colours)}<div class="roofs">{roofs}</div>\n'
    slow = "".join(_slow_table(precision, group) for precision, group in works.items())
    low = _low_peak(profile, [work for group in works.values() for work in group])
    return f"{pair}{low}{page.note(note)}{slow}"


def _flat_roofs(profile: Profile, works: Iterable[_Work]) -> dict[str, float]:
    """Those under which a layer stands."""
    used = {work.roof for work in works}
    return {name: peak for name, peak in profile.peaks.flops.items() if name in used}


def _low_peak(profile: Profile, works: Sequence[_Work]) -> str:
    """A warning where float32 layers beat their peak: a roof that is too low praises every layer."""
    rates = [work.rate for work in works if work.layer.dtype == work.roof == "float32"]
    above = sum(rate > 1.1 * profile.peaks.flops["float32"] for rate in rates)
    if not above:
        return ""
    return (
        f"<p><b>The flat roof is too low</b>: {above} of {len(rates)} float32 layers are faster, at most "
        f"{quantity(max(rates), 'FLOP/s')}. Fewer threads or a busy machine while it was measured can "
        "be the cause, on a GPU tensor cores that compute with fewer bits.</p>\n"
    )


def _works(profile: Profile, precision: str) -> list[_Work]:
    stages = (stage for stage in profile.stages if stage.precision == precision)
    return [_work(stage.name, layer, profile) for stage in stages for layer in stage.layers if _known(layer)]


def _roof(
    profile: Profile, precision: str, works: Sequence[_Work], every: Sequence[Dot], flat: Mapping[str, float]
) -> str:
    """The picture of one precision, and what it shows in a sentence."""
    total = sum(layer_ms(stage.layers) for stage in profile.stages if stage.precision == precision)
    picture = pictures.roofline([_dot(work) for work in works], every, flat, profile.peaks.bandwidth)
    slow = [work for work in works if work.by_memory]
    share = page.percent(layer_ms(work.layer for work in slow), total)
    rest = page.percent(total - layer_ms(work.layer for work in works), total)
    return (
        f"<div><h3>{text(precision)}</h3>\n{picture}<p>{len(slow)} of {len(works)} layers with known operations are "
        f"limited by memory: {share} of the time of all layers. Layers without known operations, which mostly move "
        f"data, take {rest} and are not drawn.</p></div>\n"
    )


def _slow_table(precision: str, works: Sequence[_Work]) -> str:
    """The longest of the layers that are limited by memory."""
    slow = sorted((work for work in works if work.by_memory), key=lambda work: -work.layer.ms)[:TOP_LAYERS]
    columns = [f"Limited by memory in {text(precision)}", "Stage", "ms", "FLOP/byte", "GB/s", "of roof"]
    return page.table(columns, map(_work_row, slow), "name left") if slow else ""


def _known(layer: Layer) -> bool:
    return layer.flops > 0 and layer.bytes > 0 and layer.ms >= 1e-6  # a nanosecond: no clock is finer


def _work(stage: str, layer: Layer, profile: Profile) -> _Work:
    intensity, rate = layer.flops / layer.bytes, layer.flops / layer.ms * 1e3
    flops = profile.peaks.flops
    roof = layer.dtype if flops.get(layer.dtype) else max(flops, key=lambda name: flops[name])
    slope = intensity * profile.peaks.bandwidth
    return _Work(stage, layer, roof, intensity, rate, slope < flops[roof], rate / min(slope, flops[roof]))


def _dot(work: _Work) -> Dot:
    title = (
        f"{work.layer.name}, {work.layer.kind}: {number(work.layer.ms)} ms, {number(work.intensity)} FLOP per byte, "
        f"{quantity(work.rate, 'FLOP/s')}, {100 * work.of_roof:.0f} % of its roof"
    )
    return Dot(work.intensity, work.rate, work.layer.ms, title, "by-memory" if work.by_memory else "by-arithmetic")


def _work_row(work: _Work) -> list[str]:
    speed = number(work.layer.bytes / work.layer.ms / 1e6)
    layer = [page.name(work.layer.name), text(work.stage), number(work.layer.ms)]
    return [*layer, number(work.intensity), speed, page.percent(work.of_roof, 1)]
