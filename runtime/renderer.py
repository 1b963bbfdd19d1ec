"""Scene4D + camera + time → picture: by the CPU kernels here, by CUDA kernels or a TensorRT engine in other modules."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Optional, Protocol, Union

import numpy as np
from numpy.typing import NDArray

from edge4d.kernels import cpu
from edge4d.kernels.ops import ALPHA, DEPTH, IMAGE
from edge4d.runtime.backends import draws_on_gpu
from edge4d.runtime.camera import Camera
from edge4d.runtime.errors import InvalidCameraPath, InvalidRequest, PairOverflow
from edge4d.runtime.pose_files import read_camera_path
from edge4d.runtime.scene import Scene4D
from edge4d.runtime.trajectories import DISTANCE, TRAJECTORIES, CameraPath, trajectory
from edge4d.runtime.video import depth_writer, frame_writer

if TYPE_CHECKING:
    from edge4d.runtime.scene_on_device import SceneOnDevice

PathLike = Union[str, "os.PathLike[str]"]

OUTPUTS = {"image": IMAGE, "alpha": ALPHA, "depth": DEPTH}
FRAMES = 24


class Frame(NamedTuple):
    """One rendered picture. What was not asked for has no elements.

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

    `render` gives a frame that is the caller's. A loop is faster with `submit` and `fetch`: up to `MAX_IN_FLIGHT`
    frames are under way at once, so that the GPU draws one while the one before is looked at. One thread uses a
    renderer at a time. On the GPU it holds the scene and two frames, and gives that back when it goes; a frame of
    another size than the ones before costs some milliseconds.

    Args:
        scene: what to render; a `SceneOnDevice` by the GPU alone.
        background: RGB in 0..1; the scene's own without it.
        outputs: of "image", "alpha" and "depth".
        dtype: of the image, "uint8" or "float32".
        max_pairs: room for so many pairs of a Gaussian and a tile that it covers, and no more; without it there is as
            much as a frame needs. The third of a frame's stats says how many it needed.
        backend: "cuda" draws on the GPU, "onnxruntime" on the CPU; "auto" on the GPU if that works here.
        as_engine: draw by a TensorRT engine that has our rasterizer as a plugin, which it takes seconds to build for a
            size of picture that was not drawn before; see `edge4d.runtime.render_engine`. `backend` is "tensorrt" then,
            or "auto".

    Attributes:
        scene: as above.
        on_gpu: whether the GPU draws.

    Raises:
        InvalidRequest: an argument that cannot be used, or a scene whose motion an engine does not know.
        BackendUnavailable: the backend does not work on this machine.
        LibraryNotFound: the plugins are missing.
        CudaError: the GPU's memory is too small.
    """

    MAX_IN_FLIGHT = 2

    def __init__(
        self,
        scene: Union[Scene4D, SceneOnDevice],
        *,
        background: Optional[Sequence[float]] = None,
        outputs: Sequence[str] = ("image", "alpha", "depth"),
        dtype: str = "uint8",
        max_pairs: Optional[int] = None,
        backend: str = "auto",
        as_engine: bool = False,
    ) -> None:
        self.scene = scene
        self.on_gpu = as_engine or draws_on_gpu(backend)
        colour = _checked_background(scene.background if background is None else background)
        about = (colour, _checked_outputs(outputs), dtype, _checked_pairs(max_pairs))
        self._drawing = self._engine_drawing(backend, *about) if as_engine else self._new_drawing(*about)
        self._in_flight: deque[Any] = deque()

    def render(self, camera: Camera, t: float) -> Frame:
        """The scene at t seconds, seen by `camera`, whose pose is camera-to-world in the scene's frame.

        Raises:
            InvalidRequest: t is not finite, or frames were submitted and not fetched.
            PairOverflow: the frame needs more than `max_pairs`.
            LibraryNotFound: the native kernels are missing.
        """
        if self._in_flight:
            raise InvalidRequest(
                "A frame cannot be rendered among submitted ones.",
                note=f"{self.in_flight} submitted frames were not fetched.",
                hint="Fetch them first.",
            )
        self.submit(camera, t)
        frame = self.fetch()
        return Frame(*(array.copy() for array in frame)) if self._drawing.lends else frame

    def submit(self, camera: Camera, t: float) -> None:
        """Begins a frame, as `render` would make it. On the GPU this returns at once; on the CPU it draws.

        Raises:
            InvalidRequest: t is not finite, or `MAX_IN_FLIGHT` frames were submitted and not fetched.
            LibraryNotFound: the native kernels are missing.
        """
        if self.in_flight == self.MAX_IN_FLIGHT:
            raise InvalidRequest(
                "Too many frames are under way.",
                note=f"{self.in_flight} were submitted and not fetched; {self.MAX_IN_FLIGHT} are possible.",
                hint="Fetch one first.",
            )
        self._in_flight.append(self._drawing.begin(camera, t))

    def fetch(self) -> Frame:
        """Waits for the earliest frame that was submitted and not fetched.

        It is valid until two more were submitted: copy what should live longer.

        Raises:
            InvalidRequest: there is none.
            PairOverflow: the frame needs more than `max_pairs`.
        """
        if not self._in_flight:
            raise InvalidRequest("There is no frame to fetch.", hint="Submit one first.")
        frame = self._drawing.finish(self._in_flight.popleft())
        if frame.stats[4]:
            raise PairOverflow(
                "The frame needs more Gaussian-tile pairs than there is room for.",
                note=f"It needs {frame.stats[2]}; max_pairs is {frame.stats[3]}.",
                hint="Give a larger max_pairs, or none.",
            )
        return frame

    @property
    def in_flight(self) -> int:
        """Frames that were submitted and not fetched."""
        return len(self._in_flight)

    def _new_drawing(
        self, background: NDArray[np.float32], outputs: int, dtype: str, max_pairs: Optional[int]
    ) -> _Drawing:
        if not self.on_gpu:
            if not isinstance(self.scene, Scene4D):
                raise InvalidRequest(
                    "The CPU cannot draw a scene that is in GPU memory.",
                    note=f"The scene is a {type(self.scene).__name__}.",
                    hint='Draw it there: backend="cuda".',
                )
            return _CpuDrawing(self.scene, background, outputs, dtype, max_pairs)
        from edge4d.runtime.frame_graph import CudaDrawing, Settings

        return CudaDrawing(self.scene, Settings(background, outputs, dtype), max_pairs)

    def _engine_drawing(
        self, backend: str, background: NDArray[np.float32], outputs: int, dtype: str, max_pairs: Optional[int]
    ) -> _Drawing:
        from edge4d.runtime.frame_graph import Settings
        from edge4d.runtime.render_engine import EngineDrawing, check

        check(backend)
        return EngineDrawing(self.scene, Settings(background, outputs, dtype), max_pairs)


class _Drawing(Protocol):
    """What draws. Frames are finished in the order in which they were begun, and at most two are begun at once."""

    @property
    def lends(self) -> bool:
        """Whether a finished frame lies in memory that a later one will use."""

    def begin(self, camera: Camera, t: float) -> Any: ...

    def finish(self, begun: Any) -> Frame: ...


class _CpuDrawing:
    lends = False

    def __init__(
        self, scene: Scene4D, background: NDArray[np.float32], outputs: int, dtype: str, max_pairs: Optional[int]
    ) -> None:
        self._scene, self._background, self._outputs, self._dtype = scene, background, outputs, dtype
        self._max_pairs = max_pairs or 0

    def begin(self, camera: Camera, t: float) -> Frame:
        means, quats, scales, opacities, colors = self._scene.evaluate(t)
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
            eps2d=self._scene.eps2d,
            antialiased=self._scene.antialiased,
            sh_degree=self._scene.sh_degree,
            max_pairs=self._max_pairs,
            outputs=self._outputs,
            out_dtype=self._dtype,
        )
        alpha, depth = (array[0, 0, ..., 0] if array.size else array for array in (result.alpha, result.depth))
        return Frame(result.image[0, 0] if result.image.size else result.image, alpha, depth, result.stats[0, 0])

    def finish(self, begun: Frame) -> Frame:
        return begun


def _checked_background(background: Sequence[float]) -> NDArray[np.float32]:
    colour = np.asarray(background, np.float32)
    if colour.shape != (3,) or not ((colour >= 0) & (colour <= 1)).all():
        raise InvalidRequest("The background is not a colour.", note=f"{colour.tolist()}, expected r, g, b in 0..1.")
    return colour


def _checked_outputs(names: Sequence[str]) -> int:
    """As bits."""
    unknown = [name for name in names if name not in OUTPUTS]
    if unknown:
        raise InvalidRequest("The renderer has no such output.", note=f"{unknown}; it has {list(OUTPUTS)}.")
    return sum(OUTPUTS[name] for name in set(names))


def _checked_pairs(max_pairs: Optional[int]) -> Optional[int]:
    if max_pairs is not None and not 1 <= max_pairs < 2**31:
        raise InvalidRequest("That is no number of pairs.", note=f"max_pairs is {max_pairs}, from 1 to 2**31 - 1.")
    return max_pairs


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
            drawn = stack.enter_context(closing(self._drawn()))
            for done in range(1, len(self) + 1):
                before = time.perf_counter()
                frame = next(drawn)
                rendering += time.perf_counter() - before
                if add_frame:
                    add_frame(frame.image)
                if add_depth:
                    add_depth(frame.depth, frame.alpha)
                if progress:
                    progress(done, len(self))
        return SaveTimes(rendering, time.perf_counter() - start - rendering)

    def _drawn(self) -> Generator[Frame, None, None]:
        """The frames in order, each valid until the next one; the next one is under way meanwhile."""
        try:
            for camera, t in zip(self.path.cameras, self.path.times):
                self.renderer.submit(camera, float(t))
                if self.renderer.in_flight == Renderer.MAX_IN_FLIGHT:
                    yield self.renderer.fetch()
            yield self.renderer.fetch()
        finally:
            while self.renderer.in_flight:  # whoever stopped early leaves the renderer as it was
                self.renderer.fetch()


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
    backend: str = "auto",
    as_engine: bool = False,
    **parameters: float,
) -> Video:
    """The scene along a camera path, rendered as the video is iterated or saved.

    Args:
        scene: what to render.
        camera: a trajectory's name (static, drive, orbit, turntable, dolly, pan, spiral), a file or folder of poses,
            or a path. Where the scene's lengths are not metres, trajectories without parameters are scaled so that they
            turn about its middle.
        frames: how many; without it, for as long as the scene moves (24 if it does not). Of a file or path at most so
            many, and all without it.
        fps: frames per second; the scene's own without it.
        size: (width, height); the scene's own without it. Another aspect shows the middle part.
        background: RGB in 0..1; the scene's own without it.
        camera_format: kitti, tum, colmap, realestate10k or nerfstudio; found out from the file without it.
        camera_scale: metres per unit of the file's positions.
        backend, as_engine: what draws; see `Renderer`.
        parameters: of the trajectory, such as `speed` of drive; see `edge4d.runtime.trajectories.trajectory`.

    Raises:
        InvalidCameraPath: no such trajectory or file, or one that cannot be used.
        InvalidRequest: another argument that cannot be used.
        BackendUnavailable: the backend does not work on this machine.
        LibraryNotFound: the plugins are missing that `as_engine` needs.
    """
    fps = scene.fps if fps is None else fps
    seen_by = scene.camera if size is None else fitted(scene.camera, size)
    if not isinstance(camera, CameraPath) and str(camera) in TRAJECTORIES:
        count = _frames_of(scene, fps) if frames is None else frames
        path = trajectory(str(camera), seen_by, count, fps, **parameters)
        if not scene.metric and not parameters:
            path = path.scaled(_distance(scene) / DISTANCE)
    elif parameters:
        raise InvalidCameraPath("Only trajectories have parameters.", note=f"Got {', '.join(parameters)}.")
    elif isinstance(camera, CameraPath):
        path = camera if size is None else _fitted_path(camera, size)
    else:
        path = _path_from_file(Path(camera), seen_by, fps, camera_format, camera_scale)
    renderer = Renderer(scene, background=background, backend=backend, as_engine=as_engine)
    return Video(renderer, _first(path, frames), fps)


def _frames_of(scene: Scene4D, fps: float) -> int:
    return round((scene.t1 - scene.t0) * fps) + 1 if scene.t1 > scene.t0 else FRAMES


def _distance(scene: Scene4D) -> float:
    """How far ahead of its camera a scene's middle is; as far as trajectories expect it where there is none."""
    if len(scene) == 0:
        return DISTANCE
    middle = np.median(scene.means.astype(np.float64), axis=0) - scene.camera.c2w[:3, 3]
    ahead = float(middle @ scene.camera.c2w[:3, 2])
    return ahead if ahead > 0.0 else DISTANCE


