"""A photograph, and what the user knows about it, made ready for a network: upright RGB with the camera that took it.

Depth and instance maps follow the photograph through the same crop. Values are the file's own (8 bits / 255): no colour
profile is applied.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Optional, Union

import numpy as np
from numpy.typing import NDArray

from edge4d.runtime.camera import Camera
from edge4d.runtime.errors import BackendUnavailable, InvalidPicture, InvalidRequest
from edge4d.runtime.npy_files import read_npy

if TYPE_CHECKING:
    from PIL import Image

    Picture = Image.Image

PathLike = Union[str, "os.PathLike[str]"]
Intrinsics = tuple[float, float, float, float]  # fx, fy, cx, cy in pixels

MAX_PIXELS = 128_000_000  # 12,000 × 9,000 is a large photograph; beyond this a file is a mistake or an attack
ASSUMED_FOV = 60.0  # degrees across, where nothing else is known
FAR = 1000.0  # metres; what a depth map has at infinity
# Formats that Pillow decodes by itself. EPS, for one, would start another program.
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM")
_VIDEOS = (".mp4", ".mov", ".webm", ".mkv", ".avi")
FULL_FRAME_DIAGONAL = math.hypot(36.0, 24.0)  # mm; focal lengths "in 35 mm film" compare diagonals (CIPA DCG-001)

_ORIENTATION, _EXIF_IFD = 0x0112, 0x8769
_FOCAL_LENGTH, _FOCAL_LENGTH_35MM = 0x920A, 0xA405
_EXIF_WIDTH, _PLANE_X_RESOLUTION, _PLANE_UNIT = 0xA002, 0xA20E, 0xA210
_MILLIMETRES = {2: 25.4, 3: 10.0, 4: 1.0, 5: 0.001}  # of FocalPlaneResolutionUnit: inch, cm, mm, µm


@dataclass(frozen=True)
class Photo:
    """A photograph as a network takes it.

    Attributes:
        image: [H,W,3] float32, RGB in 0..1.
        camera: its camera, of the same H and W, at the identity pose.
        camera_source: where the focal length comes from, in words.
        depth: [H,W] float32, metres along z, or None.
        instances: [H,W] int32, 0 what stands still, or None.
    """

    image: NDArray[np.float32]
    camera: Camera
    camera_source: str
    depth: Optional[NDArray[np.float32]] = None
    instances: Optional[NDArray[np.int32]] = None


class Crop(NamedTuple):
    """The middle of a picture, as shares of its width and height, so that it fits pictures of other resolutions too."""

    left: float
    top: float
    right: float
    bottom: float

    def pixels(self, width: int, height: int) -> tuple[float, float, float, float]:
        return self.left * width, self.top * height, self.right * width, self.bottom * height


def read_photo(
    photo: Union[PathLike, NDArray[Any]],
    size: tuple[int, int],
    *,
    intrinsics: Optional[Sequence[float]] = None,
    fov: Optional[float] = None,
    depth: Union[PathLike, NDArray[Any], None] = None,
    depth_scale: Optional[float] = None,
    instances: Union[PathLike, NDArray[Any], None] = None,
    background: Sequence[float] = (0.0, 0.0, 0.0),
) -> Photo:
    """Reads a photograph, crops its middle to the aspect of `size`, and resizes.

    Args:
        photo: a file, or an array [H,W], [H,W,3] or [H,W,4] of uint8. EXIF orientation is applied.
        size: (width, height) wanted.
        intrinsics: fx, fy, cx, cy in pixels of the whole upright photograph.
        fov: degrees across the whole upright photograph. Without both: EXIF, else 60°.
        depth: metres along z: an array [H,W], a `.npy` file, or a 16-bit PNG with `depth_scale`. Beyond 1000 m, and at
            infinity, it is 1000 m.
        depth_scale: metres per unit of `depth`.
        instances: ids: an integer array [H,W], a `.npy` file, or an 8-bit, 16-bit or palette PNG; 0 stands still.
        background: RGB in 0..1 that a transparent picture is laid on.

    Raises:
        InvalidPicture: a file or array that is damaged, too large, of a wrong type, or a map of another aspect.
        InvalidRequest: `intrinsics` and `fov` together, or values that no camera has.
    """
    _check_photograph(photo)
    with _open(photo) as picture:
        width, height = _upright_size(picture)
        crop = centre_crop((width, height), size)
        whole, source = _intrinsics(picture, (width, height), intrinsics, fov)
        image = _decode(picture, crop, size, background)
    return Photo(
        image=image,
        camera=Camera.from_intrinsics(*size, *_cropped_intrinsics(whole, (width, height), crop, size)),
        camera_source=source,
        depth=None if depth is None else _read_depth(depth, depth_scale, (width, height), crop, size),
        instances=None if instances is None else _read_instances(instances, (width, height), crop, size),
    )


def _check_photograph(photo: Union[PathLike, NDArray[Any]]) -> None:
    """Refuses what is a video, since that is easily mistaken here."""
    if isinstance(photo, np.ndarray):
        return
    path = Path(photo)
    if path.is_dir() or (path.is_file() and path.suffix.lower() in _VIDEOS):
        raise InvalidPicture(
            f"{path} is a {'folder' if path.is_dir() else 'video'}, not a photograph.",
            note=f"Readable are {', '.join(FORMATS)}.",
            hint="Give one picture; videos and folders of frames are for bundles of gvf_diffusion: --bundle.",
        )


def centre_crop(size: tuple[int, int], target: tuple[int, int]) -> Crop:
    """The largest centred part of a picture of `size` (width, height) that has the aspect of `target`."""
    scale = min(size[0] / target[0], size[1] / target[1])
    x = min(0.5, 0.5 * scale * target[0] / size[0])  # rounding must not lead outside
    y = min(0.5, 0.5 * scale * target[1] / size[1])
    return Crop(0.5 - x, 0.5 - y, 0.5 + x, 0.5 + y)


# --- pictures ---------------------------------------------------------------------------------------------------------


def _open(photo: Union[PathLike, NDArray[Any]]) -> Picture:
    """The picture, its header read and its size checked, its pixels not yet decoded."""
    if isinstance(photo, np.ndarray):
        return _picture_from_array(photo)
    path = Path(photo)
    if not path.is_file():
        raise InvalidPicture(f"There is no picture at {path}.", hint="Check the path.")
    with _pillow_errors(str(path)):
        picture: Picture = pillow().open(path, formats=FORMATS)
    try:
        _check_size(picture.size)
    except InvalidPicture:
        picture.close()
        raise
    return picture


def _check_size(size: tuple[int, int]) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise InvalidPicture(
            "The picture is too large.",
            note=f"{width}x{height} = {width * height / 1e6:.0f} megapixels, at most {MAX_PIXELS / 1e6:.0f}.",
            hint="Make it smaller first; the network sees far fewer pixels anyway.",
        )


def _picture_from_array(array: NDArray[Any]) -> Picture:
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or channels not in (1, 3, 4) or array.size == 0:
        raise InvalidPicture(
            "An array is a photograph when it is [H,W], [H,W,3] or [H,W,4] of uint8.",
            note=f"Shape {array.shape}, dtype {array.dtype}.",
            hint="For values in 0..1: (255 * array).round().astype('uint8').",
        )
    _check_size((array.shape[1], array.shape[0]))
    pixels = array[:, :, 0] if array.ndim == 3 and channels == 1 else array
    picture: Picture = pillow().fromarray(np.ascontiguousarray(pixels))
    return picture


def read_rgb8(path: PathLike) -> NDArray[np.uint8]:
    """A picture as it is stored, [H,W,3] uint8. Raises InvalidPicture."""
    with _open(path) as picture, _pillow_errors(str(path)):
        return np.asarray(picture.convert("RGB"))


def read_rgba8(path: PathLike) -> NDArray[np.uint8]:
    """A picture upright, [H,W,3] uint8, or [H,W,4] where parts of it may be transparent. Raises InvalidPicture."""
    with _open(path) as picture, _pillow_errors(str(path)):
        upright = _upright(picture)
        if upright.mode.startswith(("I", "F")):
            grey = np.clip(np.asarray(_grey16(upright)) / 257.0, 0.0, 255.0).round().astype(np.uint8)
            return np.repeat(grey[:, :, None], 3, axis=2)
        return np.asarray(_rgb_or_rgba(upright))


def _decode(picture: Picture, crop: Crop, size: tuple[int, int], background: Sequence[float]) -> NDArray[np.float32]:
    """[H,W,3] float32 in 0..1: decoded no larger than needed, upright, resized, flattened onto the background."""
    name = str(getattr(picture, "filename", "") or "the picture")
    with _pillow_errors(name):
        _draft(picture, crop, size)
        upright = _upright(picture)
        if upright.mode.startswith(("I", "F")):
            grey = _resize(_grey16(upright), crop, size)
            values = np.clip(np.asarray(grey, np.float32) / 65535.0, 0.0, 1.0)
            return np.repeat(values[:, :, None], 3, axis=2)
        small = _resize(_rgb_or_rgba(upright), crop, size)
        pixels: NDArray[np.float32] = np.asarray(small, np.float32) / np.float32(255.0)
    if pixels.shape[2] == 3:
        return pixels
    alpha = pixels[:, :, 3:]
    flat: NDArray[np.float32] = alpha * pixels[:, :, :3] + (1.0 - alpha) * np.asarray(background, np.float32)
    return flat


def _draft(picture: Picture, crop: Crop, size: tuple[int, int]) -> None:
    """Lets a JPEG decode at 1/2, 1/4 or 1/8 of its size, still twice as fine as needed."""
    if picture.format in ("JPEG", "MPO"):
        kept = (crop.right - crop.left) * (crop.bottom - crop.top) * picture.width * picture.height
        scale = 2.0 * math.sqrt(size[0] * size[1] / kept)  # one scale for both sides, upright or not
        if scale < 1.0:
            picture.draft("RGB", (math.ceil(scale * picture.width), math.ceil(scale * picture.height)))


def _upright(picture: Picture) -> Picture:
    from PIL import ImageOps

    try:
        turned = ImageOps.exif_transpose(picture)
    except Exception:  # damaged EXIF is no reason to refuse a picture whose pixels are whole
        picture.load()
        return picture
    return picture if turned is None else turned


def _upright_size(picture: Picture) -> tuple[int, int]:
    quarter_turned = _exif(picture).get(_ORIENTATION) in (5, 6, 7, 8)
    return (picture.height, picture.width) if quarter_turned else picture.size


def _grey16(picture: Picture) -> Picture:
    """Mode F with values 0..65535, from a picture with 16 bits per pixel, however Pillow calls it."""
    grey = picture.convert("F") if picture.mode != "F" else picture
    low, high = grey.getextrema()
    if picture.mode == "F" or not 0 <= low <= high <= 65535:  # type: ignore[operator]
        raise InvalidPicture(
            "The picture's values are neither 8 nor 16 bits.",
            note=f"Mode {picture.mode}, values {low} to {high}.",
            hint="Save it as an 8-bit PNG.",
        )
    return grey


def _rgb_or_rgba(picture: Picture) -> Picture:
    transparent = picture.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in picture.info
    mode = "RGBA" if transparent else "RGB"
    return picture if picture.mode == mode else picture.convert(mode)


def _resize(picture: Picture, crop: Crop, size: tuple[int, int]) -> Picture:
    """Crops and resizes in one pass. Pillow's triangle filter widens with the reduction, so nothing aliases."""
    box = crop.pixels(*picture.size)
    if picture.size == size and box == (0.0, 0.0, float(size[0]), float(size[1])):
        return picture
    return picture.resize(size, pillow().Resampling.BILINEAR, box=box)


