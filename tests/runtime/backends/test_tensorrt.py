"""TensorRT against ONNX Runtime on the shipped bundle, where TensorRT and a GPU are; and what is said where not."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from edge4d.runtime.backends import backend
from edge4d.runtime.backends.cuda import DeviceArray, Stream
from edge4d.runtime.backends.onnxruntime import OnnxRuntimeBackend
from edge4d.runtime.bundle import Bundle
from edge4d.runtime.engine_cache import EngineCache
from edge4d.runtime.errors import BackendUnavailable, EngineFailed, InvalidTensor
from edge4d.runtime.onnx_files import IR_VERSION, OPSET

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
# TensorRT sums in another order: float32 rounds at 6e-8 a product, over some thousand of them; half at 5e-4.
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("fp16", 3e-2)])
def test_stages_are_those_of_onnx_runtime(
    tensorrt: Any, size: tuple[int, int], precision: str, tolerance: float
) -> None:
    inputs = photograph(*size)
    with OnnxRuntimeBackend().engine(STREET, "perceive", precision) as reference:
        expected = reference.run(inputs)
    with tensorrt.engine(STREET, "perceive", precision) as engine:
        found = engine.run(inputs)
    assert np.mean(np.abs(found["depth"] / expected["depth"] - 1) > tolerance) < 1e-3
    assert np.mean(found["instances"] != expected["instances"]) < 0.02

    width, height = size
    core = {**inputs, **expected, "noise": np.zeros((1, 8, height // 16, width // 16), np.float32)}
    with OnnxRuntimeBackend().engine(STREET, "core", precision) as reference:
        expected = reference.run(core)
    with tensorrt.engine(STREET, "core", precision) as engine:
        found = engine.run(core)
    np.testing.assert_array_equal(found["groups"], expected["groups"])
    for name in ("means", "scales", "opacities", "colors", "linear"):
        scale = np.abs(expected[name]).max()
        assert np.mean(np.abs(found[name] - expected[name]) > tolerance * scale) < 1e-3, name


@pytest.mark.gpu
def test_shapes_may_change_and_outputs_are_the_callers(tensorrt: Any) -> None:
    with tensorrt.engine(STREET, "perceive", "fp16") as engine:
        first = engine.run(photograph(128, 64))["depth"]
        kept = first.copy()
        assert engine.run(photograph(64, 96))["depth"].shape == (1, 1, 96, 64)
        np.testing.assert_array_equal(first, kept)
        np.testing.assert_array_equal(engine.run(photograph(128, 64))["depth"], first)
        with pytest.raises(InvalidTensor):
            engine.run(photograph(80, 64))
    with pytest.raises(EngineFailed, match="closed"):
        engine.run(photograph(128, 64))


@pytest.mark.gpu
def test_engines_come_out_of_the_cache(tensorrt: Any, engine_cache: EngineCache) -> None:
    tensorrt.engine(STREET, "perceive", "fp16").close()
    entries = [entry for entry in engine_cache.entries() if entry.path.name.startswith("street.perceive")]
    before = {entry.path: entry.path.stat().st_mtime_ns for entry in entries}
    assert before
    tensorrt.engine(STREET, "perceive", "fp16").close()
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.gpu
def test_an_engine_that_tensorrt_does_not_take_is_built_again(tensorrt: Any, engine_cache: EngineCache) -> None:
    tensorrt.engine(STREET, "perceive", "fp16").close()
    (path,) = (e.path for e in engine_cache.entries() if ".perceive." in e.path.name and ".fp16." in e.path.name)
    foreign = b"no engine, but what the manifest says"
    path.write_bytes(foreign)
    manifest = path.with_name(path.name + ".json")
    told = {"bytes": len(foreign), "sha256": hashlib.sha256(foreign).hexdigest()}
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), **told}))
    with tensorrt.engine(STREET, "perceive", "fp16") as engine:
        assert engine.run(photograph(64, 64))["depth"].shape == (1, 1, 64, 64)
    assert path.read_bytes() != foreign


@pytest.mark.gpu
def test_what_is_kept_in_float32_never_passes_through_halves(tmp_path: Path) -> None:
    """Around a convolution in half precision, what TensorRT 8.6 fuses: constants, and moves that compute nothing."""
    pytest.importorskip("tensorrt")
    from edge4d.runtime.backends.tensorrt import Scratch, TensorRt
    from edge4d.runtime.engine_from_onnx import BuildRequest, engine_from_onnx

    graph = tmp_path / "island.onnx"
    island(graph)
    x = np.random.default_rng(0).normal(size=(1, 8, 16, 16)).astype(np.float32)
    exact, product = onnxruntime.InferenceSession(graph).run(["exact", "product"], {"x": x})
    assert np.abs(exact).max() > 65504  # what no half can hold

    engine, stream = TensorRt().load(engine_from_onnx(BuildRequest(graph, "tensorrt", "fp16", {}))), Stream()
    arrays = {"x": DeviceArray.from_numpy(x)}
    arrays.update({name: DeviceArray(engine.shape(name)) for name in engine.outputs})
    for name, array in arrays.items():
        engine.bind(name, array)
    scratch = Scratch()
    scratch.reserve(engine.scratch_bytes)
    engine.enqueue(stream, scratch)
    stream.synchronize()
    # One product in float32. A half would be 5e-4 off, and infinite where it is large.
    np.testing.assert_allclose(arrays["exact"].to_numpy(), exact, rtol=1e-6)
    # The convolution adds 72 products of halves.
    np.testing.assert_allclose(arrays["product"].to_numpy(), product, rtol=0.02, atol=0.02 * np.abs(product).max())


def island(path: Path) -> None:
    """Writes a graph: x scaled and moved about, with ones beside it, in float32; and that times a convolution of x."""
    onnx = pytest.importorskip("onnx")
    TensorProto, helper, numpy_helper = onnx.TensorProto, onnx.helper, onnx.numpy_helper

    rng = np.random.default_rng(1)
    constants = {
        "weight": (0.1 * rng.normal(size=(4, 8, 3, 3))).astype(np.float16),
        "scale": np.float32([4e4]),
        "one": np.float32([1]),
        "flat": np.int64([1, -1, 256]),
        "grid": np.int64([1, 16, 16, 9]),
        "ones_shape": np.int64([1, 256]),
        "last": np.int64([2]),
        "begin": np.int64([0]),
        "end": np.int64([4]),
    }
    nodes = [
        helper.make_node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Conv", ["half", "weight"], ["conv"], pads=[1, 1, 1, 1]),
        helper.make_node("Cast", ["conv"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["float", "flat"], ["float_rows"]),
        helper.make_node("Transpose", ["float_rows"], ["float_points"], perm=[0, 2, 1]),
        helper.make_node("Reshape", ["x", "flat"], ["rows"]),
        helper.make_node("Mul", ["rows", "scale"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["points"], perm=[0, 2, 1]),
        helper.make_node("Expand", ["one", "ones_shape"], ["ones"]),
        helper.make_node("Unsqueeze", ["ones", "last"], ["column"]),
        helper.make_node("Concat", ["points", "column"], ["both"], axis=2),
        helper.make_node("Reshape", ["both", "grid"], ["exact"]),
        helper.make_node("Slice", ["points", "begin", "end", "last"], ["some"]),
        helper.make_node("Mul", ["some", "float_points"], ["product"]),
    ]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", (1, 8, 16, 16)), ("exact", (1, 16, 16, 9)), ("product", (1, 256, 4)))
    ]
    initializers = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    made = helper.make_graph(nodes, "island", values[:1], values[1:], initializers)
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION), path)
