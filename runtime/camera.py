"""Pinhole cameras: OpenCV axes (x right, y down, z forward), pixel centres at (i + 0.5, j + 0.5)."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Tuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edge4d.runtime.errors import InvalidCamera

FloatArray = NDArray[np.float64]

MAX_SIZE = 16384
"""Pixels along one side: the largest texture of common GPUs, and four times 4K."""

ROTATION_TOLERANCE = 1e-4
"""Largest |RT R - I| of a pose. Float32 poses (1e-7 per entry, a few 1e-6 after a chain of products) and text with five
decimals (5e-6 per entry, 2e-5 here) pass; a scale hidden in the pose that would move a point 100 m away by 1 cm does
not."""

MAX_DISTANCE = 1e7
"""Metres from the origin. Beyond it neighbouring float32 positions lie a metre apart, so nothing could be rendered."""


@dataclass(frozen=True, eq=False)
class Camera:
    """One pinhole camera. Immutable: its arrays are read-only copies in float64.

    Attributes:
        width, height: pixels.
        K: [3, 3] intrinsics in pixels, [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]. The rasterizer has no skew.
        c2w: [4, 4] camera to world, metres, rigid.

    Raises:
        InvalidCamera: a size, the intrinsics or the pose cannot be used.
    """

    width: int
    height: int
    K: FloatArray
    c2w: FloatArray = field(default_factory=lambda: np.eye(4))

    def __post_init__(self) -> None:
        _check_size(self.width, self.height)
        for name, side in (("width", int(self.width)), ("height", int(self.height))):
            object.__setattr__(self, name, side)
        object.__setattr__(self, "K", _checked_intrinsics(self.K))
        object.__setattr__(self, "c2w", _checked_pose(self.c2w))

    @classmethod
    def from_intrinsics(cls, width: int, height: int, fx: float, fy: float, cx: float, cy: float) -> Camera:
        """A camera at the origin with focal lengths and principal point in pixels."""
        return cls(width, height, np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]]))

    @classmethod
    def from_fov(cls, width: int, height: int, fov_x_degrees: float) -> Camera:
        """A camera at the origin with square pixels, its principal point in the middle and this horizontal view."""
        if not 0.0 < fov_x_degrees < 180.0:
            raise InvalidCamera(
                "The field of view cannot be that of a pinhole camera.",
                note=f"it is {fov_x_degrees} degrees; it must lie strictly between 0 and 180.",
                hint="Give the horizontal field of view in degrees; most phones have about 65.",
            )
        focal = 0.5 * width / math.tan(math.radians(0.5 * fov_x_degrees))
        return cls.from_intrinsics(width, height, focal, focal, 0.5 * width, 0.5 * height)

    @property
    def intrinsics(self) -> Tuple[float, float, float, float]:
        """fx, fy, cx, cy in pixels."""
        return float(self.K[0, 0]), float(self.K[1, 1]), float(self.K[0, 2]), float(self.K[1, 2])

    @property
    def viewmat(self) -> FloatArray:
        """[4, 4] world to camera, float64."""
        return np.asarray(np.linalg.inv(self.c2w), np.float64)

    def with_pose(self, c2w: ArrayLike) -> Camera:
        """The same camera at another pose [4, 4]."""
        return dataclasses.replace(self, c2w=np.asarray(c2w))

    def resized(self, width: int, height: int) -> Camera:
        """The camera of the picture resampled to width x height pixels: what it sees stays the same.

        With pixel centres at +0.5 the picture's edges lie at 0 and width, so resampling multiplies every coordinate.
        """
        _check_size(width, height)
        scale = np.array([[width / self.width], [height / self.height], [1.0]])
        return dataclasses.replace(self, width=width, height=height, K=self.K * scale)

    def cropped(self, left: int, top: int, width: int, height: int) -> Camera:
        """The camera of the width x height pixels whose first column and row are left and top of this picture."""
        _check_size(width, height)
        if left < 0 or top < 0 or left + width > self.width or top + height > self.height:
            raise InvalidCamera(
                "The crop does not lie inside the picture.",
                note=f"columns {left}..{left + width} of {self.width}, rows {top}..{top + height} of {self.height}.",
                hint="Choose left + width and top + height no larger than the picture.",
            )
        K = self.K.copy()
        K[0, 2] -= left
        K[1, 2] -= top
        return dataclasses.replace(self, width=width, height=height, K=K)


def _check_size(width: Any, height: Any) -> None:
    for name, side in (("width", width), ("height", height)):
        if isinstance(side, bool) or not isinstance(side, (int, np.integer)) or not 1 <= side <= MAX_SIZE:
            raise InvalidCamera(
                f"The picture's {name} cannot be used.",
                note=f"it is {side!r}; it must be a whole number from 1 to {MAX_SIZE}.",
                hint="Give the size in pixels, for example 448 x 256.",
            )


def _checked_intrinsics(K: ArrayLike) -> FloatArray:
    K = _float_matrix("intrinsics K", K, (3, 3))
    if np.any(K[[0, 1, 2, 2], [1, 0, 0, 1]] != 0.0) or K[2, 2] != 1.0 or K[0, 0] <= 0.0 or K[1, 1] <= 0.0:
        raise InvalidCamera(
            "The intrinsics are not those of a pinhole camera without skew.",
            note=f"K is {K.tolist()}; it must be [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] with fx > 0 and fy > 0.",
            hint="Use Camera.from_intrinsics(width, height, fx, fy, cx, cy) or Camera.from_fov(width, height, 60.0).",
        )
    return K


def _checked_pose(c2w: ArrayLike) -> FloatArray:
    c2w = _float_matrix("pose c2w", c2w, (4, 4))
    rotation = c2w[:3, :3]
    with np.errstate(over="ignore", invalid="ignore"):
        error = float(np.abs(rotation.T @ rotation - np.eye(3)).max())
    bottom = c2w[3].tolist()
    if not error <= ROTATION_TOLERANCE or np.linalg.det(rotation) < 0.0 or bottom != [0.0, 0.0, 0.0, 1.0]:
        raise InvalidCamera(
            "The camera's pose is not a rotation and a translation.",
            note=f"|RT R - I| is {error:.3g} and at most {ROTATION_TOLERANCE:g} is allowed, det R must be +1; "
            f"the last row is {bottom} and must be [0, 0, 0, 1].",
            hint="Give the camera-to-world matrix without scale, shear or mirroring.",
        )
    farthest = float(np.abs(c2w[:3, 3]).max())
    if farthest > MAX_DISTANCE:
        raise InvalidCamera(
            "The camera is too far from the origin.",
            note=f"a coordinate of {farthest:g} m; at most {MAX_DISTANCE:g} m is allowed.",
            hint="Make the poses relative to the first camera, and check that they are in metres.",
        )
    return c2w


def _float_matrix(name: str, matrix: ArrayLike, shape: Tuple[int, int]) -> FloatArray:
    """A read-only float64 copy of a finite matrix of this shape."""
    try:
        copy = np.array(matrix, np.float64)
    except (TypeError, ValueError, OverflowError):
        copy = np.empty(0)
    if copy.shape != shape or not np.isfinite(copy).all():
        raise InvalidCamera(
            f"The camera's {name} is not a matrix of finite numbers.",
            note=f"found {str(matrix)[:200]}; expected {shape[0]}x{shape[1]} finite numbers.",
            hint="Check where the matrix comes from for NaN, Inf or a missing row.",
        )
    copy.flags.writeable = False
    return copy
