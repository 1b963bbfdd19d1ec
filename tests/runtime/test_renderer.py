from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from edge4d.kernels import _library
from edge4d.runtime.camera import Camera
from edge4d.runtime.errors import BackendUnavailable, InvalidCameraPath, InvalidRequest, PairOverflow
from edge4d.runtime.motion import Poly
from edge4d.runtime.renderer import Frame, Renderer, fitted, render
from edge4d.runtime.scene import Scene4D
from edge4d.runtime.trajectories import CameraPath, trajectory

CAMERA = Camera.from_fov(64, 32, 90.0)  # focal length 32


@pytest.fixture(params=["onnxruntime", pytest.param("cuda", marks=pytest.mark.gpu)])
def backend(request) -> str:
    """What is said here holds on the CPU and on the GPU."""
    return request.param


def scene(**changes) -> Scene4D:
    """Two red balls 4 m ahead, 1 m to either side; the right one moves right by 1 m/s. On blue."""
    options = {
        "means": np.array([[-1, 0, 4], [1, 0, 4]], np.float32),
        "quats": np.tile(np.float32([1, 0, 0, 0]), (2, 1)),
        "scales": np.full((2, 3), 0.3, np.float32),
        "opacities": np.ones(2, np.float32),
        "colors": np.tile(np.float32([1, 0, 0]), (2, 1)),
        "groups": np.array([0, 1], np.int32),
        "camera": CAMERA,
        "motion": (
            Poly(
                centres=np.zeros((2, 3), np.float32),
                linear=np.float32([[[0, 0, 0]], [[1, 0, 0]]]),
                angular=np.zeros((2, 0, 3), np.float32),
            ),
        ),
        "t1": 1.0,
        "fps": 10.0,
        "background": (0.0, 0.0, 1.0),
    }
    return Scene4D(**{**options, **changes})


def brightest(image: np.ndarray) -> float:
    """The column of the right ball: the centre of mass of red right of the middle."""
    red = image[:, 33:, 0].astype(float)
    return float((red.sum(0) * (np.arange(33, 64) + 0.5)).sum() / red.sum())


def test_a_scene_is_drawn_where_the_camera_sees_it(backend):
    frame = Renderer(scene(), backend=backend).render(CAMERA, 0.0)
    # x = 1, z = 4, focal length 32: 8 pixels from the middle.
    assert frame.image.dtype == np.uint8
    assert brightest(frame.image) == pytest.approx(40.0, abs=0.1)
    np.testing.assert_array_equal(frame.image[0, 0], (0, 0, 255))
    assert frame.alpha[16, 40] > 0.9
    assert frame.depth[16, 40] == pytest.approx(4.0, rel=1e-5)
    assert frame.alpha[0, 0] == frame.depth[0, 0] == 0
    assert frame.stats[0] == 2


def test_time_moves_what_moves_and_the_camera_all(backend):
    renderer = Renderer(scene(), backend=backend)
    assert brightest(renderer.render(CAMERA, 0.5).image) == pytest.approx(44.0, abs=0.1)
    pose = np.eye(4)
    pose[0, 3] = 0.5  # the camera steps to the right, the world goes to the left
    assert brightest(renderer.render(CAMERA.with_pose(pose), 0.5).image) == pytest.approx(40.0, abs=0.1)


def test_floats_and_bytes_are_the_same_picture(backend):
    exact = Renderer(scene(), dtype="float32", backend=backend).render(CAMERA, 0.0).image
    rounded = Renderer(scene(), backend=backend).render(CAMERA, 0.0).image
    # Half a level of rounding.
    np.testing.assert_allclose(rounded / 255.0, exact, atol=0.501 / 255)


def test_outputs_that_are_not_asked_for_are_not_made(backend):
    frame = Renderer(scene(), outputs=("depth",), backend=backend).render(CAMERA, 0.0)
    assert frame.image.size == frame.alpha.size == 0
    assert frame.depth.shape == (32, 64)
    with pytest.raises(InvalidRequest, match="normals"):
        Renderer(scene(), outputs=("normals",), backend=backend)


def test_backgrounds(backend):
    empty = scene(opacities=np.zeros(2, np.float32))
    assert (Renderer(empty, background=(0.0, 1.0, 0.0), backend=backend).render(CAMERA, 0.0).image == (0, 255, 0)).all()
    for bad in ((0, 0), (0, 0, 2), (0, 0, float("nan"))):
        with pytest.raises(InvalidRequest, match="colour"):
            Renderer(scene(), background=bad, backend=backend)


def test_no_gaussians_show_the_background(backend):
    nobody = scene(
        **{name: getattr(scene(), name)[:0] for name in ("means", "quats", "scales", "opacities", "colors", "groups")}
    )
    frame = Renderer(nobody, backend=backend).render(CAMERA, 1.0)
    assert (frame.image == (0, 0, 255)).all()
    assert not frame.alpha.any()


