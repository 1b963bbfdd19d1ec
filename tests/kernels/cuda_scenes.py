"""Operators on the GPU as tests call them: NumPy arrays in and out, and memory that shows every misstep."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from typing import Any, Optional, Union

import numpy as np
from kernel_scenes import HEIGHT, NAMES, WIDTH
from numpy.typing import NDArray

from edge4d.kernels import _library, cuda
from edge4d.kernels.ops import ALPHA, DEPTH, GAUSSIAN_RASTERIZE, IMAGE
from edge4d.kernels.reference import Rasterization
from edge4d.runtime.backends.cuda import DeviceArray, Graph, Stream

FENCE, FENCE_BYTE = 256, 0xA5  # bytes before and after; a workspace between them keeps its alignment
Scene = dict[str, NDArray[Any]]
Fill = Union[int, str, None]


class Device:
    """The GPU, with a stream that does not wait for the default one: work put there by mistake shows."""

    def __init__(self) -> None:
        self._stream = Stream()

    def draw(
        self, scene: Scene, width: int = WIDTH, height: int = HEIGHT, *, max_pairs: int = 0, **options: Any
    ) -> Rasterization:
        """What `draw_cpu` does. Without `max_pairs` there is room for exactly the pairs that are needed."""
        if max_pairs:
            return self.prepare(scene, width, height, max_pairs=max_pairs, **options).run()
        counted = self.prepare(scene, width, height, max_pairs=1, **{**options, "outputs": 0}).run()
        needed = max(1, counted.stats[..., 2].max(initial=0))
        result = self.prepare(scene, width, height, max_pairs=int(needed), **options).run()
        assert not result.stats[..., 4].any()
        result.stats[..., 3] = result.stats[..., 2]  # as on the CPU, where each image has the room that it needs
        return result

    def prepare(
        self,
        scene: Scene,
        width: int = WIDTH,
        height: int = HEIGHT,
        *,
        own_stream: bool = False,
        fill: Fill = 0xFF,
        **attributes: Any,
    ) -> Drawing:
        stream = Stream() if own_stream else self._stream
        return Drawing(stream, scene, {"width": width, "height": height, **attributes}, fill)


class Drawing:
    """A call with all its memory, to be launched as often as wanted. Its arrays are poisoned with `fill` before."""

    def __init__(self, stream: Stream, scene: Scene, attributes: dict[str, Any], fill: Fill) -> None:
        self._stream, self._attributes = stream, attributes
        self._inputs = {name: DeviceArray.from_numpy(scene[name]) for name in NAMES}
        self._sizes = sizes_of(scene)
        every = {attribute.name: attribute.default for attribute in GAUSSIAN_RASTERIZE.attributes} | attributes
        self._every = _library.RasterizeAttributes(*(every[name] for name in _library.RasterizeAttributes._fields))
        asked, self._empty = outputs_of(self._sizes, self._every)
        self._outputs = {name: Fenced(shape, dtype, fill) for name, (shape, dtype) in asked.items()}
        nbytes = _library.load_cuda().edge4d_cuda_gaussian_rasterize_workspace(ctypes.byref(self.parameters()))
        self._workspace = Fenced((nbytes,), np.dtype(np.uint8), fill)
        self.poison()

    def load(self, scene: Scene) -> None:
        """Takes another scene of the same sizes, into the same memory."""
        self._stream.synchronize()
        for name in NAMES:
            self._inputs[name].copy_from(scene[name])

    def launch(self) -> None:
        out = {name: self._outputs[name].array if name in self._outputs else None for name in Rasterization._fields}
        cuda.gaussian_rasterize(
            *self._inputs.values(),
            out=Rasterization(**out),
            workspace=self._workspace.array,
            stream=self._stream,
            **self._attributes,
        )

    def captured(self) -> Callable[[], None]:
        """The launch as a CUDA graph; calling it poisons the memory again and replays."""
        with Graph(self._stream) as graph:
            self.launch()

        def replay() -> None:
            self.poison()
            graph.launch()

        return replay

    def result(self) -> Rasterization:
        """What was drawn, once it is done; fails when anything was written beyond its end."""
        self._stream.synchronize()
        for name, memory in (*self._outputs.items(), ("workspace", self._workspace)):
            assert memory.fences_stand(), f"something was written outside of {name}"
        drawn = {name: memory.array.to_numpy() for name, memory in self._outputs.items()}
        return Rasterization(**drawn, **self._empty)

    def run(self) -> Rasterization:
        self.poison()
        self.launch()
        return self.result()

    def poison(self) -> None:
        for memory in (*self._outputs.values(), self._workspace):
            memory.poison(self._stream)

    def untouched(self) -> bool:
        """Whether the outputs hold their poison still, all 0xFF."""
        self._stream.synchronize()
        return all((m.array.view((m.array.nbytes,), np.uint8).to_numpy() == 0xFF).all() for m in self._outputs.values())

    # ---- the C interface, as the face calls it ----

    def parameters(self) -> _library.GaussianRasterizeCall:
        arrays = {**self._inputs, **{name: memory.array for name, memory in self._outputs.items()}}
        addresses = {name: array.pointer for name, array in arrays.items()}
        return _library.gaussian_rasterize_call(self._sizes, self._inputs["means"].dtype.name, self._every, **addresses)

    def workspace_span(self) -> tuple[int, int]:
        """Address and bytes."""
        return self._workspace.array.pointer, self._workspace.array.nbytes

    def raw_launch(
        self, call: Optional[_library.GaussianRasterizeCall], span: Optional[tuple[Optional[int], int]] = None
    ) -> int:
        """The status of a call of the C function, with this workspace or another."""
        pointer, nbytes = span or self.workspace_span()
        reference = None if call is None else ctypes.byref(call)
        status = _library.load_cuda().edge4d_cuda_gaussian_rasterize(reference, pointer, nbytes, self._stream.handle)
        return int(status)


class Work:
    """A call with all its memory, to be launched as often as wanted; outputs and workspace are poisoned before.

    Args:
        inputs: NumPy arrays.
        outputs: shape and dtype of each.
        launch: gets the inputs, outputs and the workspace on the GPU, and the stream.
        fill: what the memory is poisoned with, as that of a Drawing.
    """

    def __init__(
        self,
        inputs: Sequence[NDArray[Any]],
        outputs: Sequence[tuple[tuple[int, ...], np.dtype[Any]]],
        workspace_bytes: int,
        launch: Callable[..., None],
        fill: Fill = 0xFF,
    ) -> None:
        self.stream = Stream()
        self.inputs = [DeviceArray.from_numpy(array) for array in inputs]
        self.outputs = [Fenced(shape, dtype, fill) for shape, dtype in outputs]
        self.workspace = Fenced((workspace_bytes,), np.dtype(np.uint8), fill)
        self._launch = launch
        self.poison()

    def poison(self) -> None:
        for memory in (*self.outputs, self.workspace):
            memory.poison(self.stream)

    def launch(self) -> None:
        self._launch(self.inputs, [memory.array for memory in self.outputs], self.workspace.array, self.stream)

    def result(self) -> list[NDArray[Any]]:
        self.stream.synchronize()
        for memory in (*self.outputs, self.workspace):
            assert memory.fences_stand(), "something was written outside of an array"
        return [memory.array.to_numpy() for memory in self.outputs]

    def run(self) -> list[NDArray[Any]]:
        self.poison()
        self.launch()
        return self.result()


class Fenced:
    """An array between two fences. Without `fill` the bare array: compute-sanitizer finds its ends, and what was read
    before it was written."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any], fill: Fill) -> None:
        self._fill = fill
        if fill is None:
            self.array = DeviceArray(shape, dtype)
            return
        nbytes = math.prod(shape) * dtype.itemsize
        self._all = DeviceArray((FENCE + nbytes + FENCE,), np.uint8)
        self._inside = self._all.view((nbytes,), offset=FENCE)
        self._fences = [self._all.view((FENCE,), offset=offset) for offset in (0, FENCE + nbytes)]
        self.array = self._all.view(shape, dtype, FENCE)

    def poison(self, stream: Stream) -> None:
        if self._fill is None:
            return
        self._all.fill_bytes(FENCE_BYTE, stream)
        if isinstance(self._fill, int):
            self._inside.fill_bytes(self._fill, stream)
            return
        stream.synchronize()
        self._inside.copy_from(np.random.default_rng(0).integers(0, 256, self._inside.shape, np.uint8))

    def fences_stand(self) -> bool:
        return self._fill is None or all((fence.to_numpy() == FENCE_BYTE).all() for fence in self._fences)


