"""TensorRT against ONNX Runtime on the shipped bundle, where TensorRT and a GPU are; and what is said where not."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from typing import Any

import numpy as np
import pytest

from edge4d.calib.mixes import ENGINE, with_engine_variant
from edge4d.runtime.backends import backend
from edge4d.runtime.backends.onnxruntime import OnnxRuntimeBackend
from edge4d.runtime.bundle import Bundle
from edge4d.runtime.engine_cache import EngineCache
from edge4d.runtime.errors import BackendUnavailable, EngineFailed, InvalidTensor

STREET = Bundle.load("street")


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="TensorRT is installed")
def test_without_tensorrt() -> None:
    with pytest.raises(BackendUnavailable, match=r"TensorRT is not installed[\s\S]*edge4d\[tensorrt\]"):
        backend("tensorrt")


@pytest.fixture
def tensorrt(engine_cache: EngineCache) -> Any:
    pytest.importorskip("tensorrt")
    from edge4d.runtime.backends.tensorrt import TensorRtBackend

    return TensorRtBackend(engine_cache)


def photograph(width: int, height: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    coarse = rng.random((1, 3, height // 16, width // 16), np.float32)
    intrinsics = np.array([[0.87 * width, 0.87 * width, 0.5 * width, 0.5 * height]], np.float32)
    return {"image": coarse.repeat(16, 2).repeat(16, 3), "intrinsics": intrinsics}


@pytest.mark.gpu
@pytest.mark.parametrize("size", [(448, 256), (64, 64), (1024, 512)])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_stages_are_those_of_onnx_runtime(tensorrt: Any, size: tuple[int, int], precision: str) -> None:
    width, height = size
    tensors = {**photograph(*size), "noise": np.zeros((1, 8, height // 16, width // 16), np.float32)}
    bundle = with_engine_variant(STREET)  # TensorRT's int8 is another graph than ONNX Runtime's
    for stage in STREET.stages:
        with OnnxRuntimeBackend().engine(bundle, stage, ENGINE if precision == "int8" else precision) as reference:
            inputs = {tensor.name: tensors[tensor.name] for tensor in reference.inputs}
            expected = reference.run(inputs)
        with tensorrt.engine(STREET, stage, precision) as engine:
            found = engine.run(inputs)
        # TensorRT sums in another order: float32 rounds at 6e-8 a product, over some thousand of them; half at 5e-4,
        # and what that brings to the next step of int8 differs by 8e-3. What has no halves in it is float32 always.
        tolerance = 1e-3 if stage in ("readout", "lift") else {"fp32": 1e-3, "fp16": 0.03, "int8": 0.1}[precision]
        for name, reference in expected.items():
            if reference.dtype.kind == "f":
                wrong = np.abs(found[name] - reference) > tolerance * np.abs(reference).max()
                assert np.mean(wrong) < 1e-3, (stage, name)
            else:  # ids of pixels between two centres
                assert np.mean(found[name] != reference) < 1e-3, (stage, name)
        tensors = {**expected, **tensors}


@pytest.mark.gpu
def test_shapes_may_change_and_outputs_are_the_callers(tensorrt: Any) -> None:
    with tensorrt.engine(STREET, "perceive", "fp16") as engine:
        first = engine.run(photograph(128, 64))["log_depth"]
        kept = first.copy()
        assert engine.run(photograph(64, 96))["log_depth"].shape == (1, 1, 96, 64)
        np.testing.assert_array_equal(first, kept)
        np.testing.assert_array_equal(engine.run(photograph(128, 64))["log_depth"], first)
        with pytest.raises(InvalidTensor):
            engine.run(photograph(80, 64))
    with pytest.raises(EngineFailed, match="closed"):
        engine.run(photograph(128, 64))


@pytest.mark.gpu
def test_engines_come_out_of_the_cache(tensorrt: Any, engine_cache: EngineCache) -> None:
    tensorrt.engine(STREET, "readout", "fp16").close()
    entries = [entry for entry in engine_cache.entries() if entry.path.name.startswith("street.readout")]
    before = {entry.path: entry.path.stat().st_mtime_ns for entry in entries}
    assert before
    tensorrt.engine(STREET, "readout", "fp16").close()
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.gpu
def test_an_engine_that_tensorrt_does_not_take_is_built_again(tensorrt: Any, engine_cache: EngineCache) -> None:
    tensorrt.engine(STREET, "readout", "fp16").close()
    (path,) = (e.path for e in engine_cache.entries() if ".readout." in e.path.name and ".fp16." in e.path.name)
    foreign = b"no engine, but what the manifest says"
    path.write_bytes(foreign)
    manifest = path.with_name(path.name + ".json")
    told = {"bytes": len(foreign), "sha256": hashlib.sha256(foreign).hexdigest()}
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), **told}))
    tensorrt.engine(STREET, "readout", "fp16").close()
    assert path.read_bytes() != foreign