class _pillow_errors:  # noqa: N801
    """Damaged files make Pillow's readers raise and warn in many ways; here they all become InvalidPicture."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._warnings = warnings.catch_warnings()

    def __enter__(self) -> None:
        self._warnings.__enter__()
        warnings.simplefilter("ignore")  # large sizes are checked here, against MAX_PIXELS

    def __exit__(self, kind: Any, cause: Optional[BaseException], trace: Any) -> None:
        self._warnings.__exit__(kind, cause, trace)
        if isinstance(cause, InvalidPicture) or cause is None or not isinstance(cause, Exception):
            return
        raise InvalidPicture(
            f"Cannot read {self._name} as a picture.",
            note=f"{type(cause).__name__}: {cause}.",
            hint=f"It may be damaged. Readable are {', '.join(FORMATS)}.",
        ) from cause


def pillow(task: str = "Reading pictures") -> Any:
    """PIL.Image. Raises BackendUnavailable, which says what needs it."""
    try:
        from PIL import Image
    except ImportError as cause:
        raise BackendUnavailable(f"{task} needs Pillow.", note=str(cause), hint="pip install pillow") from cause
    return Image


# --- intrinsics -------------------------------------------------------------------------------------------------------


def _intrinsics(
    picture: Picture, size: tuple[int, int], intrinsics: Optional[Sequence[float]], fov: Optional[float]
) -> tuple[Intrinsics, str]:
    """fx, fy, cx, cy in pixels of the whole upright photograph, and where they come from in words."""
    if intrinsics is not None and fov is not None:
        raise InvalidRequest("Intrinsics and a field of view say the same thing twice.", hint="Give one of the two.")
    if intrinsics is not None:
        return _given_intrinsics(intrinsics), "given intrinsics"
    if fov is not None:
        if not 1.0 <= fov <= 170.0:
            raise InvalidRequest("No pinhole camera has this field of view.", note=f"{fov}°, from 1° to 170°.")
        return _centred(_focal(fov, size[0]), size), f"given field of view, {fov:g}°"
    focal = _focal_from_exif(picture, size)
    if focal is not None:
        return _centred(focal, size), f"EXIF focal length, {_fov(focal, size[0]):.1f}° across"
    return _centred(_focal(ASSUMED_FOV, size[0]), size), f"assumed, {ASSUMED_FOV:g}° across"


def _given_intrinsics(intrinsics: Sequence[float]) -> Intrinsics:
    values = np.asarray(intrinsics, np.float64)
    if values.shape != (4,) or not np.isfinite(values).all() or values[0] <= 0 or values[1] <= 0:
        raise InvalidRequest(
            "Intrinsics are fx,fy,cx,cy in pixels of the photograph.",
            note=f"Got {list(np.ravel(values))}.",
            hint="For example 721.5,721.5,609.6,172.9.",
        )
    fx, fy, cx, cy = values.tolist()
    return fx, fy, cx, cy


def _focal_from_exif(picture: Picture, size: tuple[int, int]) -> Optional[float]:
    """Focal length in pixels, from the 35 mm equivalent or the sensor's resolution; None where EXIF gives none."""
    exif = _exif(picture)
    film = _number(exif.get(_FOCAL_LENGTH_35MM))
    focal = film * math.hypot(*size) / FULL_FRAME_DIAGONAL
    if not focal:
        millimetre = _MILLIMETRES.get(int(_number(exif.get(_PLANE_UNIT, 2))), 0.0)
        taken_width = _number(exif.get(_EXIF_WIDTH)) or max(size)
        per_mm = _number(exif.get(_PLANE_X_RESOLUTION)) / millimetre if millimetre else 0.0
        focal = _number(exif.get(_FOCAL_LENGTH)) * per_mm * max(size) / max(taken_width, 1.0)
    return focal if focal > 0 and 5.0 <= _fov(focal, size[0]) <= 150.0 else None


