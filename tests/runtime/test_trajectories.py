"""Trajectories start at the input camera and do what they say; keyframes are hit, smoothly, at constant speed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge4d.runtime.camera import Camera
from edge4d.runtime.errors import InvalidCameraPath
from edge4d.runtime.rotations import quat_from_rotation, quats_from_rotvecs, rotations_from_quats, rotvecs_from_quats
from edge4d.runtime.trajectories import TRAJECTORIES, CameraPath, Keyframes, _Curve, trajectory

CAMERA = Camera.from_fov(448, 256, 60.0)
ROUNDING = 1e-12  # float64, on metres and matrices of size ten


def pose(rotvec=(0.0, 0.0, 0.0), position=(0.0, 0.0, 0.0)):
    matrix = np.eye(4)
    matrix[:3, :3] = rotations_from_quats(quats_from_rotvecs(rotvec))
    matrix[:3, 3] = position
    return matrix


def poses(path):
    return np.stack([camera.c2w for camera in path.cameras])


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_frame_0_is_exactly_the_input_camera(name):
    path = trajectory(name, CAMERA, 24, 12.0)
    assert (path.cameras[0].c2w == np.eye(4)).all()
    assert (path.cameras[0].K == CAMERA.K).all()
    assert len(path) == 24
    assert path.times.tolist() == [k / 12.0 for k in range(24)]


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_a_trajectory_is_relative_to_the_input_camera(name):
    start = pose((0.1, 0.7, -0.2), (3.0, 1.0, -2.0))
    moved = poses(trajectory(name, CAMERA.with_pose(start), 5, 12.0))
    np.testing.assert_allclose(moved, start @ poses(trajectory(name, CAMERA, 5, 12.0)), atol=ROUNDING)


@pytest.mark.parametrize("name", ["orbit", "turntable", "dolly", "pan", "spiral"])
def test_swinging_trajectories_loop(name):
    # Frame 24 of 48 with two cycles is frame 0 of the second cycle.
    path = poses(trajectory(name, CAMERA, 48, 12.0, cycles=2.0))
    np.testing.assert_allclose(path[24:], path[:24], atol=ROUNDING)


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_one_frame_is_the_input_camera(name):
    assert (poses(trajectory(name, CAMERA, 1, 12.0)) == np.eye(4)).all()


def test_driving_goes_forward_at_its_speed():
    path = poses(trajectory("drive", CAMERA, 25, 12.0, speed=3.0))
    np.testing.assert_allclose(path[24][:3, 3], [0.0, 0.0, 6.0], atol=ROUNDING)


def test_driving_a_quarter_circle_to_the_right_ends_looking_right():
    # 90 degrees in one second at pi/2 m/s: a circle of radius 1 m, whose centre is 1 m to the right.
    end = poses(trajectory("drive", CAMERA, 13, 12.0, speed=math.pi / 2, turn=90.0))[12]
    np.testing.assert_allclose(end[:3, 3], [1.0, 0.0, 1.0], atol=ROUNDING)
    np.testing.assert_allclose(end[:3, 2], [1.0, 0.0, 0.0], atol=ROUNDING)


@pytest.mark.parametrize("name", ["orbit", "turntable", "spiral"])
def test_looking_at_a_point_keeps_it_in_the_middle(name):
    for camera in trajectory(name, CAMERA, 24, 12.0, distance=5.0).cameras:
        x, y, z, _ = camera.viewmat @ [0.0, 0.0, 5.0, 1.0]
        assert abs(x) < ROUNDING
        assert abs(y) < ROUNDING
        assert z > 0.0


@pytest.mark.parametrize("name", ["orbit", "turntable"])
def test_what_goes_around_keeps_its_distance(name):
    positions = poses(trajectory(name, CAMERA, 24, 12.0, distance=5.0))[:, :3, 3]
    np.testing.assert_allclose(np.linalg.norm(positions - [0.0, 0.0, 5.0], axis=-1), 5.0, atol=ROUNDING)


def test_a_turntable_shows_the_right_side_first_and_then_the_back():
    path = poses(trajectory("turntable", CAMERA, 24, 12.0, distance=5.0))
    np.testing.assert_allclose(path[6][:3, 3], [5.0, 0.0, 5.0], atol=5 * ROUNDING)
    np.testing.assert_allclose(path[12][:3, 3], [0.0, 0.0, 10.0], atol=5 * ROUNDING)


def test_a_dolly_zoom_keeps_the_subjects_size():
    for camera in trajectory("dolly", CAMERA, 24, 12.0, travel=2.0, distance=5.0).cameras:
        point = camera.viewmat @ [1.0, 0.5, 5.0, 1.0]
        seen = (camera.K @ point[:3])[:2] / point[2]
        expected = (CAMERA.K @ [1.0, 0.5, 5.0])[:2] / 5.0
        np.testing.assert_allclose(seen, expected, rtol=1e-12)


def test_a_pan_turns_to_the_right_first_and_stays_in_place():
    path = poses(trajectory("pan", CAMERA, 24, 12.0, degrees=30.0))
    assert (path[:, :3, 3] == 0.0).all()
    np.testing.assert_allclose(path[6][:3, 2], [0.5, 0.0, math.sqrt(0.75)], atol=ROUNDING)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("fly", {}),
        ("static", {"speed": 1.0}),
        ("drive", {"distance": 1.0}),
        ("drive", {"speed": math.nan}),
        ("drive", {"speed": 1e9}),
        ("orbit", {"distance": 0.0}),
        ("turntable", {"distance": -1.0}),
        ("dolly", {"travel": 8.0}),
        ("spiral", {"radius": 4.0}),
    ],
)
def test_names_and_parameters_that_cannot_work_are_refused(name, parameters):
    with pytest.raises(InvalidCameraPath):
        trajectory(name, CAMERA, 24, 12.0, **parameters)


@pytest.mark.parametrize(("frames", "fps"), [(0, 12.0), (10**9, 12.0), (2.0, 12.0), (24, 0.0), (24, math.nan)])
def test_impossible_lengths_are_refused(frames, fps):
    with pytest.raises(InvalidCameraPath):
        trajectory("static", CAMERA, frames, fps)


def test_a_path_wants_a_time_for_each_camera_and_one_size():
    for times, cameras in (
        ([], ()),
        ([0.0], (CAMERA, CAMERA)),
        ([1.0, 0.0], (CAMERA, CAMERA)),
        ([0.0, math.nan], (CAMERA, CAMERA)),
        ([0.0, 1.0], (CAMERA, CAMERA.resized(10, 10))),
    ):
        with pytest.raises(InvalidCameraPath):
            CameraPath(np.array(times), cameras)


def test_paths_stack_what_the_rasterizer_takes():
    path = trajectory("drive", CAMERA, 3, 12.0)
    assert path.viewmats.shape == (3, 4, 4)
    assert path.Ks.shape == (3, 3, 3)
    np.testing.assert_allclose(path.viewmats[1] @ path.cameras[1].c2w, np.eye(4), atol=ROUNDING)


CORNER = np.stack([pose(), pose(position=(0, 0, 2)), pose((0, 0.8, 0), (1, 0, 3)), pose((0, 1.5, 0.3), (4, -1, 3))])


def test_one_keyframe_and_repeated_keyframes_stand_still():
    there = pose((0.2, 0.0, 0.1), (1.0, 2.0, 3.0))
    for keyframes in ([there], [there, there], [there, there, there]):
        path = poses(Keyframes(np.stack(keyframes)).path(CAMERA, 5, 12.0))
        np.testing.assert_allclose(path, np.stack([there] * 5), atol=ROUNDING)


def test_the_path_runs_from_the_first_to_the_last_keyframe():
    path = poses(Keyframes(CORNER).path(CAMERA, 24, 12.0))
    np.testing.assert_allclose(path[[0, -1]], CORNER[[0, -1]], atol=ROUNDING)


components = st.floats(-2.0, 2.0)
rigid = st.tuples(*[components] * 6).map(lambda v: pose(np.array(v[:3]), np.array(v[3:])))
keyframe_lists = st.lists(rigid, min_size=2, max_size=5).map(np.stack)


def at(curve, *u):
    return curve._poses(np.array(u, np.float64))


@settings(deadline=None, max_examples=50)
@given(keyframe_lists)
def test_the_curve_goes_through_every_keyframe(keyframes):
    curve = _Curve(keyframes, 1.0)
    distinct = len(curve._positions)
    # atol: repeated keyframes closer than 1e-9 are one keyframe
    np.testing.assert_allclose(at(curve, 0.0)[0], keyframes[0], atol=1e-8)
    np.testing.assert_allclose(at(curve, distinct - 1.0)[0], keyframes[-1], atol=1e-8)
    if distinct == len(keyframes):
        np.testing.assert_allclose(at(curve, *range(distinct)), keyframes, atol=1e-8)


def velocity(curve, u, h):
    """Linear and angular velocity over [u, u + h] per unit of the segment's length."""
    a, b = at(curve, u, u + h)
    turn = rotvecs_from_quats(quat_from_rotation(a[:3, :3].T @ b[:3, :3]))
    segment = int(min(u, u + h))
    length = curve._lengths(curve._steps(curve._positions, curve._quats))[segment]
    return np.concatenate([b[:3, 3] - a[:3, 3], turn]) / (h * length)


