"""KnnInterpolate and FarthestPointSample on the GPU against the CPU kernels, which are held to the twins.

The tests named sanitize are small and use plain memory of the exact sizes, for compute-sanitizer:

    compute-sanitizer --tool racecheck --error-exitcode 9 python -P -m pytest -m gpu -k sanitize tests/kernels
"""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from cuda_scenes import Work
from hypothesis import given, settings
from hypothesis import strategies as st

from edge4d.kernels import cpu, reference
from edge4d.kernels.reference import KnnInterpolation
from edge4d.runtime.errors import CudaError, InvalidRequest

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("device")]

FLOAT32, INT32 = np.dtype(np.float32), np.dtype(np.int32)


def knn_work(queries, points, values, *, k=8, fill=0xFF, **attributes) -> Work:
    from edge4d.kernels import cuda

    (frames, count, channels), sizes = values.shape, (len(queries), k)

    def launch(inputs, outputs, workspace, stream) -> None:
        out = KnnInterpolation(*outputs)
        cuda.knn_interpolate(*inputs, out=out, workspace=workspace, stream=stream, k=k, **attributes)

    nbytes = cuda.knn_interpolate_workspace(queries=len(queries), points=count, frames=frames, channels=channels, k=k)
    outputs = [((frames, len(queries), channels), FLOAT32), (sizes, INT32), (sizes, FLOAT32)]
    return Work((queries, points, values), outputs, nbytes, launch, fill)


def fps_work(points, count, fill=0xFF) -> Work:
    from edge4d.kernels import cuda

    def launch(inputs, outputs, workspace, stream) -> None:
        cuda.farthest_point_sample(*inputs, count=count, out=outputs[0], workspace=workspace, stream=stream)

    nbytes = cuda.farthest_point_sample_workspace(points=len(points), count=count)
    return Work((points,), [((count,), INT32)], nbytes, launch, fill)


def cloud(seed: int, count: int, kind: str = "normal") -> np.ndarray:
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(count, 3))
    if kind == "grid":  # many distances are equal
        points = np.round(2 * points)
    if kind == "one place":
        points[:] = 1, 2, 3
    if kind == "five places":
        points = rng.integers(0, 5, (count, 1)) * [1.0, -2.0, 5.0]
    if kind == "clusters":  # sizes from millimetres to hundreds of metres
        points = points * np.exp(2 * rng.normal(size=(count, 1))) + 50 * rng.integers(-2, 3, (count, 1))
        points[::3] = points[0] + 1e-3 * points[::3]
    if kind == "plane":
        points[:, 0] = 3
    if kind == "line":
        points[:, 1:] = 3
    if kind == "far":  # differences of a few roundings of the coordinates
        points = 1000 + 0.01 * points
    if kind == "huge":  # squares overflow float32
        points = points * 1e30
    if kind == "tiny":  # squares vanish in float32
        points = points * 1e-30
    if kind == "limits":  # differences overflow float32
        points = np.sign(points) * 3.3e38
    return points.astype(np.float32)


KINDS = (
    "normal",
    "grid",
    "plane",
    "line",
    "far",
    "huge",
    "tiny",
    "limits",
    "clusters",
    "one place",
    "five places",
)


# ---- KnnInterpolate -------------------------------------------------------------------------------------------------


def values_of(seed: int, frames: int, points: int, channels: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(frames, points, channels)).astype(np.float32)


def assert_neighbours(ours, expected, values) -> None:
    """Exactly these neighbours. Weights come from float32: 3e-7 of a squared distance, times beta, times a weight."""
    np.testing.assert_array_equal(ours[1], expected.indices)
    np.testing.assert_allclose(ours[2], expected.weights, rtol=0, atol=1e-6)
    # Up to 16 products, weights that sum to 1 and err as above.
    np.testing.assert_allclose(ours[0], expected.values, rtol=0, atol=2e-6 * np.abs(values).max(initial=1))


def check_knn(queries, points, values, **attributes) -> None:
    expected = cpu.knn_interpolate(queries, points, values, **attributes)
    assert_neighbours(knn_work(queries, points, values, **attributes).run(), expected, values)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [16, 33, 1000, 1025, 3000, 9001])
def test_neighbours_anywhere(kind, count) -> None:
    points = cloud(count, count, kind)
    queries = np.concatenate([cloud(1, 200, kind), points[:100], cloud(2, 100)])  # near, at the points, elsewhere
    check_knn(queries, points, values_of(3, 2, count, 3), k=1 + count % 16)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    queries=st.integers(1, 70),
    k=st.integers(1, 16),
    extra=st.integers(0, 5000),
    kind=st.sampled_from(KINDS),
    frames=st.integers(1, 3),
    channels=st.integers(1, 16),
    beta=st.sampled_from([0.5, 7.0]),
    radius_mask=st.booleans(),
)
def test_neighbours_of_random_calls(seed, queries, k, extra, kind, frames, channels, beta, radius_mask) -> None:
    points = cloud(seed, k + extra, kind)
    values = values_of(seed, frames, k + extra, channels)
    check_knn(cloud(seed + 1, queries, kind), points, values, k=k, beta=beta, radius_mask=radius_mask)


