"""Videos are read back as a player would."""

from __future__ import annotations

import contextlib
import os

import av
import numpy as np
import pytest
from PIL import Image

from edge4d.runtime.errors import InvalidRequest
from edge4d.runtime.video import depth_colours, depth_writer, frame_writer

SIZE = (64, 48)


def moving_square(index: int) -> np.ndarray:
    pixels = np.full((48, 64, 3), (200, 120, 40), np.uint8)
    pixels[16:32, 8 + 4 * index : 24 + 4 * index] = (20, 60, 220)
    return pixels


def decoded(path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_mp4_plays_in_a_browser(tmp_path):
    path = tmp_path / "new" / "out.mp4"
    with frame_writer(path, SIZE, 12.5) as add:
        for index in range(6):
            add(moving_square(index))
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert float(stream.average_rate) == 12.5
        assert stream.frames == 6
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")  # the index comes first, so playing starts at once
    assert os.listdir(path.parent) == ["out.mp4"]


def test_mp4_keeps_colours(tmp_path):
    with frame_writer(tmp_path / "out.mp4", SIZE, 12) as add:
        for index in range(6):
            add(moving_square(index))
    for index, frame in enumerate(decoded(tmp_path / "out.mp4")):
        # Inside flat areas: 8-bit limited range and quantisation cost a few levels; a wrong matrix (BT.601) costs 15.
        np.testing.assert_allclose(frame[20:28, 12 + 4 * index : 20 + 4 * index].mean((0, 1)), (20, 60, 220), atol=6)
        np.testing.assert_allclose(frame[:8].mean((0, 1)), (200, 120, 40), atol=6)


def test_many_png_frames_are_in_order(tmp_path):
    frames = [np.full((4, 6, 3), value, np.uint8) for value in range(150)]  # more than may wait
    with frame_writer(tmp_path / "frames", (6, 4), 12) as add:
        for frame in frames:
            add(frame)
    for index, frame in enumerate(frames):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "frames" / f"{index:04d}.png")), frame)


def test_png_frames(tmp_path):
    for count in (3, 2):  # the second run replaces the first one, frame 0002 included
        with frame_writer(tmp_path / "frames", SIZE, 12) as add:
            for index in range(count):
                add(moving_square(index))
        assert sorted(os.listdir(tmp_path / "frames")) == [f"{index:04d}.png" for index in range(count)]
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "frames" / "0001.png")), moving_square(1))
    assert os.listdir(tmp_path) == ["frames"]


@pytest.mark.parametrize("name", ["out.mp4", "frames"])
def test_an_interrupted_run_leaves_what_was_there(tmp_path, name):
    path = tmp_path / name
    with frame_writer(path, SIZE, 12) as add:
        add(moving_square(0))
    before = path.read_bytes() if path.is_file() else os.listdir(path)
    with contextlib.suppress(KeyboardInterrupt), frame_writer(path, SIZE, 12) as add:
        add(moving_square(1))
        raise KeyboardInterrupt
    assert (path.read_bytes() if path.is_file() else os.listdir(path)) == before
    assert os.listdir(tmp_path) == [name]


def test_requests_that_cannot_work(tmp_path):
    for size, fps, name, match in [
        ((63, 48), 12, "out.mp4", "64x48"),
        (SIZE, 0, "out.mp4", "frame rate"),
        (SIZE, float("nan"), "out.mp4", "frame rate"),
        (SIZE, 12, "out.webm", "webm"),
    ]:
        with pytest.raises(InvalidRequest, match=match):
            frame_writer(tmp_path / name, size, fps)
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(InvalidRequest, match="not an empty folder"):
        frame_writer(tmp_path, SIZE, 12)
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_depth_is_coloured_over_the_whole_clip(tmp_path):
    alpha = np.ones((48, 64), np.float32)
    alpha[:8] = 0
    with depth_writer(tmp_path / "depth", SIZE, 12) as add:
        add(np.full((48, 64), 2.0, np.float32), alpha)
        add(np.full((48, 64), 50.0, np.float32), alpha)
    near = np.asarray(Image.open(tmp_path / "depth" / "0000.png"))
    far = np.asarray(Image.open(tmp_path / "depth" / "0001.png"))
    assert (near[:8] == 0).all()
    # Inverse depth is kept as float16: 2^-11 of the range, less than one level.
    np.testing.assert_allclose(near[20, 20], depth_colours(np.array(1.0)), atol=1)
    np.testing.assert_allclose(far[20, 20], depth_colours(np.array(0.0)), atol=1)


def test_depth_without_any_surface_is_black(tmp_path):
    with depth_writer(tmp_path / "depth", SIZE, 12) as add:
        add(np.zeros((48, 64), np.float32), np.zeros((48, 64), np.float32))
    assert not np.asarray(Image.open(tmp_path / "depth" / "0000.png")).any()


def test_depth_colours_get_brighter_towards_the_viewer():
    luminance = depth_colours(np.linspace(0, 1, 200)).astype(float) @ (0.2126, 0.7152, 0.0722)
    assert (np.diff(luminance) > -1).all()  # colours are whole numbers, so a step may round down by less than one
