"""TensorRT 8.6, 10 and 11 on the GPU: engines out of the cache, built when they are not there.

What one version has and another has not is asked for by name. A pipeline's stages run one after the other, so their
engines share one stream and one piece of scratch memory, as large as the largest needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any, Optional

import numpy as np
from numpy.typing import DTypeLike, NDArray

from edge4d.runtime.backends import cuda
from edge4d.runtime.backends.cuda import DeviceArray, Stream, pinned_array
from edge4d.runtime.bundle import Bundle, Stage
from edge4d.runtime.bundle_engines import cached_engine, parts, target
from edge4d.runtime.engine import StageEngine
from edge4d.runtime.engine_cache import EngineCache
from edge4d.runtime.errors import BackendUnavailable, EngineFailed, InvalidBundle, InvalidEngine


class TensorRtBackend:
    """Makes engines that run on the current GPU.

    Args:
        cache: where engines are kept; the user's cache without it.

    Raises:
        BackendUnavailable: TensorRT or cuda-bindings is not installed, or there is no GPU.
    """

    name = "tensorrt"

    def __init__(self, cache: Optional[EngineCache] = None) -> None:
        self._trt = _tensorrt()
        cuda.check_device()
        self._cache = EngineCache() if cache is None else cache
        self._target = target("tensorrt", version=self._trt.__version__)
        self._log = _log(self._trt)
        self._runtime = self._trt.Runtime(self._log)
        self._shared = _Shared(self._trt)

    def engine(self, bundle: Bundle, stage: str, precision: str) -> TensorRtEngine:
        """One stage of a bundle, ready to run; building its engine can take minutes.

        Raises:
            PrecisionNotInBundle: the stage has no such graph.
            InvalidBundle: there is no such stage, or the engine's tensors are not the ones that the bundle describes.
            EngineNotBuilt: TensorRT refused the graph.
        """
        described = bundle.stage(stage)
        (part,) = parts(described, precision, "tensorrt")
        loaded: list[Any] = []  # the last one that TensorRT took is the one that is used
        cached_engine(
            bundle,
            described,
            part,
            precision,
            self._target,
            self._cache,
            check=lambda data: loaded.append(self._load(data)),
        )
        return TensorRtEngine(described, loaded[-1], self._shared, self._log)

    def _load(self, data: bytes) -> Any:
        self._log.errors.clear()
        engine = self._runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise InvalidEngine("TensorRT does not take the engine.", note=self._log.text())
        return engine


class TensorRtEngine(StageEngine):
    """A stage on the GPU. Made by `TensorRtBackend.engine`."""

    def __init__(self, stage: Stage, engine: Any, shared: _Shared, log: Any) -> None:
        super().__init__(stage)
        _check_tensors(stage, engine, shared.trt)
        self._shared, self._log = shared, log
        self._engine: Any = engine
        self._context: Any = shared.context(engine)
        self._buffers: dict[str, _Buffer] = {}

    def _run(self, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        stream = self._shared.stream
        for name, array in inputs.items():
            buffer = self._buffer(name, array.shape, array.dtype)
            buffer.host[...] = array
            buffer.device.copy_from(buffer.host, stream)
            self._context.set_input_shape(name, array.shape)
        shapes = {tensor.name: tuple(self._context.get_tensor_shape(tensor.name)) for tensor in self.outputs}
        outputs = {tensor.name: self._buffer(tensor.name, shapes[tensor.name], tensor.dtype) for tensor in self.outputs}
        self._shared.lend_scratch(self._engine, self._context)
        self._log.errors.clear()
        if not self._context.execute_async_v3(stream.handle):
            raise EngineFailed(f"TensorRT stopped in stage '{self._stage.name}'.", note=self._log.text())
        for buffer in outputs.values():
            buffer.device.copy_to(buffer.host, stream)
        stream.synchronize()
        return {name: buffer.host.copy() for name, buffer in outputs.items()}

    def _buffer(self, name: str, shape: Sequence[int], dtype: DTypeLike) -> _Buffer:
        """Memory for a tensor, on both sides, where the engine reads or writes it; kept while the shape stays."""
        buffer = self._buffers.get(name)
        if buffer is None or buffer.host.shape != tuple(shape):
            self._buffers.pop(name, None)  # its memory goes before the new one's comes
            self._buffers[name] = buffer = _Buffer(shape, dtype)
            self._context.set_tensor_address(name, buffer.device.pointer)
        return buffer

    def close(self) -> None:
        super().close()
        self._context = self._engine = None
        self._buffers.clear()


class _Buffer:
    def __init__(self, shape: Sequence[int], dtype: DTypeLike) -> None:
        self.host: NDArray[Any] = pinned_array(shape, dtype)
        self.device = DeviceArray(shape, dtype)


class _Shared:
    """What the engines of a backend have in common: a stream, and scratch memory that is lent to who runs."""

    def __init__(self, trt: Any) -> None:
        self.trt, self.stream = trt, Stream()
        self._scratch: Optional[DeviceArray] = None

    def context(self, engine: Any) -> Any:
        """One that brings no scratch memory of its own."""
        strategies = getattr(self.trt, "ExecutionContextAllocationStrategy", None)
        if strategies is None:  # 8.6
            return engine.create_execution_context_without_device_memory()
        return engine.create_execution_context(strategies.USER_MANAGED)

    def lend_scratch(self, engine: Any, context: Any) -> None:
        nbytes = int(getattr(engine, "device_memory_size_v2", None) or engine.device_memory_size)
        if self._scratch is None or self._scratch.nbytes < nbytes:
            self._scratch = None
            self._scratch = DeviceArray((max(nbytes, 1),), np.uint8)
        if hasattr(context, "set_device_memory"):
            context.set_device_memory(self._scratch.pointer, self._scratch.nbytes)
        else:  # 8.6
            context.device_memory = self._scratch.pointer


def _check_tensors(stage: Stage, engine: Any, trt: Any) -> None:
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    found = {name: np.dtype(trt.nptype(engine.get_tensor_dtype(name))).name for name in names}
    described = {tensor.name: tensor.dtype for tensor in (*stage.inputs, *stage.outputs)}
    if found != described:
        raise InvalidBundle(
            f"The engine of stage '{stage.name}' has other tensors than the bundle describes.",
            note=f"It has {found}, the bundle says {described}.",
            hint="Export the bundle again.",
        )


def _tensorrt() -> Any:
    try:
        return import_module("tensorrt")
    except ImportError as error:
        raise BackendUnavailable(
            "TensorRT is not installed.", note=f"{error}.", hint="pip install 'edge4d[tensorrt]'"
        ) from error


def _log(trt: Any) -> Any:
    class Log(trt.ILogger):  # type: ignore[misc]
        """Keeps errors, for the exceptions that follow them."""

        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, text: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self.errors.append(" ".join(text.split()))

        def text(self) -> str:
            return " ".join(self.errors)[:600]

    return Log()
