"""What happens inside a stage on TensorRT: events round its copies and its computing, times of its layers, and what
these layers are. TensorRT's profiler tells the times, its inspector the rest."""

from __future__ import annotations

import json
import math
import re
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from itertools import accumulate
from typing import Any

from numpy.typing import NDArray

from edge4d.runtime.backends.cuda import Event, Mirrored, Stream
from edge4d.runtime.backends.tensorrt import LoadedEngine, Scratch
from edge4d.runtime.layers import LayerRun, Measurement, TensorType
from edge4d.runtime.profile import GpuRun

Tensors = Mapping[str, NDArray[Any]]
Node = Mapping[str, Any]  # of the inspector's JSON
Times = Sequence[tuple[str, float]]  # of one run: names of layers and milliseconds, in order of execution

# TensorRT has two words for most types, in "Row major linear FP16 format" and in "Half"; with their bits.
_TYPES: dict[str, tuple[str, int]] = {
    **dict.fromkeys(("fp64", "double"), ("float64", 64)),
    **dict.fromkeys(("fp32", "float"), ("float32", 32)),
    **dict.fromkeys(("fp16", "half"), ("float16", 16)),
    **dict.fromkeys(("bf16", "bfloat16"), ("bfloat16", 16)),
    "fp8": ("float8", 8),
    "fp4": ("float4", 4),
    "int64": ("int64", 64),
    "int32": ("int32", 32),
    "int8": ("int8", 8),
    "int4": ("int4", 4),
    "uint8": ("uint8", 8),
    "bool": ("bool", 8),
}
_BITS = dict(_TYPES.values())
_KINDS = {"Convolution": "Conv", "conv": "Conv", "MatrixMultiply": "MatMul", "gemm": "MatMul"}


def look_inside(loaded: LoadedEngine, inputs: Tensors, runs: int) -> Measurement:
    """`runs` runs by events, then as many with a clock at every layer.

    Args:
        loaded: an engine that nobody else uses: it is bound to other tensors.

    Raises:
        EngineFailed: TensorRT stopped, or the engine was not built for these shapes.
    """
    trt = import_module("tensorrt")
    clock = _Clock(loaded, inputs)
    gpu_runs = [clock.run() for _ in range(runs)]
    times = clock.layer_times(trt, runs)
    info = _layer_info(trt, loaded)
    return Measurement(
        layer_runs=layer_runs(times, info),
        gpu_runs=gpu_runs,
        engine_bytes=int(loaded.engine.serialize().nbytes),
        scratch_bytes=loaded.scratch_bytes,
        layer_info=info,
    )


# ---- times ----------------------------------------------------------------------------------------------------------


class _Clock:
    """Runs an engine with one copy of all inputs before, and one of all outputs after it."""

    def __init__(self, loaded: LoadedEngine, inputs: Tensors) -> None:
        self._loaded, self._stream, self._scratch = loaded, Stream(), Scratch()
        self._inputs = Mirrored({name: (array.shape, array.dtype) for name, array in inputs.items()})
        for name, array in inputs.items():
            self._inputs.host[name][...] = array
            loaded.set_shape(name, array.shape)
        self._outputs = Mirrored({name: (loaded.shape(name), loaded.dtypes[name]) for name in loaded.outputs})
        for name, device in {**self._inputs.device, **self._outputs.device}.items():
            loaded.bind(name, device)
        self._marks = [Event() for _ in range(4)]

    def run(self) -> GpuRun:
        begin, copied, computed, end = self._marks
        begin.record(self._stream)
        self._inputs.to_device(self._stream)
        copied.record(self._stream)
        start = time.perf_counter()
        self._loaded.enqueue(self._stream, self._scratch)
        enqueue_ms = 1e3 * (time.perf_counter() - start)
        computed.record(self._stream)
        self._outputs.to_host(self._stream)
        end.record(self._stream)
        end.synchronize()
        return GpuRun(
            enqueue_ms=enqueue_ms,
            h2d_ms=copied.milliseconds_since(begin),
            compute_ms=computed.milliseconds_since(copied),
            d2h_ms=end.milliseconds_since(computed),
        )

    def layer_times(self, trt: Any, runs: int) -> list[Times]:
        """The last thing to be measured: the engine keeps its profiler, which makes it slower."""
        profiler = _profiler(trt)
        self._loaded.context.profiler = profiler
        times = []
        for _ in range(runs):
            profiler.times = []
            self._loaded.enqueue(self._stream, self._scratch)  # with a profiler, it waits for the GPU
            self._stream.synchronize()
            times.append(profiler.times)
        return times