@pytest.mark.parametrize("kind", ["normal", "grid"])
@pytest.mark.parametrize("k", range(1, 17))
def test_every_k_with_as_many_points_and_more(k, kind) -> None:
    for count in (k, k + 1, 500):
        points, queries, values = cloud(k, count, kind), cloud(k + 1, 50, kind), values_of(k, 1, count, 2)
        expected = reference.knn_interpolate(queries, points, values, k=k)
        assert_neighbours(knn_work(queries, points, values, k=k).run(), expected, values)


@pytest.mark.parametrize("count", [1, 31, 32, 64, 1023, 1024, 2047, 2048, 2049, 3072, 4096, 5121, 16385])
def test_neighbours_at_the_ends_of_leaves_and_nodes(count) -> None:
    check_knn(cloud(1, 300), cloud(2, count), values_of(3, 1, count, 3), k=min(8, count))


@pytest.mark.parametrize("kind", ["normal", "grid", "clusters"])
@pytest.mark.parametrize("count", [65536, 200_001])
def test_neighbours_among_many_points(kind, count) -> None:
    check_knn(cloud(1, 2000, kind), cloud(2, count, kind), values_of(3, 1, count, 3))


def test_many_queries() -> None:
    check_knn(cloud(1, 100_001), cloud(2, 8192), values_of(3, 1, 8192, 3))


@pytest.mark.parametrize(
    "shape", [(1, 9, 1, 1), (5, 9, 0, 3), (5, 9, 2, 0), (7, 40, 33, 1), (3, 40, 5, 16), (9, 40, 1, 70)]
)
def test_any_number_of_queries_frames_and_channels(shape) -> None:
    queries, points, frames, channels = shape
    check_knn(cloud(1, queries), cloud(2, points), values_of(3, frames, points, channels))


def test_no_query_needs_no_work() -> None:
    work = knn_work(np.zeros((0, 3), np.float32), cloud(1, 20), values_of(1, 1, 20, 3))
    assert [array.size for array in work.run()] == [0, 0, 0]


def test_queries_that_are_not_finite_harm_no_other() -> None:
    queries, points, values = cloud(1, 64), cloud(2, 3000), values_of(3, 2, 3000, 3)
    expected = cpu.knn_interpolate(queries, points, values)
    queries[5, 1], queries[40] = np.nan, np.inf
    interpolated, indices, weights = knn_work(queries, points, values).run()
    finite = np.isfinite(queries).all(1)
    assert ((indices >= 0) & (indices < 3000)).all()
    assert np.isnan(interpolated[:, 5]).all()
    np.testing.assert_array_equal(indices[finite], expected.indices[finite])
    np.testing.assert_allclose(weights[finite], expected.weights[finite], rtol=0, atol=1e-6)


def test_points_that_are_not_finite_are_no_neighbours() -> None:
    queries, points, values = cloud(1, 64), cloud(2, 3000), values_of(3, 1, 3000, 3)
    points[:50] = cloud(4, 50) * 1e6
    expected = cpu.knn_interpolate(queries, points, values)
    points[:25], points[25:50, 2] = np.nan, np.inf
    np.testing.assert_array_equal(knn_work(queries, points, values).run()[1], expected.indices)


@pytest.mark.parametrize("kind", ["normal", "grid", "one place"])
def test_interpolation_gives_the_same_bits_whatever_lay_in_memory(kind) -> None:
    arguments = (cloud(1, 3001, kind), cloud(2, 5000, kind), values_of(3, 2, 5000, 3))
    results = [knn_work(*arguments, fill=fill).run() for fill in (0xFF, 0xFF, 0, "random")]
    for other in results[1:]:
        for one, same in zip(results[0], other):
            np.testing.assert_array_equal(one.view(np.int32), same.view(np.int32))


def test_interpolation_in_a_graph() -> None:
    from edge4d.runtime.backends.cuda import Graph

    work = knn_work(cloud(1, 500), cloud(2, 5000), values_of(3, 2, 5000, 3))
    with Graph(work.stream) as graph:
        work.launch()
    for seed, kind in enumerate(("normal", "clusters", "grid")):
        arguments = (cloud(seed, 500, kind), cloud(seed + 5, 5000, kind), values_of(seed, 2, 5000, 3))
        for array, changed in zip(work.inputs, arguments):
            array.copy_from(changed)
        work.poison()
        graph.launch()
        assert_neighbours(work.result(), cpu.knn_interpolate(*arguments), arguments[2])


def test_a_workspace_that_is_too_small_is_refused() -> None:
    from edge4d.runtime.backends.cuda import DeviceArray

    for work in (knn_work(cloud(1, 5), cloud(2, 50), values_of(3, 1, 50, 3)), fps_work(cloud(1, 50), 5)):
        work.workspace.array = DeviceArray((256,), np.uint8)
        with pytest.raises(InvalidRequest, match="the workspace has 256 bytes"):
            work.launch()


