"""Body plans of animals: traits drawn at random, and from them tubes in any phase of a cycle.

An animal's own frame: x ahead, y to its left, z up; its trunk is about one long. Traits are [S,1], one row per animal;
what depends on the phase is [S,T]. A cycle lasts from phase 0 to 1 and then begins anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from edge4d.export.worlds.draw import Draw
from edge4d.export.worlds.tubes import Lattice, rings_of

Traits = dict[str, Tensor]
_AHEAD, _LEFT, _UP = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


@dataclass(frozen=True)
class Part:
    """A tube of each animal, and its colours.

    Attributes:
        joints: [S,T,K,3].
        half_axes: [S,T,K,2], or 1 for T.
        side: [S,T,3] or [3], see `tubes.surface`.
        paint: [S,3], or None for the animal's coat.
        tip: [S,3] of the last third, where it is another one.
    """

    lattice: Lattice
    joints: Tensor
    half_axes: Tensor
    side: Tensor
    paint: Tensor | None = None
    tip: Tensor | None = None


@dataclass(frozen=True)
class Beat:
    """Where in their cycles S animals are.

    Attributes:
        phase: [S,T] cycles.
        strength: 1, or 0 for an animal at rest.
    """

    phase: Tensor
    strength: float = 1.0

    def wave(self, lag: Tensor | float = 0.0, times: int = 1) -> Tensor:
        """[S,T] sine that beats `times` a cycle, `lag` of its own periods late."""
        return self.strength * torch.sin(math.tau * (times * self.phase - lag))

    def rise(self, lag: Tensor | float = 0.0) -> Tensor:
        """[S,T] positive half of `wave`, 0 in the other half."""
        return self.wave(lag).clamp_min(0)


@dataclass(frozen=True)
class BodyPlan:
    """How animals of a kind are drawn and made."""

    traits: Callable[[Draw], Traits]
    parts: Callable[[Traits, Beat], list[Part]]


def _points(*points: tuple[Tensor | float, Tensor | float, Tensor | float]) -> Tensor:
    """K points of coordinates [S,T] (or [S,1], or numbers) to [S,T,K,3]."""
    tensors = [value for point in points for value in point if isinstance(value, Tensor)]
    like: Tensor = sum(tensors)  # type: ignore[assignment]
    columns = [
        torch.as_tensor(value, dtype=like.dtype, device=like.device).expand(like.shape) for p in points for value in p
    ]
    return torch.unflatten(torch.stack(columns, -1), -1, (len(points), 3))


def _axes(*pairs: tuple[Tensor | float, Tensor | float]) -> Tensor:
    """K pairs of half axes [S,1] to [S,1,K,2]."""
    return _points(*((first, second, 0.0) for first, second in pairs))[..., :2]


def _columns(names: tuple[str, ...], table: Tensor) -> Traits:
    """Columns of [S,n] as traits."""
    return dict(zip(names, table[..., None].unbind(1)))


def _direction(vector: tuple[float, float, float], like: Tensor) -> Tensor:
    return torch.tensor(vector, dtype=like.dtype, device=like.device)


@dataclass(frozen=True)
class _Spot:
    """A place on a tube: centre of its ring, direction of the tube, and outwards, [S,T,3]; distance out [S,T,1]."""

    centre: Tensor
    ahead: Tensor
    outward: Tensor
    distance: Tensor

    def at(self, share: float = 1.0) -> Tensor:
        """[S,T,3] so far out."""
        return self.centre + share * self.distance * self.outward


def _spot(part: Part, place: float, angle: float) -> _Spot:
    """On the ring nearest to `place` (0..1), `angle` radians from the tube's side towards its other axis."""
    centres, ahead, right, up, axes = rings_of(part.lattice, part.joints, part.half_axes, part.side)
    ring = int((part.lattice.along - place).abs().argmin())
    axes = axes[..., ring, :].expand(*centres.shape[:-2], 2)
    offset = right[..., ring, :] * (math.cos(angle) * axes[..., :1]) + up[..., ring, :] * (
        math.sin(angle) * axes[..., 1:]
    )
    distance = offset.norm(dim=-1, keepdim=True)
    return _Spot(centres[..., ring, :], ahead[..., ring, :], offset / distance.clamp_min(1e-6), distance)


