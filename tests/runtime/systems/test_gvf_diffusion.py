"""The chain of stages, on networks with random weights (see gvf_bundle.py)."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from gvf_bundle import LATENTS, asset, pictures
from mesh_files import CUBE, QUADS, TRIANGLES, write_mesh_ply

import edge4d
from edge4d.kernels import cpu
from edge4d.runtime.backends import backend
from edge4d.runtime.canonical import UP, raw_from_gaussians, turned
from edge4d.runtime.clip import read_clip
from edge4d.runtime.errors import (
    InvalidPly,
    InvalidRequest,
    InvalidScene,
    PrecisionNotInBundle,
    SamplingDiverged,
    StageNotInBundle,
)
from edge4d.runtime.gaussians import Gaussians
from edge4d.runtime.mesh import GAUSSIANS, sample_surface, values_at
from edge4d.runtime.metrics import psnr
from edge4d.runtime.object_views import object_camera, object_pose
from edge4d.runtime.ply import write_ply
from edge4d.runtime.samplers import CosineSchedule, log_snr_uniform, multistep_plan, sample_multistep
from edge4d.runtime.systems import gvf_diffusion, system
from edge4d.runtime.systems.gvf_diffusion import OVERLAP, GvfDiffusion, segments
from edge4d.runtime.variation_field import ACTIVATION, query_from_gaussians


@pytest.fixture(scope="module")
def ply(tmp_path_factory):
    path = tmp_path_factory.mktemp("assets") / "asset.ply"
    write_ply(path, asset())
    return path


@pytest.fixture(scope="module")
def pipeline(random_gvf_bundle):
    with edge4d.load(random_gvf_bundle, backend="onnxruntime") as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def video():
    return pictures(asset(), 40, 6)


def test_the_asset_moves_and_is_seen_as_in_the_video(pipeline, ply, video):
    scene = pipeline.generate(video, canonical=ply, size=(96, 96))
    assert isinstance(pipeline, GvfDiffusion)
    assert len(scene) == 500
    assert (scene.t0, scene.t1, scene.fps, scene.metric) == (0.0, 0.5, 10, False)
    assert (scene.eps2d, scene.antialiased, scene.background) == (0.1, True, (1.0, 1.0, 1.0))
    np.testing.assert_array_equal(scene.camera.c2w, object_pose(0.0))
    assert "°, where the asset looks most like the video" in pipeline.camera_source
    still = next(iter(edge4d.render(scene.without_motion(), "static", frames=1, backend="onnxruntime"))).image
    white = np.where(video[0, ..., 3:] > 127, video[0, ..., :3], 255)
    assert psnr(still / 255, white / 255) > 20  # edges are softer, and the azimuth was found on 32 x 32 pixels
    assert np.abs(scene.evaluate(0.5).means - scene.evaluate(0.1).means).max() > 1e-3


def test_changes_are_what_the_networks_say(pipeline, ply, video):
    """The whole chain once more, by engines alone, with a plan instead of an adaptive sampler."""
    scene = pipeline.generate(video, canonical=ply, azimuth=25.0, steps=3, seed=4)
    gaussians = ACTIVATION.apply(raw_from_gaussians(turned(asset(), -25.0)))
    query = query_from_gaussians(gaussians)
    images = read_clip(video, 32).pictures.transpose(0, 3, 1, 2).astype(np.float32) / 255
    run = {name: pipeline.backend.engine(pipeline.bundle, name, "fp32").run for name in pipeline.bundle.stages}
    images = run["image"]({"pictures": images})["images"]
    chosen = {count: cpu.farthest_point_sample(gaussians.means, count=count) for count in (24, 48)}
    contexts = run["dit_cond"]({"images": images, "static": query[chosen[48]]})

    def velocity(x, t):
        inputs = {"x": x, "t": np.array([t], np.float32), "positions": gaussians.means[chosen[24]]}
        return run["dit_step"]({**inputs, **contexts})["v"]

    schedule = CosineSchedule()
    noise = np.random.default_rng(4).standard_normal((6, LATENTS, 16), np.float32)
    latents = sample_multistep(velocity, noise, multistep_plan(schedule, log_snr_uniform(schedule, 3)))
    keys_values = run["vae_latent"]({"samples": latents})
    queries = run["vae_query"]({"gaussians": query})["queries"]
    for frame in range(6):
        part = {name: array[frame, None] for name, array in keys_values.items()}
        expected = run["vae_attend"]({"queries": queries, **part})["changes"][0]
        # Half precision of numbers of up to 0.1, and rotations of float32 positions.
        np.testing.assert_allclose(scene.motion[0].data[frame], expected, atol=1e-4)
        at = scene.evaluate(frame / 10)
        np.testing.assert_allclose(at.means, gaussians.means + expected[:, 0:3], atol=1e-4)
        raw = raw_from_gaussians(turned(asset(), -25.0))
        np.testing.assert_allclose(at.colors[:, 0], raw.colors[:, 0] + expected[:, 10:13], atol=2e-3)
        changed = Gaussians(
            raw.means,
            raw.quats + expected[:, 6:10],
            raw.scales + expected[:, 3:6],
            raw.opacities + expected[:, 13],
            raw.colors,
        )
        np.testing.assert_allclose(at.scales, ACTIVATION.apply(changed).scales, atol=1e-4)
        np.testing.assert_allclose(at.quats, ACTIVATION.apply(changed).quats, atol=1e-3)
        np.testing.assert_allclose(at.opacities, ACTIVATION.apply(changed).opacities, atol=1e-3)


def test_the_same_video_gives_the_same_scene_and_seeds_differ(pipeline, ply, video):
    def changes(**options):
        return pipeline.generate(video, canonical=ply, azimuth=40.0, **options).motion[0].data

    np.testing.assert_array_equal(changes(), changes(seed=0))
    assert np.abs(changes(seed=1) - changes()).max() > 1e-3
    # Fixed steps come to nearly the same as those that follow their errors.
    assert np.abs(changes(steps=30) - changes()).mean() < 0.1 * np.abs(changes()).mean()


def test_segments_start_from_the_same_gaussians_and_fade_into_each_other(pipeline, ply, monkeypatch):
    """27 frames in segments of 6, of which the networks say no more than their number."""
    monkeypatch.setattr(gvf_diffusion, "OVERLAP", 2)
    given = []

    def changed(inputs, gaussians, steps, anchors):
        given.append(inputs)
        return np.full((len(inputs["noise"]), len(gaussians.means), 14), len(given), np.float32)

    monkeypatch.setattr(pipeline, "_changed", changed)
    video = pictures(asset(), 40, 27)
    said = pipeline.generate(video, canonical=ply, azimuth=40.0, steps=1).motion[0].data[:, 0, 0]
    parts = list(segments(27, 6))
    assert len(given) == len(parts) == 8
    planes = read_clip(video, 32).pictures.transpose(0, 3, 1, 2).astype(np.float32) / 255
    image = pipeline.backend.engine(pipeline.bundle, "image", "fp32")
    images = np.concatenate([image.run({"pictures": plane[None]})["images"] for plane in planes])
    noise = np.full((27, LATENTS, 16), np.nan, np.float32)
    expected = np.zeros(27)
    for number, ((start, stop), inputs) in enumerate(zip(parts, given), 1):
        frames = [*range(min(start, 1)), *range(start, stop)]  # the first one is always seen
        np.testing.assert_allclose(inputs["images"], images[frames], atol=1e-5)  # of more pictures at once
        for name in ("static", "positions"):
            np.testing.assert_array_equal(inputs[name], given[0][name])
        known = ~np.isnan(noise[frames, 0, 0])
        np.testing.assert_array_equal(inputs["noise"][known], noise[frames][known])
        noise[frames] = inputs["noise"]
        expected[start:stop] = number
        if start:
            expected[start : start + 2] = number - 1 + np.array([1, 2]) / 3
    np.testing.assert_allclose(said, expected, atol=4e-3)  # half precision of numbers up to 8
    assert len(np.unique(noise)) > 0.99 * noise.size


@pytest.mark.parametrize("length", [2, 4, 6, 24])
@pytest.mark.parametrize("count", [1, 2, 6, 7, 11, 12, 25, 120])
def test_segments_cover_the_clip_and_overlap(count, length):
    found = list(segments(count, length))
    assert (found[0][0], found[-1][1]) == (0, count)
    seen = {stop - start + min(start, 1) for start, stop in found}
    assert len(seen) == 1
    assert max(seen) <= length
    overlap = min(OVERLAP, length - 2)
    assert all(stop - start >= overlap for (_, stop), (start, _) in zip(found, found[1:]))
    assert len(found) == 1 + max(0, -(-(count - length) // (length - 1 - overlap)))


@pytest.mark.gpu
def test_fixed_steps_run_on_the_gpu_alone(random_gvf_bundle, engine_cache, pipeline, ply):
    """In three segments, with and without anchors."""
    pytest.importorskip("tensorrt")
    from edge4d.runtime.backends.tensorrt import TensorRtBackend

    video = pictures(asset(), 40, 10)
    with GvfDiffusion(pipeline.bundle, TensorRtBackend(engine_cache), "fp32") as tensorrt:
        for anchors in (None, 100):
            options = {"canonical": ply, "azimuth": 40.0, "steps": 4, "anchors": anchors}
            found = tensorrt.generate(video, **options).motion[0].data.astype(np.float32)
            names = [stage.name for stage in tensorrt.timings.stages]
            assert "variation field" in names
            assert not {"sample", "decode"} & set(names)
            expected = pipeline.generate(video, **options).motion[0].data.astype(np.float32)
            # TensorRT may round products to 10 bits (TF32), in segments of four steps each.
            assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()
        tensorrt.generate(video, canonical=ply, azimuth=40.0)  # an adaptive sampler looks at each evaluation here
        assert "sample" in [stage.name for stage in tensorrt.timings.stages]


def test_one_frame(pipeline, ply, video):
    scene = pipeline.generate(video[:1], canonical=ply)
    assert (scene.t1, len(scene.motion[0].times)) == (0.0, 1)


def test_assets_of_other_origins(pipeline, ply, video, tmp_path):
    """In metres, y up, with harmonics; and a scene of ours."""

    def means(canonical, **options):
        return pipeline.generate(video, canonical=canonical, azimuth=0.0, steps=1, **options).means

    own = asset()
    other = own._replace(
        means=(3.0 * own.means @ UP["y"]).astype(np.float32),
        scales=3 * own.scales,
        colors=np.concatenate([own.colors, np.zeros((500, 3, 3), np.float32)], axis=1),
    )
    write_ply(tmp_path / "other.ply", other)
    straight = means(ply)
    placed = means(tmp_path / "other.ply", up="y")
    # An affine map of each axis by one factor.
    factor = np.ptp(placed, axis=0) / np.ptp(straight, axis=0)
    np.testing.assert_allclose(factor, factor[0], rtol=1e-4)
    np.testing.assert_allclose(placed - placed[0], factor * (straight - straight[0]), atol=1e-5)
    scene = pipeline.generate(video, canonical=ply, azimuth=0.0)
    np.testing.assert_allclose(means(scene), scene.evaluate(0.0).means, atol=1e-6)


def test_anchors_are_interpolated(pipeline, ply, video):
    def changes(anchors):
        scene = pipeline.generate(video, canonical=ply, azimuth=40.0, steps=4, anchors=anchors)
        interpolated = "interpolate" in [stage.name for stage in pipeline.timings.stages]
        assert interpolated == (anchors in (400, 40))
        return scene.motion[0].data.astype(np.float32)

    exact, many, few = changes(None), changes(400), changes(40)
    np.testing.assert_array_equal(changes(500), exact)
    errors = [np.abs(found - exact).mean() for found in (many, few)]
    assert 0 < errors[0] < errors[1] < 0.5 * np.abs(exact).mean()


def test_cameras_see_what_a_square_one_sees(pipeline, ply, video):
    wide = pipeline.generate(video, canonical=ply, azimuth=0.0, steps=1, size=(160, 96)).camera
    assert (wide.width, wide.height) == (160, 96)
    square = pipeline.generate(video, canonical=ply, azimuth=0.0, steps=1, size=(96, 96)).camera
    assert wide.intrinsics[:2] == square.intrinsics[:2]
    assert wide.intrinsics[2:] == (80, 48)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"canonical": None}, StageNotInBundle, "--canonical"),
        ({"canonical": "absent.ply"}, InvalidPly, "absent.ply"),
        ({"up": "w"}, InvalidRequest, "up"),
        ({"anchors": 7}, InvalidRequest, "anchors"),
        ({"steps": 0}, InvalidRequest, "steps"),
        ({"seed": -1}, InvalidRequest, "seed"),
        ({"seconds": 0}, InvalidRequest, "seconds"),
    ],
)
def test_requests_that_cannot_work(pipeline, ply, video, options, error, words):
    with pytest.raises(error, match=words):
        pipeline.generate(video, **{"canonical": ply, **options})


def test_assets_that_are_too_small(pipeline, video):
    scene = pipeline.generate(video, canonical=_static(asset()), azimuth=0.0, steps=1)
    few = dataclasses.replace(
        scene,
        motion=(),
        **{name: getattr(scene, name)[:20] for name in ("means", "quats", "scales", "opacities", "colors", "groups")},
    )
    with pytest.raises(InvalidScene, match="20; the network sees 48"):
        pipeline.generate(video, canonical=few)


def test_bundles_that_see_nothing(pipeline, ply, video):
    stages = {name: stage for name, stage in pipeline.bundle.stages.items() if name != "image"}
    without = system("gvf_diffusion")(dataclasses.replace(pipeline.bundle, stages=stages), backend(), "fp32")
    with pytest.raises(StageNotInBundle, match="cannot see pictures"):
        without.generate(video, canonical=ply)


def test_a_precision_that_is_not_there(random_gvf_bundle):
    with pytest.raises(PrecisionNotInBundle):
        edge4d.load(random_gvf_bundle, precision="fp16")


def test_changes_beyond_half_precision_are_refused(pipeline, ply, video, monkeypatch):
    class Huge:
        def run(self, inputs):
            return {"changes": np.full((1, len(inputs["queries"][0]), 14), 1e5, np.float32)}

    engine = pipeline._engine
    monkeypatch.setattr(pipeline, "_engine", lambda name: Huge() if name == "vae_attend" else engine(name))
    with pytest.raises(SamplingDiverged, match="100000"):
        pipeline.generate(video, canonical=ply, azimuth=0.0, steps=1)


def test_stages_are_timed_once_each(pipeline, ply):
    pipeline.generate(pictures(asset(), 40, 9), canonical=ply)
    names = [stage.name for stage in pipeline.timings.stages if "load" not in stage.name]
    assert names == ["read", "align", "points", "image", "dit_cond", "sample", "vae_latent", "decode"]


# --- meshes -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cubes(tmp_path_factory):
    """A cube that goes to the right, in 9 frames: more than networks take at once."""
    folder = tmp_path_factory.mktemp("cubes")
    for frame in range(9):
        write_mesh_ply(folder / f"{frame}.ply", CUBE + np.array([0.02 * frame, 0, 0], np.float32), QUADS)
    return folder


def test_a_mesh_moves_the_gaussians_of_an_asset(pipeline, ply, cubes):
    scene = pipeline.animate(cubes, canonical=ply, source_fps=5)
    assert (len(scene), scene.fps, scene.t1) == (500, 5, 1.6)
    np.testing.assert_allclose(scene.means, asset().means, atol=1e-6)
    names = [stage.name for stage in pipeline.timings.stages if "load" not in stage.name]
    assert names == ["read", "points", "encode", "vae_latent", "decode"]


def test_what_is_encoded_is_how_the_mesh_moves(pipeline, ply, cubes):
    run = {name: pipeline.backend.engine(pipeline.bundle, name, "fp32").run for name in pipeline.bundle.stages}
    scene = pipeline.animate(cubes, canonical=ply)
    gaussians = ACTIVATION.apply(raw_from_gaussians(asset()))
    anchors = gaussians.means[cpu.farthest_point_sample(gaussians.means, count=LATENTS)]
    points = values_at(sample_surface(CUBE, TRIANGLES, 64), TRIANGLES, CUBE)
    for frame in (0, 8):
        motion = np.tile(np.array([0.02 * frame, 0, 0], np.float32), (1, 64, 1))
        samples = run["vae_encode"]({"points": points, "motion": motion, "anchors": anchors})["samples"]
        queries = run["vae_query"]({"gaussians": query_from_gaussians(gaussians)})["queries"]
        changes = run["vae_attend"]({"queries": queries, **run["vae_latent"]({"samples": samples})})["changes"][0]
        # Half precision of numbers of up to 0.1; triangles are the file's polygons in another order.
        np.testing.assert_allclose(scene.motion[0].data[frame], changes, atol=0.05 * np.abs(changes).max())


def test_a_mesh_alone_gets_gaussians(pipeline, cubes):
    scene = pipeline.animate(cubes / "0.ply", anchors=100)
    assert (len(scene), scene.t1) == (GAUSSIANS, 0.0)
    np.testing.assert_allclose(np.abs(scene.means).max(axis=0), 0.3, atol=1e-6)


def test_bundles_that_encode_nothing(pipeline, cubes):
    stages = {name: stage for name, stage in pipeline.bundle.stages.items() if name != "vae_encode"}
    without = system("gvf_diffusion")(dataclasses.replace(pipeline.bundle, stages=stages), backend(), "fp32")
    with pytest.raises(StageNotInBundle, match="vae_encode"):
        without.animate(cubes)


def _static(gaussians):
    return edge4d.Scene4D(
        **gaussians._asdict(), groups=np.zeros(len(gaussians.means), np.int32), camera=object_camera(64)
    )
