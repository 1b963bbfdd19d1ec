"""DLPack capsules, written and read through ctypes: how arrays change libraries without a copy.

The structs are those of dlpack.h (DLManagedTensor, the one without a version, which every consumer takes).
"""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple, Optional

import numpy as np

from edge4d.runtime.errors import InvalidTensor

CUDA, CUDA_MANAGED = 2, 13  # DLDeviceType
_KINDS = {"i": 0, "u": 1, "f": 2, "b": 6}  # DLDataTypeCode of NumPy's kinds
_NAME = b"dltensor"


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    _fields_ = (("tensor", _Tensor), ("manager_ctx", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


class Tensor(NamedTuple):
    """What a capsule holds; strides are in bytes, None says dense and row-major."""

    address: int
    shape: tuple[int, ...]
    strides: Optional[tuple[int, ...]]
    dtype: np.dtype[Any]
    device: tuple[int, int]  # DLDeviceType, number


_exported: dict[int, tuple[object, ...]] = {}  # by address of the struct: what must live until its consumer is done


def _forget(address: int) -> None:
    _exported.pop(address, None)


_deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(_forget)

# Function objects of our own: those in ctypes.pythonapi are shared by everyone, who may declare them otherwise.
_new_capsule = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", ctypes.pythonapi)
)
_capsule_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


def capsule_from(address: int, shape: tuple[int, ...], dtype: np.dtype[Any], device: int, owner: object) -> Any:
    """A capsule for a dense array on CUDA device number `device`. `owner` lives until its consumer lets it go.

    A capsule that nobody consumes keeps `owner` alive for good.
    """
    strides = np.cumprod([1, *reversed(shape[1:])])[::-1] if shape else ()
    sizes, steps = ((ctypes.c_int64 * len(shape))(*(int(n) for n in numbers)) for numbers in (shape, strides))
    pointer = ctypes.POINTER(ctypes.c_int64)
    tensor = _Tensor(
        data=address,
        device_type=CUDA,
        device_id=device,
        ndim=len(shape),
        code=_KINDS[dtype.kind],
        bits=8 * dtype.itemsize,
        lanes=1,
        shape=ctypes.cast(sizes, pointer),
        strides=ctypes.cast(steps, pointer),
    )
    managed = _Managed(tensor=tensor, deleter=ctypes.cast(_deleter, ctypes.c_void_p))
    where = ctypes.addressof(managed)
    _exported[where] = (managed, sizes, steps, owner)
    return _new_capsule(where, _NAME, None)


def tensor_from(capsule: object) -> Tensor:
    """What a capsule holds. It stays unconsumed: its memory is the producer's as long as the capsule lives.

    Raises:
        InvalidTensor: it is no capsule of DLPack, or holds numbers that NumPy has no name for.
    """
    try:
        address = _capsule_pointer(capsule, _NAME)
    except (ValueError, TypeError, ctypes.ArgumentError) as error:
        raise InvalidTensor("This is not a DLPack capsule that can be read.", note=f"{error}.") from error
    tensor = _Managed.from_address(address).tensor
    names = {code: kind for kind, code in _KINDS.items()}
    kind = names.get(tensor.code)
    if kind is None or tensor.lanes != 1 or tensor.bits % 8:
        raise InvalidTensor(
            "An array of another library holds numbers that edge4d does not know.",
            note=f"DLPack code {tensor.code}, {tensor.bits} bits, {tensor.lanes} lanes.",
            hint="Convert it to float32 first.",
        )
    itemsize = tensor.bits // 8
    strides = tuple(itemsize * tensor.strides[i] for i in range(tensor.ndim)) if tensor.strides else None
    return Tensor(
        (tensor.data or 0) + tensor.byte_offset,
        tuple(tensor.shape[i] for i in range(tensor.ndim)),
        strides,
        np.dtype(f"{kind}{itemsize}"),
        (tensor.device_type, tensor.device_id),
    )