def _ball(
    centre: Tensor, radius: Tensor | float, outward: Tensor, side: Tensor, paint: Tensor, flat: float = 1
) -> Part:
    """A ball, or where `flat` is below 1 a lens, around `centre` [S,T,3]; radius [S,1] or a number."""
    size = torch.as_tensor(radius, dtype=centre.dtype, device=centre.device).expand(centre.shape[0], 1)[..., None]
    joints = torch.stack([centre - flat * size * outward, centre + flat * size * outward], -2)
    axes = size[..., None].expand(-1, -1, 2, 2)
    return Part(Lattice(2, 8, 10, (0.5, 0.5)), joints, axes, side, paint)


def _eyes(head: Part, place: float, angles: tuple[float, float], radius: Tensor, white: Tensor) -> Iterator[Part]:
    """Eyeballs with pupils; `white` [S,3] is the colour around the pupil."""
    pupil = torch.zeros_like(white) + 0.03
    for angle in angles:
        spot = _spot(head, place, angle)
        look = torch.nn.functional.normalize(spot.outward + 0.35 * spot.ahead, dim=-1)
        centre = spot.at(0.93)
        yield _ball(centre, radius, spot.outward, spot.ahead, white)
        yield _ball(centre + 0.62 * radius[..., None] * look, 0.55 * radius, look, spot.ahead, pupil)


def _coat(draw: Draw, bases: list[list[float]], kinds: tuple[int, ...]) -> Traits:
    """Colours and pattern: 0 plain, 1 stripes across, 2 spots, 3 patches, 4 dark back."""
    base = draw.pick(bases, spread=0.04)
    shade = draw.uniform(0.15, 0.55)[:, None]
    pale = draw.uniform(0.3, 0.75)[:, None]
    return {
        "base": base,
        "belly": base + pale * (0.95 - base),
        "accent": torch.where(draw.chance(0.75)[:, None], shade * base, base + 0.8 * (0.95 - base)),
        "pattern": torch.tensor(kinds)[draw.index(len(kinds))][:, None],
        "pitch": draw.uniform(0.8, 1.3, 1),
        "offsets": draw.uniform(0, math.tau, 3),
    }


# ---- quadrupeds ------------------------------------------------------------------------------------------------------

_BREEDS = {  # leg, girth, neck, neck angle, head, snout, ear, tail, leg thickness
    "dog": (0.55, 0.17, 0.22, 0.80, 0.30, 0.55, 0.15, 0.42, 0.055),
    "horse": (0.74, 0.20, 0.48, 0.90, 0.36, 0.62, 0.10, 0.50, 0.056),
    "cat": (0.43, 0.15, 0.13, 0.65, 0.22, 0.80, 0.13, 0.62, 0.050),
    "bear": (0.42, 0.27, 0.16, 0.35, 0.32, 0.62, 0.07, 0.08, 0.095),
    "pig": (0.31, 0.25, 0.08, 0.15, 0.31, 0.85, 0.13, 0.14, 0.060),
    "giraffe": (0.88, 0.17, 0.85, 1.10, 0.28, 0.55, 0.11, 0.35, 0.050),
}
_BREED = ("leg", "girth", "neck", "neck_angle", "head", "snout", "ear", "tail", "thick")
_GAITS = {  # lags of the legs: left hind, right hind, left fore, right fore; swing, flex, bob, bend, jump, breath, look
    "walk": (0.0, 0.5, 0.75, 0.25, 0.42, 0.75, 0.015, 0.0, 0.0, 0.01, 0.1),
    "trot": (0.0, 0.5, 0.5, 0.0, 0.50, 1.05, 0.035, 0.0, 0.0, 0.01, 0.0),
    "gallop": (0.0, 0.08, 0.5, 0.58, 0.72, 1.1, 0.05, 0.09, 0.0, 0.01, 0.0),
    "jump": (0.0, 0.0, 0.06, 0.06, 0.40, 1.2, 0.0, 0.05, 0.42, 0.01, 0.0),
    "idle": (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.008, 0.0, 0.0, 0.06, 0.75),
}
_GAIT = ("lag0", "lag1", "lag2", "lag3", "swing", "flex", "bob", "bend", "jump", "breath", "look")
_FURS = [
    [0.55, 0.36, 0.2],
    [0.8, 0.62, 0.38],
    [0.48, 0.34, 0.25],
    [0.62, 0.6, 0.58],
    [0.9, 0.88, 0.84],
    [0.75, 0.42, 0.18],
    [0.4, 0.4, 0.42],
    [0.86, 0.62, 0.58],
]
_TRUNK = Lattice(6, 34, 28, (0.3, 0.25))
_HEAD = Lattice(6, 26, 20, (0.1, 0.16))
_LEG = Lattice(5, 18, 12, (0.12, 0.12))
_TAIL = Lattice(5, 14, 8, (0.1, 0.15))
_EAR = Lattice(3, 9, 8, (0.1, 0.3))


