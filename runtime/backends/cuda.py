"""The device layer: GPU memory, streams, events and graphs of CUDA, on cuda-bindings (pip install 'edge4d[cuda]').

Memory belongs to objects. A `DeviceArray` and all its views, here and in other libraries, keep it; it goes back to the
driver when the last of them is gone, which waits for the GPU. A view of another library's array keeps that array.

Nothing waits for the GPU unless its docstring says so, and nothing orders work of different streams: who uses several
does that with an `Event`. Streams made here do not wait for the default stream either.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from types import TracebackType
from typing import Any, Optional, Union

import numpy as np
from numpy.typing import DTypeLike, NDArray

from edge4d.kernels import _library
from edge4d.kernels.cuda import array_interface, check_dense, stream_handle
from edge4d.runtime.backends import dlpack
from edge4d.runtime.errors import BackendUnavailable, CudaError, InvalidTensor, LibraryNotFound

_ALIGNMENT = 256  # bytes, of arrays that share a piece of memory


def check() -> None:
    """Raises BackendUnavailable unless there are a GPU, the CUDA kernels and cuda-bindings."""
    try:
        _library.load_cuda()
    except LibraryNotFound as error:
        raise BackendUnavailable(error.what, note=error.note, hint=error.hint) from error
    check_device()


def check_device() -> None:
    """Raises BackendUnavailable unless there are a GPU and cuda-bindings."""
    runtime = _runtime()
    error, count = runtime.cudaGetDeviceCount()
    if int(error) or not count:
        raise BackendUnavailable(
            "There is no CUDA GPU that works here.",
            note=f"{_words(error)}." if int(error) else "The driver counts 0 devices.",
            hint="Install NVIDIA's driver, or use --backend onnxruntime, which runs on the CPU.",
        )


def device_name() -> str:
    """Name of the current device, with its compute capability."""
    properties = _properties()
    return f"{properties.name.split(bytes(1))[0].decode()}, compute capability {properties.major}.{properties.minor}"


def compute_capability() -> str:
    """Of the current device, such as "90"."""
    properties = _properties()
    return f"{properties.major}{properties.minor}"


def multiprocessors() -> int:
    """Of the current device."""
    return int(_properties().multiProcessorCount)


def _properties() -> Any:
    return _call("cudaGetDeviceProperties", current_device())


def driver_cuda() -> str:
    """The major version of the newest CUDA that the driver speaks, such as "13"."""
    return str(int(_call("cudaDriverGetVersion")) // 1000)


def current_device() -> int:
    """The number of the device that this thread uses."""
    return int(_call("cudaGetDevice"))


def use_device(device: int) -> None:
    """Makes this thread use the device of that number; every thread begins with number 0."""
    _call("cudaSetDevice", device)


def memory_in_use() -> int:
    """Bytes of the current device's memory that are taken, by all processes."""
    free, total = _call("cudaMemGetInfo")
    return int(total) - int(free)


def synchronize() -> None:
    """Waits until the current device has done all its work."""
    _call("cudaDeviceSynchronize")


# ---- arrays ---------------------------------------------------------------------------------------------------------


