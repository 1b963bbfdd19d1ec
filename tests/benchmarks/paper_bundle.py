"""The bundle that generate_paper.py measures: Pixel-to-4D at the size of the paper, 37 million random weights.

DINOv2 is left out: its features are an input. Beside the bundle `NAME.safetensors` has the same weights for PyTorch.
Takes half a minute, and needs edge4d[export].

    python tests/benchmarks/paper_bundle.py -o out/paper.e4d
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from workloads import PAPER_GRID, PAPER_SIZE, paper_inputs

from edge4d.export.bundle_from_model import bundle_from_model
from edge4d.export.checkpoints import save_checkpoint
from edge4d.export.models.layers.dinov2 import DinoV2, DinoV2Config
from edge4d.export.models.pixel_to_4d.gaussians import CANONICAL_CHANNELS
from edge4d.export.models.pixel_to_4d.paper import Paper, PaperConfig, PaperCore
from edge4d.export.stage import ExportStage
from edge4d.runtime.bundle import Axis
from edge4d.runtime.camera import Camera

SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="NAME.e4d")
    output = parser.parse_args().output
    paper = random_paper()
    about = paper.description()
    about["config"].update(size=list(PAPER_SIZE), frames=24, fps=12)
    about.update(camera=Camera.from_fov(*PAPER_SIZE, 60.0), provenance={"weights": "random", "seed": SEED})
    bundle_from_model(WithoutTeacher(paper), output, **about)
    save_checkpoint(paper.core.half(), output.with_suffix(".safetensors"))
    print(output)


class WithoutTeacher:
    """What is exported: `core` and `lift`, for one size of photographs, as a compiler of the peer's sees it too."""

    def __init__(self, paper: Paper) -> None:
        self.paper = paper

    def stages(self) -> list[ExportStage]:
        axes = tuple(Axis(name, side, side, side, 32) for name, side in zip("WH", PAPER_SIZE))
        tensors = example_tensors(self.paper.core)

        def taken(stage: ExportStage) -> tuple[Tensor, ...]:
            return tuple(tensors[tensor.name] for tensor in stage.inputs)

        return [
            dataclasses.replace(stage, axes=axes, example=lambda sizes, stage=stage: taken(stage))
            for stage in self.paper.stages()
            if stage.name != "dino"
        ]


@torch.no_grad()
def example_tensors(core: PaperCore) -> dict[str, Tensor]:
    """What the stages take, by name."""
    given = {name: torch.from_numpy(array) for name, array in paper_inputs(seed=1)._asdict().items()}
    decoded = core(given["image"], given["depth"], given["features"], given["noise"])
    return {**given, **dict(zip(("gaussian_maps", "motion_maps"), decoded))}


def random_paper() -> Paper:
    """Weights that halves hold exactly, and under which things move, all values are of a size that half precision
    holds well, as training leaves them, and Gaussians are about as large as pixels."""
    torch.manual_seed(SEED)
    with torch.device("meta"):
        teacher = DinoV2(*(14 * side for side in PAPER_GRID), DinoV2Config())  # its size alone is asked for
    paper = Paper(PaperConfig(), teacher).eval()
    core = paper.core
    nn.init.normal_(core.dec_d.head.weight)
    assert core.dec_s.head.bias is not None
    layers = core.dec_s.head.bias.data[: core.config.layers * CANONICAL_CHANNELS].reshape(-1, CANONICAL_CHANNELS)
    layers[:, 4:7] = 0.7  # scales of 2 cm, what a pixel covers 15 m away
    with_unit_deviations(core)
    core.half().float()
    return paper


@torch.no_grad()
def with_unit_deviations(core: PaperCore) -> None:
    """Scales convolutions, one after the other, so that what each gives deviates by 1; not the static head, in whose
    channels sizes mean something."""

    def scale(module: nn.Module, _: Any, output: Tensor) -> Tensor:
        deviation = output.std()
        for weight in module.parameters():
            weight /= deviation
        return output / deviation

    convolutions = [module for module in core.modules() if isinstance(module, nn.Conv2d) and module != core.dec_s.head]
    hooks = [convolution.register_forward_hook(scale) for convolution in convolutions]
    example_tensors(core)
    for hook in hooks:
        hook.remove()


if __name__ == "__main__":
    main()
