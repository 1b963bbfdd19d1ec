"""Backends by name. A backend makes engines from the stages of a bundle; it is imported when it is asked for."""

from __future__ import annotations

from typing import Optional, Protocol

from edge4d.runtime.bundle import Bundle
from edge4d.runtime.engine import Engine
from edge4d.runtime.errors import BackendUnavailable, InvalidRequest

BACKENDS = ("onnxruntime", "cuda", "tensorrt", "tensorrt_rtx")


class Backend(Protocol):
    @property
    def name(self) -> str: ...

    def engine(self, bundle: Bundle, stage: str, precision: str) -> Engine:
        """Raises PrecisionNotInBundle, InvalidBundle, or BackendUnavailable."""


def backend(name: str = "auto", *, threads: Optional[int] = None) -> Backend:
    """The backend of that name; "auto" is the fastest that works here.

    With "cuda" the GPU draws (`draws_on_gpu`), and networks run on ONNX Runtime; with "tensorrt" they run there too.

    Args:
        name: "auto" or one of `BACKENDS`.
        threads: CPU threads; None uses every core.

    Raises:
        BackendUnavailable: it is not on this machine, or not in this version; the message says which.
        InvalidRequest: there is no backend of that name.
    """
    _check_name(name)
    if name == "cuda":
        draws_on_gpu(name)
    if name == "tensorrt":
        from edge4d.runtime.backends.tensorrt import TensorRtBackend

        return TensorRtBackend()
    from edge4d.runtime.backends.onnxruntime import OnnxRuntimeBackend

    return OnnxRuntimeBackend(threads)


def draws_on_gpu(name: str) -> bool:
    """Whether the backend of that name draws by the CUDA kernels, and not by those of the CPU.

    Raises:
        BackendUnavailable, InvalidRequest: as `backend`.
    """
    _check_name(name)
    if name == "onnxruntime":
        return False
    from edge4d.runtime.backends import cuda

    try:
        cuda.check()
    except BackendUnavailable:
        if name != "auto":
            raise
        return False
    return True


def _check_name(name: str) -> None:
    if name not in ("auto", *BACKENDS):
        raise InvalidRequest(
            f"There is no backend '{name}'.", hint=f"Use auto, {', '.join(BACKENDS[:-1])} or {BACKENDS[-1]}."
        )
    if name == "tensorrt_rtx":
        raise BackendUnavailable(
            "This version of edge4d builds engines of TensorRT-RTX and does not run them.",
            hint="Use --backend onnxruntime, which runs everywhere.",
        )


def available_backends() -> dict[str, str]:
    """Every backend, with the reason why it does not work here, or "" where it does."""
    return {name: _reason_against(name) for name in BACKENDS}


def _reason_against(name: str) -> str:
    try:
        backend(name)
    except BackendUnavailable as error:
        return error.what
    return ""
