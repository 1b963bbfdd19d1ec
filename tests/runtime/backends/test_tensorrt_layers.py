"""Layers on TensorRT: what its profiler and its inspector say in 8.6, 10 and 11; and all of it where there is a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edge4d.runtime.backends import tensorrt_layers
from edge4d.runtime.backends.tensorrt_layers import layer_runs
from edge4d.runtime.bundle import Bundle
from edge4d.runtime.errors import EngineFailed
from edge4d.runtime.layers import LayerRun, LooksInside, dtype, flops


def tensor(name: str, shape: list[int], **about: str) -> dict[str, Any]:
    return {"Name": name, "Dimensions": shape, **about}


def in_words(name: str, shape: list[int], words: str) -> dict[str, Any]:
    """As 8.6 and 10 say it of layers that do not come from their compiler."""
    return tensor(name, shape, Location="Device", **{"Format/Datatype": words})


CONVOLUTION = {
    "Name": "stem + Relu",
    "LayerType": "CaskConvolution",
    "Inputs": [in_words("image", [1, 3, 8, 8], "Row major linear FP32")],
    "Outputs": [in_words("a", [1, 16, 4, 4], "Channel major FP16 format where channel % 8 == 0")],
    "ParameterType": "Convolution",
    "Kernel": [3, 3],
    "OutMaps": 16,
    "Groups": 1,
    "Weights": {"Type": "Half", "Count": 16 * 3 * 9},
    "Bias": {"Type": "Half", "Count": 16},
    "TacticName": "sm80_xmma_fprop_implicit_gemm",
    "TacticValue": "0x0866ddee325d07a6",
    "Metadata": "[ONNX Layer: stem]\x1e[ONNX Layer: Relu]",
}
UPWARD = {
    "Name": "up",
    "LayerType": "CaskDeconvolutionV2",
    "Inputs": [in_words("a", [1, 16, 4, 4], "Thirty-two wide channel vectorized row major Int8 format")],
    "Outputs": [in_words("b", [1, 7, 8, 8], "Row major linear FP16 format")],
    "ParameterType": "Convolution",
    "Kernel": [2, 2],
    "OutMaps": 7,
    "Weights": {"Type": "Int8", "Count": 16 * 7 * 4},
    "Bias": {"Type": "Float", "Count": 0},
    "TacticValue": "0x0",
}
COPY = {
    "Name": "Reformatting CopyNode for Input Tensor 0 to up",
    "LayerType": "Reformat",
    "Inputs": [in_words("b", [1, 7, 8, 8], "Row major linear FP16 format")],
    "Outputs": [in_words("c", [1, 7, 8, 8], "Row major linear FP32")],
    "ParameterType": "Reformat",
    "Origin": "REFORMAT",
}
SECOND_COPY = {**COPY, "Outputs": [in_words("d", [-1, 8, 8], "Row major linear Int32")]}
FUSED = {
    "Name": "__myl_ConvAddSilu_myl0_3",
    "LayerType": "kgen",
    "Inputs": [tensor("x", [2, 5], **{"Format/Datatype": "Half"})],
    "Outputs": [tensor("y", [2, 5], **{"Format/Datatype": "BFloat16"})],
    "TacticName": "__myl_ConvAddSilu_0x1234",
    "StreamId": 0,
    "Metadata": "",
}
PRODUCT_10 = {
    "Name": "qkv_myl0_4",
    "LayerType": "gemm",
    "Inputs": [tensor("x", [1, 6, 32], **{"Format/Datatype": "Half"})],
    "Constants": [tensor("weights", [32, 96], **{"Format/Datatype": "Half"})],
    "Outputs": [tensor("y", [1, 6, 96], **{"Format/Datatype": "Half"})],
    "TacticName": "sm90_xmma_gemm_f16f16",
    "StreamId": 0,
    "Metadata": "[ONNX Layer: qkv]",
}
PRODUCT_11 = {
    **PRODUCT_10,
    "Inputs": [tensor("x", [1, 6, 32], Format="Row major linear", DataType="Half")],
    "Constants": [tensor("weights", [32, 96], Format="Row major linear", Datatype="Half")],
    "Outputs": [tensor("y", [1, 6, 96], Format="Row major linear", Datatype="Half")],
}
IO_11 = [{"Name": "x", "IOMode": "Input", "DataType": "Half", "Dimensions": [1, 6, 32], "Location": "Device"}]


def layers(info: dict[str, Any], *names: str) -> list[LayerRun]:
    """Without times."""
    (run,) = layer_runs([[(name, 0.0) for name in names]], info)
    return run


def written(layer: LayerRun) -> tuple[str, ...]:
    return tuple(map(str, (*layer.inputs, *layer.outputs)))


def counted(layer: LayerRun) -> int:
    return flops(layer.kind, layer.inputs, layer.outputs)


# ---- what layers are ------------------------------------------------------------------------------------------------


def test_a_convolution_of_8_6():
    (layer,) = layers({"Layers": [CONVOLUTION], "Bindings": ["image", "b"]}, "stem + Relu")
    assert (layer.kind, layer.tactic, dtype(layer.outputs)) == ("Conv", "sm80_xmma_fprop_implicit_gemm", "float16")
    assert written(layer) == (
        *("image float32[1,3,8,8]", "weights float16[16,3,3,3]", "bias float16[16]", "a float16[1,16,4,4]"),
    )
    assert counted(layer) == 2 * 16 * 4 * 4 * 3 * 9
    assert layer.weights_bytes == 2 * (16 * 27 + 16)
    assert layer.bytes == layer.weights_bytes + 4 * 3 * 64 + 2 * 16 * 16


def test_what_a_convolution_adds_is_none_of_its_weights():
    added = {**CONVOLUTION, "Inputs": [*CONVOLUTION["Inputs"], in_words("b", [1, 16, 4, 4], "Row major linear FP32")]}
    (layer,) = layers({"Layers": [added]}, "stem + Relu")
    assert [tensor.name for tensor in layer.inputs] == ["image", "weights", "bias", "b"]
    assert counted(layer) == 2 * 16 * 4 * 4 * 3 * 9
    assert layer.bytes == layer.weights_bytes + 4 * 3 * 64 + 4 * 16 * 16 + 2 * 16 * 16


def test_a_transposed_convolution_goes_by_its_inputs():
    (layer,) = layers({"Layers": [UPWARD]}, "up")
    assert written(layer) == ("a int8[1,16,4,4]", "weights int8[16,7,2,2]", "b float16[1,7,8,8]")
    assert (layer.kind, counted(layer)) == ("ConvTranspose", 2 * 16 * 16 * 7 * 4)
    assert layer.tactic == ""


@pytest.mark.parametrize(
    "info", [{"Layers": [PRODUCT_10], "Bindings": ["x", "y"]}, {"Layers": [PRODUCT_11], "I/O Tensors": IO_11}]
)
def test_a_product_of_10_and_11(info: dict[str, Any]):
    (layer,) = layers(info, "qkv_myl0_4")
    assert written(layer) == ("x float16[1,6,32]", "weights float16[32,96]", "y float16[1,6,96]")
    assert (layer.kind, layer.tactic) == ("MatMul", "sm90_xmma_gemm_f16f16")
    assert counted(layer) == 2 * 6 * 96 * 32
    assert layer.bytes == 2 * (6 * 32 + 32 * 96 + 6 * 96)


def test_a_layer_of_the_compiler_keeps_its_kind():
    (layer,) = layers({"Layers": [FUSED]}, FUSED["Name"])
    assert (layer.kind, written(layer)) == ("kgen", ("x float16[2,5]", "y bfloat16[2,5]"))
    assert (counted(layer), layer.weights_bytes, layer.bytes) == (0, 0, 40)


def test_layers_of_one_name_are_told_apart_by_their_order():
    first, second = layers({"Layers": [COPY, CONVOLUTION, SECOND_COPY]}, COPY["Name"], COPY["Name"])
    assert [str(layer.outputs[0]) for layer in (first, second)] == ["c float32[1,7,8,8]", "d int32[-1,8,8]"]
    assert second.bytes == 2 * 7 * 64  # what is not known counts nothing


@pytest.mark.parametrize("info", [{}, {"Layers": []}, {"Layers": ["stem + Relu", "other"]}, {"Layers": [COPY]}])
def test_layers_of_which_only_the_name_is_known(info: dict[str, Any]):
    assert layers(info, "stem + Relu") == [LayerRun("stem + Relu", "", 0.0, 0.0, (), (), 0, 0)]


WORDS = [
    ("Row major linear FP32", "float32"),
    ("Row major linear FP16 format (kLINEAR)", "float16"),
    ("Channel major Int8 format", "int8"),
    ("Row major INT8 format where column stride % 64 == 0", "int8"),
    ("Row major linear BFloat16 format", "bfloat16"),
    ("Row major linear BOOL", "bool"),
    ("Row major linear UInt8 format", "uint8"),
    ("Row major linear FP8 format", "float8"),
    ("FP4E2M1", "float4"),
    ("Float", "float32"),
    ("Half", "float16"),
    ("Int64", "int64"),
    ("Unknown format", ""),
    ("", ""),
]


@pytest.mark.parametrize(("words", "name"), WORDS)
def test_types_by_tensorrts_words(words: str, name: str):
    node = {"Name": "n", "LayerType": "kgen", "Outputs": [in_words("y", [3, 4], words)]}
    (layer,) = layers({"Layers": [node]}, "n")
    assert layer.outputs[0].dtype == name


# ---- what the profiler and the inspector are asked ------------------------------------------------------------------


def test_layers_follow_each_other_in_each_run():
    times = [[("stem + Relu", 1.0), ("up", 2.5)], [("stem + Relu", 3.0), ("up", 0.5)]]
    first, second = layer_runs(times, {"Layers": [CONVOLUTION, UPWARD]})
    assert [(layer.name, layer.kind, layer.start_ms, layer.ms) for layer in first] == [
        ("stem + Relu", "Conv", 0.0, 1.0),
        ("up", "ConvTranspose", 1.0, 2.5),
    ]
    assert [(layer.start_ms, layer.ms) for layer in second] == [(0.0, 3.0), (3.0, 0.5)]


# In sums of numbers as different as these, a start that is an end less a length goes back.
@pytest.mark.parametrize("times", [[0.0], [0.0, 0.0, 0.0], [1e-129, 0.0, 1.0], [1e3, 1e-17, 0.1, 0.2, 1e9, 1e-9]])
def test_starts_never_go_back(times: list[float]):
    (run,) = layer_runs([[(str(number), ms) for number, ms in enumerate(times)]], {})
    starts = [layer.start_ms for layer in run]
    assert starts == sorted(starts)
    assert starts[0] == 0


def inspected(text: str) -> Any:
    """An engine whose inspector says `text`, and the context that it was given."""
    inspector = SimpleNamespace(execution_context=None)
    inspector.get_engine_information = lambda format: text if format == "json" else ""
    engine = SimpleNamespace(create_engine_inspector=lambda: inspector)
    return SimpleNamespace(engine=engine, context="context", inspector=inspector)


TENSORRT = SimpleNamespace(LayerInformationFormat=SimpleNamespace(JSON="json"), IProfiler=object)


def test_the_inspector_is_asked_about_the_context():
    text = json.dumps({"Layers": [CONVOLUTION]}).replace("\\u001e", "\x1e")  # as 8.6 writes it, against the standard
    loaded = inspected(text)
    assert tensorrt_layers._layer_info(TENSORRT, loaded) == {"Layers": [CONVOLUTION]}
    assert loaded.inspector.execution_context == "context"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"Layers": ["a "b""]}'])
def test_an_inspector_that_says_nothing(text: str):
    assert tensorrt_layers._layer_info(TENSORRT, inspected(text)) == {}


def test_the_profiler_keeps_what_is_reported_in_order():
    profiler = tensorrt_layers._profiler(TENSORRT)
    for name, ms in (("a", 1.0), ("b", 2.0), ("a", 3.0)):
        profiler.report_layer_time(name, ms)
    assert profiler.times == [("a", 1.0), ("b", 2.0), ("a", 3.0)]


@pytest.mark.rtx
def test_the_profiler_is_one_of_a_real_library():
    """In a process of its own: no process takes two of these libraries."""
    script = """
