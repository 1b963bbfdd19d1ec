"""Measuring a bundle: everything that ran is in the profile, once, with what can be counted. No times are compared."""

from __future__ import annotations

import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge4d.runtime import cli, profiler
from edge4d.runtime.backends import backend
from edge4d.runtime.bundle import Bundle
from edge4d.runtime.errors import BackendUnavailable, InvalidRequest, PrecisionNotInBundle
from edge4d.runtime.layers import LayerRun, Measurement, TensorType
from edge4d.runtime.profile import GpuRun, Peaks, Profile, StageProfile, profile_from_json, to_json
from edge4d.runtime.profile_files import read_profile
from edge4d.runtime.profiler import profile_bundle


@pytest.fixture
def bundle(tiny_bundle) -> Bundle:
    return Bundle.load(tiny_bundle)


def check(profile: Profile, runs: int) -> None:
    """What is true of every profile on ONNX Runtime."""
    for stage in profile.stages:
        assert len(stage.runs_ms) == runs
        assert min(stage.runs_ms) >= 0
        assert stage.layers
        assert stage.io_bytes > 0
        starts = [layer.start_ms for layer in stage.layers]
        assert starts == sorted(starts)
        for layer in stage.layers:
            assert min(layer.ms, layer.average_ms, layer.start_ms, layer.flops) >= 0
            assert layer.bytes <= stage.activation_bytes + stage.weights_bytes
    assert min(profile.render_ms, default=0) >= 0
    assert profile.peaks.flops["float32"] > 0
    assert profile.peaks.bandwidth > 0
    assert profile_from_json(to_json(profile)) == profile


def test_a_bundle_in_all_its_precisions(bundle):
    told = []
    profile = profile_bundle(bundle, "onnxruntime", runs=3, warm_up=1, frames=2, report=lambda *now: told.append(now))
    check(profile, runs=3)
    assert [(stage.name, stage.precision) for stage in profile.stages] == [
        (name, precision) for name in ("perceive", "core") for precision in ("fp32", "fp16")
    ]
    assert (profile.bundle, profile.backend, profile.size) == ("tiny", "onnxruntime", (64, 32))
    assert len(profile.render_ms) == 2
    assert profile.stages[0].inputs == {"image": "float32[1,3,32,64]", "intrinsics": "float32[1,4]"}
    assert profile.stages[0].outputs == {"depth": "float32[1,1,32,64]", "instances": "int32[1,32,64]"}
    for word in ("edge4d", "python", "onnxruntime", "machine", "cores", "date"):
        assert profile.about[word]
    assert profile.about["command"] == ("edge4d profile tiny --backend onnxruntime --size 64x32 --runs 3 --frames 2")
    done, totals = zip(*told)
    assert list(done) == sorted(done)
    assert set(totals) == {done[-1]} == {2 * 2 * 2 * 4 + 2}  # stages, precisions, with and without layers; runs; frames


def test_the_shipped_bundle_shows_where_its_work_is():
    profile = profile_bundle(
        Bundle.load("street"), "onnxruntime", precisions=["fp16"], size=(96, 64), runs=2, warm_up=0, frames=1
    )
    check(profile, runs=2)
    assert profile.size == (96, 64)
    assert [stage.name for stage in profile.stages] == ["perceive", "readout", "core", "lift"]
    for stage in profile.stages[::2]:
        convolutions = [layer for layer in stage.layers if layer.kind == "Conv"]
        assert len(convolutions) > 20
        assert all(layer.flops > 0 and layer.dtype.startswith("float") for layer in convolutions)
        # Weights lie in the bundle in half precision, and ONNX Runtime holds no less of them.
        assert stage.weights_bytes >= Bundle.load("street").files[f"{stage.name}.weights"].bytes


def test_other_systems_are_measured_without_a_scene(bundle):
    profile = profile_bundle(replace(bundle, system="another"), "onnxruntime", precisions=["fp32"], runs=1, warm_up=0)
    check(profile, runs=1)
    assert profile.render_ms == ()


class WithoutLayers:
    """ONNX Runtime by another name, and nothing but engines: as a backend that cannot look inside a stage."""

    name = "another"

    def engine(self, *arguments):
        return backend("onnxruntime").engine(*arguments)


def test_backends_may_have_no_layers(bundle, monkeypatch):
    monkeypatch.setattr(profiler, "backend_by_name", lambda name: WithoutLayers())
    profile = profile_bundle(bundle, "onnxruntime", precisions=["fp32"], runs=2, warm_up=0, frames=0)
    assert [(len(stage.runs_ms), stage.layers, stage.weights_bytes) for stage in profile.stages] == [(2, (), 0)] * 2
    assert profile.render_ms == ()
    assert profile.peaks == Peaks()  # not those of a machine that did not run it


class WithGpu(WithoutLayers):
    """As a backend on a GPU: of the run of number n, computing takes n milliseconds."""

    def look_inside(self, bundle, stage, precision, inputs, runs):
        y = TensorType("y", "float16", (2, 4))
        return Measurement(
            layer_runs=[[LayerRun(stage, "Conv", 0.0, 2.0 * run, (), (y,), 0, 16, "sm90")] for run in range(runs)],
            gpu_runs=[GpuRun(0.5, 0.25, float(run), 0.125) for run in range(runs)],
            engine_bytes=1000,
            scratch_bytes=200,
            layer_info={"Layers": [{"Name": stage}]},
        )


