"""TensorRT 8.6, 10 and 11 on the GPU: engines out of the cache, built when they are not there.

What one version has and another has not is asked for by name. Engines that run one after the other share one piece of
scratch memory, as large as the largest needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Optional

import numpy as np
from numpy.typing import NDArray

from edge4d.kernels.ops import DOMAIN
from edge4d.runtime.backends import cuda
from edge4d.runtime.backends.cuda import DeviceArray, Mirrored, Stream
from edge4d.runtime.bundle import Bundle, Stage
from edge4d.runtime.bundle_engines import PLUGINS_HINT, cached_engine, check_plugins, parts, plugin_library, target
from edge4d.runtime.engine import StageEngine
from edge4d.runtime.engine_cache import EngineCache
from edge4d.runtime.errors import BackendUnavailable, EngineFailed, InvalidBundle, InvalidEngine, LibraryNotFound
from edge4d.runtime.layers import Measurement


class TensorRtBackend:
    """Makes engines that run on the current GPU.

    Args:
        cache: where engines are kept; the user's cache without it.

    Raises:
        BackendUnavailable: TensorRT or cuda-bindings is not installed, or there is no GPU.
    """

    name = "tensorrt"

    def __init__(self, cache: Optional[EngineCache] = None) -> None:
        self.tensorrt = TensorRt()
        self.cache = EngineCache() if cache is None else cache
        self.target = target("tensorrt", version=self.tensorrt.version)
        self._stream, self._scratch = Stream(), Scratch()

    def engine(self, bundle: Bundle, stage: str, precision: str) -> TensorRtEngine:
        """One stage of a bundle, ready to run; building its engine can take minutes.

        Raises:
            PrecisionNotInBundle: the stage has no such graph.
            InvalidBundle: there is no such stage, or the engine's tensors are not the ones that the bundle describes.
            EngineNotBuilt: TensorRT refused the graph.
        """
        loaded = self.load(bundle, stage, precision)
        return TensorRtEngine(bundle.stage(stage), loaded, self._stream, self._scratch)

    def load(self, bundle: Bundle, stage: str, precision: str) -> LoadedEngine:
        """As `engine`, but to run on arrays in GPU memory."""
        described = bundle.stage(stage)
        (part,) = parts(described, precision, "tensorrt")
        if part.has_operators:
            load_plugins()
        loaded: list[LoadedEngine] = []  # the last one that TensorRT took is the one that is used

        def load(data: bytes) -> None:
            loaded.append(self.tensorrt.load(data))

        cached_engine(bundle, described, part, precision, self.target, self.cache, check=load)
        _check_tensors(described, loaded[-1])
        return loaded[-1]

    def look_inside(
        self, bundle: Bundle, stage: str, precision: str, inputs: Mapping[str, NDArray[Any]], runs: int
    ) -> Measurement:
        """Copies, computing, and the layers that TensorRT made; see `LooksInside`."""
        from edge4d.runtime.backends.tensorrt_layers import look_inside

        return look_inside(self.load(bundle, stage, precision), inputs, runs)


class TensorRtEngine(StageEngine):
    """A stage on the GPU. Made by `TensorRtBackend.engine`."""

    def __init__(self, stage: Stage, loaded: LoadedEngine, stream: Stream, scratch: Scratch) -> None:
        super().__init__(stage)
        self._loaded: Optional[LoadedEngine] = loaded
        self._stream, self._scratch = stream, scratch
        self._arrays: dict[str, Mirrored] = {}

    def _run(self, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        loaded = self._loaded
        assert loaded is not None
        for name, array in inputs.items():
            mirrored = self._mirrored(loaded, name, array.shape)
            mirrored.host[name][...] = array
            mirrored.to_device(self._stream)
            loaded.set_shape(name, array.shape)
        outputs = [self._mirrored(loaded, name, loaded.shape(name)) for name in loaded.outputs]
        loaded.enqueue(self._stream, self._scratch)
        for mirrored in outputs:
            mirrored.to_host(self._stream)
        self._stream.synchronize()
        return {name: self._arrays[name].host[name].copy() for name in loaded.outputs}

    def _mirrored(self, loaded: LoadedEngine, name: str, shape: Sequence[int]) -> Mirrored:
        """Memory for a tensor, on both sides, where the engine reads or writes it; kept while the shape stays."""
        mirrored = self._arrays.get(name)
        if mirrored is None or mirrored.host[name].shape != tuple(shape):
            mirrored = None
            self._arrays.pop(name, None)  # its memory goes before the new one's comes
            self._arrays[name] = mirrored = Mirrored({name: (tuple(shape), loaded.dtypes[name])})
            loaded.bind(name, mirrored.device[name])
        return mirrored

    def close(self) -> None:
        super().close()
        self._loaded = None
        self._arrays.clear()


# ---- engines on arrays in GPU memory --------------------------------------------------------------------------------


class TensorRt:
    """TensorRT on the current GPU.

    Attributes:
        version: such as "8.6.0".

    Raises:
        BackendUnavailable: it, or cuda-bindings, is not installed, or there is no GPU.
    """

    def __init__(self) -> None:
        self._trt = _tensorrt()
        cuda.check_device()
        self.version: str = self._trt.__version__
        self._log = _log(self._trt)
        self._runtime = self._trt.Runtime(self._log)

    def load(self, engine: bytes) -> LoadedEngine:
        """A built engine.

        Raises:
            InvalidEngine: it is damaged, or another version's, or another GPU's.
        """
        self._log.errors.clear()
        taken = self._runtime.deserialize_cuda_engine(engine)
        if taken is None:
            raise InvalidEngine("TensorRT does not take the engine.", note=self._log.text())
        return LoadedEngine(self._trt, taken, self._log)


class Scratch:
    """Memory that engines use while they run, which those that run one after the other share.

    It grows with what they need; where a CUDA graph has recorded them, all of it must have been reserved before.
    """

    def __init__(self) -> None:
        self._memory = DeviceArray((1,), np.uint8)

    def reserve(self, nbytes: int) -> DeviceArray:
        """At least so much of it."""
        if self._memory.nbytes < nbytes:
            self._memory = DeviceArray((1,), np.uint8)  # the old one goes before the new one comes
            self._memory = DeviceArray((nbytes,), np.uint8)
        return self._memory


class LoadedEngine:
    """An engine whose inputs and outputs are arrays in GPU memory. Made by `TensorRt.load`.

    Attributes:
        inputs, outputs: names of tensors.
        dtypes: of all of them, by name.
        scratch_bytes: memory that it uses while it runs.
    """

    def __init__(self, trt: Any, engine: Any, log: Any) -> None:
        self.engine, self._log = engine, log
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        taken = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        self.inputs = tuple(taken)
        self.outputs = tuple(name for name in names if name not in taken)
        self.dtypes = {name: np.dtype(trt.nptype(engine.get_tensor_dtype(name))) for name in names}
        self.scratch_bytes = int(getattr(engine, "device_memory_size_v2", None) or engine.device_memory_size)
        self.context = _context(trt, engine)
        self._bound: dict[str, DeviceArray] = {}

    def set_shape(self, name: str, shape: Sequence[int]) -> None:
        """Says how large an input is.

        Raises:
            EngineFailed: the engine was not built for that.
        """
        self._log.errors.clear()
        if not self.context.set_input_shape(name, tuple(shape)):
            raise EngineFailed(f"The engine does not take '{name}' of shape {list(shape)}.", note=self._log.text())

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor, once the shapes of all inputs are set."""
        return tuple(self.context.get_tensor_shape(name))

    def bind(self, name: str, array: DeviceArray) -> None:
        """Where a tensor lies from now on."""
        self._bound[name] = array  # which keeps it alive
        self.context.set_tensor_address(name, array.pointer)

    def enqueue(self, stream: Stream, scratch: Scratch) -> None:
        """Puts a run into a stream; nothing is waited for.

        Raises:
            EngineFailed: TensorRT refused it.
        """
        memory = scratch.reserve(self.scratch_bytes)
        if hasattr(self.context, "set_device_memory"):
            self.context.set_device_memory(memory.pointer, memory.nbytes)
        else:  # 8.6
            self.context.device_memory = memory.pointer
        self._log.errors.clear()
        if not self.context.execute_async_v3(stream.handle):
            raise EngineFailed("TensorRT could not run an engine.", note=self._log.text())


