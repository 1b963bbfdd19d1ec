"""Finds and loads the native kernels, checks their version, and declares every struct and function of edge4d.h."""

from __future__ import annotations

import ctypes
import functools
import importlib.resources
import os
import sys
from ctypes import POINTER, Structure, c_char_p, c_float, c_int32, c_uint64, c_void_p
from pathlib import Path

from edge4d.runtime.errors import LibraryNotFound

ABI_VERSION = 1
FILE_NAME = "libedge4d_kernels.dylib" if sys.platform == "darwin" else "libedge4d_kernels.so"

OK, INVALID, OUT_OF_MEMORY, TOO_MANY_PAIRS = range(4)  # edge4d_status
DTYPES = {"float32": 0, "float16": 1, "uint8": 2}  # edge4d_dtype


class GaussianRasterizeCall(Structure):
    """edge4d_gaussian_rasterize."""

    _fields_ = (
        ("size", c_uint64),
        *((name, c_int32) for name in ("batch", "cameras", "gaussians", "channels", "coefficients")),
        *((name, c_int32) for name in ("dtype", "width", "height")),
        *((name, c_float) for name in ("near", "far", "eps2d")),
        ("antialiased", c_int32),
        *((name, c_float) for name in ("compensation_floor", "alpha_max")),
        *((name, c_int32) for name in ("sh_degree", "max_pairs", "outputs", "out_dtype", "fast")),
        *((name, c_void_p) for name in ("means", "quats", "scales", "opacities", "colors")),
        *((name, c_void_p) for name in ("viewmats", "Ks", "background")),
        *((name, c_void_p) for name in ("image", "alpha", "depth", "stats")),
    )


class KnnInterpolateCall(Structure):
    """edge4d_knn_interpolate."""

    _fields_ = (
        ("size", c_uint64),
        *((name, c_int32) for name in ("query_count", "point_count", "frames", "channels", "k")),
        ("beta", c_float),
        ("radius_mask", c_int32),
        *((name, c_void_p) for name in ("queries", "points", "values", "interpolated", "indices", "weights")),
    )


class FarthestPointSampleCall(Structure):
    """edge4d_farthest_point_sample."""

    _fields_ = (
        ("size", c_uint64),
        ("point_count", c_int32),
        ("count", c_int32),
        ("points", c_void_p),
        ("indices", c_void_p),
    )


def library_path() -> Path:
    """The file that `load` loads: in the folder $EDGE4D_LIBRARY if that is set, else beside the installed package."""
    folder = os.environ.get("EDGE4D_LIBRARY")
    if folder:
        return Path(folder) / FILE_NAME
    # Not Path(__file__): an editable install keeps the library elsewhere, and only importlib.resources knows where.
    return Path(str(importlib.resources.files("edge4d.kernels").joinpath(FILE_NAME)))


@functools.cache
def load() -> ctypes.CDLL:
    """The native library, ready to be called.

    Raises:
        LibraryNotFound: it is missing, cannot be loaded, or is of another version.
    """
    library = _open(library_path())
    for name, call in (
        ("gaussian_rasterize", GaussianRasterizeCall),
        ("knn_interpolate", KnnInterpolateCall),
        ("farthest_point_sample", FarthestPointSampleCall),
    ):
        function = getattr(library, f"edge4d_cpu_{name}")
        function.argtypes = (POINTER(call), c_int32)
        function.restype = c_int32
    for name in ("edge4d_last_error", "edge4d_cpu_instructions"):
        function = getattr(library, name)
        function.argtypes = ()
        function.restype = c_char_p
    return library


def _open(path: Path) -> ctypes.CDLL:
    hint = "Install the package (pip install .), or build with CMake and set EDGE4D_LIBRARY to the build folder."
    if not path.is_file():
        raise LibraryNotFound("The native kernels are not there.", note=f"Looked for '{path}'.", hint=hint)
    try:
        library = ctypes.CDLL(str(path))
        abi_version = library.edge4d_abi_version
    except (OSError, AttributeError) as error:
        raise LibraryNotFound("The native kernels cannot be loaded.", note=f"{error}.", hint=hint) from error
    abi_version.argtypes = ()
    abi_version.restype = c_int32
    if abi_version() != ABI_VERSION:
        raise LibraryNotFound(
            "The native kernels are of another version.",
            note=f"'{path}' has ABI {abi_version()}, this package needs {ABI_VERSION}.",
            hint=hint,
        )
    return library
