"""Procedural streets with exact colour, depth, object ids and 3-D motion for any camera and time.

A street has a road with lanes and markings, pavements, buildings, trees and posts, often a crossing street; parked and
moving cars, vans and lorries, pedestrians who stand, walk or run. Speeds vary. What moves shows by cues a person would
use, see `CUES`.

Street frame: x right, y down (ground at y = 0), z along the street, metres. Time in seconds, 0 at the photograph.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from edge4d.export.worlds import raycast, shading
from edge4d.export.worlds.draw import EVALUATION, TRAINING, Draw, scene_key
from edge4d.export.worlds.raycast import BALL, BOX, CYLINDER, Primitives
from edge4d.export.worlds.rotations import about_x, about_y, about_z
from edge4d.export.worlds.shading import Look

CUES = (
    "lane: parked cars stand at the kerb, driving cars keep to the lanes, right-hand traffic",
    "road: wide streets with two lanes a side are faster than narrow ones",
    "lamps: white ahead, red behind, round the corners; they shine when the engine runs",
    "brake lamps: bright while a car slows down or waits",
    "indicator and steered front wheels: the side a turning car turns to",
    "wheels: spokes blur with speed",
    "posture: stride, swing of the arms and lean grow with a pedestrian's speed; face and shoes show the direction",
)
SKY_DEPTH = 150.0
_PARKED, _DRIVING, _CROSSING, _WALKERS = 12, 8, 3, 9
_CARS = _PARKED + _DRIVING + _CROSSING
OBJECTS = _CARS + _WALKERS
_UP = torch.tensor([0.0, -1.0, 0.0])


@dataclass(frozen=True)
class Objects:
    """The O objects of S scenes that could move; slots that are empty are not present.

    Attributes:
        present, moving: [S, O] bool.
        centres: [S, O, 3] metres at t = 0, the point that rotations turn about.
        velocity, acceleration: [S, O, 3] m/s and m/s².
        yaw: [S, O] heading, radians; yaw_rate: [S, O] rad/s about the downward y axis.
        extent: [S, O, 2] half width and half length on the ground, metres.
    """

    present: Tensor
    moving: Tensor
    centres: Tensor
    velocity: Tensor
    acceleration: Tensor
    yaw: Tensor
    yaw_rate: Tensor
    extent: Tensor

    def at(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """Displacement [S, O, 3] and turn [S, O] (radians) after `time` [S] seconds: v t + ½ a t² and ω t."""
        t = time[:, None]
        return self.velocity * t[..., None] + 0.5 * self.acceleration * (t * t)[..., None], self.yaw_rate * t


@dataclass(frozen=True)
class Street:
    """S scenes: still and movable primitives at t = 0, objects, look, and the camera of the photograph.

    Attributes:
        fov: [S] horizontal field of view, radians.
        camera: [S, 4, 4] camera of the photograph, camera to street.
    """

    primitives: Primitives
    objects: Objects
    look: Look
    fov: Tensor
    camera: Tensor

    def to(self, device: torch.device) -> Street:
        """The same scenes on `device`."""
        return Street(
            _moved_to(self.primitives, device),
            _moved_to(self.objects, device),
            _moved_to(self.look, device),
            self.fov.to(device),
            self.camera.to(device),
        )

    def repeated(self, index: int, count: int) -> Street:
        """One of the scenes, `count` times."""
        rows = torch.full((count,), index)
        return Street(
            _rows(self.primitives, rows),
            _rows(self.objects, rows),
            _rows(self.look, rows),
            self.fov[rows],
            self.camera[rows],
        )

    def intrinsics(self, width: int, height: int) -> Tensor:
        """[S, 4] fx, fy, cx, cy in pixels of a width × height image."""
        fx = 0.5 * width / torch.tan(0.5 * self.fov)
        centre = torch.ones_like(fx)
        return torch.stack([fx, fx, centre * width / 2, centre * height / 2], -1)


@dataclass(frozen=True)
class View:
    """What cameras see, [S, H, W, ...].

    Attributes:
        image: [S, H, W, 3] 0..1.
        depth: [S, H, W] metres along z, infinite for sky.
        objects: [S, H, W] int64, 1 + object slot, 0 for everything else.
    """

    image: Tensor
    depth: Tensor
    objects: Tensor


def training_streets(seed: int, step: int, count: int) -> Street:
    """`count` streets that only training sees."""
    return _sample([scene_key(TRAINING, seed, step * count + i) for i in range(count)])


def evaluation_streets(seed: int, count: int) -> Street:
    """`count` streets that no training sees; the first ones do not depend on `count`."""
    return _sample([scene_key(EVALUATION, seed, i) for i in range(count)])


_PER_SLOT = ("shape", "material", "owner")  # the same in every scene
_Part = TypeVar("_Part", Primitives, Objects, Look)


def _moved_to(part: _Part, device: torch.device) -> _Part:
    """The same part on `device`."""
    moved: _Part = replace(part, **{name: value.to(device) for name, value in vars(part).items()})
    return moved


def _rows(part: _Part, rows: Tensor) -> _Part:
    """These scenes of a part of a street."""
    chosen: _Part = replace(part, **{name: value[rows] for name, value in vars(part).items() if name not in _PER_SLOT})
    return chosen


class _Parts:
    """Collects primitives slot by slot and joins them."""

    def __init__(self, scenes: int) -> None:
        self.scenes = scenes
        self.columns: dict[str, list[Tensor]] = {}

    def add(
        self,
        shape: int,
        material: int,
        present: Tensor,
        centres: Tensor,
        half: Tensor,
        colors: Tensor,
        *,
        axes: Tensor | None = None,
        accent: Tensor | None = None,
        traits: Tensor | None = None,
        owner: Tensor | None = None,
    ) -> None:
        """n slots: present [S, n], centres, half, colors [S, n, 3], axes [S, n, 3, 3], traits [S, n, 4], owner [n]."""
        n = present.shape[1]
        columns = {
            "shape": torch.full((n,), shape),
            "material": torch.full((n,), material),
            "owner": torch.full((n,), -1) if owner is None else owner,
            "present": present,
            "centres": centres,
            "axes": torch.eye(3).expand(self.scenes, n, 3, 3) if axes is None else axes,
            "half": half.expand(self.scenes, n, 3),
            "colors": torch.stack([colors, colors if accent is None else accent], 2),
            "traits": torch.zeros(self.scenes, n, 4) if traits is None else traits,
        }
        for name, value in columns.items():
            self.columns.setdefault(name, []).append(value)

    def joined(self) -> Primitives:
        """All slots as one set."""
        return Primitives(
            **{name: torch.cat(values, 0 if name in _PER_SLOT else 1) for name, values in self.columns.items()}
        )


def _vector(x: Tensor, y: Tensor | float, z: Tensor | float) -> Tensor:
    """[..., 3]; y and z may be numbers or anything that broadcasts with x."""
    zero = torch.zeros_like(x + y + z)
    return torch.stack([zero + x, zero + y, zero + z], -1)


def _sample(keys: list[tuple[int, int]]) -> Street:
    draw = Draw(keys)
    wide = draw.chance(0.5)
    lanes = torch.where(wide, 2.0, 1.0)
    half = 3.4 * lanes + 2.3  # lanes and a parking strip
    has_cross = draw.chance(0.5)
    road = torch.stack([half, lanes, torch.where(has_cross, 4.2, 0.0), draw.uniform(19, 42)], -1)
    pavement = draw.uniform(2.0, 4.5)
    parts = _Parts(len(keys))
    _add_pavements(parts, draw, road, pavement)
    _add_buildings(parts, draw, road, pavement)
    _add_trees_and_posts(parts, draw, road)
    camera, fov = _sample_camera(draw, half, lanes)
    objects, cues = _sample_objects(draw, road, pavement, camera[:, :3, 3], wide)
    _add_cars(parts, draw, objects, cues)
    _add_walkers(parts, draw, objects)
    return Street(parts.joined(), objects, _sample_look(draw, road), fov, camera)


def _clear_of_cross(z: Tensor, road: Tensor, margin: float) -> Tensor:
    """Whether z [S, n] keeps `margin` metres from the crossing street."""
    return (z - road[:, 3:4]).abs() > road[:, 2:3] + margin * (road[:, 2:3] > 0)


def _add_pavements(parts: _Parts, draw: Draw, road: Tensor, pavement: Tensor) -> None:
    color = draw.pick([[0.55, 0.54, 0.52], [0.62, 0.58, 0.53], [0.45, 0.45, 0.47]], 1).expand(-1, 4, -1)
    side = torch.tensor([-1.0, 1.0, -1.0, 1.0])
    start = torch.where(
        torch.tensor([True, True, False, False]), torch.full_like(road[:, :1], -15.0), road[:, 3:4] + road[:, 2:3]
    )
    end = torch.where(
        torch.tensor([True, True, False, False]), road[:, 3:4] - road[:, 2:3], torch.full_like(road[:, :1], 160.0)
    )
    x = side * (road[:, :1] + 0.5 * pavement[:, None])
    size = _vector((0.5 * pavement[:, None]).expand_as(start), 0.06, 0.5 * (end - start))
    present = torch.ones_like(start, dtype=torch.bool)
    parts.add(BOX, shading.PAVEMENT, present, _vector(x, -0.06, 0.5 * (start + end)), size, color)


def _add_buildings(parts: _Parts, draw: Draw, road: Tensor, pavement: Tensor) -> None:
    per_side = 13
    n = 2 * per_side
    width = draw.uniform(7, 17, 2, per_side)
    gap = draw.uniform(0, 6, 2, per_side) * draw.chance(0.3, 2, per_side)
    z = -18 + (width + gap).cumsum(-1) - 0.5 * width
    side = torch.tensor([-1.0, 1.0])[:, None]
    depth = draw.uniform(4, 8, 2, per_side)
    setback = draw.uniform(0, 3, 2, 1) + draw.uniform(0, 1.0, 2, per_side)
    x = side * (road[:, 0, None, None] + pavement[:, None, None] + setback + depth)
    floors = draw.uniform(2, 8, 2, per_side).floor()
    floor = draw.uniform(2.8, 3.6, 2, per_side)
    height = floors * floor
    present = draw.chance(0.92, 2, per_side).reshape(-1, n) & _clear_of_cross(z.reshape(-1, n), road, 9.0)
    walls = [
        [0.72, 0.66, 0.57],
        [0.55, 0.3, 0.24],
        [0.8, 0.78, 0.74],
        [0.47, 0.45, 0.43],
        [0.64, 0.5, 0.37],
        [0.58, 0.62, 0.66],
        [0.8, 0.7, 0.45],
    ]
    shops = [[0.2, 0.3, 0.45], [0.5, 0.15, 0.12], [0.15, 0.35, 0.2], [0.3, 0.28, 0.26], [0.7, 0.55, 0.2]]
    traits = torch.stack(
        [draw.uniform(1.6, 3.2, n), floor.reshape(-1, n), draw.uniform(0, 1000, n), draw.uniform(0.2, 1.0, n)], -1
    )
    parts.add(
        BOX,
        shading.FACADE,
        present,
        _vector(x, -0.5 * height, z).reshape(-1, n, 3),
        _vector(depth, 0.5 * height, 0.5 * width).reshape(-1, n, 3),
        draw.pick(walls, n),
        accent=draw.pick(shops, n),
        traits=traits,
    )


def _add_trees_and_posts(parts: _Parts, draw: Draw, road: Tensor) -> None:
    n = 14
    side = torch.tensor([-1.0, 1.0]).repeat(n // 2)
    z = 4 + 9.0 * torch.arange(n // 2).repeat_interleave(2) + draw.uniform(-3, 3, n)
    x = side * (road[:, :1] + draw.uniform(0.6, 1.2, n))
    free = _clear_of_cross(z, road, 3.0)
    tree = draw.chance(0.45, n) & free
    trunk = draw.uniform(1.4, 2.2, n)
    bark = draw.pick([[0.3, 0.22, 0.16], [0.38, 0.33, 0.28]], n)
    parts.add(
        CYLINDER, shading.PLAIN, tree, _vector(x, -trunk, z), _vector(draw.uniform(0.1, 0.22, n), trunk, 0.16), bark
    )
    greens = [[0.2, 0.36, 0.12], [0.28, 0.42, 0.16], [0.4, 0.42, 0.15], [0.52, 0.34, 0.12], [0.16, 0.28, 0.14]]
    leaf = draw.pick(greens, n)
    for k in range(3):
        radius = draw.uniform(0.8, 1.7, n)
        centre = _vector(
            x + draw.uniform(-0.8, 0.8, n), -2 * trunk - draw.uniform(0.2, 1.6, n), z + draw.uniform(-0.8, 0.8, n)
        )
        traits = torch.stack([radius, radius, draw.uniform(0, 1000, n), radius], -1)
        size = _vector(radius, radius * draw.uniform(0.7, 1.1, n), radius)
        parts.add(BALL, shading.FOLIAGE, tree, centre, size, leaf * (0.9 + 0.1 * k), traits=traits)
    post = draw.chance(0.35, n) & ~tree & free
    tall = draw.uniform(1.3, 3.2, n)
    metal = draw.pick([[0.3, 0.32, 0.33], [0.16, 0.2, 0.18], [0.6, 0.6, 0.6]], n)
    parts.add(CYLINDER, shading.PLAIN, post, _vector(x, -tall, z), _vector(torch.full_like(x, 0.06), tall, 0.06), metal)
    sign = post & draw.chance(0.5, n)
    plate = draw.pick([[0.75, 0.1, 0.1], [0.1, 0.25, 0.65], [0.85, 0.85, 0.85], [0.85, 0.7, 0.1]], n)
    parts.add(
        BOX,
        shading.PLAIN,
        sign,
        _vector(x, -2 * tall + 0.2, z - 0.08),
        _vector(torch.full_like(x, 0.3), 0.3, 0.02),
        plate,
    )


def _sample_camera(draw: Draw, half: Tensor, lanes: Tensor) -> tuple[Tensor, Tensor]:
    """Camera to street [S, 4, 4] and field of view [S] (radians): mostly from a lane, sometimes from a pavement."""
    on_pavement = draw.chance(0.25)
    lane_x = 1.9 + 3.4 * (draw.uniform(0, 1) * lanes).floor() + draw.uniform(-0.8, 0.8)
    side = draw.sign()
    x = torch.where(on_pavement, side * (half + draw.uniform(0.6, 1.6)), lane_x)
    yaw = draw.uniform(-0.16, 0.16) - on_pavement * side * draw.uniform(0.0, 0.35)
    rotation = about_y(yaw) @ about_x(draw.uniform(-0.08, 0.04)) @ about_z(draw.uniform(-0.02, 0.02))
    pose = torch.eye(4).repeat(len(x), 1, 1)
    pose[:, :3, :3] = rotation
    pose[:, :3, 3] = _vector(x, -draw.uniform(1.2, 2.0), 0.0)
    return pose, draw.uniform(math.radians(48), math.radians(78))


def _sample_objects(
    draw: Draw, road: Tensor, pavement: Tensor, eye: Tensor, wide: Tensor
) -> tuple[Objects, dict[str, Tensor]]:
    """Places and motions of all cars and walkers, and what shows them (`brake`, `lit`, `indicator`: [S, O])."""
    groups = [
        _parked(draw, road),
        _driving(draw, road, wide),
        _crossing(draw, road),
        _walking(draw, road, pavement),
    ]
    column = {name: torch.cat([group[name] for group in groups], 1) for name in groups[0]}
    forward = torch.stack([torch.sin(column["yaw"]), torch.zeros_like(column["yaw"]), torch.cos(column["yaw"])], -1)
    speed, gain, yaw_rate = column["speed"], column["gain"], column["yaw_rate"]
    velocity = forward * speed[..., None]
    turn = torch.stack([velocity[..., 2], torch.zeros_like(speed), -velocity[..., 0]], -1) * yaw_rate[..., None]
    near_eye = (column["place"] - eye[:, None])[..., ::2].norm(dim=-1) < 2.5 + column["extent"][..., 1]
    present = column["present"] & ~near_eye
    objects = Objects(
        present=present,
        moving=present & (speed > 0),
        centres=column["place"],
        velocity=velocity,
        acceleration=forward * gain[..., None] + turn,
        yaw=column["yaw"],
        yaw_rate=yaw_rate,
        extent=column["extent"],
    )
    waiting = (speed == 0) & (column["lit"] > 0)
    brake = ((gain < 0) | waiting).float()
    return objects, {"brake": brake, "lit": column["lit"], "indicator": yaw_rate.sign(), "speed": speed}


def _car_extent(draw: Draw, n: int, lorries: float) -> Tensor:
    """[S, n, 2] half width and half length: cars, vans, and a share of lorries."""
    kind = draw.uniform(0, 1, n)
    length = torch.where(
        kind < lorries,
        draw.uniform(3.2, 4.4, n),
        torch.where(kind < 0.3, draw.uniform(2.4, 2.9, n), draw.uniform(1.8, 2.3, n)),
    )
    width = torch.where(kind < lorries, draw.uniform(1.1, 1.25, n), draw.uniform(0.82, 0.98, n))
    return torch.stack([width, length], -1)


def _parked(draw: Draw, road: Tensor) -> dict[str, Tensor]:
    n = _PARKED
    side = torch.tensor([-1.0, 1.0]).repeat(n // 2)
    z = 3.5 + 6.6 * torch.arange(n // 2).repeat_interleave(2) + draw.uniform(-0.8, 0.8, n)
    yaw = torch.where(draw.chance(0.85, n), (side < 0) * math.pi, (side > 0) * math.pi) + draw.uniform(-0.05, 0.05, n)
    zero = torch.zeros_like(z)
    return {
        "present": draw.chance(0.5, n) & _clear_of_cross(z, road, 4.0),
        "place": _vector(side * (road[:, :1] - 1.15 + draw.uniform(-0.12, 0.12, n)), 0.0, z),
        "yaw": yaw,
        "speed": zero,
        "gain": zero,
        "yaw_rate": zero,
        "lit": zero,
        "extent": _car_extent(draw, n, 0.0),
    }


def _driving(draw: Draw, road: Tensor, wide: Tensor) -> dict[str, Tensor]:
    """Two cars in each of two lanes on both sides; right-hand traffic."""
    n = _DRIVING
    side = torch.tensor([1.0, 1, 1, 1, -1, -1, -1, -1])
    lane = torch.tensor([0.0, 0, 1, 1, 0, 0, 1, 1])
    slot = torch.tensor([0.0, 1, 0, 1, 0, 1, 0, 1])
    z = torch.where(side > 0, draw.uniform(9, 17, n), draw.uniform(11, 24, n)) + slot * draw.uniform(11, 20, n)
    turning = draw.chance(0.15, n)
    rate = turning * draw.sign(n) * draw.uniform(0.15, 0.45, n)
    limit = torch.where(wide, 10.5, 7.0)[:, None]
    speed = limit * draw.uniform(0.75, 1.15, n) * torch.where(turning, 0.6, 1.0)
    event = draw.uniform(0, 1, n)
    gain = torch.where(
        event < 0.25, -draw.uniform(1.2, 2.4, n), torch.where(event > 0.85, draw.uniform(0.8, 2.0, n), 0.0)
    )
    speed = torch.where(gain < 0, torch.maximum(0.65 * speed, -2.2 * gain), speed)
    waits = draw.chance(0.12, n)
    return {
        "present": draw.chance(0.6, n) & (lane < road[:, 1:2]),
        "place": _vector(side * (1.75 + 3.4 * lane) + draw.uniform(-0.25, 0.25, n), 0.0, z),
        "yaw": torch.where(side > 0, 0.0, math.pi) + rate * draw.uniform(0, 0.5, n),
        "speed": speed * ~waits,
        "gain": gain * ~waits,
        "yaw_rate": rate * ~waits,
        "lit": torch.ones_like(z),
        "extent": _car_extent(draw, n, 0.1),
    }


def _crossing(draw: Draw, road: Tensor) -> dict[str, Tensor]:
    n = _CROSSING
    heading = torch.tensor([1.0, -1.0, 1.0])
    x = heading * -1 * draw.uniform(-6, 14, n) - heading * torch.tensor([0.0, 0.0, 12.0])
    gain = torch.where(draw.chance(0.25, n), draw.uniform(0.6, 1.6, n), 0.0)
    return {
        "present": draw.chance(0.55, n) & (road[:, 2:3] > 0),
        "place": _vector(x, 0.0, road[:, 3:4] - heading * 1.9),
        "yaw": heading * math.pi / 2 + draw.uniform(-0.03, 0.03, n),
        "speed": draw.uniform(3.5, 9.0, n),
        "gain": gain,
        "yaw_rate": torch.zeros_like(x),
        "lit": torch.ones_like(x),
        "extent": _car_extent(draw, n, 0.1),
    }


def _walking(draw: Draw, road: Tensor, pavement: Tensor) -> dict[str, Tensor]:
    """Six people on the pavements, three who cross the road."""
    n, along = _WALKERS, _WALKERS - 3
    side = draw.sign(n)
    x = side * (road[:, :1] + draw.uniform(0.4, 0.9, n) * pavement[:, None])
    z = draw.uniform(4, 26, n)
    yaw = torch.where(draw.chance(0.5, n), 0.0, math.pi) + draw.uniform(-0.25, 0.25, n)
    crosses = torch.arange(n) >= along
    x = torch.where(crosses, draw.uniform(-0.8, 0.8, n) * road[:, :1], x)
    z = torch.where(crosses, draw.uniform(5, 9, n), z)
    yaw = torch.where(crosses, draw.sign(n) * math.pi / 2 + draw.uniform(-0.3, 0.3, n), yaw)
    runs = draw.chance(0.12, n)
    speed = torch.where(runs, draw.uniform(2.4, 3.6, n), draw.uniform(0.7, 1.9, n)) * (draw.chance(0.75, n) | crosses)
    zero = torch.zeros_like(x)
    return {
        "present": torch.where(crosses, draw.chance(0.3, n), draw.chance(0.6, n)) & _clear_of_cross(z, road, 1.0),
        "place": _vector(x, torch.where(crosses, 0.0, -0.12), z),
        "yaw": yaw,
        "speed": speed,
        "gain": zero,
        "yaw_rate": zero,
        "lit": zero,
        "extent": torch.full((*x.shape, 2), 0.25),
    }


def _add_cars(parts: _Parts, draw: Draw, objects: Objects, cues: dict[str, Tensor]) -> None:
    n = _CARS
    owner = torch.arange(n)
    present, place, yaw = objects.present[:, :n], objects.centres[:, :n], objects.yaw[:, :n]
    width, length = objects.extent[:, :n].unbind(-1)
    axes = about_y(yaw)
    lorry, van = length > 3.0, (length > 2.35) & (length <= 3.0)
    body_high = torch.where(lorry, 0.5, torch.where(van, 0.45, draw.uniform(0.3, 0.38, n)))
    cabin_high = torch.where(lorry, 0.95, torch.where(van, 0.5, draw.uniform(0.26, 0.33, n)))
    cabin_long = torch.where(lorry | van, 0.8, draw.uniform(0.5, 0.62, n)) * length
    back = torch.where(lorry | van, -0.15, draw.uniform(-0.22, -0.1, n)) * length
    paints = [
        [0.75, 0.76, 0.78],
        [0.12, 0.12, 0.14],
        [0.9, 0.9, 0.9],
        [0.55, 0.1, 0.1],
        [0.13, 0.22, 0.45],
        [0.35, 0.37, 0.4],
        [0.2, 0.35, 0.25],
        [0.75, 0.6, 0.2],
    ]
    paint = draw.pick(paints, n)
    brake, lit, indicator, speed = (cues[name][:, :n] for name in ("brake", "lit", "indicator", "speed"))
    traits = torch.stack([brake, lit, draw.uniform(0, 1000, n), indicator], -1)

    def add(
        shape: int,
        material: int,
        offset: Tensor,
        half: Tensor,
        color: Tensor,
        *,
        turn: Tensor | None = None,
        traits: Tensor,
    ) -> None:
        centres = place + (axes @ offset[..., None]).squeeze(-1)
        own = axes if turn is None else axes @ turn
        parts.add(shape, material, present, centres, half, color, axes=own, traits=traits, owner=owner)

    base = 0.3
    add(
        BOX,
        shading.CAR_BODY,
        _vector(torch.zeros_like(width), -(base + body_high), 0.0),
        _vector(width, body_high, length),
        paint,
        traits=traits,
    )
    cabin = _vector(torch.zeros_like(width), -(base + 2 * body_high + cabin_high), back)
    roof = torch.where(lorry[..., None], draw.pick([[0.8, 0.8, 0.8], [0.3, 0.4, 0.55]], n), paint)
    material = shading.CAR_CABIN
    add(BOX, material, cabin, _vector(0.9 * width, cabin_high, cabin_long), roof, traits=traits)
    radius = torch.where(lorry, 0.46, 0.33)
    steer = 0.35 * indicator
    for side in (-1.0, 1.0):
        for end in (-1.0, 1.0):
            offset = _vector(side * (width - 0.1), -radius, end * 0.62 * length)
            # The cylinder's y axis lies along the axle; front wheels follow the steering.
            turn = about_y(steer if end > 0 else torch.zeros_like(steer)) @ about_z(torch.full_like(steer, math.pi / 2))
            spin = torch.stack([draw.uniform(0, math.tau, n), speed, draw.uniform(0, 1, n), speed], -1)
            half = _vector(radius, torch.full_like(radius, 0.13), radius)
            add(CYLINDER, shading.WHEEL, offset, half, torch.full_like(paint, 0.1), turn=turn, traits=spin)


def _add_walkers(parts: _Parts, draw: Draw, objects: Objects) -> None:
    n = _WALKERS
    owner = torch.arange(_CARS, OBJECTS)
    present, place, yaw = objects.present[:, _CARS:], objects.centres[:, _CARS:], objects.yaw[:, _CARS:]
    speed = objects.velocity[:, _CARS:].norm(dim=-1)
    size = draw.uniform(0.9, 1.08, n)
    lean = 0.1 * speed
    stride = (0.12 + 0.3 * speed).clamp_max(0.85) * (speed > 0)
    feet_down = _vector(torch.zeros_like(stride), 0.86 * size * (1 - torch.cos(stride)), 0.0)
    place = place + feet_down
    upright = about_y(yaw)
    shirts = [
        [0.7, 0.15, 0.15],
        [0.15, 0.25, 0.55],
        [0.85, 0.85, 0.8],
        [0.15, 0.15, 0.17],
        [0.2, 0.45, 0.25],
        [0.85, 0.65, 0.15],
        [0.5, 0.4, 0.55],
    ]
    trousers = [[0.12, 0.14, 0.25], [0.2, 0.2, 0.2], [0.45, 0.38, 0.28], [0.3, 0.32, 0.38]]
    skin = draw.pick([[0.85, 0.66, 0.54], [0.55, 0.38, 0.28], [0.36, 0.24, 0.18], [0.75, 0.55, 0.42]], n)
    hair = draw.pick([[0.1, 0.08, 0.06], [0.35, 0.24, 0.14], [0.6, 0.5, 0.32], [0.5, 0.5, 0.5]], n)
    shoes = draw.pick([[0.1, 0.1, 0.1], [0.8, 0.8, 0.78], [0.35, 0.22, 0.14]], n)
    shirt, legs = draw.pick(shirts, n), draw.pick(trousers, n)
    none = torch.zeros_like(yaw)
    traits = torch.stack([none, none, draw.uniform(0, 1000, n), none], -1)

    def limb(
        shape: int,
        material: int,
        joint: tuple[float, float],
        swing: Tensor,
        reach: float,
        half: tuple[float, float, float],
        color: Tensor,
        accent: Tensor,
        ahead: float = 0.0,
    ) -> None:
        """A part whose centre hangs `reach` metres below and `ahead` of a joint (sideways, height), swinging."""
        across, height = joint
        turn = upright @ about_x(swing)
        # Leaning carries joints above the hips forward.
        forward = torch.sin(lean) * max(height - 0.85, 0.0)
        pivot = _vector(across * size, -height * size, forward * size)
        offset = (upright @ pivot[..., None]).squeeze(-1) + (
            turn @ _vector(none, reach * size, ahead * size)[..., None]
        ).squeeze(-1)
        half_size = _vector(half[0] * size, half[1] * size, half[2] * size)
        parts.add(
            shape,
            material,
            present,
            place + offset,
            half_size,
            color,
            axes=turn,
            accent=accent,
            traits=traits,
            owner=owner,
        )

    limb(BOX, shading.CLOTH, (0.0, 0.85), -lean, -0.3, (0.2, 0.3, 0.11), shirt, shirt)
    limb(BALL, shading.HEAD, (0.0, 1.6), none, 0.0, (0.1, 0.13, 0.115), hair, skin)
    for side in (-1.0, 1.0):
        limb(CYLINDER, shading.CLOTH, (0.1 * side, 0.86), side * stride, 0.43, (0.075, 0.43, 0.085), legs, legs)
        limb(BOX, shading.PLAIN, (0.1 * side, 0.86), side * stride, 0.83, (0.05, 0.04, 0.13), shoes, shoes, ahead=0.07)
        limb(CYLINDER, shading.CLOTH, (0.26 * side, 1.42), -0.8 * side * stride, 0.3, (0.05, 0.3, 0.05), shirt, shirt)


def _sample_look(draw: Draw, road: Tensor) -> Look:
    azimuth, elevation = draw.uniform(0, math.tau), draw.uniform(0.35, 1.3)
    flat = torch.cos(elevation)
    sun = torch.stack([flat * torch.sin(azimuth), -torch.sin(elevation), flat * torch.cos(azimuth)], -1)
    overcast = draw.uniform(0, 1)
    light = torch.stack([0.55 + 0.35 * overcast, 0.65 * (1 - overcast)], -1)
    horizon = draw.pick([[0.82, 0.86, 0.9], [0.9, 0.86, 0.8], [0.75, 0.78, 0.8]])
    zenith = draw.pick([[0.3, 0.48, 0.75], [0.45, 0.58, 0.78], [0.62, 0.66, 0.7]])
    grey = draw.uniform(0.22, 0.4)[:, None]
    asphalt = grey * torch.tensor([1.0, 1.0, 1.03])
    verge = draw.pick([[0.33, 0.4, 0.2], [0.5, 0.47, 0.42], [0.42, 0.36, 0.28]])
    gain = draw.uniform(0.8, 1.2)[:, None] * draw.uniform(0.95, 1.05, 3)
    tone = torch.stack([gain, draw.uniform(-0.03, 0.04)[:, None].expand(-1, 3)], -1)
    return Look(
        sun,
        light,
        draw.uniform(0.0, 0.012),
        torch.stack([horizon, zenith], 1),
        draw.uniform(0.1, 0.9),
        asphalt,
        verge,
        tone,
        road,
        draw.uniform(0, 1000),
    )


def _moved(street: Street, time: Tensor) -> tuple[Primitives, Tensor, Tensor]:
    """Primitives with their owners' motion at `time` [S], and the objects' places [S, O, 3] and headings [S, O]."""
    objects, primitives = street.objects, street.primitives
    shift, turn = objects.at(time)
    owner = primitives.owner.clamp_min(0)
    owned = (primitives.owner >= 0)[None, :, None]
    pivot = objects.centres[:, owner]
    rotation = about_y(turn)[:, owner]
    turned = pivot + (rotation @ (primitives.centres - pivot)[..., None]).squeeze(-1) + shift[:, owner]
    centres = torch.where(owned, turned, primitives.centres)
    axes = torch.where(owned[..., None], rotation @ primitives.axes, primitives.axes)
    return replace(primitives, centres=centres, axes=axes), objects.centres + shift, objects.yaw + turn


def render(street: Street, time: Tensor, c2w: Tensor, width: int, height: int, *, samples: int = 2) -> View:
    """The exact view of S streets.

    Args:
        street: of S scenes.
        time: [S] seconds.
        c2w: [S, 4, 4] camera to street; intrinsics follow from the street's field of view.
        width, height: pixels, multiples of 16.
        samples: colour is the mean of samples × samples rays per pixel; depth and objects come from the first of them,
            the upper left, a quarter of a pixel from the centre when there are 2 × 2.
    """
    fine = _render_once(street, time, c2w, width * samples, height * samples)
    s = len(time)
    image = fine.image.reshape(s, height, samples, width, samples, 3).mean((2, 4))
    return View(image, fine.depth[:, ::samples, ::samples], fine.objects[:, ::samples, ::samples])


def _render_once(street: Street, time: Tensor, c2w: Tensor, width: int, height: int) -> View:
    primitives, places, yaw = _moved(street, time)
    standing = shading.Standing(places, yaw, street.objects.extent, street.objects.present)
    intrinsics = street.intrinsics(width, height)
    origins, directions = raycast.rays_of(intrinsics, c2w, width, height)
    hits = raycast.cast(primitives, origins, directions, intrinsics, c2w, width, height)
    down = directions[..., 1]
    ground = torch.where(down > 1e-5, -origins[:, None, 1] / down.clamp_min(1e-5), torch.inf)
    on_ground = ground < hits.distance
    distance = torch.minimum(ground, hits.distance)
    distance = torch.where(distance < SKY_DEPTH, distance, torch.inf)
    color = shading.sky_color(torch.nn.functional.normalize(directions, dim=-1), street.look)
    scene, ray = torch.isfinite(distance).nonzero(as_tuple=True)
    slot = hits.index[scene, ray].clamp_min(0)
    is_ground = on_ground[scene, ray]
    reach = distance[scene, ray]
    surfels = shading.Surfels(
        scene=scene,
        material=torch.where(is_ground, shading.GROUND, primitives.material[slot]),
        colors=primitives.colors[scene, slot],
        traits=primitives.traits[scene, slot],
        half=primitives.half[scene, slot],
        local=hits.local[scene, ray],
        points=origins[scene] + directions[scene, ray] * reach[:, None],
        normals=torch.where(is_ground[:, None], _UP.to(reach.device), hits.normal[scene, ray]),
        footprint=reach / intrinsics[scene, 0],
    )
    color[scene, ray] = shading.lit(shading.surface_color(surfels, street.look, standing), surfels, street.look)
    image = shading.toned(color, distance, street.look)
    ids = torch.zeros_like(distance)
    ids[scene, ray] = torch.where(is_ground, 0, primitives.owner[slot] + 1).float()
    pixels = raycast.image_of(torch.cat([image, distance[..., None], ids[..., None]], -1), width, height)
    return View(pixels[..., :3], pixels[..., 3], pixels[..., 4].long())
