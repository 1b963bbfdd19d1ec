"""Camera paths: named trajectories and smooth interpolation of keyframes.

Every pose is camera to world, relative to the input camera: x right, y down, z forward, metres. A trajectory starts at
the identity, so its first frame is the input picture. Those that swing or turn (`orbit`, `turntable`, `dolly`, `pan`,
`spiral`) do so `cycles` times within the clip and come back: a video with whole cycles loops without a jump.
"""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, NamedTuple, Tuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edge4d.runtime.camera import Camera
from edge4d.runtime.errors import InvalidCamera, InvalidCameraPath
from edge4d.runtime.rotations import (
    multiply_quats,
    quat_from_rotation,
    quats_from_rotvecs,
    rotations_from_quats,
    rotvecs_from_quats,
)

FloatArray = NDArray[np.float64]

MAX_FRAMES = 100_000
"""Frames in one path: almost an hour at 30 frames a second."""

DISTANCE = 8.0
"""Metres ahead of the first camera of the point that trajectories turn about."""

MAX_KEYFRAMES = 1024
"""Keyframes of one path: more are a path of their own, which needs no interpolation."""


@dataclass(frozen=True, eq=False)
class CameraPath:
    """T cameras of one size, each with its time.

    Attributes:
        times: [T] seconds, never decreasing; the scene is evaluated at these.
        cameras: T cameras whose poses are in the scene's frame.

    Raises:
        InvalidCameraPath: no cameras, different numbers, different sizes, or times that are not finite or go back.
    """

    times: FloatArray
    cameras: Tuple[Camera, ...]

    def __post_init__(self) -> None:
        times = np.array(self.times, np.float64)
        times.flags.writeable = False
        object.__setattr__(self, "times", times)
        object.__setattr__(self, "cameras", tuple(self.cameras))
        if times.shape != (len(self.cameras),) or not 1 <= len(self.cameras) <= MAX_FRAMES:
            raise InvalidCameraPath(
                "A camera path needs one time for each of its cameras.",
                note=f"times of shape {times.shape} and {len(self.cameras)} cameras; 1 to {MAX_FRAMES} are allowed.",
                hint="Give as many times in seconds as cameras.",
            )
        if not np.isfinite(times).all() or np.any(np.diff(times) < 0.0):
            raise InvalidCameraPath(
                "The times of a camera path are not finite or go backwards.",
                note=f"they run from {times[0]} to {times[-1]} s.",
                hint="Sort the cameras by time.",
            )
        sizes = {(camera.width, camera.height) for camera in self.cameras}
        if len(sizes) > 1:
            raise InvalidCameraPath(
                "The cameras of one path have different sizes.",
                note=f"found {sorted(sizes)[:4]}; every frame of a video has one size.",
                hint="Use camera.resized(width, height).",
            )

    def __len__(self) -> int:
        return len(self.cameras)

    def scaled(self, factor: float) -> CameraPath:
        """The same path, each of its ways from the first camera `factor` times as long."""
        start = self.cameras[0].c2w[:3, 3]
        cameras = []
        for camera in self.cameras:
            pose = camera.c2w.copy()
            pose[:3, 3] = start + factor * (pose[:3, 3] - start)
            cameras.append(camera.with_pose(pose))
        return CameraPath(self.times, tuple(cameras))

    @property
    def viewmats(self) -> FloatArray:
        """[T, 4, 4] world to camera."""
        return np.stack([camera.viewmat for camera in self.cameras])

    @property
    def Ks(self) -> FloatArray:  # noqa: N802 (the field's own name)
        """[T, 3, 3] intrinsics in pixels."""
        return np.stack([camera.K for camera in self.cameras])


class _Clip(NamedTuple):
    """What a trajectory is drawn over: its frames, T of them, and the camera it starts from."""

    camera: Camera
    times: FloatArray  # [T] seconds
    phases: FloatArray  # [T] from 0 to (but not including) 2 pi


class _Course(NamedTuple):
    """Where a trajectory goes."""

    positions: FloatArray  # [T, 3] metres
    rotations: FloatArray  # [T, 3, 3]
    zooms: FloatArray  # [T] factors of the focal length


