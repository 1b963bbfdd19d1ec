"""From feature maps to Gaussians and rigid motion: what every Pixel-to-4D network does after its last convolution.

Letters: B batch, K layers per pixel, C channels, H W pixels, M motion groups, N = K·H·W Gaussians. Everything is in the
input camera's frame (x right, y down, z forward), metres and seconds; t = 0 is the input image. The N axis is
layer-major: k, row, column.

Only operators of ONNX opset 17 that every backend runs well are used: no scatter, no CumSum, no sort, and of the
reductions only sums, whose form is the same in opsets 17 and 18. H and W may be symbolic.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from edge4d.runtime.bundle import TensorSpec

GROUPS = 64
CANONICAL_CHANNELS = 14  # offset 3, opacity 1, scale 3, rotation 4, colour 3
MOTION_CHANNELS = 12  # velocity 3, acceleration 3, angular velocity 3, angular acceleration 3
SH_C0 = 0.28209479177387814  # 1 / (2·sqrt(pi)), the constant spherical harmonic


class GaussianLayers(NamedTuple):
    """Activated Gaussians, still on the pixel grid.

    means [B,K,3,H,W] metres, quats [B,K,4,H,W] wxyz of unit length, scales [B,K,3,H,W] metres,
    opacities [B,K,1,H,W] in 0..1, colors [B,K,3,H,W] RGB, at least 0.
    """

    means: Tensor
    quats: Tensor
    scales: Tensor
    opacities: Tensor
    colors: Tensor


class DynamicGaussians(NamedTuple):
    """Gaussians with their motions, as the networks give them.

    means [B,N,3], quats [B,N,4] wxyz, scales [B,N,3], opacities [B,N], colors [B,N,3], groups [B,N] int32 (0 = static);
    centres [B,M,3] metres, velocity, acceleration [B,M,3] in m/s and m/s², angular_velocity, angular_acceleration
    [B,M,3] in rad/s and rad/s². Row 0 of the last five is zero.
    """

    means: Tensor
    quats: Tensor
    scales: Tensor
    opacities: Tensor
    colors: Tensor
    groups: Tensor
    centres: Tensor
    velocity: Tensor
    acceleration: Tensor
    angular_velocity: Tensor
    angular_acceleration: Tensor


class SceneTensors(NamedTuple):
    """The outputs of the `lift` stage, in its order: `DynamicGaussians` whose motions are as a scene stores them.

    means [B,N,3] to centres [B,M,3] as they are; linear, angular [B,M,2,3] the coefficients of t and t², in m/s and
    m/s², rad/s and rad/s². Row 0 of the last three is zero.
    """

    means: Tensor
    quats: Tensor
    scales: Tensor
    opacities: Tensor
    colors: Tensor
    groups: Tensor
    centres: Tensor
    linear: Tensor
    angular: Tensor


class SceneLift(nn.Module):
    """The `lift` stage: what the decoders of the `core` stage say, as a scene stores it.

    A stage of its own, for what it adds up over a picture passes half's largest number, 65504: an engine that has no
    halves at all cannot lose them.

    Args:
        lift: takes the stage's inputs, gives DynamicGaussians.
    """

    def __init__(self, lift: nn.Module) -> None:
        super().__init__()
        self.lift = lift

    def forward(self, *inputs: Tensor) -> SceneTensors:
        """Constant acceleration as coefficients of t and t²: v and ½ a, ω and ½ α."""
        scene: DynamicGaussians = self.lift(*inputs)
        linear = torch.stack([scene.velocity, 0.5 * scene.acceleration], dim=2)
        angular = torch.stack([scene.angular_velocity, 0.5 * scene.angular_acceleration], dim=2)
        return SceneTensors(*scene[:7], linear, angular)


def unproject(depth_layers: Tensor, intrinsics: Tensor) -> Tensor:
    """Points on the rays through the pixel centres (at +0.5).

    Args:
        depth_layers: [B,K,H,W] metres along z.
        intrinsics: [B,4] fx, fy, cx, cy in pixels.

    Returns:
        [B,K,H,W,3] metres: K⁻¹ [u, v, 1] · depth.
    """
    height, width = depth_layers.shape[-2:]
    fx, fy, cx, cy = (value.reshape(-1, 1, 1, 1) for value in intrinsics.unbind(-1))
    columns = torch.arange(width, device=depth_layers.device, dtype=depth_layers.dtype) + 0.5
    rows = torch.arange(height, device=depth_layers.device, dtype=depth_layers.dtype) + 0.5
    x = (columns - cx) / fx * depth_layers
    y = (rows.reshape(-1, 1) - cy) / fy * depth_layers
    return torch.stack([x, y, depth_layers], dim=-1)


def layer_depths(depth: Tensor, increments: Tensor) -> Tensor:
    """Depths of the layers of a pixel, nearest first: D, D + e₁, D + e₁ + e₂, … with e = exp(clamp(f, −10, 6)).

    Args:
        depth: [B,1,H,W] metres.
        increments: [B,K−1,H,W] raw network outputs f (K = 1: an empty tensor).

    Returns:
        [B,K,H,W] metres. Formula: Flash3D (arXiv 2406.04343).
    """
    layers = [depth]
    steps = increments.clamp(-10.0, 6.0).exp()
    for k in range(increments.shape[1]):
        layers.append(layers[-1] + steps[:, k : k + 1])
    return torch.cat(layers, dim=1)


def activate(
    raw: Tensor, depth_layers: Tensor, intrinsics: Tensor, *, scale_unit: float = 0.01, pixel_floor: float = 0.0
) -> GaussianLayers:
    """Gaussians from raw channels, with Flash3D's activations (arXiv 2406.04343).

    mean = K⁻¹ [u, v, 1] · depth + offset; opacity = sigmoid(f); scale = scale_unit · exp(f);
    rotation = normalize(f + [1,0,0,0]), which is defined at f = 0; colour = max(SH₀ · f + 0.5, 0).

    Args:
        raw: [B,K,14,H,W]: offset 3 (metres), opacity 1, scale 3, rotation 4 (wxyz), colour 3.
        depth_layers: [B,K,H,W] metres.
        intrinsics: [B,4] fx, fy, cx, cy in pixels.
        scale_unit: metres of a scale whose raw channel is 0.
        pixel_floor: smallest scale, in footprints of a pixel at the Gaussian's depth; 0.5 leaves no holes.
    """
    offset, opacity, scale, rotation, color = torch.split(raw, [3, 1, 3, 4, 3], dim=2)
    rotation = rotation + torch.tensor([1.0, 0.0, 0.0, 0.0], device=raw.device, dtype=raw.dtype).reshape(4, 1, 1)
    scales = scale_unit * scale.exp()
    if pixel_floor > 0:
        footprint = depth_layers / intrinsics[:, 0].reshape(-1, 1, 1, 1)
        scales = torch.maximum(scales, pixel_floor * footprint.unsqueeze(2))
    return GaussianLayers(
        means=unproject(depth_layers, intrinsics).permute(0, 1, 4, 2, 3) + offset,
        quats=rotation / rotation.square().sum(2, keepdim=True).sqrt().clamp_min(1e-12),
        scales=scales,
        opacities=opacity.sigmoid(),
        colors=(SH_C0 * color + 0.5).relu(),
    )


def flatten_layers(values: Tensor) -> Tensor:
    """[B,K,C,H,W] → [B,N,C], layer-major: k, row, column."""
    return values.permute(0, 1, 3, 4, 2).flatten(1, 3)


def group_of_gaussian(instances: Tensor, layers: int, moving_layers: int, *, groups: int = GROUPS) -> Tensor:
    """The motion group of every Gaussian.

    Args:
        instances: [B,H,W] int32; ids below 1 or from `groups` on count as 0, static.
        layers: K.
        moving_layers: how many of them, nearest first, belong to their pixel's instance; the rest is static.

    Returns:
        [B,N] int32 in 0..groups−1.
    """
    valid = (instances > 0) & (instances < groups)
    ids = torch.where(valid, instances, torch.zeros_like(instances))
    ids = ids.flatten(1)
    return torch.cat([ids] * moving_layers + [torch.zeros_like(ids)] * (layers - moving_layers), dim=1)


def instance_mean(values: Tensor, instances: Tensor, *, groups: int = GROUPS) -> Tensor:
    """Mean over all Gaussians of all pixels of each instance, as one-hot matrix products.

    A mean over each image row comes first, then the mean of rows weighted by their share of the instance. Counts are
    at most W and weights at least 1/W, so that half precision neither overflows nor underflows.

    Args:
        values: [B,K,C,H,W].
        instances: [B,H,W] int32; ids below 1 or from `groups` on belong to no group.

    Returns:
        [B,groups,C]; row 0 and the rows of absent ids are zero.
    """
    ids = torch.arange(1, groups, device=instances.device, dtype=instances.dtype)
    member = (instances.unsqueeze(2) == ids.reshape(1, 1, -1, 1)).to(values.dtype)  # [B,H,groups-1,W]
    pixel_means = (values / values.shape[1]).sum(1).permute(0, 2, 3, 1)  # [B,H,W,C]
    count = member.sum(-1, keepdim=True)  # [B,H,groups-1,1]
    row_means = (member / count.clamp_min(1.0)) @ pixel_means  # [B,H,groups-1,C]
    filled = count / instances.shape[-1]
    total = filled.sum(1, keepdim=True)
    share = filled / torch.where(total > 0, total, torch.ones_like(total))
    means = (share * row_means).sum(1)
    return torch.cat([torch.zeros_like(means[:, :1]), means], dim=1)


def dynamic_gaussians(
    layers: GaussianLayers, motion: Tensor, instances: Tensor, *, groups: int = GROUPS
) -> DynamicGaussians:
    """One rigid motion for each instance, the mean of what its pixels predict; everything else stands still.

    Args:
        layers: activated Gaussians on the pixel grid.
        motion: [B,L,12,H,W] for the L ≤ K nearest layers, which move; deeper ones show what the object hides and are
            static. Velocity 3, acceleration 3 (m/s, m/s²), angular velocity 3, angular acceleration 3 (rad/s, rad/s²).
        instances: [B,H,W] int32 ids, 0 = static.
    """
    moving = motion.shape[1]
    means = instance_mean(torch.cat([layers.means[:, :moving], motion], dim=2), instances, groups=groups)
    centres, velocity, acceleration, angular_velocity, angular_acceleration = torch.split(means, [3] * 5, dim=-1)
    return DynamicGaussians(
        means=flatten_layers(layers.means),
        quats=flatten_layers(layers.quats),
        scales=flatten_layers(layers.scales),
        opacities=layers.opacities.flatten(1),
        colors=flatten_layers(layers.colors),
        groups=group_of_gaussian(instances, layers.means.shape[1], moving, groups=groups),
        centres=centres,
        velocity=velocity,
        acceleration=acceleration,
        angular_velocity=angular_velocity,
        angular_acceleration=angular_acceleration,
    )


def ground_normal(depth: Tensor, instances: Tensor, intrinsics: Tensor) -> Tensor:
    """The direction that is down in the scene, [B,3] of unit length in the camera's frame.

    A plane y = a x + b z + c through what stands still in the lower part of the picture, by least squares, repeated
    without the points that lie off it. Above it means an obstacle, such as a wall; below it only a depth that is wrong.
    Where hardly any ground is seen the direction is (0, 1, 0).

    Args:
        depth: [B,1,H,W] metres.
        instances: [B,H,W] int32, 0 = static.
        intrinsics: [B,4] fx, fy, cx, cy in pixels.
    """
    x, y, z = unproject(depth, intrinsics)[:, 0].unbind(-1)
    height = depth.shape[2]
    rows = ((torch.arange(height, device=depth.device, dtype=depth.dtype) + 0.5) / height).reshape(1, -1, 1)
    candidates = ((instances == 0) & (rows > 0.55) & (z < 40.0)).to(depth.dtype)

    def total(values: Tensor) -> Tensor:
        return values.sum(-1, keepdim=True).sum(-2, keepdim=True)

    weights = candidates
    for _ in range(4):
        mass = total(weights) + 1e-6
        mean_x, mean_y, mean_z = (total(weights * value) / mass for value in (x, y, z))
        dx, dy, dz = x - mean_x, y - mean_y, z - mean_z
        # A little of a level plane: what decides where no ground is seen.
        xx, zz, xz = total(weights * dx * dx) + 1.0, total(weights * dz * dz) + 1.0, total(weights * dx * dz)
        xy, zy = total(weights * dx * dy), total(weights * dz * dy)
        determinant = xx * zz - xz * xz
        a, b = (xy * zz - zy * xz) / determinant, (zy * xx - xy * xz) / determinant
        below = dy - a * dx - b * dz  # metres; the camera's own height is the measure of what is far off
        off = torch.where(below > 0, below / 3, below) / (mean_y - a * mean_x - b * mean_z).abs().clamp_min(0.5)
        weights = candidates * torch.exp(-((off / 0.1) ** 2))
    normal = torch.cat([-a, torch.ones_like(a), -b], 1)[..., 0]
    return normal / normal.square().sum(1, keepdim=True).sqrt()


def along_ground(vectors: Tensor, normal: Tensor) -> Tensor:
    """Vectors [B,M,3] without what points out of the ground, whose `normal` is [B,3]: traffic does not fly."""
    down = normal[:, None]
    return vectors - (vectors * down).sum(-1, keepdim=True) * down


def scene_tensors(layers: int, groups: int) -> tuple[TensorSpec, ...]:
    """The outputs of the `lift` stage as a bundle describes them, in the order of `SceneTensors`."""
    gaussian = {"means": (3,), "quats": (4,), "scales": (3,), "opacities": (), "colors": (3,)}
    N = f"{layers}*H*W"
    return (
        *(TensorSpec(name, "float32", (1, N, *channels)) for name, channels in gaussian.items()),
        TensorSpec("groups", "int32", (1, N)),
        TensorSpec("centres", "float32", (1, groups, 3)),
        TensorSpec("linear", "float32", (1, groups, 2, 3)),
        TensorSpec("angular", "float32", (1, groups, 2, 3)),
    )
