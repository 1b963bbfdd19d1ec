"""Writes streets as a folder that `edge4d.runtime.world_files` reads: photographs, and what is seen later."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from edge4d.export.worlds import street
from edge4d.export.worlds.world_request import WorldRequest
from edge4d.runtime.camera import Camera
from edge4d.runtime.trajectories import CameraPath, trajectory

SIZE = (448, 256)
TRAJECTORIES = ("drive", "orbit", "spiral", "pan")
_TOGETHER = 4  # frames rendered at once: about 1 GB at 448×256


def check(request: WorldRequest) -> None:
    """Streets are made in every size and length."""


def write_sequences(folder: Path, request: WorldRequest, progress: Callable[[int, int], None]) -> dict[str, Any]:
    """Writes the folders of all sequences, each of which follows one of TRAJECTORIES, in turn.

    Returns:
        What world.json says besides.
    """
    streets = street.evaluation_streets(request.seed, request.count)
    names = [f"{index:04d}-{TRAJECTORIES[index % len(TRAJECTORIES)]}" for index in range(request.count)]
    for index, sequence in enumerate(names):
        camera = _camera(streets, index, request.size)
        path = trajectory(sequence[5:], camera, request.frames, request.fps)
        _write_sequence(streets, index, path, folder / sequence)
        progress(index + 1, request.count)
    return {"sequences": names, "cues": list(street.CUES)}


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
