"""Scene4D: canonical Gaussians, how to activate them, and how they move."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Tuple, Union

import numpy as np
from numpy.typing import NDArray

from edge4d.runtime.camera import Camera
from edge4d.runtime.errors import InvalidRequest, InvalidScene
from edge4d.runtime.gaussians import Activation, Gaussians, check_array, checked_number, checked_numbers
from edge4d.runtime.motion import MAX_GROUPS, Groups, Motion, groups_from_ids

__all__ = ["Activation", "Gaussians", "Scene4D"]

MAX_GAUSSIANS = 1 << 26
"""67 million Gaussians, 3.8 GB of RGB ones: sixty times the largest scene of the systems here."""

MAX_MOTIONS = 256

SH_COEFFICIENTS = (1, 4, 9, 16)
"""Spherical harmonics of degree 0, 1, 2 and 3."""


@dataclass(frozen=True, eq=False)
class Scene4D:
    """N Gaussians in the frame of the input camera, moving with time. Immutable; do not write into its arrays.

    Attributes:
        means: [N, 3] float32, metres, x right, y down, z forward.
        quats: [N, 4] float32, wxyz, of any length.
        scales: [N, 3] float32, before `activation`.
        opacities: [N] float32, before `activation`.
        colors: [N, 3] RGB or [N, K, 3] SH coefficients (K = 1, 4, 9, 16), float32.
        groups: [N] int32, the motion group of each Gaussian; 0 stands still.
        camera: the input camera, where `render` starts.
        activation: how the stored values become what the rasterizer takes.
        motion: terms in the order in which they are applied; raw ones before activated ones.
        t0, t1: seconds between which the motion is meaningful; t = 0 is the input image.
        fps: frames per second that the scene was made for.
        metric: whether lengths are metres, or known up to a factor only.
        background: RGB behind everything.
        source: which system made it.
        eps2d, antialiased: how the rasterizer must draw it (pixels^2; `CONVENTIONS.md`).

    Raises:
        InvalidScene: shapes, dtypes or values that do not fit together.
    """

    means: NDArray[np.float32]
    quats: NDArray[np.float32]
    scales: NDArray[np.float32]
    opacities: NDArray[np.float32]
    colors: NDArray[np.float32]
    groups: NDArray[np.int32]
    camera: Camera
    activation: Activation = field(default_factory=Activation)
    motion: Tuple[Motion, ...] = ()
    t0: float = 0.0
    t1: float = 0.0
    fps: float = 12.0
    metric: bool = True
    background: Tuple[float, float, float] = (0.0, 0.0, 0.0)
    source: str = ""
    eps2d: float = 0.3
    antialiased: bool = False

    def __post_init__(self) -> None:
        self._check_arrays()
        for name in ("means", "quats", "scales", "opacities", "colors", "groups"):
            object.__setattr__(self, name, np.ascontiguousarray(getattr(self, name)))
        for name, low, high in (("t0", -1e6, 1e6), ("t1", -1e6, 1e6), ("fps", 1e-3, 1e3), ("eps2d", 0.0, 1e3)):
            object.__setattr__(self, name, checked_number(name, getattr(self, name), low, high))
        object.__setattr__(self, "background", checked_numbers("background", self.background, 3))
        object.__setattr__(self, "motion", tuple(self.motion))
        self._check_settings()
        self._check_motion()

    def __len__(self) -> int:
        """N."""
        return len(self.means)

    @property
    def sh_degree(self) -> int:
        """Degree of the spherical harmonics, 0 to 3, or -1 when the colours are RGB (the rasterizer's attribute)."""
        return -1 if self.colors.ndim == 2 else math.isqrt(self.colors.shape[1]) - 1

    def evaluate(self, t: float) -> Gaussians:
        """The activated Gaussians at t seconds; outside t0..t1 the motion is continued.

        Arrays that do not depend on t are shared between calls: do not write into the result.

        Raises:
            InvalidRequest: t is not a finite number.
        """
        self.check_time(t)
        # Gaussians that are not finite are the rasterizer's to skip and count.
        with np.errstate(over="ignore", invalid="ignore"):
            gaussians = self._raw_at(t) if self._moves_raw else self._activated
            for term in self.motion:
                if term.domain == "activated":
                    gaussians = term.apply(gaussians, self._groups, t)
        return gaussians

    def check_time(self, t: float) -> None:
        """Raises InvalidRequest unless t is a finite number."""
        if not math.isfinite(t):
            raise InvalidRequest(
                "A scene cannot be evaluated at this time.",
                note=f"t is {t}; it must be a finite number of seconds.",
                hint=f"The scene covers {self.t0} to {self.t1} s.",
            )

    def without_motion(self) -> Scene4D:
        """The same scene, frozen at its canonical state."""
        return dataclasses.replace(self, motion=())

    def save(self, path: Union[str, Path]) -> None:
        """Write the scene to one .safetensors file; see `scene_files` for the format.

        Raises:
            InvalidScene: the file cannot be written.
            BackendUnavailable: safetensors is not installed.
        """
        from edge4d.runtime.scene_files import write_scene

        write_scene(Path(path), self)

    @classmethod
    def load(cls, path: Union[str, Path]) -> Scene4D:
        """Read what `save` wrote, bit for bit.

        Raises:
            InvalidScene: the file is missing, damaged, of another version, or does not hold a scene.
            BackendUnavailable: safetensors is not installed.
        """
        from edge4d.runtime.scene_files import read_scene

        return read_scene(Path(path))

    @cached_property
    def _groups(self) -> Groups:
        return groups_from_ids(self.groups)

    @cached_property
    def _activated(self) -> Gaussians:
        return self.activation.apply(self._raw)

    @property
    def _raw(self) -> Gaussians:
        return Gaussians(self.means, self.quats, self.scales, self.opacities, self.colors)

    @property
    def _moves_raw(self) -> bool:
        return any(term.domain == "raw" for term in self.motion)

    def _raw_at(self, t: float) -> Gaussians:
        gaussians = self._raw
        for term in self.motion:
            if term.domain == "raw":
                gaussians = term.apply(gaussians, self._groups, t)
        return self.activation.apply(gaussians)

    def _check_arrays(self) -> None:
        N = len(self.means) if isinstance(self.means, np.ndarray) and self.means.ndim else 0
        if N > MAX_GAUSSIANS:
            raise InvalidScene(
                "The scene has too many Gaussians.",
                note=f"found {N}; at most {MAX_GAUSSIANS} are allowed.",
                hint="Drop Gaussians of low opacity.",
            )
        for name, shape in (("means", (N, 3)), ("quats", (N, 4)), ("scales", (N, 3)), ("opacities", (N,))):
            check_array(name, getattr(self, name), ("float32",), shape)
        check_array("groups", self.groups, ("int32",), (N,))
        K = np.shape(self.colors)[1] if np.ndim(self.colors) == 3 else None
        check_array("colors", self.colors, ("float32",), (N, 3) if K is None else (N, K, 3))
        if K is not None and K not in SH_COEFFICIENTS:
            raise InvalidScene(
                "The colours are not spherical harmonics of degree 0 to 3.",
                note=f"found {K} coefficients; {', '.join(map(str, SH_COEFFICIENTS))} are possible.",
                hint="RGB colours have the shape [N, 3].",
            )

    def _check_settings(self) -> None:
        types = (
            ("camera", Camera, self.camera),
            ("activation", Activation, self.activation),
            ("metric", bool, self.metric),
            ("antialiased", bool, self.antialiased),
            ("source", str, self.source),
        )
        for name, kind, value in types:
            if not isinstance(value, kind):
                raise InvalidScene(
                    f"The scene's {name} has the wrong type.",
                    note=f"found {type(value).__name__}; expected {kind.__name__}.",
                    hint=f"Give a {kind.__name__}.",
                )
        if len(self.source) > 1024:
            raise InvalidScene(
                "The name of the scene's source is too long.",
                note=f"it has {len(self.source)} characters; at most 1024 are allowed.",
                hint="Give the name of the system or bundle.",
            )
        if self.t1 < self.t0:
            raise InvalidScene(
                "The scene ends before it begins.", note=f"t0 is {self.t0} s, t1 is {self.t1} s.", hint="Swap them."
            )

    def _check_motion(self) -> None:
        if len(self.motion) > MAX_MOTIONS:
            raise InvalidScene(
                "The scene has too many motion terms.",
                note=f"found {len(self.motion)}; at most {MAX_MOTIONS} are allowed.",
                hint="Bake several into one.",
            )
        first, last = (int(self.groups.min()), int(self.groups.max())) if len(self) else (0, 0)
        if first < 0 or last >= MAX_GROUPS:
            raise InvalidScene(
                "The motion groups are out of range.",
                note=f"they run from {first} to {last}; 0 to {MAX_GROUPS - 1} are allowed.",
                hint="Group 0 stands still; moving objects are numbered from 1.",
            )
        activated = False
        for term in self.motion:
            if term.domain == "raw" and activated:
                raise InvalidScene(
                    "A raw motion term comes after an activated one.",
                    note=f"the domains are {', '.join(term.domain for term in self.motion)}.",
                    hint="Put the raw terms first.",
                )
            activated = term.domain == "activated"
            term.check(len(self), last + 1)
