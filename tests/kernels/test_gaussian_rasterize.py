"""The native rasterizers: parity with their twin, invariances, and everything that could go wrong at the edges.

Tests that take `draw` run on the CPU and on the GPU. What only the GPU has is in test_cuda_gaussian_rasterize.py.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from kernel_scenes import (
    HEIGHT,
    NAMES,
    WIDTH,
    assert_parity,
    assert_same,
    draw_cpu,
    draw_twin,
    halved,
    intrinsics,
    one_gaussian,
    psnr,
    random_scene,
    select,
)

from edge4d.kernels import cpu
from edge4d.runtime.errors import InvalidCamera, InvalidRequest, InvalidTensor, PairOverflow

# monkeypatch is undone inside threshold_pixels, so examples may share the fixture.
hypothesis_settings = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def empty_scene(channels=3, **inputs):
    scene = select(one_gaussian(color=[0] * channels), slice(0, 0))
    return {**scene, **{name: np.asarray(array, np.float32) for name, array in inputs.items()}}


# ---- parity with the twin -------------------------------------------------------------------------------------------


def test_one_gaussian_at_a_known_place(draw) -> None:
    result = draw(one_gaussian(Ks=[[intrinsics(cx=32.5, cy=24.5)]]))
    # 60 px * 0.1 m / 2 m = 3 px, blurred: 9.3 square pixels. The mean lies on the centre of pixel (32, 24).
    alpha = 0.5 * math.exp(-(3**2 + 2**2) / (2 * 9.3))
    # float32 rounding of values below 1, and of the exponential, in which an exponent of 1 has been rounded: some 1e-7
    assert result.alpha[0, 0, 24, 32, 0] == pytest.approx(0.5, abs=1e-6)
    assert result.alpha[0, 0, 26, 29, 0] == pytest.approx(alpha, abs=1e-6)
    assert result.image[0, 0, 26, 29].tolist() == pytest.approx([alpha, alpha / 2, alpha / 4], abs=1e-6)
    assert result.depth[0, 0, 26, 29, 0] == pytest.approx(2, abs=2e-6)  # a quotient of two roundings of 0.24
    assert result.stats[0, 0, :2].tolist() == [1, 0]


@pytest.mark.parametrize("sh_degree", [-1, 0, 1, 2, 3])
@pytest.mark.parametrize("antialiased", [False, True])
def test_parity(draw, monkeypatch, sh_degree, antialiased) -> None:
    scene = random_scene(1 + sh_degree, sh_degree=sh_degree)
    assert_parity(draw, monkeypatch, scene, sh_degree=sh_degree, antialiased=antialiased, eps2d=0.1)


@hypothesis_settings
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(0, 200),
    spread=st.floats(0, 2),
    antialiased=st.booleans(),
    eps2d=st.sampled_from([0.0, 0.1, 0.3, 5.0]),
    alpha_max=st.sampled_from([0.5, 0.99, 0.999, 1.0]),
    size=st.tuples(st.integers(1, 80), st.integers(1, 60)),
)
def test_parity_on_random_scenes(draw, monkeypatch, seed, count, spread, antialiased, eps2d, alpha_max, size) -> None:
    scene = random_scene(seed, count, spread=spread)
    attributes = {"antialiased": antialiased, "eps2d": eps2d, "alpha_max": alpha_max}
    # Needles without blur have slopes of thousands per pixel, where no float32 can follow: keep them a little wide.
    if eps2d == 0:
        scene["scales"] = np.maximum(scene["scales"], np.float32(0.02))
    assert_parity(draw, monkeypatch, scene, width=size[0], height=size[1], **attributes)


def test_parity_of_dense_opaque_layers(draw, monkeypatch) -> None:
    scene = random_scene(5, 800)
    scene["opacities"] = np.float32(1) - scene["opacities"] * np.float32(0.1)
    assert_parity(draw, monkeypatch, scene)


def test_parity_of_long_needles(draw, monkeypatch) -> None:
    # 30 px long, blurred to 0.55 px wide, at all angles: where a plain quadric in float32 loses its digits.
    scene = random_scene(6, 100)
    scene["scales"] = np.broadcast_to(np.float32([2, 1e-3, 1e-3]), scene["scales"].shape).copy()
    assert_parity(draw, monkeypatch, scene)


def test_parity_across_the_near_plane(draw, monkeypatch) -> None:
    scene = random_scene(7, 200)
    scene["means"][..., 2] = np.linspace(-0.5, 0.5, 200)
    assert_parity(draw, monkeypatch, scene, near=0.05)


def test_parity_of_one_gaussian_over_the_whole_screen(draw, monkeypatch) -> None:
    assert_parity(draw, monkeypatch, one_gaussian(scale=(50, 50, 50), opacity=0.9))
    assert_parity(draw, monkeypatch, one_gaussian(mean=(3, 1, 0.02), scale=(1, 2, 3), opacity=0.9))


@pytest.mark.parametrize("mean", [(40, 0, 0.02), (-300, 100, 0.02), (4000, -3000, 0.02)])
def test_parity_of_means_far_off_the_screen(draw, monkeypatch, mean) -> None:
    size = 0.4 * max(np.abs(mean))  # large enough to reach the screen over millions of pixels
    assert_parity(draw, monkeypatch, one_gaussian(mean=mean, scale=(size, size, size), opacity=0.9))


def test_parity_of_equal_depths(draw, monkeypatch) -> None:
    scene = random_scene(8, 400)
    scene["means"][..., 2] = 4
    scene["viewmats"][:] = np.eye(4)
    assert_parity(draw, monkeypatch, scene)


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 8])
def test_parity_of_any_number_of_channels(draw, monkeypatch, channels) -> None:
    scene = random_scene(9, 100)
    rng = np.random.default_rng(9)
    scene["colors"] = rng.uniform(-1, 1, (1, 100, channels)).astype(np.float32)
    scene["background"] = rng.uniform(0, 1, channels).astype(np.float32)
    assert_parity(draw, monkeypatch, scene)


@pytest.mark.parametrize("principal", [(-40.5, 20.25), (WIDTH + 30, HEIGHT / 2), (0, HEIGHT), (31.4, -25)])
def test_parity_of_principal_points_off_the_centre(draw, monkeypatch, principal) -> None:
    scene = random_scene(25, 300)
    scene["means"][..., :2] *= 2  # wide enough for what the camera then looks at
    scene["Ks"][:] = intrinsics(60, *principal)
    assert_parity(draw, monkeypatch, scene)


@pytest.mark.parametrize("floor", [0, 0.005, 0.5, 1])
def test_parity_of_compensation_floors(draw, monkeypatch, floor) -> None:
    scene = random_scene(26, 300)
    scene["scales"] *= np.float32(0.1)  # thin: the blur is most of what is seen
    assert_parity(draw, monkeypatch, scene, antialiased=True, compensation_floor=floor)


@pytest.mark.parametrize("alpha_max", [0.5, 0.99, 0.999, 1])
def test_parity_of_opacities_at_their_ends(draw, monkeypatch, alpha_max) -> None:
    scene = random_scene(27, 200)
    scene["opacities"] = np.round(scene["opacities"])
    assert_parity(draw, monkeypatch, scene, alpha_max=alpha_max)


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (9, 7), (15, 17), (16, 16), (17, 1), (1, 33), (40, 24)])
def test_parity_of_any_size(draw, monkeypatch, size) -> None:
    scene = random_scene(10, 100)
    scene["Ks"][:] = intrinsics(20, size[0] / 2, size[1] / 2)
    assert_parity(draw, monkeypatch, scene, width=size[0], height=size[1])


def test_an_8k_image_has_exact_edges(draw, monkeypatch) -> None:
    # A sharp Gaussian far from the origin of a large image: the picture of a small window around it is the same.
    scene = one_gaussian(scale=(0.002, 0.01, 0.002), quat=(0.9, 0.1, 0.2, 0.4), Ks=[[intrinsics(500, 7000.3, 4100.7)]])
    window = {**scene, "Ks": np.float32([[intrinsics(500, 32.3, 24.7)]])}  # 6968 and 4076 pixels in
    # The principal point itself has only 11 bits below the pixel there: use the value that float32 gives.
    window["Ks"][0, 0, :2, 2] = scene["Ks"][0, 0, :2, 2] - np.float32([6968, 4076])
    large = draw(scene, 7680, 4320, outputs=2).alpha[0, 0, 4076 : 4076 + 48, 6968 : 6968 + 64]
    np.testing.assert_allclose(large, draw_twin(window).alpha[0, 0], atol=2e-4)  # CONVENTIONS.md's bar


@pytest.mark.parametrize("instructions", ["baseline", "avx2"])
def test_every_instruction_set_agrees(tmp_path, instructions) -> None:
    """The choice is made once per process, so another process draws the same scene."""
    scene = random_scene(11, sh_degree=2)
    np.savez(tmp_path / "scene.npz", **scene)
    script = (
        "import sys, numpy as np; from edge4d.kernels import cpu, _library\n"
        "scene = np.load(sys.argv[1]); arrays = [scene[name] for name in sys.argv[3:]]\n"
        "result = cpu.gaussian_rasterize(*arrays, width=64, height=48, sh_degree=2)\n"
        "np.savez(sys.argv[2], **result._asdict())\n"
        "print(_library.load().edge4d_cpu_instructions().decode())\n"
    )
    command = [sys.executable, "-c", script, tmp_path / "scene.npz", tmp_path / "result.npz", *NAMES]
    environment = {**os.environ, "EDGE4D_CPU_INSTRUCTIONS": instructions}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    used = done.stdout.strip()
    if used != instructions:
        assert instructions == "avx2"  # the baseline runs everywhere
        pytest.skip("this machine has no AVX2")
    twin = draw_twin(scene, sh_degree=2)
    with np.load(tmp_path / "result.npz") as result:
        close = np.abs(result["image"] - twin.image) <= 2e-4
        assert close.mean() >= 0.999
        np.testing.assert_array_equal(result["stats"][..., :2], twin.stats[..., :2])


# ---- storage --------------------------------------------------------------------------------------------------------


def test_half_precision_scene_is_the_same_scene_in_float32(draw) -> None:
    scene = random_scene(12, sh_degree=1)
    half = halved(scene)
    single = {**scene, **{name: half[name].astype(np.float32) for name in NAMES[:5]}}
    assert_same(draw(half, sh_degree=1), draw(single, sh_degree=1))


def test_half_precision_keeps_45_db(draw) -> None:
    scene = random_scene(13)
    half = halved(scene)
    image = draw(half, out_dtype="float16").image
    assert psnr(image, draw_twin(half).image) >= 45  # CONVENTIONS.md; the storage alone gives over 60


def test_stored_results_are_rounded_float32_results(draw) -> None:
    scene = random_scene(14)
    single, half, byte = (draw(scene, out_dtype=dtype) for dtype in ("float32", "float16", "uint8"))
    assert_same(half[:3], [array.astype(np.float16) for array in single[:3]])
    # To the nearest; near a tie either way, as the product is rounded before the sum or not: 255 * 2**-24 is 1.5e-5.
    assert np.abs(byte.image - np.clip(single.image, 0, 1).astype(np.float64) * 255).max() <= 0.5 + 2e-5
    assert_same(byte[1:3], single[1:3])


def test_every_half_is_read_and_written_exactly() -> None:
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)]
    scene = one_gaussian(color=halves.astype(np.float32), opacity=0.5, Ks=[[intrinsics(cx=0.5, cy=0.5)]])
    half = halved(scene)
    scene = {**scene, **{name: half[name].astype(np.float32) for name in NAMES[:5]}}
    assert_same(draw_cpu(half, 1, 1), draw_cpu(scene, 1, 1))
    # Without Gaussians the image is the background: float32 values between, at and beyond halves come out rounded.
    rng = np.random.default_rng(0)
    values = np.concatenate(
        [halves, rng.normal(size=999) * 10.0 ** rng.integers(-9, 5, 999), [65519, 65520, 1e9, 1e-9]]
    )
    values = values.astype(np.float32)
    image = draw_cpu(empty_scene(len(values), background=values), 1, 1, out_dtype="float16").image
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(image.ravel(), values.astype(np.float16))


def test_outputs_that_were_not_asked_for_are_empty(draw) -> None:
    scene = random_scene(15)
    everything = draw(scene)
    for outputs in range(8):
        some = draw(scene, outputs=outputs)
        for bit, (one, other) in enumerate(zip(some[:3], everything[:3])):
            np.testing.assert_array_equal(one, other if outputs & 1 << bit else np.empty(0))
        np.testing.assert_array_equal(some.stats, everything.stats)


# ---- invariances ----------------------------------------------------------------------------------------------------


def test_a_batch_is_its_parts(draw) -> None:
    scene = random_scene(16, batch=2, cameras=3)
    whole = draw(scene)
    for b in range(2):
        for v in range(3):
            part = draw(select(scene, batch=slice(b, b + 1), cameras=slice(v, v + 1)))
            assert_same(part, [array[b : b + 1, v : v + 1] for array in whole])


def test_threads_do_not_change_a_bit() -> None:
    scene = random_scene(17, 20000)  # several chunks of Gaussians
    scene["scales"] *= np.float32(0.2)
    results = [draw_cpu(scene, threads=threads) for threads in (1, 2, 3, 7)]
    for result in results[1:]:
        assert_same(result, results[0])


@hypothesis_settings
@given(seed=st.integers(0, 2**32 - 1))
def test_the_order_of_gaussians_does_not_matter(draw, seed) -> None:
    scene = random_scene(seed, 200)
    assume(len(np.unique(scene["means"][..., 2])) == 200)
    order = np.random.default_rng(seed).permutation(200)
    scene["viewmats"][:] = np.eye(4)  # so that distinct means have distinct depths
    assert_same(draw(select(scene, order)), draw(scene))


def test_hidden_gaussians_do_not_matter_however_many_they_are(draw) -> None:
    # 1100 screens of 16384 tiles are more entries than are held at once. Behind the fourth opaque one nothing shows.
    count, size = 1100, 2048
    scene = one_gaussian(
        means=[[[0, 0, 2 + 0.001 * i] for i in reversed(range(count))]],
        quats=[[[1, 0, 0, 0]] * count],
        scales=[[[50, 50, 0.1]] * count],
        opacities=[[0.95] * count],
        colors=[[[i / count] for i in range(count)]],
        background=[0.0],
        Ks=[[intrinsics(size, size / 2, size / 2)]],
    )
    shown = draw(scene, size, size, outputs=1, out_dtype="float16")
    pairs = shown.stats[0, 0, 2]
    assert shown.stats[0, 0].tolist() == [count, 0, pairs, pairs, 0]
    assert pairs % count == 0  # every Gaussian with every tile, of whatever size these are
    assert pairs >= count * 64**2
    near = draw(select(scene, slice(-8, None)), size, size, outputs=1, out_dtype="float16")
    np.testing.assert_array_equal(shown.image, near.image)


# ---- edges ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("out_dtype", ["float32", "float16", "uint8"])
def test_no_gaussians_give_the_background(draw, out_dtype) -> None:
    result = draw(empty_scene(background=[0, 0.5, 1]), out_dtype=out_dtype)
    expected = [0, 128, 255] if out_dtype == "uint8" else [0, 0.5, 1]
    assert (result.image == np.array(expected, out_dtype)).all()
    assert not result.alpha.any()
    assert not result.depth.any()
    assert not result.stats.any()


@pytest.mark.parametrize("batch", [0, 1])
def test_no_cameras_give_no_images(draw, batch) -> None:
    scene = random_scene(18, 10, batch=batch, cameras=0)
    assert draw(scene).image.shape == (batch, 0, 48, 64, 3)


@pytest.mark.parametrize("name", NAMES[:5])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_what_is_not_finite_is_counted_and_never_spreads(draw, name, value, dtype) -> None:
    scene = random_scene(19, 50, sh_degree=1)
    scene.update({key: scene[key].astype(dtype) for key in NAMES[:5]})
    bad = np.array([0, 7, 49])
    scene[name].reshape(50, -1)[bad, -1] = value
    result = draw(scene, sh_degree=1)
    assert result.stats[0, 0, 1] == len(bad)
    rest = draw(select(scene, np.delete(np.arange(50), bad)), sh_degree=1)
    assert_same(result[:3], rest[:3])


def test_a_quaternion_of_zeros_counts_as_not_finite(draw) -> None:
    result = draw(one_gaussian(quat=(0, 0, 0, 0)))
    assert result.stats[0, 0, :2].tolist() == [0, 1]
    assert not result.alpha.any()


@pytest.mark.parametrize("scale", [(0, 0, 0), (0.1, 0, 0), (0.1, 0.1, 0), (-0.1, 0.1, 0.1)])
def test_degenerate_covariances(draw, monkeypatch, scale) -> None:
    assert_parity(draw, monkeypatch, one_gaussian(scale=scale, quat=(1, 0.3, 0.2, 0.1)))
    if 0 in scale[:2]:  # a line or a point without blur has no area: culled
        assert not draw(one_gaussian(scale=scale), eps2d=0).alpha.any()


@hypothesis_settings
@given(
    data=st.data(), eps2d=st.sampled_from([0.0, 0.3]), antialiased=st.booleans(), near=st.sampled_from([1e-30, 0.01])
)
def test_any_float_is_survived(draw, data, eps2d, antialiased, near) -> None:
    """Whatever the bits say, the call returns, writes finite alpha in 0..1, and counts everyone."""
    floats = st.floats(width=32) | st.sampled_from([1e-38, 3e38, -3e38, 0.0, 1.0, 2.0])
    draws = {"means": 3, "quats": 4, "scales": 3, "opacities": 1}
    values = {n: data.draw(st.lists(floats, min_size=4 * k, max_size=4 * k)) for n, k in draws.items()}
    scene = random_scene(20, 4)
    for name, k in draws.items():
        scene[name] = np.array(values[name], np.float32).reshape((1, 4) if k == 1 else (1, 4, k))
    result = draw(scene, eps2d=eps2d, antialiased=antialiased, near=near)
    assert ((result.alpha >= 0) & (result.alpha <= 1)).all()
    assert np.isfinite(result.image).all()
    assert 0 <= result.stats[0, 0, 0] + result.stats[0, 0, 1] <= 4


def test_too_few_pairs_are_reported_and_nothing_is_drawn(draw) -> None:
    scene = random_scene(21, cameras=2)
    needed = draw(scene).stats[0, :, 2]
    enough = draw(scene, max_pairs=int(needed.max()))
    assert enough.stats[0, :, 4].tolist() == [0, 0]
    assert enough.stats[0, :, 3].tolist() == [needed.max()] * 2
    assert_same(enough[:3], draw(scene)[:3])
    short = draw(scene, max_pairs=int(needed.min()) - 1)
    assert short.stats[0, :, 2:].tolist() == [[n, needed.min() - 1, 1] for n in needed]
    assert not short.alpha.any()
    assert (short.image == scene["background"]).all()


def test_too_many_pairs_to_count_are_refused() -> None:
    count, size = 600, 32768  # 4 M tiles each: over 2^31
    scene = one_gaussian(
        means=[[[0, 0, 2]] * count],
        quats=[[[1, 0, 0, 0]] * count],
        scales=[[[50, 50, 1]] * count],
        opacities=[[0.9] * count],
        colors=[[[1, 1, 1]] * count],
        Ks=[[intrinsics(size, size / 2, size / 2)]],
    )
    with pytest.raises(PairOverflow, match=f"{count * 2048**2}"):
        draw_cpu(scene, size, size, outputs=0)


# ---- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_shape_is_named(name) -> None:
    scene = random_scene(22, 10)
    scene[name] = scene[name][..., :-1]
    expected = "background" if name == "colors" else name  # colours decide C; the background then disagrees
    with pytest.raises(InvalidTensor, match=f"'{expected}' has the wrong shape"):
        draw_cpu(scene)


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_dtype_is_named(name) -> None:
    scene = random_scene(22, 10)
    scene[name] = scene[name].astype(np.int64)
    with pytest.raises(InvalidTensor, match=f"'{name}' has the wrong dtype"):
        draw_cpu(scene)


def test_gaussians_share_one_dtype() -> None:
    scene = random_scene(22, 10)
    scene["scales"] = scene["scales"].astype(np.float16)
    with pytest.raises(InvalidTensor, match=r"float16.*float32"):
        draw_cpu(scene)


def test_lists_are_not_arrays() -> None:
    scene = random_scene(22, 10)
    scene["means"] = scene["means"].tolist()
    with pytest.raises(InvalidTensor, match="not a NumPy array"):
        draw_cpu(scene)


def test_strided_and_double_inputs_are_converted() -> None:
    scene = random_scene(22, 40)
    strided = {name: np.asfortranarray(array) for name, array in scene.items()}
    cameras = {name: scene[name].astype(np.float64) for name in NAMES[5:]}
    assert_same(draw_cpu({**strided, **cameras}), draw_cpu(scene))


@pytest.mark.parametrize(
    "change",
    [
        lambda pose: pose[:3] * 2,  # scaled
        lambda pose: pose[:3] * [[-1], [1], [1]],  # mirrored
        lambda pose: pose[:3] @ np.float32([[1, 0.1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),  # sheared
        lambda pose: pose[:3] * np.nan,
    ],
)
def test_a_pose_that_is_not_rigid_is_refused(change) -> None:
    scene = random_scene(23, 10)
    scene["viewmats"][0, 0, :3] = change(scene["viewmats"][0, 0])
    with pytest.raises(InvalidCamera, match="not rigid"):
        draw_cpu(scene)


def test_a_last_row_that_is_not_0001_is_refused() -> None:
    scene = random_scene(23, 10)
    scene["viewmats"][0, 0, 3, 0] = 1
    with pytest.raises(InvalidCamera, match="not rigid"):
        draw_cpu(scene)


@pytest.mark.parametrize(("place", "value"), [((0, 0), 0), ((1, 1), -60), ((0, 2), np.nan), ((0, 1), 0.5), ((2, 2), 2)])
def test_intrinsics_that_cannot_be_used_are_refused(place, value) -> None:
    scene = random_scene(23, 10)
    scene["Ks"][0, 0][place] = value
    with pytest.raises(InvalidCamera, match="intrinsics"):
        draw_cpu(scene)


@pytest.mark.parametrize(
    "attributes",
    [
        {"width": 0}, {"height": -1}, {"near": 0}, {"near": 2, "far": 1}, {"eps2d": -1}, {"eps2d": math.nan},
        {"alpha_max": 0}, {"alpha_max": 1.5}, {"max_pairs": -1}, {"outputs": 8}, {"out_dtype": "float64"},
        {"compensation_floor": -1}, {"sh_degree": -2},
    ],
)  # fmt: skip
def test_attributes_that_cannot_work_are_refused(attributes) -> None:
    with pytest.raises(InvalidRequest):
        draw_cpu(random_scene(24, 10), **attributes)


def test_degree_and_coefficients_must_fit() -> None:
    scene = random_scene(24, 10, sh_degree=2)
    with pytest.raises(InvalidTensor, match="K is 9; sh_degree 3 needs 16"):
        draw_cpu(scene, sh_degree=3)
    with pytest.raises(InvalidRequest, match="degree"):
        draw_cpu(scene, sh_degree=4)
    draw_cpu(scene, sh_degree=1)  # the higher coefficients are left out


def test_a_struct_of_another_version_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="of another version"):
        cpu._call("gaussian_rasterize", cpu._library.GaussianRasterizeCall(size=8), 0)
