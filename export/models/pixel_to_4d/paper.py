"""Pixel-to-4D (arXiv 2601.00678) at the size of the paper, whose code is not public.

A ResNet-50 U-Net sees the photograph, its metric depth and DINOv2 features, and gives K = 5 Gaussians per pixel; a
second decoder, conditioned on noise (CVAE), gives their motion, averaged within each instance. Depth and instances come
from outside. What the paper leaves open follows Flash3D (arXiv 2406.04343) and monodepth2's decoder (arXiv 1806.01260).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edge4d.export.models.layers.dinov2 import IMAGENET_MEAN, IMAGENET_STD, DinoV2
from edge4d.export.models.layers.resnet import ResNetEncoder
from edge4d.export.models.layers.unet import upsample
from edge4d.export.models.pixel_to_4d import gaussians
from edge4d.export.models.pixel_to_4d.gaussians import (
    CANONICAL_CHANNELS,
    MOTION_CHANNELS,
    DynamicGaussians,
    SceneLift,
)
from edge4d.export.stage import ExportStage
from edge4d.runtime.bundle import Axis, TensorSpec
from edge4d.runtime.camera import Camera


@dataclass(frozen=True)
class PaperConfig:
    """Sizes of the networks.

    Attributes:
        layers: K, Gaussians per pixel.
        groups: motion groups, the static one included.
        noise_channels: channels of the noise at stride 16.
        features: channels of the DINOv2 features.
        width, blocks: of the ResNet, see `ResNetEncoder`.
        static_widths: channels of the static decoder at strides 1, 2, 4, 8, 16.
        dynamic_widths: the same of the dynamic decoder.
        posterior_widths: channels of the training-only encoder at strides 2, 4, 8, 16.
        skips: how many of the encoder's maps the static decoder sees again, coarsest first; the paper's figure shows 2.
        pixel_floor: see `gaussians.activate`.
    """

    layers: int = 5
    groups: int = gaussians.GROUPS
    noise_channels: int = 16
    features: int = 1024
    width: int = 64
    blocks: tuple[int, int, int, int] = (3, 4, 6, 3)
    static_widths: tuple[int, int, int, int, int] = (32, 32, 64, 128, 256)
    dynamic_widths: tuple[int, int, int, int, int] = (32, 32, 64, 128, 256)
    posterior_widths: tuple[int, int, int, int] = (32, 64, 128, 256)
    skips: int = 4
    pixel_floor: float = 0.0


class ConvElu(nn.Sequential):
    """3×3 convolution that mirrors the picture at its border, ELU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(nn.Conv2d(inputs, outputs, 3, 1, 1, padding_mode="reflect"), nn.ELU())


