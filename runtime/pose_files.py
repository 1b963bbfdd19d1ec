"""Camera paths in other people's files: KITTI, TUM, COLMAP text, RealEstate10K and nerfstudio camera-path JSON.

| format        | what a pose is                                     | intrinsics                  | times             |
|---------------|----------------------------------------------------|-----------------------------|-------------------|
| kitti         | 12 numbers: rows of the 3x4 camera to world        | the given camera's          | frame / fps       |
| tum           | time tx ty tz qx qy qz qw, camera to world         | the given camera's          | seconds           |
| colmap        | images.txt: id qw qx qy qz tx ty tz camera name,   | cameras.txt: PINHOLE or     | frame / fps, in   |
|               | world to camera; a line of points after each       | SIMPLE_PINHOLE, pixels      | order of names    |
| realestate10k | 19 numbers: time fx fy cx cy 0 0, rows of the 3x4  | fx, cx in widths; fy, cy in | microseconds      |
|               | world to camera; first the address of the video    | heights                     |                   |
| nerfstudio    | 16 numbers: rows of the 4x4 camera to world,       | vertical view in degrees,   | frame / the       |
|               | OpenGL axes (x right, y up, z back)                | render_width, render_height | file's fps        |

All but nerfstudio have our axes (x right, y down, z forward). Rotations are rounded in text, so each is replaced by the
nearest exact one. A picture of another size is fitted as a photograph is: centre-cropped to our aspect, then resized.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, NoReturn, Optional, Tuple, Union

import numpy as np
from numpy.typing import NDArray

from edge4d.runtime.camera import MAX_DISTANCE, MAX_SIZE, Camera
from edge4d.runtime.errors import Edge4DError, InvalidCameraPath
from edge4d.runtime.rotations import nearest_rotation, rotations_from_quats
from edge4d.runtime.trajectories import MAX_FRAMES, CameraPath

FloatArray = NDArray[np.float64]

MAX_BYTES = 256 << 20
"""Of one file. COLMAP's images.txt lists every point of every image; 1000 images with 10,000 points are 250 MB."""

MAX_JSON_BYTES = 64 << 20
"""A camera path of 100,000 poses with 16 numbers of 20 digits is about 35 MB."""

ROTATION_TOLERANCE = 1e-3
"""Largest |RT R - I| of a matrix in a file: text with four decimals is off by 2 sqrt(3) 5e-5 = 1.7e-4."""

LENGTH_TOLERANCE = 1e-2
"""Largest error of a quaternion's length in a file: three decimals are off by 1e-3."""


class _Pose(NamedTuple):
    """One pose of a file in our axes; no time means frame / fps, no lens the given camera's."""

    c2w: FloatArray  # [4, 4]
    time: Optional[float]  # seconds
    lens: Optional[_Lens]


class _Lens(NamedTuple):
    """A pinhole and the picture it belongs to, all in one unit of length (pixels, or picture heights)."""

    width: float
    height: float
    fx: float
    fy: float
    cx: float
    cy: float


def read_camera_path(
    path: Union[str, Path], *, camera: Camera, fps: float, format: Optional[str] = None, scale: float = 1.0
) -> CameraPath:
    """The camera path in a file (or, for COLMAP, in a folder with images.txt and cameras.txt).

    Args:
        path: the file or folder.
        camera: the input camera. It gives the size of the pictures, the intrinsics where the file has none, and the
            pose at which the path starts: the file's poses are taken relative to its first one.
        fps: frames per second where the file has no times.
        format: one of `FORMATS`, or None to find out from the name and the content.
        scale: metres per unit of length of the file.

    Raises:
        InvalidCameraPath: the file cannot be read, is too large, or does not hold what its format asks for.
    """
    path = Path(path)
    _check_positive("scale", scale)
    _check_positive("frame rate", fps)
    if format is None:
        format = _detect(path)
    if format not in FORMATS:
        raise InvalidCameraPath(
            f"There is no format of camera paths called {format!r}.",
            note=f"the formats are {', '.join(FORMATS)}.",
            hint="Leave the format out to have it found.",
        )
    poses = FORMATS[format](path)
    if not 1 <= len(poses) <= MAX_FRAMES:
        raise InvalidCameraPath(
            f"{path} holds no usable number of poses.",
            note=f"found {len(poses)} in format {format}; 1 to {MAX_FRAMES} are allowed.",
            hint="Check the format, or cut the path into parts.",
        )
    try:
        return _camera_path(poses, camera, fps, scale)
    except Edge4DError as error:
        raise InvalidCameraPath(f"{path}: {error.what}", note=error.note, hint=error.hint) from error


