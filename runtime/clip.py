"""A video of one subject, as networks take it: cut out, on white, in a square that stands still.

The square is chosen on the first frame, so that the longer side of the subject takes `SHARE` of it, as GVFDiffusion's
and TRELLIS's pictures have it.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, Optional, Union

import numpy as np
from numpy.typing import NDArray

from edge4d.runtime.errors import InvalidRequest, InvalidVideo, NoSubject
from edge4d.runtime.photo import pillow
from edge4d.runtime.video_frames import Pixels, open_frames

if TYPE_CHECKING:
    from PIL import Image

PathLike = Union[str, "os.PathLike[str]"]
Video = Union[PathLike, NDArray[Any]]

SHARE = 380 / 512 / 1.2
"""Of the square's side that the subject takes: officially, 1.2 times the subject becomes 380 pixels of 512."""

CLOSE_SHARE = 1 / 1.2
"""The same of a close-up, which TRELLIS makes Gaussians of."""

MAX_FRAMES = 1000
"""Frames of a clip. Each costs a scene 14 numbers per Gaussian: 4 GB in all for the largest assets."""

_OPAQUE = 128  # of 255, from which on a pixel belongs to the subject
_FEWEST = 16  # pixels that are a subject
_NEAR = 24  # of 255: channels of a plain background differ by less, after JPEG or H.264 too
_PLAIN = 0.7  # of the border that shows a plain background; the subject may reach out of the picture


class Square(NamedTuple):
    """Part of a picture, in pixels; it may reach beyond its edges."""

    left: float
    top: float
    side: float


class Clip(NamedTuple):
    """T frames of a subject on white.

    Attributes:
        pictures: [T,S,S,3] uint8 RGB.
        mask: [S,S] uint8, where the subject is in the first frame, 255 at its inside.
        first: [H,W,4] uint8 RGBA, the first frame as it was, opaque where the subject is.
        fps: frames per second.
    """

    pictures: Pixels
    mask: Pixels
    first: Pixels
    fps: float


def read_clip(
    video: Video,
    size: int,
    *,
    masks: Optional[Video] = None,
    seconds: Optional[float] = None,
    fps: float = 12.0,
) -> Clip:
    """Reads a video and cuts its subject out.

    Args:
        video, masks: see `edge4d.runtime.video_frames.open_frames`. Masks are as large as the frames, one for each, and
            white (or opaque) where the subject is. Without them the video's own alpha counts; where it has none, what
            differs from a background of one colour.
        size: S, pixels of the square.
        seconds: of the video; all of it without.
        fps: frames per second, where the file does not say it.

    Raises:
        InvalidVideo: the video or the masks are damaged, or do not belong together.
        NoSubject: a frame shows no subject, or not in the square.
        InvalidRequest: `seconds` or `fps` cannot be used.
        BackendUnavailable: PyAV or Pillow is missing.
    """
    _check_positive("seconds", seconds)
    _check_positive("frames per second", fps)
    pictures: list[Pixels] = []
    with open_frames(video) as opened:
        fps = fps if opened.fps is None else opened.fps
        count = MAX_FRAMES + 1 if seconds is None else max(1, round(seconds * fps))
        square = Square(0.0, 0.0, 0.0)
        first_mask = first = np.zeros((0, 0), np.uint8)
        for rgb, alpha in _cut_out(itertools.islice(opened.frames, count), masks):
            if not pictures:
                square = subject_square(alpha)
            picture, mask = on_white(rgb, alpha, square, size)
            _check_seen(mask, len(pictures), fps)
            if not pictures:
                first_mask, first = mask, np.dstack([rgb, alpha])
            pictures.append(picture)
            _check_count(len(pictures))
    if not pictures:
        raise InvalidVideo("The video has no frames.", hint="Check it in a player.")
    return Clip(np.stack(pictures), first_mask, first, fps)


def subject_square(alpha: Pixels, share: float = SHARE) -> Square:
    """The square around what is opaque in alpha [H,W], and takes that share of its side.

    Raises:
        NoSubject: hardly a pixel is opaque.
    """
    opaque = alpha >= _OPAQUE
    if opaque.sum() < _FEWEST:
        raise NoSubject(
            "The first frame shows no subject.",
            note=f"{int(opaque.sum())} pixels belong to it, {_FEWEST} are needed.",
            hint="Masks are white (255) where the subject is; a background of one colour needs a subject of another.",
        )
    rows, columns = np.flatnonzero(opaque.any(axis=1)), np.flatnonzero(opaque.any(axis=0))
    left, right, top, bottom = columns[0], columns[-1] + 1, rows[0], rows[-1] + 1
    side = max(right - left, bottom - top) / share
    return Square(0.5 * (left + right - side), 0.5 * (top + bottom - side), float(side))


def on_white(rgb: Pixels, alpha: Pixels, square: Square, size: int) -> tuple[Pixels, Pixels]:
    """The square of a picture [H,W,3] with alpha [H,W], on white, and of its alpha: [size,size,3] and [size,size]."""
    return _on_plain(255, rgb, alpha, square, size)


def close_up(first: Pixels, size: int) -> Pixels:
    """A clip's first frame [H,W,4] as a picture [size,size,3] that its subject nearly fills, on black."""
    rgb, alpha = first[..., :3], first[..., 3]
    return _on_plain(0, rgb, alpha, subject_square(alpha, CLOSE_SHARE), size)[0]