import tensorrt_rtx
from edge4d.runtime.backends.tensorrt_layers import _profiler
profiler = _profiler(tensorrt_rtx)
tensorrt_rtx.IProfiler.report_layer_time(profiler, "a", 1.5)  # through the library, which calls ours
assert isinstance(profiler, tensorrt_rtx.IProfiler) and profiler.times == [("a", 1.5)]
assert tensorrt_rtx.LayerInformationFormat.JSON.name == "JSON"
"""
    subprocess.run([sys.executable, "-P", "-c", script], check=True)


# ---- on a GPU -------------------------------------------------------------------------------------------------------

STREET = Bundle.load("street")
RUNS = 20


@pytest.fixture(scope="module")
def tensorrt(engine_cache: Any) -> Any:
    pytest.importorskip("tensorrt")
    from edge4d.runtime.backends.tensorrt import TensorRtBackend

    return TensorRtBackend(engine_cache)


@pytest.fixture(scope="module")
def inputs() -> dict[str, np.ndarray]:
    image = np.random.default_rng(0).random((1, 3, 256, 448), np.float32)
    return {"image": image, "intrinsics": np.array([[390, 390, 224, 128]], np.float32)}


@pytest.fixture(scope="module")
def inside(tensorrt: Any, inputs: dict[str, np.ndarray]) -> Any:
    return tensorrt.look_inside(STREET, "perceive", "fp16", inputs, RUNS)


@pytest.mark.gpu
def test_copies_and_computing_take_time(tensorrt: Any, inside: Any) -> None:
    assert isinstance(tensorrt, LooksInside)
    assert len(inside.gpu_runs) == RUNS
    for run in inside.gpu_runs:
        assert min(run.enqueue_ms, run.h2d_ms, run.compute_ms, run.d2h_ms) > 0


@pytest.mark.gpu
def test_layers_are_the_same_in_each_run_and_are_described(inside: Any) -> None:
    assert len(inside.layer_runs) == RUNS
    (names,) = {tuple(layer.name for layer in run) for run in inside.layer_runs}
    told = [node["Name"] for node in inside.layer_info["Layers"]]
    assert not set(names) - set(told)
    convolutions = [layer for layer in inside.layer_runs[0] if layer.kind == "Conv"]
    assert len(convolutions) > 10
    assert all(counted(layer) > 0 and layer.weights_bytes > 0 and layer.tactic for layer in convolutions)
    assert any(dtype(layer.outputs) == "float16" for layer in convolutions)
    assert all(size > 0 for layer in inside.layer_runs[0] for tensor in layer.outputs for size in tensor.shape)


@pytest.mark.gpu
def test_sizes_are_those_of_the_engine(tensorrt: Any, inside: Any) -> None:
    (path,) = (
        entry.path
        for entry in tensorrt.cache.entries()
        if ".perceive." in entry.path.name and ".fp16." in entry.path.name
    )
    # It is written anew from memory, with a header that may be some bytes longer.
    assert inside.engine_bytes == pytest.approx(path.stat().st_size, rel=0.01)
    assert inside.scratch_bytes > 0


@pytest.mark.gpu
def test_other_shapes_and_shapes_that_are_refused(tensorrt: Any) -> None:
    image, intrinsics = np.zeros((1, 3, 64, 96), np.float32), np.ones((1, 4), np.float32)
    small = tensorrt.look_inside(STREET, "perceive", "fp16", {"image": image, "intrinsics": intrinsics}, 1)
    assert image.shape in {tensor.shape for layer in small.layer_runs[0] for tensor in layer.inputs}
    with pytest.raises(EngineFailed, match=r"\[1, 3, 8, 8\]"):
        tensorrt.look_inside(STREET, "perceive", "fp16", {"image": image[:, :, :8, :8], "intrinsics": intrinsics}, 1)
