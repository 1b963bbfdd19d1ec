"""From a bundle's name to something that generates scenes."""

from __future__ import annotations

import os
from typing import Any, Optional, Union

from edge4d.runtime.backends import backend as backend_by_name
from edge4d.runtime.bundle import Bundle
from edge4d.runtime.systems import system


def load(
    bundle: Union[str, os.PathLike[str]] = "street", *, backend: str = "auto", precision: Optional[str] = None
) -> Any:
    """A pipeline that generates scenes with a bundle.

    Args:
        bundle: the folder of a bundle, or the name of one that comes with edge4d.
        backend: "auto" takes the fastest that works on this machine; see `edge4d doctor`.
        precision: "fp32", "fp16" or "int8"; the first that the bundle lists without it.

    Returns:
        A `PixelTo4D` or a `GvfDiffusion` of `edge4d.runtime.systems`, by the bundle's system.

    Raises:
        InvalidBundle: there is no such bundle, or its files are damaged.
        PrecisionNotInBundle: the bundle has no such variant.
        BackendUnavailable: the backend does not work on this machine.
    """
    found = Bundle.load(os.fspath(bundle))
    return system(found.system)(found, backend_by_name(backend), precision or found.precisions[0])
