"""Gaussians on the surfaces of meshes that move: flat ones, as far apart as they are wide, which keep their triangle.

Quaternions are wxyz. S meshes with the same triangles are done at once.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

WIDTH = 0.5  # standard deviation in the surface, of the square root of the area that a Gaussian has to itself
FLATNESS = 0.2  # standard deviation across the surface, of that in it
OPACITY = 0.95


class SurfacePoints(NamedTuple):
    """N points of each mesh: triangles [S,N] and weights of their corners [S,N,3]."""

    triangles: Tensor
    weights: Tensor


class SurfaceGaussians(NamedTuple):
    """N activated Gaussians at T times: means [S,T,N,3], quats [S,T,N,4], scales [S,T,N,3]; colors [S,N,3] RGB."""

    means: Tensor
    quats: Tensor
    scales: Tensor
    colors: Tensor


def sample_points(vertices: Tensor, faces: Tensor, uniform: Tensor) -> SurfacePoints:
    """Points spread evenly over the surface of meshes [S,V,3], by numbers [S,N,3] from 0 to 1."""
    areas = _areas(vertices[:, faces])
    edges = areas.cumsum(1) / areas.sum(1, keepdim=True)
    count = uniform.shape[1]
    # One point in each of N equal parts of the surface, in the order of the triangles.
    strata = (torch.arange(count, device=uniform.device) + uniform[..., 0]) / count
    triangles = torch.searchsorted(edges, strata.contiguous()).clamp_max(len(faces) - 1)
    root, second = uniform[..., 1].sqrt(), uniform[..., 2]
    return SurfacePoints(triangles, torch.stack([1 - root, root * (1 - second), root * second], -1))


def positions(points: SurfacePoints, faces: Tensor, values: Tensor) -> Tensor:
    """What vertices [S,T,V,C] have, at points: [S,T,N,C]."""
    return (_corners(points, faces, values) * points.weights[:, None, ..., None]).sum(-2)


def gaussians_at(points: SurfacePoints, faces: Tensor, vertices: Tensor, colors: Tensor) -> SurfaceGaussians:
    """Gaussians that stay where they are on their triangles, turn and grow with them.

    Args:
        vertices: [S,T,V,3]; the first time is the one at which the Gaussians are as wide as they are far apart.
        colors: [S,V,3].
    """
    corners = _corners(points, faces, vertices)
    means = (corners * points.weights[:, None, ..., None]).sum(-2)
    frames = _frames(corners)
    start = _quat_from_normal(frames[:, :1, :, :, 2])
    turns = _quat_from_rotation(frames @ frames[:, :1].mT)
    quats = _product(turns, start)
    quats = torch.where((quats * start).sum(-1, keepdim=True) < 0, -quats, quats)
    areas = _areas(corners)
    spacing = (_areas(vertices[:, 0, faces]).sum(1) / means.shape[2]).sqrt()[:, None, None]
    width = WIDTH * spacing * (areas / areas[:, :1].clamp_min(1e-12)).clamp(0.25, 4).sqrt()
    scales = width[..., None] * torch.tensor([1, 1, FLATNESS], dtype=width.dtype, device=width.device)
    return SurfaceGaussians(means, quats, scales, positions(points, faces, colors[:, None])[:, 0])


def _corners(points: SurfacePoints, faces: Tensor, values: Tensor) -> Tensor:
    """[S,T,N,3,C] values [S,T,V,C] at the corners of the points' triangles."""
    rows = faces[points.triangles].flatten(1)[:, None, :, None]
    found = values.gather(2, rows.expand(-1, values.shape[1], -1, values.shape[3]))
    return torch.unflatten(found, 2, (-1, 3))


def _areas(corners: Tensor) -> Tensor:
    """[...] of triangles [...,3,3]."""
    a, b, c = corners.unbind(-2)
    doubled: Tensor = torch.linalg.vector_norm(torch.linalg.cross(b - a, c - a), dim=-1)
    return 0.5 * doubled


def _frames(corners: Tensor) -> Tensor:
    """[...,3,3] rotations of triangles [...,3,3]; columns are an edge, what is across it, and the normal."""
    a, b, c = corners.unbind(-2)
    along = torch.nn.functional.normalize(b - a, dim=-1, eps=1e-12)
    normal = torch.nn.functional.normalize(torch.linalg.cross(b - a, c - a), dim=-1, eps=1e-12)
    return torch.stack([along, torch.linalg.cross(normal, along), normal], -1)


def _quat_from_normal(normal: Tensor) -> Tensor:
    """[...,4] the shortest turn from z to a direction [...,3]."""
    x, y, z = normal.unbind(-1)
    quat = torch.stack([1 + z, -y, x, torch.zeros_like(x)], -1)
    down = torch.tensor([0.0, 1.0, 0.0, 0.0], dtype=quat.dtype, device=quat.device)
    quat = torch.where(z[..., None] < -1 + 1e-5, down, quat)
    return torch.nn.functional.normalize(quat, dim=-1)


def _quat_from_rotation(rotation: Tensor) -> Tensor:
    """[...,4] of rotations [...,3,3], by the largest of the four ways to begin."""
    (a, b, c), (d, e, f), (g, h, i) = (row.unbind(-1) for row in rotation.unbind(-2))
    candidates = torch.stack(
        [
            torch.stack([1 + a + e + i, h - f, c - g, d - b], -1),
            torch.stack([h - f, 1 + a - e - i, b + d, c + g], -1),
            torch.stack([c - g, b + d, 1 - a + e - i, f + h], -1),
            torch.stack([d - b, c + g, f + h, 1 - a - e + i], -1),
        ],
        -2,
    )
    best = candidates.diagonal(dim1=-2, dim2=-1).argmax(-1)
    chosen = candidates.gather(-2, best[..., None, None].expand(*best.shape, 1, 4)).squeeze(-2)
    return torch.nn.functional.normalize(chosen, dim=-1)


def _product(first: Tensor, second: Tensor) -> Tensor:
    """Quaternions [...,4]: the turn `second`, then `first`."""
    w, x, y, z = first.unbind(-1)
    left = torch.stack(
        [
            torch.stack([w, -x, -y, -z], -1),
            torch.stack([x, w, -z, y], -1),
            torch.stack([y, z, w, -x], -1),
            torch.stack([z, -y, x, w], -1),
        ],
        -2,
    )
    return (left @ second[..., None]).squeeze(-1)