def _quadruped_traits(draw: Draw) -> Traits:
    breed = torch.tensor(list(_BREEDS.values()))[draw.index(len(_BREEDS))]
    breed = breed * draw.uniform(0.87, 1.13, len(_BREED))
    gait = torch.tensor(list(_GAITS.values()))[draw.index(len(_GAITS))]
    vigour = draw.uniform(0.8, 1.2, len(_GAIT))
    vigour[:, :4] = 1  # lags are what makes a gait
    return {
        **_columns(_BREED, breed),
        **_columns(_GAIT, gait * vigour),
        **_coat(draw, _FURS, (0, 1, 2, 3, 4)),
        "wag": draw.uniform(0.05, 0.3, 1),
        "tail_up": draw.uniform(-1.1, 0.6, 1),
        "socks": draw.uniform(0.1, 0.9)[:, None] * torch.ones(3),
        "nod": draw.uniform(0.03, 0.12, 1),
    }


def _quadruped_parts(t: Traits, beat: Beat) -> list[Part]:
    left = _direction(_LEFT, beat.phase)
    g = t["girth"]
    z = t["leg"] + 0.55 * g + t["bob"] * beat.wave(0.1, 2) + t["jump"] * beat.rise()
    bend = t["bend"] * beat.wave(0.2)
    pitch = 0.5 * bend + 0.25 * t["jump"] * beat.wave(-0.25)  # nose up when leaving the ground
    breath = 1 + t["breath"] * beat.wave()
    trunk = Part(
        _TRUNK,
        _points(
            (-0.52, 0, z + 0.1 * g - 1.1 * pitch),
            (-0.36, 0, z - pitch),
            (-0.1, 0, z + bend),
            (0.14, 0, z + 0.8 * bend),
            (0.36, 0, z + pitch),
            (0.5, 0, z + 0.1 * g + 1.1 * pitch),
        ),
        _axes(
            (0.6 * g, 0.7 * g),
            (0.82 * g, 0.98 * g),
            (0.85 * g, 0.95 * g),
            (0.9 * g, 1.02 * g),
            (0.85 * g, 1.08 * g),
            (0.55 * g, 0.75 * g),
        )
        * breath[..., None, None],
        left,
    )
    head = _quadruped_head(t, beat, z + pitch, left)
    dark = 0.12 * t["base"] + 0.02
    parts = [trunk, head, *_ears(t, head)]
    parts += _eyes(head, 0.6, (0.75, math.pi - 0.75), 0.095 * t["head"], 0.25 * t["base"] + 0.05)
    nose = _spot(head, 0.985, math.pi / 2)
    parts.append(_ball(nose.centre + 0.02 * nose.ahead, 0.075 * t["head"], nose.ahead, left, dark))
    hind = (-0.36, z - pitch)
    fore = (0.36, z + pitch)
    for leg, (sign, (x, height)) in enumerate(((1, hind), (-1, hind), (1, fore), (-1, fore))):
        parts.append(_leg(t, beat, leg, sign, x, height, left))
    parts.append(_tail(t, beat, z - pitch, left))
    return parts