def fitted(camera: Camera, size: tuple[int, int]) -> Camera:
    """The camera for a picture of another size: pixels stay square, and another aspect sees the middle part."""
    width, height = size
    scale = max(width / camera.width, height / camera.height)
    fx, fy, cx, cy = camera.intrinsics
    x, y = scale * (cx - 0.5 * camera.width) + 0.5 * width, scale * (cy - 0.5 * camera.height) + 0.5 * height
    return Camera.from_intrinsics(width, height, scale * fx, scale * fy, x, y).with_pose(camera.c2w)


def _fitted_path(path: CameraPath, size: tuple[int, int]) -> CameraPath:
    return CameraPath(path.times, tuple(fitted(camera, size) for camera in path.cameras))


def check_camera(camera: PathLike) -> None:
    """Raises InvalidCameraPath for what is neither a trajectory's name nor a file or folder that is there."""
    if str(camera) not in TRAJECTORIES and not Path(camera).exists():
        raise InvalidCameraPath(
            f"There is no trajectory or file of poses called '{camera}'.",
            note=f"Trajectories are {', '.join(TRAJECTORIES)}.",
            hint="Check the name.",
        )


def _path_from_file(path: Path, camera: Camera, fps: float, kind: Optional[str], scale: float) -> CameraPath:
    check_camera(path)
    return read_camera_path(path, format=kind, camera=camera, fps=fps, scale=scale)


def _first(path: CameraPath, frames: Optional[int]) -> CameraPath:
    if frames is None or frames >= len(path):
        return path
    if frames < 1:
        raise InvalidRequest("A video needs frames.", note=f"{frames} were asked for.")
    return CameraPath(path.times[:frames], path.cameras[:frames])
