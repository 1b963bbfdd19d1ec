"""How the stages of GVFDiffusion are described: their tensors, and what of them stays in float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from edge4d.export.models.gvf_diffusion.fast import Standardise
from edge4d.export.models.layers.dit import HeadNorm, PositionEmbedder, TimestepEmbedder
from edge4d.runtime.bundle import TensorSpec

_IN_FLOAT32 = (HeadNorm, PositionEmbedder, Standardise, TimestepEmbedder)
"""Parts of transformers whose values half precision would spoil."""


def float32(name: str, *shape: int | str) -> TensorSpec:
    return TensorSpec(name, "float32", shape)


def int32(name: str, *shape: int | str) -> TensorSpec:
    return TensorSpec(name, "int32", shape)


def float32_scopes(module: nn.Module) -> tuple[str, ...]:
    """Paths within a transformer that runs as a whole of what stays in float32."""
    return tuple(name for name, part in module.named_modules() if isinstance(part, _IN_FLOAT32))


def normal_example(inputs: tuple[TensorSpec, ...]) -> Callable[[Mapping[str, int]], tuple[Tensor, ...]]:
    """Normally distributed inputs, for stages that need nothing else of them."""

    def example(sizes: Mapping[str, int]) -> tuple[Tensor, ...]:
        return tuple(torch.randn(tensor.shape_at(sizes)) for tensor in inputs)

    return example