def _quadruped_head(t: Traits, beat: Beat, z: Tensor, left: Tensor) -> Part:
    g, n, h = t["girth"], t["neck"], t["head"]
    angle = t["neck_angle"] + t["nod"] * beat.wave(0.3) + 0.25 * t["look"] * beat.wave(0.1)
    look = 0.8 * t["look"] * beat.wave()
    x0, z0 = 0.36, z + 0.25 * g
    down = angle * 0.4 - 0.75  # the head's direction, above the horizon
    length = n + 0.3 * g
    x1, z1 = x0 + length * torch.cos(angle), z0 + length * torch.sin(angle)
    reach = ((0.0, 0.0), (0.28, 0.06), (0.66, 0.0), (1.0, -0.04))
    ahead, above = torch.cos(down), torch.sin(down)
    points = [(x0 + 0 * x1, z0 + 0 * z1), (0.55 * x0 + 0.45 * x1, 0.55 * z0 + 0.45 * z1)]
    points += [(x1 + h * (a * ahead - b * above), z1 + h * (a * above + b * ahead)) for a, b in reach]
    turned = [
        (x0 + (x - x0) * torch.cos(share * look), (x - x0) * torch.sin(share * look), zz)
        for (x, zz), share in zip(points, (0.0, 0.3, 0.6, 0.85, 1.0, 1.0))
    ]
    s = t["snout"]
    slim = 0.42 * g + 0.16 * h
    axes = _axes(
        (0.62 * g, 0.85 * g),
        (0.8 * slim, 1.05 * slim),
        (0.27 * h, 0.3 * h),
        (0.29 * h, 0.31 * h),
        (0.3 * s * h, 0.29 * s * h),
        (0.24 * s * h, 0.22 * s * h),
    )
    return Part(_HEAD, _points(*turned), axes, left)


def _ears(t: Traits, head: Part) -> Iterator[Part]:
    size = t["ear"][..., None]
    for angle in (-0.7, -math.pi + 0.7):  # the other axis of the head points down
        spot = _spot(head, 0.42, -angle)
        root, tip = spot.at(0.7), spot.at(0.9) + size * (spot.outward - 0.25 * spot.ahead)
        joints = torch.stack([root, 0.5 * (root + tip) + 0.06 * size * spot.ahead, tip], -2)
        axes = _axes((0.3 * t["ear"], 0.14 * t["ear"]), (0.4 * t["ear"], 0.14 * t["ear"]), (0.1 * t["ear"], 0.05))
        side = torch.linalg.cross(spot.outward, spot.ahead)
        yield Part(_EAR, joints, axes, side)


def _leg(t: Traits, beat: Beat, leg: int, sign: int, x: float, height: Tensor, left: Tensor) -> Part:
    hind = leg < 2
    g, w = t["girth"], t["thick"]
    lag = t[f"lag{leg}"]
    swing = t["swing"] * beat.wave(lag)
    flex = t["flex"] * beat.rise(lag - 0.25)  # the foot is off the ground while it swings ahead
    rest, bent = (0.38, -0.75) if hind else (-0.08, 0.0)
    length = t["leg"] + 0.3 * g
    upper, lower = 0.52 * length, (0.56 if hind else 0.5) * length
    thigh = rest + swing + (0.3 if hind else 0.5) * flex
    shin = thigh + bent - 0.95 * flex
    y, top = sign * 0.52 * g, height - 0.25 * g
    knee = (x + upper * torch.sin(thigh), top - upper * torch.cos(thigh))
    ankle = (knee[0] + lower * torch.sin(shin), knee[1] - lower * torch.cos(shin))
    foot = 0.6 * (swing - flex)
    toe = (ankle[0] + 1.9 * w * torch.cos(foot), ankle[1] + 1.9 * w * torch.sin(foot))
    joints = _points(
        (x - 0.02, 0.8 * y, top + 0.35 * g),
        (x, y, top),
        (knee[0], 1.05 * y, knee[1]),
        (ankle[0], y, ankle[1]),
        (toe[0], y, toe[1]),
    )
    big = 2.1 if hind else 1.6
    axes = _axes((0.8 * big * w, 1.4 * big * w), (0.7 * big * w, big * w), (0.95 * w, 1.1 * w), (0.85 * w, 0.85 * w),
                 (1.0 * w, 0.75 * w))  # fmt: skip
    return Part(_LEG, joints, axes, left, tip=t["socks"] * t["base"])


def _tail(t: Traits, beat: Beat, z: Tensor, left: Tensor) -> Part:
    g, length = t["girth"], t["tail"]
    points: list[tuple[Tensor | float, Tensor | float, Tensor | float]] = []
    x, height = torch.full_like(z, -0.46), z + 0.35 * g
    for joint in range(5):
        points.append((x, t["wag"] * length * (joint / 4) * beat.wave(0.08 * joint), height))
        angle = t["tail_up"] + 0.35 * (joint - 1) * t["tail_up"].sign() * -0.6
        x, height = x - 0.25 * length * torch.cos(angle), height + 0.25 * length * torch.sin(angle)
    w = 0.03 + 0.18 * g
    axes = _axes(*((k * w, k * w) for k in (1.0, 0.8, 0.65, 0.5, 0.35)))
    return Part(_TAIL, _points(*points), axes, left, tip=t["accent"])


