"""Paints what a ray hit: materials with procedural textures, sun, haze and sky. Display-referred RGB in 0..1."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edge4d.export.worlds.raycast import fused

# What a surface is painted with. PLAIN takes the main colour; the ground is not a primitive, but a plane.
PLAIN, FACADE, CAR_BODY, CAR_CABIN, WHEEL, FOLIAGE, CLOTH, HEAD, PAVEMENT, GROUND = range(10)
_PRIMES = (73856093, 19349663, 83492791, 2654435)


@dataclass(frozen=True)
class Look:
    """Light and surface of S scenes.

    Attributes:
        sun: [S, 3] unit vector towards the sun, street frame (y down).
        light: [S, 2] ambient and direct strength.
        haze: [S] 1/metre.
        sky: [S, 2, 3] colour at the horizon and at the zenith.
        clouds: [S] cover, 0..1.
        asphalt, verge: [S, 3] colours of the road and of the ground beyond it.
        tone: [S, 3, 2] gain and offset per channel, the camera's white balance and exposure.
        road: [S, 4] half width, lanes per side, half width of the crossing street (0 = none), its z, metres.
        seed: [S] float, shifts every texture.
    """

    sun: Tensor
    light: Tensor
    haze: Tensor
    sky: Tensor
    clouds: Tensor
    asphalt: Tensor
    verge: Tensor
    tone: Tensor
    road: Tensor
    seed: Tensor


@dataclass(frozen=True)
class Standing:
    """Where the O objects of S scenes touch the ground.

    places [S, O, 3], yaw [S, O] radians, extent [S, O, 2] half width and half length, present [S, O].
    """

    places: Tensor
    yaw: Tensor
    extent: Tensor
    present: Tensor


@dataclass(frozen=True)
class Surfels:
    """Q surface points to paint: what the ray caster found, gathered per ray.

    Attributes:
        scene: [Q] int64, which of the S scenes.
        material: [Q] int64.
        colors: [Q, 2, 3]; traits: [Q, 4]; half: [Q, 3] metres.
        local: [Q, 3] in the unit shape; points: [Q, 3] street frame; normals: [Q, 3].
        footprint: [Q] metres that one pixel covers, to fade detail that would alias.
    """

    scene: Tensor
    material: Tensor
    colors: Tensor
    traits: Tensor
    half: Tensor
    local: Tensor
    points: Tensor
    normals: Tensor
    footprint: Tensor

    def select(self, rows: Tensor) -> Surfels:
        """Only these rows."""
        return Surfels(**{name: value[rows] for name, value in vars(self).items()})


@fused
def noise(points: Tensor, seed: Tensor) -> Tensor:
    """Smooth value noise in 0..1 with unit cells; the lattice is hashed in integers, so every device agrees.

    Args:
        points: [..., 3]; seed: broadcastable to [...].
    """
    cell = points.floor()
    f = points - cell
    f = f * f * (3 - 2 * f)
    base = cell.long()
    salt = (seed * 977).long()
    total = torch.zeros_like(points[..., 0])
    # Each axis of the hash is computed once for its two ends, not once for each of the eight corners.
    ends = [[(base[..., axis] + step) * _PRIMES[axis] for step in (0, 1)] for axis in range(3)]
    weights = [[1 - f[..., axis], f[..., axis]] for axis in range(3)]
    for dx in (0, 1):
        for dy in (0, 1):
            weight, mixed = weights[0][dx] * weights[1][dy], ends[0][dx] ^ ends[1][dy] ^ (salt * _PRIMES[3])
            for dz in (0, 1):
                total = total + weight * weights[2][dz] * _scrambled(mixed ^ ends[2][dz])
    return total


def _hash(x: Tensor, y: Tensor, z: Tensor, salt: Tensor) -> Tensor:
    """Lattice point to a number in 0..1."""
    return _scrambled((x * _PRIMES[0]) ^ (y * _PRIMES[1]) ^ (z * _PRIMES[2]) ^ (salt * _PRIMES[3]))


def _scrambled(h: Tensor) -> Tensor:
    """The last mixing of a hash, to a number in 0..1."""
    h = (h ^ (h >> 13)) * 1274126177 & 0x7FFFFFFF
    return ((h ^ (h >> 16)) & 0xFFFF).float() / 65535.0


def _detail(s: Surfels, points: Tensor, frequency: float, seed: Tensor) -> Tensor:
    """Noise around 0 in −0.5..0.5, faded where a cell is smaller than two pixels."""
    fade = (1.5 - s.footprint * frequency * 2).clamp(0, 1)
    return (noise(points * frequency, seed) - 0.5) * fade


def _band(x: Tensor, low: float | Tensor, high: float | Tensor, blur: Tensor) -> Tensor:
    """1 inside [low, high], 0 outside, with edges `blur` wide."""
    half = blur * 0.5 + 1e-4
    return ((x - low) / half * 0.5 + 0.5).clamp(0, 1) * ((high - x) / half * 0.5 + 0.5).clamp(0, 1)


def _mix(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    return a + (b - a) * weight[..., None]


def surface_color(s: Surfels, look: Look, standing: Standing) -> Tensor:
    """Colour of each surfel before light, [Q, 3]."""
    color = torch.zeros_like(s.points)
    for material, paint in _PAINTS.items():
        rows = (s.material == material).nonzero()[:, 0]
        if len(rows):
            color[rows] = paint(s.select(rows))
    rows = (s.material == GROUND).nonzero()[:, 0]
    ground = s.select(rows)
    color[rows] = _ground(ground, look) * contact_shadows(ground, standing)[:, None]
    return color


def _plain(s: Surfels) -> Tensor:
    return s.colors[:, 0] * (1 + 0.3 * _detail(s, s.local * s.half, 4.0, s.traits[:, 2]))[:, None]


def _foliage(s: Surfels) -> Tensor:
    seed = s.traits[:, 2]
    return s.colors[:, 0] * (1 + 1.1 * _detail(s, s.points, 2.5, seed) + 0.7 * _detail(s, s.points, 9.0, seed))[:, None]


def _cloth(s: Surfels) -> Tensor:
    return _mix(s.colors[:, 0], s.colors[:, 1], (s.local[:, 1] > -0.25).float())


def _head(s: Surfels) -> Tensor:
    """Hair in the main colour, a face in the accent colour on the side that looks ahead."""
    return _mix(s.colors[:, 0], s.colors[:, 1], ((s.local[:, 2] > 0.25) & (s.local[:, 1] > -0.55)).float())


def _pavement(s: Surfels) -> Tensor:
    grain = 0.35 * _detail(s, s.points, 1.3, s.traits[:, 2]) + 0.25 * _slabs(s)
    return s.colors[:, 0] * (1 + grain)[:, None]


def _slabs(s: Surfels) -> Tensor:
    """Dark joints between paving slabs of 0.9 m."""
    fade = (1.5 - s.footprint * 8).clamp(0, 1)
    joint = torch.maximum((s.points[..., 0] / 0.9 % 1.0 - 0.5).abs(), (s.points[..., 2] / 0.9 % 1.0 - 0.5).abs())
    return -(joint > 0.47).float() * fade


def _facade(s: Surfels) -> Tensor:
    """Plaster or brick with rows of windows; the ground floor is a shop in the accent colour.

    Traits: distance between windows (m), height of a floor (m), texture seed, brightness of the panes.
    """
    main, accent = s.colors.unbind(1)
    metres = s.local * s.half
    pitch, floor, seed, glass = s.traits.unbind(-1)
    along = torch.where(s.normals[..., 0].abs() > 0.5, metres[..., 2], metres[..., 0])
    height = s.half[..., 1] - metres[..., 1]  # above the ground
    column, row = along / pitch, height / floor
    blur_u, blur_v = s.footprint / pitch, s.footprint / floor
    window = _band(column % 1.0, 0.25, 0.75, blur_u) * _band(row % 1.0, 0.3, 0.8, blur_v)
    cell = _hash(column.floor().long(), row.floor().long(), torch.zeros_like(row).long(), (seed * 977).long())
    pane = torch.stack([0.25 + 0.35 * cell, 0.3 + 0.35 * cell, 0.36 + 0.38 * cell], -1) * (0.5 + glass)[..., None]
    wall = main * (1 + 0.35 * _detail(s, metres, 1.7, seed) + 0.25 * _detail(s, metres, 7.0, seed))[..., None]
    vertical = s.normals[..., 1].abs() < 0.5
    color = _mix(wall, pane, window * vertical * (row > 1.0))
    shop = _mix(accent, 0.35 * accent + 0.12, _band(column / 2 % 1.0, 0.12, 0.88, blur_u) * (height < 0.75 * floor))
    return _mix(color, shop, (vertical & (row <= 1.0)).float())


def _car_body(s: Surfels) -> Tensor:
    """Paint with dark sills, lamps front (+z) and rear, and an indicator on the side a turn goes to.

    Traits: brake 0/1, lit 0/1 (engine running), texture seed, indicator −1/0/+1.
    """
    main, metres = s.colors[:, 0], s.local * s.half
    brake, lit, _, indicator = s.traits.unbind(-1)
    side, up = metres[..., 0].abs() / s.half[..., 0], -s.local[..., 1]
    front, rear = s.local[..., 2] > 0.985, s.local[..., 2] < -0.985
    along = s.local[..., 2]
    flank = (s.local[..., 0].abs() > 0.985) & (along.abs() > 0.88)  # lamps reach round the corners
    band = (up > -0.1) & (up < 0.55)
    lamp = (band & (flank | ((side > 0.55) & (side < 0.97)))).float()
    white_side, red_side = front | (flank & (along > 0)), rear | (flank & (along < 0))
    white = torch.tensor([1.0, 0.98, 0.9], device=main.device) * (0.4 + 0.85 * lit)[..., None]
    red = torch.tensor([1.0, 0.1, 0.06], device=main.device) * (0.25 + 0.5 * lit + 0.7 * brake)[..., None]
    amber = torch.tensor([1.15, 0.6, 0.05], device=main.device).expand_as(main)
    color = _mix(main, 0.15 * main, (up < -0.55).float())
    color = _mix(color, white, lamp * white_side)
    color = _mix(color, red, lamp * red_side)
    high_brake = rear & (side < 0.3) & (up > 0.75)
    color = _mix(color, red, high_brake * brake)
    blinking = (front | rear) & (side > 0.8) & (up > -0.5) & (up < -0.1) & (metres[..., 0].sign() == indicator)
    plate = (front | rear) & (side < 0.28) & (up > -0.45) & (up < -0.15)
    color = _mix(color, torch.full_like(main, 0.9), plate.float())
    return _mix(color, amber, blinking.float())


def _car_cabin(s: Surfels) -> Tensor:
    """Glass between pillars under a painted roof."""
    main = s.colors[:, 0]
    up = -s.local[..., 1]
    along = torch.where(s.normals[..., 0].abs() > 0.5, s.local[..., 2], s.local[..., 0])
    glass = (up > -0.8) & (up < 0.65) & (along.abs() < 0.9) & (along.abs() > 0.04) & (s.normals[..., 1].abs() < 0.5)
    pane = torch.tensor([0.13, 0.16, 0.19], device=main.device) * (1.2 + 0.8 * up)[..., None]
    return _mix(main, pane, glass.float())


def _wheel(s: Surfels) -> Tensor:
    """Tyre and rim with five spokes that blur with speed. Traits: phase, speed (m/s)."""
    phase, speed = s.traits[..., 0], s.traits[..., 1]
    radius = torch.hypot(s.local[..., 0], s.local[..., 2])
    spoke = torch.cos(5 * torch.atan2(s.local[..., 2], s.local[..., 0]) + phase)
    contrast = torch.exp(-speed / 5) * (1.5 - s.footprint * 12).clamp(0, 1)
    rim = 0.42 + 0.33 * contrast * spoke.sign()
    grey = torch.where((radius < 0.68) & (s.local[..., 1].abs() > 0.98), rim, torch.full_like(rim, 0.07))
    return grey[..., None].expand(*grey.shape, 3)


def _ground(s: Surfels, look: Look) -> Tensor:
    """Asphalt with lane markings, the crossing street with a zebra, and verges."""
    x, z = s.points[:, 0], s.points[:, 2]
    half, lanes, cross_half, cross_z = look.road[s.scene].unbind(-1)
    seed, blur = look.seed[s.scene], s.footprint
    grain = 0.35 * _detail(s, s.points, 0.7, seed) + 0.4 * _detail(s, s.points, 6.0, seed)
    asphalt = look.asphalt[s.scene] * (1 + grain)[:, None]
    grain = 0.5 * _detail(s, s.points, 1.1, seed) + 0.5 * _detail(s, s.points, 5.0, seed)
    verge = look.verge[s.scene] * (1 + grain)[:, None]
    crossing = (z - cross_z).abs() < cross_half
    dash = _band(z / 6.0 % 1.0, 0.0, 0.5, blur * 3)
    centre = _band(x.abs(), 0.05, 0.17, blur)
    lane = _band((x.abs() - 3.4).abs(), 0.0, 0.07, blur) * (lanes > 1.5) * dash
    edge = _band((x.abs() - (half - 2.3)).abs(), 0.0, 0.06, blur)
    stripes = _band(x % 1.0, 0.0, 0.5, blur * 1.5)
    zebra = _band((z - (cross_z - cross_half - 1.9)).abs(), 0.0, 1.2, blur) * stripes * (cross_half > 0)
    marks = torch.maximum(torch.maximum(torch.maximum(centre, lane), edge) * ~crossing, zebra) * (x.abs() < half)
    worn = 0.75 + 0.5 * _detail(s, s.points, 3.0, seed)
    painted = _mix(asphalt, torch.full_like(asphalt, 0.82), (marks * worn).clamp(0, 1))
    return torch.where(((x.abs() < half) | crossing)[:, None], painted, verge)


def lit(color: Tensor, s: Surfels, look: Look) -> Tensor:
    """Ambient light from the sky and Lambert's law for the sun, [Q, 3]."""
    facing = (s.normals * look.sun[s.scene]).sum(-1).clamp_min(0)
    from_above = 0.8 - 0.2 * s.normals[..., 1]
    ambient, direct = look.light[s.scene].unbind(-1)
    return color * (ambient * from_above + direct * facing)[..., None]


