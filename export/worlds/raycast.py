"""Casts camera rays against boxes, cylinders and ellipsoids, for a batch of scenes at once.

Every primitive is a unit shape under an affine map: a box |x|,|y|,|z| ≤ 1, a cylinder of radius 1 around y with |y| ≤ 1, a ball of
radius 1. A ray is carried into the primitive's own frame, where the test is short and the ray parameter is unchanged.

Work is proportional to what can be seen: the projected bounding box of each primitive selects 16×16 pixel tiles, and only those
(tile, primitive) pairs are tested.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

BOX, CYLINDER, BALL = 0, 1, 2
TILE = 16
NO_HIT = -1
_NEAR = 0.05
_EMPTY_KEY = torch.iinfo(torch.int64).max


@dataclass(frozen=True)
class Primitives:
    """Affine unit shapes of S scenes with P slots each; a slot has the same shape, material and owner in every scene.

    Attributes:
        shape: [P] int64, BOX, CYLINDER or BALL.
        material: [P] int64, what `shading` paints it with.
        owner: [P] int64, index of the object it moves with, -1 for what stands still.
        present: [S, P] bool.
        centres: [S, P, 3] metres, street frame (x right, y down, z along the street).
        axes: [S, P, 3, 3], columns are the unit axes of the primitive's frame.
        half: [S, P, 3] half extents along those axes, metres.
        colors: [S, P, 2, 3] main and accent colour.
        traits: [S, P, 4] numbers that the material reads.
    """

    shape: Tensor
    material: Tensor
    owner: Tensor
    present: Tensor
    centres: Tensor
    axes: Tensor
    half: Tensor
    colors: Tensor
    traits: Tensor

    def to(self, device: torch.device) -> Primitives:
        """The same primitives on `device`."""
        return replace(self, **{name: value.to(device) for name, value in vars(self).items()})


@dataclass(frozen=True)
class Hits:
    """What each ray meets first; rows are pixels in tile order, see `rays_of`.

    Attributes:
        index: [S, R] primitive slot, or NO_HIT.
        distance: [S, R] ray parameter; with directions of unit z in the camera frame this is the depth along z. Infinite for NO_HIT.
        local: [S, R, 3] the point in the frame of the primitive, inside the unit shape.
        normal: [S, R, 3] outward unit normal, street frame.
    """

    index: Tensor
    distance: Tensor
    local: Tensor
    normal: Tensor


def rays_of(intrinsics: Tensor, c2w: Tensor, width: int, height: int) -> tuple[Tensor, Tensor]:
    """Rays through the pixel centres of S cameras.

    Args:
        intrinsics: [S, 4] fx, fy, cx, cy in pixels.
        c2w: [S, 4, 4] camera to street.
        width, height: multiples of TILE.

    Returns:
        origins [S, 3] and directions [S, R, 3] with unit z in the camera frame, so that the ray parameter is the depth.
        R = height·width, tile by tile, row-major inside a tile; `image_of` turns such rows into an image.
    """
    v, u = torch.meshgrid(
        torch.arange(height, device=c2w.device) + 0.5, torch.arange(width, device=c2w.device) + 0.5, indexing="ij"
    )
    pixels = _tiled(torch.stack([u, v], -1)[None])[0]  # [R, 2]
    fx, fy, cx, cy = intrinsics.unbind(-1)
    x = (pixels[None, :, 0] - cx[:, None]) / fx[:, None]
    y = (pixels[None, :, 1] - cy[:, None]) / fy[:, None]
    directions = torch.stack([x, y, torch.ones_like(x)], -1) @ c2w[:, :3, :3].transpose(1, 2)
    return c2w[:, :3, 3], directions


def _tiled(image: Tensor) -> Tensor:
    """[S, H, W, C] to [S, R, C], tile by tile."""
    s, h, w, c = image.shape
    return image.reshape(s, h // TILE, TILE, w // TILE, TILE, c).transpose(2, 3).reshape(s, h * w, c)


def image_of(rows: Tensor, width: int, height: int) -> Tensor:
    """[S, R, C] in tile order to [S, H, W, C]."""
    s, _, c = rows.shape
    tiles = rows.reshape(s, height // TILE, width // TILE, TILE, TILE, c)
    return tiles.transpose(2, 3).reshape(s, height, width, c)


def cast(
    primitives: Primitives,
    origins: Tensor,
    directions: Tensor,
    intrinsics: Tensor,
    c2w: Tensor,
    width: int,
    height: int,
) -> Hits:
    """The nearest hit of each ray.

    Args:
        primitives: of S scenes.
        origins, directions: from `rays_of`.
        intrinsics, c2w: the cameras, [S, 4] and [S, 4, 4].
        width, height: multiples of TILE.
    """
    scenes, slots = primitives.present.shape
    tiles = (width // TILE) * (height // TILE)
    scene, slot, tile = _candidates(primitives, intrinsics, c2w, width, height)
    keys = torch.full((scenes * tiles, TILE * TILE), _EMPTY_KEY, dtype=torch.int64, device=c2w.device)
    blocks = directions.reshape(scenes * tiles, TILE * TILE, 3)
    for shape, intersect in ((BOX, _box), (CYLINDER, _cylinder), (BALL, _ball)):
        chosen = primitives.shape[slot] == shape
        s, p, row = scene[chosen], slot[chosen], (scene * tiles + tile)[chosen]
        to_local = primitives.axes[s, p].transpose(1, 2) / primitives.half[s, p][:, :, None]
        o = (to_local @ (origins[s] - primitives.centres[s, p])[:, :, None]).squeeze(-1)
        d = blocks[row] @ to_local.transpose(1, 2)
        distance = intersect(o[:, None, :], d)
        # Positive floats compare like their bits, so distance and slot fit one key and the nearest hit is a minimum.
        key = (distance.view(torch.int32).long() << 32) | p[:, None]
        key = torch.where(torch.isfinite(distance), key, _EMPTY_KEY)
        keys.scatter_reduce_(0, row[:, None].expand_as(key), key, "amin")
    keys = keys.reshape(scenes, tiles * TILE * TILE)
    index = torch.where(keys == _EMPTY_KEY, NO_HIT, keys & 0xFFFFFFFF)
    distance = (keys >> 32).to(torch.int32).view(torch.float32)
    distance = torch.where(index == NO_HIT, torch.inf, distance)
    return _surface(primitives, index, distance, origins, directions)


def _candidates(
    primitives: Primitives, intrinsics: Tensor, c2w: Tensor, width: int, height: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Scene, slot and tile of every pair whose tile meets the primitive's projected bounding box."""
    signs = torch.tensor([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], device=c2w.device).float()
    corners = primitives.centres[:, :, None] + torch.einsum(
        "spij,spj,kj->spki", primitives.axes, primitives.half, signs
    )
    camera = torch.einsum("sij,spkj->spki", c2w[:, :3, :3].transpose(1, 2), corners - c2w[:, None, None, :3, 3])
    z = camera[..., 2]
    fx, fy, cx, cy = (value[:, None, None] for value in intrinsics.unbind(-1))
    u = camera[..., 0] / z.clamp_min(_NEAR) * fx + cx
    v = camera[..., 1] / z.clamp_min(_NEAR) * fy + cy
    crossing = (z < _NEAR).any(-1)  # its projection is unbounded: every tile is a candidate
    visible = primitives.present & (z > _NEAR).any(-1)

    def touched(low: Tensor, high: Tensor, size: int) -> Tensor:
        first = torch.arange(0, size, TILE, device=low.device)
        inside = (high[..., None] >= first) & (low[..., None] <= first + TILE)
        return inside | crossing[..., None]

    columns = touched(u.amin(-1), u.amax(-1), width) & visible[..., None]
    rows = touched(v.amin(-1), v.amax(-1), height)
    scene, slot, row, column = (rows[..., :, None] & columns[..., None, :]).nonzero(as_tuple=True)
    return scene, slot, row * (width // TILE) + column


def _box(o: Tensor, d: Tensor) -> Tensor:
    """Ray parameter where o + t·d enters |x|,|y|,|z| ≤ 1 (slab test); infinite when it does not."""
    inverse = 1.0 / torch.where(d.abs() < 1e-9, 1e-9, d)
    a, b = (-1 - o) * inverse, (1 - o) * inverse
    near = torch.minimum(a, b).amax(-1)
    far = torch.maximum(a, b).amin(-1)
    return torch.where((near < far) & (near > _NEAR), near, torch.inf)


def _ball(o: Tensor, d: Tensor) -> Tensor:
    """Ray parameter where o + t·d enters the unit ball."""
    a, b, c = (d * d).sum(-1), (o * d).sum(-1), (o * o).sum(-1) - 1
    root = b * b - a * c
    near = (-b - root.clamp_min(0).sqrt()) / a
    return torch.where((root > 0) & (near > _NEAR), near, torch.inf)


def _cylinder(o: Tensor, d: Tensor) -> Tensor:
    """Ray parameter where o + t·d enters x² + z² ≤ 1, |y| ≤ 1: the later of entering the tube and entering the slab."""
    ox, oy, oz = o.unbind(-1)
    dx, dy, dz = d.unbind(-1)
    a = (dx * dx + dz * dz).clamp_min(1e-12)
    b = ox * dx + oz * dz
    root = b * b - a * (ox * ox + oz * oz - 1)
    half = root.clamp_min(0).sqrt()
    inverse = 1.0 / torch.where(dy.abs() < 1e-9, 1e-9, dy)
    low, high = (-1 - oy) * inverse, (1 - oy) * inverse
    near = torch.maximum((-b - half) / a, torch.minimum(low, high))
    far = torch.minimum((-b + half) / a, torch.maximum(low, high))
    return torch.where((root > 0) & (near < far) & (near > _NEAR), near, torch.inf)


def _surface(primitives: Primitives, index: Tensor, distance: Tensor, origins: Tensor, directions: Tensor) -> Hits:
    """Local point and normal at each hit; rows without a hit get zeros."""
    scene = torch.arange(index.shape[0], device=index.device)[:, None]
    slot = index.clamp_min(0)
    axes, half = primitives.axes[scene, slot], primitives.half[scene, slot]
    travelled = torch.where(torch.isfinite(distance), distance, 0.0)[..., None]
    points = origins[:, None] + directions * travelled
    local = (axes.transpose(-1, -2) @ (points - primitives.centres[scene, slot])[..., None]).squeeze(-1) / half
    shape = primitives.shape[slot][..., None]
    radial = local * torch.tensor([1.0, 0.0, 1.0], device=local.device)
    magnitude = local.abs()
    face = local.sign() * (magnitude >= magnitude.amax(-1, keepdim=True))
    cap = torch.stack([torch.zeros_like(local[..., 1]), local[..., 1].sign(), torch.zeros_like(local[..., 1])], -1)
    on_cap = magnitude[..., 1:2] > radial.norm(dim=-1, keepdim=True)
    gradient = torch.where(shape == BOX, face, torch.where(shape == BALL, local, torch.where(on_cap, cap, radial)))
    normal = torch.nn.functional.normalize((axes @ (gradient / half)[..., None]).squeeze(-1), dim=-1)
    return Hits(index, distance, local, normal)
