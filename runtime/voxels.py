"""Occupied voxels of a grid and who is near whom: tables of indices that sparse networks gather by.

Voxels are rows of `coords` [V,3] int32: x, y, z within a cube of `resolution` cells a side, none twice. Tables are
int32; -1 stands where there is no voxel.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Int32Array = NDArray[np.int32]


class Coarse(NamedTuple):
    """Voxels of half the resolution, and how they belong to the fine ones.

    Attributes:
        coords: [P,3] in order of x, then y, then z.
        parents: [V] the coarse voxel that each fine one lies in.
        children: [P,8] the fine voxels in each coarse one, in order of x, then y, then z within it.
    """

    coords: Int32Array
    parents: Int32Array
    children: Int32Array


def voxels_from_logits(logits: NDArray[Any]) -> Int32Array:
    """The cells [V,3] of a grid [R,R,R] whose logit is above 0, in order of x, then y, then z."""
    return np.argwhere(logits > 0).astype(np.int32)


def neighbours(coords: Int32Array, resolution: int) -> Int32Array:
    """[V,27]: the voxel at each offset (-1, 0 or 1 in x, y, z; the last runs fastest), 13 being the voxel itself."""
    side = resolution + 2  # a border of empty cells, so that no neighbour is outside
    index = np.full(side**3, -1, np.int32)
    codes = _codes(coords + 1, side)
    index[codes] = np.arange(len(coords), dtype=np.int32)
    offsets = _codes(np.stack(np.meshgrid(*[np.arange(-1, 2)] * 3, indexing="ij"), axis=-1).reshape(27, 3), side)
    near: Int32Array = index[codes[:, None] + offsets]
    return near


def coarse(coords: Int32Array, resolution: int) -> Coarse:
    """The voxels of a grid of half the resolution that have voxels in them."""
    side = resolution // 2
    codes, parents = np.unique(_codes(coords // 2, side), return_inverse=True)
    children = np.full((len(codes), 8), -1, np.int32)
    children[parents, _codes(coords % 2, 2)] = np.arange(len(coords))
    above = np.stack(np.unravel_index(codes, (side,) * 3), axis=-1).reshape(-1, 3)
    return Coarse(above.astype(np.int32), parents.reshape(-1).astype(np.int32), children)


def windows(coords: Int32Array, size: int, shift: int = 0) -> Int32Array:
    """[W,K]: the voxels in each occupied cube of `size` cells a side, after a shift along all axes.

    K are in the fullest; the others end in -1.
    """
    cubes = (coords + shift) // size
    _, cube = np.unique(_codes(cubes, int(cubes.max(initial=0)) + 1), return_inverse=True)
    cube = cube.reshape(-1)
    counts = np.bincount(cube)
    order = np.argsort(cube, kind="stable")
    rank = np.arange(len(coords)) - np.repeat(np.cumsum(counts) - counts, counts)
    table = np.full((len(counts), counts.max(initial=0)), -1, np.int32)
    table[cube[order], rank] = order
    return table


def _codes(coords: NDArray[Any], side: int) -> NDArray[np.int64]:
    """One number per cell [...,3] → [...]: x, y and z to the base `side`."""
    codes: NDArray[np.int64] = coords.astype(np.int64) @ np.array([side * side, side, 1])
    return codes
