"""Frames from files: videos of any format that PyAV reads, folders of pictures, single pictures, and arrays.

Frames come one at a time, upright, as uint8 [H,W,3] RGB, or [H,W,4] where the file has alpha (not multiplied into RGB).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Optional, Union

import numpy as np
from numpy.typing import NDArray

from edge4d.runtime.errors import BackendUnavailable, InvalidPicture, InvalidVideo
from edge4d.runtime.photo import MAX_PIXELS, read_rgba8

PathLike = Union[str, "os.PathLike[str]"]
Pixels = NDArray[np.uint8]

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".ppm")
_DECODERS_OF_ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # FFmpeg's own ones leave it out


class VideoFrames(NamedTuple):
    """A video that is being read.

    Attributes:
        frames: one after the other. Raises InvalidVideo where the file is damaged.
        fps: frames per second, where the file says it.
    """

    frames: Iterator[Pixels]
    fps: Optional[float]


@contextmanager
def open_frames(source: Union[PathLike, NDArray[Any]]) -> Iterator[VideoFrames]:
    """Opens a video for reading; it is closed with the context.

    Args:
        source: a video file; a folder of pictures in the order of the numbers in their names; a picture, which is a
            video of one frame; or an array [T,H,W,3] or [T,H,W,4] of uint8.

    Raises:
        InvalidVideo: there is none, or it is damaged, too large or of a wrong type.
        BackendUnavailable: PyAV or Pillow is missing.
    """
    if isinstance(source, np.ndarray):
        yield VideoFrames(iter(_checked_array(source)), None)
        return
    path = Path(source)
    if path.is_dir():
        yield VideoFrames(_pictures(_picture_files(path)), None)
    elif path.suffix.lower() in PICTURES:
        yield VideoFrames(_pictures([path]), None)
    else:
        with _opened(path) as container:
            stream = container.streams.video[0]
            rate = stream.average_rate or stream.guessed_rate
            yield VideoFrames(_decoded(container, stream, path), None if not rate else float(rate))


def _checked_array(array: NDArray[Any]) -> Pixels:
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] not in (3, 4) or array.size == 0:
        raise InvalidVideo(
            "An array is a video when it is [T,H,W,3] or [T,H,W,4] of uint8.",
            note=f"Shape {array.shape}, dtype {array.dtype}.",
            hint="For values in 0..1: (255 * array).round().astype('uint8').",
        )
    return array


# --- pictures ---------------------------------------------------------------------------------------------------------


def _picture_files(folder: Path) -> list[Path]:
    files = [path for path in folder.iterdir() if path.suffix.lower() in PICTURES and not path.name.startswith(".")]
    if not files:
        raise InvalidVideo(f"The folder {folder} holds no frames.", hint=f"Frames are pictures: {', '.join(PICTURES)}.")
    return sorted(files, key=lambda path: natural_order(path.name))


def natural_order(name: str) -> list[Union[tuple[int, int], tuple[int, str]]]:
    """frame2 before frame10."""
    parts = re.split(r"([0-9]+)", name)
    return [(0, int(part)) if i % 2 else (1, part) for i, part in enumerate(parts)]


def _pictures(files: Iterable[Path]) -> Iterator[Pixels]:
    for path in files:
        try:
            yield read_rgba8(path)
        except InvalidPicture as error:
            raise InvalidVideo(error.what, note=error.note, hint=error.hint) from error


# --- video files ------------------------------------------------------------------------------------------------------


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The container, after checking that it has pictures of a size that can be used."""
    if not path.is_file():
        raise InvalidVideo(f"There is no video at {path}.", hint="Check the path.")
    av = _av()
    try:
        container = av.open(str(path), metadata_errors="replace")
    except (av.FFmpegError, OSError, ValueError) as error:
        raise _damaged(path, error) from error
    with container:
        if not container.streams.video:
            raise InvalidVideo(f"{path} has no pictures.", note=f"It has {len(container.streams)} streams of others.")
        codec = container.streams.video[0].codec_context
        if codec is None:
            raise _damaged(path, ValueError("its codec is unknown"))
        if not 0 < codec.width * codec.height <= MAX_PIXELS:
            raise InvalidVideo(
                f"The frames of {path} cannot be used.",
                note=f"They have {codec.width}x{codec.height} pixels, at most {MAX_PIXELS / 1e6:.0f} million.",
            )
        yield container


def _decoded(container: Any, stream: Any, path: Path) -> Iterator[Pixels]:
    av = _av()
    stream.thread_type = "AUTO"
    decoder = _decoder(av, stream)
    try:
        for packet in container.demux(stream):
            for frame in decoder.decode(packet):
                yield _upright(frame)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise _damaged(path, error) from error


def _decoder(av: Any, stream: Any) -> Any:
    tags = {key.lower(): value for key, value in stream.metadata.items()}
    name = _DECODERS_OF_ALPHA.get(stream.codec_context.name)
    if name is None or tags.get("alpha_mode") != "1":
        return stream.codec_context
    return av.CodecContext.create(name, "r")


def _upright(frame: Any) -> Pixels:
    transparent = any(component.is_alpha for component in frame.format.components)
    pixels: Pixels = frame.to_ndarray(format="rgba" if transparent else "rgb24")
    quarters = round(getattr(frame, "rotation", 0) / 90) % 4  # anticlockwise, as of a phone that was held upright
    return np.ascontiguousarray(np.rot90(pixels, quarters)) if quarters else pixels


def _damaged(path: Path, error: Exception) -> InvalidVideo:
    return InvalidVideo(
        f"Cannot read {path} as a video.",
        note=f"{type(error).__name__}: {error}.",
        hint="It may be damaged, or its codec may be missing here; a folder of pictures works too.",
    )


def _av() -> Any:
    try:
        import av
    except ImportError as cause:
        raise BackendUnavailable("Reading videos needs PyAV.", note=str(cause), hint="pip install av") from cause
    return av