def _static(clip: _Clip) -> _Course:
    """The input camera does not move; only the scene does."""
    return _still(clip)


def _drive(clip: _Clip, *, speed: float = 2.0, turn: float = 0.0) -> _Course:
    """Forward along the road at `speed` m/s, turning to the right by `turn` degrees per second (a circle's arc).

    2 m/s is a brisk walk: two seconds of it stay within what one photograph shows. Negative values go backwards, left.
    """
    rate = math.radians(turn)
    yaw = rate * clip.times
    # The chord of an arc of length s and angle yaw is s sinc(yaw / 2), and points half way round.
    chord = speed * clip.times * np.sinc(yaw / (2.0 * np.pi))
    positions = np.stack([chord * np.sin(0.5 * yaw), np.zeros_like(yaw), chord * np.cos(0.5 * yaw)], axis=-1)
    return _still(clip)._replace(positions=positions, rotations=_yaws(yaw))


def _orbit(clip: _Clip, *, distance: float = DISTANCE, degrees: float = 6.0, cycles: float = 1.0) -> _Course:
    """Swing `degrees` to either side on a circle about the point `distance` metres ahead, always looking at it."""
    _check_positive("orbit", "distance", distance)
    return _about(clip, distance, math.radians(degrees) * np.sin(cycles * clip.phases))


def _turntable(clip: _Clip, *, distance: float = DISTANCE, cycles: float = 1.0) -> _Course:
    """Go all around the point `distance` metres ahead, to the right first, always looking at it."""
    _check_positive("turntable", "distance", distance)
    return _about(clip, distance, -cycles * clip.phases)


def _about(clip: _Clip, distance: float, yaw: FloatArray) -> _Course:
    """On a circle about the point `distance` ahead, looking at it, by `yaw` [T] radians."""
    rotations = _yaws(yaw)
    focus = np.array([0.0, 0.0, distance])
    return _still(clip)._replace(positions=focus - rotations @ focus, rotations=rotations)


def _dolly(clip: _Clip, *, travel: float = 1.5, distance: float = DISTANCE, cycles: float = 1.0) -> _Course:
    """The dolly zoom: go `travel` metres ahead and back while zooming so that what is `distance` ahead keeps its size.

    Plain forward travel is `drive`. A negative `travel` goes backwards.
    """
    _check_positive("dolly", "distance", distance)
    if travel >= 0.95 * distance:
        raise InvalidCameraPath(
            "The dolly would run into its subject.",
            note=f"travel {travel} m, distance {distance} m; travel must stay below 0.95 of the distance.",
            hint="Give a shorter travel or a larger distance.",
        )
    z = 0.5 * travel * (1.0 - np.cos(cycles * clip.phases))
    positions = np.stack([np.zeros_like(z), np.zeros_like(z), z], axis=-1)
    return _still(clip)._replace(positions=positions, zooms=(distance - z) / distance)


def _pan(clip: _Clip, *, degrees: float = 8.0, cycles: float = 1.0) -> _Course:
    """Turn the head: yaw `degrees` to the right, then to the left, on the spot."""
    return _still(clip)._replace(rotations=_yaws(math.radians(degrees) * np.sin(cycles * clip.phases)))


def _spiral(clip: _Clip, *, radius: float = 0.3, distance: float = DISTANCE, cycles: float = 1.0) -> _Course:
    """Circle at `radius` metres about a point above the start, drifting in depth, looking `distance` metres ahead."""
    _check_positive("spiral", "distance", distance)
    phase = cycles * clip.phases
    positions = radius * np.stack([np.sin(phase), np.cos(phase) - 1.0, 0.5 * np.sin(2.0 * phase)], axis=-1)
    if abs(radius) >= 0.5 * distance:
        raise InvalidCameraPath(
            "The spiral reaches the point it looks at.",
            note=f"radius {radius} m, distance {distance} m; the radius must stay below half the distance.",
            hint="Give a smaller radius or a larger distance.",
        )
    return _still(clip)._replace(positions=positions, rotations=_looking_at(positions, np.array([0.0, 0.0, distance])))