def test_velocity_and_angular_velocity_are_continuous_at_keyframes():
    curve = _Curve(CORNER, 1.0)
    for u in (1.0, 2.0):
        # One-sided differences over h are off by h times the second derivative, which is below 50 here.
        np.testing.assert_allclose(velocity(curve, u, 1e-6), velocity(curve, u, -1e-6), atol=2 * 50 * 1e-6)


def speeds(path, radius):
    path = poses(path)
    turns = [rotvecs_from_quats(quat_from_rotation(a[:3, :3].T @ b[:3, :3])) for a, b in zip(path, path[1:])]
    return np.hypot(np.linalg.norm(np.diff(path[:, :3, 3], axis=0), axis=-1), radius * np.linalg.norm(turns, axis=-1))


@pytest.mark.parametrize("radius", [0.5, 1.0])
def test_frames_are_evenly_spaced_along_the_curve(radius):
    frames = speeds(Keyframes(CORNER, radius).path(CAMERA, 400, 30.0), radius)
    # Between two length samples the speed is taken as constant, and off by half of its change: below 1.3e-3 here.
    np.testing.assert_allclose(frames, frames.mean(), rtol=1.3e-3)


def test_turning_on_the_spot_takes_its_time():
    keyframes = np.stack([pose(), pose((0.0, 1.0, 0.0)), pose((0.0, 1.0, 0.0), (1.0, 0.0, 0.0))])
    frames = speeds(Keyframes(keyframes).path(CAMERA, 200, 30.0), 1.0)
    # As above; the speed changes faster at this corner.
    np.testing.assert_allclose(frames, frames.mean(), rtol=2.6e-3)


