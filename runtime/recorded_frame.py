"""One frame at a time on the GPU: its memory on both sides, and the CUDA graph that fills it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Optional

import numpy as np
from numpy.typing import NDArray

from edge4d.runtime.backends.cuda import Event, Graph, Mirrored, Stream, recorded
from edge4d.runtime.camera import Camera
from edge4d.runtime.renderer import Frame


class RecordedFrame(ABC):
    """What draws is up to `_draw`; the graph is recorded when the first frame is launched.

    Args:
        inputs: viewmats [1,1,4,4], Ks [1,1,3,3], time [1] if anything moves, and what stays as it is.
        outputs: stats [1,1,5], and those of image [1,1,H,W,3], alpha and depth [1,1,H,W,1] that are asked for.
    """

    def __init__(self, inputs: Mirrored, outputs: Mirrored) -> None:
        self.inputs, self.outputs = inputs, outputs
        self.stream, self._done = Stream(), Event()
        self._graph: Optional[Graph] = None
        self._frame = _frame_of(outputs.host)

    def launch(self, camera: Camera, t: float, *, after: Optional[Event] = None) -> None:
        """Makes the frame; it is there when `wait` returns. One that was launched before has to be waited for first.

        Args:
            after: what the GPU waits for before.
        """
        inputs = self.inputs.host
        inputs["viewmats"][0, 0] = camera.viewmat
        inputs["Ks"][0, 0] = camera.K
        if "time" in inputs:
            inputs["time"][0] = t
        if after:
            self.stream.wait_for(after)
        if self._graph is None:
            self._graph = recorded(self.stream, self._enqueue)
        self._graph.launch()
        self._done.record(self.stream)

    def wait(self) -> Frame:
        """The frame, in memory that the next `launch` overwrites."""
        self._done.synchronize()
        return self._frame

    def _enqueue(self) -> None:
        self.inputs.to_device(self.stream)
        self._draw()
        self.outputs.to_host(self.stream)

    @abstractmethod
    def _draw(self) -> None:
        """Puts what lies between the inputs and the outputs in GPU memory into the stream."""


def _frame_of(arrays: Mapping[str, NDArray[Any]]) -> Frame:
    nothing: NDArray[Any] = np.empty(0, np.float32)
    image = arrays["image"][0, 0] if "image" in arrays else nothing
    alpha, depth = (arrays[name][0, 0, ..., 0] if name in arrays else nothing for name in ("alpha", "depth"))
    return Frame(image, alpha, depth, arrays["stats"][0, 0])
