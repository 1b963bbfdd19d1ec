"""What a backend measures inside a stage, one run at a time, and what is known about layers besides time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from numpy.typing import NDArray

from edge4d.runtime.bundle import Bundle
from edge4d.runtime.profile import GpuRun

Shape = tuple[int, ...]

_COMPUTED_IN = ("float32", "float16", "bfloat16", "float64", "int8")


class TensorType(NamedTuple):
    """What a layer takes or gives; `name` is "" where the backend does not say it."""

    name: str
    dtype: str
    shape: Shape

    def __str__(self) -> str:
        """Such as "depth float32[1,1,256,448]"."""
        return f"{self.name} {self.dtype}[{','.join(map(str, self.shape))}]".lstrip()


class LayerRun(NamedTuple):
    """One run of a layer.

    Attributes:
        name, kind, tactic: as in `edge4d.runtime.profile.Layer`.
        start_ms: milliseconds from the stage's begin.
        ms: how long it took.
        inputs, outputs: with weights among the inputs, where the backend tells them.
        weights_bytes: its constants.
        bytes: inputs, weights and outputs.
    """

    name: str
    kind: str
    start_ms: float
    ms: float
    inputs: tuple[TensorType, ...]
    outputs: tuple[TensorType, ...]
    weights_bytes: int
    bytes: int
    tactic: str = ""


class Measurement(NamedTuple):
    """What happened inside a stage.

    Attributes:
        layer_runs: the layers in order of execution, the same ones in each run. A clock at every layer takes time:
            their sum is more than a run without it.
        gpu_runs: runs without a clock at every layer; none where nothing runs on a GPU.
        engine_bytes, layer_info: as in `edge4d.runtime.profile.StageProfile`.
        scratch_bytes: memory that the engine uses while it runs; 0 where unknown.
    """

    layer_runs: Sequence[Sequence[LayerRun]]
    gpu_runs: Sequence[GpuRun] = ()
    engine_bytes: int = 0
    scratch_bytes: int = 0
    layer_info: Mapping[str, Any] = {}


@runtime_checkable
class LooksInside(Protocol):
    """A backend that can measure what happens inside a stage."""

    def look_inside(
        self, bundle: Bundle, stage: str, precision: str, inputs: Mapping[str, NDArray[Any]], runs: int
    ) -> Measurement:
        """Runs a stage `runs` times, at least once, for each kind of measurement. Raises what `Backend.engine` does."""


def dtype(outputs: Sequence[TensorType]) -> str:
    """In which a layer with these outputs computes: that of the first floating or quantized one, else ""."""
    return next((output.dtype for output in outputs if output.dtype in _COMPUTED_IN), "")


def flops(kind: str, inputs: Sequence[TensorType], outputs: Sequence[TensorType]) -> int:
    """Operations of a convolution or matrix product, where a multiplication with its addition counts as 2; else 0."""
    count = _FLOPS.get(kind)
    return 2 * count([tensor.shape for tensor in inputs], outputs[0].shape) if count and inputs and outputs else 0


def _convolution(inputs: Sequence[Shape], output: Shape) -> int:
    return math.prod(output) * _per_pixel(inputs)


def _transposed_convolution(inputs: Sequence[Shape], output: Shape) -> int:
    return math.prod(inputs[0]) * _per_pixel(inputs)


def _per_pixel(inputs: Sequence[Shape]) -> int:
    """Of weights [channels, channels of a group, *kernel]: all but the first; 0 where the backend hides them."""
    weights = inputs[1] if len(inputs) > 1 else ()
    return math.prod(weights[1:]) if len(weights) > 2 else 0


def _matrix_product(inputs: Sequence[Shape], output: Shape) -> int:
    return math.prod(output) * (inputs[0][-1] if inputs[0] else 1)


def _gemm(inputs: Sequence[Shape], output: Shape) -> int:
    """M x N sums of K products, where the first input is M x K or its transpose."""
    return math.prod(inputs[0]) * output[-1]


_FLOPS = {
    "Conv": _convolution,
    "FusedConv": _convolution,  # with its activation, in ONNX Runtime
    "ConvTranspose": _transposed_convolution,
    "MatMul": _matrix_product,
    "Gemm": _gemm,
    "FusedGemm": _gemm,
}
