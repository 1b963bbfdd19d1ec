"""Canonical Gaussians as GVFDiffusion changes them: raw values in the object's frame, from assets of any origin.

The object's frame is that of `edge4d.runtime.object_views`: z up, within the cube from -0.5 to 0.5.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edge4d.runtime.errors import InvalidRequest, InvalidScene
from edge4d.runtime.gaussians import Float32Array, Gaussians, normalized
from edge4d.runtime.ply import C0
from edge4d.runtime.rotations import multiply_quats, quat_from_rotation, quats_from_rotvecs, rotations_from_quats
from edge4d.runtime.variation_field import ACTIVATION

UP = {
    "z": np.eye(3),
    "y": np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]]),
    "-y": np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]]),
}
"""By the axis that points up in a file: the rotation [3,3] of its frame to the object's. Cameras have "-y"."""

_BARELY = 1e-6  # raw values of scales and opacities that nothing finite would give
_FILLS = 0.25  # of the cube's side: what is smaller is in units of its own
_STRAY = 0.5  # percent of Gaussians at either end that do not count for an object's extent


class Placement:
    """How an object comes into the unit cube: x becomes scale · x + shift.

    One within the cube whose longest side is a quarter of it stays where it is; any other is centred and scaled to fill
    it.

    Args:
        points: [N,3] of the object, z up.

    Raises:
        InvalidScene: the object has no extent.
    """

    def __init__(self, points: Float32Array) -> None:
        low, high = np.percentile(points, (_STRAY, 100.0 - _STRAY), axis=0)
        extent = float((high - low).max())
        if not extent > 0.0:
            raise InvalidScene(
                "The object is a single point.",
                note=f"It has {len(points)} Gaussians or vertices, all in one place.",
                hint="Look at the file in an editor, and export it again.",
            )
        within = max(np.abs(low).max(), np.abs(high).max()) <= 0.5 + 1e-3
        self.scale = 1.0 if within and extent >= _FILLS else 1.0 / extent
        self.shift = np.zeros(3) if self.scale == 1.0 else -0.5 * self.scale * (low + high)

    def points(self, points: Float32Array) -> Float32Array:
        """Points [...,3] in the cube."""
        placed: Float32Array = (self.scale * points + self.shift).astype(np.float32)
        return placed

    def gaussians(self, gaussians: Gaussians) -> Gaussians:
        """Activated Gaussians in the cube."""
        scales = (self.scale * gaussians.scales).astype(np.float32)
        return gaussians._replace(means=self.points(gaussians.means), scales=scales)


def up_rotation(up: str) -> NDArray[np.float64]:
    """Of `UP`. Raises InvalidRequest for another axis."""
    if up not in UP:
        raise InvalidRequest(f"'{up}' does not point up.", hint=f"Use {', '.join(UP)}.")
    return UP[up]


def rotated(gaussians: Gaussians, rotation: NDArray[np.float64]) -> Gaussians:
    """Activated Gaussians by a rotation [3,3], with colours that do not depend on the direction."""
    return gaussians._replace(
        means=(gaussians.means @ rotation.T).astype(np.float32),
        quats=multiply_quats(quat_from_rotation(rotation), gaussians.quats).astype(np.float32),
        colors=_constant_harmonics(gaussians.colors),
    )


def turned(gaussians: Gaussians, degrees: float) -> Gaussians:
    """The same about the upward axis, anticlockwise as seen from above."""
    return rotated(gaussians, rotations_from_quats(quats_from_rotvecs([0.0, 0.0, math.radians(degrees)])))


def _constant_harmonics(colors: Float32Array) -> Float32Array:
    """[N,1,3] of RGB [N,3] or harmonics [N,K,3]."""
    constant = colors[:, 0] if colors.ndim == 3 else (colors - np.float32(0.5)) / np.float32(C0)
    return np.ascontiguousarray(constant[:, None])


def raw_from_gaussians(gaussians: Gaussians) -> Gaussians:
    """What `ACTIVATION` makes these of. Scales below its floor come back as the floor."""
    quats = normalized(gaussians.quats)
    quats = np.where(quats[:, :1] < 0.0, -quats, quats)  # changes are added to them, so that their sign matters
    floor = ACTIVATION.scale_floor
    softplus = np.sqrt(np.maximum(gaussians.scales.astype(np.float64) ** 2 - floor**2, _BARELY**2))
    opacities = np.clip(gaussians.opacities.astype(np.float64), _BARELY, 1.0 - _BARELY)
    return gaussians._replace(
        quats=(quats - np.array(ACTIVATION.quat_bias)).astype(np.float32),
        scales=(softplus + np.log(-np.expm1(-softplus)) - ACTIVATION.scale_bias).astype(np.float32),
        opacities=(np.log(opacities) - np.log1p(-opacities) - ACTIVATION.opacity_bias).astype(np.float32),
    )
