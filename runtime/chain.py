"""Stages of a bundle one after the other on the GPU: what one makes, the next reads where it lies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Optional

from numpy.typing import NDArray

from edge4d.runtime.backends.cuda import DeviceArray, Mirrored, Stream, recorded
from edge4d.runtime.backends.tensorrt import LoadedEngine, Scratch, TensorRtBackend
from edge4d.runtime.bundle import Bundle, Stage


class Chain:
    """Engines with all their memory, run by one launch of a CUDA graph.

    Tensors of the same name are one: an input that an earlier stage gives is that stage's output, every other one is
    written by the caller. All is made once, for one size; another size needs another chain.

    Args:
        stages: names, in the order in which they run.
        sizes: of the stages' axes, such as {"W": 448, "H": 256}.
        stream: where it runs; a new one without it.

    Attributes:
        inputs: arrays in page-locked memory, to be filled before `launch`; until the stream is through with it, they
            must stay as they are.
        outputs: what the stages give, in GPU memory; each run overwrites it.
        stream: as above.

    Raises:
        PrecisionNotInBundle, InvalidBundle, EngineNotBuilt: as `TensorRtBackend.engine`.
        EngineFailed: an engine was not built for this size.
        CudaError: there is not enough memory.
    """

    def __init__(
        self,
        backend: TensorRtBackend,
        bundle: Bundle,
        stages: Sequence[str],
        precision: str,
        sizes: Mapping[str, int],
        *,
        stream: Optional[Stream] = None,
    ) -> None:
        described = [bundle.stage(name) for name in stages]
        self.stream, self._scratch = stream or Stream(), Scratch()
        self._engines = [backend.load(bundle, stage.name, precision) for stage in described]
        self._inputs = Mirrored(_inputs(described, sizes))
        self.inputs: dict[str, NDArray[Any]] = self._inputs.host
        self.outputs = {
            tensor.name: DeviceArray(tensor.shape_at(sizes), tensor.dtype)
            for stage in described
            for tensor in stage.outputs
        }
        for engine in self._engines:
            bind(engine, {**self._inputs.device, **self.outputs})
        self._scratch.reserve(max(engine.scratch_bytes for engine in self._engines))
        self._graph = recorded(self.stream, self._enqueue)

    def launch(self) -> None:
        """Takes the inputs and runs all stages, when the stream comes to it."""
        self._graph.launch()

    def _enqueue(self) -> None:
        self._inputs.to_device(self.stream)
        for engine in self._engines:
            engine.enqueue(self.stream, self._scratch)


def bind(engine: LoadedEngine, arrays: Mapping[str, DeviceArray]) -> None:
    """Says where an engine's tensors lie, by their names, and how large they are.

    Raises:
        EngineFailed: the engine was not built for that.
    """
    for name in engine.inputs:
        engine.set_shape(name, arrays[name].shape)
    for name in (*engine.inputs, *engine.outputs):
        engine.bind(name, arrays[name])


def _inputs(stages: Sequence[Stage], sizes: Mapping[str, int]) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of what no earlier stage gives."""
    given: set[str] = set()
    inputs: dict[str, tuple[tuple[int, ...], str]] = {}
    for stage in stages:
        inputs.update(
            {tensor.name: (tensor.shape_at(sizes), tensor.dtype) for tensor in stage.inputs if tensor.name not in given}
        )
        given |= {tensor.name for tensor in stage.outputs}
    return inputs
