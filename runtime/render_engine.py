"""Scene4D + camera + time → picture, by a TensorRT engine of `render_onnx` with our operator as a plugin.

As in `frame_graph`, one launch of a CUDA graph makes a frame, nothing is allocated for it, and two of them are under
way at once. An engine is built for a size of picture, a number of Gaussians and of Gaussian-tile pairs, which takes
seconds, and comes out of the engine cache from then on. Scenes are filled up to a multiple of 65,536 Gaussians, so that
those of about the same size share one. A frame that needs more pairs is drawn by the CUDA kernels, and the next one
waits for an engine that has room for twice as many.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Optional, Union

from edge4d.kernels.checks import INT32_MAX
from edge4d.runtime.backends import cuda
from edge4d.runtime.backends.cuda import DeviceArray, Mirrored, current_device, use_device
from edge4d.runtime.backends.tensorrt import LoadedEngine, Scratch, TensorRtBackend, load_plugins
from edge4d.runtime.bundle_engines import built_or_cached, engine_key, plugin_library
from edge4d.runtime.camera import Camera
from edge4d.runtime.engine_cache import EngineCache
from edge4d.runtime.engine_from_onnx import BuildRequest
from edge4d.runtime.errors import InvalidRequest
from edge4d.runtime.frame_graph import FIRST_PAIRS, CudaDrawing, Settings
from edge4d.runtime.recorded_frame import RecordedFrame
from edge4d.runtime.render_onnx import RenderSpec, check_onnx, render_onnx, scene_inputs, spec_of
from edge4d.runtime.renderer import Frame
from edge4d.runtime.scene import Scene4D
from edge4d.runtime.scene_on_device import SceneOnDevice

_GAUSSIANS_STEP = 1 << 16  # engines are built for multiples of it


def check(backend: str) -> None:
    """Whether scenes can be drawn by engines here, before any work is done for that.

    Args:
        backend: the name of the one that was asked for.

    Raises:
        InvalidRequest: it is another than TensorRT.
        BackendUnavailable: TensorRT, onnx, the CUDA kernels or a GPU is missing.
        LibraryNotFound: the plugins are missing.
    """
    if backend not in ("auto", "tensorrt"):
        raise InvalidRequest(
            f"The backend '{backend}' has no engine that draws.",
            note="TensorRT alone has one.",
            hint="Use --backend tensorrt, or leave --render-engine out.",
        )
    load_plugins()
    check_onnx()
    cuda.check()


class EngineDrawing:
    """Draws one scene, in up to two frames at a time.

    Args:
        max_pairs: Gaussian-tile pairs that engines are built for; without it, as many as frames need.
        cache: where engines are kept; the user's cache without it.

    Raises:
        BackendUnavailable: TensorRT, or a GPU is missing.
        LibraryNotFound: the plugins are missing.
        InvalidRequest: the scene moves in another way than by one polynomial, or was made in GPU memory.
        CudaError: there is not enough memory.
    """

    lends = True  # a frame lies in memory that the next but one will use

    def __init__(
        self,
        scene: Union[Scene4D, SceneOnDevice],
        settings: Settings,
        max_pairs: Optional[int],
        cache: Optional[EngineCache] = None,
    ) -> None:
        if isinstance(scene, SceneOnDevice):
            raise InvalidRequest(
                "A TensorRT engine draws no scene that was made in GPU memory.", hint='Draw it by backend="cuda".'
            )
        gaussians = max(1, -(-len(scene) // _GAUSSIANS_STEP)) * _GAUSSIANS_STEP
        self._device = current_device()
        self._scene, self._settings = scene, settings
        self._spec = spec_of(
            scene,
            gaussians=gaussians,
            size=(scene.camera.width, scene.camera.height),
            max_pairs=FIRST_PAIRS * gaussians if max_pairs is None else max_pairs,
            outputs=settings.outputs,
            dtype=settings.dtype,
        )
        self._grows = max_pairs is None
        self._engines = _Engines(TensorRtBackend(cache))
        inputs = scene_inputs(scene, self._spec, settings.background)
        self._inputs = {name: DeviceArray.from_numpy(array) for name, array in inputs.items()}
        self._frames: dict[int, _EngineFrame] = {}  # by whose turn it is, 0 or 1
        self._turn = 0

    def begin(self, camera: Camera, t: float) -> tuple[int, Camera, float]:
        """Launches a frame; gives what `finish` takes. One of a new size waits until its engine is built.

        Raises:
            EngineNotBuilt: TensorRT refused it.
        """
        self._scene.check_time(t)
        use_device(self._device)
        turn = 1 - self._turn
        self._frame(turn, camera).launch(camera, t)
        self._turn = turn  # only now: what failed leaves the other frame alone
        return turn, camera, t

    def finish(self, begun: tuple[int, Camera, float]) -> Frame:
        """Waits for a frame; has it drawn by the CUDA kernels when the engine has too few pairs for it."""
        turn, camera, t = begun
        use_device(self._device)
        frame = self._frames[turn].wait()
        if frame.stats[4] and self._grows:
            by_kernels = CudaDrawing(self._scene, self._settings, None)
            frame = by_kernels.finish(by_kernels.begin(camera, t))
            self._grow(int(frame.stats[2]))
        return frame

    def _frame(self, turn: int, camera: Camera) -> _EngineFrame:
        """The frame whose turn it is, made anew when the picture's size or the number of pairs has changed."""
        frame, spec = self._frames.get(turn), self._spec._replace(width=camera.width, height=camera.height)
        if frame is None or frame.spec != spec:
            frame = None
            self._frames.pop(turn, None)  # its memory goes before the new one's comes
            self._frames[turn] = frame = _EngineFrame(self._engines.load(spec), spec, self._inputs)
        return frame

    def _grow(self, needed: int) -> None:
        pairs = self._spec.max_pairs
        while pairs < needed:
            pairs = min(2 * pairs, INT32_MAX)
        self._spec = self._spec._replace(max_pairs=pairs)


