"""DINOv2 as GVFDiffusion and TRELLIS see pictures through it: the `dino` stage."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from edge4d.export.models.gvf_diffusion.specs import float32, normal_example
from edge4d.export.models.layers.dinov2 import IMAGENET_MEAN, IMAGENET_STD, DinoV2
from edge4d.export.stage import ExportStage
from edge4d.runtime.bundle import Axis, TensorSpec


class Dino(nn.Module):
    """Features of pictures for the transformer of motion, and for the canonical generator."""

    def __init__(self, teacher: DinoV2) -> None:
        super().__init__()
        self.teacher = teacher

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures [T,3,H,W] in 0..1, of the teacher's size, to two sets of features.

        Returns:
            [T,P+1,C]: patches, then CLS, as they are; [T,1+R+P,C]: CLS, registers and patches, normalised.
        """
        mean, deviation = (pictures.new_tensor(value).reshape(3, 1, 1) for value in (IMAGENET_MEAN, IMAGENET_STD))
        tokens = self.teacher((pictures - mean) / deviation)[1]
        patches = tokens[:, 1 + self.teacher.config.registers :]
        return torch.cat([patches, tokens[:, :1]], dim=1), functional.layer_norm(tokens, tokens.shape[-1:])


def dino_stage(teacher: DinoV2, frames: tuple[int, int]) -> ExportStage:
    """The stage for the best and the largest number of pictures whose features are made at once."""
    sizes = teacher.config
    rows, columns = teacher.grid
    inputs = (float32("pictures", "T", 3, rows * sizes.patch, columns * sizes.patch),)
    outputs = (float32("images", "T", rows * columns + 1, sizes.dim), condition(teacher, "T"))
    axis = Axis("T", 1, *frames)
    return ExportStage("dino", Dino(teacher).eval(), inputs, outputs, (axis,), normal_example(inputs))


def condition(teacher: DinoV2, pictures: int | str = 1) -> TensorSpec:
    """What the canonical generator sees of pictures."""
    rows, columns = teacher.grid
    return float32("condition", pictures, 1 + teacher.config.registers + rows * columns, teacher.config.dim)
