"""Finds and loads the native kernels, checks their version, and declares every struct and function of edge4d.h."""

from __future__ import annotations

import ctypes
import functools
import importlib.resources
import os
import sys
from collections.abc import Mapping
from ctypes import POINTER, Structure, c_char_p, c_float, c_int32, c_int64, c_uint64, c_void_p
from pathlib import Path
from typing import Any, NamedTuple, Optional

from edge4d.runtime.errors import CudaError, InvalidRequest, LibraryNotFound, PairOverflow

ABI_VERSION = 2
FILE_NAME = "libedge4d_kernels.dylib" if sys.platform == "darwin" else "libedge4d_kernels.so"
CUDA_FILE_NAME = "libedge4d_cuda.so"

OK, INVALID, OUT_OF_MEMORY, TOO_MANY_PAIRS, CUDA_ERROR = range(5)  # edge4d_status
DTYPES = {"float32": 0, "float16": 1, "uint8": 2}  # edge4d_dtype
POLY, DELTA = 1, 2  # edge4d_motion_kind
ROTATIONS = {"add": 0, "mul_left": 1, "mul_right": 2}  # edge4d_rotation
ACTIVATIONS = {"identity": 0, "exp": 1, "softplus": 2, "sigmoid": 3}  # edge4d_activation
MAX_MOTION_TERMS = 4


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


class RasterizeAttributes(NamedTuple):
    """The attributes of GaussianRasterize, in the order of kernels/ops.py."""

    width: int
    height: int
    near: float
    far: float
    eps2d: float
    antialiased: bool
    compensation_floor: float
    alpha_max: float
    sh_degree: int
    max_pairs: int
    outputs: int
    out_dtype: str
    fast: bool


