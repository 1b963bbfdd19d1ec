"""Canonical Gaussians of a picture, on networks with random weights (see gvf_bundle.py)."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest
from gvf_bundle import asset, pictures

import edge4d
from edge4d.runtime.clip import close_up, read_clip
from edge4d.runtime.errors import CapacityExceeded, NothingGenerated, SamplingDiverged, StageNotInBundle
from edge4d.runtime.gaussians import Gaussians
from edge4d.runtime.systems.gvf_canonical import STAGES, check_generates, gaussians_of_picture
from edge4d.runtime.variation_field import ACTIVATION
from edge4d.runtime.voxels import coarse, neighbours, windows

SIDE = 32


@pytest.fixture(scope="module")
def pipeline(tiny_gvf_bundle):
    with edge4d.load(tiny_gvf_bundle, backend="onnxruntime", precision="fp32") as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def video():
    return pictures(asset(), 40, 3)


@pytest.fixture(scope="module")
def picture(video):
    close = close_up(read_clip(video, SIDE).first, SIDE)
    return close.transpose(2, 0, 1)[None].astype(np.float32) / 255


def generated(pipeline, picture, seed=0, run=None, bundle=None, least=1):
    random = np.random.default_rng(seed)
    return gaussians_of_picture(bundle or pipeline.bundle, run or pipeline._run, picture, random, least)


def test_gaussians_are_what_the_networks_say(pipeline, picture):
    """The whole generator once more, by engines alone: 12 steps, of which the first ten are guided."""
    run = {name: pipeline.backend.engine(pipeline.bundle, name, "fp32").run for name in STAGES}
    random = np.random.default_rng(7)
    condition = run["dino"]({"pictures": picture})["condition"]

    def integrated(name, x, guidance, **tables):
        uniform = np.linspace(1, 0, 13)
        times = 3 * uniform / (1 + 2 * uniform)
        for step, (s, t) in enumerate(zip(times[:-1], times[1:])):
            at = {"x": x, "t": np.array([1000 * s], np.float32), **tables}
            v = run[name]({**at, "condition": condition})["v"]
            if step < 10:
                v = (1 + guidance) * v - guidance * run[name]({**at, "condition": np.zeros_like(condition)})["v"]
            x = x - np.float32(s - t) * v
        return x

    latent = integrated("ss_flow", random.standard_normal((1, 8, 4, 4, 4), np.float32), 7.5)
    coords = np.argwhere(run["ss_dec"]({"latent": latent})["logits"][0, 0] > 0).astype(np.int32)
    assert 100 < len(coords) < 2000
    above = coarse(coords, 16)
    samples = integrated(
        "slat_flow",
        random.standard_normal((len(coords), 8), np.float32),
        3.0,
        neighbours=neighbours(coords, 16),
        parents=above.parents,
        children=above.children,
        coarse_neighbours=neighbours(above.coords, 8),
        coarse_coords=above.coords,
    )
    tables = {"windows": windows(coords, 8), "shifted_windows": windows(coords, 8, 4)}
    expected = ACTIVATION.apply(Gaussians(**run["gs_dec"]({"samples": samples, "coords": coords, **tables})))
    found = generated(pipeline, picture, seed=7)
    for name, array in found._asdict().items():
        # 24 steps of float32, each with sums of some hundred terms.
        np.testing.assert_allclose(array, getattr(expected, name), atol=1e-4, err_msg=name)
    assert len(found.means) == 2 * len(coords)
    assert np.abs(found.means - np.repeat((coords + 0.5) / 16 - 0.5, 2, axis=0)).max() < 0.75 / 16


def test_two_of_twelve_steps_are_not_guided(pipeline, picture):
    asked = Counter()

    def counting(name, inputs):
        asked[name] += 1
        return pipeline._run(name, inputs)

    generated(pipeline, picture, run=counting)
    assert asked == {"dino": 1, "ss_flow": 22, "ss_dec": 1, "slat_flow": 22, "gs_dec": 1}


def test_pictures_and_seeds_decide(pipeline, picture):
    first, again, other = (generated(pipeline, picture, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.colors, again.colors)
    assert first.colors.shape != other.colors.shape or np.abs(first.colors - other.colors).max() > 1e-3
    dark = generated(pipeline, 0.2 * picture)
    assert first.colors.shape != dark.colors.shape or np.abs(first.colors - dark.colors).max() > 1e-4


def test_a_video_alone_makes_a_scene(pipeline, video):
    scene = pipeline.generate(video, steps=2, size=(64, 64))
    random = np.random.default_rng(0)
    close = close_up(read_clip(video, SIDE).first, SIDE).transpose(2, 0, 1)[None].astype(np.float32) / 255
    expected = gaussians_of_picture(pipeline.bundle, pipeline._run, close, random, 1)
    assert len(scene) == len(expected.means)
    distances = [np.sort(np.linalg.norm(means[:, :2], axis=1)) for means in (scene.means, expected.means)]
    np.testing.assert_allclose(*distances, atol=1e-5)  # turned about the upward axis
    assert "where the asset looks most like the video" in pipeline.camera_source
    names = [stage.name for stage in pipeline.timings.stages if "load" not in stage.name]
    motion = ["align", "points", "dit_cond", "sample", "vae_latent", "decode"]
    assert names[: len(STAGES) + 1] == ["read", *STAGES]
    assert names[len(STAGES) + 1 :] == motion


def test_in_half_precision(tiny_gvf_bundle, pipeline, picture):
    with edge4d.load(tiny_gvf_bundle, backend="onnxruntime", precision="fp16") as half:
        found = generated(half, picture)
    exact = generated(pipeline, picture)
    # Voxels whose logit is near 0 come and go, and noise is dealt to others then.
    assert abs(len(found.means) - len(exact.means)) < 0.05 * len(exact.means)


# --- what cannot be generated -----------------------------------------------------------------------------------------


def shifted_logits(pipeline, by):
    def run(name, inputs):
        outputs = pipeline._run(name, inputs)
        return {"logits": outputs["logits"] + np.float32(by)} if name == "ss_dec" else outputs

    return run


def test_no_voxel_and_too_few(pipeline, picture):
    with pytest.raises(NothingGenerated, match=r"0 voxels, of 0 Gaussians; 1 are needed"):
        generated(pipeline, picture, run=shifted_logits(pipeline, -1e6))
    count = len(generated(pipeline, picture).means)
    assert len(generated(pipeline, picture, least=count).means) == count
    with pytest.raises(NothingGenerated, match=f"{count} Gaussians; {count + 1} are needed"):
        generated(pipeline, picture, least=count + 1)


def test_as_many_voxels_as_there_is_room_for(pipeline, picture):
    whole = generated(pipeline, picture, run=shifted_logits(pipeline, 1e6))
    assert len(whole.means) == 2 * 16**3
    stage = pipeline.bundle.stages["slat_flow"]
    axes = {**stage.axes, "V": dataclasses.replace(stage.axes["V"], max=4095, opt=64)}
    stages = {**pipeline.bundle.stages, "slat_flow": dataclasses.replace(stage, axes=axes)}
    smaller = dataclasses.replace(pipeline.bundle, stages=stages)
    with pytest.raises(CapacityExceeded, match="4096 voxels, there is room for 4095"):
        generated(pipeline, picture, run=shifted_logits(pipeline, 1e6), bundle=smaller)


def test_values_that_are_not_finite(pipeline, picture):
    with pytest.raises(SamplingDiverged, match=r"ss_flow.*not finite"):
        generated(pipeline, np.full_like(picture, np.nan))


@pytest.mark.parametrize("name", STAGES)
def test_bundles_that_lack_a_network(pipeline, video, name):
    stages = {other: stage for other, stage in pipeline.bundle.stages.items() if other != name}
    with pytest.raises(StageNotInBundle, match=f"(?s)lacks {name};.*--canonical"):
        check_generates(dataclasses.replace(pipeline.bundle, stages=stages))
    check_generates(pipeline.bundle)