def test_a_straight_line_is_a_straight_line():
    keyframes = np.stack([pose(position=(0, 0, z)) for z in (0.0, 1.0, 5.0)])
    path = poses(Keyframes(keyframes).path(CAMERA, 11, 10.0))
    # The length table holds chords of a straight line: exact but for rounding and interpolation within a sample.
    np.testing.assert_allclose(path[:, 2, 3], np.linspace(0.0, 5.0, 11), atol=1e-3)
    np.testing.assert_allclose(path[:, :3, :3], np.stack([np.eye(3)] * 11), atol=ROUNDING)


@pytest.mark.parametrize("keyframes", [np.zeros((0, 4, 4)), np.eye(4), np.zeros((2, 4, 4)), np.full((1, 4, 4), np.nan)])
def test_keyframes_that_are_no_poses_are_refused(keyframes):
    with pytest.raises(InvalidCameraPath):
        Keyframes(keyframes)


def test_an_impossible_turning_radius_is_refused():
    with pytest.raises(InvalidCameraPath):
        Keyframes(CORNER, 0.0)


def test_scaled_paths_begin_at_the_same_camera():
    start = Camera.from_fov(64, 48, 60.0).with_pose(trajectory("orbit", CAMERA, 5, 10.0).cameras[2].c2w)
    path = trajectory("orbit", start, 8, 10.0)
    half = path.scaled(0.5)
    nearer = trajectory("orbit", start, 8, 10.0, distance=4.0)
    for camera, expected in zip(half.cameras, nearer.cameras):
        np.testing.assert_allclose(camera.c2w, expected.c2w, atol=1e-12)
    np.testing.assert_array_equal(half.times, path.times)