def test_what_happens_on_a_gpu_is_there_without_the_runs_to_warm_up(bundle, monkeypatch):
    monkeypatch.setattr(profiler, "backend_by_name", lambda name: WithGpu())
    profile = profile_bundle(bundle, "onnxruntime", precisions=["fp16"], runs=3, warm_up=2, frames=0)
    for stage in profile.stages:
        assert stage.gpu_runs == tuple(GpuRun(0.5, 0.25, ms, 0.125) for ms in (2.0, 3.0, 4.0))
        assert [(layer.name, layer.ms, layer.tactic, layer.dtype) for layer in stage.layers] == [
            (stage.name, 6.0, "sm90", "float16")
        ]
        assert (stage.engine_bytes, stage.activation_bytes) == (1000, 200)
        assert stage.layer_info == {"Layers": [{"Name": stage.name}]}
    image, depth, ids = 4 * 3 * 32 * 64, 4 * 32 * 64, 4 * 32 * 64
    assert profile.stages[0].io_bytes == image + 16 + depth + ids


def test_layers_are_those_of_the_usual_run_with_all_runs_times():
    def run(*spans):
        tensors = (TensorType("", "float32", (2, 3)), TensorType("", "float32", (3, 4)))
        return [
            LayerRun(name, "MatMul", start, ms, tensors, (TensorType("y", "float32", (2, 4)),), 48, 104)
            for name, (start, ms) in zip("ab", spans)
        ]

    first, second = profiler._layers([run((0, 1), (1, 7)), run((0, 2), (2, 3)), run((0, 6), (6, 5))])
    assert [(layer.name, layer.ms, layer.average_ms, layer.start_ms) for layer in (first, second)] == [
        ("a", 2, 3, 0),
        ("b", 5, 5, 1),  # the run that ends after 8 ms lies between those of 5 and 11
    ]
    assert (first.flops, first.bytes, first.dtype) == (2 * 2 * 3 * 4, 104, "float32")
    assert (first.inputs, first.outputs) == (("float32[2,3]", "float32[3,4]"), ("y float32[2,4]",))


@pytest.mark.gpu
def test_the_command_on_tensorrt_writes_files_that_agree(tmp_path, monkeypatch):
    pytest.importorskip("tensorrt")
    monkeypatch.setenv("EDGE4D_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "profile"
    with pytest.raises(SystemExit) as stop:
        cli.main(["profile", "street", "--backend", "tensorrt", "--precision", "fp16", "-o", str(folder)])
    assert not stop.value.code
    profile = read_profile(folder)
    assert [(stage.name, stage.precision) for stage in profile.stages] == [("perceive", "fp16"), ("core", "fp16")]
    assert profile.backend == "tensorrt"
    assert profile.render_ms
    report = (folder / "report.html").read_text()
    for stage in profile.stages:
        check_gpu(stage)
        _, *timed = _json(folder, f"{stage.name}.fp16.profile.json")
        names = [layer["name"] for layer in timed]
        told = [layer["Name"] for layer in _json(folder, f"{stage.name}.fp16.layers.json")["Layers"]]
        assert names == [layer.name for layer in stage.layers]
        assert not set(names) - set(told)  # which may have more: what is never run
        assert [run["computeMs"] for run in _json(folder, f"{stage.name}.fp16.times.json")] == [
            run.compute_ms for run in stage.gpu_runs
        ]
        assert f"{stage.name} in fp16" in report
    layers = [layer.name for stage in profile.stages for layer in stage.layers]
    assert [event["name"] for event in _events(folder, "layers")] == layers
    assert [event["name"] for event in _events(folder, "GPU")] == ["h2d", "compute", "d2h"] * 2


def check_gpu(stage: StageProfile) -> None:
    assert len(stage.gpu_runs) == len(stage.runs_ms) == 30
    assert min(stage.engine_bytes, stage.activation_bytes, stage.io_bytes, stage.weights_bytes) > 0
    computing = statistics.median(run.compute_ms for run in stage.gpu_runs)
    # An event at each layer costs some microseconds, as much as a small layer takes: up to twice again. Less than the
    # whole it cannot be, but for layers that TensorRT runs beside each other, and clocks that are not constant.
    assert 0.7 * computing < sum(layer.ms for layer in stage.layers) < 3 * computing
    # What the caller waits for is more than what the GPU does, in the median of different runs.
    assert computing < statistics.median(stage.runs_ms)


def _json(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


def _events(folder: Path, thread: str) -> list[dict[str, Any]]:
    """Of that name in the trace."""
    events = _json(folder, "trace.json")["traceEvents"]
    (tid,) = (event["tid"] for event in events if event["ph"] == "M" and event["args"]["name"] == thread)
    return [event for event in events if event["ph"] == "X" and event["tid"] == tid]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"runs": 0}, InvalidRequest),
        ({"warm_up": -1}, InvalidRequest),
        ({"frames": -1}, InvalidRequest),
        ({"size": (100, 60)}, InvalidRequest),
        ({"backend": "abacus"}, InvalidRequest),
        ({"backend": "tensorrt_rtx"}, BackendUnavailable),
        ({"precisions": ["fp32", "int8"]}, PrecisionNotInBundle),
    ],
)
def test_what_cannot_be_measured(bundle, arguments, error):
    with pytest.raises(error):
        profile_bundle(bundle, **{"backend": "onnxruntime", **arguments})
