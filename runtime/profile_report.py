"""The report of `edge4d profile`: one HTML page that needs nothing else, neither network nor scripts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Optional

from edge4d.runtime import profile_layer_sections as layer_sections
from edge4d.runtime import profile_page as page
from edge4d.runtime import profile_pictures as pictures
from edge4d.runtime.profile import Profile, StageProfile
from edge4d.runtime.profile_pictures import Box, Row, number, text
from edge4d.runtime.profile_statistics import chains, gpu_spans_ms, median, overlap, percentile, precisions

_CHANGED = 0.2  # two sets of runs that overlap less than this differ
_WAITING = 0.8  # a host that needs more than this share of the GPU's time may be what it waits for, as in trtexec


def html(profile: Profile, against: Optional[Profile] = None) -> str:
    """The page of `profile`, compared with an older run if there is one.

    Sections for which nothing was measured say so in a sentence.
    """
    sections = {
        "Stages": _stages(profile),
        **({"Stages on the GPU": _gpu(profile)} if any(stage.gpu_runs for stage in profile.stages) else {}),
        **({"Before and now": _comparison(profile, against)} if against else {}),
        "Timeline": layer_sections.timeline(profile),
        **layer_sections.layers(profile),
        "Memory": _memory(profile),
        "Roofline": layer_sections.roofline(profile),
        "Rendering": _rendering(profile),
    }
    return page.page(f"{profile.bundle}: profile", _head(profile, against), sections)


# The head


def _head(profile: Profile, against: Optional[Profile]) -> str:
    facts = {
        "backend": profile.backend,
        "size": f"{profile.size[0]} x {profile.size[1]} pixels",
        **profile.about,
    }
    listed = "".join(f"<dt>{text(name)}</dt><dd>{text(fact)}</dd>" for name, fact in facts.items())
    before = f"<p>Before: {_result(against)}</p>\n" if against else ""
    title = f"<h1>{text(profile.bundle)} <small>profile</small></h1>\n"
    return f'{title}<p class="result">{_result(profile)}</p>\n{before}<dl>{listed}</dl>\n'


def _result(profile: Profile) -> str:
    """One sentence: the chain in each precision, and frames per second."""
    times = [f"<b>{number(ms)} ms</b> in {text(precision)}" for precision, ms in chains(profile).items()]
    parts = [f"All stages, each once, take {page.enumerated(times)}"] if times else []
    if profile.render_ms and median(profile.render_ms):
        rate = 1000 / median(profile.render_ms)
        parts.append(f"{'the scene' if times else 'The scene'} then renders at <b>{number(rate)} frames per second</b>")
    return "; ".join(parts) + "." if parts else "Nothing was timed."


# Stages


def _stages(profile: Profile) -> str:
    if not any(stage.runs_ms for stage in profile.stages):
        return page.missing("No stage was timed.")
    totals = chains(profile)
    longest = max([*totals.values(), *(median(stage.runs_ms) for stage in profile.stages if stage.runs_ms)])
    columns = ["Stage", "Precision", "Median", "P50 ms", "P95 ms", "P99 ms", "of chain", "speed to fp32"]
    rows = [
        [*_times(stage, longest), *_relations(stage, profile, totals), *_sizes(stage)]
        for stage in profile.stages
        if stage.runs_ms
    ]
    rows += [_chain_row(precision, ms, totals, longest) for precision, ms in totals.items()]
    table = page.table([*columns, "weights MB", "activations MB", "runs"], rows, "left left wide")
    return table + _stage_notes(profile, totals)


def _times(stage: StageProfile, longest: float) -> list[str]:
    quantiles = [number(percentile(stage.runs_ms, percent)) for percent in (50, 95, 99)]
    bar = page.bar(median(stage.runs_ms), longest, page.precision_colour(stage.precision))
    return [text(stage.name), text(stage.precision), bar, *quantiles]


def _relations(stage: StageProfile, profile: Profile, totals: Mapping[str, float]) -> list[str]:
    """The stage's share of its chain, and how much faster it is than in fp32."""
    ms = median(stage.runs_ms)
    reference = (s for s in profile.stages if (s.name, s.precision) == (stage.name, "fp32") and s.runs_ms)
    fp32 = next((median(s.runs_ms) for s in reference), 0.0)
    return [page.percent(ms, totals.get(stage.precision, 0.0)), page.speed(fp32, ms)]


def _sizes(stage: StageProfile) -> list[str]:
    activations = page.megabytes(stage.activation_bytes) or page.UNKNOWN
    return [page.megabytes(stage.weights_bytes) or "0", activations, str(len(stage.runs_ms))]


def _chain_row(precision: str, ms: float, totals: Mapping[str, float], longest: float) -> list[str]:
    bar = page.bar(ms, longest, page.precision_colour(precision))
    speed = page.speed(totals.get("fp32", 0.0), ms)
    return ["<b>chain</b>", text(precision), bar, f"<b>{number(ms)}</b>", "", "", "100 %", speed, "", "", ""]


