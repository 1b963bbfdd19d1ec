"""How a scene moves: terms that change a set of Gaussians as a function of time.

A scene holds a tuple of terms and applies them in order. A term of domain "raw" acts before the activations, one of
domain "activated" after them. Polynomials (`Poly`) and sampled differences (`Delta`) are here; a further law is one
more subclass of `Motion` with its own `kind`, listed in `MOTIONS`.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Dict, Mapping, NamedTuple, Optional, Tuple, Type

import numpy as np
from numpy.typing import NDArray

from edge4d.runtime.errors import InvalidScene
from edge4d.runtime.gaussians import Gaussians, check_array, normalized
from edge4d.runtime.rotations import left_multiplications, quats_from_rotvecs, rotations_from_quats

MAX_GROUPS = 4096
"""Motion groups of one scene. Each costs a small matrix product per frame; instance masks here have at most 64."""

MAX_TERMS = 8
"""Coefficients of one polynomial. Pixel-to-4D has 2."""

WIDTHS = {"means": 3, "scales": 3, "quats": 4, "opacities": 1, "colors": 3}
"""What a `Delta` can change, and in how many channels. "colors" is RGB or the constant coefficient of SH."""


class Groups(NamedTuple):
    """Which Gaussians move together: found once per scene, used for every frame.

    Attributes:
        order: [n] indices of the Gaussians of groups 1, 2, ..., sorted by group; those of group 0 stand still.
        members: (group, start, stop) of each group that has Gaussians; they are order[start:stop].
    """

    order: NDArray[np.int64]
    members: Tuple[Tuple[int, int, int], ...]


def groups_from_ids(ids: NDArray[np.int32]) -> Groups:
    """The groups of N Gaussians from their ids [N], 0 or larger."""
    moving = np.flatnonzero(ids)
    order = moving[np.argsort(ids[moving], kind="stable")]
    found, starts = np.unique(ids[order], return_index=True)
    stops = [*starts[1:].tolist(), len(order)]
    return Groups(order, tuple(zip(found.tolist(), starts.tolist(), stops)))


@dataclass(frozen=True, eq=False)
class Motion(ABC):
    """One term of a scene's motion. Its arrays and settings are the fields of the dataclass, and are saved as such."""

    kind: ClassVar[str]

    @property
    @abstractmethod
    def domain(self) -> str:
        """ "raw": applied before the activations; "activated": after them."""

    @abstractmethod
    def check(self, count: int, groups: int) -> None:
        """Raise InvalidScene unless the term fits `count` Gaussians with group ids below `groups`."""

    @abstractmethod
    def apply(self, gaussians: Gaussians, groups: Groups, t: float) -> Gaussians:
        """The Gaussians at t seconds. Arrays that do not change are passed on, those that do are new."""

    def tensors(self) -> Dict[str, NDArray[Any]]:
        """The term's arrays by field name."""
        return {name: value for name, value in self._fields() if isinstance(value, np.ndarray)}

    def settings(self) -> Dict[str, Any]:
        """The term's other fields, as JSON holds them."""
        return {
            name: value for name, value in self._fields() if value is not None and not isinstance(value, np.ndarray)
        }

    def _fields(self) -> Tuple[Tuple[str, Any], ...]:
        return tuple((f.name, getattr(self, f.name)) for f in dataclasses.fields(self))


