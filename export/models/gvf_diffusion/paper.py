"""GVFDiffusion as published: DINOv2 sees, TRELLIS makes the canonical Gaussians of a picture."""

from __future__ import annotations

from dataclasses import dataclass, field

from edge4d.export.models.gvf_diffusion.canonical import CanonicalConfig, CanonicalGenerator
from edge4d.export.models.gvf_diffusion.dino import condition, dino_stage
from edge4d.export.models.gvf_diffusion.gaussian_decoder import GaussianDecoderConfig
from edge4d.export.models.gvf_diffusion.model import GvfDiffusion, GvfDiffusionConfig
from edge4d.export.models.gvf_diffusion.motion_vae import MotionVaeConfig
from edge4d.export.models.gvf_diffusion.slat import SlatFlowConfig
from edge4d.export.models.gvf_diffusion.structure import StructureDecoderConfig, StructureFlowConfig
from edge4d.export.models.gvf_diffusion.variation_field import VariationFieldConfig
from edge4d.export.models.layers.dinov2 import DinoV2, DinoV2Config
from edge4d.export.stage import ExportStage


@dataclass(frozen=True)
class PaperConfig:
    """Sizes of all networks; the default is the official one.

    Attributes:
        dino: of the teacher; its pictures have as many patches as the transformer takes.
        motion: of transformer and motion VAE.
        canonical: of the canonical generator.
    """

    dino: DinoV2Config = field(default_factory=DinoV2Config)
    motion: GvfDiffusionConfig = field(default_factory=GvfDiffusionConfig)
    canonical: CanonicalConfig = field(default_factory=CanonicalConfig)


class Paper(GvfDiffusion):
    """`GvfDiffusion` with DINOv2 and the canonical generator.

    Args:
        generates: without it there is no canonical generator, and canonical Gaussians are always a user's.
    """

    def __init__(self, config: PaperConfig | None = None, *, generates: bool = True) -> None:
        config = config or PaperConfig()
        super().__init__(config.motion)
        side = config.dino.patch * config.motion.patches
        self.dino = DinoV2(side, side, config.dino)
        self.canonical = CanonicalGenerator(config.canonical) if generates else None

    def stages(self) -> list[ExportStage]:
        """`dino`, those of `GvfDiffusion`, and those of `CanonicalGenerator` if it is there."""
        stages = [dino_stage(self.dino, self.config.frames), *super().stages()]
        return stages if self.canonical is None else [*stages, *self.canonical.stages(condition(self.dino))]


TINY = PaperConfig(
    dino=DinoV2Config(dim=48, depth=1, heads=4, registers=2, patch=4, trained_grid=8),
    motion=GvfDiffusionConfig(
        dit=VariationFieldConfig(dim=96, depth=2, heads=4, image_channels=48),
        vae=MotionVaeConfig(dim=96, depth=2, heads=4),
        latents=32,
        static_points=256,
        image_tokens=65,
        mesh_points=512,
        frames=(4, 24),
        gaussians=(1024, 8192),
        video=128,
    ),
    canonical=CanonicalConfig(
        structure_flow=StructureFlowConfig(resolution=4, dim=48, depth=1, heads=4, context_dim=48),
        structure_decoder=StructureDecoderConfig(channels=(16, 8, 8), blocks=1),
        slat_flow=SlatFlowConfig(width=16, dim=48, depth=1, heads=4, context_dim=48),
        gaussian_decoder=GaussianDecoderConfig(dim=48, depth=2, heads=4, resolution=16, gaussians=2),
        voxels=(512, 4096),
        windows=((8, 27), (64, 512)),
    ),
)
"""For tests, with random weights."""

PAPERS = {"paper": PaperConfig(), "tiny": TINY}
