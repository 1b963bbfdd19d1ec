"""Scene4D + camera + time → picture, on the CPU kernels."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, Optional, Union

import numpy as np
from numpy.typing import NDArray

from edge4d.kernels import cpu
from edge4d.kernels.ops import ALPHA, DEPTH, IMAGE
from edge4d.runtime.camera import Camera
from edge4d.runtime.errors import InvalidCameraPath, InvalidRequest
from edge4d.runtime.pose_files import read_camera_path
from edge4d.runtime.scene import Scene4D
from edge4d.runtime.trajectories import TRAJECTORIES, CameraPath, trajectory
from edge4d.runtime.video import depth_writer, frame_writer

PathLike = Union[str, "os.PathLike[str]"]

OUTPUTS = {"image": IMAGE, "alpha": ALPHA, "depth": DEPTH}
FRAMES = 24


class Frame(NamedTuple):
    """One rendered picture; its arrays are the caller's. What was not asked for has no elements.

    Attributes:
        image: [H,W,3], uint8 in 0..255 or float32 in 0..1.
        alpha: [H,W] float32, how much of the background is hidden.
        depth: [H,W] float32, metres along z, averaged over what is seen; 0 where nothing is.
        stats: [5] int32: Gaussians visible, Gaussians that are not finite, pairs needed, capacity, overflow.
    """

    image: NDArray[Any]
    alpha: NDArray[np.float32]
    depth: NDArray[np.float32]
    stats: NDArray[np.int32]


class Renderer:
    """Renders one scene from any camera at any time.

    Args:
        scene: what to render.
        background: RGB in 0..1; the scene's own without it.
        outputs: of "image", "alpha" and "depth".
        dtype: of the image, "uint8" or "float32".
    """

    def __init__(
        self,
        scene: Scene4D,
        *,
        background: Optional[Sequence[float]] = None,
        outputs: Sequence[str] = ("image", "alpha", "depth"),
        dtype: str = "uint8",
    ) -> None:
        unknown = [name for name in outputs if name not in OUTPUTS]
        if unknown:
            raise InvalidRequest("The renderer has no such output.", note=f"{unknown}; it has {list(OUTPUTS)}.")
        self.scene = scene
        self._background = np.asarray(scene.background if background is None else background, np.float32)
        if self._background.shape != (3,) or not ((self._background >= 0) & (self._background <= 1)).all():
            raise InvalidRequest(
                "The background is not a colour.", note=f"{self._background.tolist()}, expected r, g, b in 0..1."
            )
        self._outputs = sum(OUTPUTS[name] for name in set(outputs))
        self._dtype = dtype

    def render(self, camera: Camera, t: float) -> Frame:
        """The scene at t seconds, seen by `camera`, whose pose is camera-to-world in the scene's frame.

        Raises:
            InvalidRequest: t is not finite.
            LibraryNotFound: the native kernels are missing.
        """
        means, quats, scales, opacities, colors = self.scene.evaluate(t)
        result = cpu.gaussian_rasterize(
            means[None],
            quats[None],
            scales[None],
            opacities[None],
            colors[None],
            camera.viewmat[None, None].astype(np.float32),
            camera.K[None, None].astype(np.float32),
            self._background,
            width=camera.width,
            height=camera.height,
            eps2d=self.scene.eps2d,
            antialiased=self.scene.antialiased,
            sh_degree=self.scene.sh_degree,
            outputs=self._outputs,
            out_dtype=self._dtype,
        )
        alpha, depth = (array[0, 0, ..., 0] if array.size else array for array in (result.alpha, result.depth))
        return Frame(result.image[0, 0] if result.image.size else result.image, alpha, depth, result.stats[0, 0])


class SaveTimes(NamedTuple):
    """Seconds that `Video.save` spent."""

    render: float
    write: float


class Video:
    """A scene along a camera path. Frames are rendered when they are asked for, and again at every pass.

    Example:
        for frame in video: show(frame.image)
    """

    def __init__(self, renderer: Renderer, path: CameraPath, fps: float) -> None:
        self.renderer, self.path, self.fps = renderer, path, fps

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.path.cameras[0].width, self.path.cameras[0].height

    def __len__(self) -> int:
        return len(self.path)

    def __iter__(self) -> Iterator[Frame]:
        for camera, t in zip(self.path.cameras, self.path.times):
            yield self.renderer.render(camera, float(t))

    def save(
        self,
        path: Optional[PathLike] = None,
        *,
        depth: Optional[PathLike] = None,
        progress: Optional[Callable[[int, int], None]] = None,
    ) -> SaveTimes:
        """Renders once and writes the pictures to `path` and the depth in colours to `depth`.

        Args:
            path, depth: a `.mp4` file, or a folder for PNG frames.
            progress: called with (frames done, frames in all).

        Raises:
            InvalidRequest, BackendUnavailable: see `edge4d.runtime.video.frame_writer`.
        """
        rendering, start = 0.0, time.perf_counter()
        with ExitStack() as stack:
            add_frame = stack.enter_context(frame_writer(path, self.size, self.fps)) if path is not None else None
            add_depth = stack.enter_context(depth_writer(depth, self.size, self.fps)) if depth is not None else None
            for done, (camera, t) in enumerate(zip(self.path.cameras, self.path.times), 1):
                before = time.perf_counter()
                frame = self.renderer.render(camera, float(t))
                rendering += time.perf_counter() - before
                if add_frame:
                    add_frame(frame.image)
                if add_depth:
                    add_depth(frame.depth, frame.alpha)
                if progress:
                    progress(done, len(self))
        return SaveTimes(rendering, time.perf_counter() - start - rendering)


def render(
    scene: Scene4D,
    camera: Union[PathLike, CameraPath] = "drive",
    *,
    frames: Optional[int] = None,
    fps: Optional[float] = None,
    size: Optional[tuple[int, int]] = None,
    background: Optional[Sequence[float]] = None,
    camera_format: Optional[str] = None,
    camera_scale: float = 1.0,
    **parameters: float,
) -> Video:
    """The scene along a camera path, rendered as the video is iterated or saved.

    Args:
        scene: what to render.
        camera: a trajectory's name (static, drive, orbit, dolly, pan, spiral), a file or folder of poses, or a path.
        frames: how many; 24 for a trajectory, all of them (at most this many) for a file or path.
        fps: frames per second; the scene's own without it.
        size: (width, height); the scene's own without it. Another aspect shows the middle part.
        background: RGB in 0..1; the scene's own without it.
        camera_format: kitti, tum, colmap, realestate10k or nerfstudio; found out from the file without it.
        camera_scale: metres per unit of the file's positions.
        parameters: of the trajectory, such as `speed` of drive; see `edge4d.runtime.trajectories.trajectory`.

    Raises:
        InvalidCameraPath: no such trajectory or file, or one that cannot be used.
        InvalidRequest: another argument that cannot be used.
    """
    fps = scene.fps if fps is None else fps
    seen_by = scene.camera if size is None else fitted(scene.camera, size)
    if not isinstance(camera, CameraPath) and str(camera) in TRAJECTORIES:
        path = trajectory(str(camera), seen_by, FRAMES if frames is None else frames, fps, **parameters)
    elif parameters:
        raise InvalidCameraPath("Only trajectories have parameters.", note=f"Got {', '.join(parameters)}.")
    elif isinstance(camera, CameraPath):
        path = camera if size is None else _fitted_path(camera, size)
    else:
        path = _path_from_file(Path(camera), seen_by, fps, camera_format, camera_scale)
    return Video(Renderer(scene, background=background), _first(path, frames), fps)


def fitted(camera: Camera, size: tuple[int, int]) -> Camera:
    """The camera for a picture of another size: pixels stay square, and another aspect sees the middle part."""
    width, height = size
    scale = max(width / camera.width, height / camera.height)
    fx, fy, cx, cy = camera.intrinsics
    x, y = scale * (cx - 0.5 * camera.width) + 0.5 * width, scale * (cy - 0.5 * camera.height) + 0.5 * height
    return Camera.from_intrinsics(width, height, scale * fx, scale * fy, x, y).with_pose(camera.c2w)


def _fitted_path(path: CameraPath, size: tuple[int, int]) -> CameraPath:
    return CameraPath(path.times, tuple(fitted(camera, size) for camera in path.cameras))


def _path_from_file(path: Path, camera: Camera, fps: float, kind: Optional[str], scale: float) -> CameraPath:
    if not path.exists():
        raise InvalidCameraPath(
            f"There is no trajectory or file of poses called '{path}'.",
            note=f"Trajectories are {', '.join(TRAJECTORIES)}.",
            hint="Check the name.",
        )
    return read_camera_path(path, format=kind, camera=camera, fps=fps, scale=scale)


def _first(path: CameraPath, frames: Optional[int]) -> CameraPath:
    if frames is None or frames >= len(path):
        return path
    if frames < 1:
        raise InvalidRequest("A video needs frames.", note=f"{frames} were asked for.")
    return CameraPath(path.times[:frames], path.cameras[:frames])
