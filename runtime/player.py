"""A scene played in real time: a loop at a target rate that always shows the latest pose.

For control loops and live views. `steer` may be called from any thread at any rate: poses do not queue, the newest one
wins when a frame begins. Frames begin on a fixed grid of times, so the rate does not drift; a frame that is not there
when the next one should begin has missed its deadline, and the grid times that it slept through are left out.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple, Optional

import numpy as np

from edge4d.runtime.camera import Camera
from edge4d.runtime.errors import InvalidRequest
from edge4d.runtime.renderer import Frame, Renderer

LATENCIES = 10_000  # of the last frames, from which the percentiles are


class Statistics(NamedTuple):
    """How a player did so far.

    Attributes:
        frames: shown.
        missed: deadlines without a frame: frames that came later than one period after their time, and times at which
            none began because the one before took too long. 0 without a target rate.
        seconds: since the first frame began.
        p50_ms, p95_ms, p99_ms: latency of the last `LATENCIES` frames, from the moment when their pose was taken to the
            frame in host memory; NaN before the first.
    """

    frames: int
    missed: int
    seconds: float
    p50_ms: float
    p95_ms: float
    p99_ms: float


class Player:
    """Plays a scene on a thread of its own.

    Example:
        with Player(renderer, show, fps=60) as player:
            while driving:
                player.steer(camera, t)

    Args:
        renderer: what draws; the player alone uses it until it stops.
        show: called with every frame, on the player's thread. The frame is valid until it returns: copy what should
            live longer. While it runs no frame begins.
        fps: frames per second; None draws as many as it can, the next one being drawn while one is shown.
        camera, t: the first pose and time; the scene's own camera, and its beginning.

    Raises:
        InvalidRequest: fps or t cannot be used.
    """

    def __init__(
        self,
        renderer: Renderer,
        show: Callable[[Frame], None],
        *,
        fps: Optional[float] = None,
        camera: Optional[Camera] = None,
        t: Optional[float] = None,
    ) -> None:
        if fps is not None and not 0 < fps <= 10_000:
            raise InvalidRequest("No player has this frame rate.", note=f"{fps} frames per second, up to 10000.")
        self._renderer, self._show = renderer, show
        self._period = 0.0 if fps is None else 1.0 / fps
        self._pose = (renderer.scene.camera if camera is None else camera, renderer.scene.t0 if t is None else t)
        renderer.scene.check_time(self._pose[1])
        self._thread = threading.Thread(target=self._run, name="edge4d player", daemon=True)
        self._stopping = threading.Event()
        self._failure: Optional[BaseException] = None
        self._lock = threading.Lock()  # of the four below
        self._frames = self._missed = 0
        self._latencies = np.empty(LATENCIES)
        self._started = self._ended = math.nan

    def start(self) -> None:
        """Begins to play. A player plays once.

        Raises:
            InvalidRequest: it has been started before.
        """
        if self._thread.ident is not None:
            raise InvalidRequest("A player plays only once.", hint="Make a new one.")
        self._thread.start()

    def steer(self, camera: Camera, t: float) -> None:
        """Sets the pose and the time that the next frame shows; returns at once.

        Raises:
            InvalidRequest: t is not finite.
            Exception: what stopped the player, if `show` or the renderer raised something.
        """
        self._renderer.scene.check_time(t)
        self._raise_failure()
        self._pose = (camera, t)  # one assignment: the loop sees the old pair or the new one

    def stop(self) -> None:
        """Ends after the frame under way, and waits for that. Does nothing when it has ended.

        Raises:
            Exception: what stopped the player before, if `show` or the renderer raised something.
        """
        self._stopping.set()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join()
        self._raise_failure()

    def statistics(self) -> Statistics:
        """How it did so far; may be asked at any time."""
        with self._lock:
            frames, missed = self._frames, self._missed
            latencies = self._latencies[: min(frames, LATENCIES)].copy()
            end = time.perf_counter() if math.isnan(self._ended) else self._ended
        percentiles = np.percentile(latencies, (50, 95, 99)) * 1e3 if frames else np.full(3, math.nan)
        return Statistics(frames, missed, end - self._started if frames else 0.0, *map(float, percentiles))

    def __enter__(self) -> Player:
        self.start()
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        try:
            self.stop()
        except BaseException:
            if error is None:  # else the error inside the block is the one to see
                raise

    # --- the loop -----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._warm_up()
            self._started = time.perf_counter()
            if self._period:
                self._play_at_rate()
            else:
                self._play_freely()
        except BaseException as error:  # stop() and steer() raise it where someone sees it
            self._failure = error
        finally:
            self._ended = time.perf_counter()
            with contextlib.suppress(Exception):
                while self._renderer.in_flight:
                    self._renderer.fetch()

    def _warm_up(self) -> None:
        """The first frames of a size record CUDA graphs and load kernels; no deadline should be missed for that."""
        for _ in range(Renderer.MAX_IN_FLIGHT):
            self._submit()
            self._renderer.fetch()

    def _play_at_rate(self) -> None:
        """One frame under way: its pose is as fresh as can be."""
        tick = 0
        while not self._stopping.wait(max(0.0, self._started + tick * self._period - time.perf_counter())):
            taken = self._submit()
            frame = self._renderer.fetch()
            self._record(taken, missed=time.perf_counter() > self._started + (tick + 1) * self._period)
            self._show(frame)
            now = int((time.perf_counter() - self._started) / self._period)
            slept_through = max(0, now - tick - 1)
            with self._lock:
                self._missed += slept_through
            tick += 1 + slept_through

    def _play_freely(self) -> None:
        """As many frames under way as help: the CPU draws when a frame is submitted, where a second pose only ages."""
        under_way = Renderer.MAX_IN_FLIGHT if self._renderer.on_gpu else 1
        taken: deque[float] = deque()
        while not self._stopping.is_set():
            while len(taken) < under_way:
                taken.append(self._submit())
            frame = self._renderer.fetch()
            self._record(taken.popleft(), missed=False)
            self._show(frame)

    def _submit(self) -> float:
        """Begins a frame with the latest pose; when that was taken."""
        camera, t = self._pose
        taken = time.perf_counter()
        self._renderer.submit(camera, t)
        return taken

    def _record(self, taken: float, *, missed: bool) -> None:
        latency = time.perf_counter() - taken
        with self._lock:
            self._latencies[self._frames % LATENCIES] = latency
            self._frames += 1
            self._missed += missed

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure
