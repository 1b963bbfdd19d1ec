"""KnnInterpolate and FarthestPointSample: the native kernels against their twins."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge4d.kernels import cpu, reference
from edge4d.runtime.errors import InvalidRequest, InvalidTensor

seeds = st.integers(0, 2**32 - 1)


def cloud(rng, count: int, grid: bool) -> np.ndarray:
    """Points; on a coarse grid many distances are equal."""
    points = rng.integers(-2, 3, (count, 3)) if grid else rng.normal(size=(count, 3))
    return points.astype(np.float32)


@settings(max_examples=50, deadline=None)
@given(seed=seeds, k=st.integers(1, 16), extra=st.integers(0, 60), grid=st.booleans(), radius_mask=st.booleans())
def test_neighbours_are_those_of_the_twin(seed, k, extra, grid, radius_mask) -> None:
    rng = np.random.default_rng(seed)
    queries, points = cloud(rng, 20, grid), cloud(rng, k + extra, grid)
    values = rng.normal(size=(2, k + extra, 3)).astype(np.float32)
    ours = cpu.knn_interpolate(queries, points, values, k=k, radius_mask=radius_mask)
    twin = reference.knn_interpolate(queries, points, values, k=k, radius_mask=radius_mask)
    np.testing.assert_array_equal(ours.indices, twin.indices)
    # Both compute in float64 and store float32: half a unit in the last place of values near 1 to 4, and a little.
    np.testing.assert_allclose(ours.weights, twin.weights, atol=1e-6)
    np.testing.assert_allclose(ours.values, twin.values, atol=1e-6)


def test_neighbours_far_from_the_origin_are_exact() -> None:
    # Differences of a few roundings of the coordinates: a squared distance from |p|^2 - 2 p q would be noise.
    rng = np.random.default_rng(1)
    points = (1000 + rng.normal(size=(500, 3)) * 0.01).astype(np.float32)
    values = np.zeros((1, 500, 1), np.float32)
    ours = cpu.knn_interpolate(points[:50], points, values)
    np.testing.assert_array_equal(ours.indices, reference.knn_interpolate(points[:50], points, values).indices)


@pytest.mark.parametrize("shape", [(0, 9, 2, 3), (5, 9, 0, 3), (5, 9, 2, 0), (1, 8, 1, 1), (200, 9, 1, 1)])
def test_any_number_of_queries_frames_and_channels(shape) -> None:
    queries, points, frames, channels = shape
    rng = np.random.default_rng(2)
    values = rng.normal(size=(frames, points, channels)).astype(np.float32)
    arguments = (cloud(rng, queries, False), cloud(rng, points, False), values)
    ours, twin = cpu.knn_interpolate(*arguments), reference.knn_interpolate(*arguments)
    assert ours.values.shape == twin.values.shape == (frames, queries, channels)
    np.testing.assert_allclose(ours.values, twin.values, atol=1e-6)


def test_threads_do_not_change_a_bit() -> None:
    rng = np.random.default_rng(3)
    arguments = (cloud(rng, 500, False), cloud(rng, 300, True), rng.normal(size=(1, 300, 3)).astype(np.float32))
    for one, other in zip(cpu.knn_interpolate(*arguments, threads=1), cpu.knn_interpolate(*arguments, threads=3)):
        np.testing.assert_array_equal(one, other)


def test_bad_neighbour_requests_are_refused() -> None:
    points, values = np.zeros((4, 3), np.float32), np.zeros((1, 4, 1), np.float32)
    with pytest.raises(InvalidTensor, match="4 points, k is 5"):
        cpu.knn_interpolate(points, points, values, k=5)
    for k in (0, 17):
        with pytest.raises(InvalidRequest, match=f"k is {k}"):
            cpu.knn_interpolate(points, points, values, k=k)
    with pytest.raises(InvalidTensor, match="'values' has the wrong shape"):
        cpu.knn_interpolate(points, points, values[:, :3], k=2)
    with pytest.raises(InvalidTensor, match="'queries' has values that are not finite"):
        cpu.knn_interpolate(points * np.nan, points, values, k=2)


@settings(max_examples=50, deadline=None)
@given(seed=seeds, count=st.integers(1, 200), grid=st.booleans(), share=st.floats(0, 1))
def test_farthest_points_are_those_of_the_twin(seed, count, grid, share) -> None:
    points = cloud(np.random.default_rng(seed), count, grid)
    chosen = max(1, round(share * count))
    ours = cpu.farthest_point_sample(points, count=chosen)
    np.testing.assert_array_equal(ours, reference.farthest_point_sample(points, count=chosen))


def test_farthest_points_over_several_threads() -> None:
    points = cloud(np.random.default_rng(4), 70000, False)
    expected = reference.farthest_point_sample(points, count=20)
    for threads in (1, 2, 4):
        np.testing.assert_array_equal(cpu.farthest_point_sample(points, count=20, threads=threads), expected)


def test_bad_sample_requests_are_refused() -> None:
    points = np.zeros((4, 3), np.float32)
    for count in (0, 5):
        with pytest.raises(InvalidRequest, match=f"count is {count}; there are 4"):
            cpu.farthest_point_sample(points, count=count)
    with pytest.raises(InvalidTensor, match="not finite"):
        cpu.farthest_point_sample(points + np.inf, count=1)
