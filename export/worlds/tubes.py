"""Tubes: closed surfaces around curves, of which animals are made. However a curve bends, the triangles are the same.

A curve runs through K joints (a Catmull-Rom spline). Around it lie rings of points, ellipses whose two half axes also
run through K values; at both ends they shrink to a point, as half a circle does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Lattice:
    """Which points of a tube there are, and its triangles.

    Attributes:
        joints: K, at least 2.
        rings: R, the two end points included.
        sides: points of a ring.
        caps: share of the length at either end that is rounded, up to 0.5, which makes a ball of a short tube.
    """

    joints: int
    rings: int
    sides: int
    caps: tuple[float, float] = (0.2, 0.2)

    @property
    def points(self) -> int:
        """V of a tube: its rings, and a point at either end."""
        return (self.rings - 2) * self.sides + 2

    @cached_property
    def along(self) -> Tensor:
        """[R] place of each ring, 0 to 1; rings are denser where ends are rounded."""
        even = torch.linspace(0, 1, self.rings, dtype=torch.float64)
        dense = 0.5 - 0.5 * torch.cos(math.pi * even)
        return torch.lerp(even, dense, 2.0 * max(self.caps))

    @cached_property
    def rounding(self) -> Tensor:
        """[R] factor of a ring's half axes."""
        factor = torch.ones_like(self.along)
        for cap, distance in zip(self.caps, (self.along, 1 - self.along)):
            if cap > 0:
                factor = torch.minimum(factor, (1 - (1 - distance / cap).clamp_min(0).square()).clamp_min(0).sqrt())
        return factor.float()

    @cached_property
    def weights(self) -> tuple[Tensor, Tensor]:
        """[R,K] each: of the joints at the rings, and of their derivative along the curve."""
        place = self.along * (self.joints - 1)
        start = place.floor().clamp(0, self.joints - 2)
        t = (place - start)[:, None]
        powers = torch.cat([torch.ones_like(t), t, t * t, t**3], 1)
        slopes = torch.cat([torch.zeros_like(t), torch.ones_like(t), 2 * t, 3 * t * t], 1)
        spline = 0.5 * torch.tensor([[0, 2, 0, 0], [-1, 0, 1, 0], [2, -5, 4, -1], [-1, 3, -3, 1]], dtype=torch.float64)
        # Beyond either end lies a joint as far as the last but one, on the other side.
        neighbours = torch.zeros(self.rings, 4, self.joints, dtype=torch.float64)
        for ring, first in enumerate(start.long().tolist()):
            for column, joint in enumerate(range(first - 1, first + 3)):
                inside = min(max(joint, 0), self.joints - 1)
                beyond = joint - inside
                neighbours[ring, column, inside] += 1 + abs(beyond)
                if beyond:
                    neighbours[ring, column, inside - beyond] -= 1
        values, derivatives = (((p @ spline)[:, None] @ neighbours)[:, 0].float() for p in (powers, slopes))
        return values, derivatives

    @cached_property
    def faces(self) -> Tensor:
        """[F,3] int64, anticlockwise as seen from outside; the first and the last point are the ends."""
        ring = torch.arange(self.sides)
        after = (ring + 1) % self.sides
        last = self.points - 1
        bottom = 1 + (self.rings - 3) * self.sides
        triangles = [torch.stack([torch.zeros_like(ring), 1 + after, 1 + ring], 1)]
        for row in range(self.rings - 3):
            low, high = 1 + row * self.sides, 1 + (row + 1) * self.sides
            triangles.append(torch.stack([low + ring, low + after, high + after], 1))
            triangles.append(torch.stack([low + ring, high + after, high + ring], 1))
        triangles.append(torch.stack([torch.full_like(ring, last), bottom + ring, bottom + after], 1))
        return torch.cat(triangles)

    @cached_property
    def places(self) -> Tensor:
        """[V] place of each point along the tube, 0 to 1."""
        inner = self.along[1:-1].float().repeat_interleave(self.sides)
        return torch.cat([torch.zeros(1), inner, torch.ones(1)])


def surface(lattice: Lattice, joints: Tensor, half_axes: Tensor, side: Tensor) -> Tensor:
    """Points of tubes [...,V,3].

    Args:
        joints: [...,K,3].
        half_axes: [...,K,2] along `side` and across, or what broadcasts with that.
        side: [...,3] a direction that the curve does not take; the first half axis lies along it, made perpendicular.
    """
    centres, _, right, up, axes = rings_of(lattice, joints, half_axes, side)
    angle = torch.arange(lattice.sides, device=joints.device) * (math.tau / lattice.sides)
    circle = torch.stack([angle.cos(), angle.sin()], -1)  # [sides,2]
    across = torch.stack([right * axes[..., :1], up * axes[..., 1:]], -2)  # [...,R,2,3]
    rings = centres[..., None, :] + circle @ across  # [...,R,sides,3]
    inner = rings[..., 1:-1, :, :].flatten(-3, -2)
    return torch.cat([centres[..., :1, :], inner, centres[..., -1:, :]], -2)


def rings_of(
    lattice: Lattice, joints: Tensor, half_axes: Tensor, side: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Of each ring: centre, direction of the curve, and of the half axes [...,R,3], and the half axes [...,R,2]."""
    values, derivatives = (weights.to(joints) for weights in lattice.weights)
    centres = values @ joints
    ahead = torch.nn.functional.normalize(derivatives @ joints, dim=-1)
    side = side[..., None, :]
    right = torch.nn.functional.normalize(side - (side * ahead).sum(-1, keepdim=True) * ahead, dim=-1)
    up = torch.linalg.cross(ahead, right)
    axes = (values @ half_axes).clamp_min(0) * lattice.rounding.to(joints)[:, None]
    return centres, ahead, right, up, axes
