"""Voxels, tables and tensors for the tests of the sparse operators, and how far from the twins results may be."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

STORED = ("float32", "float16")


class Convolution(NamedTuple):
    """Inputs of SubmanifoldConvolution."""

    features: NDArray[Any]
    neighbours: NDArray[np.int32]
    weight: NDArray[Any]
    bias: NDArray[Any]


def sphere(resolution: int) -> NDArray[np.int32]:
    """The voxels of a sphere's surface: what objects are like, each with half a dozen to a dozen neighbours."""
    cells = np.stack(np.meshgrid(*[np.arange(resolution)] * 3, indexing="ij"), axis=-1) + 0.5 - resolution / 2
    return np.argwhere(np.abs(np.linalg.norm(cells, axis=-1) - 0.4 * resolution) < 0.6).astype(np.int32)


def scattered(seed: int, resolution: int, count: int) -> NDArray[np.int32]:
    """So many voxels, none twice, in no order; a fifth of the rows are no voxels."""
    rng = np.random.default_rng(seed)
    cells = rng.choice(resolution**3, count, replace=False)
    coords = np.stack(np.unravel_index(cells, (resolution,) * 3), axis=-1).astype(np.int32)
    coords[rng.random(count) < 0.2] = rng.choice([-1, resolution, 2**31 - 1, -(2**31)])
    return coords


def convolution(seed: int, near: NDArray[np.int32], inputs: int, outputs: int, dtype: str) -> Convolution:
    """Features and sums near 1, as between layers, at voxels with these neighbours."""
    rng = np.random.default_rng(seed)
    return Convolution(
        rng.normal(size=(len(near), inputs)).astype(dtype),
        near,
        (rng.normal(size=(27, inputs, outputs)) / np.sqrt(9 * inputs)).astype(dtype),
        rng.normal(size=outputs).astype(dtype),
    )


def window_table(seed: int, lengths: list[int], spare: int, width: int) -> NDArray[np.int32]:
    """Windows of these lengths over their rows and some that are in none, in random order; at least so wide."""
    rows = np.random.default_rng(seed).permutation(sum(lengths) + spare).astype(np.int32)
    table = np.full((len(lengths), max([width, *lengths])), -1, np.int32)
    begin = 0
    for window, length in zip(table, lengths):
        window[:length] = rows[begin : begin + length]
        begin += length
    return table


def qkv_of(seed: int, rows: int, heads: int, channels: int, dtype: str) -> NDArray[Any]:
    return np.random.default_rng(seed).normal(size=(rows, 3, heads, channels)).astype(dtype)


def assert_near(ours: NDArray[Any], twin: NDArray[Any], summands: int) -> None:
    """Both hold sums of so many products near 1; the twin's are float64.

    Float32 sums err by 6e-8 of what they have grown to at each step, and steps that err at random by its root times
    that: 4 is for the worst of a million. Float16 rounds the result to 11 bits, half of the last one each.
    """
    assert ours.dtype == twin.dtype
    rounding = 2**-10 if ours.dtype == np.float16 else 0.0
    tolerance = 4 * 6e-8 * np.sqrt(summands) * max(1.0, float(np.abs(twin).max(initial=0)))
    np.testing.assert_allclose(ours.astype(np.float64), twin.astype(np.float64), rtol=rounding, atol=tolerance)
