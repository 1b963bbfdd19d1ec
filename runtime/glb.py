"""Animated meshes in GLB files (glTF 2.0 in one binary file): nodes that move, skins and morph targets.

The first animation is sampled; without one the mesh stands still for one frame. Triangles of all meshes of the scene
become one mesh. Of materials only colour factors count, of vertices their colours; textures are not read: what has its
colour from one, or none at all, is grey.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge4d.runtime.errors import InvalidMesh
from edge4d.runtime.gaussians import Float32Array
from edge4d.runtime.rotations import multiply_quats, quats_from_rotvecs, rotations_from_quats, rotvecs_from_quats

FloatArray = NDArray[np.float64]

MAX_FRAMES = 1000
MAX_BYTES = 1 << 30
MAX_COUNT = 1 << 24
"""Entries of one accessor: vertices, or corners of triangles."""

GREY = 0.7
"""Of what has no colour of its own. White would vanish before the white that objects are drawn on."""

_JSON, _BIN = 0x4E4F534A, 0x004E4942
_COMPONENTS = {5120: "i1", 5121: "u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}
_TRIANGLES = 4
_NEUTRAL = {"translation": (0.0, 0.0, 0.0), "rotation": (0.0, 0.0, 0.0, 1.0), "scale": (1.0, 1.0, 1.0)}


class GlbMesh(NamedTuple):
    """vertices [T,V,3] float32 (y up), faces [F,3] int32, colors [V,3] float32 in 0..1."""

    vertices: Float32Array
    faces: NDArray[np.int32]
    colors: Float32Array


def read_glb(path: Path, fps: float) -> GlbMesh:
    """Reads a GLB file, its animation at `fps` frames per second from its beginning to its end.

    Raises:
        InvalidMesh: it cannot be read, has no triangles, or needs an extension.
    """
    try:
        document, binary = _chunks(path)
        return _Scene(document, binary, fps).mesh()
    except OSError as error:
        raise InvalidMesh(f"{path} cannot be read.", note=str(error), hint="Check the path.") from error
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, struct.error, RecursionError) as error:
        raise InvalidMesh(
            f"{path} is not a GLB file that can be used.",
            note=f"{type(error).__name__}: {error}"[:300],
            hint="Export it as binary glTF 2.0, without compression.",
        ) from error


def _chunks(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes() if path.stat().st_size <= MAX_BYTES else b""
    if data[:4] != b"glTF" or struct.unpack_from("<I", data, 4)[0] != 2:
        raise ValueError("it is not binary glTF 2.0.")
    found: dict[int, bytes] = {}
    offset = 12
    while offset + 8 <= len(data):
        size, kind = struct.unpack_from("<II", data, offset)
        found.setdefault(kind, data[offset + 8 : offset + 8 + size])
        offset += 8 + size
    document = json.loads(found[_JSON])
    compressed = [name for name in document.get("extensionsRequired", []) if "compression" in name]
    if compressed:
        raise ValueError(f"it needs {', '.join(map(str, compressed))}.")
    return document, found.get(_BIN, b"")


class _Scene:
    """A document at the times of T frames."""

    def __init__(self, document: dict[str, Any], binary: bytes, fps: float) -> None:
        self._document, self._binary = document, binary
        self._nodes: list[dict[str, Any]] = document.get("nodes", [])
        self._tracks = {(node, path): sampler for node, path, sampler in self._animated()}
        ends = [float(self._accessor(sampler["input"]).max()) for sampler in self._tracks.values()]
        count = round(max(ends, default=0.0) * fps) + 1
        if not 1 <= count <= MAX_FRAMES:
            raise ValueError(f"its animation has {count} frames, at most {MAX_FRAMES} are read.")
        self._times = np.arange(count) / fps
        self._poses: dict[int, FloatArray] = {}  # [T,4,4] of each node in the scene
        for root in self._roots():
            self._place(root, np.eye(4))

    def mesh(self) -> GlbMesh:
        parts = [part for index in sorted(self._poses) for part in self._parts(index)]
        if not parts:
            raise ValueError("it has no triangles.")
        starts = np.cumsum([0, *(len(part.colors) for part in parts)])
        return GlbMesh(
            np.concatenate([part.vertices for part in parts], axis=1),
            np.concatenate([part.faces + np.int32(start) for part, start in zip(parts, starts)]),
            np.concatenate([part.colors for part in parts]),
        )

    # --- nodes ---

    def _roots(self) -> list[int]:
        scenes = self._document.get("scenes", [])
        if scenes:
            return [int(node) for node in scenes[self._document.get("scene", 0)].get("nodes", [])]
        children = {child for node in self._nodes for child in node.get("children", [])}
        return [index for index in range(len(self._nodes)) if index not in children]

    def _place(self, index: int, parent: FloatArray) -> None:
        if index in self._poses:
            raise ValueError(f"node {index} has several parents.")
        self._poses[index] = parent @ self._local(index)
        for child in self._nodes[index].get("children", []):
            self._place(int(child), self._poses[index])

    def _local(self, index: int) -> FloatArray:
        """[T,4,4] of a node in its parent's frame."""
        node = self._nodes[index]
        if "matrix" in node:
            matrix: FloatArray = np.array(node["matrix"], np.float64).reshape(4, 4)
            return np.tile(matrix.T, (len(self._times), 1, 1))
        shift, turn, scale = (self._track(index, name, node.get(name, value)) for name, value in _NEUTRAL.items())
        pose = np.tile(np.eye(4), (len(self._times), 1, 1))
        pose[:, :3, :3] = rotations_from_quats(turn[:, [3, 0, 1, 2]]) * scale[:, None]
        pose[:, :3, 3] = shift
        return pose

    # --- meshes ---

    def _parts(self, index: int) -> Iterator[GlbMesh]:
        node = self._nodes[index]
        if "mesh" not in node:
            return
        mesh = self._document["meshes"][node["mesh"]]
        for primitive in mesh["primitives"]:
            if primitive.get("mode", _TRIANGLES) == _TRIANGLES:
                yield self._part(index, mesh, primitive)

    def _part(self, index: int, mesh: dict[str, Any], primitive: dict[str, Any]) -> GlbMesh:
        attributes = primitive["attributes"]
        shapes = self._morphed(index, mesh, primitive)
        count = shapes.shape[1]
        poses = self._vertex_poses(index, attributes)
        vertices = np.einsum("tvij,tvj->tvi", poses[..., :3, :3], shapes) + poses[..., :3, 3]
        corners = self._accessor(primitive["indices"])[:, 0] if "indices" in primitive else np.arange(count)
        faces = corners[: len(corners) // 3 * 3].reshape(-1, 3).astype(np.int64)
        if len(faces) and faces.max() >= count:
            raise ValueError(f"a triangle has the vertex {faces.max()} of {count}.")
        return GlbMesh(vertices.astype(np.float32), faces.astype(np.int32), self._colors(primitive, count))

    def _morphed(self, index: int, mesh: dict[str, Any], primitive: dict[str, Any]) -> FloatArray:
        """[T or 1,V,3] before skin and node."""
        base = self._accessor(primitive["attributes"]["POSITION"])[None]
        targets = [self._accessor(target["POSITION"]) for target in primitive.get("targets", [])]
        if not targets:
            return base
        rest = self._nodes[index].get("weights", mesh.get("weights", [0.0] * len(targets)))
        weights = self._track(index, "weights", rest)
        return np.asarray(base + np.einsum("tk,kvc->tvc", weights, np.stack(targets)))

    def _vertex_poses(self, index: int, attributes: dict[str, int]) -> FloatArray:
        """[T,V or 1,4,4]: of the node, or of the joints that each vertex hangs on."""
        node = self._nodes[index]
        if "skin" not in node or "JOINTS_0" not in attributes:
            return self._poses[index][:, None]
        skin = self._document["skins"][node["skin"]]
        inverse = np.tile(np.eye(4), (len(skin["joints"]), 1, 1))
        if "inverseBindMatrices" in skin:
            inverse = self._accessor(skin["inverseBindMatrices"]).reshape(-1, 4, 4).swapaxes(1, 2)
        joints = np.stack([self._poses[joint] for joint in skin["joints"]], axis=1) @ inverse
        which = self._accessor(attributes["JOINTS_0"]).astype(np.int64)
        weights = self._accessor(attributes["WEIGHTS_0"])
        weights = weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-12)
        return np.stack([np.einsum("vk,vkij->vij", weights, pose[which]) for pose in joints])

    def _colors(self, primitive: dict[str, Any], count: int) -> Float32Array:
        surface: dict[str, Any] = {}
        if "material" in primitive:
            surface = self._document["materials"][primitive["material"]].get("pbrMetallicRoughness", {})
        factor = np.array(surface.get("baseColorFactor", (1.0, 1.0, 1.0))[:3], np.float64)
        told = "baseColorFactor" in surface and "baseColorTexture" not in surface
        colors = np.full((count, 3), 1.0 if told else GREY)
        if "COLOR_0" in primitive["attributes"]:
            colors = self._accessor(primitive["attributes"]["COLOR_0"])[:, :3]
        return np.asarray(factor * colors, np.float32)

    # --- animation ---

    def _animated(self) -> Iterator[tuple[int, str, dict[str, Any]]]:
        for animation in self._document.get("animations", [])[:1]:
            for channel in animation["channels"]:
                target = channel["target"]
                if "node" in target:
                    yield target["node"], target["path"], animation["samplers"][channel["sampler"]]

    def _track(self, index: int, path: str, rest: Any) -> FloatArray:
        """[T,C] of what a channel animates, or of what is at rest."""
        sampler = self._tracks.get((index, path))
        if sampler is None:
            return np.tile(np.asarray(rest, np.float64), (len(self._times), 1))
        times = self._accessor(sampler["input"])[:, 0]
        if np.any(np.diff(times) <= 0):
            raise ValueError("the times of an animation do not rise.")
        kind = sampler.get("interpolation", "LINEAR")
        width = len(rest)
        values = self._accessor(sampler["output"]).reshape(len(times), 3 if kind == "CUBICSPLINE" else 1, width)
        sampled = _sampled(self._times, times, values, kind, path == "rotation")
        return sampled / np.linalg.norm(sampled, axis=1, keepdims=True) if path == "rotation" else sampled

    # --- arrays ---

    def _accessor(self, index: int) -> FloatArray:
        """[count,width] float64; normalised integers are in 0..1 or -1..1."""
        accessor = self._document["accessors"][index]
        count, width = int(accessor["count"]), _WIDTHS[accessor["type"]]
        if not 0 < count <= MAX_COUNT:
            raise ValueError(f"accessor {index} has {count} entries.")
        kind = np.dtype(_COMPONENTS[accessor["componentType"]])
        values = np.zeros((count, width), kind)
        if "bufferView" in accessor:
            values = self._view(accessor["bufferView"], accessor.get("byteOffset", 0), kind, count, width)
        if "sparse" in accessor:
            values = self._sparse(accessor["sparse"], values)
        scale = float(np.iinfo(kind).max) if accessor.get("normalized") and kind.kind in "iu" else 1.0
        return values.astype(np.float64) / scale

    def _sparse(self, sparse: dict[str, Any], values: NDArray[Any]) -> NDArray[Any]:
        count, places, changed = int(sparse["count"]), sparse["indices"], sparse["values"]
        kind = np.dtype(_COMPONENTS[places["componentType"]])
        rows = self._view(places["bufferView"], places.get("byteOffset", 0), kind, count, 1)[:, 0]
        values = values.copy()
        values[rows] = self._view(
            changed["bufferView"], changed.get("byteOffset", 0), values.dtype, count, values.shape[1]
        )
        return values

    def _view(self, index: int, offset: int, kind: np.dtype[Any], count: int, width: int) -> NDArray[Any]:
        view = self._document["bufferViews"][index]
        if view.get("buffer", 0) != 0 or "uri" in self._document["buffers"][0]:
            raise ValueError("its buffers are in other files.")
        size = width * kind.itemsize
        stride = int(view.get("byteStride", size))
        first = int(view.get("byteOffset", 0))
        start, end = first + int(offset), min(first + int(view["byteLength"]), len(self._binary))
        if start < 0 or stride < size or start + (count - 1) * stride + size > end:
            raise ValueError(f"{count} entries of {stride} bytes reach beyond buffer view {index}.")
        array: NDArray[Any] = np.ndarray((count, width), kind, self._binary, start, (stride, kind.itemsize))
        return array


