"""Frames to files: MP4 that plays in a browser, folders of PNG, and depth in colours.

A target is whole or absent: everything is written beside it and renamed at the end.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, Union

import numpy as np
from numpy.typing import NDArray

from edge4d.runtime.errors import BackendUnavailable, InvalidRequest
from edge4d.runtime.files import replacing

PathLike = Union[str, "os.PathLike[str]"]
AddFrame = Callable[[NDArray[np.uint8]], None]  # pixels [H,W,3], RGB
AddDepth = Callable[[NDArray[np.float32], NDArray[np.float32]], None]  # depth [H,W] metres, alpha [H,W]

_FRAME_NAME = re.compile(r"\d{4,}\.png")
_FRAMES_WAITING = 64  # to be compressed, at most
_BT709, _LIMITED_RANGE = 1, 1  # ISO/IEC 23091-2

# Colours of depth from far to near: night blue, blue, teal, green, lime, orange, warm white.
_DEPTH_STOPS = np.array(
    [[24, 15, 62], [39, 61, 143], [25, 126, 163], [56, 178, 125], [173, 203, 66], [248, 186, 58], [255, 243, 206]],
    np.float32,
)
_SEEN = 0.05  # alpha below which a pixel shows no surface, and its depth means nothing


def frame_writer(path: PathLike, size: tuple[int, int], fps: float) -> AbstractContextManager[AddFrame]:
    """Opens `path` for frames: H.264 if it ends in `.mp4`, a folder of PNG files if it has no suffix.

    The context gives a function that appends one frame, [H,W,3] uint8 RGB.

    Args:
        path: where the video goes; its folder is made.
        size: (width, height) of the frames.
        fps: frames per second.

    Raises:
        InvalidRequest: another suffix, an odd size for H.264, a folder with other files in it, or an impossible rate.
        BackendUnavailable: PyAV is missing or has no H.264 encoder.
    """
    path = Path(path)
    check_target(path)
    if not 0.1 <= fps <= 1000:
        raise InvalidRequest("No video has this frame rate.", note=f"{fps} frames per second, from 0.1 to 1000.")
    if _is_mp4(path):
        _check_even(size)
        return _mp4(path, size, fps, encoder())
    return _png_folder(path)


def check_target(path: PathLike) -> None:
    """Raises InvalidRequest or BackendUnavailable when no video at all can be written to `path`."""
    path = Path(path)
    if _is_mp4(path):
        encoder()
    elif path.suffix and not path.is_dir():
        raise InvalidRequest(
            f"Videos are not written as {path.suffix}.",
            note=f"The output is {path}.",
            hint="Name a .mp4 file, or a folder for PNG frames.",
        )
    else:
        _check_frame_folder(path)


def _is_mp4(path: Path) -> bool:
    return path.suffix.lower() == ".mp4"


@contextmanager
def depth_writer(path: PathLike, size: tuple[int, int], fps: float) -> Iterator[AddDepth]:
    """Opens `path`, as `frame_writer` does, for depth in colours from the farthest to the nearest surface of the clip.

    The context gives a function that appends one frame: depth [H,W] in metres, and alpha [H,W], which says where there
    is a surface. The range is known only at the end, so frames wait in a temporary file, two bytes per pixel.
    """
    writer = frame_writer(path, size, fps)
    near, far = 0.0, np.inf  # as 1/depth
    with tempfile.TemporaryFile() as spool:

        def add(depth: NDArray[np.float32], alpha: NDArray[np.float32]) -> None:
            nonlocal near, far
            seen = (alpha > _SEEN) & (depth > 0)
            inverse = np.divide(1.0, depth, out=np.zeros(depth.shape, np.float32), where=seen)
            if seen.any():
                # The outermost percent is left out: one stray splat must not take the whole range of colours.
                low, high = np.percentile(inverse[seen], (1.0, 99.0))
                near, far = max(near, float(high)), min(far, float(low))
            spool.write(np.minimum(inverse, 6e4).astype(np.float16).tobytes())

        yield add
        with writer as add_frame:
            for inverse in _spooled(spool, (size[1], size[0])):
                pixels = depth_colours((inverse - far) / max(near - far, 1e-6))
                pixels[inverse == 0] = 0
                add_frame(pixels)


def depth_colours(nearness: NDArray[Any]) -> NDArray[np.uint8]:
    """Colours [..., 3] uint8 of nearness [...], from 0 (far, dark blue) to 1 (near, warm white)."""
    position = np.clip(nearness, 0.0, 1.0) * (len(_DEPTH_STOPS) - 1)
    low = np.minimum(position.astype(int), len(_DEPTH_STOPS) - 2)
    share = (position - low)[..., None]
    colours = (1.0 - share) * _DEPTH_STOPS[low] + share * _DEPTH_STOPS[low + 1]
    return np.asarray(np.rint(colours), np.uint8)


@contextmanager
def _mp4(path: Path, size: tuple[int, int], fps: float, av: Any) -> Iterator[AddFrame]:
    """H.264, yuv420p, BT.709, index at the front: what browsers play while it loads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"movflags": "+faststart"}
    with replacing(path) as partial, av.open(str(partial), "w", format="mp4", options=options) as container:
        rate = Fraction(fps).limit_denominator(1001)
        stream = container.add_stream("libx264", rate=rate, options={"crf": "17", "preset": "medium"})
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        codec = stream.codec_context
        codec.color_primaries = codec.color_trc = codec.colorspace = _BT709
        codec.color_range = _LIMITED_RANGE

        def add(pixels: NDArray[np.uint8]) -> None:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace=_BT709, dst_color_range=_LIMITED_RANGE)
            container.mux(stream.encode(frame))

        yield add
        container.mux(stream.encode(None))