def _on_plain(background: int, rgb: Pixels, alpha: Pixels, square: Square, size: int) -> tuple[Pixels, Pixels]:
    left, top = math.floor(square.left), math.floor(square.top)
    right, bottom = math.ceil(square.left + square.side), math.ceil(square.top + square.side)
    colours = np.full((bottom - top, right - left, 3), background, np.uint8)
    mask = np.zeros(colours.shape[:2], np.uint8)
    height, width = alpha.shape
    inside = slice(max(top, 0), max(min(bottom, height), 0)), slice(max(left, 0), max(min(right, width), 0))
    place = tuple(slice(part.start - start, part.stop - start) for part, start in zip(inside, (top, left)))
    opacity = alpha[inside].astype(np.float32)[..., None] / np.float32(255.0)
    difference = rgb[inside].astype(np.float32) - np.float32(background)
    colours[place] = np.rint(np.float32(background) + opacity * difference).astype(np.uint8)
    mask[place] = alpha[inside]
    x, y = square.left - left, square.top - top
    box = (x, y, x + square.side, y + square.side)
    return _resized(colours, box, size), _resized(mask, box, size)


# --- masks ------------------------------------------------------------------------------------------------------------


def _cut_out(frames: Iterator[Pixels], masks: Optional[Video]) -> Iterator[tuple[Pixels, Pixels]]:
    """RGB [H,W,3] and alpha [H,W] of each frame."""
    if masks is None:
        for number, pixels in enumerate(frames):
            yield pixels[..., :3], _own_mask(pixels, number)
        return
    with open_frames(masks) as opened:
        for number, pixels in enumerate(frames):
            found = next(opened.frames, None)
            if found is None:
                raise InvalidVideo(
                    "There are fewer masks than frames.",
                    note=f"Frame {number} has none.",
                    hint="Give a mask for each frame, or use fewer of them: --seconds.",
                )
            yield pixels[..., :3], _given_mask(found, pixels.shape, number)


def _given_mask(mask: Pixels, shape: tuple[int, ...], number: int) -> Pixels:
    if mask.shape[:2] != shape[:2]:
        raise InvalidVideo(
            f"The mask of frame {number} is of another size.",
            note=f"It has {mask.shape[1]}x{mask.shape[0]} pixels, the frame {shape[1]}x{shape[0]}.",
            hint="Masks must show the same view as the video, pixel by pixel.",
        )
    if mask.shape[2] == 4 and mask[..., 3].min() < 255:
        return mask[..., 3]
    return np.where(mask[..., :3].max(axis=2) >= _OPAQUE, 255, 0).astype(np.uint8)


def _own_mask(pixels: Pixels, number: int) -> Pixels:
    if pixels.shape[2] == 4 and pixels[..., 3].min() < 255:
        return pixels[..., 3]
    return _mask_on_plain(pixels[..., :3], number)


def _mask_on_plain(rgb: Pixels, number: int) -> Pixels:
    """What differs from the border's colour, without single pixels."""
    border = np.concatenate([rgb[0], rgb[-1], rgb[:, 0], rgb[:, -1]])
    colour = np.median(border, axis=0)
    plain = float(np.mean(np.abs(border - colour).max(axis=1) < _NEAR))
    if plain < _PLAIN:
        raise NoSubject(
            f"Frame {number} has no plain background that a subject could be told from.",
            note=f"{plain:.0%} of its border is of one colour, {_PLAIN:.0%} are needed.",
            hint="Give masks: --masks DIR, a picture for each frame, white where the subject is.",
        )
    differs = np.pad(np.abs(rgb - colour).max(axis=2) >= _NEAR, 1)
    height, width = rgb.shape[:2]
    near = sum(differs[i : i + height, j : j + width].astype(np.uint8) for i in range(3) for j in range(3))
    return np.where(np.asarray(near) >= 5, 255, 0).astype(np.uint8)


# --- pieces -----------------------------------------------------------------------------------------------------------


def _check_positive(what: str, value: Optional[float]) -> None:
    if value is not None and not 0.0 < value < 1e6:
        raise InvalidRequest(
            f"A clip cannot have {value:g} {what}.",
            note="A number above 0 is needed.",
            hint="2 seconds, at 12 per second, are 24 frames.",
        )


def _check_seen(mask: Pixels, number: int, fps: float) -> None:
    if not (mask >= _OPAQUE).any():
        raise NoSubject(
            f"The subject cannot be seen in frame {number}.",
            note="Its mask is empty, or it has left the square around the first frame's subject, "
            f"{1 / SHARE:.2f} times as large.",
            hint=f"End before that: --seconds {number / fps:.2f}.",
        )


def _check_count(count: int) -> None:
    if count > MAX_FRAMES:
        raise InvalidVideo(
            "The video is too long.", note=f"It has more than {MAX_FRAMES} frames.", hint="Use a part: --seconds."
        )


def _resized(pixels: Pixels, box: tuple[float, float, float, float], size: int) -> Pixels:
    image = pillow("Resizing frames")
    picture: Image.Image = image.fromarray(pixels)
    return np.asarray(picture.resize((size, size), image.Resampling.BILINEAR, box=box))
