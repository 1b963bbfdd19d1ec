"""The sparse operators on the GPU against their twins and the CPU kernels.

The tests named sanitize are small and use plain memory of the exact sizes, for compute-sanitizer:

    compute-sanitizer --tool racecheck --error-exitcode 9 python -P -m pytest -m gpu -k sanitize tests/kernels
"""

from __future__ import annotations

import numpy as np
import pytest
from cuda_scenes import Work
from hypothesis import given, settings
from hypothesis import strategies as st
from voxel_scenes import STORED, Convolution, assert_near, convolution, qkv_of, scattered, sphere, window_table

from edge4d.kernels import cpu, reference
from edge4d.runtime import voxels

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("device")]

INT32 = np.dtype(np.int32)
seeds = st.integers(0, 2**32 - 1)
stored = pytest.mark.parametrize("dtype", STORED)


def neighbours_work(coords, resolution: int, fill=0xFF) -> Work:
    from edge4d.kernels import cuda

    def launch(inputs, outputs, workspace, stream) -> None:
        cuda.voxel_neighbours(*inputs, resolution=resolution, out=outputs[0], workspace=workspace, stream=stream)

    nbytes = cuda.voxel_neighbours_workspace(resolution=resolution)
    return Work((coords,), [((len(coords), 27), INT32)], nbytes, launch, fill)


def convolution_work(arguments: Convolution, fill=0xFF) -> Work:
    from edge4d.kernels import cuda

    def launch(inputs, outputs, _, stream) -> None:
        cuda.submanifold_convolution(*inputs, out=outputs[0], stream=stream)

    shape = (len(arguments.features), len(arguments.bias))
    return Work(arguments, [(shape, arguments.features.dtype)], 0, launch, fill)


def mean_work(features, table, zeros: int, fill=0xFF) -> Work:
    from edge4d.kernels import cuda

    def launch(inputs, outputs, _, stream) -> None:
        cuda.gather_mean(*inputs, zeros=zeros, out=outputs[0], stream=stream)

    return Work((features, table), [((len(table), features.shape[1]), features.dtype)], 0, launch, fill)


def attention_work(qkv, windows, fill=0xFF) -> Work:
    from edge4d.kernels import cuda

    def launch(inputs, outputs, _, stream) -> None:
        cuda.window_attention(*inputs, out=outputs[0], stream=stream)

    return Work((qkv, windows), [((len(qkv), *qkv.shape[2:]), qkv.dtype)], 0, launch, fill)


# ---- VoxelNeighbours ------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=seeds, resolution=st.integers(1, 20), share=st.floats(0, 1))
def test_neighbours_are_those_of_the_twin(seed, resolution, share) -> None:
    coords = scattered(seed, resolution, round(share * resolution**3))
    expected = reference.voxel_neighbours(coords, resolution=resolution)
    np.testing.assert_array_equal(neighbours_work(coords, resolution).run()[0], expected)


@pytest.mark.parametrize("resolution", [16, 64, 256])
def test_neighbours_of_the_voxels_of_a_sphere(resolution) -> None:
    coords = sphere(resolution)
    expected = cpu.voxel_neighbours(coords, resolution=resolution)
    np.testing.assert_array_equal(neighbours_work(coords, resolution).run()[0], expected)


def test_of_voxels_in_one_cell_the_last_counts() -> None:
    coords = np.random.default_rng(1).integers(0, 4, (20_000, 3)).astype(np.int32)
    expected = cpu.voxel_neighbours(coords, resolution=4)
    np.testing.assert_array_equal(neighbours_work(coords, 4).run()[0], expected)


# ---- SubmanifoldConvolution -----------------------------------------------------------------------------------------


def check_convolution(arguments: Convolution) -> None:
    expected = reference.submanifold_convolution(*arguments)
    assert_near(convolution_work(arguments).run()[0], expected, 27 * arguments.weight.shape[1])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=seeds,
    count=st.integers(0, 400),
    inputs=st.integers(1, 100),
    outputs=st.integers(1, 140),
    dtype=st.sampled_from(STORED),
)
def test_convolutions_are_those_of_the_twin(seed, count, inputs, outputs, dtype) -> None:
    near = reference.voxel_neighbours(scattered(seed, 9, count), resolution=9)
    check_convolution(convolution(seed, near, inputs, outputs, dtype))


@stored
@pytest.mark.parametrize(("inputs", "outputs"), [(16, 64), (32, 64), (33, 65), (8, 8), (7, 16), (128, 128), (256, 72)])
def test_convolutions_of_whole_pieces_and_of_others(inputs, outputs, dtype) -> None:
    check_convolution(convolution(2, voxels.neighbours(sphere(16), 16), inputs, outputs, dtype))


@stored
def test_a_convolution_of_many_voxels(dtype) -> None:
    arguments = convolution(3, voxels.neighbours(sphere(64), 64), 128, 128, dtype)
    expected = cpu.submanifold_convolution(*arguments)
    assert_near(convolution_work(arguments).run()[0], expected, 27 * 128)


