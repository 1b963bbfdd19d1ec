"""Subjects, cut out of frames: where they are, what is around them, and what cannot be cut out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge4d.runtime import clip as clips
from edge4d.runtime.clip import SHARE, Square, close_up, on_white, read_clip
from edge4d.runtime.errors import InvalidRequest, InvalidVideo, NoSubject

RED, GREY = (200, 30, 30), (90, 100, 110)


def frames(boxes, size=(60, 40), background=GREY) -> np.ndarray:
    """[T,H,W,3] with a red box (left, top, right, bottom) in each."""
    width, height = size
    made = np.full((len(boxes), height, width, 3), background, np.uint8)
    for frame, (left, top, right, bottom) in zip(made, boxes):
        frame[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = RED
    return made


def masks(boxes, size=(60, 40)) -> np.ndarray:
    return (frames(boxes, size, (0, 0, 0))[..., :1] > 0).repeat(3, axis=3).astype(np.uint8) * 255


def red(picture) -> np.ndarray:
    """Where a picture on white is red, by half and more."""
    return picture[..., 1].astype(int) < (255 + RED[1]) / 2


def extent(mask) -> tuple[int, int]:
    """(width, height) of what is in a mask."""
    return int(mask.any(axis=0).sum()), int(mask.any(axis=1).sum())


def test_the_subject_takes_its_share_of_the_middle():
    found = read_clip(frames([(20, 10, 40, 22)]), 100, fps=5)
    assert found.pictures.shape == (1, 100, 100, 3)
    assert extent(red(found.pictures[0])) == (pytest.approx(100 * SHARE, abs=2), pytest.approx(60 * SHARE, abs=2))
    rows, columns = np.nonzero(found.mask > 127)
    assert (rows.mean(), columns.mean()) == (pytest.approx(49.5, abs=0.6), pytest.approx(49.5, abs=0.6))
    np.testing.assert_array_equal(found.pictures[0, :10], 255)


def test_pictures_are_as_officially():
    """1.2 times the subject's longer side becomes 380 pixels in the middle of 512."""
    assert pytest.approx(380 / (1.2 * 512)) == SHARE


