"""The operators on the GPU: arrays in GPU memory in and out, native kernels between.

Every array is an object with `__cuda_array_interface__`: a `runtime.backends.cuda.DeviceArray`, or one of torch, CuPy,
PyCUDA, Numba or JAX. It is dense and row-major, begins at a multiple of 16 bytes, and lies on the current device.

A call checks shapes and dtypes, puts its work into `stream` and returns. Nothing is allocated, copied or waited for, so
calls can be captured into a CUDA graph. The caller owns everything, outputs and workspace too, keeps it until the work
is done, and orders streams among each other. What lies in GPU memory is not looked at: whoever makes cameras on the
host checks them there (`kernels.checks.check_cameras`).

`workspace` is memory of at least as many bytes as the function with that name says, beginning at a multiple of 256
bytes; its content does not matter. `stream` is a handle (0: the default stream), or a stream of cuda-bindings, CuPy,
PyCUDA or torch.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Optional, Protocol, TypeVar

import numpy as np

from edge4d.kernels import _library
from edge4d.kernels._library import MAX_MOTION_TERMS as MAX_MOTION_TERMS
from edge4d.kernels.checks import (
    STORED,
    check_attributes,
    check_channels,
    check_count,
    check_dtype,
    check_head,
    check_neighbours,
    check_resolution,
    check_sh,
    check_shape,
    check_zeros,
)
from edge4d.kernels.ops import ALPHA, DEPTH, IMAGE
from edge4d.kernels.reference import KnnInterpolation, Rasterization
from edge4d.runtime.errors import InvalidRequest, InvalidTensor

_FLOAT32 = (np.dtype(np.float32),)
_FLOAT64 = (np.dtype(np.float64),)
_INT32 = (np.dtype(np.int32),)
Choice = TypeVar("Choice")
_ALIGNMENT, _WORKSPACE_ALIGNMENT = 16, 256  # bytes, as edge4d.h asks


class CudaArray(Protocol):
    """An array in GPU memory, of any library."""

    @property
    def __cuda_array_interface__(self) -> Mapping[str, Any]: ...


def gaussian_rasterize(
    means: CudaArray,
    quats: CudaArray,
    scales: CudaArray,
    opacities: CudaArray,
    colors: CudaArray,
    viewmats: CudaArray,
    Ks: CudaArray,
    background: CudaArray,
    *,
    out: Rasterization,
    workspace: CudaArray,
    stream: object = 0,
    width: int,
    height: int,
    near: float = 0.01,
    far: float = 1e10,
    eps2d: float = 0.3,
    antialiased: bool = False,
    compensation_floor: float = 0.0,
    alpha_max: float = 0.999,
    sh_degree: int = -1,
    max_pairs: int,
    outputs: int = IMAGE | ALPHA | DEPTH,
    out_dtype: str = "float32",
    fast: bool = False,
) -> None:
    """Draws Gaussians into every camera's image, as `kernels.cpu.gaussian_rasterize` does.

    When an image needs more than `max_pairs` Gaussian-tile pairs, it holds the background alone and `stats` says
    overflow and how many it needs.

    Args:
        means, quats, scales, opacities, colors, viewmats, Ks, background: as there; the last three are float32, and the
            poses rigid.
        out: image [B, V, H, W, C], alpha and depth [B, V, H, W, 1], of `out_dtype` (with uint8, alpha and depth are
            float32), and stats [B, V, 5] int32. What is not in `outputs` may be None. All elements are overwritten.
        max_pairs: at least 1.
        fast: may give accuracy for speed.

    Raises:
        InvalidTensor: a shape or dtype is wrong, or an array is not dense, aligned GPU memory.
        InvalidRequest: an attribute has a value that cannot work, or the workspace is too small.
        CudaError: the work could not be launched.
        LibraryNotFound: the CUDA kernels are missing.
    """
    sizes: dict[str, int] = {"1": 1, "3": 3, "4": 4, "5": 5, "H": height, "W": width}
    attributes = _library.RasterizeAttributes(
        width,
        height,
        near,
        far,
        eps2d,
        antialiased,
        compensation_floor,
        alpha_max,
        sh_degree,
        max_pairs,
        outputs,
        out_dtype,
        fast,
    )
    check_attributes(attributes)
    _check_capacity(max_pairs)
    stored = _stored_dtype("means", means)
    inputs = {
        "means": _address("means", means, "BN3", stored, sizes),
        "quats": _address("quats", quats, "BN4", stored, sizes),
        "scales": _address("scales", scales, "BN3", stored, sizes),
        "opacities": _address("opacities", opacities, "BN", stored, sizes),
        "colors": _address("colors", colors, "BNC" if sh_degree < 0 else "BNK3", stored, sizes),
        "viewmats": _address("viewmats", viewmats, "BV44", _FLOAT32, sizes),
        "Ks": _address("Ks", Ks, "BV33", _FLOAT32, sizes),
    }
    sizes.setdefault("C", 3)
    inputs["background"] = _address("background", background, "C", _FLOAT32, sizes)
    check_sh(sh_degree, sizes.get("K", 0))
    image_dtype = (np.dtype(out_dtype),)
    plane_dtype = _FLOAT32 if out_dtype == "uint8" else image_dtype
    results = {
        "image": _address("out.image", out.image, "BVHWC", image_dtype, sizes, written=True)
        if outputs & IMAGE
        else None,
        "alpha": _address("out.alpha", out.alpha, "BVHW1", plane_dtype, sizes, written=True)
        if outputs & ALPHA
        else None,
        "depth": _address("out.depth", out.depth, "BVHW1", plane_dtype, sizes, written=True)
        if outputs & DEPTH
        else None,
        "stats": _address("out.stats", out.stats, "BV5", _INT32, sizes, written=True),
    }
    call = _library.gaussian_rasterize_call(sizes, _name_of(stored), attributes, **inputs, **results)
    _launch("gaussian_rasterize", call, workspace, stream)


def gaussian_rasterize_workspace(
    *,
    batch: int = 1,
    cameras: int = 1,
    gaussians: int,
    channels: int = 3,
    coefficients: int = 0,
    dtype: str = "float32",
    width: int,
    height: int,
    max_pairs: int,
    outputs: int = IMAGE | ALPHA | DEPTH,
    out_dtype: str = "float32",
    fast: bool = False,
) -> int:
    """Bytes of workspace of a `gaussian_rasterize` of these sizes.

    Args:
        coefficients: K; 0 without spherical harmonics.
        dtype: of means, quats, scales, opacities and colors.

    Raises:
        InvalidRequest: a value cannot work.
        LibraryNotFound: the CUDA kernels are missing.
    """
    degree = math.isqrt(coefficients) - 1
    attributes = _library.RasterizeAttributes(
        width, height, 0.01, 1e10, 0.3, False, 0.0, 0.999, degree, max_pairs, outputs, out_dtype, fast
    )
    check_attributes(attributes)
    _check_capacity(max_pairs)
    sizes = {"B": batch, "V": cameras, "N": gaussians, "C": channels, "K": coefficients}
    return _workspace_bytes("gaussian_rasterize", _library.gaussian_rasterize_call(sizes, dtype, attributes))


def knn_interpolate(
    queries: CudaArray,
    points: CudaArray,
    values: CudaArray,
    *,
    out: KnnInterpolation,
    workspace: CudaArray,
    stream: object = 0,
    k: int = 8,
    beta: float = 7.0,
    radius_mask: bool = True,
) -> None:
    """Interpolates values from the k nearest points, as `kernels.cpu.knn_interpolate` does.

    Args:
        queries: [Q, 3] float32, finite.
        points: [M, 3] float32, finite, M >= k.
        values: [T, M, C] float32.
        out: values [T, Q, C] float32, indices [Q, k] int32, weights [Q, k] float32.
        k: neighbours, 1 to 16.

    Raises:
        InvalidTensor: a shape or dtype is wrong, an array is not dense, aligned GPU memory, or there are fewer points
            than neighbours.
        InvalidRequest: k is not in 1..16, or the workspace is too small.
        CudaError: the work could not be launched.
        LibraryNotFound: the CUDA kernels are missing.
    """
    sizes: dict[str, int] = {"3": 3, "K": k}
    inputs = {
        "queries": _address("queries", queries, "Q3", _FLOAT32, sizes),
        "points": _address("points", points, "M3", _FLOAT32, sizes),
        "values": _address("values", values, "TMC", _FLOAT32, sizes),
    }
    check_neighbours(k, sizes["M"])
    results = {
        "interpolated": _address("out.values", out.values, "TQC", _FLOAT32, sizes, written=True),
        "indices": _address("out.indices", out.indices, "QK", _INT32, sizes, written=True),
        "weights": _address("out.weights", out.weights, "QK", _FLOAT32, sizes, written=True),
    }
    call = _knn_call(sizes["Q"], sizes["M"], sizes["T"], sizes["C"], k, beta, radius_mask, **inputs, **results)
    _launch("knn_interpolate", call, workspace, stream)


def knn_interpolate_workspace(*, queries: int, points: int, frames: int, channels: int, k: int = 8) -> int:
    """Bytes of workspace of a `knn_interpolate` with so many queries Q, points M, frames T, channels C.

    Raises:
        InvalidTensor, InvalidRequest: a value cannot work.
        LibraryNotFound: the CUDA kernels are missing.
    """
    check_neighbours(k, points)
    return _workspace_bytes("knn_interpolate", _knn_call(queries, points, frames, channels, k, 7.0, True))


def farthest_point_sample(
    points: CudaArray, *, count: int, out: CudaArray, workspace: CudaArray, stream: object = 0
) -> None:
    """Chooses `count` points spread as widely as possible, as `kernels.cpu.farthest_point_sample` does.

    Args:
        points: [N, 3] float32, finite.
        count: 1 to N.
        out: indices [count] int32; the first is 0.

    Raises:
        InvalidTensor: a shape or dtype is wrong, or an array is not dense, aligned GPU memory.
        InvalidRequest: count is not in 1..N, or the workspace is too small.
        CudaError: the work could not be launched.
        LibraryNotFound: the CUDA kernels are missing.
    """
    sizes: dict[str, int] = {"3": 3, "L": count}
    address = _address("points", points, "N3", _FLOAT32, sizes)
    check_count(count, sizes["N"])
    call = _fps_call(sizes["N"], count, points=address, indices=_address("out", out, "L", _INT32, sizes, written=True))
    _launch("farthest_point_sample", call, workspace, stream)


def farthest_point_sample_workspace(*, points: int, count: int) -> int:
    """Bytes of workspace of a `farthest_point_sample` of `count` out of so many points.

    Raises:
        InvalidRequest: count is not in 1..N.
        LibraryNotFound: the CUDA kernels are missing.
    """
    check_count(count, points)
    return _workspace_bytes("farthest_point_sample", _fps_call(points, count))


def voxel_neighbours(
    coords: CudaArray, *, resolution: int, out: CudaArray, workspace: CudaArray, stream: object = 0
) -> None:
    """Finds the voxels around each voxel, as `kernels.cpu.voxel_neighbours` does.

    Args:
        coords: [N, 3] int32; a row outside of 0 .. resolution - 1 is no voxel.
        resolution: cells along a side of the cube, 1 to 256.
        out: neighbours [N, 27] int32.

    Raises:
        InvalidTensor: a shape or dtype is wrong, or an array is not dense, aligned GPU memory.
        InvalidRequest: the resolution is not in 1..256, or the workspace is too small.
        CudaError: the work could not be launched.
        LibraryNotFound: the CUDA kernels are missing.
    """
    sizes: dict[str, int] = {"3": 3, "27": 27}
    check_resolution(resolution)
    addresses = {
        "coords": _address("coords", coords, "N3", _INT32, sizes),
        "neighbours": _address("out", out, ("N", "27"), _INT32, sizes, written=True),
    }
    _launch("voxel_neighbours", _library.voxel_neighbours_call(sizes, resolution, **addresses), workspace, stream)


def voxel_neighbours_workspace(*, resolution: int) -> int:
    """Bytes of workspace of a `voxel_neighbours`, however many voxels there are.

    Raises:
        InvalidRequest: the resolution is not in 1..256.
        LibraryNotFound: the CUDA kernels are missing.
    """
    check_resolution(resolution)
    return _workspace_bytes("voxel_neighbours", _library.voxel_neighbours_call({"N": 0}, resolution))


def submanifold_convolution(
    features: CudaArray,
    neighbours: CudaArray,
    weight: CudaArray,
    bias: CudaArray,
    *,
    out: CudaArray,
    stream: object = 0,
) -> None:
    """Convolves voxels with their 27 neighbours, as `kernels.cpu.submanifold_convolution` does.

    Args:
        features: [N, C] float32 or float16, like weight, bias and out; float16 is multiplied on the tensor cores.
        neighbours: [N, 27] int32; what is no row of features counts as zeros.
        weight: [27, C, D].
        bias: [D].
        out: [N, D].

    Raises:
        InvalidTensor: a shape or dtype is wrong, or an array is not dense, aligned GPU memory.
        CudaError: the work could not be launched.
        LibraryNotFound: the CUDA kernels are missing.
    """
    sizes: dict[str, int] = {"27": 27}
    stored = _stored_dtype("features", features)
    addresses = {
        "features": _address("features", features, "NC", stored, sizes),
        "neighbours": _address("neighbours", neighbours, ("N", "27"), _INT32, sizes),
        "weight": _address("weight", weight, ("27", "C", "D"), stored, sizes),
        "bias": _address("bias", bias, "D", stored, sizes),
        "convolved": _address("out", out, "ND", stored, sizes, written=True),
    }
    check_channels("weight", sizes, "C", "D")
    call = _library.submanifold_convolution_call(sizes, _name_of(stored), **addresses)
    _launch_alone("submanifold_convolution", call, stream)


def gather_mean(features: CudaArray, table: CudaArray, *, zeros: int = 0, out: CudaArray, stream: object = 0) -> None:
    """Means of the rows that a table names, as `kernels.cpu.gather_mean` gives them.

    Args:
        features: [N, C] float32 or float16, like out.
        table: [M, K] int32; what is no row of features is none.
        zeros: that each mean counts beside its rows.
        out: [M, C].

    Raises:
        InvalidTensor: a shape or dtype is wrong, or an array is not dense, aligned GPU memory.
        InvalidRequest: zeros is negative.
        CudaError: the work could not be launched.
        LibraryNotFound: the CUDA kernels are missing.
    """
    sizes: dict[str, int] = {}
    stored = _stored_dtype("features", features)
    addresses = {
        "features": _address("features", features, "NC", stored, sizes),
        "table": _address("table", table, "MK", _INT32, sizes),
        "means": _address("out", out, "MC", stored, sizes, written=True),
    }
    check_channels("features", sizes, "C")
    check_zeros(zeros)
    _launch_alone("gather_mean", _library.gather_mean_call(sizes, _name_of(stored), zeros, **addresses), stream)


def window_attention(qkv: CudaArray, windows: CudaArray, *, out: CudaArray, stream: object = 0) -> None:
    """Self-attention among the rows of each window, as `kernels.cpu.window_attention` computes it.

    Args:
        qkv: [N, 3, H, D] float32 or float16, like out; D at most 128.
        windows: [W, K] int32, rows of qkv, each at most once; -1 behind a window's last.
        out: [N, H, D]; zeros for a row that is in no window.

    Raises:
        InvalidTensor: a shape or dtype is wrong, or an array is not dense, aligned GPU memory.
        CudaError: the work could not be launched.
        LibraryNotFound: the CUDA kernels are missing.
    """
    sizes: dict[str, int] = {"3": 3}
    stored = _stored_dtype("qkv", qkv)
    addresses = {
        "qkv": _address("qkv", qkv, "N3HD", stored, sizes),
        "windows": _address("windows", windows, "WK", _INT32, sizes),
        "attended": _address("out", out, "NHD", stored, sizes, written=True),
    }
    check_channels("qkv", sizes, "H", "D")
    check_head(sizes["D"])
    _launch_alone("window_attention", _library.window_attention_call(sizes, _name_of(stored), **addresses), stream)


# ---- motion ---------------------------------------------------------------------------------------------------------


class PolyTerm(NamedTuple):
    """`runtime.motion.Poly` with its arrays on the GPU, float32."""

    centres: CudaArray  # [M, 3]
    linear: CudaArray  # [M, P, 3]
    angular: CudaArray  # [M, Q, 3]


class DeltaTerm(NamedTuple):
    """`runtime.motion.Delta` with its arrays on the GPU."""

    times: CudaArray  # [T] float64
    data: CudaArray  # [T, n, C] float32 or float16
    first_channels: Mapping[str, int]  # of what it changes: "means", "quats", "scales", "opacities", "colors"
    row_of: Optional[CudaArray] = None  # [N] int32, the row of each Gaussian, -1: none; None when data has all N
    raw: bool = False
    rotation: str = "add"
    interpolation: str = "linear"


class StoredGaussians(NamedTuple):
    """Gaussians as they are stored or moved; what takes no part is None."""

    means: Optional[CudaArray] = None  # [N, 3]
    quats: Optional[CudaArray] = None  # [N, 4]
    scales: Optional[CudaArray] = None  # [N, 3]
    opacities: Optional[CudaArray] = None  # [N]
    colors: Optional[CudaArray] = None  # [N, 3] or [N, K, 3]


def move_gaussians(
    stored: StoredGaussians,
    *,
    time: CudaArray,
    out: StoredGaussians,
    groups: Optional[CudaArray] = None,
    terms: Iterable[NamedTuple] = (),
    scale_activation: str = "identity",
    opacity_activation: str = "identity",
    scale_bias: float = 0.0,
    opacity_bias: float = 0.0,
    scale_floor: float = 0.0,
    quat_bias: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0),
    stream: object = 0,
) -> None:
    """A scene's Gaussians at a time: raw terms, activations, activated terms, in this order.

    The formulas are those of `runtime.motion.Poly`, `runtime.motion.Delta` and `runtime.gaussians.Activation`, whose
    settings the arguments are.

    Args:
        stored: float32.
        time: [1] float64, seconds, finite.
        out: what is None is not made; the rest is float32 or float16 and needs the same of `stored`. It must not
            overlap `stored`.
        groups: [N] int32, the motion group of each Gaussian; without it all stand still.
        terms: at most `MAX_MOTION_TERMS`, each a `PolyTerm` or a `DeltaTerm`.

    Raises:
        InvalidTensor: a shape or dtype is wrong, or an array is not dense, aligned GPU memory.
        InvalidRequest: a setting has a value that cannot work.
        CudaError: the work could not be launched.
        LibraryNotFound: the CUDA kernels are missing.
    """
    sizes: dict[str, int] = {"1": 1, "3": 3, "4": 4}
    call = _library.MoveGaussiansCall(
        size=ctypes.sizeof(_library.MoveGaussiansCall),
        scale_activation=_choice("scale_activation", scale_activation, _library.ACTIVATIONS),
        opacity_activation=_choice("opacity_activation", opacity_activation, _library.ACTIVATIONS),
        scale_bias=scale_bias,
        scale_floor=scale_floor,
        opacity_bias=opacity_bias,
        quat_bias=tuple(quat_bias),
        time=_address("time", time, "1", _FLOAT64, sizes),
    )
    _set_gaussians(call, stored, out, sizes)
    if groups is not None:
        call.groups = _address("groups", groups, "N", _INT32, sizes)
    call.gaussians, call.coefficients = sizes.get("N", 0), sizes.get("K", 0)
    for term in terms:
        _add_term(call, term, sizes)
    library = _library.load_cuda()
    status = library.edge4d_cuda_move_gaussians(ctypes.byref(call), stream_handle(stream))
    _library.check(library, "move_gaussians", status)


def _set_gaussians(
    call: _library.MoveGaussiansCall, stored: StoredGaussians, out: StoredGaussians, sizes: dict[str, int]
) -> None:
    dtypes: tuple[np.dtype[Any], ...] = STORED
    for name, moved in out._asdict().items():
        if moved is None:
            continue
        array = getattr(stored, name)
        if array is None:
            raise InvalidTensor(f"There are no {name} to move.", note=f"out.{name} is given, stored.{name} is None.")
        dims = {"quats": "N4", "opacities": "N"}.get(name, "N3")
        if name == "colors" and len(array_interface(name, array).shape) == 3:
            dims = "NK3"
        setattr(call, name, _address(name, array, dims, _FLOAT32, sizes))
        setattr(call, f"moved_{name}", _address(f"out.{name}", moved, dims, dtypes, sizes, written=True))
        dtypes = (array_interface(name, moved).dtype,)
    call.dtype = _library.DTYPES[dtypes[0].name]


def _add_term(call: _library.MoveGaussiansCall, term: object, sizes: Mapping[str, int]) -> None:
    if call.term_count == MAX_MOTION_TERMS or not isinstance(term, (PolyTerm, DeltaTerm)):
        raise InvalidRequest(
            "The Gaussians cannot be moved like that.",
            note=f"Term {call.term_count + 1} is a {type(term).__name__}; allowed: {MAX_MOTION_TERMS} in all, each a "
            "PolyTerm or a DeltaTerm.",
        )
    target = call.terms[call.term_count]
    if isinstance(term, PolyTerm):
        _fill_poly(target, term)
    else:
        _fill_delta(target, term, sizes)
    call.term_count += 1


def _fill_poly(target: _library.MotionTerm, term: PolyTerm) -> None:
    own: dict[str, int] = {"3": 3}
    target.kind = _library.POLY
    target.centres = _address("centres", term.centres, "M3", _FLOAT32, own)
    target.linear = _address("linear", term.linear, "MP3", _FLOAT32, own)
    target.angular = _address("angular", term.angular, "MQ3", _FLOAT32, own)
    target.groups, target.linear_terms, target.angular_terms = own["M"], own["P"], own["Q"]


def _fill_delta(target: _library.MotionTerm, term: DeltaTerm, sizes: Mapping[str, int]) -> None:
    # Without row_of, data has a row for every Gaussian: its n is the call's N.
    own: dict[str, int] = {"N": sizes.get("N", 0)}
    rows = "N" if term.row_of is None else "n"
    target.kind = _library.DELTA
    target.times = _address("times", term.times, "T", _FLOAT64, own)
    target.data = _address("data", term.data, f"T{rows}C", STORED, own)
    target.dtype = _library.DTYPES[array_interface("data", term.data).dtype.name]
    if term.row_of is not None:
        target.row_of = _address("row_of", term.row_of, "N", _INT32, own)
    target.samples, target.rows, target.channels = own["T"], own[rows], own["C"]
    target.raw = bool(term.raw)
    target.rotation = _choice("rotation", term.rotation, _library.ROTATIONS)
    target.linear_interpolation = _choice("interpolation", term.interpolation, {"hold": 0, "linear": 1})
    fields = {name: f"{name}_at" for name in StoredGaussians._fields}
    for field in fields.values():
        setattr(target, field, -1)
    for name, channel in term.first_channels.items():
        setattr(target, _choice("first_channels", name, fields), channel)


# ---- sampling -------------------------------------------------------------------------------------------------------


def sampler_step(x: CudaArray, data: CudaArray, *, velocity: CudaArray, step: CudaArray, stream: object = 0) -> None:
    """The update after an evaluation, as `runtime.samplers.sample_multistep` does it, in place.

    Args:
        x: float32 of any shape; becomes that of the next evaluation.
        data: the same shape; x_0 of the step before, becomes that of this step. Zeros before the first.
        velocity: the same shape; what the network said of x.
        step: [6] float32, the numbers of a `runtime.samplers.Step` in their order.

    Raises:
        InvalidTensor: a shape or dtype is wrong, or an array is not dense, aligned GPU memory.
        CudaError: the work could not be launched.
        LibraryNotFound: the CUDA kernels are missing.
    """
    shape = array_interface("x", x).shape
    dims = [f"dimension {i}" for i in range(len(shape))]
    sizes = {"6": 6}
    call = _library.SamplerStepCall(
        size=ctypes.sizeof(_library.SamplerStepCall),
        count=math.prod(shape),
        x=_address("x", x, dims, _FLOAT32, sizes, written=True),
        data=_address("data", data, dims, _FLOAT32, sizes, written=True),
        velocity=_address("velocity", velocity, dims, _FLOAT32, sizes),
        step=_address("step", step, "6", _FLOAT32, sizes),
    )
    library = _library.load_cuda()
    status = library.edge4d_cuda_sampler_step(ctypes.byref(call), stream_handle(stream))
    _library.check(library, "sampler_step", status)


# ---- checks ---------------------------------------------------------------------------------------------------------


class ArrayInterface(NamedTuple):
    """Where an array in GPU memory lies, and what it is."""

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read_only: bool


def array_interface(name: str, array: object) -> ArrayInterface:
    """What an array's `__cuda_array_interface__` says.

    Raises:
        InvalidTensor: the array has none, or is not dense and row-major.
    """
    interface = getattr(array, "__cuda_array_interface__", None)
    if interface is None:
        raise InvalidTensor(
            f"'{name}' is not in GPU memory.",
            note=f"It is a {type(array).__name__} without __cuda_array_interface__.",
            hint="Pass a DeviceArray, or a CUDA array of torch, CuPy or PyCUDA.",
        )
    shape, dtype = tuple(interface["shape"]), np.dtype(interface["typestr"])
    address, read_only = interface["data"]
    strides = interface.get("strides")
    if strides is not None:
        check_dense(name, shape, strides, dtype.itemsize)
    return ArrayInterface(address or 0, shape, dtype, read_only)


def check_dense(name: str, shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> None:
    """Raises InvalidTensor unless strides, in bytes, are those of a dense row-major array."""
    step = itemsize
    for size, stride in zip(reversed(shape), reversed(strides)):
        if stride != step and size > 1 and 0 not in shape:
            raise InvalidTensor(
                f"'{name}' is not dense and row-major.",
                note=f"Its shape is {list(shape)}, its strides are {list(strides)} bytes.",
                hint=f"Make a dense copy: {name}.contiguous() in torch, cupy.ascontiguousarray({name}).",
            )
        step *= size


def stream_handle(stream: object) -> int:
    """The cudaStream_t of a stream: a number, or a stream of cuda-bindings, CuPy, PyCUDA or torch.

    Raises:
        InvalidRequest: it is none of these.
    """
    protocol = getattr(stream, "__cuda_stream__", None)
    if protocol is not None:
        _, stream = protocol() if callable(protocol) else protocol
    else:
        for attribute in ("handle", "ptr", "cuda_stream"):  # PyCUDA and cuda.core; CuPy; torch
            stream = getattr(stream, attribute, stream)
    if isinstance(stream, (bool, float, str)) or not hasattr(stream, "__int__"):
        raise InvalidRequest(
            "This is not a CUDA stream.",
            note=f"It is a {type(stream).__name__}.",
            hint="Pass its handle as a number, or a stream of cuda-bindings, CuPy, PyCUDA or torch.",
        )
    return int(stream)


def _address(
    name: str,
    array: object,
    dims: Sequence[str],
    dtypes: tuple[np.dtype[Any], ...],
    sizes: dict[str, int],
    *,
    written: bool = False,
) -> Optional[int]:
    """Where the array lies, once its dtype is among `dtypes` and its shape agrees with the letters met so far."""
    found = array_interface(name, array)
    check_dtype(name, found.dtype, dtypes)
    check_shape(name, found.shape, dims, sizes)
    _check_aligned(name, found.address, _ALIGNMENT)
    if written and found.read_only:
        raise InvalidTensor(f"'{name}' is read-only.", hint="Pass an array that may be written.")
    return found.address or None


def _stored_dtype(name: str, array: object) -> tuple[np.dtype[Any], ...]:
    """The dtype that all of a call's tensors have which may be float32 or float16; both when this one has another."""
    dtype = array_interface(name, array).dtype
    return (dtype,) if dtype in STORED else STORED


