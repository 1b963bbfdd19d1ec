"""The CUDA rasterizer: what only a GPU can get wrong. What it shares with the CPU is in test_gaussian_rasterize.py.

Scenes too large for the twin are compared with the CPU kernel, which is itself held to the twin. The tests named
sanitize are small and use plain memory of the exact sizes, for compute-sanitizer:

    compute-sanitizer --tool racecheck --error-exitcode 9 python -P -m pytest -m gpu -k sanitize tests/kernels
"""

from __future__ import annotations

import ctypes
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_scenes import (
    HEIGHT,
    NAMES,
    WIDTH,
    assert_same,
    draw_cpu,
    halved,
    intrinsics,
    one_gaussian,
    pixels_far_off,
    psnr,
    random_scene,
    select,
)

from edge4d.kernels import _library

pytestmark = pytest.mark.gpu

MANY_TILES = (1280, 320)  # with fewer than 1500, float32 is as fast, and what `fast` takes too


def assert_like_the_cpu(device, scene, width=WIDTH, height=HEIGHT, **attributes) -> None:
    """CONVENTIONS.md's bars, off the thresholds and on them together: at most 0.1 % of the pixels may be 2e-4 off."""
    ours, cpu = device.draw(scene, width, height, **attributes), draw_cpu(scene, width, height, **attributes)
    np.testing.assert_array_equal(ours.stats[..., 1], cpu.stats[..., 1])
    # A box that touches the image's border by a rounding error counts on one side alone; about one in a million does.
    strays = np.abs(ours.stats[..., 0] - cpu.stats[..., 0]).max(initial=0)
    assert strays <= 1 + scene["means"].shape[1] // 100_000, f"{strays} Gaussians are visible on one side alone"
    far_off = pixels_far_off(ours, cpu)
    assert far_off.sum() <= max(1, 1e-3 * far_off.size), f"{far_off.sum()} of {far_off.size} pixels are off"


def many_gaussians(seed: int, count: int, width: int, height: int, *, pixels=2.0, **options) -> dict[str, np.ndarray]:
    """A scene that fills an image of that size with Gaussians of about so many pixels, seen by cameras that differ."""
    scene = random_scene(seed, count, **options)
    focal = 0.8 * max(width, height)
    rng = np.random.default_rng(seed)
    z = rng.uniform(2, 9, scene["opacities"].shape)
    places = rng.uniform(-0.1, 1.1, (*z.shape, 2)) * [width, height] - [width / 2, height / 2]
    scene["means"] = np.float32(np.concatenate([places * z[..., None] / focal, z[..., None]], -1))
    scene["scales"] = np.float32(pixels / focal * z[..., None] * np.exp(rng.normal(0, 0.6, scene["scales"].shape)))
    scene["Ks"][:] = intrinsics(focal, width / 2, height / 2)
    return scene


# ---- parity with the CPU kernel -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "attributes"),
    [
        ({}, {}),
        ({"pixels": 0.4}, {"antialiased": True, "eps2d": 0.1}),
        ({"pixels": 0.4}, {"antialiased": True, "compensation_floor": 0.005}),
        ({"pixels": 12}, {"alpha_max": 0.99}),
        ({"sh_degree": 0}, {"sh_degree": 0}),
        ({"sh_degree": 3}, {"sh_degree": 3}),
        ({"sh_degree": 3}, {"sh_degree": 1}),
        ({"batch": 2, "cameras": 3}, {"near": 3.0, "far": 7.0}),
    ],
)
@pytest.mark.parametrize("size", [(640, 480), (333, 77)])
def test_many_gaussians(device, options, attributes, size) -> None:
    assert_like_the_cpu(device, many_gaussians(1, 20_000, *size, **options), *size, **attributes)