class ConvGroupNorm(nn.Sequential):
    """3×3 convolution, group norm, SiLU."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        groups = math.gcd(32, outputs)
        super().__init__(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.GroupNorm(groups, outputs), nn.SiLU())


class Encoder(nn.Module):
    """`enc_s`: photograph, depth and DINOv2 features to maps at strides 2 to 32."""

    def __init__(self, config: PaperConfig) -> None:
        super().__init__()
        self.resnet = ResNetEncoder(4, width=config.width, blocks=config.blocks)
        self.fuse = nn.Conv2d(config.features, self.resnet.channels[-1], 1)

    def forward(self, image: Tensor, depth: Tensor, features: Tensor) -> list[Tensor]:
        """image [B,3,H,W], depth [B,1,H,W], features [B,C,h,w] → five maps, finest first."""
        maps: list[Tensor] = self.resnet(torch.cat([(image - 0.45) / 0.225, depth / 20.0], dim=1))
        resized = functional.interpolate(features, size=maps[-1].shape[-2:], mode="bilinear", align_corners=False)
        maps[-1] = maps[-1] + self.fuse(resized)
        return maps


class StaticDecoder(nn.Module):
    """`dec_s`: K·14 channels of Gaussians and K−1 depth increments per pixel, as monodepth2 decodes depth."""

    def __init__(self, channels: tuple[int, ...], config: PaperConfig) -> None:
        super().__init__()
        widths, inputs = config.static_widths, channels[-1]
        self.before, self.after = nn.ModuleList(), nn.ModuleList()
        for level in (4, 3, 2, 1, 0):  # to stride 2^level, where the encoder's map is channels[level − 1]
            skip = channels[level - 1] if level > max(4 - config.skips, 0) else 0
            self.before.append(ConvElu(inputs, widths[level]))
            self.after.append(ConvElu(widths[level] + skip, widths[level]))
            inputs = widths[level]
        self.skips = config.skips
        self.head = nn.Conv2d(widths[0], config.layers * CANONICAL_CHANNELS + config.layers - 1, 1)
        _initialise_like_flash3d(self.head, config.layers)

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The encoder's maps to [B, K·14 + K−1, H, W] and the latent [B,C,H/16,W/16] that motion is decoded from."""
        skips = list(reversed(maps[:-1]))[: self.skips]
        decoded = [maps[-1]]
        for level, (before, after) in enumerate(zip(self.before, self.after)):
            x = upsample(before(decoded[-1]))
            decoded.append(after(torch.cat([x, skips[level]], dim=1) if level < len(skips) else x))
        return self.head(decoded[-1]), decoded[1]


def _initialise_like_flash3d(head: nn.Conv2d, layers: int) -> None:
    """Xavier weights with a gain for each kind of channel; biases that start scales and depth increments small."""
    gains = (0.2,) * 3 + (1.0,) + (1.0,) * 3 + (1.0,) * 4 + (5.0,) * 3  # offset, opacity, scale, rotation, colour
    biases = (0.0,) * 4 + (math.log(0.02),) * 3 + (0.0,) * 7
    gain = torch.tensor(gains * layers + (0.1,) * (layers - 1))
    bias = torch.tensor(biases * layers + (-0.1,) * (layers - 1))
    with torch.no_grad():
        nn.init.xavier_uniform_(head.weight)
        head.weight.mul_(gain.reshape(-1, 1, 1, 1).to(head.weight.device))
        assert head.bias is not None
        head.bias.copy_(bias)


class DynamicDecoder(nn.Module):
    """`dec_d`: K·12 channels of motion per pixel; zero before training, when nothing moves."""

    def __init__(self, latent: int, config: PaperConfig) -> None:
        super().__init__()
        widths = tuple(reversed(config.dynamic_widths))
        self.latent = nn.Conv2d(latent, widths[0], 3, 1, 1)
        self.up = nn.ModuleList(ConvElu(a, b) for a, b in zip(widths[:-1], widths[1:]))
        self.head = nn.Conv2d(widths[-1], config.layers * MOTION_CHANNELS, 3, 1, 1)
        nn.init.zeros_(self.head.weight)
        assert self.head.bias is not None
        nn.init.zeros_(self.head.bias)

    def forward(self, latent: Tensor, drawn: Tensor) -> Tensor:
        """latent and decoded noise at stride 16 → [B,K·12,H,W]."""
        x = self.latent(latent) + drawn
        for block in self.up:
            x = block(upsample(x))
        motion: Tensor = self.head(x)
        return motion


