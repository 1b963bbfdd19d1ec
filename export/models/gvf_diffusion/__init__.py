"""GVFDiffusion (arXiv 2507.23785): how the Gaussians of one frame move in a clip. `build` makes a model."""

from __future__ import annotations

from pathlib import Path

from edge4d.export.checkpoints import load_checkpoint
from edge4d.export.models.gvf_diffusion.model import GvfDiffusion, GvfDiffusionConfig
from edge4d.export.models.gvf_diffusion.motion_vae import MotionVaeConfig
from edge4d.export.models.gvf_diffusion.official import load_official
from edge4d.export.models.gvf_diffusion.variation_field import VariationFieldConfig
from edge4d.runtime.errors import InvalidRequest

TINY = GvfDiffusionConfig(
    dit=VariationFieldConfig(dim=96, depth=2, heads=4, image_channels=64),
    vae=MotionVaeConfig(dim=96, depth=2, heads=4),
    latents=32,
    static_points=256,
    image_tokens=65,
    mesh_points=512,
    frames=(4, 24),
    gaussians=(1024, 8192),
)
"""For tests, and to train on a processor."""

CONFIGS = {"paper": GvfDiffusionConfig(), "tiny": TINY}


def build(config: str, checkpoint: Path | None = None) -> GvfDiffusion:
    """A model ready for export.

    Args:
        config: one of CONFIGS.
        checkpoint: a folder of official files, or a file of all of the model's weights; random ones without it.

    Raises:
        InvalidRequest: there is no such configuration.
        InvalidCheckpoint: the weights do not fit.
    """
    if config not in CONFIGS:
        raise InvalidRequest(f"There is no configuration '{config}'.", hint=f"Use one of: {', '.join(CONFIGS)}.")
    model = GvfDiffusion(CONFIGS[config])
    if checkpoint is not None:
        (load_official if checkpoint.is_dir() else load_checkpoint)(model, checkpoint)
    return model.eval()


__all__ = ["CONFIGS", "GvfDiffusion", "GvfDiffusionConfig", "build"]