class DeviceArray:
    """A dense row-major array in GPU memory, whose content is not set.

    It speaks `__cuda_array_interface__` and DLPack, so torch, CuPy, JAX, Numba and PyCUDA take it without a copy. Like
    everything here it waits for no stream: the producer's work has to be done, or ordered before the consumer's.

    Args:
        shape: of any number of dimensions.
        dtype: a number type of NumPy.

    Attributes:
        shape, dtype, nbytes: as in NumPy.
        pointer: the address of its first byte.

    Raises:
        CudaError: there is not enough memory.
    """

    def __init__(self, shape: Sequence[int], dtype: DTypeLike = np.float32) -> None:
        memory = _Memory(math.prod(shape) * np.dtype(dtype).itemsize)
        self._set(shape, dtype, memory.pointer, memory)

    def _set(self, shape: Sequence[int], dtype: DTypeLike, pointer: int, owner: object) -> None:
        self.shape, self.dtype, self.pointer = tuple(shape), np.dtype(dtype), pointer
        self.nbytes = math.prod(self.shape) * self.dtype.itemsize
        self._owner = owner

    @classmethod
    def _over(cls, shape: Sequence[int], dtype: DTypeLike, pointer: int, owner: object) -> DeviceArray:
        array = cls.__new__(cls)
        array._set(shape, dtype, pointer, owner)
        return array

    @classmethod
    def from_numpy(cls, array: NDArray[Any]) -> DeviceArray:
        """A copy of a NumPy array; waits until it is made."""
        copy = cls(array.shape, array.dtype)
        copy.copy_from(np.asarray(array, order="C"))
        return copy

    @classmethod
    def view_of(cls, foreign: object) -> DeviceArray:
        """Another library's array as a DeviceArray: the same memory, which the view keeps alive.

        Args:
            foreign: an object with `__cuda_array_interface__`, or with `__dlpack__` on a CUDA device.

        Raises:
            InvalidTensor: it is not in GPU memory, or not dense and row-major.
        """
        if hasattr(foreign, "__cuda_array_interface__"):
            found = array_interface("foreign", foreign)
            return cls._over(found.shape, found.dtype, found.address, foreign)
        device = getattr(foreign, "__dlpack_device__", lambda: (None, None))()
        if device[0] not in (dlpack.CUDA, dlpack.CUDA_MANAGED):
            raise InvalidTensor(
                "This array is not in GPU memory.",
                note=f"It is a {type(foreign).__name__}, device {device}.",
                hint="Copy it: DeviceArray.from_numpy(...).",
            )
        capsule = foreign.__dlpack__(stream=-1)  # type: ignore[attr-defined]  # -1: the producer need not wait
        tensor = dlpack.tensor_from(capsule)
        if tensor.strides is not None:
            check_dense("foreign", tensor.shape, tensor.strides, tensor.dtype.itemsize)
        return cls._over(tensor.shape, tensor.dtype, tensor.address, capsule)

    def view(self, shape: Sequence[int], dtype: Optional[DTypeLike] = None, offset: int = 0) -> DeviceArray:
        """The same memory as another array, beginning `offset` bytes in; it keeps the memory alive.

        Raises:
            InvalidTensor: it would end beyond this array.
        """
        view = self._over(shape, self.dtype if dtype is None else dtype, self.pointer + offset, self._owner)
        if offset < 0 or offset + view.nbytes > self.nbytes:
            raise InvalidTensor(
                "A view must lie inside its array.",
                note=f"It would cover bytes {offset} to {offset + view.nbytes} of {self.nbytes}.",
            )
        return view

    def copy_from(self, source: Union[NDArray[Any], DeviceArray], stream: object = None) -> None:
        """Overwrites the array with a dense one of the same shape and dtype.

        Args:
            stream: where the copy takes its turn; `source` must live and stay as it is until then, and comes from
                `pinned_array` if it is NumPy's. Without it, the copy is done when this returns.

        Raises:
            InvalidTensor: the shapes or dtypes differ, or `source` is not dense.
        """
        self._check_like(source)
        if isinstance(source, np.ndarray):
            _copy(self.pointer, source.ctypes.data, self.nbytes, "cudaMemcpyHostToDevice", stream)
        else:
            _copy(self.pointer, source.pointer, self.nbytes, "cudaMemcpyDeviceToDevice", stream)

    def copy_to(self, target: NDArray[Any], stream: object = None) -> None:
        """Overwrites a dense NumPy array of the same shape and dtype.

        Args:
            stream: where the copy takes its turn; `target` must come from `pinned_array` and live until then. Without
                it, the copy is done when this returns.

        Raises:
            InvalidTensor: the shapes or dtypes differ, or `target` is not dense.
        """
        self._check_like(target)
        _copy(target.ctypes.data, self.pointer, self.nbytes, "cudaMemcpyDeviceToHost", stream)

    def to_numpy(self) -> NDArray[Any]:
        """A copy in a new NumPy array, of what the array holds now; waits until it is made."""
        copy = np.empty(self.shape, self.dtype)
        self.copy_to(copy)
        return copy

    def _check_like(self, other: Union[NDArray[Any], DeviceArray]) -> None:
        dense = not isinstance(other, np.ndarray) or other.flags.c_contiguous
        if (other.shape, other.dtype) != (self.shape, self.dtype) or not dense:
            raise InvalidTensor(
                "Arrays are only copied to dense ones like them.",
                note=f"This one is {self.dtype} {list(self.shape)}, the other {other.dtype} {list(other.shape)}"
                f"{'' if dense else ' and not dense'}.",
            )

    def fill_bytes(self, value: int, stream: object = 0) -> None:
        """Sets every byte to `value`, 0 to 255, when `stream` comes to it."""
        _call("cudaMemsetAsync", self.pointer, value, self.nbytes, stream_handle(stream))

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.pointer, False),
            "strides": None,
            "stream": None,
            "version": 3,
        }

    def __dlpack__(
        self,
        *,
        stream: object = None,
        max_version: Optional[tuple[int, int]] = None,
        dl_device: Optional[tuple[int, int]] = None,
        copy: Optional[bool] = None,
    ) -> Any:
        device = self.__dlpack_device__()
        if copy or dl_device not in (None, device):
            raise BufferError(f"A DeviceArray is handed over as it is, on device {device}, not as a copy elsewhere.")
        return dlpack.capsule_from(self.pointer, self.shape, self.dtype, device[1], self._owner)

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CUDA, int(_call("cudaPointerGetAttributes", self.pointer).device)


