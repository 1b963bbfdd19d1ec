from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge4d.runtime.profile import GpuRun, Layer, Peaks, Profile, StageProfile
from edge4d.runtime.profile_pictures import number, quantity
from edge4d.runtime.profile_report import html
from edge4d.runtime.profile_statistics import chains, overlap, percentile

VOID = {"meta", "wbr", "br"}
TIMES = "\N{MULTIPLICATION SIGN}"
RUNS = (9.0, 10.0, 11.0)


class Page(HTMLParser):
    """Fails where tags do not balance; keeps what a reader sees, and every attribute."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.seen = ""
        self.feed(source)
        self.close()
        assert not self.open
        self.seen = " ".join(self.seen.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        self.seen += " " if tag == "br" else ""

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag in ("td", "th"):
            self.seen += " "

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.seen += data


def pictures(source: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(svg) for svg in re.findall("<svg.*?</svg>", source, re.DOTALL)]


def check(source: str) -> Page:
    """Well-formed, self-contained, and no mark of a picture outside its frame."""
    page = Page(source)
    for svg in pictures(source):
        _, _, width, height = map(float, svg.attrib["viewBox"].split())
        for mark in svg.iter():
            for left, top, right, bottom in corners(mark):
                # Half of the last digit that is written.
                assert -0.01 <= left <= right <= width + 0.01
                assert -0.01 <= top <= bottom <= height + 0.01
    assert not {"script", "img", "link", "iframe", "object"} & set(page.tags)
    assert all(value.startswith("#") for name, value in page.attributes if name in ("href", "src"))
    assert "url(" not in source.split("</style>")[0]
    return page


def titles(source: str) -> set[str]:
    """What shows when a mouse points at something in a picture."""
    return {title.text or "" for svg in pictures(source) for title in svg.iter("title")}


def corners(mark: ElementTree.Element) -> list[tuple[float, float, float, float]]:
    at = {name: float(value) for name, value in mark.attrib.items() if re.fullmatch(r"-?[\d.]+", value)}
    if mark.tag == "rect":
        return [(at["x"], at["y"], at["x"] + at["width"], at["y"] + at["height"])]
    if mark.tag == "circle":
        return [(at["cx"] - at["r"], at["cy"] - at["r"], at["cx"] + at["r"], at["cy"] + at["r"])]
    if mark.tag == "line":
        xs, ys = sorted((at["x1"], at["x2"])), sorted((at["y1"], at["y2"]))
        return [(xs[0], ys[0], xs[1], ys[1])]
    if mark.tag == "text":
        return [(at["x"], at["y"] - 8, at["x"], at["y"] + 3)]
    return []


def layer(name: str, ms: float, start_ms: float = 0.0, kind: str = "Conv", dtype: str = "float32", **work) -> Layer:
    work = {"flops": int(ms * 1e7), "bytes": int(ms * 1e6), **work}
    return Layer(name, kind, dtype, ms, ms, start_ms, inputs=("x float32[1,8]",), outputs=("y float32[1,8]",), **work)


def stage(name: str, precision: str = "fp32", runs_ms: tuple[float, ...] = RUNS, layers: tuple[Layer, ...] = ()):
    return StageProfile(name, precision, runs_ms, layers, {"x": "float32[1]"}, {"y": "float32[1]"}, 3_000_000, 500_000)


def profile(*stages: StageProfile, render_ms: tuple[float, ...] = (), peaks: tuple[float, float] = (5e10, 1e10)):
    about = {"edge4d": "1.2.3", "machine": "a machine", "command": "edge4d profile street", "date": "2026-11-21"}
    return Profile("street", "onnxruntime", about, (448, 256), stages, render_ms, measured(*peaks))


def measured(flops: float, bandwidth: float) -> Peaks:
    return Peaks({"float32": flops}, bandwidth, "measured on this machine")


def whole() -> Profile:
    """Two stages in three precisions with twelve layers each."""
    types = {"fp32": ("float32", 1.0), "fp16": ("float16", 0.5), "int8": ("int8", 0.25)}
    return profile(
        *(
            stage(
                name,
                precision,
                tuple(scale * run for run in RUNS),
                tuple(layer(f"{name}.{i}", scale * (i + 1) / 10, scale * i, dtype=dtype) for i in range(12)),
            )
            for name in ("perceive", "core")
            for precision, (dtype, scale) in types.items()
        ),
        render_ms=(4.0, 4.0, 5.0),
    )


def test_says_what_was_measured():
    page = check(html(whole()))
    for fact in ("street", "onnxruntime", "448 x 256", "1.2.3", "a machine", "edge4d profile street", "2026-11-21"):
        assert fact in page.seen
    assert "20.0 ms in fp32, 10.0 ms in fp16 and 5.00 ms in int8; the scene then renders at 250 frames" in page.seen


def test_shows_every_stage_precision_and_the_ten_longest_layers():
    seen = check(html(whole())).seen
    for name in ("perceive", "core"):
        assert f"{name} in int8: 12 layers" in seen
        assert all(f"{name}.{i} Conv" in seen for i in range(2, 12))
        assert not any(f"{name}.{i} Conv" in seen for i in range(2))
    assert f"2.00{TIMES}" in seen
    assert f"4.00{TIMES}" in seen  # int8 against fp32


def test_every_layer_stands_in_the_timeline_and_under_the_roof():
    source = html(whole())
    timeline = next(svg for svg in pictures(source) if any(text.text == "ms" for text in svg.iter("text")))
    assert sum("Conv" in (title.text or "") for title in timeline.iter("title")) == 72
    assert source.count("<circle") == 72


def test_layers_under_the_slanted_roof_are_limited_by_memory():
    # The roofs meet at 5e10 / 1e10 = 5 FLOP per byte. 10 ms: 1e9 bytes a second, a tenth of the bandwidth.
    streams = layer("streams", 10.0, flops=10_000_000, bytes=10_000_000)
    computes = layer("computes", 10.0, 10.0, flops=100_000_000, bytes=10_000_000)
    moves = layer("moves", 20.0, 20.0, kind="Transpose", flops=0)
    seen = check(html(profile(stage("core", layers=(streams, computes, moves))))).seen
    assert "1 of 2 layers with known operations are limited by memory: 25 % of the time" in seen
    assert "mostly move data, take 50 %" in seen
    assert "streams core 10.0 1.00 1.00 10 %" in seen
    assert "computes core" not in seen


def test_a_peak_that_layers_beat_is_not_believed():
    fast = layer("fast", 1.0, flops=10**9, bytes=10**6)
    assert "The flat roof is too low" in check(html(profile(stage("core", layers=(fast,))))).seen
    assert "too low" not in check(html(whole())).seen


def test_a_precision_by_name_only_is_said():
    seen = check(html(profile(stage("core", "fp16", layers=(layer("a", 1.0),))))).seen
    assert "fp16: only 0 % of the time goes to layers that write float16" in seen


def on_gpu(*names: str, enqueue_ms: float = 0.5) -> Profile:
    """Stages in two precisions: copies of 1 and 2 ms round 4 ms of computing in fp32 and 1 ms in fp16."""
    tensors = tuple(
        replace(
            stage(name, precision, layers=(replace(layer("conv", compute, dtype=dtype), tactic="sm90_xmma"),)),
            gpu_runs=(GpuRun(enqueue_ms, 1.0, compute, 2.0),) * 3,
            engine_bytes=6_000_000,
            io_bytes=250_000,
        )
        for name in names
        for precision, dtype, compute in (("fp32", "float32", 4.0), ("fp16", "float16", 1.0))
    )
    peaks = Peaks({"float32": 1e13, "float16": 8e13, "int8": 16e13}, 1e12, "data sheet")
    return replace(profile(*tensors), backend="tensorrt", peaks=peaks)


def test_stages_on_a_gpu_are_copies_and_computing():
    page = check(html(on_gpu("core")))
    assert "core fp32 1.00 4.00 2.00 7.00 0.500 3" in page.seen
    assert "core fp16 1.00 1.00 2.00 4.00 0.500 3" in page.seen
    assert "The GPU may wait" not in page.seen
    assert {"core, h2d: 1.00 ms", "core, compute: 4.00 ms", "core, d2h: 2.00 ms"} <= set(titles(html(on_gpu("core"))))
    assert "GPU" not in check(html(whole())).seen


def test_a_host_that_enqueues_too_slowly_is_named():
    slow = "may wait for the host in core in fp16: a CUDA graph"
    assert slow in check(html(on_gpu("core", enqueue_ms=0.9))).seen
    assert slow not in check(html(on_gpu("core", enqueue_ms=0.7))).seen


def test_layers_of_tensorrt_have_their_kernels_names():
    seen = check(html(on_gpu("core"))).seen
    assert "core in fp32: 1 layers, 4.00 ms (4.00 ms without per-layer profiling)" in seen  # of computing
    assert "conv sm90_xmma Conv float32" in seen
    assert "Kernels themselves are not timed" in seen


def test_memory_of_an_engine():
    seen = check(html(on_gpu("core", "perceive"))).seen
    assert "6.00 + 0.500 + 0.250 MB" in seen
    assert "fp32 13.0 MB and fp16 13.0 MB" in seen  # two engines with inputs and outputs, and the scratch they share


def test_each_type_has_its_own_roof():
    # 1e10 FLOP in 1 ms are 1e13 per second; at 100 FLOP per byte memory allows 1e14, more than either peak.
    computes = layer("a", 1.0, dtype="float32", flops=10**10, bytes=10**8)
    half = layer("b", 1.0, 1.0, dtype="float16", flops=10**10, bytes=10**8)
    stages = (stage("core", layers=(computes,)), stage("core", "fp16", layers=(half,)))
    source = html(replace(on_gpu(), stages=stages))
    seen = check(source).seen
    assert "10.0 TFLOP/s in float32, 80.0 TFLOP/s in float16 and 1.00 TB/s: data sheet" in seen
    labels = [text.text for svg in pictures(source) for text in svg.iter("text")]
    assert labels.count("float32 peak") == labels.count("float16 peak") == 2  # both in both pictures
    assert "int8 peak" not in labels  # nothing stands under it
    assert titles(source) >= {"a, Conv: 1.00 ms, 100 FLOP per byte, 10.0 TFLOP/s, 100 % of its roof"}
    assert titles(source) >= {"b, Conv: 1.00 ms, 100 FLOP per byte, 10.0 TFLOP/s, 12 % of its roof"}


def test_a_gpu_without_a_sheet_has_no_roofline():
    unknown = replace(on_gpu("core"), peaks=Peaks(), about={"gpu": "NVIDIA GT 710"})
    assert "The peaks of NVIDIA GT 710 are not known." in check(html(unknown)).seen


def test_computing_is_compared_apart_from_the_host():
    assert f"core, GPU fp16 1.00 1.00 1.00{TIMES} 100 % within the spread" in comparison(on_gpu("core"), on_gpu("core"))


@pytest.mark.parametrize(
    ("given_", "reason"),
    [
        (profile(), "No stage was timed."),
        (profile(stage("core")), "No layers were timed with the backend onnxruntime."),
        (profile(stage("core")), "Only fp32 was measured"),
        (profile(stage("core")), "No frames were drawn."),
        (profile(stage("core"), stage("core", "fp16", ())), "No chain for fp16"),
        (
            profile(stage("core", layers=(layer("a", 1.0),)), peaks=(0.0, 0.0)),
            "The peaks of this machine",
        ),
        (profile(stage("core", layers=(layer("a", 1.0, flops=0),))), "The operations of the layers are not known."),
    ],
)
def test_what_is_missing_is_said(given_: Profile, reason: str):
    assert reason in check(html(given_)).seen


def test_nothing_measured_draws_nothing():
    assert not pictures(html(profile()))


def test_names_are_escaped():
    name = "</title><script>alert('1')</script>\"&\x00\ud800"
    bad = layer(name, 1.0, kind=name, dtype=name)
    hostile = Profile(name, name, {name: name}, (8, 8), (stage(name, name, layers=(bad,)),), (1.0,), measured(1e9, 1e9))
    page = check(html(hostile, hostile))
    assert "<script>alert" in page.seen
    html(hostile).encode("utf-8")


def test_against_an_older_run():
    old = profile(stage("core"), stage("gone"), render_ms=(4.0,))
    same = profile(stage("core"), render_ms=(4.0,))
    faster = profile(stage("core", runs_ms=(4.5, 5.0, 5.5)), render_ms=(8.0,))
    assert f"core fp32 10.0 10.0 1.00{TIMES} 100 % within the spread" in comparison(old, same)
    assert f"core fp32 10.0 5.00 0.500{TIMES} 0 % faster" in comparison(old, faster)
    assert f"a frame 4.00 8.00 2.00{TIMES} 0 % slower" in comparison(old, faster)
    assert "Only before: gone fp32." in comparison(old, faster)
    assert "Only now: gone fp32." in comparison(faster, old)


def comparison(old: Profile, new: Profile) -> str:
    """What a reader sees of the section."""
    source = html(new, old)
    check(source)
    section = re.search('<section id="before-and-now".*?</section>', source, re.DOTALL)
    assert section
    return Page(section[0]).seen


def test_another_machine_is_said():
    old = profile(stage("core"))
    new = Profile(old.bundle, "cuda", {**old.about, "machine": "another"}, old.size, old.stages, (), Peaks())
    assert "backend onnxruntime cuda " in comparison(old, new)
    assert "machine a machine another " in comparison(old, new)
    assert "bundle" not in comparison(old, new)


def test_percentile_by_hand():
    assert percentile((3.0, 1.0, 2.0), 50) == 2.0
    assert percentile((1.0, 2.0), 95) == pytest.approx(1.95)
    assert percentile((7.0,), 99) == 7.0


def test_overlap_by_hand():
    assert overlap((1.0, 2.0), (1.0, 2.0)) == 1.0
    assert overlap((1.0, 2.0), (3.0, 4.0)) == 0.0
    # Of the four pairs one has the first side slower: 2 * 1/4.
    assert overlap((1.0, 3.0), (2.0, 4.0)) == 0.5
    assert overlap((2.0, 4.0), (1.0, 3.0)) == 0.5


def test_chains_need_every_stage():
    assert chains(profile(stage("a"), stage("a", "fp16"), stage("b"))) == {"fp32": 20.0}


def test_numbers_have_three_digits():
    assert [number(value) for value in (0.0, 0.01234, 1.2, 9.999, 345.6, 12345.0)] == [
        *("0", "0.0123", "1.20", "10.0", "346", "12,300")
    ]
    assert number(1e-9) == "<0.0001"
    assert quantity(1.5e12, "FLOP/s") == "1.50 TFLOP/s"
    assert quantity(0.25, "B") == "0.250 B"


names = st.text(st.characters(codec="utf-8", exclude_characters="n"), max_size=12)  # so that no name has a nan
times = st.just(0.0) | st.floats(1e-6, 1e9)  # milliseconds: no clock is finer than a nanosecond
counts = st.integers(0, 10**15)
tensors = st.lists(names, max_size=2).map(tuple)
kinds = st.sampled_from(["Conv", "MatMul", *"abcdefgh"])
dtypes = st.sampled_from(["float32", "float16", "int8", ""]) | names
layers = st.builds(Layer, names, kinds, dtypes, times, times, times, counts, counts, tensors, tensors, tactic=names)
gpu_runs = st.lists(st.builds(GpuRun, times, times, times, times), max_size=3).map(tuple)
stages = st.builds(
    StageProfile,
    names,
    st.sampled_from(["fp32", "fp16", "int8"]) | names,
    st.lists(times, max_size=4).map(tuple),
    st.lists(layers, max_size=4).map(tuple),
    st.dictionaries(names, names, max_size=2),
    st.dictionaries(names, names, max_size=2),
    *(counts, counts, counts, counts),
    gpu_runs,
)
peaks = st.just(0.0) | st.floats(1e-3, 1e18)
profiles = st.builds(
    Profile,
    names,
    names,
    st.dictionaries(names, names, max_size=3),
    st.tuples(st.integers(1, 9999), st.integers(1, 9999)),
    st.lists(stages, max_size=4).map(tuple),
    st.lists(times, max_size=5).map(tuple),
    st.builds(Peaks, st.dictionaries(st.sampled_from(["float32", "float16", "int8"]), peaks), peaks, names),
)


@settings(max_examples=150, deadline=None)
@given(profiles, st.none() | profiles)
def test_any_profile_makes_a_page(new: Profile, old: Profile | None):
    source = html(new, old)
    check(source)
    assert "nan" not in source
    assert "inf" not in source