@pytest.mark.parametrize("channels", [1, 3, 4, 8])
def test_many_gaussians_of_any_number_of_channels(device, channels) -> None:
    scene = many_gaussians(2, 20_000, 320, 200)
    rng = np.random.default_rng(2)
    scene["colors"] = rng.uniform(-1, 1, (1, 20_000, channels)).astype(np.float32)
    scene["background"] = rng.uniform(0, 1, channels).astype(np.float32)
    assert_like_the_cpu(device, scene, 320, 200)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(0, 5000),
    pixels=st.floats(0.1, 6),
    batch=st.integers(1, 2),
    cameras=st.integers(1, 3),
    sh_degree=st.integers(-1, 3),
    size=st.tuples(st.integers(1, 300), st.integers(1, 200)),
    attributes=st.fixed_dictionaries(
        {
            "antialiased": st.booleans(),
            "eps2d": st.sampled_from([0.1, 0.3, 5.0]),
            "alpha_max": st.sampled_from([0.5, 0.99, 0.999, 1.0]),
            "outputs": st.integers(1, 7),
        }
    ),
    half=st.booleans(),
)
def test_random_scenes(device, seed, count, pixels, batch, cameras, sh_degree, size, attributes, half) -> None:
    scene = many_gaussians(seed, count, *size, pixels=pixels, batch=batch, cameras=cameras, sh_degree=sh_degree)
    scene = halved(scene) if half else scene
    assert_like_the_cpu(device, scene, *size, sh_degree=sh_degree, **attributes)


def neighbours(steps: np.ndarray) -> np.ndarray:
    """The float32 that lie so many steps above 4."""
    return (np.float32(4).view(np.int32) + steps).astype(np.int32).view(np.float32)


ORDERS = {
    "shuffled": lambda rng, count: rng.uniform(2, 6, count),
    "near to far": lambda rng, count: np.sort(rng.uniform(2, 6, count)),
    "far to near": lambda rng, count: np.sort(rng.uniform(2, 6, count))[::-1],
    "all equal": lambda rng, count: np.full(count, 4.0),
    "few values": lambda rng, count: 2 + rng.integers(0, 16, count) / 4,
    "neighbouring floats": lambda rng, count: neighbours(rng.permutation(count)),
    "all magnitudes": lambda rng, count: np.exp(rng.uniform(math.log(0.011), math.log(1e9), count)),
}


def one_tile(count: int, order: str, opacities: tuple[float, float]) -> dict[str, np.ndarray]:
    """Gaussians that all cover the same 16 x 16 pixels; alpha stays clear of 1/255, so only their order matters."""
    rng = np.random.default_rng(count)
    z = ORDERS[order](rng, count).astype(np.float32)[None, :, None]
    scene = {
        "means": np.concatenate([rng.uniform(-0.02, 0.02, (1, count, 2)) * z, z], -1),
        "quats": rng.normal(size=(1, count, 4)),
        "scales": 0.5 * z * rng.uniform(1, 1.2, (1, count, 3)),  # 30 pixels
        "opacities": rng.uniform(*opacities, (1, count)),
        "colors": rng.uniform(size=(1, count, 3)),
        "viewmats": np.eye(4)[None, None],  # so that z is exact, and equal where it is meant to be
        "Ks": intrinsics(60, 8, 8)[None, None],
        "background": np.zeros(3),
    }
    return {name: np.asarray(array, np.float32) for name, array in scene.items()}


FAINT, STRONG = (0.005, 0.008), (0.1, 0.6)  # some 1500 Gaussians are seen; some 25, and a swap of two shows


@pytest.mark.parametrize("opacities", [FAINT, STRONG], ids=["faint", "strong"])
@pytest.mark.parametrize("count", [1, 2, 31, 33, 255, 257, 1023, 1024, 1025, 2049, 4097, 5000, 8193, 16385, 65537])
def test_all_in_one_tile(device, count, opacities) -> None:
    assert_like_the_cpu(device, one_tile(count, "shuffled", opacities), 16, 16)


@pytest.mark.parametrize("opacities", [FAINT, STRONG], ids=["faint", "strong"])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("count", [3000, 200_000])
def test_all_in_one_tile_in_any_order(device, count, order, opacities) -> None:
    assert_like_the_cpu(device, one_tile(count, order, opacities), 16, 16)


