"""The operators on the CPU: NumPy arrays in and out, native kernels between.

Everything is checked here, once; the library is found and loaded by the first call. The functions release the
interpreter lock, keep nothing between calls, and may be called from several threads. `threads=0` uses every core that
the process may use; the results do not depend on it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge4d.kernels import _library
from edge4d.kernels.checks import (
    STORED,
    check_attributes,
    check_cameras,
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
from edge4d.runtime.errors import InvalidTensor

_SMALL = (np.dtype(np.float32), np.dtype(np.float64))  # cameras and backgrounds: converted, they are few numbers


def gaussian_rasterize(
    means: NDArray[Any],
    quats: NDArray[Any],
    scales: NDArray[Any],
    opacities: NDArray[Any],
    colors: NDArray[Any],
    viewmats: NDArray[Any],
    Ks: NDArray[Any],
    background: NDArray[Any],
    *,
    width: int,
    height: int,
    near: float = 0.01,
    far: float = 1e10,
    eps2d: float = 0.3,
    antialiased: bool = False,
    compensation_floor: float = 0.0,
    alpha_max: float = 0.999,
    sh_degree: int = -1,
    max_pairs: int = 0,
    outputs: int = IMAGE | ALPHA | DEPTH,
    out_dtype: str = "float32",
    fast: bool = False,
    threads: int = 0,
) -> Rasterization:
    """Draws Gaussians into every camera's image (GaussianRasterize in `kernels.ops`; numbers in CONVENTIONS.md).

    Gaussians with a value that is not finite are skipped and counted in `stats`. When an image needs more than
    `max_pairs` pairs (0: as many as are needed), it holds the background alone and `stats` says overflow.

    Args:
        means: [B, N, 3] world coordinates, float32 or float16 like the next four.
        quats: [B, N, 4] wxyz, of any length but 0.
        scales: [B, N, 3] standard deviations, linear.
        opacities: [B, N] in 0..1.
        colors: [B, N, C], or SH coefficients [B, N, K, 3] when `sh_degree` >= 0.
        viewmats: [B, V, 4, 4] world to camera, OpenCV axes, rigid; float32 or float64 like the next two.
        Ks: [B, V, 3, 3] in pixels.
        background: [C].

    Raises:
        InvalidTensor: a shape or dtype is wrong.
        InvalidCamera: a K is singular or skewed, a pose is not rigid.
        InvalidRequest: an attribute has a value that cannot work.
        PairOverflow: an image needs 2**31 pairs or more.
        LibraryNotFound: the native kernels are missing.
    """
    sizes: dict[str, int] = {"4": 4, "3": 3}
    means = _checked("means", means, "BN3", STORED, sizes)
    stored = (means.dtype,)
    quats = _checked("quats", quats, "BN4", stored, sizes)
    scales = _checked("scales", scales, "BN3", stored, sizes)
    opacities = _checked("opacities", opacities, "BN", stored, sizes)
    colors = _checked("colors", colors, "BNC" if sh_degree < 0 else "BNK3", stored, sizes)
    viewmats = _checked("viewmats", viewmats, "BV44", _SMALL, sizes)
    Ks = _checked("Ks", Ks, "BV33", _SMALL, sizes)
    channels = sizes.setdefault("C", 3)
    background = _checked("background", background, "C", _SMALL, sizes)
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
    check_sh(sh_degree, sizes.get("K", 0))
    check_cameras(viewmats, Ks)

    frames = (sizes["B"], sizes["V"], height, width)
    plane_dtype = "float32" if out_dtype == "uint8" else out_dtype
    result = Rasterization(
        np.empty((*frames, channels) if outputs & IMAGE else 0, out_dtype),
        np.empty((*frames, 1) if outputs & ALPHA else 0, plane_dtype),
        np.empty((*frames, 1) if outputs & DEPTH else 0, plane_dtype),
        np.empty((sizes["B"], sizes["V"], 5), np.int32),
    )
    viewmats, Ks, background = (np.ascontiguousarray(array, np.float32) for array in (viewmats, Ks, background))
    _call(
        "gaussian_rasterize",
        _library.gaussian_rasterize_call(
            sizes,
            means.dtype.name,
            attributes,
            means=means.ctypes.data,
            quats=quats.ctypes.data,
            scales=scales.ctypes.data,
            opacities=opacities.ctypes.data,
            colors=colors.ctypes.data,
            viewmats=viewmats.ctypes.data,
            Ks=Ks.ctypes.data,
            background=background.ctypes.data,
            image=result.image.ctypes.data,
            alpha=result.alpha.ctypes.data,
            depth=result.depth.ctypes.data,
            stats=result.stats.ctypes.data,
        ),
        threads,
    )
    return result


def knn_interpolate(
    queries: NDArray[Any],
    points: NDArray[Any],
    values: NDArray[Any],
    *,
    k: int = 8,
    beta: float = 7.0,
    radius_mask: bool = True,
    threads: int = 0,
) -> KnnInterpolation:
    """Interpolates values from the k nearest points (KnnInterpolate in `kernels.ops`; formula in its NumPy twin).

    Args:
        queries: [Q, 3] float32, finite.
        points: [M, 3] float32, finite, M >= k.
        values: [T, M, C] float32.
        k: neighbours, 1 to 16.

    Raises:
        InvalidTensor: a shape or dtype is wrong, a coordinate is not finite, or there are fewer points than neighbours.
        InvalidRequest: k is not in 1..16.
        LibraryNotFound: the native kernels are missing.
    """
    float32 = (np.dtype(np.float32),)
    sizes: dict[str, int] = {"3": 3}
    queries = _finite("queries", _checked("queries", queries, "Q3", float32, sizes))
    points = _finite("points", _checked("points", points, "M3", float32, sizes))
    values = _checked("values", values, "TMC", float32, sizes)
    check_neighbours(k, len(points))
    result = KnnInterpolation(
        np.empty((sizes["T"], sizes["Q"], sizes["C"]), np.float32),
        np.empty((sizes["Q"], k), np.int32),
        np.empty((sizes["Q"], k), np.float32),
    )
    _call(
        "knn_interpolate",
        _library.KnnInterpolateCall(
            size=ctypes.sizeof(_library.KnnInterpolateCall),
            query_count=sizes["Q"],
            point_count=sizes["M"],
            frames=sizes["T"],
            channels=sizes["C"],
            k=k,
            beta=beta,
            radius_mask=bool(radius_mask),
            queries=queries.ctypes.data,
            points=points.ctypes.data,
            values=values.ctypes.data,
            interpolated=result.values.ctypes.data,
            indices=result.indices.ctypes.data,
            weights=result.weights.ctypes.data,
        ),
        threads,
    )
    return result


def farthest_point_sample(points: NDArray[Any], *, count: int, threads: int = 0) -> NDArray[np.int32]:
    """Chooses `count` points spread as widely as possible (FarthestPointSample in `kernels.ops`).

    Args:
        points: [N, 3] float32, finite.
        count: 1 to N.

    Returns:
        Indices [count]; the first is 0.

    Raises:
        InvalidTensor: a shape or dtype is wrong, or a coordinate is not finite.
        InvalidRequest: count is not in 1..N.
        LibraryNotFound: the native kernels are missing.
    """
    points = _finite("points", _checked("points", points, "N3", (np.dtype(np.float32),), {"3": 3}))
    check_count(count, len(points))
    indices = np.empty(count, np.int32)
    _call(
        "farthest_point_sample",
        _library.FarthestPointSampleCall(
            size=ctypes.sizeof(_library.FarthestPointSampleCall),
            point_count=len(points),
            count=count,
            points=points.ctypes.data,
            indices=indices.ctypes.data,
        ),
        threads,
    )
    return indices


def voxel_neighbours(coords: NDArray[Any], *, resolution: int, threads: int = 0) -> NDArray[np.int32]:
    """Finds the voxels around each voxel (VoxelNeighbours in `kernels.ops`).

    Args:
        coords: [N, 3] int32. A row outside of 0 .. resolution - 1 is no voxel: nobody's neighbour, and without any, so
            that a tensor of a fixed size can hold fewer voxels.
        resolution: cells along a side of the cube, 1 to 256.

    Returns:
        [N, 27]: the voxel at each offset (-1, 0 or 1 in x, y, z; the last runs fastest), -1 where there is none.

    Raises:
        InvalidTensor: a shape or dtype is wrong.
        InvalidRequest: the resolution is not in 1..256.
        LibraryNotFound: the native kernels are missing.
    """
    sizes: dict[str, int] = {"3": 3}
    coords = _checked("coords", coords, "N3", (np.dtype(np.int32),), sizes)
    check_resolution(resolution)
    neighbours = np.empty((len(coords), 27), np.int32)
    call = _library.voxel_neighbours_call(
        sizes, resolution, coords=coords.ctypes.data, neighbours=neighbours.ctypes.data
    )
    _call("voxel_neighbours", call, threads)
    return neighbours


def submanifold_convolution(
    features: NDArray[Any], neighbours: NDArray[Any], weight: NDArray[Any], bias: NDArray[Any], *, threads: int = 0
) -> NDArray[Any]:
    """Convolves voxels with their 27 neighbours (SubmanifoldConvolution in `kernels.ops`).

    Args:
        features: [N, C] float32 or float16, like weight and bias.
        neighbours: [N, 27] int32, of `voxel_neighbours`; -1 counts as zeros.
        weight: [27, C, D].
        bias: [D].

    Returns:
        [N, D] of their dtype; sums are float32.

    Raises:
        InvalidTensor: a shape, dtype or index is wrong.
        LibraryNotFound: the native kernels are missing.
    """
    sizes: dict[str, int] = {"27": 27}
    features = _checked("features", features, "NC", STORED, sizes)
    stored = (features.dtype,)
    neighbours = _checked("neighbours", neighbours, ("N", "27"), (np.dtype(np.int32),), sizes)
    weight = _checked("weight", weight, ("27", "C", "D"), stored, sizes)
    bias = _checked("bias", bias, "D", stored, sizes)
    check_channels("weight", sizes, "C", "D")
    _check_rows("neighbours", neighbours, sizes["N"])
    convolved = np.empty((sizes["N"], sizes["D"]), features.dtype)
    call = _library.submanifold_convolution_call(
        sizes,
        features.dtype.name,
        features=features.ctypes.data,
        neighbours=neighbours.ctypes.data,
        weight=weight.ctypes.data,
        bias=bias.ctypes.data,
        convolved=convolved.ctypes.data,
    )
    _call("submanifold_convolution", call, threads)
    return convolved


def gather_mean(features: NDArray[Any], table: NDArray[Any], *, zeros: int = 0, threads: int = 0) -> NDArray[Any]:
    """Means of the rows that a table names (GatherMean in `kernels.ops`).

    Args:
        features: [N, C] float32 or float16.
        table: [M, K] int32, rows of features; -1: none.
        zeros: that each mean counts beside its rows.

    Returns:
        [M, C] of the features' dtype; sums are float32.

    Raises:
        InvalidTensor: a shape, dtype or index is wrong.
        InvalidRequest: zeros is negative.
        LibraryNotFound: the native kernels are missing.
    """
    sizes: dict[str, int] = {}
    features = _checked("features", features, "NC", STORED, sizes)
    table = _checked("table", table, "MK", (np.dtype(np.int32),), sizes)
    check_channels("features", sizes, "C")
    check_zeros(zeros)
    _check_rows("table", table, sizes["N"])
    means = np.empty((sizes["M"], sizes["C"]), features.dtype)
    addresses = {"features": features.ctypes.data, "table": table.ctypes.data, "means": means.ctypes.data}
    _call("gather_mean", _library.gather_mean_call(sizes, features.dtype.name, zeros, **addresses), threads)
    return means


def window_attention(qkv: NDArray[Any], windows: NDArray[Any], *, threads: int = 0) -> NDArray[Any]:
    """Self-attention among the rows of each window (WindowAttention in `kernels.ops`).

    Args:
        qkv: [N, 3, H, D] float32 or float16: queries, keys and values; D at most 128.
        windows: [W, K] int32, rows of qkv, each at most once; -1 behind a window's last.

    Returns:
        [N, H, D] of qkv's dtype, computed in float32; zeros for a row that is in no window.

    Raises:
        InvalidTensor: a shape, dtype or index is wrong, a row is in several windows, or -1 before another.
        LibraryNotFound: the native kernels are missing.
    """
    sizes: dict[str, int] = {"3": 3}
    qkv = _checked("qkv", qkv, "N3HD", STORED, sizes)
    windows = _checked("windows", windows, "WK", (np.dtype(np.int32),), sizes)
    check_channels("qkv", sizes, "H", "D")
    check_head(sizes["D"])
    _check_rows("windows", windows, sizes["N"])
    _check_windows(windows, sizes["N"])
    attended = np.empty((sizes["N"], sizes["H"], sizes["D"]), qkv.dtype)
    addresses = {"qkv": qkv.ctypes.data, "windows": windows.ctypes.data, "attended": attended.ctypes.data}
    _call("window_attention", _library.window_attention_call(sizes, qkv.dtype.name, **addresses), threads)
    return attended


# ---- checks ---------------------------------------------------------------------------------------------------------


def _checked(
    name: str, array: NDArray[Any], dims: Sequence[str], dtypes: tuple[np.dtype[Any], ...], sizes: dict[str, int]
) -> NDArray[Any]:
    """The array, contiguous, once its dtype is among `dtypes` and its shape agrees with the letters met so far."""
    if not isinstance(array, np.ndarray):
        raise InvalidTensor(
            f"'{name}' is not a NumPy array.", note=f"It is a {type(array).__name__}.", hint="Pass numpy.asarray(...)."
        )
    check_dtype(name, array.dtype, dtypes)
    check_shape(name, array.shape, dims, sizes)
    return np.ascontiguousarray(array)


def _finite(name: str, array: NDArray[Any]) -> NDArray[Any]:
    bad = array.size - np.count_nonzero(np.isfinite(array))
    if bad:
        raise InvalidTensor(f"'{name}' has values that are not finite.", note=f"{bad} of {array.size} are NaN or Inf.")
    return array


def _check_rows(name: str, table: NDArray[Any], count: int) -> None:
    """Every index of the table is -1, or one of so many rows."""
    least, greatest = table.min(initial=-1), table.max(initial=-1)
    if least < -1 or greatest >= count:
        raise InvalidTensor(
            f"'{name}' names rows that do not exist.",
            note=f"It holds {least} to {greatest}; there are {count} rows.",
            hint="Indices begin at 0; -1 stands for none.",
        )


def _check_windows(windows: NDArray[Any], count: int) -> None:
    """Members come before -1, and each of so many rows is in one window at most."""
    exist = windows >= 0
    late = np.flatnonzero((exist[:, 1:] & ~exist[:, :-1]).any(axis=1))
    if len(late):
        raise InvalidTensor(
            "'windows' has a row behind a -1.",
            note=f"{len(late)} windows do, the first is {late[0]}.",
            hint="Give a window's rows first, then -1.",
        )
    again = np.flatnonzero(np.bincount(windows[exist], minlength=count) > 1)
    if len(again):
        raise InvalidTensor(
            "'windows' has a row in several places.",
            note=f"{len(again)} rows are, the first is {again[0]}.",
            hint="A row is in one window at most.",
        )


def _call(operator: str, parameters: ctypes.Structure, threads: int) -> None:
    library = _library.load()
    status = getattr(library, f"edge4d_cpu_{operator}")(ctypes.byref(parameters), threads)
    _library.check(library, operator, status)