@dataclass(frozen=True, eq=False)
class Poly(Motion):
    """Rigid motion of groups of Gaussians, polynomial in time.

    With theta(t) = sum_i angular_i t^(i+1) (a rotation vector, radians) and R = exp(theta):
    mu(t) = c + R (mu_0 - c) + sum_i linear_i t^(i+1), q(t) = quat(theta) q_0; everything else is constant.
    Constant acceleration is linear = [v, a / 2], angular = [omega, alpha / 2].

    Attributes:
        centres: [M, 3] float32, metres. Row 0 belongs to the static group and is not used.
        linear: [M, P, 3] float32, metres per second^(i+1).
        angular: [M, Q, 3] float32, radians per second^(i+1).
    """

    kind: ClassVar[str] = "poly"
    centres: NDArray[np.float32]
    linear: NDArray[np.float32]
    angular: NDArray[np.float32]

    def __post_init__(self) -> None:
        M = len(self.centres) if isinstance(self.centres, np.ndarray) and self.centres.ndim else 0
        if not 1 <= M <= MAX_GROUPS:
            raise InvalidScene(
                "A polynomial motion has an impossible number of groups.",
                note=f"found {M}; 1 to {MAX_GROUPS} are allowed, the first of which stands still.",
                hint="Give centres of shape [M, 3].",
            )
        check_array("centres", self.centres, ("float32",), (M, 3))
        for name, array in (("linear", self.linear), ("angular", self.angular)):
            check_array(name, array, ("float32",), (M, None, 3))
            if array.shape[1] > MAX_TERMS:
                raise InvalidScene(
                    f"The motion's {name} part has too many coefficients.",
                    note=f"found {array.shape[1]}; at most {MAX_TERMS} are allowed.",
                    hint="Give the coefficients of t, t^2, ... as [M, P, 3].",
                )
        for name, array in self.tensors().items():
            if not np.isfinite(array).all():
                raise InvalidScene(
                    f"The motion's {name} hold NaN or Inf, which would spread to whole groups of Gaussians.",
                    note=f"{int((~np.isfinite(array)).sum())} of {array.size} values are not finite.",
                    hint="Check the network's outputs; fp16 overflows above 65504.",
                )

    @property
    def domain(self) -> str:
        return "activated"

    def check(self, count: int, groups: int) -> None:
        if groups > len(self.centres):
            raise InvalidScene(
                "A Gaussian belongs to a group that the motion does not have.",
                note=f"the largest group is {groups - 1}; the motion has {len(self.centres)} groups, counted from 0.",
                hint="Give centres, linear and angular a row for each group.",
            )

    def apply(self, gaussians: Gaussians, groups: Groups, t: float) -> Gaussians:
        if len(groups.order) == 0 or t == 0.0:
            return gaussians
        theta, shift = _polynomial(self.angular, t), _polynomial(self.linear, t)
        turns = quats_from_rotvecs(theta)
        rotations = rotations_from_quats(turns).astype(np.float32)
        products = left_multiplications(turns).astype(np.float32)
        places = (self.centres + shift).astype(np.float32)
        means, quats = gaussians.means.take(groups.order, axis=0), gaussians.quats.take(groups.order, axis=0)
        for group, start, stop in groups.members:
            part = slice(start, stop)
            means[part] = (means[part] - self.centres[group]) @ rotations[group].T + places[group]
            quats[part] = quats[part] @ products[group].T
        return gaussians._replace(
            means=_replaced(gaussians.means, groups.order, means), quats=_replaced(gaussians.quats, groups.order, quats)
        )


@dataclass(frozen=True, eq=False)
class Delta(Motion):
    """Differences of some or all Gaussians, sampled in time.

    Attributes:
        times: [T] float64 seconds, increasing. Before the first and after the last their differences hold.
        data: [T, n, C] float32 or float16.
        layout: which channels of C change what: {"means": (0, 3), "quats": (3, 7), ...}; names and widths in `WIDTHS`.
        ids: [n] int32 indices of the Gaussians, each at most once; None when data holds all N in order.
        domain: "raw" adds before the activations, "activated" after them (opacities are then kept in [0, 1] and scales
            from going negative).
        rotation: "add" to the quaternion, or a quaternion that multiplies it: "mul_left" turns in world axes,
            "mul_right" in the Gaussian's own. Only "add" makes sense in the raw domain.
        interpolation: "hold" the latest sample, or "linear" between neighbours.
    """

    kind: ClassVar[str] = "delta"
    times: NDArray[np.float64]
    data: NDArray[Any]
    layout: Mapping[str, Tuple[int, int]]
    ids: Optional[NDArray[np.int32]] = None
    domain: str = "activated"
    rotation: str = "add"
    interpolation: str = "linear"

    def __post_init__(self) -> None:
        check_array("times", self.times, ("float64",), (None,))
        check_array("data", self.data, ("float32", "float16"), (len(self.times), None, None))
        if len(self.times) == 0 or not np.isfinite(self.times).all() or np.any(np.diff(self.times) <= 0.0):
            raise InvalidScene(
                "The times of a motion must be finite and increase.",
                note=f"found {len(self.times)} times.",
                hint="Sort the samples by time and drop repetitions.",
            )
        for name, allowed in _DELTA_CHOICES.items():
            if getattr(self, name) not in allowed:
                raise InvalidScene(
                    f"The motion's {name} is unknown.",
                    note=f"it is {getattr(self, name)!r}; known are {', '.join(allowed)}.",
                    hint="The file may come from a newer edge4d.",
                )
        if self.domain == "raw" and self.rotation != "add":
            raise InvalidScene(
                "Raw quaternions cannot be multiplied: they have no length yet.",
                note=f"domain is raw and rotation is {self.rotation}.",
                hint='Use rotation="add", or domain="activated".',
            )
        object.__setattr__(self, "layout", _checked_layout(self.layout, self.data.shape[2]))

    def check(self, count: int, groups: int) -> None:
        n = self.data.shape[1]
        if self.ids is None:
            check_array("data", self.data, ("float32", "float16"), (len(self.times), count, None))
            return
        check_array("ids", self.ids, ("int32",), (n,))
        if n and (self.ids.min() < 0 or self.ids.max() >= count or len(np.unique(self.ids)) < n):
            raise InvalidScene(
                "The motion's ids are out of range or not distinct.",
                note=f"they run from {self.ids.min()} to {self.ids.max()}; the scene has {count} Gaussians.",
                hint="Each id must be the index of one Gaussian.",
            )

    def apply(self, gaussians: Gaussians, groups: Groups, t: float) -> Gaussians:
        deltas = self._at(t)
        changed: Dict[str, NDArray[np.float32]] = {}
        for name, (start, stop) in self.layout.items():
            whole = getattr(gaussians, name)
            part = whole if self.ids is None else whole[self.ids]
            part = self._changed(name, part, deltas[:, start:stop])
            changed[name] = part if self.ids is None else _replaced(whole, self.ids, part)
        return gaussians._replace(**changed)

    def _at(self, t: float) -> NDArray[np.float32]:
        """[n, C] differences at t."""
        i = int(np.searchsorted(self.times, t, side="right")) - 1
        if i < 0 or i == len(self.times) - 1 or self.interpolation == "hold":
            return np.asarray(self.data[max(i, 0)], np.float32)
        before, after = self.data[i].astype(np.float32), self.data[i + 1].astype(np.float32)
        if "quats" in self.layout and self.rotation != "add":
            # q and -q are one rotation: interpolate along the shorter of the two ways.
            part = slice(*self.layout["quats"])
            opposite = np.einsum("nc,nc->n", before[:, part], after[:, part]) < 0.0
            after[opposite, part] *= -1.0
        weight = np.float32((t - self.times[i]) / (self.times[i + 1] - self.times[i]))
        between: NDArray[np.float32] = before + weight * (after - before)
        return between

    def _changed(self, name: str, values: NDArray[np.float32], deltas: NDArray[np.float32]) -> NDArray[np.float32]:
        if name == "colors" and values.ndim == 3:
            values = values.copy()
            values[:, 0] += deltas
            return values
        if name == "quats" and self.rotation != "add":
            a, b = (deltas, values) if self.rotation == "mul_left" else (values, deltas)
            return normalized(_multiplied(a, b))
        changed: NDArray[np.float32] = values + (deltas[:, 0] if name == "opacities" else deltas)
        if self.domain == "raw":
            return changed
        if name == "opacities":
            return np.asarray(np.clip(changed, np.float32(0.0), np.float32(1.0)), np.float32)
        if name == "scales":
            return np.asarray(np.maximum(changed, np.float32(0.0)), np.float32)
        return normalized(changed) if name == "quats" else changed


