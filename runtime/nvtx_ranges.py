"""Ranges with names that Nsight Systems shows, where the package nvtx is installed: pip install 'edge4d[nvtx]'."""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from typing import Any, Optional

_NOTHING = nullcontext()


def nvtx_range(name: str) -> AbstractContextManager[Any]:
    """What the host does in this context gets the name; TensorRT's ranges of layers lie inside it."""
    annotate = _annotate()
    return _NOTHING if annotate is None else annotate(name, domain="edge4d")


@functools.cache
def _annotate() -> Optional[Any]:
    try:
        return import_module("nvtx").annotate
    except ImportError:
        return None
