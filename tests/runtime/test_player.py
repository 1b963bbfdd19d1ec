"""The real-time loop, with real renderers. Times are bounded only from the side that a slow machine cannot break."""

from __future__ import annotations

import math
import threading
import time
from typing import Any

import numpy as np
import pytest

from edge4d.runtime.camera import Camera
from edge4d.runtime.errors import InvalidRequest, PairOverflow
from edge4d.runtime.motion import Poly
from edge4d.runtime.player import LATENCIES, Player
from edge4d.runtime.renderer import Frame, Renderer
from edge4d.runtime.scene import Scene4D

CAMERA = Camera.from_fov(32, 16, 90.0)
PATIENCE = 60.0  # seconds until a test that waits gives up


def scene(**changes: Any) -> Scene4D:
    """A ball 4 m ahead that moves right by 1 m/s."""
    options: dict[str, Any] = {
        "means": np.float32([[0, 0, 4]]),
        "quats": np.float32([[1, 0, 0, 0]]),
        "scales": np.full((1, 3), 0.3, np.float32),
        "opacities": np.ones(1, np.float32),
        "colors": np.ones((1, 3), np.float32),
        "groups": np.ones(1, np.int32),
        "camera": CAMERA,
        "motion": (
            Poly(
                np.zeros((2, 3), np.float32),
                np.float32([[[0, 0, 0]], [[1, 0, 0]]]),
                np.zeros((2, 0, 3), np.float32),
            ),
        ),
        "t0": 0.25,
        "t1": 3.0,
    }
    return Scene4D(**{**options, **changes})


@pytest.fixture(params=["onnxruntime", pytest.param("cuda", marks=pytest.mark.gpu)])
def renderer(request) -> Renderer:
    return Renderer(scene(), backend=request.param)


@pytest.fixture(params=[None, 200.0], ids=["freely", "at 200 fps"])
def fps(request) -> Any:
    return request.param


class Screen:
    """Keeps what it is shown, and lets a test wait for it; while it is held, `show` does not return."""

    def __init__(self) -> None:
        self.images: list[np.ndarray] = []
        self._change = threading.Condition()
        self._held = False

    def show(self, frame: Frame) -> None:
        with self._change:
            self.images.append(frame.image.copy())
            self._change.notify_all()
            assert self._change.wait_for(lambda: not self._held, PATIENCE)

    def wait_for(self, count: int) -> None:
        with self._change:
            assert self._change.wait_for(lambda: len(self.images) >= count, PATIENCE)

    def hold(self) -> None:
        """Returns once the player is held in `show`."""
        with self._change:
            self._held = True
            shown = len(self.images)
        self.wait_for(shown + 1)

    def release(self) -> None:
        with self._change:
            self._held = False
            self._change.notify_all()


def picture(t: float, camera: Camera = CAMERA, backend: str = "onnxruntime") -> np.ndarray:
    return Renderer(scene(), backend=backend).render(camera, t).image


def like(image: np.ndarray, t: float) -> bool:
    """Up to a level of rounding, by which the GPU may differ from the CPU."""
    return image.shape == (16, 32, 3) and bool(np.abs(image.astype(int) - picture(t)).max() <= 1)


def test_it_begins_where_the_scene_does(renderer, fps):
    screen = Screen()
    with Player(renderer, screen.show, fps=fps):
        screen.wait_for(3)
    assert all(like(image, 0.25) for image in screen.images)


def test_the_latest_pose_wins(renderer, fps):
    screen = Screen()
    with Player(renderer, screen.show, fps=fps, t=0.0) as player:
        screen.hold()
        begun = len(screen.images)
        for t in (0.5, 1.0, 1.5, 2.0, 2.5):
            player.steer(CAMERA, t)
        screen.release()
        # A frame that was under way with the pose before may come first.
        screen.wait_for(begun + 3)
    after = [[t for t in (0.0, 0.5, 1.0, 1.5, 2.0, 2.5) if like(image, t)] for image in screen.images[begun:]]
    assert after[0] in ([0.0], [2.5])
    assert all(times == [2.5] for times in after[1:])


def test_the_camera_may_change_in_every_way(renderer, fps):
    screen = Screen()
    small = Camera.from_fov(20, 10, 60.0)
    with Player(renderer, screen.show, fps=fps) as player:
        screen.wait_for(1)
        player.steer(small, 1.0)
        screen.wait_for(len(screen.images) + 4)
    assert screen.images[0].shape == (16, 32, 3)
    assert screen.images[-1].shape == (10, 20, 3)
    assert np.abs(screen.images[-1].astype(int) - picture(1.0, small)).max() <= 1


