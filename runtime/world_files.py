"""Reads a folder of worlds: photographs with the true frames, depth and cameras along a path.

    world.json              {"format": 1, "world", "seed", "fps", "frames": T, "size": [W, H],
                            "sequences": [NAME, …], …}; "kind", where it is there, is "photographs"
    NAME/photo.png          the photograph, 8-bit RGB: t = 0, identity pose
    NAME/cameras.npy        [T,4,4] camera-to-world, relative to the photograph's camera, metres
    NAME/Ks.npy             [T,3,3] intrinsics in pixels
    NAME/times.npy          [T] seconds, the first one 0
    NAME/frames/0000.png    the true frames; 0000 is the photograph
    NAME/frames_depth.npy   [T,H,W] metres along z
    NAME/frames_moving.npz  [T,H,W] bool, the pixels of moving objects

There are also NAME/depth.npy and NAME/instances.png, of the photograph, and NAME/motion.json: truth that the network
does not get to see.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar, Union

import numpy as np
from numpy.typing import NDArray

from edge4d.runtime.camera import Camera
from edge4d.runtime.errors import InvalidWorld
from edge4d.runtime.npy_files import read_npy, read_npz
from edge4d.runtime.photo import read_rgb8

FORMAT = 1
MAX_DESCRIPTION = 1 << 20
MAX_FRAMES = 100_000
MAX_SIDE = 16_384

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", re.ASCII)  # a plain folder name: it leads nowhere else


@dataclass(frozen=True)
class WorldSequence:
    """One photograph and what is truly seen along one camera path.

    Attributes:
        name: of its folder.
        photo: [H,W,3] uint8.
        cameras: T of them; the first is the photograph's.
        times: [T] seconds, from 0.
        depth: [T,H,W] metres along z.
        moving: [T,H,W], the pixels of moving objects.
    """

    folder: Path
    name: str
    photo: NDArray[np.uint8]
    cameras: tuple[Camera, ...]
    times: NDArray[np.float64]
    depth: NDArray[Any]
    moving: NDArray[np.bool_]

    def frame(self, index: int) -> NDArray[np.uint8]:
        """The true picture number `index`, [H,W,3] uint8. Raises InvalidWorld, or InvalidPicture for a damaged file."""
        return _picture(self.folder / "frames" / f"{index:04d}.png", self.photo.shape)


@dataclass(frozen=True)
class WorldFolder:
    """What all folders of worlds have: sequences of one size and length.

    Attributes:
        description: all of `world.json`.
    """

    KIND: ClassVar[str]

    folder: Path
    name: str
    seed: int
    fps: float
    frames: int
    size: tuple[int, int]
    sequences: tuple[str, ...]
    description: dict[str, Any]

    @classmethod
    def load(cls: type[_Folder], folder: Union[str, os.PathLike[str]]) -> _Folder:
        """Reads `world.json`. Raises InvalidWorld."""
        folder = Path(folder)
        node = _description(folder)
        if node.get("format") != FORMAT:
            raise InvalidWorld(
                f"{folder} has an unknown format.", note=f"Format {node.get('format')!r}, expected {FORMAT}."
            )
        kind = node.get("kind", World.KIND)
        if kind != cls.KIND:
            raise InvalidWorld(
                f"{folder} holds other data than is needed.", note=f"{str(kind)[:80]!r}, expected {cls.KIND!r}."
            )
        return cls(
            folder=folder,
            name=_get(node, "world", str),
            seed=_get(node, "seed", int),
            fps=number(node, "fps", 0.1, 1000.0),
            frames=int(number(node, "frames", 2, MAX_FRAMES)),
            size=_size(node),
            sequences=_sequence_names(node),
            description=node,
        )


_Folder = TypeVar("_Folder", bound=WorldFolder)


@dataclass(frozen=True)
class World(WorldFolder):
    """A folder of photographs of one world, and of what is seen of it later."""

    KIND: ClassVar[str] = "photographs"

    def sequence(self, name: str) -> WorldSequence:
        """Reads one sequence, all but its frames. Raises InvalidWorld, InvalidPicture or InvalidCamera."""
        folder = self.folder / name
        width, height = self.size
        maps = (self.frames, height, width)
        poses = expect(read_npy(folder / "cameras.npy", InvalidWorld), "cameras.npy", (self.frames, 4, 4))
        Ks = expect(read_npy(folder / "Ks.npy", InvalidWorld), "Ks.npy", (self.frames, 3, 3))
        return WorldSequence(
            folder=folder,
            name=name,
            photo=_picture(folder / "photo.png", (height, width, 3)),
            cameras=tuple(Camera(width, height, K, pose) for K, pose in zip(Ks, poses)),
            times=rising_times(folder, self.frames),
            depth=expect(read_npy(folder / "frames_depth.npy", InvalidWorld), "frames_depth.npy", maps),
            moving=expect(read_npz(folder / "frames_moving.npz", InvalidWorld), "frames_moving.npz", maps).astype(bool),
        )


def rising_times(folder: Path, frames: int) -> NDArray[np.float64]:
    """`times.npy` of a sequence, [frames] seconds. Raises InvalidWorld unless they rise from 0."""
    times = expect(read_npy(folder / "times.npy", InvalidWorld), "times.npy", (frames,)).astype(np.float64)
    if not np.isfinite(times).all() or times[0] != 0 or (np.diff(times) <= 0).any():
        raise InvalidWorld(f"The times of {folder} do not rise from 0.", note=f"They begin {times[:3].tolist()}.")
    return times


def _description(folder: Path) -> dict[str, Any]:
    path = folder / "world.json"
    hint = "Make a world with: edge4d world street -o DIR"
    try:
        with path.open("rb") as file:
            content = file.read(MAX_DESCRIPTION + 1)
        if len(content) > MAX_DESCRIPTION:
            raise InvalidWorld(f"{path} is too large.", note=f"More than {MAX_DESCRIPTION} bytes.", hint=hint)
        node = json.loads(content)
    except (OSError, ValueError, RecursionError) as cause:
        raise InvalidWorld(f"{folder} is not a folder of worlds.", note=f"{path.name}: {cause}.", hint=hint) from cause
    if not isinstance(node, dict):
        raise InvalidWorld(f"{path} does not describe a world.", note=f"It holds a {type(node).__name__}.", hint=hint)
    return node


def _get(node: dict[str, Any], key: str, kind: type[Any]) -> Any:
    value = node.get(key)
    if type(value) is not kind:
        raise InvalidWorld(f"world.json needs '{key}'.", note=f"It is {str(value)[:80]!r}, expected a {kind.__name__}.")
    return value


def number(node: dict[str, Any], key: str, low: float, high: float) -> float:
    """A number of `world.json`. Raises InvalidWorld unless it is there, and from low to high."""
    value: Any = node.get(key)
    if type(value) not in (int, float) or not low <= value <= high:
        raise InvalidWorld(
            f"world.json needs '{key}'.", note=f"It is {str(value)[:80]!r}, expected {low:g} to {high:g}."
        )
    return float(value)


def _size(node: dict[str, Any]) -> tuple[int, int]:
    sides = _get(node, "size", list)
    if len(sides) != 2 or any(type(side) is not int or not 1 <= side <= MAX_SIDE for side in sides):
        raise InvalidWorld(
            "world.json has an impossible size.",
            note=f"It is {str(sides)[:80]}, expected [width, height] of 1 to {MAX_SIDE} each.",
        )
    return sides[0], sides[1]


def _sequence_names(node: dict[str, Any]) -> tuple[str, ...]:
    names = _get(node, "sequences", list)
    bad = [name for name in names if not isinstance(name, str) or not _NAME.fullmatch(name)]
    if bad or not names or len(set(names)) < len(names):
        raise InvalidWorld(
            "world.json needs 'sequences'.",
            note=f"Got {str(bad or names)[:80]}, expected different plain folder names.",
        )
    return tuple(names)


def _picture(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    return np.asarray(expect(read_rgb8(path), path.name, shape), np.uint8)


def expect(array: NDArray[Any], name: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """The array of a file. Raises InvalidWorld unless it has this shape."""
    if array.shape != shape:
        raise InvalidWorld(
            f"{name} does not fit world.json.", note=f"Its shape is {array.shape}, expected {tuple(shape)}."
        )
    return array
