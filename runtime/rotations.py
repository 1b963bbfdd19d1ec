"""Rotations as vectors, quaternions (wxyz) and matrices. Everything is float64 and works on any leading shape."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]


def quats_from_rotvecs(rotvecs: ArrayLike) -> FloatArray:
    """Unit quaternions [..., 4] that turn by |rotvec| radians about rotvec [..., 3]."""
    rotvecs = np.asarray(rotvecs, np.float64)
    half = 0.5 * np.linalg.norm(rotvecs, axis=-1, keepdims=True)
    # np.sinc(x) is sin(pi x) / (pi x): the division by a zero angle never happens.
    return np.concatenate([np.cos(half), 0.5 * np.sinc(half / np.pi) * rotvecs], axis=-1)


def rotvecs_from_quats(quats: ArrayLike) -> FloatArray:
    """Rotation vectors [..., 3] of at most pi radians from quaternions [..., 4] of any length but zero."""
    quats = np.asarray(quats, np.float64)
    quats = np.where(quats[..., :1] < 0.0, -quats, quats)
    w, xyz = quats[..., :1], quats[..., 1:]
    sine = np.linalg.norm(xyz, axis=-1, keepdims=True)
    angle = 2.0 * np.arctan2(sine, w)
    # Below the smallest normal number the angle is 2 sine / w, so the ratio is 2 / w.
    small = sine < np.finfo(np.float64).tiny
    return xyz * np.where(small, 2.0 / np.where(small, w, 1.0), angle / np.where(small, 1.0, sine))


def rotations_from_quats(quats: ArrayLike) -> FloatArray:
    """Rotation matrices [..., 3, 3] from quaternions [..., 4] of any length but zero."""
    quats = np.asarray(quats, np.float64)
    w, x, y, z = np.moveaxis(quats / np.linalg.norm(quats, axis=-1, keepdims=True), -1, 0)
    rows = [
        [1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y - w * z), 2.0 * (x * z + w * y)],
        [2.0 * (x * y + w * z), 1.0 - 2.0 * (x * x + z * z), 2.0 * (y * z - w * x)],
        [2.0 * (x * z - w * y), 2.0 * (y * z + w * x), 1.0 - 2.0 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def quat_from_rotation(rotation: ArrayLike) -> FloatArray:
    """The unit quaternion [4] with w >= 0 of a rotation matrix [3, 3].

    The matrix determines 4 q qT entry by entry; any of its rows is q up to a factor, and the row with the largest
    diagonal entry loses no digits.
    """
    r = np.asarray(rotation, np.float64)
    w, x, y, z = r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1], np.trace(r)
    outer = np.array(
        [
            [1.0 + z, w, x, y],
            [w, 1.0 - z + 2.0 * r[0, 0], r[1, 0] + r[0, 1], r[0, 2] + r[2, 0]],
            [x, r[1, 0] + r[0, 1], 1.0 - z + 2.0 * r[1, 1], r[2, 1] + r[1, 2]],
            [y, r[0, 2] + r[2, 0], r[2, 1] + r[1, 2], 1.0 - z + 2.0 * r[2, 2]],
        ]
    )
    row = outer[int(np.argmax(np.diag(outer)))]
    quat: FloatArray = row / np.linalg.norm(row)
    return -quat if quat[0] < 0.0 else quat


def left_multiplications(quats: ArrayLike) -> FloatArray:
    """Matrices [..., 4, 4] with L(a) @ b = a times b, for quaternions a [..., 4]."""
    w, x, y, z = np.moveaxis(np.asarray(quats, np.float64), -1, 0)
    rows = [[w, -x, -y, -z], [x, w, -z, y], [y, z, w, -x], [z, -y, x, w]]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def multiply_quats(a: ArrayLike, b: ArrayLike) -> FloatArray:
    """The quaternion product a times b [..., 4]: first the rotation b, then a."""
    product: FloatArray = (left_multiplications(a) @ np.asarray(b, np.float64)[..., None])[..., 0]
    return product


def nearest_rotation(matrix: ArrayLike) -> FloatArray:
    """The rotation [3, 3] closest to a matrix [3, 3] in the Frobenius norm (by its singular value decomposition)."""
    u, _, vt = np.linalg.svd(np.asarray(matrix, np.float64))
    u[:, 2] *= np.linalg.det(u @ vt)
    rotation: FloatArray = u @ vt
    return rotation