def _camera_path(poses: List[_Pose], camera: Camera, fps: float, scale: float) -> CameraPath:
    """Poses relative to the first, times from zero, intrinsics of our size."""
    first = np.linalg.inv(poses[0].c2w)
    cameras = []
    for pose in poses:
        relative = first @ pose.c2w
        relative[:3, :3] = nearest_rotation(relative[:3, :3])
        relative[:3, 3] *= scale
        K = camera.K if pose.lens is None else _fitted(pose.lens, camera.width, camera.height)
        cameras.append(Camera(camera.width, camera.height, K, camera.c2w @ relative))
    start = poses[0].time
    times = [i / fps if pose.time is None or start is None else pose.time - start for i, pose in enumerate(poses)]
    return CameraPath(np.array(times), tuple(cameras))


def _fitted(lens: _Lens, width: int, height: int) -> FloatArray:
    """The intrinsics [3, 3] of the lens's picture, centre-cropped to our aspect and resized to width x height."""
    scale = max(width / lens.width, height / lens.height)
    cx = (lens.cx - 0.5 * lens.width) * scale + 0.5 * width
    cy = (lens.cy - 0.5 * lens.height) * scale + 0.5 * height
    return np.array([[lens.fx * scale, 0.0, cx], [0.0, lens.fy * scale, cy], [0.0, 0.0, 1.0]])


def _read_kitti(path: Path) -> List[_Pose]:
    poses = []
    for place, words in _rows(path):
        numbers = _floats(place, words, 12)
        poses.append(_Pose(_rigid(place, np.array(numbers).reshape(3, 4)), None, None))
    return poses


def _read_tum(path: Path) -> List[_Pose]:
    poses: List[_Pose] = []
    for place, words in _rows(path):
        time, tx, ty, tz, qx, qy, qz, qw = _floats(place, words, 8)
        _check_time(place, time, poses)
        poses.append(_Pose(_pose_from_quat(place, (qw, qx, qy, qz), (tx, ty, tz)), time, None))
    return poses


def _read_realestate10k(path: Path) -> List[_Pose]:
    poses: List[_Pose] = []
    for place, words in _rows(path):
        if place.line == 1 and len(words) == 1:
            continue  # the address of the video
        time, fx, fy, cx, cy, _, _, *rows = _floats(place, words, 19)
        if fx <= 0.0 or fy <= 0.0:
            place.refuse("The focal length is not positive.", f"fx is {fx}, fy is {fy}, in widths and heights.")
        _check_time(place, time * 1e-6, poses)
        # Pixels are square, so fy / fx is the picture's aspect; its height is the unit of length.
        aspect = fy / fx
        lens = _checked_lens(place, _Lens(aspect, 1.0, fy, fy, cx * aspect, cy))
        w2c = _rigid(place, np.array(rows).reshape(3, 4))
        poses.append(_Pose(_inverse(w2c), time * 1e-6, lens))
    return poses


