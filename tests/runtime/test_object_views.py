from __future__ import annotations

import math

import numpy as np
import pytest

from edge4d.runtime.errors import InvalidCamera
from edge4d.runtime.object_views import RADIUS, object_camera, object_pose


def pixel(camera, point) -> np.ndarray:
    x, y, z = camera.viewmat[:3, :3] @ point + camera.viewmat[:3, 3]
    assert z > 0
    return (camera.K @ [x / z, y / z, 1.0])[:2]


def test_the_front_view_has_x_to_the_right_and_z_up():
    camera = object_camera(512)
    np.testing.assert_allclose(pixel(camera, [0.0, 0.0, 0.0]), [256, 256])
    right, up, near = (pixel(camera, point) for point in ([0.5, 0, 0], [0, 0, 0.5], [0.5, -0.5, 0]))
    focal = 512 * 0.5 / math.tan(math.radians(24.55))
    np.testing.assert_allclose(right, [256 + focal * 0.25, 256])
    np.testing.assert_allclose(up, [256, 256 - focal * 0.25])
    np.testing.assert_allclose(near, [256 + focal * 0.5 / 1.5, 256])


@pytest.mark.parametrize(
    ("azimuth", "elevation", "position"),
    [(0, 0, (0, -2, 0)), (90, 0, (2, 0, 0)), (180, 0, (0, 2, 0)), (-90, 0, (-2, 0, 0)), (0, 30, (0, -(3**0.5), 1))],
)
def test_cameras_stand_around_the_object(azimuth, elevation, position):
    pose = object_pose(azimuth, elevation)
    np.testing.assert_allclose(pose[:3, 3], position, atol=1e-12)
    np.testing.assert_allclose(pose[:3, 2], -np.array(position) / RADIUS, atol=1e-12)
    assert pose[2, 1] < -0.8  # the picture's down is down
    assert np.linalg.det(pose[:3, :3]) == pytest.approx(1)


def test_sizes_that_cannot_be_used():
    with pytest.raises(InvalidCamera):
        object_camera(0)