def _exif(picture: Picture) -> dict[int, Any]:
    """The tags of the main and the EXIF directory; empty where there are none or they are damaged."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exif = picture.getexif()
            return {**dict(exif), **dict(exif.get_ifd(_EXIF_IFD))}
    except Exception:  # a damaged directory raises whatever its bytes lead to; the pixels may still be whole
        return {}


def _number(value: Any) -> float:
    """A tag's value as a finite positive number, else 0."""
    try:
        number = float(value)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        return 0.0
    return number if math.isfinite(number) and number > 0 else 0.0


def _focal(fov: float, width: int) -> float:
    return 0.5 * width / math.tan(math.radians(0.5 * fov))


def _fov(focal: float, width: int) -> float:
    return math.degrees(2.0 * math.atan(0.5 * width / focal))


def _centred(focal: float, size: tuple[int, int]) -> Intrinsics:
    return focal, focal, 0.5 * size[0], 0.5 * size[1]


def _cropped_intrinsics(
    intrinsics: Intrinsics, whole: tuple[int, int], crop: Crop, size: tuple[int, int]
) -> Intrinsics:
    """Intrinsics after cropping and resizing. Pixel centres lie at +0.5, so positions only shift and scale."""
    fx, fy, cx, cy = intrinsics
    left, top, right, bottom = crop.pixels(*whole)
    x, y = size[0] / (right - left), size[1] / (bottom - top)
    return x * fx, y * fy, x * (cx - left), y * (cy - top)