# ---- FarthestPointSample --------------------------------------------------------------------------------------------


def check_fps(points, count) -> None:
    np.testing.assert_array_equal(fps_work(points, count).run()[0], cpu.farthest_point_sample(points, count=count))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 2, 33, 255, 256, 257, 700])
def test_all_points_in_their_order(kind, count) -> None:
    check_fps(cloud(count, count, kind), count)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 3000), kind=st.sampled_from(KINDS), share=st.floats(0, 0.2))
def test_farthest_points_are_those_of_the_twin(seed, count, kind, share) -> None:
    points, chosen = cloud(seed, count, kind), max(1, round(share * count))
    expected = reference.farthest_point_sample(points, count=chosen)
    np.testing.assert_array_equal(fps_work(points, chosen).run()[0], expected)


# On 132 multiprocessors of 256 threads: 1, 2, 4, 8, 16, 32 points in a thread, just fitting and one more; and the last
# two are more than all registers hold.
@pytest.mark.parametrize("kind", ["normal", "grid"])
@pytest.mark.parametrize(
    "count", [33_792, 33_793, 67_585, 135_168, 135_169, 270_337, 540_673, 1_000_000, 1_081_345, 2_200_000]
)
def test_farthest_of_many_points(kind, count) -> None:
    check_fps(cloud(1, count, kind), 24)


@pytest.mark.parametrize("kind", ["normal", "clusters", "grid"])
def test_many_steps(kind) -> None:
    check_fps(cloud(2, 20_000, kind), 4096)


def test_no_point_is_nearer_in_float32_alone() -> None:
    # Pairs whose squared distances differ in float64 and agree in float32.
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(5000, 3))
    points = np.float32(1000 * directions / np.linalg.norm(directions, axis=1, keepdims=True))
    points[0] = 0
    check_fps(points, 300)


def test_points_that_are_not_finite_end_the_search_in_order() -> None:
    points = cloud(1, 5000)
    points[7, 1], points[600] = np.nan, np.inf
    indices = fps_work(points, 40).run()[0]
    assert ((indices >= 0) & (indices < 5000)).all()


@pytest.mark.parametrize("count", [100, 50_000, 1_200_000])
def test_samples_are_the_same_whatever_lay_in_memory(count) -> None:
    points = cloud(1, count, "grid")
    results = [fps_work(points, 50, fill).run()[0] for fill in (0xFF, 0xFF, 0, "random")]
    for other in results[1:]:
        np.testing.assert_array_equal(results[0], other)


def test_samples_in_a_graph() -> None:
    from edge4d.runtime.backends.cuda import Graph

    work = fps_work(cloud(1, 40_000), 100)
    with Graph(work.stream) as graph:
        work.launch()
    for seed in range(3):
        points = cloud(seed, 40_000, "clusters")
        work.inputs[0].copy_from(points)
        work.poison()
        graph.launch()
        np.testing.assert_array_equal(work.result()[0], cpu.farthest_point_sample(points, count=100))


def test_a_call_that_the_gpu_refuses_leaves_the_next_alone() -> None:
    from edge4d.runtime.backends.cuda import DeviceArray, Graph

    points = np.random.default_rng(0).random((100, 3), np.float32)
    work, expected = fps_work(points, 10), cpu.farthest_point_sample(points, count=10)

    def record() -> None:
        with Graph(work.stream):
            with contextlib.suppress(CudaError):
                DeviceArray((10,))  # spoils the recording
            work.launch()

    with pytest.raises(CudaError, match="refused farthest_point_sample"):
        record()
    (samples,) = work.run()
    np.testing.assert_array_equal(samples, expected)


def test_calls_in_several_streams_do_not_lock_each_other_out() -> None:
    # Blocks wait for all others of their call: those of one must never fill the GPU half started.
    works = [fps_work(cloud(seed, 100_000 + seed), 500) for seed in range(4)]
    for _ in range(5):
        for work in works:
            work.launch()
    for seed, work in enumerate(works):
        expected = cpu.farthest_point_sample(cloud(seed, 100_000 + seed), count=500)
        np.testing.assert_array_equal(work.result()[0], expected)


# ---- for compute-sanitizer ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("queries", "points", "kind"), [(9, 20, "normal"), (40, 1100, "grid"), (17, 2100, "one place")]
)
def test_sanitize_interpolation(queries, points, kind) -> None:
    arguments = (cloud(1, queries, kind), cloud(2, points, kind), values_of(3, 2, points, 3))
    expected = cpu.knn_interpolate(*arguments)
    assert_neighbours(knn_work(*arguments, fill=None).run(), expected, arguments[2])


@pytest.mark.parametrize(("points", "count", "kind"), [(1, 1, "normal"), (300, 20, "grid"), (20_000, 8, "normal")])
def test_sanitize_samples(points, count, kind) -> None:
    array = cloud(1, points, kind)
    expected = cpu.farthest_point_sample(array, count=count)
    np.testing.assert_array_equal(fps_work(array, count, fill=None).run()[0], expected)
