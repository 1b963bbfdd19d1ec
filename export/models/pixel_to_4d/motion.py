"""The motion law of Pixel-to-4D, differentiable: what `edge4d.runtime.motion.Poly` computes when a scene is played."""

from __future__ import annotations

import torch
from torch import Tensor

from edge4d.export.models.pixel_to_4d.gaussians import DynamicGaussians


def rotation_matrices(rotvecs: Tensor) -> Tensor:
    """exp([θ]×) of rotation vectors θ [..., 3] in radians, [..., 3, 3] (Rodrigues)."""
    angle = rotvecs.square().sum(-1, keepdim=True).clamp_min(1e-12).sqrt()[..., None]
    zero = torch.zeros_like(rotvecs[..., 0])
    x, y, z = rotvecs.unbind(-1)
    cross = torch.unflatten(torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1), -1, (3, 3))
    identity: Tensor = torch.eye(3, device=rotvecs.device, dtype=rotvecs.dtype)
    return identity + torch.sin(angle) / angle * cross + (1 - torch.cos(angle)) / angle.square() * (cross @ cross)


def quaternions(rotvecs: Tensor) -> Tensor:
    """Unit quaternions wxyz of rotation vectors [..., 3] in radians, [..., 4]."""
    angle = rotvecs.square().sum(-1, keepdim=True).clamp_min(1e-12).sqrt()
    return torch.cat([torch.cos(angle / 2), torch.sin(angle / 2) / angle * rotvecs], -1)


def multiply(p: Tensor, q: Tensor) -> Tensor:
    """Hamilton product of quaternions wxyz, [..., 4]."""
    pw, pv, qw, qv = p[..., :1], p[..., 1:], q[..., :1], q[..., 1:]
    vector = pw * qv + qw * pv + torch.linalg.cross(pv, qv)
    return torch.cat([pw * qw - (pv * qv).sum(-1, keepdim=True), vector], -1)


def move(scene: DynamicGaussians, time: Tensor) -> tuple[Tensor, Tensor]:
    """Means [B,N,3] and quaternions [B,N,4] at `time` [B] seconds.

    θ = ω t + ½ α t²; μ = c + exp(θ)(μ₀ − c) + v t + ½ a t²; q = quat(θ) ⊗ q₀, with the group's c, v, a, ω, α.
    """
    t = time[:, None, None]
    theta = scene.angular_velocity * t + 0.5 * scene.angular_acceleration * t * t
    shift = scene.velocity * t + 0.5 * scene.acceleration * t * t
    # Only what moves is touched: most of a street stands still.
    batch, index = (scene.groups > 0).nonzero(as_tuple=True)
    row = batch * scene.centres.shape[1] + scene.groups[batch, index].long()
    centre, rotation, turn, shift = (
        # `gather` and not indexing: its backward pass adds up, where that of indexing sorts first.
        table.flatten(0, 1).gather(0, row[:, None].expand(-1, table.shape[-1]))
        for table in (scene.centres, rotation_matrices(theta).flatten(2), quaternions(theta), shift)
    )
    arm = scene.means[batch, index] - centre
    place = centre + (rotation.reshape(-1, 3, 3) * arm[:, None]).sum(-1) + shift
    quats = multiply(turn, scene.quats[batch, index])
    return scene.means.index_put((batch, index), place), scene.quats.index_put((batch, index), quats)