def _sampled(at: FloatArray, times: FloatArray, values: FloatArray, kind: str, rotation: bool) -> FloatArray:
    """[T,C] of a sampler's values [K,1 or 3,C] at times [K]; before and after them the ends hold."""
    before = np.clip(np.searchsorted(times, at, side="right") - 1, 0, len(times) - 1)
    after = np.minimum(before + 1, len(times) - 1)
    span = times[after] - times[before]
    share = np.clip((at - times[before]) / np.where(span > 0, span, 1.0), 0.0, 1.0)[:, None]
    if kind == "STEP":
        return np.asarray(values[before, 0])
    if kind == "CUBICSPLINE":
        a, b = values[before], values[after]
        s, width = share, span[:, None]
        kept = (2 * s**3 - 3 * s**2 + 1) * a[:, 1] + (s**3 - 2 * s**2 + s) * width * a[:, 2]
        return np.asarray(kept + (3 * s**2 - 2 * s**3) * b[:, 1] + (s**3 - s**2) * width * b[:, 0])
    a, b = values[before, 0], values[after, 0]
    return _slerped(a, b, share) if rotation else a + share * (b - a)


def _slerped(a: FloatArray, b: FloatArray, share: FloatArray) -> FloatArray:
    """Quaternions xyzw [T,4] between a and b, the shorter way."""
    a, b = a[:, [3, 0, 1, 2]], b[:, [3, 0, 1, 2]]
    turn = rotvecs_from_quats(multiply_quats(b, a * np.array([1.0, -1.0, -1.0, -1.0])))
    return multiply_quats(quats_from_rotvecs(share * turn), a)[:, [1, 2, 3, 0]]
