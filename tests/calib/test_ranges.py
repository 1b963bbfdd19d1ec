"""Ranges: what collectors see, by which method, and what has none."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest

from edge4d.calib.mixes import read_stages
from edge4d.calib.ranges import METHODS, Collector, Seen, making_scenes, observe
from edge4d.runtime.bundle import Bundle
from edge4d.runtime.errors import InvalidCalibration, InvalidRequest


def collected(method: str, *arrays: np.ndarray):
    collector = Collector(method)
    for array in arrays:
        collector.add("t", array.astype(np.float32))
    return collector.seen().ranges["t"]


@pytest.mark.parametrize("method", METHODS)
def test_extremes_and_counts_are_those_of_all_arrays(method):
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(5000), 2 * rng.standard_normal(5000) + 1]
    found = collected(method, *arrays)
    every = np.concatenate(arrays).astype(np.float32)
    assert (found.low, found.high) == (every.min(), every.max())
    assert sum(found.histogram) == every.size
    assert found.edge >= np.abs(every).max() * 0.999


def test_minmax_takes_the_largest_magnitude():
    assert collected("minmax", np.array([-3.0, 1.0]), np.array([2.0])).largest == 3.0


def test_percentile_leaves_out_the_last_of_many():
    values = np.ones(1_000_000)
    values[0] = 1000.0  # 0.0001 % of all
    assert collected("percentile", values).largest < 2.0


def test_ranges_of_a_bundle(float_bundle, tmp_path, photos):
    bundle, data = Bundle.load(float_bundle), photos()
    folder = shutil.copytree(float_bundle, tmp_path / "work")
    before = sorted(folder.iterdir())
    stages = read_stages(bundle)
    calls: list[None] = []
    watched = {name: stage.watched() for name, stage in stages.items()}
    run = making_scenes(bundle, data, lambda: calls.append(None))
    seen = observe(watched, run, folder, method="minmax")
    assert len(calls) == len(data.photos)
    assert sorted(folder.iterdir()) == before  # what was written for it is gone
    image = seen["perceive"].ranges["image"]
    assert (image.low, image.high) == (
        min(photo.image.min() for photo in data.photos) / np.float32(255),
        max(photo.image.max() for photo in data.photos) / np.float32(255),
    )
    assert seen["core"].ranges["noise"].largest > 1  # seeds, not the noise of zero that evaluation has
    assert set(seen["core"].channels) == {"transpose", "gelu"}
    assert seen["core"].channels["gelu"].shape == (32,)
    assert Seen.from_json(seen["core"].as_json()).ranges == seen["core"].ranges


def test_an_unknown_method(tmp_path):
    with pytest.raises(InvalidRequest, match=r"no calibration method 'best'[\s\S]*minmax, entropy, percentile"):
        observe({}, lambda backend: None, tmp_path, method="best")


def test_a_layer_that_gives_nan(bundle_copy, photos):
    """The weight of one channel is NaN: the first tensor behind it is named, with the photograph."""
    onnx = pytest.importorskip("onnx")
    bundle = Bundle.load(bundle_copy)
    stages = read_stages(bundle)
    path = bundle.stage("perceive").graph("fp32").whole
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.name == "first.bias":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.full(12, np.nan, np.float32), tensor.name))
    onnx.save(model, path)
    watched = {"perceive": stages["perceive"].watched()}
    data = photos(2)
    with pytest.raises(InvalidCalibration, match=r"'relu' of stage 'perceive' has no range[\s\S]*On '0.png', 24576 of"):
        observe(watched, making_scenes(bundle, data), bundle_copy, method="minmax")


def test_photographs_of_a_size_that_the_network_cannot_see(float_bundle, tmp_path, photos):
    bundle, data = Bundle.load(float_bundle), photos(1)
    wrong = replace(data, size=(50, 32))
    with pytest.raises(InvalidRequest, match=r"cannot see pictures of this size[\s\S]*50x32"):
        observe({}, making_scenes(bundle, wrong), tmp_path, method="minmax")
