"""The scene file.

One safetensors container, little-endian: 8 bytes n, n bytes of JSON, then the arrays without gaps. Under the metadata
key "edge4d" lies our own header, JSON again, with exactly these keys: version (1), source, t0, t1, fps, metric,
background, eps2d, antialiased, activation, camera {width, height, K, c2w}, motion [{kind, settings...}].
The arrays are means [N, 3], quats [N, 4], scales [N, 3], opacities [N], colors [N, 3] or [N, K, 3], all F32; groups [N]
I32; and motion.I.NAME for each array of motion term I. Nothing is converted: what was saved comes back bit for bit.
Readers refuse other versions, unknown, missing or repeated names, numbers that are not finite, and headers above 1 MiB.
"""

from __future__ import annotations

import dataclasses
import json
import math
import struct
from pathlib import Path
from typing import Any, Dict, List, Set, Tuple

import numpy as np
from numpy.typing import NDArray

from edge4d.runtime.camera import Camera
from edge4d.runtime.errors import BackendUnavailable, InvalidCamera, InvalidScene
from edge4d.runtime.files import replacing
from edge4d.runtime.gaussians import Activation
from edge4d.runtime.motion import MOTIONS, Motion
from edge4d.runtime.scene import MAX_MOTIONS, Scene4D

VERSION = 1

MAX_HEADER = 1 << 20
"""Bytes of JSON. A header with 256 motion terms stays far below."""

ARRAYS = ("means", "quats", "scales", "opacities", "colors", "groups")
SETTINGS = ("source", "t0", "t1", "fps", "metric", "background", "eps2d", "antialiased")

_ITEM_SIZES = {"F32": 4, "F16": 2, "F64": 8, "I32": 4}
_DAMAGED = "The file is damaged, or was not written by edge4d; generate the scene again with --save-scene."


def write_scene(path: Path, scene: Scene4D) -> None:
    """Write a scene; an older file is replaced only when all is written. Raises as `Scene4D.save`."""
    save_file = _safetensors().numpy.save_file
    tensors = {name: getattr(scene, name) for name in ARRAYS}
    for i, term in enumerate(scene.motion):
        tensors.update({f"motion.{i}.{name}": np.ascontiguousarray(a) for name, a in term.tensors().items()})
    header = json.dumps(_header_from_scene(scene), sort_keys=True, separators=(",", ":"), allow_nan=False)
    try:
        with replacing(path) as partial:
            save_file(tensors, partial, metadata={"edge4d": header})
    except (OSError, _safetensors().SafetensorError) as error:
        raise InvalidScene(
            f"The scene cannot be written to {path}.", note=str(error), hint="Choose a folder that exists."
        ) from error


def read_scene(path: Path) -> Scene4D:
    """Read a scene; sizes are checked against the file before anything is allocated. Raises as `Scene4D.load`."""
    try:
        arrays, header = _read(path)
        return _scene(arrays, header)
    except InvalidScene as error:
        raise InvalidScene(f"{path}: {error.what}", note=error.note, hint=error.hint) from error


def _header_from_scene(scene: Scene4D) -> Dict[str, Any]:
    camera = scene.camera
    return {
        "version": VERSION,
        **{name: getattr(scene, name) for name in SETTINGS},
        "activation": dataclasses.asdict(scene.activation),
        "camera": {
            "width": camera.width,
            "height": camera.height,
            "K": camera.K.tolist(),
            "c2w": camera.c2w.tolist(),
        },
        "motion": [{"kind": term.kind, **term.settings()} for term in scene.motion],
    }


def _read(path: Path) -> Tuple[Dict[str, NDArray[Any]], Dict[str, Any]]:
    """The arrays by name, and the header."""
    container, room = _read_container_header(path)
    metadata = container.pop("__metadata__", None)
    text = metadata.get("edge4d") if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        raise InvalidScene(
            "The safetensors file does not hold a scene.",
            note=f'its metadata has no text under "edge4d"; its arrays are {", ".join(container)[:200]}.',
            hint="Weights and scenes share a container; give a file made by --save-scene.",
        )
    header = _parsed(text.encode())
    if header.get("version") != VERSION or header["version"] is True:
        raise InvalidScene(
            "The scene has another version.",
            note=f"the file has version {str(header.get('version'))[:40]}; this edge4d reads version {VERSION}.",
            hint="Upgrade edge4d, or generate the scene again.",
        )
    _check_keys("header", set(header), {"version", *SETTINGS, "activation", "camera", "motion"})
    for name, entry in container.items():
        _check_entry(name, entry, room)
    return _read_arrays(path, container), header


def _read_container_header(path: Path) -> Tuple[Dict[str, Any], int]:
    """The container's JSON, and how many bytes follow it."""
    try:
        if not path.is_file():
            raise InvalidScene("The scene is not a file.", note="no regular file is there.", hint="Check the path.")
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 2 <= length <= min(MAX_HEADER, size - 8):
                raise InvalidScene(
                    "The file is truncated, or is not a safetensors file.",
                    note=f"a header of {length} bytes in a file of {size}; at most {MAX_HEADER} are allowed.",
                    hint=_DAMAGED,
                )
            return _parsed(file.read(length)), size - 8 - length
    except OSError as error:
        raise InvalidScene("The file cannot be read.", note=str(error), hint="Check the path.") from error


