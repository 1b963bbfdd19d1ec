"""Writes a world as a folder that `edge4d.runtime` reads without PyTorch."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from edge4d.export.worlds import world_from_animals, world_from_streets
from edge4d.export.worlds.draw import MAX_SEED
from edge4d.export.worlds.world_request import WorldRequest
from edge4d.runtime.errors import InvalidRequest
from edge4d.runtime.world_files import FORMAT

_MAKERS = {"street": world_from_streets, "animals": world_from_animals}
WORLDS = tuple(_MAKERS)


def write_world(
    name: str,
    folder: str | os.PathLike[str],
    *,
    count: int,
    seed: int,
    size: tuple[int, int] | None = None,
    frames: int = 24,
    fps: float = 12.0,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Makes `count` sequences that no training sees.

    Args:
        name: one of WORLDS.
        folder: made anew; it must be absent or empty.
        seed: which scenes; the first ones do not depend on `count`.
        size: width and height, multiples of 16; for animals they are equal. By default the world's own.
        frames: T of each sequence, the first picture included. fps: frames per second.
        progress: called with (sequences done, sequences in all).

    Raises:
        InvalidRequest: an unknown world, a folder in use, or a size, count or length that cannot be made.
    """
    if name not in _MAKERS:
        raise InvalidRequest(f"There is no world '{name}'.", hint=f"Use one of: {', '.join(WORLDS)}.")
    maker = _MAKERS[name]
    folder = Path(folder).absolute()
    request = WorldRequest(count, seed, size or maker.SIZE, frames, fps)
    _check(folder, request)
    maker.check(request)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    temporary.mkdir(parents=True)
    try:
        about = maker.write_sequences(temporary, request, progress or (lambda done, count: None))
        description = {
            "format": FORMAT,
            "world": name,
            "seed": seed,
            "fps": fps,
            "frames": frames,
            "size": list(request.size),
            **about,
        }
        (temporary / "world.json").write_text(json.dumps(description, indent=2) + "\n")
        if folder.exists():
            folder.rmdir()
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check(folder: Path, request: WorldRequest) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InvalidRequest(f"{folder} is in use.", note="It is not an empty folder.", hint="Choose a new folder.")
    if not 0 <= request.seed <= MAX_SEED:
        raise InvalidRequest("That seed cannot be used.", note=f"{request.seed}; 0 to {MAX_SEED} can.")
    if not 1 <= request.count <= 9999:
        raise InvalidRequest("That many sequences cannot be made.", note=f"{request.count}; 1 to 9999 can.")
    if not (2 <= request.frames <= 9999 and 0.1 <= request.fps <= 1000):
        raise InvalidRequest(
            "Sequences of that length cannot be made.",
            note=f"{request.frames} frames at {request.fps:g} per second; 2 to 9999 can.",
        )
    width, height = request.size
    if any(side % 16 or not 16 <= side <= 2048 for side in request.size):
        raise InvalidRequest(
            "A world of that size cannot be made.",
            note=f"{width}x{height}; both sides must be multiples of 16 from 16 to 2048.",
            hint="Leave the size out, and the world's own is used.",
        )