@contextmanager
def _png_folder(path: Path) -> Iterator[AddFrame]:
    """A folder of 0000.png, 0001.png, … Each takes far longer to compress than to draw: all cores do it."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as partial, ThreadPoolExecutor() as pool:
        folder = Path(partial, path.name)
        folder.mkdir()  # its permissions are ordinary; those of a temporary folder are private
        count, waiting = 0, deque[Future[None]]()

        def add(pixels: NDArray[np.uint8]) -> None:
            nonlocal count
            if len(waiting) == _FRAMES_WAITING:
                waiting.popleft().result()
            picture = Image.fromarray(np.ascontiguousarray(pixels))
            waiting.append(pool.submit(picture.save, folder / f"{count:04d}.png"))
            count += 1

        yield add
        while waiting:
            waiting.popleft().result()
        if path.exists():
            shutil.rmtree(path)
        os.replace(folder, path)


def _spooled(spool: BinaryIO, shape: tuple[int, int]) -> Iterator[NDArray[np.float32]]:
    spool.seek(0)
    while True:
        frame = spool.read(2 * shape[0] * shape[1])
        if not frame:
            return
        yield np.frombuffer(frame, np.float16).reshape(shape).astype(np.float32)


def _check_even(size: tuple[int, int]) -> None:
    width, height = size
    if width % 2 or height % 2:
        raise InvalidRequest(
            "H.264 video needs an even width and height.",
            note=f"{width}x{height}; the nearest is {width + width % 2}x{height + height % 2}.",
            hint="Choose an even --size, or a folder for PNG frames.",
        )


def _check_frame_folder(path: Path) -> None:
    if path.exists() and not (path.is_dir() and all(_FRAME_NAME.fullmatch(name) for name in os.listdir(path))):
        raise InvalidRequest(
            f"{path} is not an empty folder.", note="It holds files that are not frames.", hint="Name another folder."
        )


def encoder() -> Any:
    """PyAV, once it is certain that it can encode H.264. Raises BackendUnavailable."""
    try:
        import av
    except ImportError as cause:
        raise BackendUnavailable("Writing MP4 needs PyAV.", note=str(cause), hint="pip install av") from cause
    try:
        av.Codec("libx264", "w")
    except ValueError as cause:
        raise BackendUnavailable(
            "This PyAV has no H.264 encoder.",
            note=f"PyAV {av.__version__}: {cause}.",
            hint="Install its official wheel (pip install --force-reinstall av), or write a folder of PNG frames.",
        ) from cause
    return av
