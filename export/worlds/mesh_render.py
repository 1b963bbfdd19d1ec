"""Draws coloured triangle meshes with a z-buffer, many pictures at once, by PyTorch alone.

Every pixel that a triangle's bounding box covers is a fragment. All fragments are made at once; the nearest one of each
pixel is the smallest of 64-bit keys (depth, triangle), which no order of execution changes: pictures are the same bit
for bit each time. Small triangles, of which meshes here consist, have few fragments that miss.
"""

from __future__ import annotations

import torch
from torch import Tensor

NEAR = 0.01  # metres along z; triangles that reach nearer are left out
_TOGETHER = 1 << 22  # samples of pictures that are drawn at once: some 2 GB


def render(
    vertices: Tensor, faces: Tensor, colors: Tensor, viewmats: Tensor, K: Tensor, size: int, *, samples: int = 2
) -> Tensor:
    """Pictures [B,size,size,4] of meshes whose triangles are the same: RGB times alpha, and alpha, 0 to 1.

    Triangles that are seen from behind are left out, so meshes must be closed. Colours are not lit.

    Args:
        vertices: [B,V,3].
        faces: [F,3] int64, anticlockwise as seen from outside.
        colors: [B,V,3] RGB.
        viewmats: [B,4,4] world to camera (x right, y down, z forward).
        K: [3,3] or [B,3,3] pixels.
        samples: a pixel is the mean of samples × samples points.
    """
    fine = size * samples
    points = vertices @ viewmats[:, :3, :3].mT + viewmats[:, None, :3, 3]
    scale = torch.diag(torch.tensor([samples, samples, 1.0])).to(K)
    pixels = points @ (scale @ K).mT
    z = points[..., 2]
    corners = torch.cat([pixels[..., :2] / z.clamp_min(NEAR)[..., None], z[..., None]], -1)
    count = max(1, _TOGETHER // (fine * fine))
    parts = [_draw(a, faces, b, fine) for a, b in zip(torch.split(corners, count), torch.split(colors, count))]
    return torch.cat(parts).reshape(-1, size, samples, size, samples, 4).mean((2, 4))


def _draw(points: Tensor, faces: Tensor, colors: Tensor, size: int) -> Tensor:
    """points [B,V,3] x, y in pixels and depth → [B,size,size,4]."""
    B, F = len(points), len(faces)
    corners = points[:, faces].flatten(0, 1)  # [B·F,3,3]
    triangle, x, y = _fragments(corners, size)
    weights, depth, inside = _weights(corners[triangle], x, y)
    triangle, weights, depth = triangle[inside], weights[inside], depth[inside]
    pixel = (triangle // F) * size * size + (y * size + x)[inside]
    # Positive floats have the order of their bits.
    key = (depth.view(torch.int32).long() << 32) | (triangle % F)
    empty = torch.iinfo(torch.int64).max
    nearest = torch.full((B * size * size,), empty, dtype=torch.int64, device=points.device)
    nearest.scatter_reduce_(0, pixel, key, "amin")
    seen = nearest[pixel] == key
    picture, face = triangle[seen] // F, triangle[seen] % F
    shade = (weights[seen][..., None] * colors[picture[:, None], faces[face]]).sum(1)
    image = torch.zeros(B * size * size, 4, dtype=colors.dtype, device=points.device)
    image[pixel[seen]] = torch.cat([shade, torch.ones_like(shade[:, :1])], 1)
    return image.reshape(B, size, size, 4)


def _fragments(corners: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Triangle and pixel of each fragment of corners [n,3,3]; those seen from behind, or too near, have none."""
    plane, depth = corners[..., :2], corners[..., 2]
    a, b, c = plane.unbind(1)
    area = (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0])
    facing = (area < 0) & (depth > NEAR).all(1)  # y points down
    first = (plane.amin(1) - 0.5).ceil().clamp(0, size).long()
    last = (plane.amax(1) - 0.5).floor().clamp(-1, size - 1).long()
    extent = (last - first + 1).clamp_min(0) * facing[:, None]
    counts = extent.prod(1)
    triangle = torch.arange(len(corners), device=corners.device).repeat_interleave(counts)
    number = torch.arange(len(triangle), device=corners.device) - (counts.cumsum(0) - counts)[triangle]
    width = extent[triangle, 0]
    return triangle, first[triangle, 0] + number % width, first[triangle, 1] + number // width


def _weights(corners: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of fragments at pixels x, y [n]: weights of the corners [n,3] in space, depth [n], and whether inside [n]."""
    centre = torch.stack([x, y], -1) + 0.5
    edges = corners[..., :2] - centre[:, None]
    following = edges.roll(-1, 1)
    # Twice the area across from each corner.
    across = (edges[..., 0] * following[..., 1] - edges[..., 1] * following[..., 0]).roll(-1, 1)
    area = across.sum(1)
    flat = across / area[:, None]
    over_z = flat / corners[..., 2]
    depth = 1 / over_z.sum(1)
    return over_z * depth[:, None], depth, (flat >= 0).all(1)
