"""GVFDiffusion made small: both networks and an encoder of pictures together have less than four million weights.

The encoder takes the place of DINOv2 and is trained with the transformer. All else is as it is officially, but that the
transformer's positions are standardised as its static points are (`position_norm`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from edge4d.export.models.gvf_diffusion.model import GvfDiffusion, GvfDiffusionConfig
from edge4d.export.models.gvf_diffusion.motion_vae import MotionVaeConfig, PositionEncoding
from edge4d.export.models.gvf_diffusion.specs import float32
from edge4d.export.models.gvf_diffusion.variation_field import VariationFieldConfig
from edge4d.export.models.layers.unet import ConvNorm, Residual
from edge4d.export.stage import ExportStage
from edge4d.runtime.bundle import Axis
from edge4d.runtime.errors import InvalidRequest

STRIDE = 8
"""Pixels of a patch, along each side."""

_SHORTEST = 60.0  # radians per unit of the object's frame: a wave of a tenth of it


class PictureEncoder(nn.Module):
    """Pictures to tokens, one for each patch and one for the whole: the `image` stage.

    Args:
        side: pixels of a picture along each side, a multiple of STRIDE.
        channels: of a token.
        widths: channels at strides 2, 4 and 8.
    """

    def __init__(self, side: int, channels: int, widths: tuple[int, int, int] = (32, 64, 96)) -> None:
        super().__init__()
        self.side = side
        first, second, third = widths
        self.features = nn.Sequential(
            ConvNorm(3, first, stride=2),
            ConvNorm(first, second, stride=2),
            Residual(second),
            ConvNorm(second, third, stride=2),
            Residual(third),
        )
        self.to_tokens = nn.Conv2d(third, channels, 1)
        self.places = nn.Parameter(0.02 * torch.randn(channels, side // STRIDE, side // STRIDE))

    def forward(self, pictures: Tensor) -> Tensor:
        """[T,3,side,side] in 0..1, the subject on white, to [T,tokens,channels]: patches row by row, then the whole."""
        patches = (self.to_tokens(self.features(pictures)) + self.places).flatten(2).transpose(1, 2)
        tokens = torch.cat([patches, patches.mean(1, keepdim=True)], dim=1)
        return functional.layer_norm(tokens, tokens.shape[-1:])


class Animals(GvfDiffusion):
    """`GvfDiffusion` with an encoder of its own: what is trained on the world of that name, and exported."""

    def __init__(self, config: GvfDiffusionConfig) -> None:
        super().__init__(config)
        self.image = PictureEncoder(STRIDE * config.patches, config.dit.image_channels)
        self._sharpen()

    @torch.no_grad()
    def _sharpen(self) -> None:
        """Begins where the official networks arrive after hundreds of thousands of steps.

        Positions have waves as short as latents are apart; officially they are longer than an object. Motion of a tenth
        of an object is as large as a bias, latents have little noise, and decoded changes are small. Latents begin as
        directions of the anchors' embeddings, and Gaussians attend by likeness to them.
        """
        vae = self.vae
        position = vae.position_encoding[0]
        assert isinstance(position, PositionEncoding)
        omega = position.omega
        omega.copy_(torch.logspace(0, math.log10(_SHORTEST), len(omega), dtype=omega.dtype))
        frequencies = self.dit.pos_embedder.frequencies  # of positions in deviations, about a fifth of a unit
        frequencies.copy_(torch.logspace(-1, math.log10(_SHORTEST / 5), len(frequencies)))
        for parameter in vae.input_embedding.parameters():
            if parameter.ndim == 2:
                parameter.mul_(10)
        nn.init.constant_(vae.logvar_fc.bias, -6.0)
        vae.to_outputs.weight.mul_(0.1)
        nn.init.zeros_(vae.to_outputs.bias)
        nn.init.orthogonal_(vae.mean_fc.weight)
        vae.proj.weight.copy_(vae.mean_fc.weight.T)
        attention = vae.decoder_attention
        nn.init.orthogonal_(attention.to_q.weight, 1.5)
        attention.to_kv.weight[: len(attention.to_q.weight)] = attention.to_q.weight

    def stages(self) -> list[ExportStage]:
        """`image`, and those of `GvfDiffusion`."""
        return [self._image(), *super().stages()]

    def _image(self) -> ExportStage:
        config, side = self.config, self.image.side
        return ExportStage(
            "image",
            self.image.eval(),
            (float32("pictures", "T", 3, side, side),),
            (float32("images", "T", config.image_tokens, config.dit.image_channels),),
            (Axis("T", 1, *config.frames),),
            lambda sizes: (torch.rand(sizes["T"], 3, side, side),),
        )


SMALL = GvfDiffusionConfig(
    dit=VariationFieldConfig(dim=128, depth=5, heads=4, image_channels=128),
    vae=MotionVaeConfig(dim=96, depth=3, heads=4),
    latents=64,
    static_points=256,
    image_tokens=257,
    mesh_points=1024,
    frames=(24, 24),
    gaussians=(8192, 32768),
    position_norm="static",
    video=256,
    fps=12,
)
"""What the bundle `animals` is."""

TRY = GvfDiffusionConfig(
    dit=VariationFieldConfig(dim=24, depth=1, heads=2, image_channels=24),
    vae=MotionVaeConfig(dim=24, depth=1, heads=2),
    latents=16,
    static_points=32,
    image_tokens=17,
    mesh_points=64,
    frames=(4, 24),
    gaussians=(1024, 8192),
    position_norm="static",
    video=256,
    fps=12,
)
"""To train for a few steps on a processor."""

ANIMALS = {"animals": SMALL, "animals-tiny": TRY}


def animals_config(name: str) -> GvfDiffusionConfig:
    """The sizes of networks that can be trained. Raises InvalidRequest for every other name."""
    if name not in ANIMALS:
        raise InvalidRequest(f"The configuration '{name}' cannot be trained here.", hint=f"Use {' or '.join(ANIMALS)}.")
    return ANIMALS[name]
