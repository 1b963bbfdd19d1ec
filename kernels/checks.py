"""What both native faces check of a call, wherever its tensors lie: dtypes, shapes, attributes and cameras."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge4d.kernels._library import DTYPES, RasterizeAttributes
from edge4d.kernels.ops import ALPHA, DEPTH, IMAGE
from edge4d.runtime.errors import InvalidCamera, InvalidRequest, InvalidTensor

STORED = (np.dtype(np.float32), np.dtype(np.float16))
K_MAX = 16
RESOLUTION_MAX = 256
HEAD_CHANNELS_MAX = 128
INT32_MAX = 2**31 - 1
_RIGID = 1e-3  # how far R R^T may be from 1: a pose written with four decimals still passes


def check_dtype(name: str, dtype: np.dtype[Any], dtypes: Sequence[np.dtype[Any]]) -> None:
    if dtype not in dtypes:
        raise InvalidTensor(
            f"'{name}' has the wrong dtype.",
            note=f"It is {dtype}; allowed here: {', '.join(str(dtype) for dtype in dtypes)}.",
            hint=f"Convert it: {name}.astype(...). Means, quats, scales, opacities and colors share one dtype.",
        )


def check_shape(name: str, shape: Sequence[int], dims: Sequence[str], sizes: dict[str, int]) -> None:
    """The shape has one size per letter of `dims`: the one in `sizes`, or a new one that is noted there."""
    known, agrees = sizes.copy(), len(shape) == len(dims)
    for letter, size in zip(dims, shape):  # a loop, for this is most of what a call on the GPU costs the host
        if sizes.setdefault(letter, size) != size:
            agrees = False
    if not agrees:
        wanted = ", ".join(str(known.get(letter, letter)) for letter in dims)
        raise InvalidTensor(
            f"'{name}' has the wrong shape.",
            note=f"It is {list(shape)}; expected [{wanted}], that is [{', '.join(dims)}].",
            hint="The letters stand for the same size in all of a call's tensors.",
        )
    if shape and max(shape) > INT32_MAX:
        raise InvalidTensor(f"'{name}' is too large.", note=f"It is {list(shape)}; a side has at most {INT32_MAX}.")


def check_attributes(attributes: RasterizeAttributes) -> None:
    """All but `sh_degree`, which `check_sh` looks at."""

    def require(holds: bool, allowed: str, *names: str) -> None:
        if not holds:
            given = ", ".join(f"{name} is {getattr(attributes, name)}" for name in names)
            raise InvalidRequest("The Gaussians cannot be drawn like that.", note=f"{given}; allowed: {allowed}.")

    a = attributes
    require(1 <= a.width <= INT32_MAX and 1 <= a.height <= INT32_MAX, "1 pixel or more", "width", "height")
    require(0 < a.near <= a.far < float("inf"), "0 < near <= far", "near", "far")
    require(0 <= a.eps2d < float("inf"), "0 or more", "eps2d")
    require(0 <= a.compensation_floor <= 1, "0 to 1", "compensation_floor")
    require(0 < a.alpha_max <= 1, "above 0, at most 1", "alpha_max")
    require(0 <= a.max_pairs <= INT32_MAX, "0 to 2**31 - 1", "max_pairs")
    require(0 <= a.outputs <= IMAGE | ALPHA | DEPTH, "a sum of 1 image, 2 alpha, 4 depth", "outputs")
    require(a.out_dtype in DTYPES, ", ".join(DTYPES), "out_dtype")


def check_sh(degree: int, coefficients: int) -> None:
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


def check_cameras(viewmats: NDArray[Any], Ks: NDArray[Any]) -> None:
    """Poses [..., 4, 4] are rigid, intrinsics [..., 3, 3] those of pinhole cameras without skew."""
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


def check_neighbours(k: int, points: int) -> None:
    if not 1 <= k <= K_MAX:
        raise InvalidRequest("The number of neighbours cannot be used.", note=f"k is {k}; allowed: 1 to {K_MAX}.")
    if k > points:
        raise InvalidTensor(
            "There are fewer points than neighbours.",
            note=f"{points} points, k is {k}.",
            hint="Give more points, or a smaller k.",
        )


def check_count(count: int, points: int) -> None:
    if not 1 <= count <= points:
        raise InvalidRequest(
            "That many points cannot be chosen.",
            note=f"count is {count}; there are {points} points.",
            hint="Ask for at least 1 and at most all of them.",
        )


def check_resolution(resolution: int) -> None:
    if not 1 <= resolution <= RESOLUTION_MAX:
        raise InvalidRequest(
            "The voxels' grid cannot have that size.",
            note=f"resolution is {resolution}; allowed: 1 to {RESOLUTION_MAX} cells along a side.",
        )


def check_zeros(zeros: int) -> None:
    if not 0 <= zeros <= INT32_MAX:
        raise InvalidRequest("A mean cannot count that many zeros.", note=f"zeros is {zeros}; allowed: 0 or more.")


def check_channels(name: str, sizes: Mapping[str, int], *letters: str) -> None:
    """None of these sizes is 0."""
    for letter in letters:
        if sizes[letter] == 0:
            raise InvalidTensor(f"'{name}' has no channels.", note=f"{letter} is 0.")


def check_head(channels: int) -> None:
    if channels > HEAD_CHANNELS_MAX:
        raise InvalidTensor(
            "A head has too many channels.",
            note=f"D is {channels}; allowed: 1 to {HEAD_CHANNELS_MAX}.",
            hint="Use more heads of fewer channels.",
        )