MOTIONS: Dict[str, Type[Motion]] = {motion.kind: motion for motion in (Poly, Delta)}

_DELTA_CHOICES = {
    "domain": ("raw", "activated"),
    "rotation": ("add", "mul_left", "mul_right"),
    "interpolation": ("hold", "linear"),
}


def _polynomial(coefficients: NDArray[np.float32], t: float) -> NDArray[np.float64]:
    """sum_i coefficients[:, i] t^(i+1), [M, 3], in float64."""
    powers = float(t) ** np.arange(1, coefficients.shape[1] + 1, dtype=np.float64)
    return np.asarray(np.einsum("mpc,p->mc", coefficients, powers), np.float64)


def _replaced(whole: NDArray[np.float32], indices: NDArray[Any], part: NDArray[np.float32]) -> NDArray[np.float32]:
    """A copy of whole with whole[indices] = part."""
    copy = np.array(whole)
    copy[indices] = part
    return copy


def _multiplied(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Quaternion products [N, 4] in float32."""
    w, x, y, z = a.T
    W, X, Y, Z = b.T
    product = [
        w * W - x * X - y * Y - z * Z,
        w * X + x * W + y * Z - z * Y,
        w * Y - x * Z + y * W + z * X,
        w * Z + x * Y - y * X + z * W,
    ]
    return np.stack(product, axis=-1)


def _checked_layout(layout: Any, channels: int) -> Dict[str, Tuple[int, int]]:
    """The layout with tuples, after checking that its parts are known, of the right width, inside and apart."""
    checked: Dict[str, Tuple[int, int]] = {}
    taken = np.zeros(channels, np.int64)
    for name, span in dict(layout).items() if isinstance(layout, Mapping) else ():
        fits = isinstance(span, (tuple, list)) and len(span) == 2 and all(type(edge) is int for edge in span)
        if (
            name not in WIDTHS
            or not fits
            or span[1] - span[0] != WIDTHS[name]
            or not 0 <= span[0] < span[1] <= channels
        ):
            raise InvalidScene(
                f"The layout of a motion cannot be used at {str(name)[:40]!r}.",
                note=f"found {str(span)[:80]} in {channels} channels; known names and widths are {WIDTHS}.",
                hint="Give a start and a stop for each name.",
            )
        taken[span[0] : span[1]] += 1
        checked[name] = (span[0], span[1])
    if not checked or taken.max() > 1:
        raise InvalidScene(
            "The layout of a motion is empty or its parts overlap.",
            note=f"found {str(layout)[:200]}.",
            hint="Give each name its own channels.",
        )
    return checked
