"""Reads a folder of objects that move: a video of each from the front, and what is truly there and seen elsewhere.

    world.json              as in `world_files`, and "kind": "objects", "views": C; width and height are equal
    NAME/video/0000.png     T pictures from the front, 8-bit RGBA: what a network gets to see
    NAME/canonical.ply      Gaussians of the first picture, of which one has to say how they move
    NAME/cameras.npy        [1 + C,4,4] camera to object: of the video, and of C others
    NAME/K.npy              [3,3] intrinsics of all of them, in pixels
    NAME/times.npy          [T] seconds, the first one 0
    NAME/views/0000-0.png   T × C pictures that the others see, 8-bit RGBA
    NAME/vertices.npy       [T,V,3] float32 of the mesh; a vertex is the same point at all times
    NAME/faces.npy          [F,3] int32, anticlockwise as seen from outside
    NAME/colors.npy         [V,3] float32, RGB from 0 to 1

Objects are in the frame of `object_views`: z up, in the unit cube.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from edge4d.runtime.camera import Camera
from edge4d.runtime.errors import InvalidWorld
from edge4d.runtime.npy_files import read_npy
from edge4d.runtime.photo import read_rgba8
from edge4d.runtime.world_files import WorldFolder, expect, number, rising_times

KIND = "objects"
MAX_VIEWS = 1000


@dataclass(frozen=True)
class ObjectMesh:
    """The true surface: vertices [T,V,3] float32, faces [F,3] int32, colors [V,3] float32 in 0..1."""

    vertices: NDArray[np.float32]
    faces: NDArray[np.int32]
    colors: NDArray[np.float32]


@dataclass(frozen=True)
class ObjectSequence:
    """One object that moves.

    Attributes:
        name: of its folder.
        video: [T,H,W,4] uint8, not multiplied by alpha.
        cameras: of the video, and of the other views.
        times: [T] seconds, from 0.
    """

    folder: Path
    name: str
    video: NDArray[np.uint8]
    cameras: tuple[Camera, ...]
    times: NDArray[np.float64]

    @property
    def canonical(self) -> Path:
        """A PLY file of the Gaussians at time 0."""
        return self.folder / "canonical.ply"

    def view(self, index: int, camera: int) -> NDArray[np.uint8]:
        """What camera 1 to C sees at time `index`, [H,W,4] uint8. Raises InvalidWorld or InvalidPicture."""
        return _picture(self.folder / "views" / f"{index:04d}-{camera - 1}.png", self.video.shape[1:])

    def mesh(self) -> ObjectMesh:
        """The surface at all times. Raises InvalidWorld."""
        vertices, faces, colors = (
            read_npy(self.folder / f"{name}.npy", InvalidWorld) for name in ("vertices", "faces", "colors")
        )
        count = vertices.shape[1] if vertices.ndim == 3 else 0
        vertices = expect(vertices, "vertices.npy", (len(self.times), count, 3)).astype(np.float32)
        faces = expect(faces, "faces.npy", (len(faces) if faces.ndim else 0, 3))
        colors = expect(colors, "colors.npy", (count, 3)).astype(np.float32)
        if faces.dtype.kind not in "iu" or (faces.size and not 0 <= faces.min() <= faces.max() < count):
            raise InvalidWorld(
                f"The triangles of {self.folder} do not fit its vertices.",
                note=f"They are {faces.dtype} from {faces.min()} to {faces.max()}; there are {count} vertices.",
            )
        return ObjectMesh(vertices, faces.astype(np.int32), colors)


@dataclass(frozen=True)
class ObjectWorld(WorldFolder):
    """A folder of objects, all of one size, length and set of cameras."""

    KIND: ClassVar[str] = KIND

    def sequence(self, name: str) -> ObjectSequence:
        """Reads one sequence, all but views and mesh. Raises InvalidWorld, InvalidPicture or InvalidCamera."""
        folder = self.folder / name
        width, height = self.size
        poses = expect(read_npy(folder / "cameras.npy", InvalidWorld), "cameras.npy", (1 + self.views, 4, 4))
        K = expect(read_npy(folder / "K.npy", InvalidWorld), "K.npy", (3, 3))
        pictures = [_picture(folder / "video" / f"{i:04d}.png", (height, width, 4)) for i in range(self.frames)]
        return ObjectSequence(
            folder=folder,
            name=name,
            video=np.stack(pictures),
            cameras=tuple(Camera(width, height, K, pose) for pose in poses),
            times=rising_times(folder, self.frames),
        )

    @property
    def views(self) -> int:
        """C, how many cameras there are besides the video's."""
        return int(number(self.description, "views", 1, MAX_VIEWS))


def _picture(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    return np.asarray(expect(read_rgba8(path), path.name, shape), np.uint8)


__all__ = ["KIND", "ObjectMesh", "ObjectSequence", "ObjectWorld"]