class _Memory:
    """Bytes on the current device."""

    def __init__(self, nbytes: int) -> None:
        self.pointer = int(_call("cudaMalloc", max(nbytes, 1)))
        weakref.finalize(self, _release, "cudaFree", self.pointer)


def pinned_array(shape: Sequence[int], dtype: DTypeLike = np.float32) -> NDArray[Any]:
    """A NumPy array in page-locked memory, which the GPU copies to and from on its own; its content is not set.

    The memory is given back when the array and its views are gone.

    Raises:
        CudaError: there is not enough memory.
    """
    nbytes = math.prod(shape) * np.dtype(dtype).itemsize
    pointer = int(_call("cudaHostAlloc", max(nbytes, 1), _runtime().cudaHostAllocDefault))
    memory = (ctypes.c_uint8 * max(nbytes, 1)).from_address(pointer)
    weakref.finalize(memory, _release, "cudaFreeHost", pointer)
    array: NDArray[Any] = np.ndarray(shape, dtype, buffer=memoryview(memory))  # keeps `memory`
    return array


class Mirrored:
    """Arrays one after the other in one piece of memory, on the GPU and on the host: one copy moves them all.

    Args:
        arrays: shape and dtype of each, by name.

    Attributes:
        host, device: the arrays by name; those of the host are page-locked. All begin as zeros.
    """

    def __init__(self, arrays: Mapping[str, tuple[Sequence[int], DTypeLike]]) -> None:
        nbytes = {name: math.prod(shape) * np.dtype(dtype).itemsize for name, (shape, dtype) in arrays.items()}
        whole = sum(_aligned(count) for count in nbytes.values())
        self._host, self._device = pinned_array((whole,), np.uint8), DeviceArray((whole,), np.uint8)
        self._host[:] = 0  # the gaps between arrays too: they are copied with them
        self._device.copy_from(self._host)
        self.host: dict[str, NDArray[Any]] = {}
        self.device: dict[str, DeviceArray] = {}
        offset = 0
        for name, (shape, dtype) in arrays.items():
            self.host[name] = self._host[offset : offset + nbytes[name]].view(dtype).reshape(shape)
            self.device[name] = self._device.view(shape, dtype, offset)
            offset += _aligned(nbytes[name])

    def to_device(self, stream: Stream) -> None:
        """Copies all arrays, when the stream comes to it."""
        self._device.copy_from(self._host, stream)

    def to_host(self, stream: Stream) -> None:
        """Copies all arrays, when the stream comes to it."""
        self._device.copy_to(self._host, stream)


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT


# ---- streams, events, graphs ----------------------------------------------------------------------------------------


class Stream:
    """A queue of work on the GPU: a new one, or another library's.

    Args:
        foreign: a stream of cuda-bindings, CuPy, PyCUDA or torch, or a handle. It is kept, and not destroyed.

    Attributes:
        handle: its cudaStream_t as a number.
    """

    def __init__(self, foreign: object = None) -> None:
        self._foreign = foreign
        if foreign is not None:
            self.handle = stream_handle(foreign)
            return
        self.handle = int(_call("cudaStreamCreateWithFlags", _runtime().cudaStreamNonBlocking))
        weakref.finalize(self, _release, "cudaStreamDestroy", self.handle)

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.handle

    def synchronize(self) -> None:
        """Waits until all work that is in the stream now is done."""
        _call("cudaStreamSynchronize", self.handle)

    def wait_for(self, event: Event) -> None:
        """Work that is put into the stream from now on begins after the event. The host does not wait."""
        _call("cudaStreamWaitEvent", self.handle, event.handle, 0)


