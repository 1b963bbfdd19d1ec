"""The device layer: arrays that change libraries, and what is said where there is no GPU."""

from __future__ import annotations

import gc
import sys
import weakref
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edge4d.kernels import _library
from edge4d.runtime.backends import available_backends, cuda, dlpack
from edge4d.runtime.backends.cuda import DeviceArray, Event, Graph, Stream, pinned_array
from edge4d.runtime.errors import BackendUnavailable, CudaError, InvalidRequest, InvalidTensor

gpu = pytest.mark.gpu

# ---- without a GPU --------------------------------------------------------------------------------------------------


@pytest.fixture
def no_bindings(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    cuda._runtime.cache_clear()
    yield
    cuda._runtime.cache_clear()


def test_missing_bindings_are_named_with_what_installs_them(no_bindings) -> None:
    for call in (cuda.check_device, cuda.synchronize, lambda: DeviceArray((3,)), Stream, lambda: pinned_array((3,))):
        with pytest.raises(BackendUnavailable, match=r"edge4d\[cuda\]"):
            call()


def test_missing_kernels_are_named_with_what_builds_them(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("EDGE4D_LIBRARY", str(tmp_path))
    _library.load_cuda.cache_clear()
    with pytest.raises(BackendUnavailable, match=r"(?s)CUDA kernels are not there.*nvcc"):
        cuda.check()
    assert available_backends()["cuda"] == "The CUDA kernels are not there."


def test_arrays_that_are_not_in_gpu_memory() -> None:
    torch = pytest.importorskip("torch")
    for foreign in (np.zeros(3), torch.zeros(3), [1.0, 2.0]):
        with pytest.raises(InvalidTensor, match="not in GPU memory"):
            DeviceArray.view_of(foreign)


def claimed(shape: tuple[int, ...], dtype: str = "float32", strides: Any = None) -> SimpleNamespace:
    interface = {
        "shape": shape,
        "typestr": np.dtype(dtype).str,
        "data": (4096, False),
        "strides": strides,
        "version": 3,
    }
    return SimpleNamespace(__cuda_array_interface__=interface)


def test_views() -> None:
    whole = DeviceArray.view_of(claimed((4, 6)))
    part = whole.view((2, 3), np.float16, offset=16)
    assert (part.pointer, part.shape, part.dtype, part.nbytes) == (4112, (2, 3), np.float16, 12)
    assert whole.view((24,)).nbytes == whole.nbytes
    assert part.__cuda_array_interface__ == claimed((2, 3), "float16").__cuda_array_interface__ | {
        "data": (4112, False),
        "stream": None,
    }
    for shape, offset in (((25,), 0), ((24,), 4), ((1,), -4)):
        with pytest.raises(InvalidTensor, match="inside its array"):
            whole.view(shape, offset=offset)


def test_views_keep_what_they_view() -> None:
    class Foreign(SimpleNamespace):
        """Like a namespace, but it can be watched."""

    foreign = Foreign(**vars(claimed((4, 6))))
    alive = weakref.ref(foreign)
    part = DeviceArray.view_of(foreign).view((3,))
    del foreign
    gc.collect()
    assert alive() is not None
    del part
    gc.collect()
    assert alive() is None


def test_only_dense_arrays_are_viewed() -> None:
    with pytest.raises(InvalidTensor, match="not dense"):
        DeviceArray.view_of(claimed((4, 6), strides=(48, 4)))


class Owner:
    def __init__(self, array: np.ndarray) -> None:
        self.array = array


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "int32", "int64", "uint8", "bool"])
@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4), (2, 0, 3)])
def test_dlpack_capsules_are_what_others_read_and_write(monkeypatch, shape, dtype) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(dlpack, "CUDA", 1)  # host memory: every other byte of a capsule is the same
    owner = Owner(np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype))
    alive = weakref.ref(owner)
    address = owner.array.ctypes.data
    tensor = torch.from_dlpack(dlpack.capsule_from(address, shape, owner.array.dtype, 0, owner))
    np.testing.assert_array_equal(tensor.numpy(), owner.array)
    capsule = tensor.__dlpack__()
    back = dlpack.tensor_from(capsule)
    assert back[:2] == (tensor.data_ptr(), shape)
    assert (back.dtype, back.device) == (owner.array.dtype, (1, 0))
    del owner, capsule
    gc.collect()
    assert alive() is not None
    del tensor
    gc.collect()
    assert alive() is None
    assert not dlpack._exported


