"""The renderer on the GPU against the renderer on the CPU. What both promise alike is in test_renderer.py."""

from __future__ import annotations

import gc
from collections import Counter
from typing import Any

import numpy as np
import pytest

from edge4d.runtime import frame_graph
from edge4d.runtime.backends import cuda
from edge4d.runtime.camera import Camera
from edge4d.runtime.errors import InvalidRequest, PairOverflow
from edge4d.runtime.gaussians import Activation
from edge4d.runtime.motion import Delta, Motion, Poly
from edge4d.runtime.renderer import Frame, Renderer
from edge4d.runtime.scene import Scene4D

pytestmark = pytest.mark.gpu

CAMERA = Camera.from_fov(320, 192, 60.0)
GROUPS = 6
GRANULE = 2 << 20  # bytes in which the driver takes memory: its own books may need another page


def scene(count: int = 20_000, seed: int = 0, *, coefficients: int = 0, **options: Any) -> Scene4D:
    """Gaussians of some pixels at 3 to 20 m, filling the view of CAMERA and a little more."""
    rng = np.random.default_rng(seed)
    z = rng.uniform(3, 20, count)
    x, y = rng.uniform(-0.7, 0.7, count) * z, rng.uniform(-0.45, 0.45, count) * z
    colors = rng.uniform(0, 1, (count, 3)) if not coefficients else rng.normal(0, 0.3, (count, coefficients, 3))
    defaults: dict[str, Any] = {
        "means": np.stack([x, y, z], -1),
        "quats": rng.normal(size=(count, 4)),
        "scales": rng.uniform(0.5, 3, (count, 3)) * z[:, None] / CAMERA.K[0, 0],
        "opacities": rng.uniform(0.05, 0.95, count),
        "colors": colors,
    }
    arrays = {name: np.asarray(array, np.float32) for name, array in defaults.items()}
    groups = rng.integers(0, GROUPS, count).astype(np.int32)
    return Scene4D(**{**arrays, "groups": groups, "camera": CAMERA, "background": (0.1, 0.2, 0.3), **options})


def poly(seed: int = 1) -> Poly:
    rng = np.random.default_rng(seed)
    shapes = ((GROUPS, 3), (GROUPS, 2, 3), (GROUPS, 2, 3))
    return Poly(*(np.asarray(rng.normal(0, 0.3, shape), np.float32) for shape in shapes))


def delta(count: int, names: dict[str, int], size: float, seed: int = 2, **settings: Any) -> Delta:
    rng = np.random.default_rng(seed)
    layout, channels = {}, 0
    for name, width in names.items():
        layout[name] = (channels, channels + width)
        channels += width
    data = (size * rng.normal(size=(5, count, channels))).astype(np.float16)
    return Delta(np.linspace(0.0, 1.0, 5), data, layout, **settings)


def raw_scene() -> Scene4D:
    """As 4D generators store them: raw scales and opacities, which move before they are activated."""
    canonical = scene()
    scales = np.log(canonical.scales)
    opacities = np.log(canonical.opacities / (1 - canonical.opacities))
    names = {"means": 3, "scales": 3, "quats": 4, "colors": 3, "opacities": 1}
    return scene(
        scales=scales.astype(np.float32),
        opacities=opacities.astype(np.float32),
        activation=Activation("exp", "sigmoid"),
        motion=(delta(20_000, names, 0.05, domain="raw"),),
    )


SCENES = {
    "static": lambda: scene(),
    "static harmonics": lambda: scene(coefficients=9, antialiased=True, eps2d=0.1),
    "static with activations": lambda: raw_scene().without_motion(),
    "polynomial": lambda: scene(motion=(poly(),)),
    "differences before activations": raw_scene,
    "differences of some, then a polynomial": lambda: scene(
        coefficients=4,
        motion=(
            delta(500, {"colors": 3, "quats": 4}, 0.2, ids=np.arange(0, 20_000, 40, dtype=np.int32)),
            delta(20_000, {"quats": 4}, 1.0, rotation="mul_left", interpolation="hold"),
            poly(),
        ),
    ),
}


def view(x: float = 0.3, z: float = -0.2, camera: Camera = CAMERA) -> Camera:
    pose = np.eye(4)
    pose[0, 3], pose[2, 3] = x, z
    return camera.with_pose(pose)


