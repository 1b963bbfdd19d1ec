"""The files of a profile: their fields, their sums, and what is refused when one is read."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from edge4d.runtime.errors import InvalidRequest
from edge4d.runtime.profile import GpuRun, Layer, Peaks, Profile, StageProfile
from edge4d.runtime.profile_files import check_folder, read_profile, write_profile

LAYERS = (
    Layer(
        *("conv", "Conv", "float16", 1.5, 1.75, 0.125, 1000, 64),
        inputs=("image float16[1,3,4,8]", "int64[]"),
        outputs=("float16[1,2,4,8]",),
    ),
    Layer("nearest", "KNearest", "", 0.5, 0.25, 1.5, 0, 32, inputs=("points",), outputs=("ids int32[4]",)),
)
STAGE = StageProfile(
    *("core", "fp16", (2.0, 4.0, 3.0), LAYERS),
    inputs={"image": "float16[1,3,4,8]"},
    outputs={"ids": "int32[4]"},
    weights_bytes=8,
    activation_bytes=12,
)
BARE = replace(STAGE, name="perceive", layers=())
PROFILE = Profile("tiny", "onnxruntime", {"python": "3.9"}, (8, 4), (BARE, STAGE), (4.0, 5.0), Peaks())
# On a GPU: H2D 0.25, computing 1.5 and 1 ms, D2H 0.5.
INFO = {"Layers": [{"Name": "conv", "TacticName": "sm90"}, {"Name": "unused"}], "I/O Tensors": [{"Name": "image"}]}
GPU_RUNS = (GpuRun(0.125, 0.25, 1.5, 0.5), GpuRun(0.125, 0.25, 1.0, 0.5))
ON_GPU = replace(STAGE, gpu_runs=GPU_RUNS, layer_info=INFO, layers=(replace(LAYERS[0], tactic="sm90"), LAYERS[1]))
TIMES = (
    *("startEnqMs", "endEnqMs", "startH2dMs", "endH2dMs", "startComputeMs", "endComputeMs", "startD2hMs", "endD2hMs"),
    *("h2dMs", "computeMs", "d2hMs", "latencyMs"),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_profile(PROFILE, tmp_path / "a" / "profile")
    return tmp_path / "a" / "profile"


def read(path: Path):
    return json.loads(path.read_text())


def test_every_stage_has_its_files_and_the_whole_comes_back(folder):
    per_stage = {
        f"{stage}.fp16.{kind}.json" for stage in ("perceive", "core") for kind in ("times", "profile", "layers")
    }
    assert {path.name for path in folder.iterdir()} == {"profile.json", "trace.json", *per_stage}
    assert read_profile(folder) == PROFILE


def test_times(folder):
    runs = read(folder / "core.fp16.times.json")
    assert [tuple(run) for run in runs] == [TIMES] * 3
    assert [run["latencyMs"] for run in runs] == [2.0, 4.0, 3.0]
    for run in runs:
        assert run["latencyMs"] == run["h2dMs"] + run["computeMs"] + run["d2hMs"]
        for part, name in (("H2d", "h2dMs"), ("Compute", "computeMs"), ("D2h", "d2hMs")):
            assert run[f"end{part}Ms"] - run[f"start{part}Ms"] == run[name]
        assert run["endH2dMs"] <= run["startComputeMs"]
        assert run["endComputeMs"] <= run["startD2hMs"]
    for before, after in zip(runs, runs[1:]):
        assert before["endD2hMs"] <= after["startEnqMs"]


def test_times_of_a_gpu(tmp_path):
    write_profile(replace(PROFILE, stages=(ON_GPU,)), tmp_path)
    first, second = read(tmp_path / "core.fp16.times.json")
    assert tuple(first) == TIMES
    assert first == dict(zip(TIMES, (0, 0.125, 0, 0.25, 0.25, 1.75, 1.75, 2.25, 0.25, 1.5, 0.5, 2.25)))
    assert (second["startEnqMs"], second["endD2hMs"], second["latencyMs"]) == (2.25, 4.0, 1.75)


def test_the_trace_of_a_gpu_shows_copies_and_layers_while_it_computes(tmp_path):
    write_profile(replace(PROFILE, stages=(ON_GPU, BARE)), tmp_path)
    events = read(tmp_path / "trace.json")["traceEvents"]
    threads = {event["args"]["name"]: event["tid"] for event in events if event["name"] == "thread_name"}
    assert list(threads) == ["stages", "GPU", "layers", "rendering"]
    spans = {
        thread: [
            (event["name"], event["ts"], event["dur"]) for event in events if event["tid"] == tid and "ts" in event
        ]
        for thread, tid in threads.items()
    }
    assert spans["stages"] == [("core", 0, 3000), ("perceive", 3000, 3000)]
    assert spans["GPU"] == [("h2d", 0, 250), ("compute", 250, 1250), ("d2h", 1500, 500)]  # medians
    assert spans["layers"] == [("conv", 375, 1375), ("nearest", 1750, 500)]
    assert [event["args"].get("tactic") for event in events if event["tid"] == threads["layers"] and "ts" in event] == [
        "sm90",
        None,
    ]


def test_what_a_backend_says_of_its_layers_is_kept(tmp_path):
    write_profile(replace(PROFILE, stages=(ON_GPU,)), tmp_path)
    assert read(tmp_path / "core.fp16.layers.json") == INFO
    assert read_profile(tmp_path).stages == (ON_GPU,)


def test_layer_times(folder):
    count, *layers = read(folder / "core.fp16.profile.json")
    assert count == {"count": 3}
    assert layers == [
        {"name": "conv", "timeMs": 5.25, "averageMs": 1.75, "medianMs": 1.5, "percentage": 87.5},
        {"name": "nearest", "timeMs": 0.75, "averageMs": 0.25, "medianMs": 0.5, "percentage": 12.5},
    ]
    assert read(folder / "perceive.fp16.profile.json") == [{"count": 3}]


def test_layer_info(folder):
    info = read(folder / "core.fp16.layers.json")
    assert info == {
        "Layers": [
            {
                "Name": "conv",
                "LayerType": "Conv",
                "Inputs": [
                    {"Name": "image", "Dimensions": [1, 3, 4, 8], "Format/Datatype": "FP16"},
                    {"Name": "", "Dimensions": [], "Format/Datatype": "Int64"},
                ],
                "Outputs": [{"Name": "", "Dimensions": [1, 2, 4, 8], "Format/Datatype": "FP16"}],
                "Precision": "FP16",
            },
            {
                "Name": "nearest",
                "LayerType": "KNearest",
                "Inputs": [{"Name": "points", "Dimensions": [], "Format/Datatype": ""}],
                "Outputs": [{"Name": "ids", "Dimensions": [4], "Format/Datatype": "Int32"}],
                "Precision": "",
            },
        ],
        "Bindings": ["image", "ids"],
    }
    assert read(folder / "perceive.fp16.layers.json")["Layers"] == []


def test_the_trace_is_one_line_of_time_without_overlaps(folder):
    trace = read(folder / "trace.json")
    names = [event["args"]["name"] for event in trace["traceEvents"] if event["ph"] == "M"]
    assert names == ["onnxruntime", "stages", "layers", "rendering"]
    events = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    spans = {event["name"]: (event["ts"], event["ts"] + event["dur"]) for event in events}
    assert spans == {
        "perceive": (0, 3000),
        "core": (3000, 6000),
        "conv": (3125, 4500),  # 1500 us in most runs, but in this one the next layer starts after 1375
        "nearest": (4500, 5000),
        "frame 0": (6000, 10000),
        "frame 1": (10000, 15000),
    }
    threads = {event["tid"]: [other for other in events if other["tid"] == event["tid"]] for event in events}
    assert [len(thread) for thread in threads.values()] == [2, 2, 2]
    for thread in threads.values():
        for event, after in zip(thread, [*thread[1:], {"ts": math.inf}]):
            assert event["pid"] == 1
            assert event["dur"] >= 0
            assert event["ts"] + event["dur"] <= after["ts"]


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"\xff", b"[]", b"{}", b'{"format": 2}'])
def test_damaged_profiles_are_refused(folder, content):
    (folder / "profile.json").write_bytes(content)
    with pytest.raises(InvalidRequest) as caught:
        read_profile(folder)
    assert caught.value.note
    assert caught.value.hint


def test_profiles_that_are_not_there_or_too_large(tmp_path, monkeypatch):
    with pytest.raises(InvalidRequest, match="There is no profile"):
        read_profile(tmp_path / "absent")
    write_profile(PROFILE, tmp_path)
    monkeypatch.setattr("edge4d.runtime.profile_files.MAX_BYTES", 100)
    with pytest.raises(InvalidRequest, match="more than 100 bytes"):
        read_profile(tmp_path)


def test_folders_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidRequest, match="Cannot write"):
        write_profile(PROFILE, tmp_path / "file")


def test_a_folder_that_cannot_be_is_refused_before_the_work(tmp_path):
    check_folder(tmp_path / "new" / "deep")
    assert not any(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidRequest, match="is no folder"):
        check_folder(tmp_path / "file" / "below")
