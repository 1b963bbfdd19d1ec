"""PLY files of 3D Gaussian splatting, as Inria's code, SuperSplat, antimatter15/splat and others write and read them.

Binary, little-endian, one element "vertex" of float32 properties: x y z nx ny nz f_dc_0..2 f_rest_0..(3 (K - 1) - 1)
opacity scale_0..2 rot_0..3. Scales are logarithms, opacities logits, rotations wxyz; f_rest runs through the
coefficients of red, then green, then blue. A colour without harmonics is stored as f_dc = (colour - 0.5) / C0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional, Tuple, Union

import numpy as np
from numpy.typing import NDArray

from edge4d.runtime.camera import Camera
from edge4d.runtime.errors import InvalidPly
from edge4d.runtime.files import replacing
from edge4d.runtime.gaussians import Gaussians
from edge4d.runtime.scene import MAX_GAUSSIANS, Activation, Scene4D

MAX_HEADER = 1 << 16
"""Bytes. Inria's header has 1.5 kB; antimatter15/splat reads no more than 10 kB."""

C0 = 0.5 / math.sqrt(math.pi)
"""The constant spherical harmonic, 0.28209479177387814."""

SMALLEST_SCALE = 1e-20
"""Metres. A scale of zero has no logarithm; this one is invisible and still a normal float32 after exp."""

SMALLEST_OPACITY = 2.0**-24
"""An opacity of 0 or 1 has no finite logit. Below this one nothing is drawn (the threshold is 1/255), and 1 minus it is
the float32 next to 1, so clamping costs no more than half a unit in the last place."""

_POSITION, _NORMAL = ("x", "y", "z"), ("nx", "ny", "nz")
_COLOR, _SCALE = ("f_dc_0", "f_dc_1", "f_dc_2"), ("scale_0", "scale_1", "scale_2")
_ROTATION = ("rot_0", "rot_1", "rot_2", "rot_3")
_REQUIRED = (*_POSITION, *_COLOR, "opacity", *_SCALE, *_ROTATION)

TYPES = {
    **dict.fromkeys(("char", "int8"), "i1"),
    **dict.fromkeys(("uchar", "uint8"), "u1"),
    **dict.fromkeys(("short", "int16"), "i2"),
    **dict.fromkeys(("ushort", "uint16"), "u2"),
    **dict.fromkeys(("int", "int32"), "i4"),
    **dict.fromkeys(("uint", "uint32"), "u4"),
    **dict.fromkeys(("float", "float32"), "f4"),
    **dict.fromkeys(("double", "float64"), "f8"),
}
"""What numbers are called, as NumPy has them, without an order of bytes."""


def write_ply(path: Union[str, Path], gaussians: Gaussians) -> int:
    """Write activated Gaussians, such as `scene.evaluate(t)`; returns how many.

    Gaussians with NaN or Inf are left out, because viewers do not check for them. f_rest is written only when the
    colours are spherical harmonics of degree 1 or more.

    Raises:
        InvalidPly: the file cannot be written.
    """
    path = Path(path)
    columns = _columns_from_gaussians(gaussians)
    rows = np.stack([column.astype("<f4") for column in columns.values()], axis=-1)
    rows = rows[np.isfinite(rows).all(axis=-1)]
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(rows)}"]
    header += [f"property float {name}" for name in columns]
    try:
        with replacing(path) as partial, partial.open("wb") as file:
            file.write("\n".join([*header, "end_header", ""]).encode())
            rows.tofile(file)
    except OSError as error:
        raise InvalidPly(f"{path} cannot be written.", note=str(error), hint="Choose a folder that exists.") from error
    return len(rows)


def write_ply_sequence(folder: Union[str, Path], scene: Scene4D, times: Iterable[float]) -> List[Path]:
    """Write the scene at each time as frame0001.ply, frame0002.ply, ...: what players of sequences open.

    Raises:
        InvalidPly: the folder or a file cannot be written.
    """
    folder, times = Path(folder), list(times)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidPly(f"{folder} cannot be made.", note=str(error), hint="Choose another folder.") from error
    paths = [folder / f"frame{i:04d}.ply" for i in range(1, len(times) + 1)]
    for path, t in zip(paths, times):
        write_ply(path, scene.evaluate(t))
    return paths


