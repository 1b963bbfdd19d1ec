"""Meshes in PLY files: ASCII or binary, with polygons and, perhaps, colours of vertices."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Optional

import numpy as np
from numpy.typing import NDArray

from edge4d.runtime.errors import InvalidMesh
from edge4d.runtime.gaussians import Float32Array
from edge4d.runtime.ply import TYPES

MAX_COUNT = 1 << 24
"""Vertices or polygons of one mesh."""

_MAX_HEADER = 1 << 16
_BYTE_ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">", "ascii": "="}


class _Property(NamedTuple):
    """`length` is the type of a list's length; None for a single number."""

    name: str
    type: str
    length: Optional[str] = None


class _Element(NamedTuple):
    name: str
    rows: int
    properties: list[_Property]


def read_mesh_ply(path: Path) -> tuple[Float32Array, NDArray[np.int32], Optional[Float32Array]]:
    """Vertices [V,3], triangles [F,3], and colours of vertices [V,3] in 0..1 where the file has them.

    Raises:
        InvalidMesh: not a readable PLY file with triangles.
    """
    try:
        with path.open("rb") as file:
            elements = _read(file)
    except OSError as error:
        raise InvalidMesh(f"{path} cannot be read.", note=str(error), hint="Check the path.") from error
    except (ValueError, IndexError, KeyError, OverflowError, StopIteration) as error:
        raise InvalidMesh(
            f"{path} is not a readable PLY file.",
            note=f"{error}"[:300],
            hint="A mesh is a .glb with an animation, or a folder with a .ply for each frame.",
        ) from error
    vertex, faces = elements.get("vertex", {}), _triangles(elements.get("face", {}))
    if not {"x", "y", "z"} <= set(vertex) or len(faces) == 0:
        raise InvalidMesh(
            f"{path} has no triangles.",
            note=f"Its elements are {', '.join(elements)[:200]}; a vertex has {', '.join(vertex)[:200]}.",
            hint="Gaussians and point clouds have no surface; export a mesh.",
        )
    vertices = np.stack([vertex[axis] for axis in "xyz"], axis=1).astype(np.float32)
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise InvalidMesh(
            f"Triangles of {path} use vertices that are not there.",
            note=f"Numbers from {faces.min()} to {faces.max()}; there are {len(vertices)} vertices.",
        )
    colors = None
    if {"red", "green", "blue"} <= set(vertex):
        rgb = np.stack([vertex[name] for name in ("red", "green", "blue")], axis=1)
        colors = (rgb / (255.0 if rgb.dtype.kind in "iu" else 1.0)).astype(np.float32)
    return vertices, faces.astype(np.int32), colors


def _read(file: BinaryIO) -> dict[str, dict[str, Any]]:
    order, elements = _header(file)
    if order == "=":
        words = iter(file.read().decode("ascii").split())
        return {element.name: _from_words(element, words) for element in elements}
    return {element.name: _from_bytes(element, file, order) for element in elements}


def _header(file: BinaryIO) -> tuple[str, list[_Element]]:
    elements: list[_Element] = []
    order = ""
    if file.readline(16).strip() != b"ply":
        raise ValueError("it does not begin with 'ply'.")
    while file.tell() < _MAX_HEADER and (line := file.readline(1024)):
        words = line.decode("ascii").split()
        if words[:1] == ["end_header"]:
            if not order:
                raise ValueError("its header has no format.")
            return order, elements
        if words[:1] == ["format"]:
            order = _BYTE_ORDERS[words[1]]
        elif words[:1] == ["element"]:
            elements.append(_Element(words[1], int(words[2]), []))
            if not 0 <= elements[-1].rows <= MAX_COUNT:
                raise ValueError(f"it has {words[2]} of {words[1]}, at most {MAX_COUNT} are read.")
        elif words[:2] == ["property", "list"]:
            elements[-1].properties.append(_Property(words[4], TYPES[words[3]], TYPES[words[2]]))
        elif words[:1] == ["property"]:
            elements[-1].properties.append(_Property(words[2], TYPES[words[1]]))
    raise ValueError("its header has no end.")


def _from_bytes(element: _Element, file: BinaryIO, order: str) -> dict[str, Any]:
    if all(prop.length is None for prop in element.properties):
        dtype = np.dtype([(prop.name, order + prop.type) for prop in element.properties])
        rows = np.frombuffer(_exactly(file, element.rows * dtype.itemsize), dtype)
        return {prop.name: rows[prop.name] for prop in element.properties}
    return _rows(element, lambda type, count: np.frombuffer(_exactly(file, count * int(type[1])), order + type))


def _exactly(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise ValueError(f"it is too short by {size - len(data)} bytes.")
    return data


def _from_words(element: _Element, words: Any) -> dict[str, Any]:
    rows = _rows(element, lambda type, count: np.array([float(next(words)) for _ in range(count)]))
    return {
        prop.name: rows[prop.name] if prop.length else np.asarray(rows[prop.name], prop.type)
        for prop in element.properties
    }


def _rows(element: _Element, take: Any) -> dict[str, Any]:
    """Properties by name, each a list with an entry per row: a number, or an array where the property is a list."""
    if not element.properties:
        return {}
    columns: dict[str, Any] = {prop.name: [] for prop in element.properties}
    for _ in range(element.rows):
        for prop in element.properties:
            if prop.length is None:
                columns[prop.name].append(take(prop.type, 1)[0])
            else:
                count = int(take(prop.length, 1)[0])
                if not 0 <= count <= 1024:
                    raise ValueError(f"a polygon has {count} corners.")
                columns[prop.name].append(take(prop.type, count))
    return columns


def _triangles(face: dict[str, Any]) -> NDArray[np.int64]:
    """[F,3] of polygons, each as a fan."""
    polygons = face.get("vertex_indices", face.get("vertex_index", []))
    fans = [(p[0], p[i], p[i + 1]) for p in polygons for i in range(1, len(p) - 1)]
    return np.array(fans, np.float64).astype(np.int64).reshape(-1, 3)
