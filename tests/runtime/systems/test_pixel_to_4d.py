"""The chain of stages, on a bundle whose scenes can be computed by hand (see tests/conftest.py)."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from edge4d import load
from edge4d.runtime.backends import backend
from edge4d.runtime.bundle import Bundle
from edge4d.runtime.errors import (
    InvalidBundle,
    InvalidPicture,
    InvalidRequest,
    PrecisionNotInBundle,
    StageNotInBundle,
)
from edge4d.runtime.systems import system

WIDTH, HEIGHT = 64, 32


def picture() -> np.ndarray:
    """Grey, with a red square (an instance) and a stripe without blue (transparent)."""
    pixels = np.full((HEIGHT, WIDTH, 3), 100, np.uint8)
    pixels[8:16, 8:24] = (250, 40, 40)
    pixels[:, 60:] = (100, 100, 0)
    return pixels


@pytest.fixture(scope="module")
def pipeline(tiny_bundle):
    with load(tiny_bundle) as pipeline:
        yield pipeline


def test_every_pixel_becomes_a_gaussian_in_metres(pipeline):
    scene = pipeline.generate(picture(), fov=90.0)
    assert len(scene) == HEIGHT * 60  # those without blue have no opacity and are left out
    # Depth 6 m, focal length 32 pixels: the first pixel's centre lies at ((0.5 - 32) / 32, (0.5 - 16) / 32, 1) times 6.
    np.testing.assert_allclose(scene.means[0], [-31.5 / 32 * 6, -15.5 / 32 * 6, 6], rtol=1e-5)
    np.testing.assert_allclose(scene.colors[0], np.full(3, 100 / 255), rtol=1e-6)
    assert (scene.groups > 0).sum() == 8 * 16
    assert scene.camera.intrinsics == pytest.approx((32, 32, 32, 16))
    assert (scene.t0, scene.t1, scene.fps, scene.source) == (0.0, pytest.approx(0.4), 10, "tiny")


def test_what_moves_moves_by_its_velocity(pipeline):
    scene = pipeline.generate(picture())
    moving = scene.groups == 1
    shift = scene.evaluate(0.3).means - scene.evaluate(0.0).means
    # Float32 positions of some metres: 1e-6.
    np.testing.assert_allclose(shift[moving], np.broadcast_to([0.3, 0, 0], (moving.sum(), 3)), atol=2e-6)
    np.testing.assert_array_equal(shift[~moving], 0)


def test_depth_and_instances_of_the_user_replace_the_network_s(pipeline):
    depth = np.full((HEIGHT, WIDTH), 2.0, np.float32)
    instances = np.zeros((HEIGHT, WIDTH), np.uint8)
    instances[20:, :10] = 1
    neither = pipeline.generate(picture())
    both = pipeline.generate(picture(), depth=depth, instances=instances)
    assert [stage.name for stage in pipeline.timings.stages if "load" not in stage.name] == ["read", "core", "scene"]
    only_depth = pipeline.generate(picture(), depth=depth)
    only_instances = pipeline.generate(picture(), instances=instances)
    for scene, z in ((neither, 6), (both, 2), (only_depth, 2), (only_instances, 6)):
        np.testing.assert_allclose(scene.means[:, 2], z)
    for scene, count in ((neither, 128), (both, 120), (only_depth, 128), (only_instances, 120)):
        assert (scene.groups > 0).sum() == count


def test_large_ids_are_renumbered(pipeline):
    instances = np.zeros((HEIGHT, WIDTH), np.int32)
    instances[:4], instances[4:6] = 26_001, 24_003
    scene = pipeline.generate(picture(), instances=instances)
    assert (scene.groups == 1).sum() == 2 * 60
    assert (scene.groups == 2).sum() == 4 * 60


def test_more_instances_than_groups(pipeline):
    instances = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) % 9
    with pytest.raises(InvalidPicture, match="8 ids"):
        pipeline.generate(picture(), instances=instances)


def test_seeds_choose_among_motions(pipeline):
    def velocity(**options):
        return pipeline.generate(picture(), **options).motion[0].linear[1, 0].copy()

    np.testing.assert_array_equal(velocity(), [1, 0, 0])
    np.testing.assert_array_equal(velocity(), velocity(seed=3, temperature=0.0))
    np.testing.assert_array_equal(velocity(seed=3), velocity(seed=3, temperature=1.0))
    assert (velocity(seed=3) != velocity(seed=4)).any()
    # The shift of this model is linear in the noise; float32 sums of a few values.
    np.testing.assert_allclose(
        velocity(seed=3, temperature=0.5) - velocity(), 0.5 * (velocity(seed=3) - velocity()), atol=1e-6
    )


def test_sizes(pipeline):
    assert pipeline.generate(picture(), size=(96, 64)).camera.width == 96
    for size, nearest in (((100, 60), "96x64"), ((64, 4000), "64x256"), ((0, 32), "32x32"), ((64, -32), "64x32")):
        with pytest.raises(InvalidRequest, match=nearest):
            pipeline.generate(picture(), size=size)


@pytest.mark.parametrize("options", [{"seed": -1}, {"temperature": -0.1}, {"temperature": float("nan")}])
def test_requests_that_cannot_work(pipeline, options):
    with pytest.raises(InvalidRequest):
        pipeline.generate(picture(), **options)


def test_half_precision_is_near(pipeline, tiny_bundle):
    with load(tiny_bundle, precision="fp16") as half:
        exact, rounded = pipeline.generate(picture()), half.generate(picture())
    # Half precision has 11 bits; positions are sums of a few rounded products.
    np.testing.assert_allclose(rounded.means, exact.means, atol=0.02)
    np.testing.assert_allclose(rounded.colors, exact.colors, atol=1e-3)


def test_the_same_photograph_gives_the_same_scene(pipeline, tiny_bundle):
    first = pipeline.generate(picture(), seed=5)
    with load(str(tiny_bundle)) as again:
        second = again.generate(picture(), seed=5)
    for name in ("means", "quats", "scales", "opacities", "colors", "groups"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def test_stages_are_timed_with_their_tensors(pipeline):
    pipeline.generate(picture())
    stages = {stage.name: stage for stage in pipeline.timings.stages}
    assert stages["perceive"].tensors["depth"] == "1x1x32x64"
    assert stages["perceive"].tensors["instances"] == "1x32x64 int32"
    assert stages["core"].tensors["means"] == "1x2048x3"
    assert all(stage.seconds >= 0 for stage in stages.values())


def test_engines_are_freed(tiny_bundle):
    pipeline = load(tiny_bundle)
    pipeline.generate(picture())
    engines = list(pipeline._engines.values())
    pipeline.close()
    assert len(engines) == 2
    assert all(engine._closed for engine in engines)


def test_what_a_bundle_does_not_have(tiny_bundle):
    with pytest.raises(PrecisionNotInBundle):
        load(tiny_bundle, precision="int8")
    with pytest.raises(InvalidBundle, match="cannot run"):
        system("teleportation")


def test_bundles_that_do_not_perceive(tiny_bundle):
    bundle = Bundle.load(tiny_bundle)
    without = dataclasses.replace(bundle, stages={"core": bundle.stages["core"]})
    pipeline = system("pixel_to_4d")(without, backend(), "fp32")
    depth, instances = np.ones((HEIGHT, WIDTH)), np.zeros((HEIGHT, WIDTH), int)
    assert len(pipeline.generate(picture(), depth=depth, instances=instances)) > 0
    with pytest.raises(InvalidRequest, match="by itself"):
        pipeline.generate(picture(), depth=depth)


def test_bundles_that_lack_a_stage(tiny_bundle):
    bundle = Bundle.load(tiny_bundle)
    without = dataclasses.replace(bundle, stages={"perceive": bundle.stages["perceive"], "core": blind(bundle)})
    with pytest.raises(StageNotInBundle, match=r"perceive, core, makes features"):
        system("pixel_to_4d")(without, backend(), "fp32").generate(picture())


def blind(bundle):
    """The stage `core`, taking features that nothing makes."""
    core = bundle.stages["core"]
    features = dataclasses.replace(core.inputs[0], name="features")
    return dataclasses.replace(core, inputs=(*core.inputs, features))
