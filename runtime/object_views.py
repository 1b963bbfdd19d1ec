"""Cameras around an object that fills the unit cube, as GVFDiffusion and TRELLIS have them.

The object's frame: z up, the cube from -0.5 to 0.5. Azimuth 0 looks along +y, at the object's front; 90 degrees looks
along -x, at what is to the right of that picture.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edge4d.runtime.camera import Camera

RADIUS = 2.0
FOV = 49.1
"""Degrees."""


def object_camera(size: int, azimuth: float = 0.0, elevation: float = 0.0, radius: float = RADIUS) -> Camera:
    """A square camera of `size` pixels that looks at the middle of the cube.

    Args:
        azimuth, elevation: degrees; above the object is positive, at most 89.
        radius: distance from the middle.

    Raises:
        InvalidCamera: the size cannot be used.
    """
    return Camera.from_fov(size, size, FOV).with_pose(object_pose(azimuth, elevation, radius))


def object_pose(azimuth: float, elevation: float = 0.0, radius: float = RADIUS) -> NDArray[np.float64]:
    """[4, 4] camera to object of `object_camera`."""
    a, e = math.radians(azimuth), math.radians(elevation)
    back = np.array([math.cos(e) * math.sin(a), -math.cos(e) * math.cos(a), math.sin(e)])
    right = np.array([math.cos(a), math.sin(a), 0.0])
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(-back, right), -back], axis=1)
    pose[:3, 3] = radius * back
    return pose
