"""Pixel-to-4D made small: two U-Nets of one to two million weights, no pretrained teachers.

`Perceive` sees depth and objects in the photograph; a simulator that knows them replaces it. `StreetCore` turns
photograph, depth and object ids into Gaussians with motion. It follows Pixel-to-4D (arXiv 2601.00678): K Gaussians per
pixel, a static decoder, a dynamic decoder conditioned on noise (CVAE), motion averaged within each object. Its own:
scales and offsets are in pixel footprints, the first layer's colour is the photograph's plus a correction, and only the
first layer moves, so that what an object hides stays where it is. That layer of an object is the photograph itself, one
plain Gaussian a pixel: a decoder that may blur what moves hedges its motion by doing so. And what moves does so along
the ground, a plane through the depths of the road: a small error of height shows more than a large one of speed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edge4d.export.models.layers.unet import ConvNorm, Residual, UNet, upsample
from edge4d.export.models.pixel_to_4d import gaussians
from edge4d.export.models.pixel_to_4d.gaussians import DynamicGaussians, SceneLift, scene_tensors
from edge4d.export.stage import ExportStage
from edge4d.runtime.bundle import Axis, TensorSpec
from edge4d.runtime.camera import Camera

FAR = 150.0  # metres; where the sky is put
_NEAREST = 0.3
_MOTION_UNITS = (8.0, 2.0, 0.3, 0.3)  # m/s, m/s², rad/s, rad/s²: about the spread of each in traffic
CENTRE_UNIT = 32.0  # pixels per unit of the centre-offset head


@dataclass(frozen=True)
class StreetConfig:
    """Sizes of the networks.

    Attributes:
        layers: K, Gaussians per pixel.
        noise_channels: channels of the noise at stride 16.
        perceive_widths, core_widths: channels at strides 1, 2, 4, 8, 16, 32.
        perceive_blocks, core_blocks: residual blocks at strides 2 to 32.
        motion_width: channels of the dynamic decoder.
        groups: motion groups, the static one included.
    """

    layers: int = 2
    noise_channels: int = 8
    perceive_widths: tuple[int, ...] = (24, 40, 56, 80, 96, 112)
    perceive_blocks: tuple[int, ...] = (1, 1, 2, 2, 2)
    core_widths: tuple[int, ...] = (24, 36, 48, 64, 80, 80)
    core_blocks: tuple[int, ...] = (1, 1, 1, 1, 1)
    motion_width: int = 64
    groups: int = gaussians.GROUPS


STREET = StreetConfig()
TINY = StreetConfig(
    noise_channels=4,
    perceive_widths=(8,) * 6,
    perceive_blocks=(1, 0, 0, 0, 0),
    core_widths=(8,) * 6,
    core_blocks=(1, 0, 0, 0, 0),
    motion_width=8,
)


def camera_rays(intrinsics: Tensor, like: Tensor) -> Tensor:
    """x/z and y/z of the ray through each pixel, [B, 2, H, W]; tells a network the field of view, and so sizes.

    Rays are computed in the shape that they have in the end: TensorRT 8.6 may move values as halves, which would round
    them, but not the pixels' coordinates.

    Args:
        intrinsics: [B, 4] fx, fy, cx, cy in pixels.
        like: [B, C, H, W], gives size, device and dtype.
    """
    focal, centre = torch.split(intrinsics.reshape(-1, 4, 1, 1), 2, 1)
    return (pixel_grid(like, 1.0) - centre) / focal


class Inputs(nn.Module):
    """What a network sees: colour, rays, and for the core also depth and the mask of objects. Kept in float32."""

    def forward(
        self, image: Tensor, intrinsics: Tensor, depth: Tensor | None = None, instances: Tensor | None = None
    ) -> Tensor:
        """image [B,3,H,W], intrinsics [B,4]; with depth [B,1,H,W] and instances [B,H,W]: 8 channels, else 5."""
        channels = [_normalised(image), camera_rays(intrinsics, image)]
        if depth is not None and instances is not None:
            mask = (instances > 0).to(image.dtype)[:, None]
            depth = depth.clamp(_NEAREST, FAR)
            channels += [depth.log() / 2.5 - 1, 4 / depth, mask]
        return torch.cat(channels, 1)


def _normalised(image: Tensor) -> Tensor:
    return (image - 0.45) / 0.225


class DepthAndObjects(nn.Module):
    """The last step of `Perception.fine`: [B,2,H,W] to log depth, 12 m where the network says 0, and object logits."""

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        log_depth, objects = torch.split(maps, 1, 1)
        return log_depth + 2.5, objects


class Perception(nn.Module):
    """The `perceive` stage: maps from which depth and objects are read; trained directly.

    Outputs: log depth [B,1,H,W], object logits [B,1,H,W], centre logits [B,1,H/4,W/4], offsets (x, y) to the object's
    centre [B,2,H/2,W/2] in units of CENTRE_UNIT pixels.
    """

    def __init__(self, config: StreetConfig) -> None:
        super().__init__()
        widths = config.perceive_widths
        self.prepare = Inputs()
        self.unet = UNet(5, widths, config.perceive_blocks)
        self.fine = nn.Sequential(ConvNorm(widths[0], widths[0]), nn.Conv2d(widths[0], 2, 3, 1, 1), DepthAndObjects())
        self.offset = nn.Sequential(ConvNorm(widths[1], widths[1]), nn.Conv2d(widths[1], 2, 3, 1, 1))
        self.centre = nn.Sequential(ConvNorm(widths[2], widths[2]), nn.Conv2d(widths[2], 1, 3, 1, 1))
        self.centre[-1].bias.data.fill_(-4.0)  # type: ignore[operator]  # centres are rare: start from none

    def forward(self, image: Tensor, intrinsics: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """image [B,3,H,W] in 0..1, intrinsics [B,4] in pixels."""
        features = self.unet(self.prepare(image, intrinsics))
        return *self.fine(features[0]), self.centre(features[2]), self.offset(features[1])


def group_pixels(objects: Tensor, centres: Tensor, offsets: Tensor, *, groups: int, threshold: float = 0.6) -> Tensor:
    """Instance ids: every object pixel joins the centre it points at (as Panoptic-DeepLab, arXiv 1911.10194).

    Args:
        objects: [B,1,H,W] logits; centres: [B,1,H/4,W/4] logits; offsets: [B,2,H/2,W/2] in units of CENTRE_UNIT pixels.
        groups: ids run from 1 to groups − 1, most certain centre first.
        threshold: least probability of a centre.

    Returns:
        [B,H,W] int32, 0 where there is no object.
    """
    heat = centres.sigmoid()
    peak = functional.max_pool2d(heat, 5, 1, 2)
    scores = torch.where(heat == peak, heat, torch.zeros_like(heat)).flatten(1)
    best, index = scores.topk(groups - 1, dim=1)
    places = pixel_grid(heat, 4.0).flatten(2).expand(heat.shape[0], -1, -1)
    chosen = places.gather(2, index[:, None].expand(-1, 2, -1))  # [B, 2, groups-1]
    target = (pixel_grid(offsets, 2.0) + CENTRE_UNIT * offsets).flatten(2)
    distance = (target[:, 0, :, None] - chosen[:, 0, None]).square() + (
        target[:, 1, :, None] - chosen[:, 1, None]
    ).square()
    distance = distance + (best < threshold).to(distance.dtype)[:, None] * 1e8
    nearest = (distance.argmin(-1) + 1).to(objects.dtype).reshape(offsets[:, :1].shape)
    ids = upsample(nearest)
    certain = (best[:, :1] >= threshold).to(objects.dtype)[:, :, None, None]
    return (ids * (objects > 0).to(objects.dtype) * certain)[:, 0].round().to(torch.int32)


def pixel_grid(like: Tensor, stride: float) -> Tensor:
    """x and y of the cells of a feature map, [1, 2, h, w], in pixels of the full image."""
    h, w = like.shape[-2:]
    x = (torch.arange(w, device=like.device, dtype=like.dtype) + 0.5) * stride
    y = (torch.arange(h, device=like.device, dtype=like.dtype) + 0.5) * stride
    return torch.stack([x[None].expand(h, w), y[:, None].expand(h, w)])[None]


class Readout(nn.Module):
    """The `readout` stage: depth [B,1,H,W] metres and instances [B,H,W] int32 from the maps of `Perception`.

    A stage of its own, for half precision would misplace pixels and centres.
    """

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, log_depth: Tensor, objects: Tensor, centres: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """The outputs of `Perception`, in its order."""
        depth = log_depth.clamp(math.log(_NEAREST), math.log(FAR)).exp()
        return depth, group_pixels(objects, centres, offsets, groups=self.groups)


class Perceive(nn.Module):
    """The stages `perceive` and `readout`: photograph to depth [B,1,H,W] metres and instances [B,H,W] int32."""

    def __init__(self, config: StreetConfig) -> None:
        super().__init__()
        self.perception = Perception(config)
        self.readout = Readout(config.groups)

    def forward(self, image: Tensor, intrinsics: Tensor) -> tuple[Tensor, Tensor]:
        """image [B,3,H,W] in 0..1, intrinsics [B,4] in pixels."""
        depth, instances = self.readout(*self.perception(image, intrinsics))
        return depth, instances


class MotionEncoder(nn.Module):
    """Training only: what the noise should have been, from the photograph, a later frame of the same camera, and depth.

    Returns mean and log variance [B, noise_channels, H/16, W/16].
    """

    def __init__(self, config: StreetConfig) -> None:
        super().__init__()
        widths = (16, 32, 48, 64)
        pairs = zip((7, *widths[:-1]), widths)
        self.body = nn.Sequential(*(ConvNorm(a, b, stride=2) for a, b in pairs))
        self.head = nn.Conv2d(widths[-1], 2 * config.noise_channels, 3, 1, 1)

    def forward(self, image: Tensor, later: Tensor, depth: Tensor) -> tuple[Tensor, Tensor]:
        """image, later [B,3,H,W] in 0..1; depth [B,1,H,W] metres."""
        x = torch.cat([_normalised(image), _normalised(later), depth.log() / 2.5 - 1], 1)
        mean, log_variance = torch.chunk(self.head(self.body(x)), 2, 1)
        return mean, log_variance.clamp(-8, 4)


class Lift(nn.Module):
    """Network outputs, in units that fit a photograph, to moving Gaussians. Kept in float32."""

    def __init__(self, config: StreetConfig) -> None:
        super().__init__()
        self.config = config

    def forward(
        self, raw: Tensor, motion: Tensor, image: Tensor, depth: Tensor, instances: Tensor, intrinsics: Tensor
    ) -> DynamicGaussians:
        """raw [B, K·14 + K−1, H, W], motion [B,12,H/4,W/4], the rest as in `StreetCore`."""
        k = self.config.layers
        depth = depth.clamp(_NEAREST, FAR)
        canonical, steps = torch.split(raw, [k * gaussians.CANONICAL_CHANNELS, k - 1], 1)
        depths = gaussians.layer_depths(depth, steps + (0.15 * depth).log())
        footprint = (depths / intrinsics[:, 0].reshape(-1, 1, 1, 1))[:, :, None]  # metres that a pixel covers
        canonical = torch.unflatten(canonical, 1, (k, gaussians.CANONICAL_CHANNELS))
        still = torch.cat([(instances == 0)[:, None].to(raw.dtype), torch.ones_like(raw[:, 1:k])], 1)
        canonical = canonical * still[:, :, None]
        offset, opacity, scale, rotation, color = torch.split(canonical, [3, 1, 3, 4, 3], 2)
        scale = scale.clamp(-4, 3) + (0.6 * footprint).log() - math.log(0.01)
        color = color + ((image - 0.5) / gaussians.SH_C0)[:, None]
        units = torch.cat([2 * footprint * offset, opacity + 3.0, scale, rotation, color], 2)
        layers = gaussians.activate(units, depths, intrinsics)
        scene = gaussians.dynamic_gaussians(
            layers, self.metric_motion(motion)[:, None], instances, groups=self.config.groups
        )
        normal = gaussians.ground_normal(depth, instances, intrinsics)
        return scene._replace(
            velocity=gaussians.along_ground(scene.velocity, normal),
            acceleration=gaussians.along_ground(scene.acceleration, normal),
        )

    def metric_motion(self, motion: Tensor) -> Tensor:
        """Raw motion [B,12,H/4,W/4] to [B,12,H,W] in metres, radians and seconds."""
        units = torch.tensor(_MOTION_UNITS, device=motion.device).repeat_interleave(3).reshape(1, -1, 1, 1)
        return upsample(upsample(motion * units))


class StreetCore(nn.Module):
    """The stages `core` and `lift`: photograph, depth, instances and noise to moving Gaussians."""

    def __init__(self, config: StreetConfig) -> None:
        super().__init__()
        widths, k, m = config.core_widths, config.layers, config.motion_width
        self.prepare = Inputs()
        self.enc_s = UNet(8, widths, config.core_blocks)
        channels = k * gaussians.CANONICAL_CHANNELS + (k - 1)
        self.dec_s = nn.Sequential(ConvNorm(widths[0], widths[0]), nn.Conv2d(widths[0], channels, 3, 1, 1))
        self.latent = ConvNorm(widths[4], m)
        self.dec_vae = nn.Sequential(ConvNorm(config.noise_channels, m), nn.Conv2d(m, m, 3, 1, 1))
        self.dec_d = nn.ModuleList([ConvNorm(m + widths[3], m), ConvNorm(m + widths[2], m)])
        self.motion = nn.Sequential(Residual(m), nn.Conv2d(m, gaussians.MOTION_CHANNELS, 3, 1, 1))
        self.lift = Lift(config)
        for head in (self.dec_s[-1], self.motion[-1]):
            head.weight.data.normal_(std=1e-3)  # type: ignore[operator]
            head.bias.data.zero_()  # type: ignore[operator]

    def scene(
        self, image: Tensor, depth: Tensor, instances: Tensor, noise: Tensor, intrinsics: Tensor
    ) -> DynamicGaussians:
        """Gaussians of the photograph.

        Args:
            image: [B,3,H,W] in 0..1, H and W multiples of 32.
            depth: [B,1,H,W] metres.
            instances: [B,H,W] int32, 0 = static.
            noise: [B,Cz,H/16,W/16], zeros for the most likely motion.
            intrinsics: [B,4] fx, fy, cx, cy in pixels.
        """
        raw, motion = self(image, depth, instances, noise, intrinsics)
        lifted: DynamicGaussians = self.lift(raw, motion, image, depth, instances, intrinsics)
        return lifted

    def forward(
        self, image: Tensor, depth: Tensor, instances: Tensor, noise: Tensor, intrinsics: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The `core` stage, raw: Gaussians [B, K·14 + K−1, H, W] and motion [B,12,H/4,W/4] as the decoders say them."""
        features = self.enc_s(self.prepare(image, intrinsics, depth, instances))
        return self.dec_s(features[0]), self._decode_motion(features[2:], noise)

    def motion_map(self, image: Tensor, depth: Tensor, instances: Tensor, noise: Tensor, intrinsics: Tensor) -> Tensor:
        """Only the raw motion [B,12,H/4,W/4] of `forward`, for less than half the work: what training it needs."""
        return self._decode_motion(self.enc_s(self.prepare(image, intrinsics, depth, instances), finest=2), noise)

    def _decode_motion(self, features: list[Tensor], noise: Tensor) -> Tensor:
        """Raw motion from features at strides 4, 8, 16, ..."""
        fine, middle, coarse = features[:3]
        motion = self.latent(coarse) + self.dec_vae(noise)
        for block, skip in zip(self.dec_d, (middle, fine)):
            motion = block(torch.cat([upsample(motion), skip], 1))
        decoded: Tensor = self.motion(motion)
        return decoded


