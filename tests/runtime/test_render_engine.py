"""Scenes drawn by TensorRT engines against the renderer on the CPU; and what is said where there are none."""

from __future__ import annotations

import gc
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from renderer_scenes import CAMERA, SCENES, assert_frames_under_way_stand, assert_parity, delta, poly, scene, view

from edge4d.runtime import cli
from edge4d.runtime.backends import cuda
from edge4d.runtime.camera import Camera
from edge4d.runtime.engine_cache import EngineCache
from edge4d.runtime.errors import BackendUnavailable, InvalidRequest, PairOverflow
from edge4d.runtime.metrics import psnr
from edge4d.runtime.renderer import Frame, Renderer
from edge4d.runtime.scene import Scene4D

DRAWABLE = [name for name in SCENES if name.startswith("static") or name == "polynomial"]


# ---- without TensorRT -----------------------------------------------------------------------------------------------

without_tensorrt = pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="TensorRT is installed")


@without_tensorrt
def test_where_tensorrt_is_missing_nothing_else_is_drawn_by() -> None:
    for backend in ("auto", "tensorrt"):
        with pytest.raises(BackendUnavailable, match=r"TensorRT is not installed[\s\S]*edge4d\[tensorrt\]"):
            Renderer(scene(10), backend=backend, as_engine=True)


@without_tensorrt
def test_the_command_line_says_it_before_it_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scene(10).save(tmp_path / "scene.safetensors")
    for command in (("generate", "no-such-photo.jpg"), ("render", tmp_path / "scene.safetensors")):
        with pytest.raises(SystemExit) as stop:
            cli.main([*map(str, command), "--render-engine", "-o", str(tmp_path / "out")])
        assert stop.value.code == 1
        assert "TensorRT is not installed" in capsys.readouterr().err


def test_other_backends_draw_by_no_engine() -> None:
    for backend in ("onnxruntime", "cuda", "vulkan"):
        with pytest.raises(InvalidRequest, match=f"'{backend}' has no engine"):
            Renderer(scene(10), backend=backend, as_engine=True)


# ---- with it --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> EngineCache:
    """Where these tests' renderers keep engines."""
    pytest.importorskip("tensorrt")
    pytest.importorskip("onnx")
    monkeypatch.setenv("EDGE4D_CACHE", str(folder))
    return EngineCache()


def by_engine(drawn: Scene4D, **options: Any) -> Renderer:
    return Renderer(drawn, backend="tensorrt", as_engine=True, **options)


def engines(cache: EngineCache) -> dict[Path, int]:
    """Every engine, and when its file was written."""
    return {entry.path: entry.path.stat().st_mtime_ns for entry in cache.entries()}


def bytes_psnr(one: Frame, other: Frame) -> float:
    """Of two images of bytes, in dB."""
    return psnr(one.image / 255, other.image / 255)


@pytest.mark.gpu
@pytest.mark.parametrize("name", DRAWABLE)
def test_engines_draw_what_the_cpu_draws(name: str, cache: EngineCache) -> None:
    drawn = SCENES[name]()
    ours, on_cpu = by_engine(drawn, dtype="float32"), Renderer(drawn, dtype="float32", backend="onnxruntime")
    assert ours.on_gpu
    for t in (-0.3, 0.0, 0.37, 1.0):
        frame, expected = ours.render(view(), t), on_cpu.render(view(), t)
        assert_parity(frame, expected)
        assert frame.stats[4] == 0


@pytest.mark.gpu
def test_bytes_are_those_of_the_cpu(cache: EngineCache) -> None:
    drawn = scene(motion=(poly(),))
    frame = by_engine(drawn).render(view(), 0.5)
    expected = Renderer(drawn, backend="onnxruntime").render(view(), 0.5)
    assert frame.image.dtype == np.uint8
    # Floats that are 1e-5 off on average fall on another level once in 400 times, by 1: 74 dB. The pixels that lie on a
    # threshold, one in a thousand at most, may be off by one Gaussian's alpha of 1/255: together still above 65.
    assert bytes_psnr(frame, expected) > 65
    np.testing.assert_array_equal(frame.stats[:2], expected.stats[:2])


@pytest.mark.gpu
def test_engines_draw_what_the_cuda_kernels_draw(cache: EngineCache) -> None:
    """To the last bit, where nothing moves: it is the same kernel."""
    drawn = scene()
    frame, expected = (
        renderer.render(view(), 0.0)
        for renderer in (by_engine(drawn, dtype="float32"), Renderer(drawn, dtype="float32"))
    )
    for array, wanted in zip(frame[:3], expected[:3]):
        np.testing.assert_array_equal(array, wanted)


@pytest.mark.gpu
@pytest.mark.parametrize("outputs", [("image",), ("alpha", "depth"), ()])
def test_the_outputs_that_were_asked_for(outputs: tuple[str, ...], cache: EngineCache) -> None:
    drawn = scene()
    whole = Renderer(drawn, backend="cuda").render(view(), 0.0)
    frame = by_engine(drawn, outputs=outputs).render(view(), 0.0)
    assert frame.alpha.size == (whole.alpha.size if "alpha" in outputs else 0)
    assert frame.depth.size == (whole.depth.size if "depth" in outputs else 0)
    assert frame.image.size == (whole.image.size if "image" in outputs else 0)
    np.testing.assert_array_equal(frame.stats[:3], whole.stats[:3])