@fused
def sky_color(directions: Tensor, look: Look) -> Tensor:
    """Gradient from horizon to zenith with clouds, [S, R, 3], for unit directions in the street frame."""
    up = (-directions[..., 1]).clamp_min(0)
    color = _mix(look.sky[:, None, 0].expand_as(directions), look.sky[:, None, 1].expand_as(directions), up.sqrt())
    plane = directions / (up + 0.15)[..., None]
    seed = look.seed[:, None].expand_as(up)
    cover = 0.65 * noise(plane * 1.2, seed) + 0.35 * noise(plane * 3.1, seed)
    weight = ((cover - 1 + look.clouds[:, None]) * 4).clamp(0, 1) * (up * 6).clamp(0, 1)
    return _mix(color, torch.full_like(color, 0.93), weight * 0.8)


def toned(color: Tensor, distance: Tensor, look: Look) -> Tensor:
    """Haze towards the horizon colour (none where `distance` is infinite), then the camera's gain and offset."""
    veil = torch.where(torch.isfinite(distance), 1 - torch.exp(-look.haze[:, None] * distance), 0.0)
    color = _mix(color, look.sky[:, None, 0].expand_as(color), veil)
    gain, offset = look.tone.unbind(-1)
    return (color * gain[:, None] + offset[:, None]).clamp(0, 1)