class Event:
    """A mark in a stream's work."""

    def __init__(self) -> None:
        self.handle = int(_call("cudaEventCreate"))
        weakref.finalize(self, _release, "cudaEventDestroy", self.handle)

    def record(self, stream: object) -> None:
        """Marks the end of the work that is in the stream now."""
        _call("cudaEventRecord", self.handle, stream_handle(stream))

    def synchronize(self) -> None:
        """Waits until the stream has come to the mark."""
        _call("cudaEventSynchronize", self.handle)

    def milliseconds_since(self, earlier: Event) -> float:
        """GPU time between two marks that were both reached."""
        return float(_call("cudaEventElapsedTime", earlier.handle, self.handle))


class Graph:
    """Work that is recorded once, and launched as often as wanted by a single call.

    Example:
        with Graph(stream) as graph: ...  # put work into the stream: it is recorded, and does not run
        graph.launch()

    Every array that takes part must live, where it is, as long as the graph is launched. Work that would allocate or
    wait cannot be recorded: it raises CudaError.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._handle = 0

    def __enter__(self) -> Graph:
        # Thread-local: what other threads allocate meanwhile is theirs; what this one allocates is a mistake.
        mode = _runtime().cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        _call("cudaStreamBeginCapture", self._stream.handle, mode)
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        if kind is not None:
            with contextlib.suppress(CudaError):  # the capture has to end, but `error` says what went wrong
                _call("cudaGraphDestroy", _call("cudaStreamEndCapture", self._stream.handle))
            return
        recorded = _call("cudaStreamEndCapture", self._stream.handle)
        try:
            self._handle = int(_call("cudaGraphInstantiate", recorded, 0))
        finally:
            _call("cudaGraphDestroy", recorded)
        weakref.finalize(self, _release, "cudaGraphExecDestroy", self._handle)

    def launch(self) -> None:
        """Puts all of it into the stream that it was recorded from."""
        _call("cudaGraphLaunch", self._handle, self._stream.handle)


def recorded(stream: Stream, work: Callable[[], None]) -> Graph:
    """A graph of what `work` puts into the stream.

    It runs once before: when they first run, kernels are loaded and engines prepare themselves, which cannot be
    recorded.
    """
    work()
    stream.synchronize()
    with Graph(stream) as graph:
        work()
    return graph


# ---- the driver -----------------------------------------------------------------------------------------------------


@functools.cache
def _runtime() -> Any:
    try:
        return import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise BackendUnavailable(
            "cuda-bindings is not installed.", note=f"{error}.", hint="pip install 'edge4d[cuda]'"
        ) from error


def _call(name: str, *arguments: Any) -> Any:
    """A function of the CUDA runtime: its one result, a list of several, or None. Raises CudaError."""
    error, *results = getattr(_runtime(), name)(*arguments)
    if int(error):
        raise CudaError(f"{name} failed.", note=f"{_words(error)}.")
    return results[0] if len(results) == 1 else results or None


def _words(error: Any) -> str:
    runtime = _runtime()
    name, text = (runtime.cudaGetErrorName(error)[1], runtime.cudaGetErrorString(error)[1])
    return f"{name.decode()}: {text.decode()}"


def _copy(target: int, source: int, nbytes: int, kind: str, stream: object) -> None:
    handle = 0 if stream is None else stream_handle(stream)
    _call("cudaMemcpyAsync", target, source, nbytes, getattr(_runtime().cudaMemcpyKind, kind), handle)
    if stream is None:
        _call("cudaStreamSynchronize", 0)


def _release(name: str, handle: int) -> None:
    """Gives something back. Never raises: at the interpreter's end the driver may be gone already.

    Python may collect what nobody uses any more while this thread records a graph, which must not spoil that.
    """
    with contextlib.suppress(Exception):
        runtime = _runtime()
        relaxed = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeRelaxed
        _, mode = runtime.cudaThreadExchangeStreamCaptureMode(relaxed)
        getattr(runtime, name)(handle)
        runtime.cudaThreadExchangeStreamCaptureMode(mode)
