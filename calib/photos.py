"""What a bundle is calibrated on: the photographs of a world, or any pictures in a folder."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Optional

import numpy as np
from numpy.typing import NDArray

from edge4d.runtime.errors import InvalidCalibration
from edge4d.runtime.photo import read_photo
from edge4d.runtime.world_files import World

_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".ppm")
FEW = 8  # photographs; with fewer, one of them alone can decide the ranges


@dataclass(frozen=True)
class CalibrationPhoto:
    """A photograph as the network takes it.

    Attributes:
        name: of its file, or of the sequence that it begins.
        image: [H,W,3] uint8.
        intrinsics: fx, fy, cx, cy in pixels of the image.
        depth, instances: [H,W], for networks that do not see them by themselves.
    """

    name: str
    image: NDArray[np.uint8]
    intrinsics: tuple[float, float, float, float]
    depth: Optional[NDArray[np.float32]] = None
    instances: Optional[NDArray[np.int32]] = None

    @property
    def known(self) -> dict[str, Any]:
        """What a pipeline's `generate` is told besides the image."""
        maps = {"depth": self.depth, "instances": self.instances}
        return {"intrinsics": self.intrinsics, **{name: array for name, array in maps.items() if array is not None}}

    def digest(self) -> str:
        """SHA-256 of what a network sees."""
        content = repr((self.image.shape, self.intrinsics)).encode()
        arrays = (array.tobytes() for array in (self.image, self.depth, self.instances) if array is not None)
        return hashlib.sha256(content + b"".join(arrays)).hexdigest()


@dataclass(frozen=True)
class CalibrationData:
    """Photographs of one size, and where they are from.

    Attributes:
        origin: in words that JSON holds, such as {"world": "street", "seed": 1234}.
        warnings: sentences on data from which ranges should not be taken as they are.
        world: of which the photographs are, if they are of one.
    """

    photos: tuple[CalibrationPhoto, ...]
    size: tuple[int, int]
    origin: dict[str, Any]
    warnings: tuple[str, ...] = ()
    world: Optional[World] = None


def read_photos(folder: Path, samples: int, size: tuple[int, int], *, with_maps: bool = False) -> CalibrationData:
    """At most `samples` photographs of a folder, evenly chosen in the order of their names.

    Args:
        folder: what `edge4d world` wrote, or pictures.
        size: (width, height) to which pictures are cropped and resized; a world has its own.
        with_maps: depth and instances too, for bundles that do not see them; only a world has these.

    Raises:
        InvalidCalibration: there is no photograph, or all of them are of one colour.
        InvalidPicture, InvalidWorld: a file that cannot be used.
    """
    if samples < 1:
        raise InvalidCalibration("Calibration needs photographs.", note=f"{samples} were asked for.")
    if (folder / "world.json").is_file():
        data = _of_world(World.load(folder), samples, with_maps)
    elif with_maps:
        raise InvalidCalibration(
            "The bundle cannot see depth and instances by itself.",
            note=f"'{folder}' has photographs without them.",
            hint="Calibrate on a world: --data world:street.",
        )
    else:
        data = _of_folder(folder, samples, size)
    return _checked(data, folder)


def _of_world(world: World, samples: int, with_maps: bool) -> CalibrationData:
    photos = []
    for name in _chosen(world.sequences, samples):
        sequence = world.sequence(name)
        photo = CalibrationPhoto(name, sequence.photo, sequence.cameras[0].intrinsics)
        photos.append(_with_maps(photo, world) if with_maps else photo)
    return CalibrationData(tuple(photos), world.size, {"world": world.name, "seed": world.seed}, world=world)


def _with_maps(photo: CalibrationPhoto, world: World) -> CalibrationPhoto:
    folder = world.folder / photo.name
    seen = read_photo(photo.image, world.size, depth=folder / "depth.npy", instances=folder / "instances.png")
    return replace(photo, depth=seen.depth, instances=seen.instances)


def _of_folder(folder: Path, samples: int, size: tuple[int, int]) -> CalibrationData:
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in _ENDINGS) if folder.is_dir() else []
    photos = tuple(_read(path, size) for path in _chosen(paths, samples))
    return CalibrationData(photos, size, {"pictures": len(paths)})


def _read(path: Path, size: tuple[int, int]) -> CalibrationPhoto:
    seen = read_photo(path, size)
    image = np.round(seen.image * 255).astype(np.uint8)
    return CalibrationPhoto(path.name, image, seen.camera.intrinsics)


def _chosen(items: Sequence[Any], count: int) -> list[Any]:
    """Evenly from the first to the last."""
    if count >= len(items):
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]


def _checked(data: CalibrationData, folder: Path) -> CalibrationData:
    if not data.photos:
        raise InvalidCalibration(
            "There is nothing to calibrate on.",
            note=f"No picture ({', '.join(_ENDINGS)}) is in '{folder}'.",
            hint="Give --data a folder of photographs, or one that `edge4d world` wrote.",
        )
    plain = [photo.name for photo in data.photos if (photo.image == photo.image[0, 0]).all()]
    if len(plain) == len(data.photos):
        raise InvalidCalibration(
            "The photographs show nothing.",
            note=f"Every one of them is of one colour, such as '{plain[0]}'.",
            hint="Calibrate on photographs like those that the network will see.",
        )
    warnings = []
    if len(data.photos) < FEW:
        warnings.append(f"Ranges come from {_count(len(data.photos))}; what others show may be cut off.")
    if plain:
        warnings.append(f"{_count(len(plain))} of one colour: {', '.join(plain[:5])}.")
    return replace(data, origin={**data.origin, "samples": len(data.photos)}, warnings=tuple(warnings))


def _count(photographs: int) -> str:
    return f"{photographs} photograph{'s' * (photographs != 1)}"


def content_of(data: CalibrationData) -> str:
    """SHA-256 of all photographs."""
    return hashlib.sha256("".join(photo.digest() for photo in data.photos).encode()).hexdigest()