def test_times_that_are_not_numbers(backend):
    renderer = Renderer(scene(), backend=backend)
    for t in (float("nan"), float("inf")):
        with pytest.raises(InvalidRequest, match="evaluated at this time"):
            renderer.render(CAMERA, t)
    assert renderer.render(CAMERA, 0.0).stats[0] == 2


def copied(frame: Frame) -> Frame:
    return Frame(*(array.copy() for array in frame))


def assert_same(one: Frame, other: Frame) -> None:
    for a, b in zip(one, other):
        np.testing.assert_array_equal(a, b)


def test_submitted_frames_come_in_order(backend):
    renderer = Renderer(scene(), backend=backend)
    small = Camera.from_fov(20, 10, 90.0)
    views = [(CAMERA, 0.0), (CAMERA, 0.5), (small, 0.5), (CAMERA, 1.0), (small, 0.0), (small, 0.25)]
    expected = [copied(renderer.render(*view)) for view in views]
    renderer.submit(*views[0])
    for k, frame in enumerate(expected):
        if k + 1 < len(views):
            renderer.submit(*views[k + 1])
        assert_same(renderer.fetch(), frame)
    assert renderer.in_flight == 0


def test_a_frame_is_valid_until_two_more_were_submitted(backend):
    renderer = Renderer(scene(), backend=backend)
    renderer.submit(CAMERA, 0.0)
    first = renderer.fetch()
    before = copied(first)
    renderer.submit(CAMERA, 1.0)
    renderer.fetch()
    assert_same(first, before)


def test_two_frames_may_be_under_way(backend):
    renderer = Renderer(scene(), backend=backend)
    with pytest.raises(InvalidRequest, match="no frame to fetch"):
        renderer.fetch()
    renderer.submit(CAMERA, 0.0)
    with pytest.raises(InvalidRequest, match="1 submitted frames were not fetched"):
        renderer.render(CAMERA, 0.0)
    with pytest.raises(InvalidRequest, match="evaluated"):
        renderer.submit(CAMERA, float("nan"))
    renderer.submit(CAMERA, 1.0)
    with pytest.raises(InvalidRequest, match="2 were submitted"):
        renderer.submit(CAMERA, 0.0)
    first, second = copied(renderer.fetch()), copied(renderer.fetch())
    assert_same(first, renderer.render(CAMERA, 0.0))
    assert_same(second, renderer.render(CAMERA, 1.0))


def test_fixed_memory_overflows_with_an_error(backend):
    needed = int(Renderer(scene(), backend=backend).render(CAMERA, 0.0).stats[2])
    enough = Renderer(scene(), max_pairs=needed, backend=backend).render(CAMERA, 0.0)
    assert enough.stats[2:].tolist() == [needed, needed, 0]
    renderer = Renderer(scene(), max_pairs=needed - 1, backend=backend)
    with pytest.raises(PairOverflow, match=f"needs {needed}; max_pairs is {needed - 1}"):
        renderer.render(CAMERA, 0.0)
    away = CAMERA.with_pose(np.diag([-1.0, 1.0, -1.0, 1.0]))  # it sees nothing, which needs no memory
    assert not renderer.render(away, 0.0).alpha.any()
    for bad in (0, -1, 2**31):
        with pytest.raises(InvalidRequest, match="max_pairs"):
            Renderer(scene(), max_pairs=bad, backend=backend)


def test_backends_by_name():
    assert not Renderer(scene(), backend="onnxruntime").on_gpu
    assert isinstance(Renderer(scene(), backend="auto").on_gpu, bool)
    with pytest.raises(InvalidRequest, match="no backend 'vulkan'"):
        Renderer(scene(), backend="vulkan")
    with pytest.raises(BackendUnavailable, match="does not run them"):
        render(scene(), backend="tensorrt_rtx")


def test_without_the_cuda_kernels_auto_is_the_cpu(monkeypatch, tmp_path):
    monkeypatch.setenv("EDGE4D_LIBRARY", str(tmp_path))
    _library.load_cuda.cache_clear()
    assert not Renderer(scene()).on_gpu
    for name in ("cuda", "tensorrt"):
        with pytest.raises(BackendUnavailable, match=r"(?s)CUDA kernels are not there.*nvcc"):
            Renderer(scene(), backend=name)


def test_frames_belong_to_the_caller(backend):
    renderer = Renderer(scene(), backend=backend)
    first = renderer.render(CAMERA, 0.0)
    before = first.image.copy()
    renderer.render(CAMERA, 1.0)
    np.testing.assert_array_equal(first.image, before)


def test_videos_are_lazy_and_repeatable():
    video = render(scene(), "drive", frames=3, size=(32, 16))
    assert (len(video), video.size, video.fps) == (3, (32, 16), 10.0)
    first, again = list(video), list(video)
    assert first[0].image.shape == (16, 32, 3)
    for a, b in zip(first, again):
        np.testing.assert_array_equal(a.image, b.image)