def contact_shadows(s: Surfels, standing: Standing) -> Tensor:
    """How much light reaches ground points under and beside standing objects, [Q], 1 = all."""
    # Slots that are empty in every scene cast none; on a GPU the loop over slots is compiled, and its length stays.
    used = standing.present.any(0) | standing.present.is_cuda
    flat = torch.stack([torch.cos(standing.yaw), torch.sin(standing.yaw)], -1)[:, used]
    size = standing.extent[:, used] * torch.tensor([1.25, 1.12], device=flat.device)
    return _shadows(s.points, s.scene, standing.places[:, used], flat, size, standing.present[:, used].float())


@fused
def _shadows(points: Tensor, scene: Tensor, places: Tensor, turn: Tensor, size: Tensor, present: Tensor) -> Tensor:
    """points [Q, 3], scene [Q]; places [S, O, 3], cosine and sine of the heading and size [S, O, 2], present [S, O]."""
    light = torch.ones_like(points[:, 0])
    for o in range(places.shape[1]):
        x, z = points[:, 0] - places[scene, o, 0], points[:, 2] - places[scene, o, 2]
        cos, sin = turn[scene, o, 0], turn[scene, o, 1]
        across = (cos * x - sin * z) / size[scene, o, 0]
        along = (sin * x + cos * z) / size[scene, o, 1]
        inside = 1 - (across.square().square() + along.square().square())
        light = torch.minimum(light, 1 - 0.7 * (inside * 2.5).clamp(0, 1) * present[scene, o])
    return light


_PAINTS = {
    PLAIN: _plain,
    FACADE: _facade,
    CAR_BODY: _car_body,
    CAR_CABIN: _car_cabin,
    WHEEL: _wheel,
    FOLIAGE: _foliage,
    CLOTH: _cloth,
    HEAD: _head,
    PAVEMENT: _pavement,
}
