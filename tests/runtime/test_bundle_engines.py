"""The engines of a bundle: graphs, shapes and keys; and all of it with TensorRT-RTX, which builds without a GPU."""

from __future__ import annotations

import dataclasses

import pytest

from edge4d.runtime import bundle_engines
from edge4d.runtime.bundle import Axis, Bundle, Graph, OperatorStep, SessionStep, Stage, TensorSpec
from edge4d.runtime.bundle_engines import Target, engines, parts, profiles, target
from edge4d.runtime.engine_cache import EngineCache
from edge4d.runtime.engine_from_onnx import DEFAULTS, BuildOptions, Progress
from edge4d.runtime.errors import BackendUnavailable, EngineNotBuilt, InvalidRequest, PrecisionNotInBundle


@pytest.fixture
def stage(tmp_path) -> Stage:
    """Two graphs with an operator between: image [1,3,H,W] → points → chosen → out."""
    steps = (
        SessionStep(tmp_path / "before.onnx", ("image", "scale"), ("points",)),
        OperatorStep("FarthestPointSample", ("points",), ("chosen",), {"count": 8}),
        SessionStep(tmp_path / "after.onnx", ("image", "chosen"), ("out",)),
    )
    return Stage(
        "see",
        {"H": Axis("H", 32, 64, 128, 32), "W": Axis("W", 32, 96, 128, 32)},
        (TensorSpec("image", "float32", (1, 3, "H", "W")), TensorSpec("scale", "float32", (1,))),
        (TensorSpec("out", "float32", ("H*W",)),),
        {"fp32": Graph(tmp_path / "whole.onnx", steps)},
    )


def test_tensorrt_takes_a_graph_whole_and_rtx_what_lies_between_operators(stage):
    (whole,) = parts(stage, "fp32", "tensorrt")
    assert (whole.name, whole.onnx.name, whole.inputs) == ("see", "whole.onnx", ("image", "scale"))
    before, after = parts(stage, "fp32", "tensorrt_rtx")
    assert (before.name, before.onnx.name, before.inputs) == ("see.0", "before.onnx", ("image", "scale"))
    assert (after.name, after.onnx.name, after.inputs) == ("see.1", "after.onnx", ("image", "chosen"))
    with pytest.raises(PrecisionNotInBundle):
        parts(stage, "fp16", "tensorrt")


@pytest.mark.parametrize("library", ["tensorrt", "tensorrt_rtx"])
def test_without_operators_both_take_the_whole(stage, tmp_path, library):
    """In int8, what ONNX Runtime gets is another graph."""
    step = SessionStep(tmp_path / "for_the_cpu.onnx", ("image", "scale"), ("out",))
    stage.graphs["int8"] = Graph(tmp_path / "for_engines.onnx", (step,))
    (part,) = parts(stage, "int8", library)
    assert (part.name, part.onnx.name, part.inputs) == ("see", "for_engines.onnx", ("image", "scale"))


def test_profiles_are_the_axes_sizes(stage):
    assert profiles(stage, ("image", "scale")) == {"image": ((1, 3, 32, 32), (1, 3, 64, 96), (1, 3, 128, 128))}
    with pytest.raises(InvalidRequest, match="takes chosen from an operator"):
        profiles(stage, ("image", "chosen"))
    assert profiles(dataclasses.replace(stage, axes={}), ("image", "chosen")) == {}  # the graphs say all shapes


@pytest.mark.parametrize("device", ["sm_89", "sm89", "89", "SM_89"])
def test_rtx_builds_for_a_gpu_that_is_not_here(device, monkeypatch):
    monkeypatch.setattr(bundle_engines, "library_version", lambda library: "1.7.1")
    assert target("tensorrt_rtx", device) == Target("tensorrt_rtx", "1.7.1", "89")


@pytest.mark.parametrize("device", ["", "ada", "sm_", "sm_0", "sm_8", "sm_8900", "-89"])
def test_what_is_no_gpu(device, monkeypatch):
    monkeypatch.setattr(bundle_engines, "library_version", lambda library: "1.7.1")
    with pytest.raises(InvalidRequest, match="is not a kind of GPU"):
        target("tensorrt_rtx", device)