# --- maps -------------------------------------------------------------------------------------------------------------


def _read_depth(
    depth: Union[PathLike, NDArray[Any]],
    scale: Optional[float],
    photo_size: tuple[int, int],
    crop: Crop,
    size: tuple[int, int],
) -> NDArray[np.float32]:
    values, name = _read_map(depth, "depth")
    from_picture = isinstance(depth, (str, os.PathLike)) and not str(depth).endswith(".npy")
    if scale is None and from_picture:
        raise InvalidRequest(
            "A depth picture needs a scale.",
            note=f"{name} holds whole numbers.",
            hint="Say how many metres one unit is: --depth-scale 0.001 for millimetres.",
        )
    if scale is not None and not (math.isfinite(scale) and scale > 0):
        raise InvalidRequest("The depth scale is not a positive number.", note=f"Got {scale} metres per unit.")
    nearest = _nearest(values, name, photo_size, crop, size).astype(np.float32) * np.float32(
        1.0 if scale is None else scale
    )
    bad = int(np.count_nonzero(np.isnan(nearest) | (nearest <= 0)))
    if bad:
        raise InvalidPicture(
            f"{name} has pixels without a depth.",
            note=f"{bad} of {nearest.size} are NaN, zero or negative.",
            hint="Fill the holes, or leave the depth out and have it predicted.",
        )
    clipped: NDArray[np.float32] = np.minimum(nearest, np.float32(FAR))
    return clipped