# ---- birds -----------------------------------------------------------------------------------------------------------

_FEATHERS = [
    [0.25, 0.45, 0.75],
    [0.8, 0.25, 0.2],
    [0.92, 0.9, 0.86],
    [0.3, 0.55, 0.25],
    [0.36, 0.36, 0.4],
    [0.55, 0.38, 0.25],
    [0.9, 0.75, 0.25],
    [0.55, 0.57, 0.6],
]
_BEAKS = [[0.95, 0.6, 0.12], [0.25, 0.22, 0.2], [0.9, 0.8, 0.35]]
_BREAST = Lattice(5, 26, 22, (0.3, 0.3))
_BIRD_HEAD = Lattice(4, 18, 16, (0.1, 0.35))
_BEAK = Lattice(3, 8, 10, (0.1, 0.25))
_WING = Lattice(5, 26, 14, (0.05, 0.15))
_FAN = Lattice(4, 14, 12, (0.1, 0.12))
_SHANK = Lattice(3, 9, 8, (0.2, 0.2))


def _bird_traits(draw: Draw) -> Traits:
    return {
        **_coat(draw, _FEATHERS, (0, 0, 1, 2, 4)),
        "girth": draw.uniform(0.13, 0.2, 1),
        "neck": draw.uniform(0.02, 0.25, 1),
        "skull": draw.uniform(0.085, 0.12, 1),
        "bill": draw.uniform(0.08, 0.24, 1),
        "span": draw.uniform(0.65, 1.1, 1),
        "chord": draw.uniform(0.13, 0.22, 1),
        "sweep": draw.uniform(0.0, 0.35, 1),
        "fan": draw.uniform(0.25, 0.5, 1),
        "flap": draw.uniform(0.45, 0.95, 1),
        "fold": draw.uniform(0.2, 0.6, 1),
        "bank": draw.uniform(0.0, 0.15, 1),
        "rise": draw.uniform(0.0, 0.35, 1),
        "beak": draw.pick(_BEAKS),
    }


def _bird_parts(t: Traits, beat: Beat) -> list[Part]:
    left = _direction(_LEFT, beat.phase)
    g = t["girth"]
    z = -0.09 * t["flap"] * beat.wave(0.05)
    tilt = 0.12 + 0.06 * beat.wave(0.3)
    trunk = Part(
        _BREAST,
        _points(*((x, 0, z + x * tilt) for x in (-0.4, -0.18, 0.06, 0.25, 0.38))),
        _axes((0.3 * g, 0.28 * g), (0.85 * g, 0.85 * g), (1.05 * g, 1.1 * g), (0.9 * g, 0.95 * g), (0.45 * g, 0.5 * g)),
        left,
    )
    k, x, up = t["skull"], 0.3 + t["neck"] + 0.8 * t["skull"], z + 0.1 + 0.55 * t["neck"] + 0.02 * beat.wave(0.5)
    head = Part(
        _BIRD_HEAD,
        _points((0.26, 0, z + 0.05), (0.5 * (0.26 + x), 0, 0.4 * z + 0.6 * up), (x, 0, up + 0.4 * k), (x + k, 0, up)),
        _axes((0.7 * g, 0.7 * g), (0.75 * k, 0.8 * k), (k, k), (0.75 * k, 0.8 * k)),
        left,
    )
    beak = Part(
        _BEAK,
        _points((x + 0.7 * k, 0, up), (x + k + 0.5 * t["bill"], 0, up), (x + k + t["bill"], 0, up - 0.15 * t["bill"])),
        _axes((0.45 * k, 0.4 * k), (0.3 * k, 0.28 * k), (0.05 * k, 0.06 * k)),
        left,
        t["beak"],
    )
    fan = t["fan"]
    pitch = 0.15 * beat.wave(0.6)
    tail = Part(
        _FAN,
        _points(*((-0.3 - s * fan, 0, z - 0.02 + s * fan * pitch) for s in (0.0, 0.35, 0.7, 1.0))),
        _axes(*((w * fan, 0.025) for w in (0.12, 0.2, 0.32, 0.38))),
        left,
        tip=t["accent"],
    )
    parts = [trunk, head, beak, tail]
    parts += _eyes(head, 0.72, (-0.5, math.pi + 0.5), 0.2 * k, 0.2 * t["base"] + 0.02)
    for sign in (1, -1):
        parts.append(_wing(t, beat, sign, z))
        thin = 0.018 + 0 * g
        joints = _points(
            (-0.08, sign * 0.4 * g, z - 0.6 * g), (-0.2, sign * 0.4 * g, z - 1.1 * g), (-0.36, sign * 0.4 * g, z - g)
        )
        parts.append(Part(_SHANK, joints, _axes(*((thin, thin),) * 3), left, t["beak"]))
    return parts


