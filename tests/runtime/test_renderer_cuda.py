"""The renderer on the GPU against the renderer on the CPU. What both promise alike is in test_renderer.py."""

from __future__ import annotations

import gc
import re
from collections import Counter
from typing import Any

import numpy as np
import pytest
from renderer_scenes import SCENES, assert_frames_under_way_stand, assert_parity, delta, poly, scene, view

from edge4d.runtime import frame_graph
from edge4d.runtime.backends import cuda
from edge4d.runtime.camera import Camera
from edge4d.runtime.errors import InvalidRequest, PairOverflow
from edge4d.runtime.motion import Motion
from edge4d.runtime.renderer import Renderer
from edge4d.runtime.scene_on_device import SceneOnDevice

pytestmark = pytest.mark.gpu

GRANULE = 2 << 20  # bytes in which the driver takes memory: its own books may need another page


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
    assert_frames_under_way_stand(Renderer(scene(motion=(poly(),)), backend="cuda"))


def test_memory_grows_when_a_frame_needs_it(monkeypatch) -> None:
    drawn = scene(motion=(poly(),))
    expected = Renderer(drawn, backend="cuda").render(view(), 0.5)
    needed = int(expected.stats[2])
    monkeypatch.setattr(frame_graph, "FIRST_PAIRS", 0)
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
    per_frame = {name: times for name, times in calls.items() if times >= count}  # the profiler asks this and that once
    assert per_frame == dict.fromkeys(("cudaGraphLaunch", "cudaEventRecord", "cudaEventSynchronize"), count)
    assert not [name for name in calls if re.search("Malloc|Alloc|Free|Memcpy|StreamSynchronize", name)]


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
        moving = SceneOnDevice.from_scene(drawn)._stored._asdict()
        assert {name for name, array in moving.items() if array is not None} == names