def _context(trt: Any, engine: Any) -> Any:
    """One that brings no scratch memory of its own."""
    strategies = getattr(trt, "ExecutionContextAllocationStrategy", None)
    if strategies is None:  # 8.6
        return engine.create_execution_context_without_device_memory()
    return engine.create_execution_context(strategies.USER_MANAGED)


def _check_tensors(stage: Stage, engine: LoadedEngine) -> None:
    found = {name: dtype.name for name, dtype in engine.dtypes.items()}
    described = {tensor.name: tensor.dtype for tensor in (*stage.inputs, *stage.outputs)}
    if found != described:
        raise InvalidBundle(
            f"The engine of stage '{stage.name}' has other tensors than the bundle describes.",
            note=f"It has {found}, the bundle says {described}.",
            hint="Export the bundle again.",
        )


# ---- plugins --------------------------------------------------------------------------------------------------------


def load_plugins(library: Optional[Path] = None) -> None:
    """Makes this process's TensorRT know our operators, for building engines and for loading them. Once is enough.

    Args:
        library: of the plugins; without it the one that belongs to this package and this TensorRT.

    Raises:
        BackendUnavailable: TensorRT is not installed.
        LibraryNotFound: the library is missing, or this TensorRT does not take it.
    """
    trt = _tensorrt()
    path = plugin_library(trt.__version__) if library is None else library
    check_plugins(path)
    registry = trt.get_plugin_registry()
    if not _known(registry):
        registry.load_library(str(path))
    if not _known(registry):
        note = f"TensorRT {trt.__version__} found no operators of ours in '{path}'."
        raise LibraryNotFound("The TensorRT plugins cannot be loaded.", note=note, hint=PLUGINS_HINT)


def _known(registry: Any) -> bool:
    creators = registry.all_creators if hasattr(registry, "all_creators") else registry.plugin_creator_list
    return any(creator.plugin_namespace == DOMAIN for creator in creators)


# ---- TensorRT -------------------------------------------------------------------------------------------------------


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