def _wing(t: Traits, beat: Beat, sign: int, z: Tensor) -> Part:
    """Its outer half follows the inner one late, and folds on the way up."""
    inner = t["rise"] + t["flap"] * beat.wave() + sign * t["bank"] * beat.wave(0.2)
    bend = 0.6 * t["flap"] * beat.wave(0.18) - t["fold"] * beat.rise(0.5)
    x, y, height = 0.12 + 0 * z, sign * (0.45 * t["girth"]) + 0 * z, z + 0.35 * t["girth"]
    points: list[tuple[Tensor | float, Tensor | float, Tensor | float]] = [(x, y, height)]
    for step, (share, sweep) in enumerate(((0.22, -0.25), (0.24, 0.2), (0.28, 0.9), (0.26, 1.5))):
        angle = inner + bend * (step / 3)
        length = share * t["span"]
        x = x - t["sweep"] * sweep * length
        y, height = y + sign * length * torch.cos(angle), height + length * torch.sin(angle)
        points.append((x, y, height))
    axes = _axes(*((w * t["chord"], 0.02 + 0.25 * w * 0.06) for w in (0.9, 1.15, 1.2, 0.95, 0.35)))
    return Part(_WING, _points(*points), axes, _direction(_AHEAD, z), tip=t["accent"])


# ---- fish ------------------------------------------------------------------------------------------------------------

_SCALES = [
    [0.95, 0.5, 0.12],
    [0.2, 0.45, 0.8],
    [0.95, 0.85, 0.2],
    [0.6, 0.65, 0.7],
    [0.85, 0.2, 0.25],
    [0.25, 0.6, 0.55],
    [0.5, 0.3, 0.65],
]
_FISH = Lattice(8, 44, 26, (0.12, 0.06))
_FIN = Lattice(4, 14, 10, (0.1, 0.2))


def _fish_traits(draw: Draw) -> Traits:
    return {
        **_coat(draw, _SCALES, (0, 1, 1, 2, 4)),
        "height": draw.uniform(0.12, 0.3, 1),
        "breadth": draw.uniform(0.35, 0.6, 1),
        "sway": draw.uniform(0.05, 0.14, 1),
        "waves": draw.uniform(0.55, 1.0, 1),
        "fork": draw.uniform(0.5, 1.0, 1),
        "fluke": draw.uniform(0.2, 0.36, 1),
        "crest": draw.uniform(0.5, 1.1, 1),
        "paddle": draw.uniform(0.3, 0.8, 1),
        "fins": draw.pick(_SCALES),
    }


