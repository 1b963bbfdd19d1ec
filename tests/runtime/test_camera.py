"""Cameras: what they accept, and the arithmetic of resizing and cropping."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge4d.runtime.camera import MAX_DISTANCE, MAX_SIZE, ROTATION_TOLERANCE, Camera
from edge4d.runtime.errors import InvalidCamera
from edge4d.runtime.rotations import quats_from_rotvecs, rotations_from_quats

K = np.array([[300.0, 0.0, 224.0], [0.0, 310.0, 128.0], [0.0, 0.0, 1.0]])


def pixel(camera, point):
    """Where a point of the camera's own frame appears, in pixels."""
    return (camera.K @ point)[:2] / point[2]


def test_a_field_of_view_of_90_degrees_has_half_the_width_as_focal_length():
    fx, fy, cx, cy = Camera.from_fov(448, 256, 90.0).intrinsics
    assert (fx, fy) == (pytest.approx(224.0), pytest.approx(224.0))
    assert (cx, cy) == (224.0, 128.0)


def test_the_view_matrix_is_the_inverse_of_the_pose():
    pose = np.eye(4)
    pose[:3, :3] = rotations_from_quats(quats_from_rotvecs([0.3, -0.5, 0.2]))
    pose[:3, 3] = 1.0, -2.0, 3.0
    camera = Camera(448, 256, K).with_pose(pose)
    # float64 rounding on numbers up to 3
    np.testing.assert_allclose(camera.viewmat @ pose, np.eye(4), atol=1e-14)
    assert (Camera(448, 256, K).viewmat == np.eye(4)).all()


@given(st.integers(1, 2000), st.integers(1, 2000), st.floats(-5.0, 5.0), st.floats(-5.0, 5.0))
def test_resizing_keeps_where_things_appear_in_the_picture(width, height, x, y):
    camera, point = Camera(448, 256, K), np.array([x, y, 2.0])
    resized = camera.resized(width, height)
    expected = pixel(camera, point) * [width / 448, height / 256]
    # two float64 roundings per coordinate
    np.testing.assert_allclose(pixel(resized, point), expected, rtol=1e-13, atol=1e-9)
    assert (resized.width, resized.height) == (width, height)


def test_a_crop_moves_pixels_by_its_offset():
    camera, point = Camera(448, 256, K), np.array([0.5, -0.25, 2.0])
    cropped = camera.cropped(10, 20, 100, 50)
    assert (pixel(camera, point) - pixel(cropped, point)).tolist() == [10.0, 20.0]
    assert (cropped.width, cropped.height) == (100, 50)


def test_halving_keeps_the_centre_of_the_first_pixel_at_a_half():
    # With centres at +0.5 the first two pixels of the large picture meet at 1.0, the centre 0.5 of the small one.
    ray = np.linalg.inv(K) @ [1.0, 1.0, 1.0]
    np.testing.assert_allclose(pixel(Camera(448, 256, K).resized(224, 128), ray), [0.5, 0.5], atol=1e-12)


@pytest.mark.parametrize("window", [(-1, 0, 10, 10), (0, 0, 449, 10), (440, 0, 10, 10), (0, 250, 10, 7)])
def test_a_crop_outside_the_picture_is_refused(window):
    with pytest.raises(InvalidCamera, match="inside the picture"):
        Camera(448, 256, K).cropped(*window)


@pytest.mark.parametrize("size", [0, -1, MAX_SIZE + 1, 2.5, True, "448", None])
def test_impossible_sizes_are_refused(size):
    with pytest.raises(InvalidCamera, match="width"):
        Camera(size, 256, K)
    with pytest.raises(InvalidCamera, match="height"):
        Camera(448, 256, K).resized(448, size)


@pytest.mark.parametrize(
    "matrix",
    [
        np.diag([0.0, 1.0, 1.0]),
        np.diag([1.0, -1.0, 1.0]),
        np.diag([1.0, 1.0, 2.0]),
        [[1.0, 0.1, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],  # skew
        [[1.0, 0.0, 0.0], [0.1, 1.0, 0.0], [0.0, 0.0, 1.0]],
        np.diag([np.nan, 1.0, 1.0]),
        np.diag([np.inf, 1.0, 1.0]),
        np.eye(4),
        "intrinsics",
        None,
        [[1, 2, 3], [4]],
        [[10**400, 0, 0], [0, 1, 0], [0, 0, 1]],
    ],
)
def test_intrinsics_that_are_no_pinhole_are_refused(matrix):
    with pytest.raises(InvalidCamera, match="intrinsics"):
        Camera(448, 256, matrix)


def _pose(rotation=None, position=(0.0, 0.0, 0.0), last=(0.0, 0.0, 0.0, 1.0)):
    pose = np.eye(4)
    pose[:3, :3] = np.eye(3) if rotation is None else rotation
    pose[:3, 3], pose[3] = position, last
    return pose


@pytest.mark.parametrize(
    "pose",
    [
        _pose(1.001 * np.eye(3)),
        _pose(np.diag([1.0, 1.0, -1.0])),
        _pose(np.zeros((3, 3))),
        _pose(np.full((3, 3), 1e300)),
        _pose(position=(np.nan, 0.0, 0.0)),
        _pose(position=(2.0 * MAX_DISTANCE, 0.0, 0.0)),
        _pose(last=(0.0, 0.0, 1.0, 1.0)),
        np.eye(3),
    ],
)
def test_poses_that_are_not_rigid_are_refused(pose):
    with pytest.raises(InvalidCamera, match=r"pose|far from"):
        Camera(448, 256, K, pose)


def test_poses_rounded_to_float32_or_five_decimals_are_accepted():
    rotation = rotations_from_quats(quats_from_rotvecs([0.3, -0.5, 0.2]))
    for rounded in (rotation.astype(np.float32), np.round(rotation, 5)):
        Camera(448, 256, K, _pose(rounded))
    with pytest.raises(InvalidCamera):
        Camera(448, 256, K, _pose(rotation * (1.0 + ROTATION_TOLERANCE)))


@pytest.mark.parametrize("degrees", [0.0, -10.0, 180.0, math.nan])
def test_impossible_fields_of_view_are_refused(degrees):
    with pytest.raises(InvalidCamera, match="field of view"):
        Camera.from_fov(448, 256, degrees)


def test_a_camera_does_not_change_when_its_arrays_do():
    mine = K.copy()
    camera = Camera(448, 256, mine)
    mine[0, 0] = 1.0
    assert camera.K[0, 0] == 300.0
    with pytest.raises(ValueError, match="read-only"):
        camera.K[0, 0] = 1.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        camera.width = 1
