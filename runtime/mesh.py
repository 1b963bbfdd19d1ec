"""Meshes that move: a folder of PLY files, one for each frame, or a GLB file with an animation.

Vertices and triangles are the same ones in every frame. Frames of vertices are z up, as `edge4d.runtime.object_views`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Optional, Union

import numpy as np
from numpy.typing import NDArray

from edge4d.runtime.canonical import UP, up_rotation
from edge4d.runtime.errors import InvalidMesh
from edge4d.runtime.gaussians import Float32Array, Gaussians
from edge4d.runtime.glb import GREY, read_glb
from edge4d.runtime.mesh_ply import read_mesh_ply
from edge4d.runtime.ply import C0
from edge4d.runtime.rotations import quats_from_rotvecs
from edge4d.runtime.video_frames import natural_order

PathLike = Union[str, "os.PathLike[str]"]

GAUSSIANS = 16384
"""Sampled on a mesh that comes without Gaussians."""

_WIDTH = 0.5  # standard deviation in the surface, of the distance between neighbours
_FLATNESS = 0.2  # standard deviation across it, of that in it
_OPACITY = 0.95


class MovingMesh(NamedTuple):
    """A mesh in T frames.

    Attributes:
        vertices: [T,V,3] float32.
        faces: [F,3] int32, triangles.
        colors: [V,3] float32, RGB in 0..1.
    """

    vertices: Float32Array
    faces: NDArray[np.int32]
    colors: Float32Array


class SurfacePoints(NamedTuple):
    """P points of a mesh: triangles [P] and weights of their corners [P,3]."""

    triangles: NDArray[np.int64]
    weights: Float32Array


def read_moving_mesh(path: PathLike, *, up: str = "z", fps: float = 12.0) -> MovingMesh:
    """Reads a mesh that moves.

    Args:
        path: a folder of .ply files in the order of the numbers in their names; one .ply, which stands still; or a
            .glb, whose first animation is sampled.
        up: the axis that points up in PLY files, "z", "y" or "-y"; in GLB it is y.
        fps: frames per second at which an animation is sampled.

    Raises:
        InvalidMesh: there is none, it cannot be read, or its triangles change.
        InvalidRequest: there is no such axis.
    """
    path = Path(path)
    if path.suffix.lower() == ".glb":
        mesh, rotation = MovingMesh(*read_glb(path, fps)), UP["y"]
    else:
        mesh, rotation = _read_plys(path), up_rotation(up)
    if not np.isfinite(mesh.vertices).all():
        raise InvalidMesh(f"Vertices of {path} are not finite.", hint="Export the mesh again.")
    return mesh._replace(vertices=(mesh.vertices @ rotation.T).astype(np.float32))


def sample_surface(vertices: Float32Array, faces: NDArray[np.int32], count: int) -> SurfacePoints:
    """Points spread evenly over a mesh [V,3]; the same ones each time.

    Raises:
        InvalidMesh: the mesh has no surface.
    """
    areas = np.linalg.norm(_normals(vertices[faces]), axis=1)
    edges = np.cumsum(areas)
    if not len(areas) or not edges[-1] > 0.0:
        raise InvalidMesh(
            "The mesh has no surface.",
            note=f"It has {len(faces)} triangles, whose areas sum to 0.",
            hint="Look at the file in an editor, and export it again.",
        )
    random = np.random.default_rng(0).random((count, 3))
    # One point in each of `count` equal parts of the surface.
    places = (np.arange(count) + random[:, 0]) / count * edges[-1]
    triangles = np.minimum(np.searchsorted(edges, places), len(faces) - 1)
    root, share = np.sqrt(random[:, 1]), random[:, 2]
    weights = np.stack([1.0 - root, root * (1.0 - share), root * share], axis=1)
    return SurfacePoints(triangles, weights.astype(np.float32))


def values_at(points: SurfacePoints, faces: NDArray[np.int32], values: Float32Array) -> Float32Array:
    """What vertices [...,V,C] have, at points: [...,P,C]."""
    corners = values[..., faces[points.triangles], :]
    found: Float32Array = np.einsum("...pkc,pk->...pc", corners, points.weights, dtype=np.float32)
    return found


def surface_gaussians(mesh: MovingMesh, count: int = GAUSSIANS) -> Gaussians:
    """Activated Gaussians on the first frame's surface: flat ones that touch each other."""
    first = mesh.vertices[0]
    points = sample_surface(first, mesh.faces, count)
    corners = first[mesh.faces]
    normals = _normals(corners)
    width = _WIDTH * np.sqrt(0.5 * np.linalg.norm(normals, axis=1).sum() / count)
    colors = (values_at(points, mesh.faces, mesh.colors) - 0.5) / C0
    return Gaussians(
        means=values_at(points, mesh.faces, first),
        quats=_quats_from_normals(normals[points.triangles]),
        scales=np.tile(np.array([width, width, _FLATNESS * width], np.float32), (count, 1)),
        opacities=np.full(count, _OPACITY, np.float32),
        colors=colors[:, None].astype(np.float32),
    )


def _normals(corners: Float32Array) -> NDArray[np.float64]:
    """[F,3] of triangles [F,3,3], twice as long as their areas."""
    edges = np.diff(corners.astype(np.float64), axis=1)
    return np.cross(edges[:, 0], edges[:, 1])


def _quats_from_normals(normals: NDArray[np.float64]) -> Float32Array:
    """[P,4] turns from z to directions [P,3]."""
    x, y, z = (normals / np.linalg.norm(normals, axis=1, keepdims=True)).T
    axis = np.stack([-y, x, np.zeros_like(x)], axis=1)
    sine = np.hypot(x, y)
    axis = np.where(sine[:, None] > 1e-9, axis / np.maximum(sine, 1e-9)[:, None], [1.0, 0.0, 0.0])
    return quats_from_rotvecs(np.arctan2(sine, z)[:, None] * axis).astype(np.float32)


def _read_plys(path: Path) -> MovingMesh:
    frames = list(_ply_frames(path))
    _, faces, colors = frames[0]
    vertices = np.stack([vertices for vertices, _, _ in frames])
    return MovingMesh(vertices, faces, np.full_like(vertices[0], GREY) if colors is None else colors)


def _ply_frames(path: Path) -> Iterator[tuple[Float32Array, NDArray[np.int32], Optional[Float32Array]]]:
    files = [path]
    if path.is_dir():
        files = sorted((f for f in path.iterdir() if f.suffix.lower() == ".ply"), key=lambda f: natural_order(f.name))
    if not files:
        raise InvalidMesh(f"The folder {path} holds no meshes.", hint="Put a .ply for each frame into it.")
    first = None
    for file in files:
        frame = read_mesh_ply(file)
        first = first or frame
        same = frame[0].shape == first[0].shape and np.array_equal(frame[1], first[1])
        if not same:
            raise InvalidMesh(
                f"The mesh of {file.name} is another one than that of {files[0].name}.",
                note=f"It has {len(frame[0])} vertices and {len(frame[1])} triangles, the first {len(first[0])} and "
                f"{len(first[1])}; all must be the same and in the same order.",
                hint="Export an animation of one mesh, without remeshing each frame.",
            )
        yield frame