def _fish_parts(t: Traits, beat: Beat) -> list[Part]:
    up, h, w = _direction(_UP, beat.phase), t["height"], t["breadth"]

    def sway(x: float | Tensor) -> Tensor:
        """Sideways place of the spine: a wave that runs to the tail and grows on its way."""
        back = 0.5 - torch.as_tensor(x, dtype=h.dtype, device=h.device)
        return t["sway"] * (0.25 + 0.2 * back + 1.1 * back * back) * beat.wave(0.8 * t["waves"] * back)

    places = (0.5, 0.4, 0.25, 0.08, -0.1, -0.26, -0.4, -0.52)
    tall = (0.3, 0.62, 0.92, 1.0, 0.85, 0.55, 0.3, 0.24)
    wide = (0.3, 0.65, 0.95, 1.0, 0.85, 0.55, 0.25, 0.12)
    body = Part(
        _FISH,
        _points(*((x, sway(x), 0.0) for x in places)),
        _axes(*((a * h, b * w * h) for a, b in zip(tall, wide))),
        up,
    )
    fluke, spread = t["fluke"], t["fluke"] * t["fork"]
    parts = [body, *_eyes(body, 0.14, (0.4 + math.pi / 2, -0.4 - math.pi / 2), 0.13 * h, 0 * t["base"] + 0.92)]
    for sign in (1, -1):
        lobe = ((-0.47 - s * fluke, sway(-0.47 - s * fluke), sign * s * spread) for s in (0.0, 0.35, 0.7, 1.0))
        axes = _axes(*((a * fluke, 0.014) for a in (0.14, 0.22, 0.2, 0.06)))
        parts.append(Part(_FIN, _points(*lobe), axes, up, t["fins"], t["accent"]))
    ridge = (0.16, 0.02, -0.14, -0.28)
    crest = ((x, sway(x), a * h) for x, a in zip(ridge, (0.85, 0.95, 0.8, 0.5)))
    axes = _axes(*((a * t["crest"] * h, 0.014) for a in (0.25, 0.55, 0.5, 0.2)))
    parts.append(Part(_FIN, _points(*crest), axes, up, t["fins"]))
    for sign in (1, -1):
        angle = 0.5 + t["paddle"] * beat.wave(0.1 if sign > 0 else 0.25)
        out = [0.55 * w * h + s * 0.9 * h * torch.sin(angle) for s in (0.0, 0.33, 0.66, 1.0)]
        back = [0.2 - s * 0.9 * h * torch.cos(angle) for s in (0.0, 0.33, 0.66, 1.0)]
        paddle = ((b, sway(0.2) + sign * o, -0.3 * h - 0.3 * (0.2 - b)) for o, b in zip(out, back))
        axes = _axes(*((a * h, 0.014) for a in (0.12, 0.25, 0.28, 0.15)))
        parts.append(Part(_FIN, _points(*paddle), axes, up, t["fins"]))
    return parts


# ---- snakes ----------------------------------------------------------------------------------------------------------

_SKINS = [
    [0.35, 0.5, 0.2],
    [0.7, 0.55, 0.25],
    [0.75, 0.25, 0.18],
    [0.45, 0.42, 0.38],
    [0.85, 0.75, 0.35],
    [0.2, 0.45, 0.45],
]
_SNAKE_JOINTS = 18
_SNAKE = Lattice(_SNAKE_JOINTS, 84, 14, (0.02, 0.03))


def _snake_traits(draw: Draw) -> Traits:
    return {
        **_coat(draw, _SKINS, (1, 1, 2, 4, 0)),
        "thick": draw.uniform(0.04, 0.07, 1),
        "sway": draw.uniform(0.1, 0.2, 1),
        "waves": draw.uniform(1.1, 2.0, 1),
        "raise": draw.uniform(0.1, 0.4, 1),
        "nod": draw.uniform(0.05, 0.2, 1),
        "hood": draw.uniform(1.0, 2.0, 1),
    }


def _snake_parts(t: Traits, beat: Beat) -> list[Part]:
    """Joint 0 is the tip of the tail."""
    thick = t["thick"]
    points: list[tuple[Tensor | float, Tensor | float, Tensor | float]] = []
    axes: list[tuple[Tensor | float, Tensor | float]] = []
    for joint in range(_SNAKE_JOINTS):
        s = joint / (_SNAKE_JOINTS - 1)
        x = 1.5 * (s - 0.5)
        still = 1 - max(0.0, (s - 0.75) / 0.25) ** 2 * 0.8
        rest = torch.sin(math.tau * t["waves"] * s)  # a snake at rest lies in waves too
        y = t["sway"] * still * (beat.wave(t["waves"] * s) + (1 - beat.strength) * rest)
        lift = max(0.0, (s - 0.72) / 0.28)
        # The head comes up in an S and then looks ahead.
        z = t["raise"] * (1 + t["nod"] * beat.wave(0.2)) * math.sin(0.5 * math.pi * lift) ** 2
        points.append((x - 0.5 * t["raise"] * lift * (1 - lift), y, thick + z))
        width = min(1.0, 0.12 + 2.2 * s)
        flare = 1 + (t["hood"] - 1) * math.exp(-(((s - 0.9) / 0.05) ** 2))
        skull = 1 + 0.35 * math.exp(-(((s - 0.98) / 0.03) ** 2))
        axes.append((width * skull * thick * (0.75 if s > 0.95 else 1.0), width * flare * skull * thick))
    body = Part(_SNAKE, _points(*points), _axes(*axes), _direction(_UP, thick))
    return [body, *_eyes(body, 0.975, (0.65, -0.65), 0.28 * thick, 0 * t["base"] + 0.9)]