def read_ply(path: Union[str, Path], *, camera: Optional[Camera] = None) -> Scene4D:
    """Read a scene that does not move. Its values are kept as they are in the file, to be activated by exp and sigmoid.

    Properties may be in any order and float or double; those that 3D Gaussian splatting does not use are ignored.

    Args:
        path: the file.
        camera: where `render` starts; PLY files have none. By default 448x256 pixels with a view of 60 degrees at the
            origin, looking along z.

    Raises:
        InvalidPly: not a readable binary PLY file of 3D Gaussian splatting.
    """
    path = Path(path)
    try:
        columns = _read_columns(path)
    except OSError as error:
        raise InvalidPly(f"{path} cannot be read.", note=str(error), hint="Check the path.") from error
    except InvalidPly as error:
        raise InvalidPly(f"{path}: {error.what}", note=error.note, hint=error.hint) from error
    return Scene4D(
        means=_stacked(columns, _POSITION),
        quats=_stacked(columns, _ROTATION),
        scales=_stacked(columns, _SCALE),
        opacities=np.ascontiguousarray(columns["opacity"]),
        colors=_harmonics(columns),
        groups=np.zeros(len(columns["opacity"]), np.int32),
        camera=Camera.from_fov(448, 256, 60.0) if camera is None else camera,
        activation=Activation(scale="exp", opacity="sigmoid"),
        metric=False,
        source="ply",
    )


def _columns_from_gaussians(gaussians: Gaussians) -> Dict[str, NDArray[Any]]:
    """The properties by name in Inria's order, each [N]."""
    N = len(gaussians.means)
    colors = gaussians.colors.astype(np.float64)
    harmonics = colors if colors.ndim == 3 else (colors[:, None] - 0.5) / C0
    # [N, K - 1, 3] to channel-major: all of red, then green, then blue.
    rest = harmonics[:, 1:].swapaxes(1, 2).reshape(N, 3 * (harmonics.shape[1] - 1))
    with np.errstate(invalid="ignore"):
        opacities = np.clip(gaussians.opacities.astype(np.float64), SMALLEST_OPACITY, 1.0 - SMALLEST_OPACITY)
        scales = np.log(np.maximum(gaussians.scales.astype(np.float64), SMALLEST_SCALE))
    columns: Dict[str, NDArray[Any]] = {}
    parts: Tuple[Tuple[Iterable[str], NDArray[Any]], ...] = (
        (_POSITION, gaussians.means),
        (_NORMAL, np.zeros((N, 3))),
        (_COLOR, harmonics[:, 0]),
        ([f"f_rest_{i}" for i in range(rest.shape[1])], rest),
        (("opacity",), (np.log(opacities) - np.log1p(-opacities))[:, None]),
        (_SCALE, scales),
        (_ROTATION, gaussians.quats),
    )
    for names, values in parts:
        columns.update((name, values[:, i]) for i, name in enumerate(names))
    return columns


@dataclass(frozen=True)
class _Element:
    """One element of a PLY header: its properties by name, in order; lists have no fixed size and no dtype."""

    name: str
    count: int
    properties: Dict[str, Optional[str]]

    @property
    def dtype(self) -> np.dtype[np.void]:
        for name, kind in self.properties.items():
            if kind is None:
                raise InvalidPly(
                    f"The property {name!r} is a list.",
                    note=f"it belongs to the element {self.name!r}; 3D Gaussian splatting has numbers only.",
                    hint="Meshes have lists; export Gaussians.",
                )
        return np.dtype([(name, kind) for name, kind in self.properties.items()])


def _read_columns(path: Path) -> Dict[str, NDArray[np.float32]]:
    """The properties of 3D Gaussian splatting by name, each [N] float32 and finite."""
    if not path.is_file():
        raise InvalidPly("This is not a file.", note="no regular file is there.", hint="Check the path.")
    size = path.stat().st_size
    with path.open("rb") as file:
        header = _header(file.read(MAX_HEADER))
        offset = len(header)
        for element in _elements(header):
            _check_room(element, size - offset)
            if element.name == "vertex":
                names = _checked_names(element)
                file.seek(offset)
                rows = np.fromfile(file, element.dtype, element.count)
                break
            offset += element.count * element.dtype.itemsize
        else:
            raise InvalidPly(
                'The file has no element "vertex".',
                note=f"size {size} bytes.",
                hint="Export Gaussians from your program.",
            )
    if len(rows) != element.count:
        raise InvalidPly(
            "The file became shorter.", note=f"{len(rows)} of {element.count} vertices.", hint="Try again."
        )
    return {name: _finite(name, rows[name]) for name in names}


def _header(start: bytes) -> bytes:
    """The header with its last line, from the start of the file."""
    if start[:4] not in (b"ply\n", b"ply\r"):
        raise InvalidPly("This is not a PLY file.", note=f"it starts with {start[:8]!r}.", hint="Give a .ply file.")
    for ending in (b"\nend_header\n", b"\nend_header\r\n"):
        end = start.find(ending)
        if end >= 0:
            return start[: end + len(ending)]
    raise InvalidPly(
        "The PLY header does not end.",
        note=f"no end_header in {len(start)} bytes; a header has at most {MAX_HEADER}.",
        hint="The file may be truncated; copy it again.",
    )