def _name_of(stored: tuple[np.dtype[Any], ...]) -> str:
    return "float32" if stored == _FLOAT32 else "float16"  # dtype.name takes several microseconds


def _check_aligned(name: str, address: int, alignment: int) -> None:
    if address % alignment:
        raise InvalidTensor(
            f"'{name}' begins at an address that the kernels cannot use.",
            note=f"It is {address % alignment} bytes beyond a multiple of {alignment}.",
            hint="Pass an array that begins where its memory was allocated, not a slice of one.",
        )


def _check_capacity(max_pairs: int) -> None:
    if max_pairs < 1:
        raise InvalidRequest(
            "The GPU needs to know how many Gaussian-tile pairs there may be.",
            note=f"max_pairs is {max_pairs}; allowed: 1 to 2**31 - 1.",
            hint="Scenes of photographs need two to three per Gaussian; the third of the stats says how many.",
        )


def _choice(name: str, value: str, choices: Mapping[str, Choice]) -> Choice:
    if value not in choices:
        raise InvalidRequest(
            "The Gaussians cannot be moved like that.", note=f"{name} is {value!r}; allowed: {', '.join(choices)}."
        )
    return choices[value]


# ---- calls ----------------------------------------------------------------------------------------------------------


def _knn_call(
    query_count: int,
    point_count: int,
    frames: int,
    channels: int,
    k: int,
    beta: float,
    radius_mask: bool,
    **addresses: Optional[int],
) -> _library.KnnInterpolateCall:
    return _library.KnnInterpolateCall(
        size=ctypes.sizeof(_library.KnnInterpolateCall),
        query_count=query_count,
        point_count=point_count,
        frames=frames,
        channels=channels,
        k=k,
        beta=beta,
        radius_mask=bool(radius_mask),
        **addresses,
    )


