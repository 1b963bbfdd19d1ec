"""The variation field of GVFDiffusion on the GPU: from features and Gaussians to changes, by one launch.

dit_cond → dit_step and the sampler's update, again and again → vae_latent
         → vae_query and vae_attend, for one part of the Gaussians after the other, frame by frame
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Optional

import numpy as np
from numpy.typing import NDArray

from edge4d.kernels import cuda
from edge4d.runtime.backends.cuda import DeviceArray, Stream, recorded
from edge4d.runtime.backends.tensorrt import Scratch, TensorRtBackend
from edge4d.runtime.bundle import Bundle
from edge4d.runtime.chain import bind
from edge4d.runtime.errors import InvalidBundle
from edge4d.runtime.samplers import Step
from edge4d.runtime.variation_field import CHANNELS

_BEFORE_ATTEND = ("dit_cond", "dit_step", "vae_latent", "vae_query")
STAGES = (*_BEFORE_ATTEND, "vae_attend")

_ALIGNMENT = 256  # bytes; where an engine's tensors must begin
_ROWS = 32  # Gaussians whose channels fill whole multiples of that, in float32


class Parts(NamedTuple):
    """How Gaussians are decoded: parts of `size`, which begin at `starts`, of `rows` in all.

    All have one size, since a recorded engine has one shape: rather than be smaller, the last overlaps the one before.
    """

    rows: int
    size: int
    starts: tuple[int, ...]


class VariationFieldOnDevice:
    """Engines with all their memory and the sampler's loop, as one CUDA graph.

    It is made for one length of clips, one number of Gaussians and one plan: a sampler that chooses its steps must look
    at each evaluation on the host, and cannot be recorded.

    Args:
        frames: T.
        gaussians: N, that are decoded.
        plan: of the sampler.
        stream: where it runs; a new one without it.

    Attributes:
        inputs: arrays in GPU memory by name, to be filled before `launch`: images [T,S,C] as the network of features
            gives them, static [M,14] and gaussians [N,14] in query order, positions [L,3], and noise [T,L,C].
        latents: [T,L,C] that were sampled, in GPU memory; each run overwrites them, and what follows.
        changes: [T,rows,14] in delta order, in GPU memory; rows beyond N mean nothing.
        stream: as above.

    Raises:
        PrecisionNotInBundle, InvalidBundle, EngineNotBuilt: as `TensorRtBackend.engine`.
        EngineFailed: an engine was not built for these sizes.
        LibraryNotFound: the CUDA kernels are missing.
        CudaError: there is not enough memory.
    """

    def __init__(
        self,
        backend: TensorRtBackend,
        bundle: Bundle,
        precision: str,
        *,
        frames: int,
        gaussians: int,
        plan: Sequence[Step],
        stream: Optional[Stream] = None,
    ) -> None:
        self._frames, self._gaussians = frames, gaussians
        self._parts = parts(gaussians, bundle.stage("vae_attend").axes["N"].max)
        self._steps = _on_device(plan)
        self.stream, self._scratch = stream or Stream(), Scratch()
        self._make_arrays(bundle)
        self._engines = {name: backend.load(bundle, name, precision) for name in STAGES}
        for name in _BEFORE_ATTEND:
            bind(self._engines[name], self._arrays)
        bind(self._engines["vae_attend"], {**self._arrays, **self._of_frame(0)})
        self._scratch.reserve(max(engine.scratch_bytes for engine in self._engines.values()))
        self._graph = recorded(self.stream, self._enqueue)

    def launch(self) -> None:
        """From inputs to changes, when the stream comes to it."""
        self._graph.launch()

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Changes [T,N,14] of inputs by name, from the host's memory to the host's; waits for them."""
        for name, array in self.inputs.items():
            array.copy_from(np.ascontiguousarray(inputs[name], np.float32))
        self.launch()
        self.stream.synchronize()
        changes: NDArray[np.float32] = self.changes.to_numpy()[:, : self._gaussians]
        return changes

    # ---- what `launch` does, to be put into the stream one by one ----

    def condition(self) -> None:
        """Keys and values of pictures and Gaussians."""
        self._enqueue_stage("dit_cond")

    def sample(self) -> None:
        """Latents."""
        x, data = self.latents, self._data
        x.copy_from(self.inputs["noise"], self.stream)
        data.fill_bytes(0, self.stream)
        for step in self._steps:
            self._enqueue_stage("dit_step", t=step.view((1,)))
            cuda.sampler_step(x, data, velocity=self._arrays["v"], step=step, stream=self.stream)

    def decode(self) -> None:
        """Changes."""
        self._enqueue_stage("vae_latent")
        for start in self._parts.starts:
            self._enqueue_stage("vae_query", gaussians=self._rows(self._decoded, start))
            for frame in range(self._frames):
                self._enqueue_stage("vae_attend", **self._of_frame(frame, start))

    def _enqueue(self) -> None:
        self.condition()
        self.sample()
        self.decode()

    def _enqueue_stage(self, name: str, **elsewhere: DeviceArray) -> None:
        """Puts a stage into the stream, with some of its tensors elsewhere than before."""
        for tensor, array in elsewhere.items():
            self._engines[name].bind(tensor, array)
        self._engines[name].enqueue(self.stream, self._scratch)

    # ---- memory ----

    def _make_arrays(self, bundle: Bundle) -> None:
        """Tensors of the same name are one; samples are what the sampler ends with."""
        rows, sizes = self._parts.rows, {"T": self._frames, "N": self._parts.size}
        self.latents = DeviceArray(bundle.stage("dit_step").input("x").shape_at(sizes))
        self._data = DeviceArray(self.latents.shape)  # the network's x_0 of the step before
        self.changes = DeviceArray((self._frames, rows, CHANNELS))
        self._decoded = DeviceArray((rows, CHANNELS))  # the Gaussians; zeros beyond N
        self._decoded.fill_bytes(0, self.stream)
        self._arrays = arrays = {
            "x": self.latents,
            "samples": self.latents,
            "t": self._steps[0].view((1,)),
            "gaussians": self._rows(self._decoded, 0),
        }
        for stage in (bundle.stage(name) for name in _BEFORE_ATTEND):
            for tensor in (*stage.inputs, *stage.outputs):
                if tensor.name not in arrays:
                    arrays[tensor.name] = DeviceArray(tensor.shape_at(sizes), tensor.dtype)
        for name in ("keys", "values"):
            _check_aligned(name, arrays[name])
        self.inputs = {name: arrays[name] for name in ("images", "static", "positions")}
        self.inputs["noise"] = DeviceArray(self.latents.shape)
        self.inputs["gaussians"] = self._decoded.view((self._gaussians, CHANNELS))

    def _of_frame(self, frame: int, start: int = 0) -> dict[str, DeviceArray]:
        """The tensors of vae_attend that lie elsewhere in each frame, of the Gaussians from `start` on."""
        changes = self._slice(self.changes, frame)
        return {
            "keys": self._slice(self._arrays["keys"], frame),
            "values": self._slice(self._arrays["values"], frame),
            "changes": self._rows(changes.view(changes.shape[1:]), start).view((1, self._parts.size, CHANNELS)),
        }

    def _slice(self, array: DeviceArray, frame: int) -> DeviceArray:
        """[1,...] of [T,...]."""
        return array.view((1, *array.shape[1:]), offset=frame * (array.nbytes // self._frames))

    def _rows(self, array: DeviceArray, start: int) -> DeviceArray:
        """A part [size,C] of [rows,C]."""
        channels = array.shape[1]
        return array.view((self._parts.size, channels), offset=start * channels * array.dtype.itemsize)


def parts(count: int, most: int) -> Parts:
    """As few parts of `count` Gaussians as are possible with at most `most` in each."""
    rows = _whole(count)
    number = math.ceil(rows / max(most // _ROWS * _ROWS, _ROWS))
    size = _whole(math.ceil(rows / number))
    return Parts(rows, size, tuple(min(i * size, rows - size) for i in range(number)))


def _whole(count: int) -> int:
    return -(-count // _ROWS) * _ROWS


def _on_device(plan: Sequence[Step]) -> list[DeviceArray]:
    """Each step's numbers [6], where an engine can read the first as its t."""
    numbers = len(Step._fields)
    table = np.zeros((len(plan), _ALIGNMENT // 4), np.float32)
    table[:, :numbers] = plan
    whole = DeviceArray.from_numpy(table)
    return [whole.view((numbers,), offset=i * _ALIGNMENT) for i in range(len(plan))]


def _check_aligned(name: str, array: DeviceArray) -> None:
    """Raises InvalidBundle unless every frame of the array begins where an engine can read it."""
    nbytes = array.nbytes // array.shape[0]
    if nbytes % _ALIGNMENT:
        raise InvalidBundle(
            "The bundle's variation field cannot run on the GPU alone.",
            note=f"A frame of '{name}' has {nbytes} bytes, which is no multiple of {_ALIGNMENT}.",
            hint="Let the sampler choose its steps, or use --backend onnxruntime.",
        )