def gaussian_rasterize_call(
    sizes: Mapping[str, int], dtype: str, attributes: RasterizeAttributes, **addresses: Optional[int]
) -> GaussianRasterizeCall:
    """The struct of a call whose tensors have these `sizes` (B, V, N, C; K of spherical harmonics) and addresses."""
    values = attributes._asdict()
    values.update(
        antialiased=bool(attributes.antialiased), fast=bool(attributes.fast), out_dtype=DTYPES[attributes.out_dtype]
    )
    return GaussianRasterizeCall(
        size=ctypes.sizeof(GaussianRasterizeCall),
        batch=sizes["B"],
        cameras=sizes["V"],
        gaussians=sizes["N"],
        channels=sizes["C"],
        coefficients=sizes.get("K", 0),
        dtype=DTYPES[dtype],
        **values,
        **addresses,
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


class VoxelNeighboursCall(Structure):
    """edge4d_voxel_neighbours."""

    _fields_ = (
        ("size", c_uint64),
        ("voxel_count", c_int32),
        ("resolution", c_int32),
        ("coords", c_void_p),
        ("neighbours", c_void_p),
    )


class SubmanifoldConvolutionCall(Structure):
    """edge4d_submanifold_convolution."""

    _fields_ = (
        ("size", c_uint64),
        *((name, c_int32) for name in ("voxel_count", "inputs", "outputs", "dtype")),
        *((name, c_void_p) for name in ("features", "neighbours", "weight", "bias", "convolved")),
    )


class GatherMeanCall(Structure):
    """edge4d_gather_mean."""

    _fields_ = (
        ("size", c_uint64),
        *((name, c_int32) for name in ("row_count", "channels", "mean_count", "most_rows", "zeros", "dtype")),
        *((name, c_void_p) for name in ("features", "table", "means")),
    )


class WindowAttentionCall(Structure):
    """edge4d_window_attention."""

    _fields_ = (
        ("size", c_uint64),
        *((name, c_int32) for name in ("row_count", "window_count", "longest", "heads", "channels", "dtype")),
        *((name, c_void_p) for name in ("qkv", "windows", "attended")),
    )


def voxel_neighbours_call(sizes: Mapping[str, int], resolution: int, **addresses: Optional[int]) -> VoxelNeighboursCall:
    """The struct of a call whose tensors have these `sizes`, the letters of kernels/ops.py; so the next ones."""
    return VoxelNeighboursCall(
        size=ctypes.sizeof(VoxelNeighboursCall), voxel_count=sizes["N"], resolution=resolution, **addresses
    )


def submanifold_convolution_call(
    sizes: Mapping[str, int], dtype: str, **addresses: Optional[int]
) -> SubmanifoldConvolutionCall:
    return SubmanifoldConvolutionCall(
        size=ctypes.sizeof(SubmanifoldConvolutionCall),
        voxel_count=sizes["N"],
        inputs=sizes["C"],
        outputs=sizes["D"],
        dtype=DTYPES[dtype],
        **addresses,
    )


def gather_mean_call(sizes: Mapping[str, int], dtype: str, zeros: int, **addresses: Optional[int]) -> GatherMeanCall:
    return GatherMeanCall(
        size=ctypes.sizeof(GatherMeanCall),
        row_count=sizes["N"],
        channels=sizes["C"],
        mean_count=sizes["M"],
        most_rows=sizes["K"],
        zeros=zeros,
        dtype=DTYPES[dtype],
        **addresses,
    )


def window_attention_call(sizes: Mapping[str, int], dtype: str, **addresses: Optional[int]) -> WindowAttentionCall:
    return WindowAttentionCall(
        size=ctypes.sizeof(WindowAttentionCall),
        row_count=sizes["N"],
        window_count=sizes["W"],
        longest=sizes["K"],
        heads=sizes["H"],
        channels=sizes["D"],
        dtype=DTYPES[dtype],
        **addresses,
    )


class MotionTerm(Structure):
    """edge4d_motion_term."""

    _fields_ = (
        *((name, c_int32) for name in ("kind", "groups", "linear_terms", "angular_terms")),
        *((name, c_void_p) for name in ("centres", "linear", "angular")),
        *((name, c_int32) for name in ("raw", "rotation", "linear_interpolation")),
        *((name, c_int32) for name in ("samples", "rows", "channels", "dtype")),
        *((name, c_int32) for name in ("means_at", "quats_at", "scales_at", "opacities_at", "colors_at")),
        *((name, c_void_p) for name in ("times", "data", "row_of")),
    )


class MoveGaussiansCall(Structure):
    """edge4d_move_gaussians."""

    _fields_ = (
        ("size", c_uint64),
        *((name, c_int32) for name in ("gaussians", "coefficients", "dtype")),
        *((name, c_int32) for name in ("scale_activation", "opacity_activation")),
        *((name, c_float) for name in ("scale_bias", "scale_floor", "opacity_bias")),
        ("quat_bias", c_float * 4),
        ("term_count", c_int32),
        ("terms", MotionTerm * MAX_MOTION_TERMS),
        *((name, c_void_p) for name in ("time", "groups", "means", "quats", "scales", "opacities", "colors")),
        *((f"moved_{name}", c_void_p) for name in ("means", "quats", "scales", "opacities", "colors")),
    )


class SamplerStepCall(Structure):
    """edge4d_sampler_step."""

    _fields_ = (
        ("size", c_uint64),
        ("count", c_int64),
        *((name, c_void_p) for name in ("step", "velocity", "x", "data")),
    )


_OPERATORS = (
    ("gaussian_rasterize", GaussianRasterizeCall),
    ("knn_interpolate", KnnInterpolateCall),
    ("farthest_point_sample", FarthestPointSampleCall),
    ("voxel_neighbours", VoxelNeighboursCall),
    ("submanifold_convolution", SubmanifoldConvolutionCall),
    ("gather_mean", GatherMeanCall),
    ("window_attention", WindowAttentionCall),
)


def library_path(file_name: str = FILE_NAME) -> Path:
    """Where a native library lies: in the folder $EDGE4D_LIBRARY if that is set, else beside the installed package."""
    folder = os.environ.get("EDGE4D_LIBRARY")
    if folder:
        return Path(folder) / file_name
    # Not Path(__file__): an editable install keeps the library elsewhere, and only importlib.resources knows where.
    return Path(str(importlib.resources.files("edge4d.kernels").joinpath(file_name)))


@functools.cache
def load() -> ctypes.CDLL:
    """The library of the CPU kernels, ready to be called.

    Raises:
        LibraryNotFound: it is missing, cannot be loaded, or is of another version.
    """
    library = _open(library_path())
    for name, call in _OPERATORS:
        _declare(library, f"edge4d_cpu_{name}", c_int32, POINTER(call), c_int32)
    _declare(library, "edge4d_cpu_instructions", c_char_p)
    return library


@functools.cache
def load_cuda() -> ctypes.CDLL:
    """The library of the CUDA kernels, ready to be called. It loads where there is no GPU too.

    Raises:
        LibraryNotFound: it is missing, cannot be loaded, or is of another version.
    """
    library = _open(library_path(CUDA_FILE_NAME))
    for name, call in _OPERATORS:
        _declare(library, f"edge4d_cuda_{name}", c_int32, POINTER(call), c_void_p, c_uint64, c_void_p)
        _declare(library, f"edge4d_cuda_{name}_workspace", c_uint64, POINTER(call))
    _declare(library, "edge4d_cuda_move_gaussians", c_int32, POINTER(MoveGaussiansCall), c_void_p)
    _declare(library, "edge4d_cuda_sampler_step", c_int32, POINTER(SamplerStepCall), c_void_p)
    return library


def check(library: ctypes.CDLL, operator: str, status: int) -> None:
    """Raises what a status of `operator` stands for, with the library's own words.

    Raises:
        InvalidRequest, MemoryError, PairOverflow, CudaError
    """
    if status == OK:
        return
    message = library.edge4d_last_error().decode()
    if status == OUT_OF_MEMORY:
        raise MemoryError(f"{operator}: {message}")
    if status == TOO_MANY_PAIRS:
        raise PairOverflow("The Gaussians cover too much of the image.", note=message, hint="Draw a smaller image.")
    if status == CUDA_ERROR:
        raise CudaError(f"The GPU refused {operator}.", note=message)
    raise InvalidRequest(f"The kernel refused {operator}.", note=message)


def _open(path: Path) -> ctypes.CDLL:
    kernels = "CUDA kernels" if path.name == CUDA_FILE_NAME else "native kernels"
    hint = "Install the package (pip install .), or build with CMake and set EDGE4D_LIBRARY to the build folder."
    if path.name == CUDA_FILE_NAME:
        hint += " They are built where nvcc is on PATH."
    if not path.is_file():
        raise LibraryNotFound(f"The {kernels} are not there.", note=f"Looked for '{path}'.", hint=hint)
    try:
        library = ctypes.CDLL(str(path))
        _declare(library, "edge4d_abi_version", c_int32)
    except (OSError, AttributeError) as error:
        raise LibraryNotFound(f"The {kernels} cannot be loaded.", note=f"{error}.", hint=hint) from error
    found = library.edge4d_abi_version()
    if found != ABI_VERSION:
        raise LibraryNotFound(
            f"The {kernels} are of another version.",
            note=f"'{path}' has ABI {found}, this package needs {ABI_VERSION}.",
            hint=hint,
        )
    _declare(library, "edge4d_last_error", c_char_p)
    return library


def _declare(library: ctypes.CDLL, name: str, result: Any, *arguments: Any) -> None:
    function = getattr(library, name)
    function.argtypes = arguments
    function.restype = result
