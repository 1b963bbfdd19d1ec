"""Writes streets as a folder that `edge4d.runtime.world_files` reads: photographs, and what is seen later."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from edge4d.export.worlds import street
from edge4d.export.worlds.street import MAX_SEED
from edge4d.runtime.camera import Camera
from edge4d.runtime.errors import InvalidRequest
from edge4d.runtime.trajectories import CameraPath, trajectory
from edge4d.runtime.world_files import FORMAT

WORLDS = ("street",)
TRAJECTORIES = ("drive", "orbit", "spiral", "pan")
_TOGETHER = 4  # frames rendered at once: about 1 GB at 448×256


def write_world(
    name: str,
    folder: str | os.PathLike[str],
    *,
    count: int,
    seed: int,
    size: tuple[int, int] = (448, 256),
    frames: int = 24,
    fps: float = 12.0,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Makes `count` sequences that no training sees; each follows one of TRAJECTORIES, in turn.

    Args:
        name: one of WORLDS.
        folder: made anew; it must be absent or empty.
        seed: which streets; the first ones do not depend on `count`.
        size: width and height, multiples of 16.
        frames: T of each sequence, the photograph included. fps: frames per second.
        progress: called with (sequences done, sequences in all).

    Raises:
        InvalidRequest: an unknown world, a folder in use, or a size, count or length that cannot be made.
    """
    folder = Path(folder).absolute()
    _check(name, folder, count, size, frames, fps)
    if not 0 <= seed <= MAX_SEED:
        raise InvalidRequest("That seed cannot be used.", note=f"{seed}; 0 to {MAX_SEED} can.")
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    temporary.mkdir(parents=True)
    try:
        streets = street.evaluation_streets(seed, count)
        names = [f"{index:04d}-{TRAJECTORIES[index % len(TRAJECTORIES)]}" for index in range(count)]
        for index, sequence in enumerate(names):
            path = trajectory(sequence[5:], _camera(streets, index, size), frames, fps)
            _write_sequence(streets, index, path, temporary / sequence)
            if progress:
                progress(index + 1, count)
        description = {
            "format": FORMAT,
            "world": name,
            "seed": seed,
            "fps": fps,
            "frames": frames,
            "size": list(size),
            "sequences": names,
            "cues": list(street.CUES),
        }
        (temporary / "world.json").write_text(json.dumps(description, indent=2) + "\n")
        if folder.exists():
            folder.rmdir()
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check(name: str, folder: Path, count: int, size: tuple[int, int], frames: int, fps: float) -> None:
    if name not in WORLDS:
        raise InvalidRequest(f"There is no world '{name}'.", hint=f"Use one of: {', '.join(WORLDS)}.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InvalidRequest(f"{folder} is in use.", note="It is not an empty folder.", hint="Choose a new folder.")
    if not 1 <= count <= 9999:
        raise InvalidRequest("That many sequences cannot be made.", note=f"{count}; 1 to 9999 can.")
    if any(side % 16 or not 16 <= side <= 2048 for side in size):
        raise InvalidRequest(
            "A world of that size cannot be made.",
            note=f"{size[0]}x{size[1]}; both sides must be multiples of 16 from 16 to 2048.",
            hint="Use 448x256.",
        )
    if not (2 <= frames <= 9999 and 0.1 <= fps <= 1000):
        raise InvalidRequest(
            "Sequences of that length cannot be made.", note=f"{frames} frames at {fps:g} per second; 2 to 9999 can."
        )


def _camera(streets: street.Street, index: int, size: tuple[int, int]) -> Camera:
    """The photograph's camera, at the origin of its own frame."""
    return Camera.from_intrinsics(*size, *streets.intrinsics(*size)[index].tolist())


def _write_sequence(streets: street.Street, index: int, path: CameraPath, folder: Path) -> None:
    (folder / "frames").mkdir(parents=True)
    views = _views(streets, index, path)
    moving = np.concatenate([[False], streets.objects.moving[index].numpy()])
    for number, image in enumerate(views["image"]):
        Image.fromarray(image).save(folder / "frames" / f"{number:04d}.png")
    Image.fromarray(views["image"][0]).save(folder / "photo.png")
    Image.fromarray(views["objects"][0].astype(np.uint8)).save(folder / "instances.png")
    np.save(folder / "depth.npy", views["depth"][0])
    np.save(folder / "frames_depth.npy", views["depth"].astype(np.float16))
    np.savez_compressed(folder / "frames_moving.npz", moving=moving[views["objects"]])
    np.save(folder / "cameras.npy", np.stack([camera.c2w for camera in path.cameras]))
    np.save(folder / "Ks.npy", path.Ks)
    np.save(folder / "times.npy", path.times)
    (folder / "motion.json").write_text(json.dumps(_motions(streets, index), indent=2) + "\n")


def _views(streets: street.Street, index: int, path: CameraPath) -> dict[str, NDArray[Any]]:
    """All frames: image [T,H,W,3] uint8, depth [T,H,W] metres (infinite for sky), objects [T,H,W] ids."""
    c2w = streets.camera[index] @ torch.from_numpy(np.stack([camera.c2w for camera in path.cameras])).float()
    times = torch.from_numpy(path.times.copy()).float()
    width, height = path.cameras[0].width, path.cameras[0].height
    parts = []
    for start in range(0, len(path), _TOGETHER):
        rows = slice(start, start + _TOGETHER)
        view = street.render(streets.repeated(index, len(times[rows])), times[rows], c2w[rows], width, height)
        parts.append(view)
    return {
        "image": (torch.cat([part.image for part in parts]) * 255 + 0.5).to(torch.uint8).numpy(),
        "depth": torch.cat([part.depth for part in parts]).numpy(),
        "objects": torch.cat([part.objects for part in parts]).numpy(),
    }


def _motions(streets: street.Street, index: int) -> dict[str, Any]:
    """Of each object by id: centre, velocity and acceleration, angular velocity, in the photograph's camera frame."""
    objects, camera = streets.objects, streets.camera[index]
    to_camera = camera[:3, :3]
    motions = {}
    for slot in objects.present[index].nonzero()[:, 0].tolist():
        spin = torch.tensor([0.0, float(objects.yaw_rate[index, slot]), 0.0])
        motions[str(slot + 1)] = {
            "centre": ((objects.centres[index, slot] - camera[:3, 3]) @ to_camera).tolist(),
            "velocity": (objects.velocity[index, slot] @ to_camera).tolist(),
            "acceleration": (objects.acceleration[index, slot] @ to_camera).tolist(),
            "angular_velocity": (spin @ to_camera).tolist(),
            "moving": bool(objects.moving[index, slot]),
        }
    return motions