class MotionEncoder(nn.Module):
    """`enc_vae`, training only: what the noise should have been, from the photograph, a later frame, and depth."""

    def __init__(self, config: PaperConfig) -> None:
        super().__init__()
        widths = config.posterior_widths
        self.body = nn.Sequential(*(ConvGroupNorm(a, b, stride=2) for a, b in zip((7, *widths[:-1]), widths)))
        self.head = nn.Conv2d(widths[-1], 2 * config.noise_channels, 3, 1, 1)

    def forward(self, image: Tensor, later: Tensor, depth: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance [B,noise_channels,H/16,W/16] from image, later [B,3,H,W], depth [B,1,H,W]."""
        x = torch.cat([(image - 0.45) / 0.225, (later - 0.45) / 0.225, depth / 20.0], dim=1)
        mean, log_variance = torch.chunk(self.head(self.body(x)), 2, dim=1)
        return mean, log_variance.clamp(-8.0, 4.0)


class Lift(nn.Module):
    """Decoded maps to moving Gaussians. Kept in float32."""

    def __init__(self, config: PaperConfig) -> None:
        super().__init__()
        self.layers, self.groups, self.pixel_floor = config.layers, config.groups, config.pixel_floor

    def forward(
        self, decoded: Tensor, motion: Tensor, depth: Tensor, instances: Tensor, intrinsics: Tensor
    ) -> DynamicGaussians:
        """decoded [B, K·14 + K−1, H, W], motion [B,K·12,H,W], the rest as in `PaperCore`."""
        raw, increments = torch.split(decoded, [self.layers * CANONICAL_CHANNELS, self.layers - 1], dim=1)
        layers = gaussians.activate(
            torch.unflatten(raw, 1, (self.layers, CANONICAL_CHANNELS)),
            gaussians.layer_depths(depth, increments),
            intrinsics,
            pixel_floor=self.pixel_floor,
        )
        motion = torch.unflatten(motion, 1, (self.layers, MOTION_CHANNELS))
        return gaussians.dynamic_gaussians(layers, motion, instances, groups=self.groups)


class PaperCore(nn.Module):
    """The stages `core` and `lift`: photograph, depth, instances, DINOv2 features and noise to moving Gaussians."""

    def __init__(self, config: PaperConfig) -> None:
        super().__init__()
        self.config = config
        self.enc_s = Encoder(config)
        self.dec_s = StaticDecoder(self.enc_s.resnet.channels, config)
        width = config.dynamic_widths[-1]
        channels = (config.noise_channels, width, width, width)
        self.dec_vae = nn.Sequential(*(ConvGroupNorm(a, b) for a, b in zip(channels[:-1], channels[1:])))
        self.dec_d = DynamicDecoder(config.static_widths[-1], config)
        self.lift = Lift(config)
        self.enc_vae = MotionEncoder(config)

    def forward(self, image: Tensor, depth: Tensor, features: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The `core` stage, what the decoders say: [B, K·14 + K−1, H, W] of Gaussians, [B,K·12,H,W] of motion."""
        decoded, latent = self.dec_s(self.enc_s(image, depth, features))
        return decoded, self.dec_d(latent, self.dec_vae(noise))

    def scene(
        self, image: Tensor, depth: Tensor, instances: Tensor, features: Tensor, noise: Tensor, intrinsics: Tensor
    ) -> DynamicGaussians:
        """Gaussians of the photograph.

        Args:
            image: [B,3,H,W] in 0..1, H and W multiples of 32, at least 64.
            depth: [B,1,H,W] metres.
            instances: [B,H,W] int32, 0 = static.
            features: [B,C,h,w] of DINOv2, of any size.
            noise: [B,noise_channels,H/16,W/16] of N(0, 1), zeros for the most likely motion.
            intrinsics: [B,4] fx, fy, cx, cy in pixels.
        """
        decoded, motion = self(image, depth, features, noise)
        lifted: DynamicGaussians = self.lift(decoded, motion, depth, instances, intrinsics)
        return lifted


class Dino(nn.Module):
    """The `dino` stage: photograph [B,3,H,W] in 0..1 of any size to features [B,C,h,w] of the teacher's grid."""

    def __init__(self, teacher: DinoV2) -> None:
        super().__init__()
        self.teacher = teacher

    def forward(self, image: Tensor) -> Tensor:
        size = [side * self.teacher.config.patch for side in self.teacher.grid]
        image = functional.interpolate(image, size=size, mode="bilinear", align_corners=False)
        mean, deviation = (image.new_tensor(value).reshape(3, 1, 1) for value in (IMAGENET_MEAN, IMAGENET_STD))
        features: Tensor = self.teacher((image - mean) / deviation)[0]
        return features


class Paper(nn.Module):
    """What is exported: the frozen teacher and the core. Depth and instances are the caller's.

    Args:
        config: sizes of the core.
        teacher: DINOv2 for one picture size, about that of the photographs.
    """

    def __init__(self, config: PaperConfig, teacher: DinoV2) -> None:
        super().__init__()
        self.dino = Dino(teacher)
        self.core = PaperCore(config)
        self.provenance: Mapping[str, Any] = {"weights": "random"}

    def description(self) -> dict[str, Any]:
        """What `bundle_from_model` puts into the bundle besides the stages."""
        config = self.core.config
        return {
            "system": "pixel_to_4d",
            "config": {
                "layers": config.layers,
                "groups": config.groups,
                "noise_channels": config.noise_channels,
                "size": [448, 256],
                "frames": 14,
                "fps": 10,
            },
            "camera": Camera.from_fov(448, 256, 60.0),
            "licence": "Apache-2.0",
            "provenance": self.provenance,
        }

    def stages(self) -> list[ExportStage]:
        """The stages `dino`, `core` and `lift`, for photographs of 64×64 to 1024×512."""
        config, grid = self.core.config, self.dino.teacher.grid
        k = config.layers
        axes = (Axis("H", 64, 256, 512, 32), Axis("W", 64, 448, 1024, 32))
        image = TensorSpec("image", "float32", (1, 3, "H", "W"))
        features = TensorSpec("features", "float32", (1, config.features, *grid))
        depth = TensorSpec("depth", "float32", (1, 1, "H", "W"))
        instances = TensorSpec("instances", "int32", (1, "H", "W"))
        noise = TensorSpec("noise", "float32", (1, config.noise_channels, "H/16", "W/16"))
        decoded = (
            TensorSpec("gaussian_maps", "float32", (1, k * CANONICAL_CHANNELS + k - 1, "H", "W")),
            TensorSpec("motion_maps", "float32", (1, k * MOTION_CHANNELS, "H", "W")),
        )
        core = self.core.eval()
        return [
            ExportStage("dino", self.dino.eval(), (image,), (features,), axes, _dino_example),
            ExportStage(
                "core",
                core,
                (image, depth, features, noise),
                decoded,
                axes,
                lambda sizes: _core_example(config, grid, sizes),
            ),
            ExportStage(
                "lift",
                SceneLift(core.lift).eval(),
                (*decoded, depth, instances, TensorSpec("intrinsics", "float32", (1, 4))),
                gaussians.scene_tensors(k, config.groups),
                axes,
                lambda sizes: _lift_example(core, grid, sizes),
                fp32_scopes=("",),
            ),
        ]


def _dino_example(sizes: Mapping[str, int]) -> tuple[Tensor, ...]:
    return (torch.rand(1, 3, sizes["H"], sizes["W"]),)


def _core_example(config: PaperConfig, grid: tuple[int, int], sizes: Mapping[str, int]) -> tuple[Tensor, ...]:
    H, W = sizes["H"], sizes["W"]
    return (
        torch.rand(1, 3, H, W),
        2.0 + 30.0 * torch.rand(1, 1, H, W),
        torch.randn(1, config.features, *grid),
        torch.randn(1, config.noise_channels, H // 16, W // 16),
    )


@torch.no_grad()
def _lift_example(core: PaperCore, grid: tuple[int, int], sizes: Mapping[str, int]) -> tuple[Tensor, ...]:
    H, W = sizes["H"], sizes["W"]
    image, depth, features, noise = _core_example(core.config, grid, sizes)
    return (
        *core(image, depth, features, noise),
        depth,
        torch.randint(0, 4, (1, H, W), dtype=torch.int32),
        torch.tensor([[0.8 * W, 0.8 * W, 0.5 * W, 0.5 * H]]),
    )
