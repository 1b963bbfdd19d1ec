"""The data of a profile: to JSON and back, and no other error than ours on JSON of any kind."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge4d.runtime.errors import InvalidRequest
from edge4d.runtime.profile import GpuRun, Layer, Peaks, Profile, StageProfile, profile_from_json, to_json

MEASURED = st.floats(0, allow_infinity=False)
COUNTED = st.integers(0, 2**70)
NAMES = st.text(max_size=8)
SOME_NAMES = st.lists(NAMES, max_size=3).map(tuple)
LAYERS = st.builds(
    Layer,
    *(NAMES, NAMES, NAMES, MEASURED, MEASURED, MEASURED, COUNTED, COUNTED),
    inputs=SOME_NAMES,
    outputs=SOME_NAMES,
    tactic=NAMES,
)
TYPES = st.dictionaries(NAMES, NAMES, max_size=3)
STAGES = st.builds(
    StageProfile,
    NAMES,
    NAMES,
    runs_ms=st.lists(MEASURED, max_size=4).map(tuple),
    layers=st.lists(LAYERS, max_size=3).map(tuple),
    inputs=TYPES,
    outputs=TYPES,
    weights_bytes=COUNTED,
    activation_bytes=COUNTED,
    io_bytes=COUNTED,
    engine_bytes=COUNTED,
    gpu_runs=st.lists(st.builds(GpuRun, MEASURED, MEASURED, MEASURED, MEASURED), max_size=3).map(tuple),
    layer_info=st.dictionaries(NAMES, st.lists(TYPES | NAMES | st.none(), max_size=3), max_size=3),
)
PROFILES = st.builds(
    Profile,
    NAMES,
    NAMES,
    about=TYPES,
    size=st.tuples(st.integers(1), st.integers(1)),
    stages=st.lists(STAGES, max_size=3).map(tuple),
    render_ms=st.lists(MEASURED, max_size=4).map(tuple),
    peaks=st.builds(Peaks, st.dictionaries(NAMES, MEASURED, max_size=3), MEASURED, NAMES),
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


def paths(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where the values of a JSON node are, the node itself left out."""
    inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [found for key, value in inner for found in ((*path, key), *paths(value, (*path, key)))]


@given(PROFILES)
def test_a_profile_comes_back_from_its_json(profile: Profile) -> None:
    assert profile_from_json(json.loads(json.dumps(to_json(profile)))) == profile


@given(PROFILES, ANYTHING, st.data())
def test_one_strange_value_is_read_or_refused(profile: Profile, strange: Any, data: st.DataObject) -> None:
    node = to_json(profile)
    path = data.draw(st.sampled_from(paths(node)))
    inner: Any = node
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = strange
    with suppress(InvalidRequest):
        assert isinstance(profile_from_json(node), Profile)


@given(ANYTHING)
def test_other_json_is_refused(node: Any) -> None:
    with pytest.raises(InvalidRequest):
        profile_from_json(node)


def example() -> dict[str, Any]:
    layer = Layer("conv", "Conv", "float32", 1.0, 1.5, 0.25, 100, 20, ("float32[1,2]",), ("float32[1,3]",))
    runs = (GpuRun(0.5, 0.25, 1.0, 0.125),)
    stage = StageProfile("core", "fp32", (2.0, 3.0), (layer,), {"image": "float32[1,2]"}, {}, 8, 12, 4, 16, runs)
    peaks = Peaks({"float32": 1e9}, 1e8, "measured")
    return to_json(Profile("tiny", "tensorrt", {"edge4d": "1"}, (64, 32), (stage,), (4.0,), peaks))


@pytest.mark.parametrize(
    ("path", "value", "note"),
    [
        (("format",), 1, "profile.format is 1, expected to be 2"),
        (("bundle",), 3, "profile.bundle is 3, expected to be a text"),
        (("about", "edge4d"), None, "profile.about.edge4d is None"),
        (("size",), [64], "profile.size is [64], expected to be a list of 2"),
        (("size", 1), 0, "profile.size is [64, 0], expected to be two numbers from 1"),
        (("size", 0), True, "profile.size[0] is True"),
        (("stages",), {}, "profile.stages is {}, expected to be a list"),
        (("stages", 0, "runs_ms", 1), -1.0, "profile.stages[0].runs_ms[1] is -1.0, expected to be a finite number"),
        (("stages", 0, "runs_ms", 0), float("nan"), "profile.stages[0].runs_ms[0] is nan"),
        (("stages", 0, "layers", 0, "ms"), float("inf"), "profile.stages[0].layers[0].ms is inf"),
        (("stages", 0, "layers", 0, "ms"), 10**400, "profile.stages[0].layers[0].ms is 1000"),
        (("stages", 0, "layers", 0, "flops"), 1.5, "profile.stages[0].layers[0].flops is 1.5, expected to be a whole"),
        (("stages", 0, "inputs"), ["image"], "profile.stages[0].inputs is ['image'], expected to be an object"),
        (("stages", 0, "gpu_runs", 0, "h2d_ms"), -1.0, "profile.stages[0].gpu_runs[0].h2d_ms is -1.0"),
        (("stages", 0, "layer_info"), [], "profile.stages[0].layer_info is [], expected to be an object"),
        (("peaks", "flops", "float32"), "fast", "profile.peaks.flops.float32 is 'fast'"),
    ],
)
def test_what_is_wrong_is_named(path: tuple[Any, ...], value: Any, note: str) -> None:
    node: Any = example()
    inner = node
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(InvalidRequest, match=re.escape(note)) as caught:
        profile_from_json(node)
    assert caught.value.hint


# In mappings that may have any names.
FREE = [("about", "edge4d"), ("stages", 0, "inputs", "image"), ("peaks", "flops", "float32")]


@pytest.mark.parametrize("path", [path for path in paths(example()) if isinstance(path[-1], str) and path not in FREE])
def test_what_is_missing_is_named(path: tuple[Any, ...]) -> None:
    node: Any = example()
    inner = node
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    with pytest.raises(InvalidRequest, match=rf"\b{path[-1]} is None, expected to be "):
        profile_from_json(node)


def test_whole_numbers_are_numbers() -> None:
    node = example()
    node["render_ms"] = [4]
    assert profile_from_json(node).render_ms == (4.0,)