def assert_parity(ours: Frame, expected: Frame) -> None:
    """CONVENTIONS.md's bars: at most 2e-4 off on 99.9 % of the pixels (others lie on a threshold), 1e-5 on average."""
    for name in ("image", "alpha", "depth"):
        got, wanted = (np.asarray(getattr(frame, name), np.float64) for frame in (ours, expected))
        # Depth is in metres: its float32 rounding grows with its size.
        error = np.abs(got - wanted) / (np.maximum(1, wanted) if name == "depth" else 1)
        assert error.mean() <= 1e-5, f"{name}: mean error {error.mean():.3g}"
        assert np.mean(error > 2e-4) <= 1e-3, f"{name}: {np.mean(error > 2e-4):.3%} of the values are off"
    assert ours.stats[1] == expected.stats[1]


@pytest.mark.parametrize("name", SCENES)
def test_the_gpu_draws_what_the_cpu_draws(name) -> None:
    drawn = SCENES[name]()
    on_gpu, on_cpu = (Renderer(drawn, dtype="float32", backend=backend) for backend in ("cuda", "onnxruntime"))
    assert on_gpu.on_gpu
    for t in (0.0, 0.37, 1.0):
        assert_parity(on_gpu.render(view(), t), on_cpu.render(view(), t))


def test_bytes_are_the_floats_rounded() -> None:
    drawn = scene(motion=(poly(),))
    exact = Renderer(drawn, dtype="float32", backend="cuda").render(view(), 0.5)
    rounded = Renderer(drawn, backend="cuda").render(view(), 0.5)
    assert rounded.image.dtype == np.uint8
    # To the nearest; near a tie either way, as the product is rounded before the sum or not.
    assert np.abs(rounded.image - np.clip(exact.image, 0, 1).astype(np.float64) * 255).max() <= 0.5 + 2e-5
    np.testing.assert_array_equal(rounded.depth, exact.depth)