def _stage_notes(profile: Profile, totals: Mapping[str, float]) -> str:
    notes = ["Wall time on the host, without per-layer profiling. The chain is the sum of the medians."]
    notes.append("A stage that a sampler runs again and again counts once.")
    notes.append("Speed: 2.00&times; takes half the time of fp32.")
    partial = [precision for precision in precisions(profile) if precision not in totals]
    if partial:
        notes.append(f"No chain for {text(', '.join(partial))}: not every stage was timed in it.")
    if len(precisions(profile)) == 1:
        notes.append(f"Only {text(profile.stages[0].precision)} was measured; there is nothing beside it.")
    if min(len(stage.runs_ms) for stage in profile.stages if stage.runs_ms) < 100:
        notes.append("With fewer than 100 runs, P99 is next to the slowest run.")
    return page.note(" ".join(notes))


def _gpu(profile: Profile) -> str:
    stages = [stage for stage in profile.stages if stage.gpu_runs]
    longest = max(_gpu_ms(stage)[1] for stage in stages)
    rows = []
    for stage in stages:
        h2d, compute, d2h, enqueue = _gpu_ms(stage)
        bar = page.bar(compute, longest, page.precision_colour(stage.precision))
        times = [number(ms) for ms in (h2d, compute, d2h, h2d + compute + d2h, enqueue)]
        rows.append([text(stage.name), text(stage.precision), bar, *times, str(len(stage.gpu_runs))])
    columns = ["Stage", "Precision", "Computing", "H2D ms", "computing ms", "D2H ms", "sum ms", "enqueue ms", "runs"]
    return page.table(columns, rows, "left left wide") + page.note(
        "Medians of other runs than above: the GPU's own time, by events round the copy to it (H2D), its computing and "
        "the copy back (D2H), from and to page-locked memory. Enqueue: the host's time to hand over the computing, "
        f"during which it already begins. {_slow_host(stages)}"
    )


def _gpu_ms(stage: StageProfile) -> tuple[float, float, float, float]:
    """Medians: copies to the GPU, computing, copies back, and the host's enqueueing."""
    h2d, compute, d2h = (ms for _, _, ms in gpu_spans_ms(stage))
    return h2d, compute, d2h, median([run.enqueue_ms for run in stage.gpu_runs])


def _slow_host(stages: Sequence[StageProfile]) -> str:
    """A warning, or nothing."""
    waiting = []
    for stage in stages:
        _, compute, _, enqueue = _gpu_ms(stage)
        if enqueue > _WAITING * compute:
            waiting.append(f"{text(stage.name)} in {text(stage.precision)}")
    if not waiting:
        return ""
    return f"<b>The GPU may wait for the host</b> in {page.enumerated(waiting)}: a CUDA graph takes that time away."


# Before and now


class _Pair(NamedTuple):
    """Runs of the same thing, before and now, in milliseconds."""

    name: str
    precision: str
    old: Sequence[float]
    new: Sequence[float]


def _comparison(profile: Profile, against: Profile) -> str:
    context = _differences(profile, against) + _alone(profile, against)
    pairs = [pair for pair in _pairs(profile, against) if pair.old and pair.new]
    if not pairs:
        return context + page.missing("Nothing was timed in both runs.")
    columns = ["Stage", "Precision", "before ms", "now ms", "ratio", "P5 to P95", "overlap", "verdict"]
    rows = [_compared(pair) for pair in pairs]
    rows += _compared_chains(chains(against), chains(profile))
    note = page.note(
        "Ratio: the median now over the median before; below 1 is faster. The lines reach from P5 to P95 with a mark "
        "at the median: grey before, blue now. Overlap: twice the share of pairs (a run before, a run now) in which "
        "the slower side is the faster one; 100 % is no difference at all, 0 % means that one side always wins. From "
        f"{100 * _CHANGED:.0f} % up no change is claimed. What changes between sessions (temperature, clocks, other "
        "programs) is in neither spread: repeat both runs before trusting a small difference."
    )
    kinds = "left left number number number left number left"
    return context + page.table(columns, rows, kinds) + note


def _pairs(profile: Profile, against: Profile) -> Iterator[_Pair]:
    before = {(stage.name, stage.precision): stage.runs_ms for stage in against.stages}
    for stage in profile.stages:
        yield _Pair(stage.name, stage.precision, before.get((stage.name, stage.precision), ()), stage.runs_ms)
    computing = {(stage.name, stage.precision): _compute_ms(stage) for stage in against.stages}
    for stage in profile.stages:
        yield _Pair(
            f"{stage.name}, GPU",
            stage.precision,
            computing.get((stage.name, stage.precision), []),
            _compute_ms(stage),
        )
    yield _Pair("a frame", "", against.render_ms, profile.render_ms)


def _compute_ms(stage: StageProfile) -> list[float]:
    return [run.compute_ms for run in stage.gpu_runs]


