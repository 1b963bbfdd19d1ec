"""The operators on the CPU: NumPy arrays in and out, native kernels between.

Everything is checked here, once; the library is found and loaded by the first call. The functions release the
interpreter lock, keep nothing between calls, and may be called from several threads. `threads=0` uses every core that
the process may use; the results do not depend on it.
"""

from __future__ import annotations

import ctypes
from typing import Any, Union

import numpy as np
from numpy.typing import DTypeLike, NDArray

from edge4d.kernels import _library
from edge4d.kernels.ops import ALPHA, DEPTH, IMAGE
from edge4d.kernels.reference import KnnInterpolation, Rasterization
from edge4d.runtime.errors import InvalidCamera, InvalidRequest, InvalidTensor, PairOverflow

_STORED = (np.dtype(np.float32), np.dtype(np.float16))
_SMALL = (np.dtype(np.float32), np.dtype(np.float64))  # cameras and backgrounds: converted, they are few numbers
_RIGID = 1e-3  # how far R R^T may be from 1: a pose written with four decimals still passes
_K_MAX = 16
_INT32_MAX = 2**31 - 1


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
    means = _checked("means", means, "BN3", _STORED, sizes)
    stored = (means.dtype,)
    quats = _checked("quats", quats, "BN4", stored, sizes)
    scales = _checked("scales", scales, "BN3", stored, sizes)
    opacities = _checked("opacities", opacities, "BN", stored, sizes)
    colors = _checked("colors", colors, "BNC" if sh_degree < 0 else "BNK3", stored, sizes)
    viewmats = _checked("viewmats", viewmats, "BV44", _SMALL, sizes)
    Ks = _checked("Ks", Ks, "BV33", _SMALL, sizes)
    channels = sizes.setdefault("C", 3)
    background = _checked("background", background, "C", _SMALL, sizes)
    _check_attributes(width, height, near, far, eps2d, compensation_floor, alpha_max, max_pairs, outputs, out_dtype)
    _check_sh(sh_degree, sizes.get("K", 0))
    _check_cameras(viewmats, Ks)

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
        _library.GaussianRasterizeCall(
            size=ctypes.sizeof(_library.GaussianRasterizeCall),
            batch=sizes["B"],
            cameras=sizes["V"],
            gaussians=sizes["N"],
            channels=channels,
            coefficients=sizes.get("K", 0),
            dtype=_library.DTYPES[means.dtype.name],
            width=width,
            height=height,
            near=near,
            far=far,
            eps2d=eps2d,
            antialiased=bool(antialiased),
            compensation_floor=compensation_floor,
            alpha_max=alpha_max,
            sh_degree=sh_degree,
            max_pairs=max_pairs,
            outputs=outputs,
            out_dtype=_library.DTYPES[out_dtype],
            fast=bool(fast),
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
    if not 1 <= k <= _K_MAX:
        raise InvalidRequest("The number of neighbours cannot be used.", note=f"k is {k}; allowed: 1 to {_K_MAX}.")
    if k > len(points):
        raise InvalidTensor(
            "There are fewer points than neighbours.",
            note=f"{len(points)} points, k is {k}.",
            hint="Give more points, or a smaller k.",
        )
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
    if not 1 <= count <= len(points):
        raise InvalidRequest(
            "That many points cannot be chosen.",
            note=f"count is {count}; there are {len(points)} points.",
            hint="Ask for at least 1 and at most all of them.",
        )
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


# ---- checks ---------------------------------------------------------------------------------------------------------


def _checked(
    name: str, array: NDArray[Any], dims: str, dtypes: tuple[DTypeLike, ...], sizes: dict[str, int]
) -> NDArray[Any]:
    """The array, contiguous, once its dtype is among `dtypes` and its shape agrees with the letters met so far."""
    if not isinstance(array, np.ndarray):
        raise InvalidTensor(
            f"'{name}' is not a NumPy array.", note=f"It is a {type(array).__name__}.", hint="Pass numpy.asarray(...)."
        )
    if array.dtype not in dtypes:
        raise InvalidTensor(
            f"'{name}' has the wrong dtype.",
            note=f"It is {array.dtype}; allowed here: {', '.join(str(dtype) for dtype in dtypes)}.",
            hint=f"Convert it: {name}.astype(...). Means, quats, scales, opacities and colors share one dtype.",
        )
    expected = [sizes.get(letter) for letter in dims]
    if array.ndim != len(dims) or any(e is not None and e != n for e, n in zip(expected, array.shape)):
        wanted = ", ".join(letter if e is None else str(e) for letter, e in zip(dims, expected))
        raise InvalidTensor(
            f"'{name}' has the wrong shape.",
            note=f"It is {list(array.shape)}; expected [{wanted}], that is [{', '.join(dims)}].",
            hint="The letters stand for the same size in all of a call's tensors.",
        )
    for letter, size in zip(dims, array.shape):
        if size > _INT32_MAX:
            raise InvalidTensor(f"'{name}' is too large.", note=f"{letter} is {size}; at most {_INT32_MAX}.")
        sizes[letter] = size
    return np.ascontiguousarray(array)


def _finite(name: str, array: NDArray[Any]) -> NDArray[Any]:
    bad = array.size - np.count_nonzero(np.isfinite(array))
    if bad:
        raise InvalidTensor(f"'{name}' has values that are not finite.", note=f"{bad} of {array.size} are NaN or Inf.")
    return array


def _check_attributes(
    width: int,
    height: int,
    near: float,
    far: float,
    eps2d: float,
    compensation_floor: float,
    alpha_max: float,
    max_pairs: int,
    outputs: int,
    out_dtype: str,
) -> None:
    def require(holds: bool, allowed: str, **values: Union[int, float, str]) -> None:
        if not holds:
            given = ", ".join(f"{name} is {value}" for name, value in values.items())
            raise InvalidRequest("The Gaussians cannot be drawn like that.", note=f"{given}; allowed: {allowed}.")

    require(1 <= width <= _INT32_MAX and 1 <= height <= _INT32_MAX, "1 pixel or more", width=width, height=height)
    require(0 < near <= far < float("inf"), "0 < near <= far", near=near, far=far)
    require(0 <= eps2d < float("inf"), "0 or more", eps2d=eps2d)
    require(0 <= compensation_floor <= 1, "0 to 1", compensation_floor=compensation_floor)
    require(0 < alpha_max <= 1, "above 0, at most 1", alpha_max=alpha_max)
    require(0 <= max_pairs <= _INT32_MAX, "0 to 2**31 - 1", max_pairs=max_pairs)
    require(0 <= outputs <= IMAGE | ALPHA | DEPTH, "a sum of 1 image, 2 alpha, 4 depth", outputs=outputs)
    require(out_dtype in _library.DTYPES, ", ".join(_library.DTYPES), out_dtype=out_dtype)


def _check_sh(degree: int, coefficients: int) -> None:
    if not -1 <= degree <= 3:
        raise InvalidRequest(
            "There are no spherical harmonics of that degree here.",
            note=f"sh_degree is {degree}; allowed: 0 to 3, or -1 for colours as they are.",
        )
    if degree >= 0 and coefficients < (degree + 1) ** 2:
        raise InvalidTensor(
            "'colors' has too few coefficients.",
            note=f"K is {coefficients}; sh_degree {degree} needs {(degree + 1) ** 2}.",
            hint="Give all coefficients, or a lower sh_degree.",
        )


def _check_cameras(viewmats: NDArray[Any], Ks: NDArray[Any]) -> None:
    matrices = viewmats.reshape(-1, 4, 4).astype(np.float64)
    intrinsics = Ks.reshape(-1, 3, 3).astype(np.float64)
    rotations = matrices[:, :3, :3]
    with np.errstate(all="ignore"):  # what is not finite fails the comparisons
        drift = np.abs(rotations @ rotations.swapaxes(1, 2) - np.eye(3)).max(axis=(1, 2), initial=0)
        rigid = (drift < _RIGID) & (np.linalg.det(rotations) > 0) & np.isfinite(matrices).all(axis=(1, 2))
    for camera in np.flatnonzero(~rigid | (matrices[:, 3] != [0, 0, 0, 1]).any(axis=1)):
        raise InvalidCamera(
            "A camera's pose is not rigid.",
            note=f"viewmats number {camera} is {matrices[camera].round(6).tolist()}; R R^T differs from 1 by "
            f"{drift[camera]:.3g}, allowed: {_RIGID}; the last row must be 0 0 0 1 and det R positive.",
            hint="Pass world-to-camera matrices [R t; 0 1] without scale or mirroring.",
        )
    focal_lengths = intrinsics[:, (0, 1), (0, 1)]
    usable = np.isfinite(intrinsics).all(axis=(1, 2)) & (focal_lengths > 0).all(axis=1)
    plain = (intrinsics[:, (0, 1, 2, 2, 2), (1, 0, 0, 1, 2)] == [0, 0, 0, 0, 1]).all(axis=1)
    for camera in np.flatnonzero(~(usable & plain)):
        raise InvalidCamera(
            "A camera's intrinsics cannot be used.",
            note=f"Ks number {camera} is {intrinsics[camera].tolist()}; expected [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] "
            "with fx and fy above 0.",
            hint="Give focal lengths and principal point in pixels of the image's size.",
        )


def _call(operator: str, parameters: ctypes.Structure, threads: int) -> None:
    library = _library.load()
    status = getattr(library, f"edge4d_cpu_{operator}")(ctypes.byref(parameters), threads)
    if status == _library.OK:
        return
    message = library.edge4d_last_error().decode()
    if status == _library.OUT_OF_MEMORY:
        raise MemoryError(f"{operator}: {message}")
    if status == _library.TOO_MANY_PAIRS:
        raise PairOverflow("The Gaussians cover too much of the image.", note=message, hint="Draw a smaller image.")
    raise InvalidRequest(f"The kernel refused {operator}.", note=message)