@settings(deadline=None)
@given(st.integers(16, 60), st.integers(16, 40), st.integers(-8, 44), st.integers(-8, 24))
def test_close_ups_show_the_first_frame_on_black(width, height, left, top):
    """Officially a square of 1.2 times the subject's longer side, which may reach out of the picture."""
    box = (left, top, left + width, top + height)
    seen = min(left + width, 60) - max(left, 0), min(top + height, 40) - max(top, 0)
    first = read_clip(frames([box]), 16, masks=masks([box])).first
    assert first.shape == (40, 60, 4)
    picture = close_up(first, 120)
    expected = [100 * side / max(seen) for side in seen]  # to a pixel at either end
    assert extent(picture[..., 0] >= RED[0] // 2) == tuple(pytest.approx(side, abs=2) for side in expected)
    assert tuple(picture[59, 59]) == RED
    assert not picture[:2].any()  # a pixel of the frame may be 12 here, over which its edge is blurred
    assert not picture[:, -2:].any()


def test_close_ups_are_dark_where_the_subject_is_transparent():
    first = np.full((20, 20, 4), 200, np.uint8)
    first[..., 3] = np.where(np.arange(20) < 10, 255, 128)
    picture = close_up(first, 24)
    np.testing.assert_allclose(picture[12, [6, 18]], [[200] * 3, [100] * 3], atol=1)


def test_the_square_stands_still_while_the_subject_moves():
    found = read_clip(frames([(20, 10, 32, 22), (21, 10, 33, 22), (23, 12, 35, 24)]), 64)
    centres = [np.argwhere(red(picture)).mean(axis=0) for picture in found.pictures]
    pixel = 64 * SHARE / 12
    np.testing.assert_allclose(np.diff(centres, axis=0), [[0, pixel], [2 * pixel, 2 * pixel]], atol=0.7)
    assert found.fps == 12


def test_the_square_may_reach_out_of_the_picture():
    found = read_clip(frames([(0, 0, 30, 40)], size=(30, 40)), 50, masks=masks([(0, 0, 30, 40)], size=(30, 40)))
    assert extent(red(found.pictures[0])) == (
        pytest.approx(50 * SHARE * 3 / 4, abs=2),
        pytest.approx(50 * SHARE, abs=2),
    )
    np.testing.assert_array_equal(found.pictures[0, :, :5], 255)


def test_alpha_counts_before_the_background():
    transparent = np.concatenate([frames([(0, 0, 60, 40)]), masks([(10, 10, 30, 30)])[..., :1]], axis=3)
    transparent[0, 10:30, 20:30, 3] = 128
    found = read_clip(transparent, 80)
    assert extent(found.mask > 100) == (pytest.approx(80 * SHARE, abs=2),) * 2
    right = found.pictures[0, 40, 60]
    np.testing.assert_allclose(right, 255 + 128 / 255 * (np.array(RED) - 255.0), atol=3)


def test_masks_count_before_alpha(tmp_path):
    from PIL import Image

    opaque = np.concatenate([frames([(10, 10, 30, 30)]), np.full((1, 40, 60, 1), 10, np.uint8)], axis=3)
    Image.fromarray(masks([(10, 10, 30, 30)])[0]).save(tmp_path / "0.png")
    found = read_clip(opaque, 40, masks=tmp_path)
    assert extent(red(found.pictures[0])) == (pytest.approx(40 * SHARE, abs=2),) * 2


def test_one_colour_with_noise_is_a_background():
    noisy = frames([(20, 10, 40, 30)]).astype(int) + np.random.default_rng(0).integers(-8, 9, (1, 40, 60, 3))
    assert extent(read_clip(noisy.astype(np.uint8), 64).mask > 127) == (pytest.approx(64 * SHARE, abs=2),) * 2


def test_seconds_and_rates():
    boxes = [(20, 10, 40, 30)] * 6
    assert len(read_clip(frames(boxes), 16, seconds=0.5, fps=10).pictures) == 5
    assert len(read_clip(frames(boxes), 16, seconds=0.001, fps=10).pictures) == 1
    assert len(read_clip(frames(boxes), 16, seconds=100, fps=10).pictures) == 6
    for options in ({"seconds": 0.0}, {"seconds": -1}, {"fps": 0.0}, {"fps": float("nan")}):
        with pytest.raises(InvalidRequest):
            read_clip(frames(boxes), 16, **options)


def test_clips_that_are_too_long(monkeypatch):
    monkeypatch.setattr(clips, "MAX_FRAMES", 3)
    boxes = [(20, 10, 40, 30)] * 4
    with pytest.raises(InvalidVideo, match="too long"):
        read_clip(frames(boxes), 16)
    assert len(read_clip(frames(boxes), 16, seconds=0.3, fps=10).pictures) == 3


@pytest.mark.parametrize("shown", [[(0, 0, 0, 0)], [(20, 10, 23, 13)]])
def test_nothing_to_cut_out(shown):
    with pytest.raises(NoSubject, match="no subject"):
        read_clip(frames(shown), 16)
    with pytest.raises(NoSubject, match="no subject"):
        read_clip(frames(shown), 16, masks=masks(shown))


def test_a_background_of_many_colours():
    pixels = np.random.default_rng(0).integers(0, 255, (1, 40, 60, 3), np.uint8)
    with pytest.raises(NoSubject, match="--masks"):
        read_clip(pixels, 16)


@pytest.mark.parametrize("last", [(0, 0, 0, 0), (0, 0, 12, 12)])
def test_a_subject_that_leaves(last):
    """The whole picture, or the square around the first frame's subject."""
    shown = [(44, 24, 56, 36), (45, 24, 57, 36), last]
    with pytest.raises(NoSubject, match=r"frame 2(.|\n)*--seconds 0.17"):
        read_clip(frames(shown), 16, masks=masks(shown))
    assert len(read_clip(frames(shown), 16, masks=masks(shown), seconds=0.17).pictures) == 2


def test_a_subject_that_half_leaves_is_seen_by_half():
    shown = [(40, 10, 56, 26), (52, 10, 68, 26)]
    found = read_clip(frames(shown), 64)
    assert red(found.pictures[1]).sum() == pytest.approx(0.5 * red(found.pictures[0]).sum(), rel=0.1)


def test_masks_that_do_not_belong_to_the_video():
    shown = [(20, 10, 40, 30)] * 3
    with pytest.raises(InvalidVideo, match=r"fewer masks(.|\n)*Frame 2"):
        read_clip(frames(shown), 16, masks=masks(shown)[:2])
    with pytest.raises(InvalidVideo, match="61x40"):
        read_clip(frames(shown), 16, masks=masks(shown, size=(61, 40)))


def test_what_is_transparent_is_white():
    rgb, alpha = np.zeros((4, 4, 3), np.uint8), np.full((4, 4), 255, np.uint8)
    alpha[:, 2:] = 0
    picture, mask = on_white(rgb, alpha, Square(0.0, 0.0, 4.0), 4)
    np.testing.assert_array_equal(picture[..., 0], np.where(np.arange(4) < 2, 0, 255)[None].repeat(4, axis=0))
    np.testing.assert_array_equal(mask, alpha)