def test_one_crowded_tile_among_many(device) -> None:
    width, height = 512, 512
    scene = many_gaussians(3, 60_000, width, height, pixels=1)
    scene["means"][:, ::2, :2] *= np.float32(0.01)  # half of them in five pixels
    assert_like_the_cpu(device, scene, width, height)


def test_gaussians_over_the_whole_screen(device) -> None:
    scene = many_gaussians(4, 300, 1280, 720, pixels=1500)
    assert_like_the_cpu(device, scene, 1280, 720)


def test_an_8k_image(device) -> None:
    scene = many_gaussians(5, 50_000, 7680, 4320, pixels=12)
    scene["colors"], scene["background"] = scene["colors"][..., :1].copy(), scene["background"][:1]
    assert_like_the_cpu(device, scene, 7680, 4320, outputs=1)


@pytest.mark.parametrize("size", [(1, 1080), (1920, 1), (8, 4096), (4096, 16), (1921, 1081)])
def test_long_and_odd_images(device, size) -> None:
    assert_like_the_cpu(device, many_gaussians(6, 5000, *size, pixels=3), *size)


def test_all_behind_the_camera(device) -> None:
    scene = random_scene(7, 3000)
    scene["means"][..., 2] *= -1
    result = device.draw(scene, max_pairs=100)
    assert result.stats[0, 0].tolist() == [0, 0, 0, 100, 0]
    assert not result.alpha.any()
    assert not result.depth.any()
    assert (result.image == scene["background"]).all()


# ---- precision ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("out_dtype", ["float32", "float16", "uint8"])
@pytest.mark.parametrize("half", [False, True], ids=["from float32", "from float16"])
@pytest.mark.parametrize("sh_degree", [-1, 2])
def test_fast_keeps_45_db(device, out_dtype, half, sh_degree) -> None:
    for pixels, size in ((0.7, MANY_TILES), (3, MANY_TILES), (20, MANY_TILES), (3, (320, 200))):
        scene = many_gaussians(8, 40_000, *size, pixels=pixels, sh_degree=sh_degree)
        scene = halved(scene) if half else scene
        exact = draw_cpu(scene, *size, sh_degree=sh_degree)
        fast = device.draw(scene, *size, sh_degree=sh_degree, out_dtype=out_dtype, fast=True)
        image = fast.image / 255 if out_dtype == "uint8" else fast.image
        assert psnr(image, np.clip(exact.image, 0, 1) if out_dtype == "uint8" else exact.image) >= 45
        assert psnr(fast.alpha, exact.alpha) >= 45
        # Depth is in metres, up to 9 of them here: the same bar for its share of that.
        assert psnr(fast.depth / 9, exact.depth / 9) >= 45
        np.testing.assert_array_equal(fast.stats[..., 1], exact.stats[..., 1])


@pytest.mark.parametrize("opacities", [FAINT, STRONG], ids=["faint", "strong"])
@pytest.mark.parametrize("order", ["shuffled", "all equal"])
def test_fast_keeps_45_db_in_a_crowd(device, order, opacities) -> None:
    scene = one_tile(5000, order, opacities)
    fast, exact = device.draw(scene, *MANY_TILES, fast=True), draw_cpu(scene, *MANY_TILES)
    assert psnr(fast.image[..., :16, :16, :], exact.image[..., :16, :16, :]) >= 45
    assert psnr(fast.image, exact.image) >= 45