def _profiler(trt: Any) -> Any:
    class Profiler(trt.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.times: list[tuple[str, float]] = []

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.times.append((layer_name, ms))

    return Profiler()


# ---- layers ---------------------------------------------------------------------------------------------------------


def _layer_info(trt: Any, loaded: LoadedEngine) -> dict[str, Any]:
    """What the inspector says; nothing where it says that in broken JSON."""
    inspector = loaded.engine.create_engine_inspector()
    inspector.execution_context = loaded.context  # for it, all shapes are known
    try:
        # 8.6 puts control characters between the names in "Metadata".
        info = json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON), strict=False)
    except ValueError:
        return {}
    return info if isinstance(info, dict) else {}


def layer_runs(times: Sequence[Times], info: Node) -> list[list[LayerRun]]:
    """The layers of each run.

    Args:
        times: as the profiler reports them.
        info: the inspector's JSON on the engine. What it does not tell of a layer is missing there too.
    """
    layers = _layers([name for name, _ in times[0]], info)
    return [
        [layer._replace(start_ms=start, ms=ms) for layer, (_, ms), start in zip(layers, run, _starts(run))]
        for run in times
    ]


def _starts(run: Times) -> Iterator[float]:
    """The profiler does not tell them: as if each layer began with the end of the one before."""
    return accumulate((ms for _, ms in run), initial=0.0)


def _layers(names: Sequence[str], info: Node) -> list[LayerRun]:
    """Without times. Layers of one name, such as copies to one consumer, are told apart by their order."""
    nodes = defaultdict(list)
    for node in info.get("Layers", ()):
        if isinstance(node, dict):  # else its name only: the engine was built without details
            nodes[node.get("Name")].append(node)
    return [_layer(name, nodes[name].pop(0) if nodes[name] else {}) for name in names]


def _layer(name: str, node: Node) -> LayerRun:
    inputs = tuple(map(_tensor, node.get("Inputs", ())))
    outputs = tuple(map(_tensor, node.get("Outputs", ())))
    kind = _kind(node)
    weights = _weights(kind, node, inputs)
    weights_bytes = sum(map(_bytes, weights))
    return LayerRun(
        name=name,
        kind=kind,
        start_ms=0.0,
        ms=0.0,
        inputs=(*inputs[:1], *weights, *inputs[1:]),  # as in ONNX; what is added to the result comes last
        outputs=outputs,
        weights_bytes=weights_bytes,
        bytes=weights_bytes + sum(map(_bytes, (*inputs, *outputs))),
        tactic=node.get("TacticName", ""),
    )


def _kind(node: Node) -> str:
    """By ONNX's name, if it has one."""
    runner: str = node.get("LayerType", "")
    if "Deconvolution" in runner:  # its parameters are called those of a convolution
        return "ConvTranspose"
    kind: str = node.get("ParameterType", runner)
    return _KINDS.get(kind, kind)


def _tensor(node: Node) -> TensorType:
    """Of {"Name": "depth", "Dimensions": [1, 1, 256, 448], "Format/Datatype": "Row major linear FP32"}.

    Layers that TensorRT's compiler made say "Half" and the like instead; TensorRT 11 tells format and type apart.
    """
    text = node.get("DataType") or node.get("Datatype") or node.get("Format/Datatype", "")
    return TensorType(node.get("Name", ""), _dtype(text), tuple(node.get("Dimensions", ())))


def _dtype(text: str) -> str:
    """NumPy's name of the first type in `text`, "" without one."""
    words = re.findall("[a-z]+[0-9]*", text.lower())
    return next((_TYPES[word][0] for word in words if word in _TYPES), "")


def _weights(kind: str, node: Node, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
    """A layer has "Weights" and "Bias" of which only the number is told, or "Constants" that are tensors."""
    found = [_tensor(constant) for constant in node.get("Constants", ())]
    for name in ("Weights", "Bias"):
        about = node.get(name, {})
        if about.get("Count"):
            shape = _weights_shape(kind, node, inputs, about["Count"]) if name == "Weights" else (about["Count"],)
            found.append(TensorType(name.lower(), _dtype(about.get("Type", "")), shape))
    return tuple(found)


def _weights_shape(kind: str, node: Node, inputs: Sequence[TensorType], count: int) -> tuple[int, ...]:
    """As in ONNX: outputs (of a transposed convolution: inputs), the channels of a group, the kernel."""
    kernel = tuple(node.get("Kernel", ()))
    transposed = kind == "ConvTranspose" and inputs and len(inputs[0].shape) > 1
    first = inputs[0].shape[1] if transposed else node.get("OutMaps", 0)
    per_channel = first * math.prod(kernel)
    return (first, count // per_channel, *kernel) if per_channel > 0 else (count,)


def _bytes(tensor: TensorType) -> int:
    """0 where a size is not known, which the inspector writes as -1."""
    return math.prod(max(size, 0) for size in tensor.shape) * _BITS.get(tensor.dtype, 0) // 8