TRAJECTORIES: Dict[str, Callable[..., _Course]] = {
    "static": _static,
    "drive": _drive,
    "orbit": _orbit,
    "turntable": _turntable,
    "dolly": _dolly,
    "pan": _pan,
    "spiral": _spiral,
}


def trajectory(name: str, camera: Camera, frames: int, fps: float, **parameters: float) -> CameraPath:
    """The named path, seen from `camera`.

    Args:
        name: one of `TRAJECTORIES`.
        camera: the input camera; frame 0 is exactly this camera.
        frames: T.
        fps: frames per second; frame k is at k / fps seconds.
        parameters: of the trajectory, all with defaults: drive (speed m/s, turn degrees/s), orbit (distance m,
            degrees, cycles), turntable (distance m, cycles), dolly (travel m, distance m, cycles), pan (degrees,
            cycles), spiral (radius m, distance m, cycles).

    Raises:
        InvalidCameraPath: unknown name or parameter, or a value that cannot work.
    """
    if name not in TRAJECTORIES:
        raise InvalidCameraPath(
            f"There is no trajectory called {name!r}.",
            note=f"the trajectories are {', '.join(TRAJECTORIES)}.",
            hint="Choose one of them, or give a file of poses.",
        )
    _check_parameters(name, parameters)
    times = _times(frames, fps)
    clip = _Clip(camera, times, 2.0 * np.pi * np.arange(frames) / frames)
    return _path(clip, TRAJECTORIES[name](clip, **parameters))


@dataclass(frozen=True, eq=False)
class Keyframes:
    """A smooth camera path through given poses, at constant speed.

    Between two keyframes position and rotation are cubic Bezier curves (the rotation in its cumulative form: Kim, Kim
    and Shin, "A general construction scheme for unit quaternion curves", 1995) whose tangents at the keyframes come
    from their neighbours, so that velocity and angular velocity are continuous. Frames are spread evenly along the
    curve's length sqrt(|dx|^2 + (turning_radius |dtheta|)^2), from the first keyframe to the last.

    Attributes:
        poses: [P, 4, 4] camera to world relative to the input camera, metres.
        turning_radius: metres that count as much as turning by one radian; it sets the pace of turns on the spot.

    Raises:
        InvalidCameraPath: no poses, too many, or one that is not rigid.
    """

    poses: FloatArray
    turning_radius: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "poses", _checked_poses(self.poses))
        if not (math.isfinite(self.turning_radius) and self.turning_radius > 0.0):
            raise InvalidCameraPath(
                "The turning radius of keyframes cannot be used.",
                note=f"it is {self.turning_radius} m; it must be finite and larger than zero.",
                hint="Leave it at 1 metre.",
            )

    def path(self, camera: Camera, frames: int, fps: float) -> CameraPath:
        """T = frames cameras along the keyframes, frame k at k / fps seconds.

        Raises:
            InvalidCameraPath: frames or fps cannot be used.
        """
        times = _times(frames, fps)
        poses = _Curve(self.poses, self.turning_radius).at_constant_speed(frames)
        return CameraPath(times, tuple(camera.with_pose(camera.c2w @ pose) for pose in poses))