@pytest.mark.parametrize(("library", "hint"), [("tensorrt_rtx", "--device sm_89"), ("tensorrt", "")])
def test_without_a_gpu(library, hint, monkeypatch):
    def check_device() -> None:
        raise BackendUnavailable("There is no CUDA GPU that works here.", note="The driver counts 0 devices.")

    monkeypatch.setattr(bundle_engines, "library_version", lambda library: "1.0")
    monkeypatch.setattr(bundle_engines.cuda, "check_device", check_device)
    with pytest.raises(BackendUnavailable, match=f"no GPU here to build engines for[\\s\\S]*{hint}"):
        target(library)


@pytest.mark.gpu
def test_engines_for_the_gpu_that_is_here(monkeypatch):
    monkeypatch.setattr(bundle_engines, "library_version", lambda library: "8.6.0")
    here = target("tensorrt")
    assert here.compute_capability in here.device.replace(".", "")
    assert int(here.cuda) >= 12
    assert target("tensorrt_rtx") == Target("tensorrt_rtx", "8.6.0", here.compute_capability)
    with pytest.raises(InvalidRequest, match="builds for the GPU that it runs on"):
        target("tensorrt", "sm_11")


def test_engines_of_an_older_recipe_are_not_taken(monkeypatch):
    street, rtx = Bundle.load("street"), Target("tensorrt_rtx", "1.7.1", "89")
    stage = street.stage("core")
    (part,) = parts(stage, "fp16", rtx.library)
    request = bundle_engines.request(stage, part, "fp16", rtx, DEFAULTS)
    now = bundle_engines.key(street, part, rtx, request)
    monkeypatch.setattr(bundle_engines, "RECIPE", bundle_engines.RECIPE - 1)
    assert bundle_engines.key(street, part, rtx, request) != now


def test_keys_tell_everything_apart_that_changes_an_engine(tmp_path):
    street = Bundle.load("street")
    core, perceive = street.stage("core"), street.stage("perceive")
    ada = Target("tensorrt_rtx", "1.7.1", "89")

    def digest(
        stage: Stage = core, precision: str = "fp16", target: Target = ada, options: BuildOptions = DEFAULTS
    ) -> str:
        (part,) = parts(stage, precision, target.library)
        request = bundle_engines.request(stage, part, precision, target, options)
        return bundle_engines.key(street, part, target, request).digest

    digests = [
        digest(),
        digest(stage=perceive),
        digest(precision="fp32"),
        digest(target=ada._replace(version="1.8.0")),
        digest(target=ada._replace(compute_capability="120")),
        digest(target=ada._replace(cuda="13")),
        digest(target=Target("tensorrt", "1.7.1", "89", "NVIDIA RTX 4090")),
        digest(options=BuildOptions(level=2)),
        digest(stage=dataclasses.replace(core, axes={**core.axes, "H": Axis("H", 64, 256, 480, 32)})),
    ]
    assert len(set(digests)) == len(digests)
    assert digest() == digests[0]


@pytest.mark.rtx
def test_a_bundle_is_built_once(tmp_path):
    street, ada = Bundle.load("street"), target("tensorrt_rtx", "sm_89")
    cache = EngineCache(tmp_path)
    said: list[tuple[str, Progress]] = []
    first = dict(engines(street, "fp16", ada, cache, report=lambda *said_now: said.append(said_now)))
    assert list(first) == ["perceive", "readout", "core", "lift"]
    assert all(engine.built for engine in first.values())
    assert {name for name, _ in said} == set(first)
    again = dict(engines(street, "fp16", ada, EngineCache(tmp_path)))
    assert {name: (engine.data, engine.built) for name, engine in again.items()} == {
        name: (engine.data, False) for name, engine in first.items()
    }
    assert first["core"].path is not None
    assert first["core"].path.name.startswith("street.core.")
    assert first["core"].path.name.endswith(".sm89.rtx1.7.1.116.fp16.engine")


@pytest.mark.rtx
def test_a_refused_build_leaves_nothing(tmp_path):
    other = Target("tensorrt_rtx", "1.7.1.116", "77")
    with pytest.raises(EngineNotBuilt, match="not supported"):
        next(engines(Bundle.load("street"), "fp16", other, EngineCache(tmp_path)))
    assert EngineCache(tmp_path).entries() == []
