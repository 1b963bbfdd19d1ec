"""Checkpoints: weights by key name, from `.safetensors` or PyTorch's own files, strictly."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from edge4d.runtime.errors import InvalidCheckpoint

_METADATA = "edge4d"  # one entry: the format writes several in no fixed order
_LISTED = 20


def load_checkpoint(
    model: nn.Module,
    path: str | Path,
    *,
    prefix: str = "",
    rename: Callable[[str], str | None] | None = None,
) -> None:
    """Loads every parameter and buffer of `model`, or none.

    Args:
        path: `.safetensors`, or a file of `torch.save` that holds a dictionary of tensors (code in it is never run).
        prefix: takes only the keys that start with it, without it.
        rename: the model's key for a checkpoint's key, after the prefix is gone; None leaves the key out.

    Raises:
        InvalidCheckpoint: the file cannot be read, keys are missing or unexpected, or shapes differ.
    """
    path = Path(path)
    tensors = {key[len(prefix) :]: value for key, value in _read(path).items() if key.startswith(prefix)}
    if rename is not None:
        tensors = _renamed(tensors, rename)
    _check_keys(path, model.state_dict(), tensors)
    model.load_state_dict(tensors)


def save_checkpoint(model: nn.Module, path: str | Path, *, metadata: Mapping[str, Any] | None = None) -> None:
    """Writes parameters and buffers as `.safetensors`, with `metadata` as JSON; equal weights give equal bytes."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in model.state_dict().items()}
    try:
        save_file(tensors, temporary, {_METADATA: json.dumps(dict(metadata or {}), sort_keys=True)})
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def checkpoint_metadata(path: str | Path) -> dict[str, Any]:
    """What `save_checkpoint` was given. Raises InvalidCheckpoint where there is none."""
    try:
        with safe_open(str(path), "pt") as file:
            metadata = json.loads(file.metadata()[_METADATA])
    except (OSError, SafetensorError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise InvalidCheckpoint(f"'{path}' has no description by edge4d.", note=f"{error}.") from error
    if not isinstance(metadata, dict):
        raise InvalidCheckpoint(f"'{path}' has a description that is not an object.")
    return metadata


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes torch raise almost anything
        raise InvalidCheckpoint(
            f"Checkpoint '{path}' cannot be read.",
            note=str(error).strip().partition("\n")[0][:500],
            hint="Give a .safetensors file, or a .pt or .pth file that holds tensors only.",
        ) from error
    if not isinstance(tensors, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in tensors.items()
    ):
        raise InvalidCheckpoint(
            f"Checkpoint '{path}' does not hold a dictionary of tensors.",
            note=f"It holds {type(tensors).__name__}"
            + (f" of {_listed(map(str, tensors))}." if isinstance(tensors, dict) else "."),
            hint="Save model.state_dict() on its own.",
        )
    return tensors


def _renamed(tensors: Mapping[str, Tensor], rename: Callable[[str], str | None]) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    for key, value in tensors.items():
        new = rename(key)
        if new is None:
            continue
        if new in renamed:
            raise InvalidCheckpoint(f"Two keys of the checkpoint become '{new}'.", note=f"One is '{key}'.")
        renamed[new] = value
    return renamed


def _check_keys(path: Path, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    missing = [key for key in expected if key not in found]
    unexpected = [key for key in found if key not in expected]
    shapes = [
        f"{key} {list(found[key].shape)} instead of {list(expected[key].shape)}"
        for key in expected
        if key in found and found[key].shape != expected[key].shape
    ]
    if missing or unexpected or shapes:
        raise InvalidCheckpoint(
            f"Checkpoint '{path}' does not match the model.",
            note=f"Missing: {_listed(missing)}; unexpected: {_listed(unexpected)}; shapes: {_listed(shapes)}.",
            hint="Use the model's own configuration; `prefix` and `rename` map other names.",
        )


def _listed(names: Any) -> str:
    names = list(names)
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return (", ".join(names[:_LISTED]) or "none") + more
