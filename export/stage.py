"""What a model hands over to be exported. Needs PyTorch alone, so that models can be used without the exporter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from edge4d.runtime.bundle import Axis, TensorSpec, check_stage_tensors


@dataclass(frozen=True)
class ExportStage:
    """What one engine of a system computes.

    Attributes:
        name: the stage's name in the bundle, such as "core".
        module: takes `inputs` as positional arguments in this order, returns one tensor or a tuple in the order of
            `outputs`; in eval mode.
        inputs, outputs: names, dtypes and shapes; dimensions are numbers, axes ("H") or products ("2*H*W", "H/16").
        axes: the dynamic axes; each must be a dimension of its own in some input.
        example: inputs at one size per axis, such as {"H": 64, "W": 96}; the export is checked on what it returns.
        fp32_scopes: module paths inside `module`, such as "gaussian_head" or "decoder.blocks.0", whose arithmetic
            stays in float32 in the fp16 variant (a path includes everything below it, "" is all). Arithmetic that
            must stay in float32, such as depths and positions, belongs in a module of its own.
    """

    name: str
    module: nn.Module
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    axes: tuple[Axis, ...]
    example: Callable[[Mapping[str, int]], tuple[Tensor, ...]]
    fp32_scopes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_stage_tensors({axis.name: axis for axis in self.axes}, self.inputs, self.outputs)