@stored
def test_rows_that_do_not_exist_count_as_zeros(dtype) -> None:
    arguments = convolution(4, voxels.neighbours(sphere(12), 12), 24, 40, dtype)
    rng = np.random.default_rng(4)
    wild = np.where(rng.random(arguments.neighbours.shape) < 0.3, rng.integers(len(arguments.features), 2**31), -1)
    near = np.where(arguments.neighbours < 0, wild, arguments.neighbours).astype(np.int32)
    expected = convolution_work(arguments).run()[0]
    np.testing.assert_array_equal(convolution_work(arguments._replace(neighbours=near)).run()[0], expected)


# ---- GatherMean -----------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=seeds,
    rows=st.integers(0, 50),
    means=st.integers(0, 200),
    most=st.integers(0, 9),
    channels=st.integers(1, 40),
    zeros=st.integers(0, 2),
    dtype=st.sampled_from(STORED),
)
def test_means_are_those_of_the_twin(seed, rows, means, most, channels, zeros, dtype) -> None:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(rows, channels)).astype(dtype)
    table = rng.integers(-1, rows, (means, most)).astype(np.int32)
    expected = reference.gather_mean(features, table, zeros=zeros)
    assert_near(mean_work(features, table, zeros).run()[0], expected, most)


@stored
def test_down_and_up_again(dtype) -> None:
    coarse = voxels.coarse(sphere(64), 64)
    features = np.random.default_rng(5).normal(size=(len(coarse.parents), 128)).astype(dtype)
    (down,) = mean_work(features, coarse.children, 1).run()
    assert_near(down, reference.gather_mean(features, coarse.children, zeros=1), 8)
    (up,) = mean_work(down, coarse.parents[:, None], 0).run()
    np.testing.assert_array_equal(up, down[coarse.parents])


# ---- WindowAttention ------------------------------------------------------------------------------------------------


def check_attention(qkv, windows) -> None:
    summands = qkv.shape[3] + windows.shape[1]
    assert_near(attention_work(qkv, windows).run()[0], reference.window_attention(qkv, windows), summands)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=seeds,
    lengths=st.lists(st.integers(0, 150), max_size=6),
    spare=st.integers(0, 5),
    width=st.integers(0, 200),
    heads=st.integers(1, 3),
    channels=st.integers(1, 128),
    dtype=st.sampled_from(STORED),
)
def test_attention_is_that_of_the_twin(seed, lengths, spare, width, heads, channels, dtype) -> None:
    check_attention(
        qkv_of(seed, sum(lengths) + spare, heads, channels, dtype), window_table(seed, lengths, spare, width)
    )


@stored
@pytest.mark.parametrize("channels", [16, 32, 64, 128])
def test_windows_of_every_length_around_a_tile(channels, dtype) -> None:
    lengths = [1, 31, 32, 33, 63, 64, 65, 0, 128]
    check_attention(qkv_of(6, sum(lengths), 2, channels, dtype), window_table(6, lengths, 0, 0))


@stored
@pytest.mark.parametrize("shift", [0, 4])
def test_attention_in_the_windows_of_voxels(shift, dtype) -> None:
    windows = voxels.windows(sphere(64), 8, shift)
    qkv = qkv_of(7, len(sphere(64)), 12, 64, dtype)
    assert_near(attention_work(qkv, windows).run()[0], cpu.window_attention(qkv, windows), 64 + windows.shape[1])


def test_what_is_not_finite_stays_in_its_window() -> None:
    qkv = qkv_of(8, 140, 2, 8, "float32")
    windows = window_table(8, [70, 70], 0, 0)
    (expected,) = attention_work(qkv, windows).run()
    qkv[windows[0, 3], 1] = np.nan
    (ours,) = attention_work(qkv, windows).run()
    assert np.isnan(ours[windows[0]]).all()
    np.testing.assert_array_equal(ours[windows[1]], expected[windows[1]])


# ---- all ------------------------------------------------------------------------------------------------------------


def works(dtype: str, fill) -> list[Work]:
    coords = sphere(20)
    near = voxels.neighbours(coords, 20)
    windows = voxels.windows(coords, 8)
    features = np.random.default_rng(9).normal(size=(len(coords), 24)).astype(dtype)
    return [
        neighbours_work(coords, 20, fill),
        convolution_work(convolution(9, near, 24, 40, dtype), fill),
        mean_work(features, voxels.coarse(coords, 20).children, 1, fill),
        attention_work(qkv_of(9, len(coords) + 3, 2, 24, dtype), windows, fill),
    ]


@stored
def test_the_same_bits_whatever_lay_in_memory(dtype) -> None:
    expected = [work.run()[0] for work in works(dtype, 0xFF)]
    for fill in (0xFF, 0, "random"):
        for work, same in zip(works(dtype, fill), expected):
            np.testing.assert_array_equal(work.run()[0].view(np.uint8), same.view(np.uint8))


@stored
def test_graphs_give_the_same(dtype) -> None:
    from edge4d.runtime.backends.cuda import Graph

    for work in works(dtype, 0xFF):
        expected = work.run()[0]
        with Graph(work.stream) as graph:
            work.launch()
        work.poison()
        graph.launch()
        np.testing.assert_array_equal(work.result()[0], expected)


@stored
def test_sanitize_sparse_operators(dtype) -> None:
    for work, expected in zip(works(dtype, None), works(dtype, 0xFF)):
        np.testing.assert_array_equal(work.run()[0], expected.run()[0])