def _read_colmap(path: Path) -> List[_Pose]:
    folder = path if path.is_dir() else path.parent
    images = folder / "images.txt" if path.is_dir() else path
    lenses = _read_colmap_cameras(folder / "cameras.txt")
    poses: Dict[str, _Pose] = {}
    points = False
    for line, text in _lines(images):
        if text.startswith("#"):
            continue
        place = _Place(images, line)
        if points or not text.strip():
            # The line of points that follows each image, x y id each; it may be empty.
            if len(text.split()) % 3:
                place.refuse("Here should be the points of the image above.", "points have three columns each.")
            points = False
            continue
        words = text.split(None, 9)
        if len(words) < 10:
            place.refuse("An image has too few columns.", f"found {len(words)}; expected {_COLMAP_IMAGE}.")
        qw, qx, qy, qz, tx, ty, tz = _floats(place, words[1:8], 7)
        if words[8] not in lenses:
            place.refuse(
                "The image's camera is not in cameras.txt.", f"it is {words[8][:40]}; there are {len(lenses)}."
            )
        name = words[9].strip()
        if name in poses:
            place.refuse("Two images have one name.", f"it is {name[:80]!r}.")
        w2c = _pose_from_quat(place, (qw, qx, qy, qz), (tx, ty, tz))
        poses[name] = _Pose(_inverse(w2c), None, lenses[words[8]])
        _check_count(place, len(poses))
        points = True
    return [poses[name] for name in sorted(poses)]


_COLMAP_IMAGE = "IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME"


def _read_colmap_cameras(path: Path) -> Dict[str, _Lens]:
    """The lenses of cameras.txt by camera id (as text)."""
    lenses: Dict[str, _Lens] = {}
    for place, words in _rows(path):
        model = words[1] if len(words) > 1 else "(missing)"
        if model not in ("PINHOLE", "SIMPLE_PINHOLE"):
            place.refuse(
                f"The camera model {model[:40]} is not supported: it has distortion.",
                "supported are PINHOLE and SIMPLE_PINHOLE.",
                "Run colmap image_undistorter, which writes PINHOLE cameras.",
            )
        numbers = _floats(place, words[2:], 6 if model == "PINHOLE" else 5)
        width, height, fx = numbers[:3]
        fy = numbers[3] if model == "PINHOLE" else fx
        lenses[words[0]] = _checked_lens(place, _Lens(width, height, fx, fy, *numbers[-2:]))
    return lenses


def _read_nerfstudio(path: Path) -> List[_Pose]:
    document = _json_object(path)
    place = _Place(path, 1)
    if document.get("camera_type", "perspective") != "perspective":
        place.refuse("The camera is not a pinhole.", f"camera_type is {str(document['camera_type'])[:40]}.")
    entries = document.get("camera_path")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        place.refuse("The file has no list camera_path of objects.", f"its names are {', '.join(document)[:200]}.")
    width, height = (_json_number(place, document, name, 1.0, MAX_SIZE) for name in ("render_width", "render_height"))
    fps = _json_number(place, document, "fps", 1e-3, 1e3) if "fps" in document else None
    _check_count(place, len(entries))
    return [
        _nerfstudio_pose(_Place(path, 0, f"camera_path[{i}]"), entry, width, height, None if fps is None else i / fps)
        for i, entry in enumerate(entries)
    ]


def _nerfstudio_pose(place: _Place, entry: Dict[str, Any], width: float, height: float, time: Optional[float]) -> _Pose:
    numbers = entry.get("camera_to_world")
    if not isinstance(numbers, list) or len(numbers) != 16:
        place.refuse("camera_to_world is not a list of 16 numbers.", f"found {str(numbers)[:80]}.")
    matrix = np.array([_json_finite(place, "camera_to_world", number) for number in numbers]).reshape(4, 4)
    fov = _json_number(place, entry, "fov", 1e-3, 179.999)
    focal = 0.5 * height / math.tan(math.radians(0.5 * fov))
    # OpenGL cameras look along -z with y up: both axes change sign.
    c2w = _rigid(place, matrix[:3]) @ np.diag([1.0, -1.0, -1.0, 1.0])
    lens = _checked_lens(place, _Lens(width, height, focal, focal, 0.5 * width, 0.5 * height))
    return _Pose(c2w, time, lens)


FORMATS = {
    "kitti": _read_kitti,
    "tum": _read_tum,
    "colmap": _read_colmap,
    "realestate10k": _read_realestate10k,
    "nerfstudio": _read_nerfstudio,
}
"""The readers by the names that `read_camera_path` takes."""