class Calls:
    """Counts what is asked of the driver."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        call = cuda._call

        def counted(name: str, *arguments: Any) -> Any:
            self.names.append(name)
            return call(name, *arguments)

        monkeypatch.setattr(cuda, "_call", counted)


def test_a_frame_is_one_launch_and_one_wait_whatever_it_shows(monkeypatch) -> None:
    renderer = Renderer(scene(motion=(poly(),)), backend="cuda")
    expected = {x: renderer.render(view(x), x).image for x in (0.1, 0.2, 0.3, 0.4)}
    calls = Calls(monkeypatch)
    for x in (0.3, 0.1, 0.4, 0.2):
        calls.names.clear()
        frame = renderer.render(view(x), x)
        assert [name for name in calls.names if name != "cudaSetDevice"] == [
            "cudaGraphLaunch",
            "cudaEventRecord",
            "cudaEventSynchronize",
        ]
        np.testing.assert_array_equal(frame.image, expected[x])


def test_frames_under_way_do_not_disturb_each_other() -> None:
    renderer = Renderer(scene(motion=(poly(),)), backend="cuda")
    xs = np.linspace(-0.5, 0.5, 40).tolist()
    expected = [renderer.render(view(x), x) for x in xs]
    renderer.submit(view(xs[0]), xs[0])
    for k, wanted in enumerate(expected):
        if k + 1 < len(xs):
            renderer.submit(view(xs[k + 1]), xs[k + 1])
        for got, same in zip(renderer.fetch(), wanted):
            np.testing.assert_array_equal(got, same)


def test_memory_grows_when_a_frame_needs_it(monkeypatch) -> None:
    drawn = scene(motion=(poly(),))
    expected = Renderer(drawn, backend="cuda").render(view(), 0.5)
    needed = int(expected.stats[2])
    monkeypatch.setattr(frame_graph, "_FIRST_PAIRS", 0)
    monkeypatch.setattr(frame_graph, "_PAIRS_STEP", 1 << 10)
    renderer = Renderer(drawn, backend="cuda")
    for x in (0.3, 0.1):  # both are too much for the beginning; each grows when it is fetched
        renderer.submit(view(x), 0.5)
    frame = renderer.fetch()
    for got, wanted in zip(frame[:3], expected):
        np.testing.assert_array_equal(got, wanted)
    assert frame.stats[2] == needed
    assert needed <= frame.stats[3] <= 1.25 * needed + 1024
    assert renderer.fetch().stats[4] == 0
    calls = Calls(monkeypatch)
    renderer.render(view(), 0.6)
    renderer.render(view(), 0.7)
    calls.names.clear()
    renderer.render(view(), 0.5)
    assert "cudaMalloc" not in calls.names


def test_what_cannot_be_counted_overflows_with_an_error(monkeypatch) -> None:
    renderer = Renderer(scene(100), max_pairs=None, backend="cuda")
    with pytest.raises(PairOverflow, match="2147483647"):
        renderer._drawing._grow(2**31 - 1)  # type: ignore[attr-defined]


def test_the_outputs_that_were_asked_for() -> None:
    drawn = scene()
    whole = Renderer(drawn, backend="cuda").render(view(), 0.0)
    for outputs in (("image",), ("alpha",), ("depth",), ("alpha", "depth"), ()):
        frame = Renderer(drawn, outputs=outputs, backend="cuda").render(view(), 0.0)
        for name in ("image", "alpha", "depth"):
            if name in outputs:
                np.testing.assert_array_equal(getattr(frame, name), getattr(whole, name))
            else:
                assert getattr(frame, name).size == 0


def test_another_size_is_another_graph() -> None:
    renderer = Renderer(scene(motion=(poly(),)), dtype="float32", backend="cuda")
    on_cpu = Renderer(renderer.scene, dtype="float32", backend="onnxruntime")
    for size in ((320, 192), (33, 17), (1, 1), (640, 360)):
        camera = Camera.from_fov(*size, 60.0)
        assert_parity(renderer.render(camera, 0.2), on_cpu.render(camera, 0.2))


def test_motion_that_the_gpu_does_not_know() -> None:
    class Wobble(Motion):
        kind = "wobble"
        domain = "activated"

        def check(self, count: int, groups: int) -> None: ...

        def apply(self, gaussians, groups, t): ...

    with pytest.raises(InvalidRequest, match="Wobble"):
        Renderer(scene(motion=(Wobble(),)), backend="cuda")
    with pytest.raises(InvalidRequest, match="5; at most 4"):
        Renderer(scene(motion=(poly(),) * 5), backend="cuda")


def test_frames_cost_no_memory() -> None:
    renderer = Renderer(scene(motion=(poly(),)), backend="cuda")
    cuda.synchronize()

    def draw(count: int) -> None:
        for k in range(count):
            renderer.submit(view(0.001 * k), 0.001 * k)
            if renderer.in_flight == Renderer.MAX_IN_FLIGHT:
                renderer.fetch()
        while renderer.in_flight:
            renderer.fetch()

    draw(10)
    gc.collect()
    objects, memory = len(gc.get_objects()), cuda.memory_in_use()
    draw(1000)
    gc.collect()
    assert cuda.memory_in_use() <= memory + GRANULE
    assert len(gc.get_objects()) <= objects + 10  # a frame that left one behind would leave a thousand


def test_a_frame_is_a_launch_and_a_wait() -> None:
    """Of everything that could be asked of CUDA: nothing is allocated, and the host waits once, for its frame."""
    profiler = pytest.importorskip("torch.profiler")
    renderer, count = Renderer(scene(motion=(poly(),)), backend="cuda"), 50
    for _ in range(4):
        renderer.render(view(), 0.0)
    both = [profiler.ProfilerActivity.CPU, profiler.ProfilerActivity.CUDA]
    with profiler.profile(activities=both, acc_events=True) as profile:
        for k in range(count):
            renderer.render(view(0.001 * k), 0.001 * k)
    calls = Counter(event.name for event in profile.events() if event.name.startswith("cu"))
    del calls["cudaDeviceSynchronize"]  # the profiler's own, at its end
    assert calls == dict.fromkeys(("cudaGraphLaunch", "cudaEventRecord", "cudaEventSynchronize"), count)


def test_a_renderer_gives_its_memory_back() -> None:
    def render() -> None:
        Renderer(scene(200_000, motion=(poly(),)), backend="cuda").render(view(), 0.0)

    render()
    gc.collect()
    before = cuda.memory_in_use()
    for _ in range(5):
        render()
    gc.collect()
    assert cuda.memory_in_use() <= before + GRANULE  # one scene alone is five times that


def test_scenes_are_independent() -> None:
    drawn = [scene(5000, seed, motion=(poly(seed),)) for seed in range(3)]
    alone = [Renderer(each, backend="cuda").render(view(), 0.4) for each in drawn]
    renderers = [Renderer(each, backend="cuda") for each in drawn]
    for renderer in renderers:
        renderer.submit(view(), 0.4)
    for renderer, expected in zip(renderers, alone):
        np.testing.assert_array_equal(renderer.fetch().image, expected.image)


def test_only_what_moves_is_moved() -> None:
    for drawn, names in (
        (scene(), set()),
        (scene(motion=(poly(),)), {"means", "quats"}),
        (scene(motion=(delta(20_000, {"opacities": 1}, 0.1),)), {"opacities"}),
    ):
        moving = frame_graph._SceneOnDevice(drawn)._stored._asdict()
        assert {name for name, array in moving.items() if array is not None} == names