def _parsed(text: bytes) -> Dict[str, Any]:
    """A JSON object without repeated names and without NaN or Infinity."""
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=_distinct, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidScene("The header is not valid JSON.", note=str(error)[:200], hint=_DAMAGED) from error
    if not isinstance(value, dict):
        raise InvalidScene("The header is not a JSON object.", note=f"found {str(value)[:80]}.", hint=_DAMAGED)
    return value


def _distinct(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise InvalidScene("A name occurs twice in the header.", note=f"it is {twice[:80]!r}.", hint=_DAMAGED)
    return dict(pairs)


def _refuse_constant(name: str) -> float:
    raise InvalidScene("The header holds a number that is not finite.", note=f"found {name}.", hint=_DAMAGED)


def _check_entry(name: str, entry: Any, room: int) -> None:
    """Raise InvalidScene unless an array's bytes fit its dtype, its shape and the room after the header."""
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        whole = all(type(number) is int and number >= 0 for number in (*shape, begin, end))
        fits = whole and len(shape) <= 3 and end - begin == math.prod(shape) * _ITEM_SIZES[dtype] and end <= room
    except (TypeError, ValueError, KeyError):
        fits = False
    if not fits:
        raise InvalidScene(
            f"The header's entry for {name[:80]!r} is wrong, or the file is truncated.",
            note=f"it says {str(entry)[:200]}; {room} bytes follow; known types are {', '.join(_ITEM_SIZES)}.",
            hint=_DAMAGED,
        )


def _read_arrays(path: Path, names: Dict[str, Any]) -> Dict[str, NDArray[Any]]:
    safetensors = _safetensors()
    try:
        with safetensors.safe_open(str(path), framework="numpy") as file:
            return {name: file.get_tensor(name) for name in names}
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidScene("The arrays cannot be read.", note=str(error)[:200], hint=_DAMAGED) from error


def _scene(arrays: Dict[str, NDArray[Any]], header: Dict[str, Any]) -> Scene4D:
    canonical = {name: array for name, array in arrays.items() if not name.startswith("motion.")}
    _check_keys("list of arrays", set(canonical), set(ARRAYS))
    terms = header["motion"]
    if not isinstance(terms, list) or len(terms) > MAX_MOTIONS:
        raise InvalidScene(
            "The header's motion is not a list of terms.",
            note=f"found {str(terms)[:80]}; at most {MAX_MOTIONS} are allowed.",
            hint=_DAMAGED,
        )
    motion = tuple(_motion(i, term, arrays) for i, term in enumerate(terms))
    used = {f"motion.{i}.{name}" for i, term in enumerate(motion) for name in term.tensors()}
    _check_keys("list of arrays", set(arrays), used | set(ARRAYS))
    fields: Dict[str, Any] = {**canonical, **{name: header[name] for name in SETTINGS}}
    names = {field.name for field in dataclasses.fields(Activation)}
    activation = Activation(**_object("activation", header["activation"], names))
    return Scene4D(camera=_camera(header["camera"]), activation=activation, motion=motion, **fields)


def _motion(i: int, term: Any, arrays: Dict[str, NDArray[Any]]) -> Motion:
    kind = term.get("kind") if isinstance(term, dict) else None
    if not isinstance(kind, str) or kind not in MOTIONS:
        raise InvalidScene(
            "The scene moves in a way that this edge4d does not know.",
            note=f"motion term {i} is {str(term)[:80]}; known kinds are {', '.join(MOTIONS)}.",
            hint="Upgrade edge4d.",
        )
    prefix = f"motion.{i}."
    fields = {name[len(prefix) :]: array for name, array in arrays.items() if name.startswith(prefix)}
    twice = set(fields) & set(term)
    fields.update({name: value for name, value in term.items() if name != "kind"})
    known = dataclasses.fields(MOTIONS[kind])
    optional = {field.name for field in known if field.default is not dataclasses.MISSING}
    _check_keys(f"motion term {i}", set(fields) | optional, {field.name for field in known} - twice)
    return MOTIONS[kind](**fields)


def _camera(value: Any) -> Camera:
    fields = _object("camera", value, {"width", "height", "K", "c2w"})
    try:
        return Camera(**fields)
    except InvalidCamera as error:
        raise InvalidScene(error.what, note=error.note, hint=_DAMAGED) from error


def _object(name: str, value: Any, keys: Set[str]) -> Dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidScene(f"The header's {name} is not an object.", note=f"found {str(value)[:80]}.", hint=_DAMAGED)
    _check_keys(name, set(value), keys)
    return value


def _check_keys(what: str, found: Set[str], wanted: Set[str]) -> None:
    if found == wanted:
        return
    raise InvalidScene(
        f"The scene's {what} lacks or has too many names.",
        note=f"missing {sorted(wanted - found)}, extra {str(sorted(found - wanted))[:200]}, "
        f"found {str(sorted(found))[:400]}, expected {sorted(wanted)}.",
        hint=_DAMAGED,
    )


def _safetensors() -> Any:
    """The safetensors package with its NumPy half."""
    try:
        import safetensors.numpy
    except ImportError as error:
        raise BackendUnavailable(
            "Scenes cannot be read or written: safetensors is not installed.",
            note=str(error),
            hint="pip install safetensors",
        ) from error
    return safetensors