def _compared(pair: _Pair) -> list[str]:
    old, new = ([percentile(runs, percent) for percent in (5, 50, 95)] for runs in (pair.old, pair.new))
    share = overlap(pair.old, pair.new)
    picture = pictures.spreads((old[0], old[1], old[2]), (new[0], new[1], new[2]))
    verdict = "within the spread" if share >= _CHANGED else "<b>faster</b>" if new[1] < old[1] else "<b>slower</b>"
    times = [number(old[1]), number(new[1]), page.ratio(old[1], new[1])]
    return [text(pair.name), text(pair.precision), *times, picture, page.percent(share, 1), verdict]


def _compared_chains(old: Mapping[str, float], new: Mapping[str, float]) -> Iterator[list[str]]:
    for precision, ms in new.items():
        if precision in old:
            times = [number(old[precision]), f"<b>{number(ms)}</b>", page.ratio(old[precision], ms)]
            yield ["<b>chain</b>", text(precision), *times, "", "", ""]


def _differences(profile: Profile, against: Profile) -> str:
    """What else changed between the two runs, so that nobody takes a different machine for a better program."""
    old, new = ({"bundle": p.bundle, "backend": p.backend, "size": str(p.size), **p.about} for p in (against, profile))
    rows = [
        [text(name), text(old.get(name, "")), text(new.get(name, ""))]
        for name in dict.fromkeys([*old, *new])
        if old.get(name) != new.get(name)
    ]
    return page.table(["Different", "before", "now"], rows, "left left left") if rows else ""


def _alone(profile: Profile, against: Profile) -> str:
    """Names the stages that are in one of the runs only."""
    old, new = ([f"{stage.name} {stage.precision}" for stage in p.stages] for p in (against, profile))
    gone, added = ([name for name in a if name not in b] for a, b in ((old, new), (new, old)))
    lists = [f"Only {when}: {text(', '.join(names))}." for when, names in (("before", gone), ("now", added)) if names]
    return f"<p>{' '.join(lists)}</p>\n" if lists else ""


# Memory


def _memory(profile: Profile) -> str:
    if not any(stage.weights_bytes or stage.activation_bytes or stage.engine_bytes for stage in profile.stages):
        return page.missing("The sizes of weights and activations are not known.")
    rows = [_memory_row(stage) for stage in profile.stages]
    colours = {name: colour for stage in profile.stages for name, (_, colour) in _memory_parts(stage).items()}
    needs = [f"{text(precision)} {_needs(profile, precision)}" for precision in precisions(profile)]
    note = (
        f"At least, with what all stages hold and the activations of the largest one: {page.enumerated(needs)}. "
        "The backend's own buffers and the program come on top. 1 MB = 1,000,000 bytes."
    )
    if any(stage.engine_bytes for stage in profile.stages):
        note += " An engine is its weights and kernels, as in its file; activations are the memory that it asks for."
    longest = max(sum(size for size, _ in _memory_parts(stage).values()) for stage in profile.stages)
    return pictures.bars(rows, longest) + page.legend(colours) + page.note(note)


def _memory_parts(stage: StageProfile) -> dict[str, tuple[int, str]]:
    """Bytes and colour by name. Elsewhere than in engines, the activations are inputs and outputs already."""
    activations = {"activations": (stage.activation_bytes, "activations")}
    if stage.engine_bytes:
        held = {"engine": (stage.engine_bytes, "weights")}
        return {**held, **activations, "inputs and outputs": (stage.io_bytes, "other")}
    return {"weights": (stage.weights_bytes, "weights"), **activations}


def _memory_row(stage: StageProfile) -> Row:
    boxes, sizes, start = [], [], 0
    for name, (size, colour) in _memory_parts(stage).items():
        told = page.megabytes(size) or ("?" if name == "activations" and not stage.engine_bytes else "0")
        boxes.append(Box(start, size, f"{name} {told}", f"{name}: {told} MB", colour))
        sizes.append(told)
        start += size
    return Row(f"{stage.name} {stage.precision}", tuple(box for box in boxes if box.size), f"{' + '.join(sizes)} MB")


def _needs(profile: Profile, precision: str) -> str:
    stages = [stage for stage in profile.stages if stage.precision == precision]
    held = sum(stage.engine_bytes + stage.io_bytes if stage.engine_bytes else stage.weights_bytes for stage in stages)
    return f"{page.megabytes(held + max(stage.activation_bytes for stage in stages)) or '0'} MB"


# Rendering


def _rendering(profile: Profile) -> str:
    if not profile.render_ms:
        return page.missing("No frames were drawn.")
    marks = [(f"P{percent}", percentile(profile.render_ms, percent)) for percent in (50, 95, 99)]
    usual, _, slow = (value for _, value in marks)
    end = min(max(profile.render_ms), slow + (slow - usual) / 2)  # a single slow frame must not flatten the picture
    beyond = sum(ms > end for ms in profile.render_ms)
    frames = f"{len(profile.render_ms)} frames: " + ", ".join(f"{name} {number(value)} ms" for name, value in marks)
    longer = f" {beyond} more took longer than shown, up to {number(max(profile.render_ms))} ms." if beyond else ""
    return f"<p>{frames}.{longer}</p>\n{pictures.histogram(profile.render_ms, marks, end)}"
