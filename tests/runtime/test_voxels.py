"""Tables of voxels against dictionaries of coordinates."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge4d.runtime.voxels import coarse, neighbours, voxels_from_logits, windows

RESOLUTION = 8


def scattered(share: float = 0.3, seed: int = 0) -> np.ndarray:
    """Voxels in an order without meaning, some of them at the border."""
    rng = np.random.default_rng(seed)
    return rng.permutation(np.argwhere(rng.random((RESOLUTION,) * 3) < share)).astype(np.int32)


def test_voxels_are_where_logits_are_positive():
    logits = np.full((4, 4, 4), -1.0)
    logits[3, 0, 2], logits[0, 1, 3], logits[1, 1, 1] = 0.5, 2.0, 0.0
    found = voxels_from_logits(logits)
    assert found.dtype == np.int32
    assert found.tolist() == [[0, 1, 3], [3, 0, 2]]


def test_neighbours_are_those_of_a_dictionary():
    coords = scattered()
    index = {tuple(cell): i for i, cell in enumerate(coords.tolist())}
    expected = [
        [index.get((x + dx, y + dy, z + dz), -1) for dx, dy, dz in product((-1, 0, 1), repeat=3)]
        for x, y, z in coords.tolist()
    ]
    found = neighbours(coords, RESOLUTION)
    assert found.dtype == np.int32
    assert found.tolist() == expected
    assert found[:, 13].tolist() == list(range(len(coords)))


def test_coarse_voxels_have_their_children():
    coords = scattered()
    found = coarse(coords, RESOLUTION)
    assert [array.dtype.name for array in found] == ["int32"] * 3
    above = sorted({tuple(cell) for cell in (coords // 2).tolist()})
    assert [tuple(cell) for cell in found.coords.tolist()] == above
    assert [above[parent] for parent in found.parents] == [tuple(cell) for cell in (coords // 2).tolist()]
    index = {tuple(cell): i for i, cell in enumerate(coords.tolist())}
    for (x, y, z), children in zip(above, found.children.tolist()):
        assert children == [index.get((2 * x + i, 2 * y + j, 2 * z + k), -1) for i, j, k in product((0, 1), repeat=3)]


@pytest.mark.parametrize("shift", [0, 2])
def test_windows_hold_every_voxel_once_with_those_of_its_cube(shift):
    coords = scattered()
    found = windows(coords, 4, shift)
    cubes: dict[tuple[int, ...], list[int]] = {}
    for i, cell in enumerate(coords.tolist()):
        cubes.setdefault(tuple((value + shift) // 4 for value in cell), []).append(i)
    assert found.dtype == np.int32
    assert found.shape == (len(cubes), max(map(len, cubes.values())))
    rows = [[voxel for voxel in row if voxel >= 0] for row in found.tolist()]
    assert rows == [cubes[cube] for cube in sorted(cubes)]


cells = st.tuples(*[st.integers(0, RESOLUTION - 1)] * 3)


@settings(deadline=None)
@given(st.sets(cells, min_size=1, max_size=60), st.integers(0, 3))
def test_tables_of_any_voxels_agree_with_each_other(voxels, shift):
    """Neighbours are neighbours of each other, children of their parents, and each voxel is in one window."""
    coords = np.array(sorted(voxels), np.int32)
    near = neighbours(coords, RESOLUTION)
    for column in range(27):
        rows = np.flatnonzero(near[:, column] >= 0)
        np.testing.assert_array_equal(near[near[rows, column], 26 - column], rows)
    above = coarse(coords, RESOLUTION)
    for parent, children in enumerate(above.children):
        assert set(above.parents[children[children >= 0]].tolist()) == {parent}
    table = windows(coords, 4, shift)
    assert sorted(table[table >= 0].tolist()) == list(range(len(coords)))
    assert all(len({tuple(cube) for cube in ((coords[row[row >= 0]] + shift) // 4).tolist()}) == 1 for row in table)


def test_a_single_voxel_and_none():
    one = np.array([[7, 0, 7]], np.int32)
    assert neighbours(one, RESOLUTION).tolist() == [[-1] * 13 + [0] + [-1] * 13]
    assert coarse(one, RESOLUTION).children.tolist() == [[-1] * 5 + [0] + [-1] * 2]
    assert windows(one, 4).tolist() == [[0]]
    none = np.empty((0, 3), np.int32)
    assert neighbours(none, RESOLUTION).shape == (0, 27)
    assert coarse(none, RESOLUTION).children.shape == (0, 8)
    assert windows(none, 4).size == 0