@pytest.mark.gpu
def test_scenes_of_about_the_same_size_share_an_engine(cache: EngineCache) -> None:
    by_engine(scene(20_000, motion=(poly(),))).render(view(), 0.1)
    before = engines(cache)
    drawn = scene(30_000, seed=5, motion=(poly(5),), background=(0.5, 0.0, 0.5))
    frame = by_engine(drawn).render(view(), 0.1)
    assert engines(cache) == before
    assert bytes_psnr(frame, Renderer(drawn, backend="onnxruntime").render(view(), 0.1)) > 65  # as above


@pytest.mark.gpu
def test_a_second_renderer_builds_nothing(cache: EngineCache, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = scene(motion=(poly(),))
    first = by_engine(drawn).render(view(), 0.2)

    def build(*arguments: Any) -> bytes:
        raise AssertionError("an engine was built")

    monkeypatch.setattr("edge4d.runtime.render_engine.engine_from_onnx", build)
    second = by_engine(drawn).render(view(), 0.2)
    np.testing.assert_array_equal(second.image, first.image)


@pytest.mark.gpu
def test_another_size_is_another_engine(cache: EngineCache) -> None:
    drawn = scene(motion=(poly(),))
    ours = by_engine(drawn, dtype="float32")
    on_cpu = Renderer(drawn, dtype="float32", backend="onnxruntime")
    for size in ((320, 192), (33, 17), (320, 192)):
        camera = Camera.from_fov(*size, 60.0)
        assert_parity(ours.render(camera, 0.2), on_cpu.render(camera, 0.2))
    assert any("render.33x17." in path.name for path in engines(cache))


@pytest.mark.gpu
def test_a_frame_is_one_launch_and_one_wait(cache: EngineCache, monkeypatch: pytest.MonkeyPatch) -> None:
    renderer = by_engine(scene(motion=(poly(),)))
    expected = {x: renderer.render(view(x), x).image for x in (0.1, 0.2, 0.3, 0.4)}
    call, names = cuda._call, []

    def counted(name: str, *arguments: Any) -> Any:
        names.append(name)
        return call(name, *arguments)

    monkeypatch.setattr(cuda, "_call", counted)
    for x in (0.3, 0.1, 0.4, 0.2):
        names.clear()
        frame = renderer.render(view(x), x)
        assert names == ["cudaSetDevice", "cudaGraphLaunch", "cudaEventRecord", "cudaSetDevice", "cudaEventSynchronize"]
        np.testing.assert_array_equal(frame.image, expected[x])


@pytest.mark.gpu
def test_frames_under_way_do_not_disturb_each_other(cache: EngineCache) -> None:
    assert_frames_under_way_stand(by_engine(scene(motion=(poly(),))))


@pytest.mark.gpu
def test_frames_cost_no_memory(cache: EngineCache) -> None:
    renderer = by_engine(scene(motion=(poly(),)))

    def draw(count: int) -> None:
        for k in range(count):
            renderer.render(view(0.001 * k), 0.001 * k)

    draw(10)
    gc.collect()
    objects, memory = len(gc.get_objects()), cuda.memory_in_use()
    draw(1000)
    gc.collect()
    assert cuda.memory_in_use() <= memory + (2 << 20)  # the driver's own books may need another page
    assert len(gc.get_objects()) <= objects + 10


@pytest.mark.gpu
def test_what_needs_more_pairs_is_drawn_by_the_kernels_and_the_engine_grows(
    cache: EngineCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = scene(motion=(poly(),))
    expected = Renderer(drawn, backend="cuda").render(view(), 0.5)
    needed = int(expected.stats[2])
    renderer = by_engine(drawn)
    small = needed // 3
    renderer._drawing._spec = renderer._drawing._spec._replace(max_pairs=small)  # type: ignore[attr-defined]
    for _ in range(2):  # both frames under way are too much
        renderer.submit(view(), 0.5)
    for _ in range(2):
        for got, wanted in zip(renderer.fetch()[:3], expected[:3]):
            np.testing.assert_array_equal(got, wanted)
    monkeypatch.setattr("edge4d.runtime.render_engine.CudaDrawing", None)
    frame = renderer.render(view(), 0.5)
    assert frame.stats[2:].tolist() == [needed, 4 * small, 0]
    assert bytes_psnr(frame, expected) > 65  # as above


@pytest.mark.gpu
def test_fixed_memory_overflows_with_an_error(cache: EngineCache) -> None:
    drawn = scene(5000)
    needed = int(Renderer(drawn, backend="cuda").render(CAMERA, 0.0).stats[2])
    assert by_engine(drawn, max_pairs=needed).render(CAMERA, 0.0).stats[2:].tolist() == [needed, needed, 0]
    with pytest.raises(PairOverflow, match=f"needs {needed}; max_pairs is {needed - 1}"):
        by_engine(drawn, max_pairs=needed - 1).render(CAMERA, 0.0)


@pytest.mark.gpu
def test_motion_that_engines_do_not_draw(cache: EngineCache) -> None:
    for motion in ((delta(20_000, {"colors": 3}, 0.1),), (poly(), poly())):
        with pytest.raises(InvalidRequest, match="how this scene moves"):
            by_engine(scene(motion=motion))


@pytest.mark.gpu
def test_the_command_line_draws_by_an_engine(cache: EngineCache, tmp_path: Path) -> None:
    scene(motion=(poly(),)).save(tmp_path / "scene.safetensors")
    path, out = str(tmp_path / "scene.safetensors"), tmp_path / "out"
    with pytest.raises(SystemExit) as stop:
        cli.main(["render", path, "--render-engine", "--frames", "2", "-o", str(out)])
    assert not stop.value.code
    assert len(list(out.iterdir())) == 2
