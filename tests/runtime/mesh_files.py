"""Writes small meshes as other programs do."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np

CUBE = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float32) * np.float32(0.3)
QUADS = np.array([[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]])
TRIANGLES = np.concatenate([QUADS[:, [0, 1, 2]], QUADS[:, [0, 2, 3]]])
"""Anticlockwise as seen from outside, as the quadrangles are."""


def write_mesh_ply(path: Path, vertices, polygons, *, colors=None, form: str = "binary_little_endian") -> None:
    header = ["ply", f"format {form} 1.0", "comment of a test", f"element vertex {len(vertices)}"]
    header += [f"property float {axis}" for axis in "xyz"]
    if colors is not None:
        header += [f"property uchar {name}" for name in ("red", "green", "blue")]
    header += [f"element face {len(polygons)}", "property list uchar int vertex_indices", "end_header", ""]
    order = ">" if form == "binary_big_endian" else "<"
    rows = [tuple(map(float, vertex)) for vertex in vertices]
    data = "\n".join(header).encode()
    for index, row in enumerate(rows):
        extra = [] if colors is None else [int(c) for c in colors[index]]
        if form == "ascii":
            data += (" ".join(map(repr, (*row, *extra))) + "\n").encode()
        else:
            data += struct.pack(f"{order}3f{len(extra)}B", *row, *extra)
    for polygon in polygons:
        corners = [int(corner) for corner in polygon]
        if form == "ascii":
            data += (" ".join(map(str, (len(corners), *corners))) + "\n").encode()
        else:
            data += struct.pack(f"{order}B{len(corners)}i", len(corners), *corners)
    path.write_bytes(data)


class Glb:
    """A glTF document and its buffer, filled array by array."""

    def __init__(self) -> None:
        self.binary = b""
        self.document = {
            "asset": {"version": "2.0"},
            "accessors": [],
            "bufferViews": [],
            "meshes": [{"primitives": [{"attributes": {}}]}],
            "nodes": [{"mesh": 0}],
        }

    @property
    def attributes(self) -> dict:
        return self.document["meshes"][0]["primitives"][0]["attributes"]

    def array(self, values, kind: str = "float32", *, normalized: bool = False) -> int:
        """Appends an accessor; gives its number."""
        values = np.ascontiguousarray(values, kind)
        codes = {"int8": 5120, "uint8": 5121, "int16": 5122, "uint16": 5123, "uint32": 5125, "float32": 5126}
        shapes = {(): "SCALAR", (2,): "VEC2", (3,): "VEC3", (4,): "VEC4", (4, 4): "MAT4"}
        self.document["bufferViews"].append({"buffer": 0, "byteOffset": len(self.binary), "byteLength": values.nbytes})
        self.document["accessors"].append(
            {
                "bufferView": len(self.document["bufferViews"]) - 1,
                "componentType": codes[kind],
                "count": len(values),
                "type": shapes[values.shape[1:]],
                "normalized": normalized,
            }
        )
        self.binary += values.tobytes() + bytes(-values.nbytes % 4)
        return len(self.document["accessors"]) - 1

    def animate(self, node: int, path: str, times, values, interpolation: str = "LINEAR") -> None:
        animation = self.document.setdefault("animations", [{"channels": [], "samplers": []}])[0]
        animation["channels"].append({"sampler": len(animation["samplers"]), "target": {"node": node, "path": path}})
        animation["samplers"].append(
            {"input": self.array(times), "output": self.array(values), "interpolation": interpolation}
        )

    def write(self, path: Path) -> Path:
        self.document["buffers"] = [{"byteLength": len(self.binary)}]
        text = json.dumps(self.document).encode()
        text += b" " * (-len(text) % 4)
        chunks = struct.pack("<II", len(text), 0x4E4F534A) + text
        chunks += struct.pack("<II", len(self.binary), 0x004E4942) + self.binary
        path.write_bytes(struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks)
        return path


def cube() -> Glb:
    """A cube that stands still."""
    glb = Glb()
    glb.attributes["POSITION"] = glb.array(CUBE)
    glb.document["meshes"][0]["primitives"][0]["indices"] = glb.array(TRIANGLES.reshape(-1), "uint16")
    return glb