class _EngineFrame(RecordedFrame):
    """A scene that an engine moves and draws."""

    def __init__(self, engine: LoadedEngine, spec: RenderSpec, scene: Mapping[str, DeviceArray]) -> None:
        inputs = Mirrored({name: array for name, array in spec.inputs().items() if name not in scene})
        super().__init__(inputs, Mirrored(spec.results()))
        self.spec = spec
        self._engine, self._scratch = engine, Scratch()
        for name, array in {**scene, **inputs.device, **self.outputs.device}.items():
            engine.bind(name, array)

    def _draw(self) -> None:
        self._engine.enqueue(self.stream, self._scratch)


# ---- engines --------------------------------------------------------------------------------------------------------


class _Engines:
    """Engines that draw, out of the cache or built."""

    def __init__(self, backend: TensorRtBackend) -> None:
        load_plugins()
        self._backend = backend
        self._plugins = plugin_library(backend.tensorrt.version)
        self._latest: Optional[tuple[RenderSpec, bytes]] = None  # both frames of a drawing ask for it

    def load(self, spec: RenderSpec) -> LoadedEngine:
        """One for these frames alone.

        Raises:
            EngineNotBuilt: TensorRT refused the graph.
        """
        if self._latest is None or self._latest[0] != spec:
            self._latest = spec, self._cached(spec)
        return self._backend.tensorrt.load(self._latest[1])

    def _cached(self, spec: RenderSpec) -> bytes:
        graph = render_onnx(spec)
        with tempfile.TemporaryDirectory(prefix="edge4d-") as folder:
            path = Path(folder, "render.onnx")
            path.write_bytes(graph)
            wanted = BuildRequest(path, "tensorrt", "fp32", {}, plugins=self._plugins)
            key = engine_key(
                f"render.{spec.width}x{spec.height}", hashlib.sha256(graph).hexdigest(), self._backend.target, wanted
            )
            return built_or_cached(wanted, key, self._backend.cache, check=self._backend.tensorrt.load).data
