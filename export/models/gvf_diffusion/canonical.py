"""The canonical generator of GVFDiffusion: features of one picture to Gaussians, by TRELLIS (arXiv 2412.01506)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from edge4d.export.models.gvf_diffusion.fast import Standardise
from edge4d.export.models.gvf_diffusion.gaussian_decoder import (
    LATENTS,
    GaussianDecoder,
    GaussianDecoderConfig,
    RawGaussians,
)
from edge4d.export.models.gvf_diffusion.slat import SlatFlow, SlatFlowConfig
from edge4d.export.models.gvf_diffusion.specs import float32, float32_scopes, int32, normal_example
from edge4d.export.models.gvf_diffusion.structure import (
    StructureDecoder,
    StructureDecoderConfig,
    StructureFlow,
    StructureFlowConfig,
)
from edge4d.export.stage import ExportStage
from edge4d.runtime.bundle import Axis, TensorSpec


@dataclass(frozen=True)
class CanonicalConfig:
    """Sizes of the networks and of what they are used on; the default is the official one.

    Attributes:
        structure_flow, structure_decoder, slat_flow, gaussian_decoder: sizes of the networks.
        voxels: the best and the largest number of occupied voxels.
        windows: the best and the largest number of windows, and of voxels in the fullest of them.
    """

    structure_flow: StructureFlowConfig = field(default_factory=StructureFlowConfig)
    structure_decoder: StructureDecoderConfig = field(default_factory=StructureDecoderConfig)
    slat_flow: SlatFlowConfig = field(default_factory=SlatFlowConfig)
    gaussian_decoder: GaussianDecoderConfig = field(default_factory=GaussianDecoderConfig)
    voxels: tuple[int, int] = (16384, 32768)
    windows: tuple[tuple[int, int], tuple[int, int]] = ((256, 729), (192, 512))


class LatentDecoder(nn.Module):
    """The `gs_dec` stage: samples of the flow to Gaussians."""

    def __init__(self, decoder: GaussianDecoder, latents: Standardise) -> None:
        super().__init__()
        self.decoder = decoder
        self.latents = latents

    def forward(self, samples: Tensor, coords: Tensor, *tables: Tensor) -> RawGaussians:
        """samples [V,latent_channels]; the rest as in `GaussianDecoder`."""
        gaussians: RawGaussians = self.decoder(self.latents.restored(samples), coords, *tables)
        return gaussians


class CanonicalGenerator(nn.Module):
    """The networks of TRELLIS, of which GVFDiffusion trained the last one anew."""

    def __init__(self, config: CanonicalConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or CanonicalConfig()
        self.structure_flow = StructureFlow(config.structure_flow)
        self.structure_decoder = StructureDecoder(config.structure_decoder)
        self.slat_flow = SlatFlow(config.slat_flow)
        self.gaussian_decoder = GaussianDecoder(config.gaussian_decoder)
        mean, deviation = torch.tensor(LATENTS[: config.slat_flow.channels]).T
        self.latents = Standardise(mean, deviation)

    def stages(self, condition: TensorSpec) -> list[ExportStage]:
        """`ss_flow`, `ss_dec`, `slat_flow`, `gs_dec`, for features of a picture."""
        return [self._ss_flow(condition), self._ss_dec(), self._slat_flow(condition), self._gs_dec()]

    def _ss_flow(self, condition: TensorSpec) -> ExportStage:
        sizes = self.config.structure_flow
        grid = (1, sizes.channels, *(sizes.resolution,) * 3)
        inputs = (float32("x", *grid), float32("t", 1), condition)
        module, outputs = self.structure_flow.eval(), (float32("v", *grid),)
        return ExportStage("ss_flow", module, inputs, outputs, (), normal_example(inputs), float32_scopes(module))

    def _ss_dec(self) -> ExportStage:
        sizes, side = self.config.structure_decoder, self.config.structure_flow.resolution
        fine = side * 2 ** (len(sizes.channels) - 1)
        inputs = (float32("latent", 1, sizes.latent_channels, side, side, side),)
        outputs = (float32("logits", 1, 1, fine, fine, fine),)
        return ExportStage("ss_dec", self.structure_decoder.eval(), inputs, outputs, (), normal_example(inputs))

    def _slat_flow(self, condition: TensorSpec) -> ExportStage:
        channels = self.config.slat_flow.channels
        floats = (float32("x", "V", channels), float32("t", 1), condition)
        inputs = (
            *floats,
            int32("neighbours", "V", 27),
            int32("parents", "V"),
            int32("children", "P", 8),
            int32("coarse_neighbours", "P", 27),
            int32("coarse_coords", "P", 3),
        )

        def example(sizes: Mapping[str, int]) -> tuple[Tensor, ...]:
            V, P = sizes["V"], sizes["P"]
            bounds = ((-1, V), (0, P), (-1, V), (-1, P), (0, 32))
            tables = (_indices(tensor, sizes, *bound) for tensor, bound in zip(inputs[3:], bounds))
            return (*normal_example(floats)(sizes), *tables)

        best, largest = self.config.voxels
        axes = (Axis("V", 1, best, largest), Axis("P", 1, best // 4, largest))  # of a surface about four share a parent
        module, outputs = self.slat_flow.eval(), (float32("v", "V", channels),)
        return ExportStage("slat_flow", module, inputs, outputs, axes, example, float32_scopes(module))

    def _gs_dec(self) -> ExportStage:
        sizes = self.config.gaussian_decoder
        samples = float32("samples", "V", sizes.latent_channels)
        inputs = (
            samples,
            int32("coords", "V", 3),
            int32("windows", "W", "K"),
            int32("shifted_windows", "X", "Y"),
        )
        count = f"{sizes.gaussians}*V"
        outputs = (
            float32("means", count, 3),
            float32("colors", count, 1, 3),
            float32("scales", count, 3),
            float32("quats", count, 4),
            float32("opacities", count),
        )

        def example(axes: Mapping[str, int]) -> tuple[Tensor, ...]:
            tables = (_dealt(tensor, axes) for tensor in inputs[2:])
            return torch.randn(samples.shape_at(axes)), _indices(inputs[1], axes, 0, sizes.resolution), *tables

        number, fullest = self.config.windows
        names = (("W", number), ("K", fullest), ("X", number), ("Y", fullest))
        axes = (Axis("V", 1, *self.config.voxels), *(Axis(name, 1, *size) for name, size in names))
        module = LatentDecoder(self.gaussian_decoder, self.latents).eval()
        scopes = ("decoder.pos_embedder", "decoder.lift")
        return ExportStage("gs_dec", module, inputs, outputs, axes, example, scopes)


def _indices(tensor: TensorSpec, sizes: Mapping[str, int], low: int, high: int) -> Tensor:
    return torch.randint(low, high, tensor.shape_at(sizes), dtype=torch.int32)


def _dealt(windows: TensorSpec, sizes: Mapping[str, int]) -> Tensor:
    """Windows that are full of voxels, one after the other, as far as there are any."""
    shape = windows.shape_at(sizes)
    table = torch.full((shape[0] * shape[1],), -1, dtype=torch.int32)
    count = min(sizes["V"], len(table))
    table[:count] = torch.arange(count, dtype=torch.int32)
    return table.reshape(shape)