def _elements(header: bytes) -> List[_Element]:
    lines = [line.rstrip("\r") for line in header.decode("latin-1").split("\n")]
    if lines[1].split()[:2] != ["format", "binary_little_endian"]:
        raise InvalidPly(
            "The PLY file is not in binary little-endian form.",
            note=f"its second line is {lines[1][:60]!r}.",
            hint="Save it in binary form; every splat editor does by default.",
        )
    elements: List[_Element] = []
    for number, line in enumerate(lines[2:-2], 3):
        words = line.split()
        if not words or words[0] in ("comment", "obj_info"):
            continue
        if words[0] == "element" and len(words) == 3 and _is_count(words[2]):
            elements.append(_Element(words[1], int(words[2]), {}))
        elif words[0] == "property" and elements and _add_property(elements[-1], words[1:]):
            continue
        else:
            raise InvalidPly(
                f"Line {number} of the PLY header makes no sense.",
                note=f"it is {line[:80]!r}.",
                hint="Known are element NAME COUNT and property TYPE NAME, each name once.",
            )
    return elements


def _is_count(word: str) -> bool:
    # 18 digits are more than any file has bytes.
    return word.isascii() and word.isdigit() and len(word) <= 18


def _add_property(element: _Element, words: List[str]) -> bool:
    """Whether the words after "property" made sense; they are then in the element."""
    is_list = len(words) == 4 and words[0] == "list"
    name = words[-1] if words else ""
    if name in element.properties or not (is_list or (len(words) == 2 and words[0] in TYPES)):
        return False
    element.properties[name] = None if is_list else "<" + TYPES[words[0]]
    return True


def _check_room(element: _Element, room: int) -> None:
    needed = element.count * element.dtype.itemsize
    if needed > room or element.count > MAX_GAUSSIANS:
        raise InvalidPly(
            f"The file is too short for its {element.name} elements, or there are too many.",
            note=f"{element.count} of {element.dtype.itemsize} bytes need {needed}, the file has {max(room, 0)} left; "
            f"at most {MAX_GAUSSIANS} are read.",
            hint="The file may be truncated; copy it again.",
        )


def _checked_names(vertex: _Element) -> Tuple[str, ...]:
    """The properties to read, after checking that they are all there and floats."""
    if "packed_position" in vertex.properties:
        raise InvalidPly(
            "This is a compressed PLY file.",
            note="its vertices have packed_position instead of x, y and z.",
            hint="Export it uncompressed from SuperSplat, or convert it with splat-transform.",
        )
    rest = sum(name.startswith("f_rest_") for name in vertex.properties)
    names = (*_REQUIRED, *(f"f_rest_{i}" for i in range(rest)))
    missing = [name for name in names if name not in vertex.properties]
    if missing or rest not in (0, 9, 24, 45):
        raise InvalidPly(
            "The vertices lack properties of 3D Gaussian splatting.",
            note=f"missing {', '.join(missing) or 'none'}; {rest} f_rest, where 0, 9, 24 or 45 are possible; "
            f"found {', '.join(vertex.properties)[:400]}.",
            hint="Point clouds and meshes cannot be rendered as Gaussians.",
        )
    wrong = [name for name in names if vertex.properties[name] not in ("<f4", "<f8")]
    if wrong:
        raise InvalidPly(
            "Properties of 3D Gaussian splatting are not floating-point numbers.",
            note=f"these are not: {', '.join(wrong)}.",
            hint="Export them as float.",
        )
    return names


def _finite(name: str, column: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        values: NDArray[np.float32] = column.astype(np.float32)
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong):
        raise InvalidPly(
            f"The property {name} holds NaN, Inf or numbers beyond float32.",
            note=f"{len(wrong)} of {len(values)} vertices; the first is vertex {wrong[0]}.",
            hint="Remove these Gaussians in a splat editor.",
        )
    return values


def _stacked(columns: Dict[str, NDArray[np.float32]], names: Iterable[str]) -> NDArray[np.float32]:
    return np.stack([columns[name] for name in names], axis=-1)


def _harmonics(columns: Dict[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    """[N, K, 3] coefficients."""
    K = 1 + sum(name.startswith("f_rest_") for name in columns) // 3
    constant = _stacked(columns, _COLOR)[:, None]
    if K == 1:
        return constant
    rest = _stacked(columns, [f"f_rest_{i}" for i in range(3 * (K - 1))])
    return np.ascontiguousarray(np.concatenate([constant, rest.reshape(-1, 3, K - 1).swapaxes(1, 2)], axis=1))