def test_fast_keeps_colours_that_float16_cannot_hold(device) -> None:
    scene = one_gaussian(scale=(50, 50, 50), opacity=0.5)
    scene["colors"][:] = [1e6, -1e6, 0.5]
    image = device.draw(scene, *MANY_TILES, fast=True).image
    middle = image[0, 0, HEIGHT // 2, WIDTH // 2]
    # 65504 at most, times an alpha of 0.5 with the eleven bits of float16; the background is added to it.
    np.testing.assert_allclose(middle, [0.5 * 65504, -0.5 * 65504, 0.25] + 0.5 * scene["background"], rtol=2e-3)


def test_fast_skips_what_is_not_finite(device) -> None:
    scene = random_scene(9, 2000)
    scene["means"][0, 5], scene["colors"][0, 6, 1], scene["scales"][0, 7, 2] = np.nan, np.inf, -np.inf
    result = device.draw(scene, *MANY_TILES, fast=True, out_dtype="float16")
    assert result.stats[0, 0, 1] == 3
    assert np.isfinite(result.image).all()


# ---- the same bits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fast", [False, True], ids=["exact", "fast"])
def test_every_run_gives_the_same_bits(device, fast) -> None:
    scene = many_gaussians(10, 50_000, *MANY_TILES, cameras=2)
    scene["means"][:, ::3, 2] = 4  # ties
    drawing = device.prepare(scene, *MANY_TILES, max_pairs=1_000_000, fast=fast)
    first = drawing.run()
    for _ in range(10):
        assert_same(drawing.run(), first)


@pytest.mark.parametrize("fast", [False, True], ids=["exact", "fast"])
@pytest.mark.parametrize("out_dtype", ["float32", "float16", "uint8"])
@pytest.mark.parametrize("outputs", [1, 2, 4, 7])
def test_what_was_in_the_memory_before_does_not_matter(device, outputs, out_dtype, fast) -> None:
    attributes = {"outputs": outputs, "out_dtype": out_dtype, "fast": fast, "max_pairs": 40_000}
    scene = random_scene(11, 700, batch=2, cameras=2)
    size = MANY_TILES if fast else (77, 45)
    clean, ones, noise = (device.draw(scene, *size, fill=fill, **attributes) for fill in (0, 0xFF, "noise"))
    assert not clean.stats[..., 4].any()
    assert_same(ones, clean)
    assert_same(noise, clean)


def test_what_was_drawn_before_does_not_matter(device) -> None:
    scene, other = random_scene(12, 900), random_scene(13, 900)
    drawing = device.prepare(scene, max_pairs=100_000)
    first = drawing.run()
    drawing.load(other)
    drawing.run()
    drawing.load(scene)
    assert_same(drawing.run(), first)


def test_two_streams_do_not_disturb_each_other(device) -> None:
    scenes = [many_gaussians(seed, 30_000, 320, 240) for seed in (14, 15)]
    expected = [device.draw(scene, 320, 240, max_pairs=400_000) for scene in scenes]
    drawings = [device.prepare(scene, 320, 240, max_pairs=400_000, own_stream=True) for scene in scenes]
    for _ in range(5):
        for drawing in drawings:
            drawing.launch()
    for drawing, picture in zip(drawings, expected):
        assert_same(drawing.result(), picture)


@pytest.mark.parametrize("fast", [False, True], ids=["exact", "fast"])
def test_a_graph_follows_its_inputs(device, fast) -> None:
    """Captured once, replayed with other cameras and other Gaussians: what a call would have drawn."""
    scenes = [random_scene(16 + i, 3000, batch=2, cameras=2) for i in range(3)]
    wider = scenes[1]["Ks"] * np.float32([0.7, 0.7, 1])
    scenes.append({**scenes[0], "viewmats": scenes[1]["viewmats"], "Ks": wider})
    attributes = {"max_pairs": 300_000, "fast": fast}
    size = MANY_TILES if fast else (WIDTH, HEIGHT)
    drawing = device.prepare(scenes[0], *size, **attributes)
    replay = drawing.captured()
    for scene in (*scenes, scenes[0]):
        drawing.load(scene)
        replay()
        assert_same(drawing.result(), device.draw(scene, *size, **attributes))


def test_a_graph_recovers_from_overflow(device) -> None:
    scene = random_scene(20, 500)
    crowd = {**scene, "scales": scene["scales"] * np.float32(10)}
    needed, too_many = (int(device.draw(s, max_pairs=10**6).stats[0, 0, 2]) for s in (scene, crowd))
    assert needed < too_many
    drawing = device.prepare(scene, max_pairs=needed)
    replay = drawing.captured()
    for inputs, overflow in ((scene, 0), (crowd, 1), (scene, 0)):
        drawing.load(inputs)
        replay()
        result = drawing.result()
        assert result.stats[0, 0, 4] == overflow
        assert result.alpha.any() == (not overflow)
    assert_same(result, device.draw(scene, max_pairs=needed))


# ---- capacity -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slack", [-1, 0, 1])
@pytest.mark.parametrize("fast", [False, True], ids=["exact", "fast"])
def test_pairs_needed_are_exact(device, slack, fast) -> None:
    scene = many_gaussians(21, 5000, *MANY_TILES)
    free = device.draw(scene, *MANY_TILES, max_pairs=1_000_000, fast=fast)
    visible, nonfinite, needed = free.stats[0, 0, :3].tolist()
    result = device.draw(scene, *MANY_TILES, max_pairs=needed + slack, fast=fast)
    assert result.stats[0, 0].tolist() == [visible, nonfinite, needed, needed + slack, int(slack < 0)]
    if slack < 0:
        assert (result.image == scene["background"]).all()
        assert not result.alpha.any()
        assert not result.depth.any()
    else:
        assert_same(result[:3], free[:3])


def test_images_overflow_alone(device) -> None:
    scene = random_scene(22, 1000, batch=2, cameras=3)
    scene["scales"][1] *= np.float32(3)
    scene["Ks"][0, 1] = intrinsics(120)
    free = device.draw(scene, max_pairs=1_000_000)
    needed = free.stats[..., 2]
    capacity = int(np.median(needed))
    result = device.draw(scene, max_pairs=capacity)
    np.testing.assert_array_equal(result.stats[..., 2], needed)
    np.testing.assert_array_equal(result.stats[..., 4], needed > capacity)
    assert 0 < (needed > capacity).sum() < 6
    for b, v in np.ndindex(2, 3):
        if needed[b, v] > capacity:
            assert (result.image[b, v] == scene["background"]).all()
            assert not result.alpha[b, v].any()
        else:
            assert_same([plane[b, v] for plane in result[:3]], [plane[b, v] for plane in free[:3]])


def test_a_capacity_of_one(device) -> None:
    tiny = one_gaussian(scale=(1e-3, 1e-3, 1e-3), Ks=[[intrinsics(cx=20.5, cy=20.5)]])
    assert device.draw(tiny, max_pairs=1).stats[0, 0].tolist() == [1, 0, 1, 1, 0]
    assert device.draw(random_scene(23, 5000), max_pairs=1).stats[0, 0, 3:].tolist() == [1, 1]


def test_pairs_stop_counting_at_the_largest_int32(device) -> None:
    count, size = 600, 32768  # over 4 M tiles each
    scene = one_gaussian(
        means=[[[0, 0, 2]] * count],
        quats=[[[1, 0, 0, 0]] * count],
        scales=[[[50, 50, 1]] * count],
        opacities=[[0.9] * count],
        colors=[[[1, 1, 1]] * count],
        Ks=[[intrinsics(size, size / 2, size / 2)]],
    )
    result = device.draw(scene, size, size, outputs=0, max_pairs=1000)
    assert result.stats[0, 0].tolist() == [count, 0, 2**31 - 1, 1000, 1]


# ---- what the C interface refuses -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"size": 8}, {"batch": -1}, {"cameras": -1}, {"gaussians": -1}, {"channels": 0}, {"dtype": 2}, {"dtype": -1},
        {"width": 0}, {"height": -3}, {"near": 0.0}, {"near": 2.0, "far": 1.0}, {"eps2d": -1.0}, {"alpha_max": 0.0},
        {"alpha_max": 1.5}, {"compensation_floor": -1.0}, {"sh_degree": -2}, {"sh_degree": 4}, {"sh_degree": 0},
        {"coefficients": 1}, {"max_pairs": 0}, {"max_pairs": -1}, {"outputs": 8}, {"outputs": -1}, {"out_dtype": 3},
        {"means": None}, {"quats": None}, {"scales": None}, {"opacities": None}, {"colors": None}, {"viewmats": None},
        {"Ks": None}, {"background": None}, {"image": None}, {"alpha": None}, {"depth": None}, {"stats": None},
    ],
    ids=lambda change: " ".join(f"{name}={value}" for name, value in change.items()),
)  # fmt: skip
def test_parameters_that_cannot_work_are_refused(device, change) -> None:
    drawing = device.prepare(random_scene(24, 10), max_pairs=1000)
    call = drawing.parameters()
    for name, value in change.items():
        setattr(call, name, value)
    assert drawing.raw_launch(call) == _library.INVALID
    assert _library.load_cuda().edge4d_last_error()
    assert drawing.untouched()