def test_statistics(renderer, fps):
    screen = Screen()
    player = Player(renderer, screen.show, fps=fps)
    before = player.statistics()
    assert before[:3] == (0, 0, 0.0)
    assert all(math.isnan(value) for value in before[3:])
    begin = time.perf_counter()
    with player:
        screen.wait_for(20)
        during = player.statistics()
    after = player.statistics()
    elapsed = time.perf_counter() - begin
    assert 20 <= during.frames <= after.frames == len(screen.images)
    assert 0 < after.p50_ms <= after.p95_ms <= after.p99_ms <= elapsed * 1e3
    assert 0 < after.seconds <= elapsed
    assert player.statistics() == after  # the clock has stopped
    if fps is None:
        assert after.missed == 0
    else:
        # Frames begin at their times, never before: there are no more than times, and each time has one or was missed.
        assert after.frames <= after.seconds * fps + 1
        assert after.frames + after.missed >= math.floor(after.seconds * fps) - 1


def test_times_that_were_slept_through_are_missed(renderer):
    period = 0.01
    player = Player(renderer, lambda frame: time.sleep(4.5 * period), fps=1 / period)
    with player:
        deadline = time.monotonic() + PATIENCE
        while player.statistics().frames < 4 and time.monotonic() < deadline:
            time.sleep(period)
    statistics = player.statistics()
    assert statistics.frames >= 4
    # A sleep of four periods and a half passes over the beginnings of at least three.
    assert statistics.missed >= 3 * statistics.frames


def test_long_plays_keep_a_bounded_record(renderer):
    player = Player(renderer, lambda frame: None)
    player._frames = LATENCIES - 1  # as if it had played for long
    player._latencies[:] = 1.0
    with player:
        deadline = time.monotonic() + PATIENCE
        while player.statistics().frames < LATENCIES + 5 and time.monotonic() < deadline:
            time.sleep(0.001)
    assert len(player._latencies) == LATENCIES
    assert (player._latencies[:4] < 1.0).all()


def test_an_error_of_the_callback_surfaces(renderer, fps):
    def show(frame: Frame) -> None:
        raise ZeroDivisionError("in show")

    player = Player(renderer, show, fps=fps)
    player.start()
    player._thread.join(PATIENCE)
    with pytest.raises(ZeroDivisionError, match="in show"):
        player.steer(CAMERA, 0.0)
    with pytest.raises(ZeroDivisionError, match="in show"):
        player.stop()
    assert player.statistics().frames == 1
    assert renderer.in_flight == 0


def test_an_error_of_the_callback_surfaces_from_the_block(renderer):
    def show(frame: Frame) -> None:
        raise ZeroDivisionError("in show")

    player = Player(renderer, show)
    with pytest.raises(ZeroDivisionError, match="in show"), player:
        player._thread.join(PATIENCE)


def test_an_error_in_the_block_comes_before_that_of_the_callback(renderer):
    def show(frame: Frame) -> None:
        raise ZeroDivisionError("in show")

    def use(player: Player) -> None:
        with player:
            player._thread.join(PATIENCE)
            raise KeyError("in the block")

    with pytest.raises(KeyError, match="in the block"):
        use(Player(renderer, show))


def test_an_error_of_the_renderer_surfaces(fps):
    renderer = Renderer(scene(scales=np.full((1, 3), 3.0, np.float32)), max_pairs=1, backend="onnxruntime")
    with pytest.raises(PairOverflow), Player(renderer, lambda frame: None, fps=fps) as player:
        player._thread.join(PATIENCE)


def test_stopping_is_clean(renderer, fps):
    screen = Screen()
    player = Player(renderer, screen.show, fps=fps)
    player.start()
    screen.wait_for(2)
    player.stop()
    player.stop()
    assert not player._thread.is_alive()
    assert renderer.in_flight == 0
    assert like(renderer.render(CAMERA, 1.0).image, 1.0)  # the renderer is free again
    with pytest.raises(InvalidRequest, match="only once"):
        player.start()
    Player(renderer, screen.show).stop()  # never started


def test_the_callback_may_stop_the_player(renderer, fps):
    frames = []

    def show(frame: Frame) -> None:
        frames.append(frame.image.shape)
        player.stop()

    player = Player(renderer, show, fps=fps)
    player.start()
    player._thread.join(PATIENCE)
    player.stop()
    assert len(frames) == 1


def test_the_slowest_of_rates_stops_at_once(renderer):
    screen = Screen()
    with Player(renderer, screen.show, fps=1e-3):  # the second frame would come after a quarter of an hour
        screen.wait_for(1)
    assert len(screen.images) == 1


@pytest.mark.parametrize("options", [{"fps": 0}, {"fps": -1.0}, {"fps": math.nan}, {"fps": 1e6}, {"t": math.inf}])
def test_what_cannot_be_played(options):
    renderer = Renderer(scene(), backend="onnxruntime")
    with pytest.raises(InvalidRequest):
        Player(renderer, lambda frame: None, **options)


def test_times_that_are_not_numbers_are_refused_where_they_are_given(renderer):
    screen = Screen()
    with Player(renderer, screen.show) as player:
        with pytest.raises(InvalidRequest, match="evaluated at this time"):
            player.steer(CAMERA, math.nan)
        screen.wait_for(len(screen.images) + 2)  # it plays on