def sizes_of(scene: Scene) -> dict[str, int]:
    """B, V, N, C, and K of spherical harmonics."""
    (B, V), (N, *rest) = scene["viewmats"].shape[:2], scene["colors"].shape[1:]
    return {"B": B, "V": V, "N": N, "C": rest[-1], **({"K": rest[0]} if len(rest) == 2 else {})}


def outputs_of(
    sizes: dict[str, int], attributes: _library.RasterizeAttributes
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Shapes and dtypes of the outputs that are asked for; an empty array for each of the others."""
    frames = (sizes["B"], sizes["V"], attributes.height, attributes.width)
    image_dtype = np.dtype(attributes.out_dtype)
    plane_dtype = np.dtype(np.float32) if image_dtype == np.uint8 else image_dtype
    shapes = {
        "image": (IMAGE, (*frames, sizes["C"]), image_dtype),
        "alpha": (ALPHA, (*frames, 1), plane_dtype),
        "depth": (DEPTH, (*frames, 1), plane_dtype),
    }
    asked = {name: (shape, dtype) for name, (bit, shape, dtype) in shapes.items() if attributes.outputs & bit}
    others = {name: np.empty(0, dtype) for name, (bit, _, dtype) in shapes.items() if not attributes.outputs & bit}
    return {**asked, "stats": ((*frames[:2], 5), np.dtype(np.int32))}, others
