"""Scene4D + camera + time → picture, on the GPU.

One CUDA graph makes a frame: the camera and the time go to the GPU, the motion kernel moves the Gaussians, the
rasterizer draws them, and the picture goes to page-locked memory of the host. The graph is recorded once per size;
another pose or time only changes numbers that it reads. A frame costs one launch, and one wait when it is fetched;
nothing is allocated. There are two such graphs with memory of their own, so that one frame is drawn while the one
before is copied and looked at.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Optional, Union

import numpy as np
from numpy.typing import DTypeLike, NDArray

from edge4d.kernels import cuda
from edge4d.kernels.checks import INT32_MAX
from edge4d.kernels.ops import ALPHA, DEPTH, IMAGE
from edge4d.kernels.reference import Rasterization
from edge4d.runtime.backends.cuda import DeviceArray, Mirrored, current_device, use_device
from edge4d.runtime.camera import Camera
from edge4d.runtime.errors import PairOverflow
from edge4d.runtime.recorded_frame import RecordedFrame
from edge4d.runtime.renderer import Frame
from edge4d.runtime.scene import Scene4D
from edge4d.runtime.scene_on_device import SceneOnDevice

FIRST_PAIRS = 4  # per Gaussian: scenes of photographs need two to three
_PAIRS_STEP = 1 << 16  # capacities are multiples of it


class Settings(NamedTuple):
    """What all frames of a renderer share."""

    background: NDArray[np.float32]  # [3]
    outputs: int  # bits of kernels.ops
    dtype: str  # of the image


class CudaDrawing:
    """Draws one scene, in up to two frames at a time.

    Args:
        max_pairs: Gaussian-tile pairs that there is memory for; without it, memory grows with what frames need.

    Raises:
        InvalidRequest: the scene moves in a way that the motion kernel does not know.
        CudaError: there is not enough memory.
    """

    lends = True  # a frame lies in memory that the next but one will use

    def __init__(self, scene: Union[Scene4D, SceneOnDevice], settings: Settings, max_pairs: Optional[int]) -> None:
        self._device = current_device()
        self._scene = scene if isinstance(scene, SceneOnDevice) else SceneOnDevice.from_scene(scene)
        self._settings = settings
        self._grows = max_pairs is None
        self._capacity = _rounded_up(FIRST_PAIRS * len(scene)) if max_pairs is None else max_pairs
        self._graphs: dict[int, _FrameGraph] = {}  # by whose turn it is, 0 or 1
        self._turn = 0

    def begin(self, camera: Camera, t: float) -> _Begun:
        """Launches a frame; gives what `finish` takes."""
        self._scene.check_time(t)
        use_device(self._device)
        turn = 1 - self._turn
        self._graph(turn, camera).launch(camera, t, after=self._scene.ready)
        self._turn = turn  # only now: what failed leaves the other graph's frame alone
        return _Begun(turn, camera, t)

    def finish(self, begun: _Begun) -> Frame:
        """Waits for a frame; draws it again with more memory when it needs that."""
        use_device(self._device)
        frame = self._graphs[begun.turn].wait()
        while frame.stats[4] and self._grows:
            self._grow(int(frame.stats[2]))
            self._graph(begun.turn, begun.camera).launch(begun.camera, begun.t, after=self._scene.ready)
            frame = self._graphs[begun.turn].wait()
        return frame

    def _graph(self, turn: int, camera: Camera) -> _FrameGraph:
        """The graph whose turn it is, made anew when the picture's size or the capacity has changed."""
        graph, size = self._graphs.get(turn), (camera.width, camera.height)
        if graph is None or graph.size != size or graph.capacity < self._capacity:
            graph = None
            self._graphs.pop(turn, None)  # its memory goes before the new one's comes
            self._graphs[turn] = graph = _FrameGraph(self._scene, self._settings, size, self._capacity)
        return graph

    def _grow(self, needed: int) -> None:
        if needed == INT32_MAX:
            raise PairOverflow(
                "The Gaussians cover too much of the image.",
                note=f"They need {INT32_MAX} Gaussian-tile pairs or more.",
                hint="Draw a smaller image.",
            )
        self._capacity = max(self._capacity, _rounded_up(needed + needed // 4))


class _Begun(NamedTuple):
    turn: int
    camera: Camera
    t: float


class _FrameGraph(RecordedFrame):
    """A scene that the motion kernel moves and the rasterizer draws."""

    def __init__(self, scene: SceneOnDevice, settings: Settings, size: tuple[int, int], capacity: int) -> None:
        inputs = Mirrored(
            {
                "viewmats": ((1, 1, 4, 4), np.float32),
                "Ks": ((1, 1, 3, 3), np.float32),
                "background": ((3,), np.float32),
                "time": ((1,), np.float64),
            }
        )
        inputs.host["background"][:] = settings.background
        super().__init__(inputs, Mirrored(_output_arrays(settings, size)))
        self.size, self.capacity = size, capacity
        self._scene, self._settings = scene, settings
        self._moved = scene.room_for_moved()
        self._workspace = DeviceArray((self._workspace_bytes(),), np.uint8)

    def _draw(self) -> None:
        means, quats, scales, opacities, colors = self._scene.moved(
            self.inputs.device["time"], self._moved, self.stream
        )
        outputs: Any = self.outputs.device
        cuda.gaussian_rasterize(
            means,
            quats,
            scales,
            opacities,
            colors,
            self.inputs.device["viewmats"],
            self.inputs.device["Ks"],
            self.inputs.device["background"],
            out=Rasterization(*(outputs.get(name) for name in Rasterization._fields)),
            workspace=self._workspace,
            stream=self.stream,
            width=self.size[0],
            height=self.size[1],
            eps2d=self._scene.about.eps2d,
            antialiased=self._scene.about.antialiased,
            sh_degree=self._scene.sh_degree,
            max_pairs=self.capacity,
            outputs=self._settings.outputs,
            out_dtype=self._settings.dtype,
        )

    def _workspace_bytes(self) -> int:
        return cuda.gaussian_rasterize_workspace(
            gaussians=len(self._scene),
            coefficients=self._scene.coefficients,
            width=self.size[0],
            height=self.size[1],
            max_pairs=self.capacity,
            outputs=self._settings.outputs,
            out_dtype=self._settings.dtype,
        )


# ---- memory ---------------------------------------------------------------------------------------------------------


def _output_arrays(settings: Settings, size: tuple[int, int]) -> dict[str, tuple[tuple[int, ...], DTypeLike]]:
    pixels = (1, 1, size[1], size[0])
    plane_dtype = "float32" if settings.dtype == "uint8" else settings.dtype
    arrays: dict[str, tuple[tuple[int, ...], DTypeLike]] = {"stats": ((1, 1, 5), np.int32)}
    if settings.outputs & IMAGE:
        arrays["image"] = ((*pixels, 3), settings.dtype)
    if settings.outputs & ALPHA:
        arrays["alpha"] = ((*pixels, 1), plane_dtype)
    if settings.outputs & DEPTH:
        arrays["depth"] = ((*pixels, 1), plane_dtype)
    return arrays


def _rounded_up(pairs: int) -> int:
    return min(INT32_MAX, max(1, -(-pairs // _PAIRS_STEP)) * _PAIRS_STEP)