# ---- blobs -----------------------------------------------------------------------------------------------------------

_JELLIES = [
    [0.35, 0.75, 0.35],
    [0.3, 0.55, 0.9],
    [0.9, 0.45, 0.6],
    [0.65, 0.4, 0.85],
    [0.95, 0.7, 0.25],
    [0.3, 0.75, 0.75],
]
_BLOB = Lattice(5, 40, 36, (0.5, 0.5))
_HORN = Lattice(4, 12, 8, (0.1, 0.1))
_FOOT = Lattice(2, 12, 14, (0.5, 0.5))


def _blob_traits(draw: Draw) -> Traits:
    return {
        **_coat(draw, _JELLIES, (0, 2, 2, 3, 1)),
        "height": draw.uniform(0.6, 1.1, 1),
        "width": draw.uniform(0.36, 0.52, 1),
        "pear": draw.uniform(-0.15, 0.25, 1),
        "squash": draw.uniform(0.1, 0.3, 1),
        "lean": draw.uniform(0.0, 0.2, 1),
        "ripple": draw.uniform(0.0, 0.12, 1),
        "jump": draw.uniform(0.0, 0.5, 1) * draw.chance(0.6, 1),
        "horn": draw.uniform(0.15, 0.35, 1),
        "eye": draw.uniform(0.07, 0.12, 1),
        "feet": draw.pick(_JELLIES),
    }


def _blob_parts(t: Traits, beat: Beat) -> list[Part]:
    ahead = _direction(_AHEAD, beat.phase)
    stretch = 1 + t["squash"] * beat.wave(0.08)
    height, width = t["height"] * stretch, t["width"] * stretch.rsqrt()
    ground = t["jump"] * beat.rise() + 0.04
    lean = t["lean"] * beat.wave(0.3)
    points: list[tuple[Tensor | float, Tensor | float, Tensor | float]] = []
    axes = []
    for joint in range(5):
        s = joint / 4
        points.append((lean * s * s, 0.6 * t["lean"] * s * s * beat.wave(0.05), ground + s * height))
        swell = 1 + t["pear"] * (1 - 2 * s) + t["ripple"] * beat.wave(0.25 * joint)
        axes.append((width * swell, width * swell))
    body = Part(_BLOB, _points(*points), _axes(*axes), ahead)
    eye = t["eye"]
    parts = [body, *_eyes(body, 0.66, (0.38, -0.38), eye, 0 * t["base"] + 0.95)]
    for sign in (1, -1):
        root = _spot(body, 0.9, sign * math.pi / 2)
        swing = 0.4 * beat.wave(0.35)
        base = root.at(0.6)
        away = torch.stack([0.5 * swing, sign * (0.5 + 0.1 * swing), 0 * swing + 0.9], -1)
        joints = torch.stack([base + share * t["horn"][..., None] * away for share in (0.0, 0.35, 0.7, 1.0)], -2)
        thin = 0.025 + 0 * eye
        parts.append(Part(_HORN, joints, _axes(*((k * thin, k * thin) for k in (1.4, 1.0, 0.8, 0.7))), ahead))
        parts.append(
            _ball(joints[..., -1, :], 0.05 + 0 * eye, away / away.norm(dim=-1, keepdim=True), ahead, t["feet"])
        )
        foot = t["jump"] * beat.rise(0.03)
        y = sign * 0.5 * t["width"] + 0 * foot
        joints = _points((-0.12 + 0 * foot, y, foot + 0.05), (0.3 + 0 * foot, y, foot + 0.05))
        parts.append(
            Part(_FOOT, joints, _axes(*((0.13 + 0 * eye, 0.07 + 0 * eye),) * 2), _direction(_LEFT, foot), t["feet"])
        )
    return parts


PLANS = {
    "quadruped": BodyPlan(_quadruped_traits, _quadruped_parts),
    "bird": BodyPlan(_bird_traits, _bird_parts),
    "fish": BodyPlan(_fish_traits, _fish_parts),
    "snake": BodyPlan(_snake_traits, _snake_parts),
    "blob": BodyPlan(_blob_traits, _blob_parts),
}
