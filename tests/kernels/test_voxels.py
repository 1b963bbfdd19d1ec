"""The sparse operators: the native kernels against their twins."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from voxel_scenes import STORED, assert_near, convolution, qkv_of, scattered, sphere, window_table

from edge4d.kernels import cpu, reference
from edge4d.runtime import voxels
from edge4d.runtime.errors import InvalidRequest, InvalidTensor

seeds = st.integers(0, 2**32 - 1)
stored = pytest.mark.parametrize("dtype", STORED)


# ---- VoxelNeighbours ------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(seed=seeds, resolution=st.integers(1, 12), share=st.floats(0, 1))
def test_neighbours_are_those_of_the_twin(seed, resolution, share) -> None:
    coords = scattered(seed, resolution, round(share * resolution**3))
    ours = cpu.voxel_neighbours(coords, resolution=resolution)
    np.testing.assert_array_equal(ours, reference.voxel_neighbours(coords, resolution=resolution))


@pytest.mark.parametrize("resolution", [4, 16, 64])
def test_neighbours_are_the_table_that_networks_gather_by(resolution) -> None:
    coords = sphere(resolution)
    for threads in (1, 3):
        ours = cpu.voxel_neighbours(coords, resolution=resolution, threads=threads)
        np.testing.assert_array_equal(ours, voxels.neighbours(coords, resolution))


def test_of_voxels_in_one_cell_the_last_counts() -> None:
    coords = np.random.default_rng(1).integers(0, 3, (100, 3)).astype(np.int32)
    ours = cpu.voxel_neighbours(coords, resolution=3)
    np.testing.assert_array_equal(ours, reference.voxel_neighbours(coords, resolution=3))


def test_bad_voxels_are_refused() -> None:
    coords = np.zeros((2, 3), np.int32)
    for resolution in (0, 257):
        with pytest.raises(InvalidRequest, match=f"resolution is {resolution}; allowed: 1 to 256"):
            cpu.voxel_neighbours(coords, resolution=resolution)
    with pytest.raises(InvalidTensor, match="'coords' has the wrong dtype"):
        cpu.voxel_neighbours(coords.astype(np.int64), resolution=4)
    with pytest.raises(InvalidTensor, match="'coords' has the wrong shape"):
        cpu.voxel_neighbours(coords[:, :2], resolution=4)


# ---- SubmanifoldConvolution -----------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    seed=seeds,
    count=st.integers(0, 400),
    inputs=st.integers(1, 150),
    outputs=st.integers(1, 70),
    dtype=st.sampled_from(STORED),
)
def test_convolutions_are_those_of_the_twin(seed, count, inputs, outputs, dtype) -> None:
    arguments = convolution(
        seed, reference.voxel_neighbours(scattered(seed, 9, count), resolution=9), inputs, outputs, dtype
    )
    assert_near(cpu.submanifold_convolution(*arguments), reference.submanifold_convolution(*arguments), 27 * inputs)


@stored
@pytest.mark.parametrize(("inputs", "outputs"), [(6, 32), (128, 32), (129, 33), (256, 64)])
def test_convolutions_of_whole_panels_and_of_a_little_more(inputs, outputs, dtype) -> None:
    arguments = convolution(
        2, voxels.neighbours(sphere(16), 16), inputs, outputs, dtype
    )  # more voxels than a block has
    assert_near(cpu.submanifold_convolution(*arguments), reference.submanifold_convolution(*arguments), 27 * inputs)


def test_threads_do_not_change_a_bit_of_a_convolution() -> None:
    arguments = convolution(3, voxels.neighbours(sphere(24), 24), 40, 20, "float32")
    one = cpu.submanifold_convolution(*arguments, threads=1)
    np.testing.assert_array_equal(one, cpu.submanifold_convolution(*arguments, threads=3))
    # A voxel's sums are its own: alone with its neighbours it has the same bits.
    few = arguments._replace(neighbours=np.where(np.arange(len(one))[:, None] == 700, arguments.neighbours, -1))
    np.testing.assert_array_equal(cpu.submanifold_convolution(*few)[700], one[700])


def test_bad_convolutions_are_refused() -> None:
    good = convolution(4, voxels.neighbours(sphere(8), 8), 6, 5, "float32")
    changes = {
        "'neighbours' has the wrong shape": {"neighbours": good.neighbours[:, :26]},
        "'weight' has the wrong shape": {"weight": good.weight[:, :5]},
        "'weight' has the wrong dtype": {"weight": good.weight.astype(np.float16)},
        "'bias' has the wrong shape": {"bias": good.bias[:4]},
        "'neighbours' has the wrong dtype": {"neighbours": good.neighbours.astype(np.int64)},
        "'weight' has no channels": {"weight": good.weight[..., :0], "bias": good.bias[:0]},
        "'neighbours' names rows that do not exist": {"neighbours": good.neighbours + len(good.features)},
        "holds -2 to": {"neighbours": good.neighbours - 1},
    }
    for message, change in changes.items():
        with pytest.raises(InvalidTensor, match=message):
            cpu.submanifold_convolution(*good._replace(**change))


# ---- GatherMean -----------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
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
    ours = cpu.gather_mean(features, table, zeros=zeros)
    assert_near(ours, reference.gather_mean(features, table, zeros=zeros), most)


def test_up_is_the_way_back_from_down() -> None:
    coarse = voxels.coarse(sphere(16), 16)
    features = np.random.default_rng(5).normal(size=(len(coarse.coords), 7)).astype(np.float32)
    fine = cpu.gather_mean(features, coarse.parents[:, None])
    np.testing.assert_array_equal(fine, features[coarse.parents])
    # Means of equal rows, up to 8 summed and divided.
    np.testing.assert_allclose(cpu.gather_mean(fine, coarse.children), features, rtol=5e-7, atol=0)


def test_bad_means_are_refused() -> None:
    features, table = np.zeros((4, 2), np.float32), np.zeros((3, 8), np.int32)
    with pytest.raises(InvalidRequest, match="zeros is -1"):
        cpu.gather_mean(features, table, zeros=-1)
    with pytest.raises(InvalidTensor, match="'table' names rows that do not exist"):
        cpu.gather_mean(features, table + 4)
    with pytest.raises(InvalidTensor, match="'features' has no channels"):
        cpu.gather_mean(features[:, :0], table)


# ---- WindowAttention ------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    seed=seeds,
    lengths=st.lists(st.integers(0, 70), max_size=6),
    spare=st.integers(0, 5),
    width=st.integers(0, 90),
    heads=st.integers(1, 3),
    channels=st.integers(1, 128),
    dtype=st.sampled_from(STORED),
)
def test_attention_is_that_of_the_twin(seed, lengths, spare, width, heads, channels, dtype) -> None:
    windows = window_table(seed, lengths, spare, width)
    qkv = qkv_of(seed, sum(lengths) + spare, heads, channels, dtype)
    # Products are summed twice: channels to scores, whose error each weight has, and the window's values.
    summands = channels + max([1, *lengths])
    assert_near(cpu.window_attention(qkv, windows), reference.window_attention(qkv, windows), summands)


@stored
@pytest.mark.parametrize("shift", [0, 4])
def test_attention_in_the_windows_of_voxels(shift, dtype) -> None:
    windows = voxels.windows(sphere(32), 8, shift)
    qkv = qkv_of(6, len(sphere(32)), 3, 64, dtype)
    ours = cpu.window_attention(qkv, windows)
    assert_near(ours, reference.window_attention(qkv, windows), 64 + windows.shape[1])
    np.testing.assert_array_equal(ours, cpu.window_attention(qkv, windows, threads=3))


def test_large_scores_do_not_overflow() -> None:
    qkv = qkv_of(7, 50, 2, 16, "float32")
    qkv[:, :2] *= 100  # scores to some 100,000: the greatest takes all
    windows = window_table(7, [50], 0, 0)
    ours, twin = cpu.window_attention(qkv, windows), reference.window_attention(qkv, windows)
    # A score errs by 6e-8 of 100,000 times a few, so near ties are decided with an error of a few hundredths.
    np.testing.assert_allclose(ours, twin, rtol=0, atol=0.1)
    assert np.median(np.abs(ours - twin)) < 1e-6


def test_what_is_not_finite_stays_in_its_window() -> None:
    qkv = qkv_of(8, 40, 1, 8, "float32")
    windows = window_table(8, [20, 20], 0, 0)
    expected = cpu.window_attention(qkv, windows)
    qkv[windows[0, 3], 1] = np.nan
    ours = cpu.window_attention(qkv, windows)
    assert np.isnan(ours[windows[0]]).all()
    np.testing.assert_array_equal(ours[windows[1]], expected[windows[1]])


def test_bad_windows_are_refused() -> None:
    qkv, windows = qkv_of(9, 10, 2, 8, "float32"), window_table(9, [4, 5], 1, 0)
    again, late = windows.copy(), windows.copy()
    again[0, 0] = windows[1, 0]
    late[0, 1] = -1
    changes = {
        "'windows' names rows that do not exist": (qkv, np.where(windows == windows[0, 0], 10, windows)),
        f"'windows' has a row in several places.*first is {windows[1, 0]}": (qkv, again),
        "'windows' has a row behind a -1": (qkv, late),
        "'qkv' has the wrong shape": (qkv[:, :2], windows),
        "D is 129; allowed: 1 to 128": (qkv_of(9, 10, 1, 129, "float32"), windows),
        "'qkv' has no channels": (qkv[..., :0], windows),
    }
    for message, arguments in changes.items():
        with pytest.raises(InvalidTensor, match=f"(?s){message}"):
            cpu.window_attention(*arguments)


# ---- every instruction set ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("instructions", ["baseline", "avx2"])
def test_other_instruction_sets_agree(instructions) -> None:
    """The same tests with less than this machine has: what runs elsewhere."""
    environment = {**os.environ, "EDGE4D_CPU_INSTRUCTIONS": instructions}
    chosen = "convolutions_are or attention_is or means_are"
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen, __file__]
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2]
    )
    assert result.returncode == 0, result.stdout