class Street(nn.Module):
    """What is exported.

    Attributes:
        provenance: how the weights came to be; goes into the bundle.
    """

    def __init__(self, config: StreetConfig) -> None:
        super().__init__()
        self.config = config
        self.perceive = Perceive(config)
        self.core = StreetCore(config)
        self.provenance: Mapping[str, Any] = {"weights": "random"}

    def stages(self) -> list[ExportStage]:
        """The stages `perceive`, `readout`, `core` and `lift`, for photographs of 64×64 to 1024×512.

        The first and last convolutions are float32 in fp16 too: roundings of rays, depths and motions are most of what
        half precision costs (four fifths of a depth's error), and these layers little of the time.
        """
        axes = (Axis("H", 64, 256, 512, 32), Axis("W", 64, 448, 1024, 32))
        image, depth = _floats("image", 3, "H", "W"), _floats("depth", 1, "H", "W")
        instances = TensorSpec("instances", "int32", (1, "H", "W"))
        intrinsics = _floats("intrinsics", 4)
        perceived = (
            _floats("log_depth", 1, "H", "W"),
            _floats("object_logits", 1, "H", "W"),
            _floats("centre_logits", 1, "H/4", "W/4"),
            _floats("centre_offsets", 2, "H/2", "W/2"),
        )
        k = self.config.layers
        decoded = (
            _floats("gaussian_maps", k * gaussians.CANONICAL_CHANNELS + k - 1, "H", "W"),
            _floats("motion_maps", gaussians.MOTION_CHANNELS, "H/4", "W/4"),
        )
        perceive, core = self.perceive.eval(), self.core.eval()
        return [
            ExportStage(
                "perceive",
                perceive.perception,
                (image, intrinsics),
                perceived,
                axes,
                _perceive_example,
                fp32_scopes=("prepare", "unet.stem", "fine.1", "fine.2", "centre.1", "offset.1"),
            ),
            ExportStage(
                "readout",
                perceive.readout,
                perceived,
                (depth, instances),
                axes,
                self._readout_example,
                fp32_scopes=("",),
            ),
            ExportStage(
                "core",
                core,
                (image, depth, instances, _floats("noise", self.config.noise_channels, "H/16", "W/16"), intrinsics),
                decoded,
                axes,
                self._core_example,
                fp32_scopes=("prepare", "enc_s.stem", "dec_s.1", "motion.1"),
            ),
            ExportStage(
                "lift",
                SceneLift(core.lift).eval(),
                (*decoded, image, depth, instances, intrinsics),
                scene_tensors(k, self.config.groups),
                axes,
                self._lift_example,
                fp32_scopes=("",),
            ),
        ]

    def description(self) -> dict[str, Any]:
        """What `bundle_from_model` puts into the bundle besides the stages."""
        config = {
            "layers": self.config.layers,
            "groups": self.config.groups,
            "noise_channels": self.config.noise_channels,
            "size": [448, 256],
            "frames": 24,
            "fps": 12,
        }
        return {
            "system": "pixel_to_4d",
            "config": config,
            "camera": Camera.from_fov(448, 256, 60.0),
            "licence": "Apache-2.0",
            "provenance": self.provenance,
        }

    @torch.no_grad()
    def _readout_example(self, sizes: Mapping[str, int]) -> tuple[Tensor, ...]:
        maps: tuple[Tensor, ...] = self.perceive.perception(*_perceive_example(sizes))
        return maps

    @torch.no_grad()
    def _core_example(self, sizes: Mapping[str, int]) -> tuple[Tensor, ...]:
        H, W = sizes["H"], sizes["W"]
        image, intrinsics = _perceive_example(sizes)
        depth, instances = self.perceive(image, intrinsics)
        return image, depth, instances, torch.randn(1, self.config.noise_channels, H // 16, W // 16), intrinsics

    @torch.no_grad()
    def _lift_example(self, sizes: Mapping[str, int]) -> tuple[Tensor, ...]:
        image, depth, instances, noise, intrinsics = self._core_example(sizes)
        return *self.core(image, depth, instances, noise, intrinsics), image, depth, instances, intrinsics


def _floats(name: str, *dims: int | str) -> TensorSpec:
    """Of one photograph."""
    return TensorSpec(name, "float32", (1, *dims))


def _perceive_example(sizes: Mapping[str, int]) -> tuple[Tensor, ...]:
    H, W = sizes["H"], sizes["W"]
    coarse = torch.rand(1, 3, H // 16, W // 16)
    image = functional.interpolate(coarse, size=(H, W), mode="bilinear", align_corners=False)
    return image, torch.tensor([[0.87 * W, 0.87 * W, 0.5 * W, 0.5 * H]])