def _fps_call(point_count: int, count: int, **addresses: Optional[int]) -> _library.FarthestPointSampleCall:
    size = ctypes.sizeof(_library.FarthestPointSampleCall)
    return _library.FarthestPointSampleCall(size=size, point_count=point_count, count=count, **addresses)


def _workspace_bytes(operator: str, call: ctypes.Structure) -> int:
    return int(getattr(_library.load_cuda(), f"edge4d_cuda_{operator}_workspace")(ctypes.byref(call)))


def _launch(operator: str, call: ctypes.Structure, workspace: CudaArray, stream: object) -> None:
    memory = array_interface("workspace", workspace)
    _check_aligned("workspace", memory.address, _WORKSPACE_ALIGNMENT)
    nbytes = math.prod(memory.shape) * memory.dtype.itemsize
    _launch_over(memory.address, nbytes, operator, call, stream)


def _launch_alone(operator: str, call: ctypes.Structure, stream: object) -> None:
    """What needs no workspace."""
    _launch_over(None, 0, operator, call, stream)


def _launch_over(address: Optional[int], nbytes: int, operator: str, call: ctypes.Structure, stream: object) -> None:
    library = _library.load_cuda()
    launch = getattr(library, f"edge4d_cuda_{operator}")
    status = launch(ctypes.byref(call), address, nbytes, stream_handle(stream))
    _library.check(library, operator, status)