def test_another_size_shows_the_same_middle():
    # Twice the size: everything is twice as far from the middle.
    assert fitted(CAMERA, (128, 64)).intrinsics == pytest.approx((64, 64, 64, 32))
    # Square: the height decides, the sides are cut.
    assert fitted(CAMERA, (64, 64)).intrinsics == pytest.approx((64, 64, 32, 32))
    off_centre = Camera.from_intrinsics(64, 32, 32, 32, 40, 16)
    assert fitted(off_centre, (64, 64)).intrinsics == pytest.approx((64, 64, 48, 32))


def test_paths():
    path = trajectory("orbit", CAMERA, 5, 10.0)
    assert len(render(scene(), path)) == 5
    assert len(render(scene(), path, frames=2)) == 2
    assert len(render(scene(), path, frames=50)) == 5
    assert render(scene(), path, size=(32, 16)).size == (32, 16)
    assert isinstance(render(scene(), path).path, CameraPath)


def test_poses_from_a_file(tmp_path):
    line = "1 0 0 {} 0 1 0 0 0 0 1 0\n"
    (tmp_path / "poses.txt").write_text("".join(line.format(x) for x in (5.0, 5.5, 6.0)))
    video = render(scene(), tmp_path / "poses.txt", camera_scale=2.0)
    np.testing.assert_allclose([camera.c2w[0, 3] for camera in video.path.cameras], [0, 1, 2])
    assert len(render(scene(), str(tmp_path / "poses.txt"), frames=2, camera_format="kitti")) == 2


def test_trajectories_have_parameters():
    fast = render(scene(), "drive", frames=2, speed=10.0)
    assert fast.path.cameras[1].c2w[2, 3] == pytest.approx(1.0)
    with pytest.raises(InvalidCameraPath, match="parameters"):
        render(scene(), trajectory("pan", CAMERA, 2, 10.0), speed=1.0)
    with pytest.raises(InvalidCameraPath, match="no trajectory or file"):
        render(scene(), "teleport")
    with pytest.raises(InvalidRequest):
        render(scene(), trajectory("pan", CAMERA, 2, 10.0), frames=0)


def test_saving(tmp_path, backend):
    done = []
    times = render(scene(), "drive", frames=3, backend=backend).save(
        tmp_path / "out.mp4", depth=tmp_path / "depth", progress=lambda *step: done.append(step)
    )
    assert done == [(1, 3), (2, 3), (3, 3)]
    assert (tmp_path / "out.mp4").stat().st_size > 500
    assert len(list((tmp_path / "depth").iterdir())) == 3
    assert min(times) >= 0


def test_saving_one_frame(tmp_path, backend):
    render(scene(), "drive", frames=1, backend=backend).save(tmp_path / "out")
    assert len(list((tmp_path / "out").iterdir())) == 1


def test_saving_that_is_broken_off_leaves_the_renderer_usable(tmp_path, backend):
    def progress(done: int, total: int) -> None:
        raise RuntimeError("enough")

    video = render(scene(), "drive", frames=5, backend=backend)
    with pytest.raises(RuntimeError, match="enough"):
        video.save(tmp_path / "out", progress=progress)
    assert video.renderer.in_flight == 0
    assert len(list(video)) == 5


def test_gaussians_that_are_not_finite_are_counted(recwarn, backend):
    broken = scene(means=np.array([[np.nan, 0, 4], [1, 0, 4]], np.float32))
    frame = Renderer(broken, backend=backend).render(CAMERA, 0.0)
    assert frame.stats[1] == 1
    assert np.isfinite(frame.depth).all()


def test_videos_are_as_long_as_the_scene_moves():
    still, moving = scene(t1=0.0), scene(t1=0.5)
    assert len(render(still, "static", backend="onnxruntime")) == 24
    assert len(render(moving, "static", backend="onnxruntime")) == 6
    assert len(render(moving, "static", fps=30, backend="onnxruntime")) == 16
    assert len(render(moving, "static", frames=2, backend="onnxruntime")) == 2


def test_trajectories_turn_about_the_middle_of_scenes_without_metres():
    small = scene(means=scene().means * np.float32(0.1), metric=False)
    middle = float(np.median(small.means[:, 2]))
    found = render(small, "orbit", frames=8, backend="onnxruntime").path
    expected = trajectory("orbit", small.camera, 8, small.fps, distance=middle)
    for camera, other in zip(found.cameras, expected.cameras):
        np.testing.assert_allclose(camera.c2w, other.c2w, atol=1e-9)
    # Parameters are in the scene's own units, and what is behind the camera says nothing.
    given = render(small, "orbit", frames=8, distance=3.0, backend="onnxruntime").path.cameras[2]
    np.testing.assert_array_equal(
        given.c2w, trajectory("orbit", small.camera, 8, small.fps, distance=3.0).cameras[2].c2w
    )
    behind = dataclasses.replace(small, means=-small.means)
    assert render(behind, "orbit", frames=8, backend="onnxruntime").path.cameras[2].c2w[2, 3] == pytest.approx(
        trajectory("orbit", small.camera, 8, small.fps).cameras[2].c2w[2, 3]
    )