def test_dlpack_of_numbers_that_numpy_has_no_name_for() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(InvalidTensor, match="code 4, 16 bits"):
        dlpack.tensor_from(torch.zeros(3, dtype=torch.bfloat16).__dlpack__())
    with pytest.raises(InvalidTensor, match="not a DLPack capsule"):
        dlpack.tensor_from(torch.zeros(3))


def test_streams_of_others_are_not_owned() -> None:
    foreign = SimpleNamespace(handle=42)
    stream = Stream(foreign)
    assert stream.handle == 42
    assert stream.__cuda_stream__() == (0, 42)
    with pytest.raises(InvalidRequest, match="not a CUDA stream"):
        Stream("fast")


# ---- arrays on a GPU ------------------------------------------------------------------------------------------------


@gpu
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64, np.int32, np.uint8, np.bool_])
@pytest.mark.parametrize("shape", [(), (1,), (5, 7), (2, 0), (64, 3, 1000)])
def test_round_trips(shape, dtype) -> None:
    array = (np.random.default_rng(0).random(shape) * 100).astype(dtype)
    copy = DeviceArray.from_numpy(array)
    assert (copy.shape, copy.dtype, copy.nbytes) == (array.shape, array.dtype, array.nbytes)
    back = copy.to_numpy()
    np.testing.assert_array_equal(back, array)
    assert back.shape == array.shape


@gpu
def test_arrays_that_are_not_dense_are_made_so() -> None:
    array = np.arange(24, dtype=np.float32).reshape(4, 6)
    np.testing.assert_array_equal(DeviceArray.from_numpy(array[:, ::2]).to_numpy(), array[:, ::2])
    np.testing.assert_array_equal(DeviceArray.from_numpy(array.T).to_numpy(), array.T)
    target = DeviceArray((4, 3))
    for strided in (array[:, ::2], array):
        with pytest.raises(InvalidTensor, match="dense ones like them"):
            target.copy_from(strided)


@gpu
def test_copies_in_a_stream() -> None:
    stream = Stream()
    source, result = pinned_array((1000, 1000)), pinned_array((1000, 1000))
    source[:] = np.random.default_rng(0).random(source.shape)
    result[:] = 0
    first, second = DeviceArray(source.shape), DeviceArray(source.shape)
    first.copy_from(source, stream)
    second.copy_from(first, stream)
    second.copy_to(result, stream)
    stream.synchronize()
    np.testing.assert_array_equal(result, source)
    second.fill_bytes(0x3F, stream)
    stream.synchronize()
    assert (second.to_numpy() == np.frombuffer(b"\x3f" * 4, np.float32)).all()


@gpu
def test_pinned_arrays_are_arrays() -> None:
    for shape in ((), (0,), (3, 4)):
        array = pinned_array(shape, np.int32)
        assert (array.shape, array.dtype) == (shape, np.int32)
        array[...] = 7
        assert (array == 7).all()
    view = pinned_array((3, 4))[1:]
    view[:] = 2.0  # the memory is there as long as a view is
    assert view.sum() == 16.0


@gpu
def test_memory_goes_back_with_the_last_view() -> None:
    cuda.synchronize()
    before, size = cuda.memory_in_use(), 1 << 28
    array = DeviceArray((size,), np.uint8)
    assert cuda.memory_in_use() >= before + size
    part = array.view((10,))
    del array
    assert cuda.memory_in_use() >= before + size
    del part
    assert cuda.memory_in_use() < before + size


@gpu
def test_too_much_memory_is_an_error_with_the_drivers_words() -> None:
    with pytest.raises(CudaError, match=r"(?s)cudaMalloc failed.*cudaErrorMemoryAllocation: out of memory"):
        DeviceArray((1 << 50,), np.uint8)
    assert DeviceArray.from_numpy(np.ones(3)).to_numpy().sum() == 3  # and it is over


