"""GVFDiffusion (arXiv 2507.23785) from canonical Gaussians on: its two networks and the stages that they become."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from edge4d.export.models.gvf_diffusion.fast import (
    CONTEXTS,
    DitCond,
    DitStep,
    Standardise,
    VaeAttend,
    VaeEncode,
    VaeLatent,
    VaeQuery,
)
from edge4d.export.models.gvf_diffusion.motion_vae import MotionVae, MotionVaeConfig
from edge4d.export.models.gvf_diffusion.specs import float32, float32_scopes, normal_example
from edge4d.export.models.gvf_diffusion.variation_field import VariationField, VariationFieldConfig
from edge4d.export.stage import ExportStage
from edge4d.runtime.bundle import Axis, TensorSpec
from edge4d.runtime.errors import InvalidRequest
from edge4d.runtime.object_views import object_camera

POSITION_NORMS = ("raw", "static")


@dataclass(frozen=True)
class GvfDiffusionConfig:
    """Sizes of the networks and of what they are used on; the default is the official one.

    Attributes:
        dit, vae: sizes of the networks.
        latents: L, of a frame.
        static_points: M, canonical Gaussians that the transformer sees.
        image_tokens: S, of a frame's picture: its patches and CLS.
        mesh_points: points of a mesh that is encoded.
        frames: the best and the largest T.
        gaussians: the best and the largest N that are decoded at once.
        position_norm: what the transformer's positions are: "raw", in world units, or "static", normalised as its
            static points are. Official networks were trained with "static" and are used with "raw" officially.
        video: pixels along a side of the videos that are drawn by default, and `fps`, their frames per second.
    """

    dit: VariationFieldConfig = field(default_factory=VariationFieldConfig)
    vae: MotionVaeConfig = field(default_factory=MotionVaeConfig)
    latents: int = 512
    static_points: int = 4096
    image_tokens: int = 1370
    mesh_points: int = 8192
    frames: tuple[int, int] = (24, 32)
    gaussians: tuple[int, int] = (8192, 32768)
    position_norm: str = "raw"
    video: int = 512
    fps: float = 10

    def __post_init__(self) -> None:
        if self.position_norm not in POSITION_NORMS:
            raise InvalidRequest(
                f"Positions cannot be normalised as '{self.position_norm}'.",
                hint=f"Choose from {', '.join(POSITION_NORMS)}.",
            )
        channels = [(net.latent_channels, net.gaussian_channels) for net in (self.dit, self.vae)]
        if channels[0] != channels[1]:
            raise InvalidRequest(
                "Transformer and motion VAE do not fit together.",
                note=f"Latents and Gaussians have {channels[0]} and {channels[1]} channels.",
                hint="Give both the same.",
            )

    @property
    def patches(self) -> int:
        """Along each side of a square picture. Raises InvalidRequest where tokens are not those of one."""
        side = math.isqrt(self.image_tokens - 1)
        if self.image_tokens != side**2 + 1:
            raise InvalidRequest(
                "Square pictures do not have the transformer's number of tokens.",
                note=f"{side} x {side} patches and one for the whole are {side**2 + 1}; it has {self.image_tokens}.",
            )
        return side


class GvfDiffusion(nn.Module):
    """What is exported, and what a checkpoint of ours holds as a whole.

    Attributes:
        dit: the transformer.
        vae: the motion VAE.
        static: how Gaussians in query order are standardised before the transformer sees them.
        latents: how the VAE's latents are standardised before the transformer learns them.
        licence: of the weights, an SPDX expression.
        provenance: how the weights came to be; of JSON's types.
    """

    licence = "Apache-2.0"

    def __init__(self, config: GvfDiffusionConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or GvfDiffusionConfig()
        self.dit = VariationField(config.dit)
        self.vae = MotionVae(config.vae)
        self.static, self.latents = (
            Standardise(torch.zeros(channels), torch.ones(channels))
            for channels in (config.dit.gaussian_channels, config.dit.latent_channels)
        )
        self.provenance: dict[str, Any] = {"training": "none"}

    def description(self) -> dict[str, Any]:
        """What `bundle_from_model` puts into the bundle besides the stages."""
        config = self.config
        return {
            "system": "gvf_diffusion",
            "config": {"size": [config.video, config.video], "frames": config.frames[0], "fps": config.fps},
            "camera": object_camera(config.video),
            "licence": self.licence,
            "provenance": self.provenance,
        }

    def stages(self) -> list[ExportStage]:
        """`dit_cond`, `dit_step`, `vae_latent`, `vae_query`; of one frame `vae_attend` and `vae_encode`.

        The last two compare every Gaussian or mesh point with every latent: a clip at once would take gigabytes.
        """
        return [
            self._dit_cond(),
            self._dit_step(),
            self._vae_latent(),
            self._vae_query(),
            self._vae_attend(),
            self._vae_encode(),
        ]

    def _dit_cond(self) -> ExportStage:
        config = self.config
        inputs = (
            float32("images", "T", config.image_tokens, config.dit.image_channels),
            float32("static", config.static_points, config.dit.gaussian_channels),
        )
        module = DitCond(self.dit, self.static)
        return _stage("dit_cond", module, inputs, self._contexts(), self._frames(), ("static",))

    def _dit_step(self) -> ExportStage:
        config = self.config
        samples = ("T", config.latents, config.dit.latent_channels)
        inputs = (float32("x", *samples), float32("t", 1), float32("positions", config.latents, 3), *self._contexts())
        positions = None
        if config.position_norm == "static":
            positions = Standardise(self.static.mean[:3], self.static.deviation[:3])
        module = DitStep(self.dit, positions)
        outputs = (float32("v", *samples),)
        return _stage("dit_step", module, inputs, outputs, self._frames(), float32_scopes(module))

    def _contexts(self) -> tuple[TensorSpec, ...]:
        """The keys and values of `dit_cond`, for the blocks one after the other: "image_keys_0", …"""
        config = self.config
        heads, dim = config.dit.heads, config.dit.dim // config.dit.heads
        shapes: dict[str, tuple[int | str, ...]] = {
            "image": ("T", heads, config.image_tokens, dim),
            "static": (1, heads, config.static_points, dim),
        }
        return tuple(
            float32(f"{name}_{block}", *shapes[name.split("_")[0]])
            for block in range(config.dit.depth)
            for name in CONTEXTS
        )

    def _vae_latent(self) -> ExportStage:
        inputs = (float32("samples", "T", self.config.latents, self.config.vae.latent_channels),)
        return _stage("vae_latent", VaeLatent(self.vae, self.latents), inputs, self._keys_values("T"), self._frames())

    def _vae_query(self) -> ExportStage:
        inputs = (float32("gaussians", "N", self.config.vae.gaussian_channels),)
        scopes = ("vae.gs_embedding", "vae.position_encoding")
        return _stage("vae_query", VaeQuery(self.vae), inputs, (self._queries(),), self._gaussians(), scopes)

    def _vae_attend(self) -> ExportStage:
        outputs = (float32("changes", 1, "N", self.config.vae.gaussian_channels),)
        inputs = (self._queries(), *self._keys_values(1))
        return _stage("vae_attend", VaeAttend(self.vae), inputs, outputs, self._gaussians())

    def _queries(self) -> TensorSpec:
        config = self.config.vae
        return float32("queries", config.heads, "N", config.dim // config.heads)

    def _keys_values(self, frames: int | str) -> tuple[TensorSpec, TensorSpec]:
        config = self.config.vae
        shape = (frames, config.heads, self.config.latents)
        return float32("keys", *shape, config.dim // config.heads), float32("values", *shape, config.gaussian_channels)

    def _vae_encode(self) -> ExportStage:
        config = self.config
        inputs = (
            float32("points", config.mesh_points, 3),
            float32("motion", 1, config.mesh_points, 3),
            float32("anchors", config.latents, 3),
        )
        outputs = (float32("samples", 1, config.latents, config.vae.latent_channels),)
        scopes = ("vae.input_embedding", "vae.position_encoding")
        return _stage("vae_encode", VaeEncode(self.vae, self.latents), inputs, outputs, None, scopes)

    def _frames(self) -> Axis:
        return Axis("T", 1, *self.config.frames)

    def _gaussians(self) -> Axis:
        return Axis("N", 1, *self.config.gaussians)


def _stage(
    name: str,
    module: nn.Module,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    axis: Axis | None,
    fp32_scopes: tuple[str, ...] = (),
) -> ExportStage:
    axes = () if axis is None else (axis,)
    return ExportStage(name, module.eval(), inputs, outputs, axes, normal_example(inputs), fp32_scopes)