class _Place(NamedTuple):
    """Where in a file something stands."""

    path: Path
    line: int
    name: str = ""

    def refuse(self, what: str, note: str, hint: str = "Check that the file is whole and has this format.") -> NoReturn:
        where = self.name or f"line {self.line}"
        raise InvalidCameraPath(f"{self.path}, {where}: {what}", note=note, hint=hint)


def _detect(path: Path) -> str:
    """The format of a file, from its name and its first rows."""
    if path.is_dir() or path.name == "images.txt":
        return "colmap"
    if path.suffix.lower() == ".json":
        return "nerfstudio"
    columns: List[int] = []
    for _, words in _rows(path):
        if not columns and words[0].startswith("{"):
            return "nerfstudio"
        columns.append(len(words))
        if len(columns) == 2:
            break
    for format, wanted in (("kitti", 12), ("tum", 8), ("realestate10k", 19), ("colmap", 10)):
        if columns and columns[-1] == wanted:
            return format
    raise InvalidCameraPath(
        f"The format of {path} was not recognised.",
        note=f"its first rows have {columns or 'no'} columns. Tried: kitti (12 columns), tum (8), realestate10k (19, "
        "after a line with an address), colmap (a folder, or images.txt beside cameras.txt), nerfstudio (JSON).",
        hint="Name the format if you know it.",
    )


def _rows(path: Path) -> Iterator[Tuple[_Place, List[str]]]:
    """The rows of numbers of a text file: lines that are neither empty nor comments, split at spaces or commas."""
    count = 0
    for line, text in _lines(path):
        words = re.split(r"[\s,]+", text.strip())
        if words == [""] or words[0].startswith("#"):
            continue
        count += 1
        place = _Place(path, line)
        _check_count(place, count - 1)
        yield place, words


def _lines(path: Path) -> Iterator[Tuple[int, str]]:
    """The lines of a text file, counted from 1, without ever holding the whole file."""
    line = 0
    try:
        _check_file(path, MAX_BYTES)
        with path.open("rb") as file:
            for line, text in enumerate(file, 1):
                if b"\0" in text:
                    raise UnicodeDecodeError("utf-8", text[:80], 0, 1, "a zero byte")
                yield line, text.decode("utf-8-sig")
    except OSError as error:
        raise InvalidCameraPath(f"{path} cannot be read.", note=str(error), hint="Check the path.") from error
    except UnicodeDecodeError as error:
        _Place(path, line).refuse("This is not text.", str(error)[:200])


def _check_file(path: Path, limit: int) -> None:
    if not path.is_file():
        raise InvalidCameraPath(
            f"{path} is not a file.",
            note="COLMAP needs images.txt and cameras.txt, the other formats one file.",
            hint="Check the path.",
        )
    size = path.stat().st_size
    if size > limit:
        raise InvalidCameraPath(
            f"{path} is too large for a camera path.", note=f"{size} bytes; at most {limit} are read.", hint="Cut it."
        )


def _check_count(place: _Place, count: int) -> None:
    if count > MAX_FRAMES:
        place.refuse("The path has too many poses.", f"at most {MAX_FRAMES} are read.", "Cut the path into parts.")


def _floats(place: _Place, words: List[str], count: int) -> List[float]:
    """Exactly `count` finite numbers."""
    if len(words) != count:
        place.refuse("A row has the wrong number of columns.", f"found {len(words)}; expected {count}.")
    numbers = []
    for word in words:
        try:
            number = float(word)
        except ValueError:
            place.refuse("A column is not a number.", f"found {word[:40]!r}.")
        if not math.isfinite(number):
            place.refuse("A number is not finite.", f"found {word[:40]}.")
        numbers.append(number)
    return numbers


def _check_time(place: _Place, time: float, poses: List[_Pose]) -> None:
    before = poses[-1].time if poses else None
    if before is not None and time <= before:
        place.refuse("The times do not increase.", f"{time} s comes after {before} s.", "Sort the rows by time.")


