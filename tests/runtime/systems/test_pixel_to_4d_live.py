"""The shipped bundle on the GPU alone, against the same through the host."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import edge4d
from edge4d.runtime.errors import BackendUnavailable, InvalidRequest
from edge4d.runtime.metrics import psnr
from edge4d.runtime.renderer import Renderer

SIZE = (128, 64)


def photograph(seed: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 255, (8, 16, 3), np.uint8)
    return coarse.repeat(8, 0).repeat(8, 1)


def test_other_backends_are_refused(tiny_bundle: Any) -> None:
    with edge4d.load(tiny_bundle, backend="onnxruntime") as pipeline, pytest.raises(BackendUnavailable, match="Tensor"):
        pipeline.live()


@pytest.fixture(scope="module")
def pipeline(engine_cache: Any) -> Iterator[Any]:
    pytest.importorskip("tensorrt")
    from edge4d.runtime.backends.tensorrt import TensorRtBackend
    from edge4d.runtime.bundle import Bundle
    from edge4d.runtime.systems.pixel_to_4d import PixelTo4D

    backend = TensorRtBackend(engine_cache)
    with PixelTo4D(Bundle.load("street"), backend, "fp16") as made:
        yield made


@pytest.mark.gpu
def test_every_photograph_is_drawn_as_through_the_host(pipeline: Any) -> None:
    live = pipeline.live(SIZE)
    renderer = Renderer(live.scene, backend="cuda", outputs=("image",))
    for seed in (0, 1, 0):
        options = {"fov": 50.0 + 10 * seed, "seed": seed}
        expected = pipeline.generate(photograph(seed), size=SIZE, **options)
        scene = live.generate(photograph(seed), **options)
        assert scene is live.scene
        np.testing.assert_array_equal(scene.camera.K, expected.camera.K)
        with_host = Renderer(expected, backend="cuda", outputs=("image",))
        for t in (0.0, 0.5):
            found = renderer.render(scene.camera, t).image
            # The same engine on the same numbers: what differs is where Gaussians of too little opacity are left out.
            assert psnr(found / 255, with_host.render(expected.camera, t).image / 255) > 60


@pytest.mark.gpu
def test_depth_and_instances_may_be_given(pipeline: Any) -> None:
    live = pipeline.live(SIZE, predict=False)
    depth = np.full((64, 128), 7.0, np.float32)
    instances = np.zeros((64, 128), np.int32)
    live.generate(photograph(2), depth=depth, instances=instances)
    means = live.chain.outputs["means"].to_numpy()
    assert np.isfinite(means).all()
    with pytest.raises(InvalidRequest, match="depth"):
        live.generate(photograph(2))


@pytest.mark.gpu
def test_what_is_predicted_cannot_be_given(pipeline: Any) -> None:
    with pytest.raises(InvalidRequest, match="predict=False"):
        pipeline.live(SIZE).generate(photograph(3), depth=np.ones((64, 128), np.float32))
    with pytest.raises(InvalidRequest, match="pictures of this size"):
        pipeline.live((100, 64))