# ---- other libraries ------------------------------------------------------------------------------------------------


class OnlyDlpack:
    """An array that does not speak __cuda_array_interface__."""

    def __init__(self, array: Any) -> None:
        self._array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self._array.__dlpack_device__()


def array_of(library: str, values: np.ndarray) -> Any:
    if library == "torch":
        torch = pytest.importorskip("torch")
        return torch.as_tensor(values, device="cuda")
    if library == "cupy":
        return pytest.importorskip("cupy").asarray(values)
    pytest.importorskip("pycuda.autoprimaryctx")
    return pytest.importorskip("pycuda.gpuarray").to_gpu(values)


@gpu
@pytest.mark.parametrize("library", ["torch", "cupy", "pycuda"])
def test_views_of_other_libraries_share_their_memory(library) -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    foreign = array_of(library, values)
    cuda.synchronize()
    view = DeviceArray.view_of(foreign)
    np.testing.assert_array_equal(view.to_numpy(), values)
    view.copy_from(values + 1)
    found = foreign.cpu().numpy() if library == "torch" else foreign.get()
    np.testing.assert_array_equal(found, values + 1)


@gpu
@pytest.mark.parametrize("library", ["torch", "cupy"])
def test_dlpack_in(library) -> None:
    values = np.arange(12, dtype=np.float16).reshape(3, 4)
    view = DeviceArray.view_of(OnlyDlpack(array_of(library, values)))  # nobody else holds the array
    gc.collect()
    cuda.synchronize()
    assert view.dtype == np.float16
    np.testing.assert_array_equal(view.to_numpy(), values)
    with pytest.raises(InvalidTensor, match="not dense"):
        DeviceArray.view_of(OnlyDlpack(array_of(library, values)[:, ::2]))


@gpu
@pytest.mark.parametrize("way", ["dlpack", "interface"])
@pytest.mark.parametrize("library", ["torch", "cupy"])
def test_out_to_other_libraries(library, way) -> None:
    module = pytest.importorskip(library)
    values = np.arange(12, dtype=np.int32).reshape(3, 4)
    ours = DeviceArray.from_numpy(values)
    pointer, alive = ours.pointer, weakref.ref(ours._owner)
    if way == "dlpack":
        theirs = module.from_dlpack(ours)
    else:
        theirs = torch_of(module, ours) if library == "torch" else module.asarray(ours)
    address = theirs.data_ptr() if library == "torch" else theirs.data.ptr
    assert address == pointer
    del ours
    gc.collect()
    assert alive() is not None
    found = theirs.cpu().numpy() if library == "torch" else theirs.get()
    np.testing.assert_array_equal(found, values)
    del theirs
    gc.collect()
    assert alive() is None


def torch_of(torch: Any, array: DeviceArray) -> Any:
    return torch.as_tensor(array, device="cuda")


@gpu
def test_dlpack_makes_no_copies() -> None:
    array = DeviceArray.from_numpy(np.ones(3))
    assert array.__dlpack_device__() == (dlpack.CUDA, cuda.current_device())
    for options in ({"copy": True}, {"dl_device": (1, 0)}):
        with pytest.raises(BufferError, match="not as a copy"):
            array.__dlpack__(**options)
    with pytest.raises((BufferError, TypeError, RuntimeError)):
        np.from_dlpack(array)


# ---- streams, events, graphs ----------------------------------------------------------------------------------------


def stream_of(library: str) -> Any:
    if library == "torch":
        return pytest.importorskip("torch").cuda.Stream()
    if library == "cupy":
        return pytest.importorskip("cupy").cuda.Stream(non_blocking=True)
    if library == "pycuda":
        pytest.importorskip("pycuda.autoprimaryctx")
        return pytest.importorskip("pycuda.driver").Stream()
    runtime = pytest.importorskip("cuda.bindings.runtime")
    return runtime.cudaStreamCreate()[1]


