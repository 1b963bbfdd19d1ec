"""Reads NumPy's `.npy` and one-array `.npz` files without trusting them.

`numpy.load` allocates what a header claims and can unpickle. Here the header is matched against the one form that NumPy
writes, and the size that it claims is compared with the bytes that are there. Format: NEP 1, "A Simple File Format for
NumPy Arrays".
"""

from __future__ import annotations

import os
import re
import zipfile
import zlib
from pathlib import Path
from typing import Any, Union

import numpy as np
from numpy.typing import NDArray

from edge4d.runtime.errors import Edge4DError

MAX_HEADER = 4096  # NumPy writes 118 bytes for an ordinary array
MAX_BYTES = 1 << 31

_HEADER = re.compile(
    r"\{'descr': '(?P<dtype>[<>|=][a-zA-Z]\d{1,2})', 'fortran_order': (?P<fortran>True|False), "
    r"'shape': \((?P<shape>[0-9, ]{0,200})\),? ?\}\s*"
)
_KINDS = "biuf"


def read_npy(path: Union[str, os.PathLike[str]], error: type[Edge4DError]) -> NDArray[Any]:
    """The array in a `.npy` file, of booleans, integers or floats; raises `error` for anything else or damaged."""
    path = Path(path)
    try:
        size = path.stat().st_size
        _check_size(str(path), size, error)
        content = path.read_bytes()
    except OSError as cause:
        raise error(f"Cannot read {path}.", note=str(cause), hint="Check the path and its permissions.") from cause
    return array_from_npy(content, str(path), error)


def read_npz(path: Union[str, os.PathLike[str]], error: type[Edge4DError]) -> NDArray[Any]:
    """The only array in an `.npz` file; what its directory claims is checked before anything is unpacked."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if len(members) != 1:
                raise error(f"{path} does not hold one array.", note=f"It has {len(members)} members, expected 1.")
            _check_size(str(path), members[0].file_size, error)
            content = archive.read(members[0])
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as cause:
        raise error(f"Cannot read {path}.", note=str(cause), hint="Write it with numpy.savez_compressed.") from cause
    return array_from_npy(content, str(path), error)


def array_from_npy(content: bytes, name: str, error: type[Edge4DError]) -> NDArray[Any]:
    """The array that the bytes of a `.npy` file hold. `name` is what messages call it; raises `error`."""
    hint = "Write it with numpy.save, as an array of numbers."
    if content[:6] != b"\x93NUMPY" or len(content) < 12:
        raise error(f"{name} is not a .npy file.", note="It does not begin with NumPy's magic bytes.", hint=hint)
    length_bytes = 2 if content[6] == 1 else 4
    start = 8 + length_bytes
    length = int.from_bytes(content[8:start], "little")
    if length > MAX_HEADER:
        raise error(f"The header of {name} is too long.", note=f"{length} bytes, at most {MAX_HEADER}.", hint=hint)
    header = content[start : start + length].decode("latin1")
    match = _HEADER.fullmatch(header)
    if match is None:
        raise error(
            f"The header of {name} is not one of an array of numbers.", note=f"It is {header[:80]!r}.", hint=hint
        )
    dtype = _dtype(match["dtype"], name, error)
    shape = tuple(int(size) for size in match["shape"].replace(" ", "").split(",") if size)
    return _array(content[start + length :], dtype, shape, match["fortran"] == "True", name, error)


def _dtype(text: str, name: str, error: type[Edge4DError]) -> np.dtype[Any]:
    try:
        dtype = np.dtype(text)
    except TypeError:
        dtype = None
    if dtype is None or dtype.kind not in _KINDS:
        raise error(
            f"{name} has the type {text!r}.",
            note="Booleans, integers and floats can be read.",
            hint="Convert it with astype.",
        )
    return dtype


def _array(
    data: bytes, dtype: np.dtype[Any], shape: tuple[int, ...], fortran: bool, name: str, error: type[Edge4DError]
) -> NDArray[Any]:
    claimed = dtype.itemsize
    for size in shape:
        claimed *= size  # Python integers: a product of hostile dimensions does not wrap
    if claimed != len(data):
        raise error(
            f"{name} does not hold what its header claims.",
            note=f"Shape {shape} of {dtype} takes {claimed} bytes, the file has {len(data)}.",
            hint="Copy or write the file again; it may be truncated.",
        )
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def _check_size(name: str, size: int, error: type[Edge4DError]) -> None:
    if size > MAX_BYTES:
        raise error(
            f"{name} is too large.",
            note=f"{size} bytes, at most {MAX_BYTES}.",
            hint="Store a smaller array, or float16.",
        )