def _read_instances(
    instances: Union[PathLike, NDArray[Any]], photo_size: tuple[int, int], crop: Crop, size: tuple[int, int]
) -> NDArray[np.int32]:
    values, name = _read_map(instances, "instances")
    if values.dtype.kind not in "iu":
        raise InvalidPicture(f"{name} holds no ids.", note=f"Its type is {values.dtype}, expected whole numbers.")
    nearest = _nearest(values, name, photo_size, crop, size)
    if nearest.min() < 0 or int(nearest.max()) > np.iinfo(np.int32).max:
        raise InvalidPicture(
            f"{name} has ids out of range.",
            note=f"They go from {nearest.min()} to {nearest.max()}, expected 0 to 2147483647.",
        )
    return nearest.astype(np.int32)


def _read_map(source: Union[PathLike, NDArray[Any]], word: str) -> tuple[NDArray[Any], str]:
    """A depth or instance map as it is stored, and its name for messages."""
    if isinstance(source, np.ndarray):
        values, name = source, f"The {word} array"
    else:
        name = str(source)
        values = read_npy(source, InvalidPicture) if name.endswith(".npy") else _read_map_picture(source)
    if values.ndim != 2 or values.size == 0 or values.dtype.kind not in "iuf":
        raise InvalidPicture(
            f"{name} is not a map.", note=f"Shape {values.shape}, dtype {values.dtype}, expected numbers [H,W]."
        )
    return values, name


def _read_map_picture(path: PathLike) -> NDArray[Any]:
    with _open(path) as picture, _pillow_errors(str(path)):
        if picture.mode not in ("L", "P", "I", "I;16", "I;16B", "I;16L"):
            raise InvalidPicture(
                f"{path} is not a map.",
                note=f"Its mode is {picture.mode}, expected one channel of whole numbers.",
                hint="Save it as a 16-bit grey PNG.",
            )
        return np.array(picture)


def _nearest(
    values: NDArray[Any], name: str, photo_size: tuple[int, int], crop: Crop, size: tuple[int, int]
) -> NDArray[Any]:
    """The crop at the new size, each pixel the nearest one: mixing values across an edge would invent surfaces."""
    height, width = values.shape
    # One pixel of rounding is allowed to a map of another resolution.
    if abs(width * photo_size[1] - height * photo_size[0]) > max(photo_size):
        raise InvalidPicture(
            f"{name} and the photograph have different shapes.",
            note=f"{width}x{height} and {photo_size[0]}x{photo_size[1]}.",
            hint="Both must show the same view, upright; resolutions may differ, the aspect may not.",
        )
    left, top, right, bottom = crop.pixels(width, height)
    columns = left + (np.arange(size[0]) + 0.5) * (right - left) / size[0]
    rows = top + (np.arange(size[1]) + 0.5) * (bottom - top) / size[1]
    chosen: NDArray[Any] = values[np.clip(rows.astype(int), 0, height - 1)][
        :, np.clip(columns.astype(int), 0, width - 1)
    ]
    return chosen