class _Curve:
    """The curve through P distinct keyframes, parametrised by u in 0..P-1; keyframe i lies at u = i."""

    # Samples per segment for the length. Between two of them the speed is taken as constant: it is off by half of what
    # it changes by from one to the next.
    _SAMPLES = 256

    def __init__(self, poses: FloatArray, turning_radius: float) -> None:
        self._radius = turning_radius
        positions = poses[:, :3, 3]
        quats = np.stack([quat_from_rotation(pose[:3, :3]) for pose in poses])
        steps = self._steps(positions, quats)
        lengths = self._lengths(steps)
        # Keyframes that repeat their predecessor add nothing to a path of constant speed.
        distinct = np.concatenate([[True], lengths > 1e-9])
        self._positions, self._quats = positions[distinct], quats[distinct]
        steps, lengths = self._steps(self._positions, self._quats), lengths[distinct[1:]]
        tangents = _tangents(steps, lengths)
        # A third of the tangent times the segment's length leads from its ends to the inner Bezier points.
        self._first = tangents[:-1] * lengths[:, None] / 3.0
        self._last = tangents[1:] * lengths[:, None] / 3.0
        self._middle = self._middle_steps(steps)

    def at_constant_speed(self, frames: int) -> FloatArray:
        """[T, 4, 4] poses evenly spaced along the curve."""
        segments = len(self._positions) - 1
        if segments == 0 or frames == 1:
            return self._poses(np.zeros(frames))
        u = np.linspace(0.0, segments, segments * self._SAMPLES + 1)
        lengths = np.concatenate([[0.0], np.cumsum(self._lengths(self._steps(*self._at(u))))])
        return self._poses(np.interp(np.linspace(0.0, lengths[-1], frames), lengths, u))

    def _poses(self, u: FloatArray) -> FloatArray:
        positions, quats = self._at(u)
        poses = np.tile(np.eye(4), (len(u), 1, 1))
        poses[:, :3, :3] = rotations_from_quats(quats)
        poses[:, :3, 3] = positions
        return poses

    def _at(self, u: FloatArray) -> Tuple[FloatArray, FloatArray]:
        """Positions [T, 3] and quaternions [T, 4] at u [T]."""
        segments = len(self._positions) - 1
        if segments == 0:
            return np.repeat(self._positions, len(u), axis=0), np.repeat(self._quats, len(u), axis=0)
        i = np.minimum(u.astype(np.int64), segments - 1)
        t = (u - i)[:, None]
        # The cumulative Bernstein polynomials: how much of each of the three steps has been taken at t.
        weights = (1.0 - (1.0 - t) ** 3, t * t * (3.0 - 2.0 * t), t**3)
        positions, quats = self._positions[i], self._quats[i]
        for weight, step in zip(weights, (self._first[i], self._middle[i], self._last[i])):
            positions = positions + weight * step[:, :3]
            quats = multiply_quats(quats, quats_from_rotvecs(weight * step[:, 3:]))
        return positions, quats

    def _middle_steps(self, steps: FloatArray) -> FloatArray:
        """What is left of each segment's step [S, 6] between its inner Bezier points."""
        first, last = self._first, self._last
        quats = multiply_quats(quats_from_rotvecs(-first[:, 3:]), quats_from_rotvecs(steps[:, 3:]))
        rotvecs = rotvecs_from_quats(multiply_quats(quats, quats_from_rotvecs(-last[:, 3:])))
        return np.concatenate([steps[:, :3] - first[:, :3] - last[:, :3], rotvecs], axis=-1)

    def _steps(self, positions: FloatArray, quats: FloatArray) -> FloatArray:
        """[P - 1, 6] from each pose to the next: translation in world axes, rotation vector in the camera's."""
        inverse = quats[:-1] * np.array([1.0, -1.0, -1.0, -1.0])
        rotvecs = rotvecs_from_quats(multiply_quats(inverse, quats[1:]))
        return np.concatenate([np.diff(positions, axis=0), rotvecs], axis=-1)

    def _lengths(self, steps: FloatArray) -> FloatArray:
        weights = np.array([1.0, 1.0, 1.0, self._radius, self._radius, self._radius])
        return np.asarray(np.linalg.norm(steps * weights, axis=-1), np.float64)


def _tangents(steps: FloatArray, lengths: FloatArray) -> FloatArray:
    """Velocities [P, 6] per unit of length at P keyframes: the parabola through each keyframe and its neighbours."""
    if len(steps) == 0:
        return np.zeros((1, 6))
    slopes = steps / lengths[:, None]
    before, after = lengths[:-1, None], lengths[1:, None]
    inner = (after * slopes[:-1] + before * slopes[1:]) / (before + after)
    return np.concatenate([slopes[:1], inner, slopes[-1:]])


def _path(clip: _Clip, course: _Course) -> CameraPath:
    cameras: List[Camera] = []
    for position, rotation, zoom in zip(*course):
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = rotation, position
        K = clip.camera.K * np.array([[zoom, zoom, 1.0]])
        try:
            cameras.append(Camera(clip.camera.width, clip.camera.height, K, clip.camera.c2w @ pose))
        except InvalidCamera as error:
            raise InvalidCameraPath(
                f"The trajectory leads to a camera that cannot be used: {error.what}",
                note=error.note,
                hint="Give smaller parameters.",
            ) from error
    return CameraPath(clip.times, tuple(cameras))


