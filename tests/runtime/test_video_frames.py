"""Frames from files of many kinds, as they were written."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge4d.runtime.errors import InvalidVideo
from edge4d.runtime.video_frames import open_frames

av = pytest.importorskip("av")


def read(source) -> tuple[list[np.ndarray], float | None]:
    with open_frames(source) as opened:
        return list(opened.frames), opened.fps


def squares(count: int, size: tuple[int, int], channels: int = 3) -> np.ndarray:
    """[T,H,W,C]: smooth colours, and a square that moves; codecs keep such pictures."""
    width, height = size
    frames = np.full((count, height, width, channels), 90, np.uint8)
    frames[..., 1] = np.linspace(30, 200, width).astype(np.uint8)
    for number, frame in enumerate(frames):
        frame[4:12, 4 + 4 * number : 12 + 4 * number, :3] = (210, 40, 40)
    if channels == 4:
        frames[..., 3] = 0
        frames[:, :, width // 2 :, 3] = 255
    return frames


def write(path, frames, *, codec, pix_fmt, fps=10, **options) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options={key: str(value) for key, value in options.items()})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pix_fmt
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(pixels, format="rgba" if pixels.shape[2] == 4 else "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def test_mp4(tmp_path):
    frames = squares(5, (64, 48))
    write(tmp_path / "a.mp4", frames, codec="libx264", pix_fmt="yuv420p", fps=25, crf=10)
    found, fps = read(tmp_path / "a.mp4")
    assert fps == 25
    assert [frame.shape for frame in found] == [(48, 64, 3)] * 5
    # Colours at half resolution, in 8 bits, quantised: a few levels in the mean.
    assert np.abs(np.stack(found).astype(int) - frames).mean() < 4


def test_odd_sizes(tmp_path):
    frames = squares(2, (37, 29))
    write(tmp_path / "a.avi", frames, codec="ffv1", pix_fmt="bgr0")
    np.testing.assert_array_equal(np.stack(read(tmp_path / "a.avi")[0]), frames)


@pytest.mark.parametrize(("name", "codec", "pix_fmt"), [("a.mov", "png", "rgba"), ("a.webm", "libvpx-vp9", "yuva420p")])
def test_alpha(tmp_path, name, codec, pix_fmt):
    frames = squares(3, (64, 48), channels=4)
    write(tmp_path / name, frames, codec=codec, pix_fmt=pix_fmt)
    found = np.stack(read(tmp_path / name)[0])
    assert found.shape == frames.shape
    # VP9 blurs the edge of alpha a little.
    np.testing.assert_allclose(found[:, :, :30, 3], 0, atol=8)
    np.testing.assert_allclose(found[:, :, 34:, 3], 255, atol=8)


def test_what_a_phone_that_was_held_upright_wrote_is_upright(tmp_path):
    frames = squares(2, (64, 48))
    write(tmp_path / "a.mp4", frames, codec="libx264", pix_fmt="yuv420p", crf=10)
    written = (tmp_path / "a.mp4").read_bytes()
    matrix = written.index(b"tkhd") + 4 + 4 + 4 * 4 + 4 + 8 + 8  # ISO/IEC 14496-12, 8.3.2, version 0
    quarter = (0, 0x10000, 0, -0x10000, 0, 0, 48 << 16, 0, 0x40000000)  # clockwise
    turned = b"".join(number.to_bytes(4, "big", signed=True) for number in quarter)
    (tmp_path / "a.mp4").write_bytes(written[:matrix] + turned + written[matrix + 36 :])
    found = np.stack(read(tmp_path / "a.mp4")[0])
    assert found.shape == (2, 64, 48, 3)
    assert np.abs(found.astype(int) - np.rot90(frames, -1, axes=(1, 2))).mean() < 4


def test_folders_in_the_order_of_their_numbers(tmp_path):
    from PIL import Image

    for number in (10, 9, 2):
        Image.fromarray(np.full((4, 6, 3), number, np.uint8)).save(tmp_path / f"frame{number}.png")
    (tmp_path / "notes.txt").write_text("no frame")
    (tmp_path / ".frame1.png").write_text("no frame either")
    found, fps = read(tmp_path)
    assert [int(frame[0, 0, 0]) for frame in found] == [2, 9, 10]
    assert fps is None


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_pictures_are_videos_of_one_frame(tmp_path, mode):
    from PIL import Image

    grey = np.full((5, 7), 200, np.uint8)
    picture = Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(grey).convert(mode)
    picture.save(tmp_path / "a.png")
    (found,), _ = read(tmp_path / "a.png")
    assert found.shape == (5, 7, 4 if mode.endswith("A") else 3)
    np.testing.assert_array_equal(found[..., :3], 200)


def test_arrays():
    frames = squares(2, (6, 16), channels=4)
    np.testing.assert_array_equal(np.stack(read(frames)[0]), frames)


@pytest.mark.parametrize("shape", [(4, 4, 3), (2, 4, 4, 1), (0, 4, 4, 3)])
def test_arrays_that_are_no_videos(shape):
    with pytest.raises(InvalidVideo, match=r"\[T,H,W,3\]"):
        read(np.zeros(shape, np.uint8))
    with pytest.raises(InvalidVideo, match="float32"):
        read(np.zeros((2, 4, 4, 3), np.float32))


@pytest.mark.parametrize(("name", "words"), [("absent.mp4", "no video"), ("absent.png", "no picture"), ("e", "frames")])
def test_what_is_not_there(tmp_path, name, words):
    (tmp_path / "e").mkdir()
    with pytest.raises(InvalidVideo, match=words):
        read(tmp_path / name)


def test_sound_is_no_video(tmp_path):
    import wave

    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(1600))
    with pytest.raises(InvalidVideo, match="no pictures"):
        read(tmp_path / "a.wav")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("videos") / "a.mp4"
    write(path, squares(4, (32, 32)), codec="libx264", pix_fmt="yuv420p")
    return path


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_damaged_files_are_read_or_refused(whole, data):
    content = bytearray(whole.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    del content[data.draw(st.integers(1, len(content))) :]
    damaged = whole.with_name("damaged.mp4")
    damaged.write_bytes(content)
    try:
        found, _ = read(damaged)
    except InvalidVideo:
        return
    assert all(frame.dtype == np.uint8 and frame.shape[2] in (3, 4) for frame in found)
