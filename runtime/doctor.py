"""What this machine has, and what works on it."""

from __future__ import annotations

import importlib.metadata
import platform
import tempfile
from collections.abc import Callable, Iterator
from typing import NamedTuple, Optional

import edge4d
from edge4d.runtime.errors import Edge4DError
from edge4d.runtime.machine import cores

NEEDED = ("numpy", "onnx", "onnxruntime", "pillow", "av", "safetensors", "typer", "rich")
EXTRAS = {  # the extra that brings each
    "torch": "export",
    "onnxscript": "export",
    "cuda-bindings": "cuda",
    "tensorrt": "tensorrt",
    "tensorrt-rtx": "tensorrt-rtx",
    "polygraphy": "tensorrt-rtx",
}


class Finding(NamedTuple):
    """One line of the report; `works` is None where something optional is absent."""

    topic: str
    works: Optional[bool]
    text: str


def examine() -> list[Finding]:
    """Looks at the machine. Never raises: what fails becomes a finding with the reason."""
    machine = f"{platform.system()} {platform.machine()}, {cores()} CPU cores"
    return [
        Finding("edge4d", True, f"{edge4d.__version__} on Python {platform.python_version()}, {machine}"),
        *(_package(name) for name in (*NEEDED, *EXTRAS)),
        _checked("native kernels", _kernels),
        _gpu(),
        _checked("H.264 video", _h264),
        *_backends(),
        _plugins(),
        *_bundles(),
        _checked("temporary files", _temporary_files),
    ]


def _checked(topic: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(topic, True, look())
    except (Edge4DError, OSError) as error:
        return Finding(topic, False, " ".join(str(error).splitlines()))


def _package(name: str) -> Finding:
    try:
        return Finding(name, True, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        if name in EXTRAS:
            return Finding(name, None, f"not installed: pip install edge4d[{EXTRAS[name]}]")
        return Finding(name, False, f"not installed: pip install {name}")


def _kernels() -> str:
    from edge4d.kernels import _library

    _library.load()
    return f"ABI {_library.ABI_VERSION}"


def _gpu() -> Finding:
    from edge4d.runtime.backends import cuda

    try:
        cuda.check_device()
        return Finding("GPU", True, cuda.device_name())
    except Edge4DError as error:
        return Finding("GPU", None, error.what)


def _h264() -> str:
    from edge4d.runtime import video

    return f"libx264 through PyAV {video.encoder().__version__}"


def _backends() -> Iterator[Finding]:
    from edge4d.runtime.backends import available_backends

    for name, reason in available_backends().items():
        yield Finding(f"backend {name}", None if reason else True, reason or "works")


def _plugins() -> Finding:
    from edge4d.runtime.bundle_engines import plugin_library

    try:
        library = plugin_library(importlib.metadata.version("tensorrt"))
    except importlib.metadata.PackageNotFoundError:
        return Finding("TensorRT plugins", None, "TensorRT is not installed")
    if library.is_file():
        return Finding("TensorRT plugins", True, str(library))
    return Finding(
        "TensorRT plugins", None, f"{library.name} was not built: configure with -DEDGE4D_TENSORRT_INCLUDE=DIR"
    )


def _bundles() -> Iterator[Finding]:
    from edge4d.runtime.bundle import Bundle, shipped_bundles

    def described(name: str) -> str:
        bundle = Bundle.load(name)
        return f"{bundle.system}, {', '.join(bundle.precisions)}, {bundle.folder}"

    for name in shipped_bundles():
        yield _checked(f"bundle {name}", lambda name=name: described(name))  # type: ignore[misc]
    if not shipped_bundles():
        yield Finding("bundles", None, "none came with this installation")


def _temporary_files() -> str:
    with tempfile.TemporaryFile() as file:
        file.write(b"edge4d")
    return f"written in {tempfile.gettempdir()}"