def _pose_from_quat(place: _Place, quat: Tuple[float, ...], position: Tuple[float, ...]) -> FloatArray:
    length = math.sqrt(sum(q * q for q in quat)) if max(map(abs, quat)) < 2.0 else math.inf
    if abs(length - 1.0) > LENGTH_TOLERANCE:
        place.refuse("The quaternion does not have length 1.", f"its length is {length:.4g}; columns may be swapped.")
    return _rigid(place, np.concatenate([rotations_from_quats(quat), np.array(position)[:, None]], axis=1))


def _rigid(place: _Place, rows: FloatArray) -> FloatArray:
    """The pose [4, 4] of 3x4 rows, with its rotation made exact."""
    rotation, position = rows[:, :3], rows[:, 3]
    within = np.abs(rotation).max() < 2.0
    error = float(np.abs(rotation.T @ rotation - np.eye(3)).max()) if within else math.inf
    if error > ROTATION_TOLERANCE or np.linalg.det(rotation) < 0.0:
        place.refuse(
            "The pose is not a rotation and a translation.",
            f"|RT R - I| is {error:.3g} and at most {ROTATION_TOLERANCE:g} is allowed; det R must be +1.",
        )
    farthest = float(np.abs(position).max())
    if farthest > MAX_DISTANCE:
        place.refuse("The camera is too far from the origin.", f"a coordinate of {farthest:g}; limit {MAX_DISTANCE:g}.")
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = nearest_rotation(rotation), position
    return pose


def _inverse(w2c: FloatArray) -> FloatArray:
    """Camera to world from an exactly rigid world to camera."""
    c2w = np.eye(4)
    c2w[:3, :3], c2w[:3, 3] = w2c[:3, :3].T, -w2c[:3, :3].T @ w2c[:3, 3]
    return c2w


def _checked_lens(place: _Place, lens: _Lens) -> _Lens:
    """The lens, if its numbers are those of a picture: in picture heights everything lies between 1e-3 and 1e3."""
    width, fx, fy, cx, cy = (length / lens.height if lens.height > 0.0 else 0.0 for length in (lens[0], *lens[2:]))
    if not all(1e-3 <= length <= 1e3 for length in (width, fx, fy)) or not max(abs(cx), abs(cy)) <= 1e3:
        place.refuse(
            "The intrinsics cannot be those of a picture.", ", ".join(f"{k} {v:g}" for k, v in lens._asdict().items())
        )
    return lens


def _json_object(path: Path) -> Dict[str, Any]:
    try:
        _check_file(path, MAX_JSON_BYTES)
        document = json.loads(path.read_bytes().decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        _Place(path, error.lineno).refuse("This is not valid JSON.", error.msg)
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidCameraPath(
            f"{path} cannot be read as JSON.", note=str(error)[:200], hint="Check the file."
        ) from error
    if not isinstance(document, dict):
        _Place(path, 1).refuse("The JSON is not an object.", f"found {str(document)[:80]}.")
    return document


def _json_number(place: _Place, values: Dict[str, Any], name: str, low: float, high: float) -> float:
    number = _json_finite(place, name, values.get(name))
    if not low <= number <= high:
        place.refuse(f"{name} is out of range.", f"it is {number:g}; {low:g} to {high:g} are allowed.")
    return number


def _json_finite(place: _Place, name: str, value: Any) -> float:
    # Whole numbers in JSON have no bound; those beyond any float are refused before conversion.
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not abs(value) < 1e300:
        place.refuse(f"{name} is not a finite number.", f"found {str(value)[:40]}.")
    return float(value)


def _check_positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and 1e-6 <= value <= 1e6):
        raise InvalidCameraPath(
            f"The {name} of a camera path cannot be used.",
            note=f"it is {value}; it must lie between 1e-6 and 1e6.",
            hint="Use 1 if the file is in metres." if name == "scale" else "12, 24 and 30 are usual.",
        )
