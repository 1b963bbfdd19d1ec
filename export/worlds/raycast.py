"""Casts camera rays against boxes, cylinders and ellipsoids, for a batch of scenes at once.

Every primitive is a unit shape under an affine map: a box |x|,|y|,|z| ≤ 1, a cylinder of radius 1 around y with
|y| ≤ 1, a ball of radius 1. A ray is carried into the primitive's own frame, where the test is short and the ray
parameter is unchanged.

Work is proportional to what can be seen: the projected bounding box of each primitive selects 16×16 pixel tiles, and
only those (tile, primitive) pairs are tested.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

BOX, CYLINDER, BALL = 0, 1, 2
TILE = 16
NO_HIT = -1
_NEAR = 0.05
_EMPTY_KEY = torch.iinfo(torch.int64).max
_F = TypeVar("_F", bound=Callable[..., object])


def fused(function: _F) -> _F:
    """Compiles chains of small operations where there is a GPU; elsewhere compiling costs more than it saves."""
    return torch.compile(function, dynamic=True) if torch.cuda.is_available() else function  # type: ignore[return-value]


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


@dataclass(frozen=True)
class Hits:
    """What each ray meets first; rows are pixels in tile order, see `rays_of`.

    Attributes:
        index: [S, R] primitive slot, or NO_HIT.
        distance: [S, R] ray parameter, infinite for NO_HIT; directions have unit z in the camera, so it is depth.
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
    scenes = len(primitives.present)
    tiles = (width // TILE) * (height // TILE)
    scene, slot, tile = _candidates(primitives, intrinsics, c2w, width, height)
    keys = torch.full((scenes * tiles, TILE * TILE), _EMPTY_KEY, dtype=torch.int64, device=c2w.device)
    blocks = directions.reshape(scenes * tiles, TILE * TILE, 3)
    for shape, intersect in ((BOX, _box), (CYLINDER, _cylinder), (BALL, _ball)):
        chosen = (primitives.shape[slot] == shape).nonzero()[:, 0]
        s, p = scene[chosen], slot[chosen]
        row = s * tiles + tile[chosen]
        offset = origins[s] - primitives.centres[s, p]
        key = intersect(offset, blocks[row], primitives.axes[s, p], primitives.half[s, p], p)
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


def _to_local(axes: Tensor, half: Tensor, vectors: Tensor) -> Tensor:
    """Vectors [..., 3] in the frame of the unit shape; axes [..., 3, 3] hold the frame's unit vectors in columns."""
    return (axes * vectors[..., None]).sum(-2) / half


def _key(distance: Tensor, hit: Tensor, slot: Tensor) -> Tensor:
    """Positive floats compare like their bits: distance and slot fit one integer, the nearest hit is a minimum."""
    key = (distance.view(torch.int32).long() << 32) | slot[:, None]
    return torch.where(hit & (distance > _NEAR), key, _EMPTY_KEY)


@fused
def _box(offset: Tensor, directions: Tensor, axes: Tensor, half: Tensor, slot: Tensor) -> Tensor:
    """Keys [Q, 256] of rays from `offset` [Q, 3] along `directions` [Q, 256, 3] into |x|,|y|,|z| ≤ 1 (slab test)."""
    o = _to_local(axes, half, offset)[:, None]
    d = _to_local(axes[:, None], half[:, None], directions)
    inverse = 1.0 / torch.where(d.abs() < 1e-9, 1e-9, d)
    a, b = (-1 - o) * inverse, (1 - o) * inverse
    near = torch.minimum(a, b).amax(-1)
    far = torch.maximum(a, b).amin(-1)
    return _key(near, near < far, slot)


@fused
def _ball(offset: Tensor, directions: Tensor, axes: Tensor, half: Tensor, slot: Tensor) -> Tensor:
    """Keys of rays that enter the unit ball; arguments as for `_box`."""
    o = _to_local(axes, half, offset)[:, None]
    d = _to_local(axes[:, None], half[:, None], directions)
    a, b, c = (d * d).sum(-1), (o * d).sum(-1), (o * o).sum(-1) - 1
    root = b * b - a * c
    return _key((-b - root.clamp_min(0).sqrt()) / a, root > 0, slot)


@fused
def _cylinder(offset: Tensor, directions: Tensor, axes: Tensor, half: Tensor, slot: Tensor) -> Tensor:
    """Keys of rays into x² + z² ≤ 1, |y| ≤ 1: the later of entering tube and slab; arguments as for `_box`."""
    ox, oy, oz = _to_local(axes, half, offset)[:, None].unbind(-1)
    dx, dy, dz = _to_local(axes[:, None], half[:, None], directions).unbind(-1)
    a = (dx * dx + dz * dz).clamp_min(1e-12)
    b = ox * dx + oz * dz
    root = b * b - a * (ox * ox + oz * oz - 1)
    spread = root.clamp_min(0).sqrt()
    inverse = 1.0 / torch.where(dy.abs() < 1e-9, 1e-9, dy)
    low, high = (-1 - oy) * inverse, (1 - oy) * inverse
    near = torch.maximum((-b - spread) / a, torch.minimum(low, high))
    far = torch.minimum((-b + spread) / a, torch.maximum(low, high))
    return _key(near, (root > 0) & (near < far), slot)


def _surface(primitives: Primitives, index: Tensor, distance: Tensor, origins: Tensor, directions: Tensor) -> Hits:
    """Local point and normal at each hit; rows without a hit get those of slot 0."""
    scene = torch.arange(index.shape[0], device=index.device)[:, None]
    slot = index.clamp_min(0)
    travelled = torch.where(torch.isfinite(distance), distance, 0.0)[..., None]
    points = origins[:, None] + directions * travelled
    local, normal = _point_and_normal(
        points - primitives.centres[scene, slot],
        primitives.axes[scene, slot],
        primitives.half[scene, slot],
        primitives.shape[slot][..., None],
    )
    return Hits(index, distance, local, normal)


@fused
def _point_and_normal(offset: Tensor, axes: Tensor, half: Tensor, shape: Tensor) -> tuple[Tensor, Tensor]:
    """A point in the frame of the unit shape, and the outward normal in the street frame; all [S, R, ...]."""
    local = _to_local(axes, half, offset)
    x, y, z = local.unbind(-1)
    zero = torch.zeros_like(x)
    magnitude = local.abs()
    face = local.sign() * (magnitude >= magnitude.amax(-1, keepdim=True))
    on_cap = (y.abs() > torch.sqrt(x * x + z * z))[..., None]
    tube = torch.where(on_cap, torch.stack([zero, y.sign(), zero], -1), torch.stack([x, zero, z], -1))
    gradient = torch.where(shape == BOX, face, torch.where(shape == BALL, local, tube))
    normal = (axes * (gradient / half)[..., None, :]).sum(-1)
    return local, normal / normal.square().sum(-1, keepdim=True).sqrt().clamp_min(1e-12)