def test_workspaces_that_do_not_fit_are_refused(device) -> None:
    drawing = device.prepare(random_scene(24, 10), max_pairs=1000)
    call, (pointer, size) = drawing.parameters(), drawing.workspace_span()
    assert size == _library.load_cuda().edge4d_cuda_gaussian_rasterize_workspace(ctypes.byref(call))
    for span in ((None, size), (pointer, size - 1), (pointer, 0), (pointer + 16, size)):
        assert drawing.raw_launch(call, span) == _library.INVALID
    assert drawing.raw_launch(None) == _library.INVALID
    assert drawing.untouched()
    assert drawing.raw_launch(call) == _library.OK
    assert drawing.result().alpha.any()


def test_pointers_that_are_not_needed_may_be_null(device) -> None:
    drawing = device.prepare(select(random_scene(24, 10), slice(0, 0)), max_pairs=1000, outputs=1)
    call = drawing.parameters()
    for name in (*NAMES[:5], "alpha", "depth"):
        setattr(call, name, None)
    assert drawing.raw_launch(call) == _library.OK
    assert (drawing.result().image == np.float32([0.1, 0.2, 0.3])).all()


# ---- for compute-sanitizer ------------------------------------------------------------------------------------------

SANITIZED = {
    "plain": (random_scene(30, 300), WIDTH, HEIGHT, {}),
    "harmonics, bytes": (halved(random_scene(31, 100, batch=2, cameras=2, sh_degree=3)), 33, 21,
                         {"sh_degree": 3, "out_dtype": "uint8", "antialiased": True}),
    "two channels": (random_scene(32, 100, channels=2), 50, 9, {"outputs": 5}),
    "crowded tile": (one_tile(1300, "shuffled", STRONG), 16, 16, {}),
    "very crowded tile": (one_tile(9000, "few values", STRONG), 16, 16, {"outputs": 1}),
    "whole screen": (one_gaussian(scale=(50, 50, 50), opacity=0.9), 80, 40, {}),
    "overflow": (random_scene(33, 300, cameras=2), WIDTH, HEIGHT, {"max_pairs": 100}),
    "nothing": (select(random_scene(34, 1), slice(0, 0)), 19, 3, {}),
    "one pixel": (random_scene(35, 50), 1, 1, {"out_dtype": "float16"}),
    "fast": (halved(random_scene(36, 300)), *MANY_TILES, {"fast": True, "out_dtype": "float16"}),
    "fast, crowded": (one_tile(500, "all equal", STRONG), *MANY_TILES, {"fast": True}),
    "many tiles": (random_scene(38, 300), *MANY_TILES, {}),
}  # fmt: skip


@pytest.mark.parametrize("case", SANITIZED)
def test_sanitize(device, case) -> None:
    scene, width, height, attributes = SANITIZED[case]
    result = device.draw(scene, width, height, fill=None, **attributes)
    expected = draw_cpu(scene, width, height, **attributes)
    np.testing.assert_array_equal(result.stats[..., :2], expected.stats[..., :2])
    if "max_pairs" in attributes:
        assert result.stats[..., 4].all()
        return
    scale = 255 if result.image.dtype == np.uint8 else 1
    assert psnr(result.image / scale, expected.image / scale) >= 45


def test_sanitize_a_graph(device) -> None:
    scene = random_scene(37, 200)
    drawing = device.prepare(scene, max_pairs=10_000, fill=None)
    replay = drawing.captured()
    replay()
    replay()
    assert pixels_far_off(drawing.result(), draw_cpu(scene)).mean() <= 1e-3