@gpu
@pytest.mark.parametrize("library", ["torch", "cupy", "pycuda", "cuda-bindings"])
def test_work_goes_into_streams_of_other_libraries(library) -> None:
    foreign = stream_of(library)
    stream = Stream(foreign)
    array, result = DeviceArray((1000,)), pinned_array((1000,))
    array.fill_bytes(0, foreign)
    array.copy_to(result, foreign)
    mark = Event()
    mark.record(foreign)
    mark.synchronize()
    assert not result.any()
    array.fill_bytes(0xFF)
    cuda.synchronize()
    with Graph(stream) as graph:
        array.fill_bytes(0, stream)
    graph.launch()
    stream.synchronize()
    assert not array.to_numpy().any()


def cupy_stream(cupy: Any, stream: Stream) -> Any:
    """CuPy 14 takes our protocol; before there were numbers alone."""
    take = getattr(cupy.cuda.Stream, "from_external", None)
    return take(stream) if take else cupy.cuda.ExternalStream(stream.handle)


@gpu
@pytest.mark.parametrize("library", ["torch", "cupy"])
def test_other_libraries_take_our_streams(library) -> None:
    module, stream = pytest.importorskip(library), Stream()
    array = DeviceArray.from_numpy(np.zeros(1000, np.float32))
    if library == "torch":
        with module.cuda.stream(module.cuda.ExternalStream(stream.handle)):
            module.as_tensor(array, device="cuda").add_(1)
    else:
        with cupy_stream(module, stream):
            module.asarray(array)[:] += 1
    stream.synchronize()
    assert (array.to_numpy() == 1).all()


@gpu
def test_events_order_streams_and_measure() -> None:
    first, second = Stream(), Stream()
    large, small, result = DeviceArray((1 << 28,), np.uint8), DeviceArray((1,), np.uint8), pinned_array((1,), np.uint8)
    begin, end = Event(), Event()
    begin.record(first)
    for _ in range(20):
        large.fill_bytes(1, first)
    small.copy_from(large.view((1,), offset=large.nbytes - 1), first)
    end.record(first)
    second.wait_for(end)
    small.copy_to(result, second)
    second.synchronize()
    assert result[0] == 1
    # 5.4 GB written: more than a millisecond on any memory of this decade.
    assert end.milliseconds_since(begin) > 0.1


@gpu
def test_a_graph_replays_what_was_recorded() -> None:
    stream = Stream()
    source, target = DeviceArray((100,)), DeviceArray.from_numpy(np.zeros(100, np.float32))
    with Graph(stream) as graph:
        target.copy_from(source, stream)
    assert not target.to_numpy().any()  # recorded, not run
    for value in (1.0, 2.0):
        source.copy_from(np.full(100, value, np.float32))
        graph.launch()
        stream.synchronize()
        assert (target.to_numpy() == value).all()


@gpu
def test_allocating_cannot_be_recorded() -> None:
    stream = Stream()
    with pytest.raises(CudaError, match="cudaMalloc failed"), Graph(stream):
        DeviceArray((1000,))
    with pytest.raises(ZeroDivisionError), Graph(stream):
        _ = 1 // 0
    array = DeviceArray((10,))  # the stream and the thread are as before
    with Graph(stream) as graph:
        array.fill_bytes(0, stream)
    graph.launch()
    stream.synchronize()
    assert not array.to_numpy().any()


@gpu
def test_what_is_collected_while_a_graph_is_recorded_does_not_spoil_it() -> None:
    stream, array = Stream(), DeviceArray.from_numpy(np.ones(10, np.float32))
    unused: list[Any] = [DeviceArray((1000,)), pinned_array((1000,)), Stream(), Event()]
    with Graph(stream) as graph:
        unused.clear()
        array.fill_bytes(0, stream)
    graph.launch()
    stream.synchronize()
    assert not array.to_numpy().any()


@gpu
def test_waiting_cannot_be_recorded() -> None:
    stream = Stream()
    with pytest.raises(CudaError), Graph(stream):
        stream.synchronize()


@gpu
def test_the_device_is_named() -> None:
    assert "compute capability" in cuda.device_name()
    cuda.use_device(cuda.current_device())
    with pytest.raises(CudaError, match="cudaSetDevice failed"):
        cuda.use_device(1000)