def _still(clip: _Clip) -> _Course:
    frames = len(clip.times)
    return _Course(np.zeros((frames, 3)), np.tile(np.eye(3), (frames, 1, 1)), np.ones(frames))


def _yaws(angles: FloatArray) -> FloatArray:
    """Rotations [T, 3, 3] about the downward axis: positive angles turn the view to the right."""
    zero, one, sine, cosine = np.zeros_like(angles), np.ones_like(angles), np.sin(angles), np.cos(angles)
    rows = [[cosine, zero, sine], [zero, one, zero], [-sine, zero, cosine]]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def _looking_at(positions: FloatArray, focus: FloatArray) -> FloatArray:
    """Rotations [T, 3, 3] of cameras at positions [T, 3] that look at focus [3] without rolling."""
    z = focus - positions
    z = z / np.linalg.norm(z, axis=-1, keepdims=True)
    x = np.cross(np.array([0.0, 1.0, 0.0]), z)
    x = x / np.linalg.norm(x, axis=-1, keepdims=True)
    return np.stack([x, np.cross(z, x), z], axis=-1)


def check_times(frames: Any = 1, fps: Any = 1.0) -> None:
    """Raises InvalidCameraPath for a number of frames, or frames per second, that no path has."""
    if isinstance(frames, bool) or not isinstance(frames, (int, np.integer)) or not 1 <= frames <= MAX_FRAMES:
        raise InvalidCameraPath(
            "The number of frames cannot be used.",
            note=f"it is {frames!r}; it must be a whole number from 1 to {MAX_FRAMES}.",
            hint="24 frames at 12 frames per second make two seconds.",
        )
    if not (math.isfinite(fps) and 1e-3 <= fps <= 1e3):
        raise InvalidCameraPath(
            "The frame rate cannot be used.",
            note=f"it is {fps}; it must lie between 0.001 and 1000 frames per second.",
            hint="12, 24 and 30 are usual.",
        )


def _times(frames: Any, fps: Any) -> FloatArray:
    check_times(frames, fps)
    return np.arange(frames, dtype=np.float64) / float(fps)


def _check_parameters(name: str, parameters: Dict[str, float]) -> None:
    known = inspect.signature(TRAJECTORIES[name]).parameters
    defaults = {key: known[key].default for key in list(known)[1:]}
    for key, value in parameters.items():
        if key not in defaults:
            raise InvalidCameraPath(
                f"The trajectory {name} has no parameter {key!r}.",
                note=f"its parameters and their defaults are {defaults or 'none'}.",
                hint="Leave it out.",
            )
        if not (math.isfinite(value) and abs(value) <= 1e4):
            raise InvalidCameraPath(
                f"The parameter {key} of the trajectory {name} cannot be used.",
                note=f"it is {value}; it must be finite and at most 10000. The default is {defaults[key]}.",
                hint="Lengths are in metres, angles in degrees.",
            )


def _check_positive(name: str, key: str, value: float) -> None:
    if value <= 0.0:
        raise InvalidCameraPath(
            f"The parameter {key} of the trajectory {name} must be larger than zero.",
            note=f"it is {value} m.",
            hint="Give the distance to the subject in metres.",
        )


def _checked_poses(poses: ArrayLike) -> FloatArray:
    array = np.array(poses, np.float64)
    if array.ndim != 3 or array.shape[1:] != (4, 4) or not 1 <= len(array) <= MAX_KEYFRAMES:
        raise InvalidCameraPath(
            "Keyframes must be 4x4 poses.",
            note=f"found shape {array.shape}; expected [P, 4, 4] with P from 1 to {MAX_KEYFRAMES}.",
            hint="Give camera-to-world matrices relative to the input camera.",
        )
    for i, pose in enumerate(array):
        try:
            Camera(1, 1, np.eye(3), pose)
        except InvalidCamera as error:
            raise InvalidCameraPath(
                f"Keyframe {i} cannot be used. {error.what}", note=error.note, hint=error.hint
            ) from error
    array.flags.writeable = False
    return array
