"""A profile as files: our own JSON, what readers of trtexec's exports take, and a trace for Perfetto or Chrome.

profile.json                     the whole profile; `read_profile` reads it back
STAGE.PRECISION.times.json       of each run, as `trtexec --exportTimes`
STAGE.PRECISION.profile.json     of each layer its time, as `trtexec --exportProfile`
STAGE.PRECISION.layers.json      of each layer its tensors, as `trtexec --exportLayerInfo`
trace.json                       a run of each stage, what the GPU does in it, its layers, and the frames, on one line
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from edge4d.runtime.errors import InvalidRequest
from edge4d.runtime.files import replacing
from edge4d.runtime.profile import GpuRun, Profile, StageProfile, profile_from_json, to_json
from edge4d.runtime.profile_statistics import gpu_spans_ms, layers_begin_ms, length_ms, median, rooms_ms

PROFILE = "profile.json"
MAX_BYTES = 1 << 26

_TENSOR = re.compile(r"(?:(?P<name>.*) )?(?P<dtype>\w+)\[(?P<shape>[\d,]*)\]")
_FORMATS = {  # as TensorRT's engine inspector names them
    "float32": "FP32",
    "float16": "FP16",
    "bfloat16": "BF16",
    "int8": "Int8",
    "uint8": "UInt8",
    "int32": "Int32",
    "int64": "Int64",
    "bool": "Bool",
}
_STAGES, _GPU, _LAYERS, _FRAMES = 1, 2, 3, 4  # threads of the trace


def write_profile(profile: Profile, folder: Path) -> None:
    """Writes all files of a profile into `folder`, which is made if need be. Raises InvalidRequest where it cannot."""
    files: dict[str, Any] = {PROFILE: to_json(profile), "trace.json": trace(profile)}
    for stage in profile.stages:
        name = f"{stage.name}.{stage.precision}"
        files[f"{name}.times.json"] = times(stage)
        files[f"{name}.profile.json"] = layer_times(stage)
        files[f"{name}.layers.json"] = layer_info(stage)
    for name, node in files.items():
        write_text(folder / name, json.dumps(node, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a file of a profile. Raises InvalidRequest where it cannot."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            partial.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InvalidRequest(f"Cannot write {path}.", note=str(error), hint="Choose another folder: -o DIR") from error


def check_folder(folder: Path) -> None:
    """Raises InvalidRequest where the folder is none and cannot be made one, before any work is done for it."""
    nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        why = "may not be written into" if nearest.is_dir() else "is no folder"
        raise InvalidRequest(f"Cannot write into {folder}.", note=f"{nearest} {why}.", hint="Choose another: -o DIR")


def read_profile(folder: Path) -> Profile:
    """The profile that was written into `folder`. Raises InvalidRequest: there is none, or it is damaged."""
    path = folder / PROFILE
    hint = "Give a folder that `edge4d profile` wrote."
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES} bytes")
        node = json.loads(data)
    except OSError as error:
        raise InvalidRequest(f"There is no profile in {folder}.", note=str(error), hint=hint) from error
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{path} is damaged.", note=f"{error}.", hint=hint) from error
    return profile_from_json(node)


# --- as trtexec -------------------------------------------------------------------------------------------------------


def times(stage: StageProfile) -> list[dict[str, float]]:
    """Every run, one behind the other. Without a GPU's clock all of a run counts as computing."""
    runs, start = [], 0.0
    for run in stage.gpu_runs or [GpuRun(ms, 0.0, ms, 0.0) for ms in stage.runs_ms]:
        copied = start + run.h2d_ms
        computed = copied + run.compute_ms
        end = computed + run.d2h_ms
        moments = {
            "Enq": (start, start + run.enqueue_ms),
            "H2d": (start, copied),
            "Compute": (copied, computed),
            "D2h": (computed, end),
        }
        edges = {f"{edge}{name}Ms": at for name, span in moments.items() for edge, at in zip(("start", "end"), span)}
        parts = {"h2dMs": run.h2d_ms, "computeMs": run.compute_ms, "d2hMs": run.d2h_ms}
        runs.append({**edges, **parts, "latencyMs": sum(parts.values())})
        start = end
    return runs


def layer_times(stage: StageProfile) -> list[dict[str, Any]]:
    """The number of runs, and of every layer its times."""
    runs = len(stage.runs_ms)
    total = sum(layer.average_ms for layer in stage.layers) or 1.0
    return [
        {"count": runs},
        *(
            {
                "name": layer.name,
                "timeMs": runs * layer.average_ms,
                "averageMs": layer.average_ms,
                "medianMs": layer.ms,
                "percentage": 100 * layer.average_ms / total,
            }
            for layer in stage.layers
        ),
    ]


def layer_info(stage: StageProfile) -> Mapping[str, Any]:
    """The backend's own words, or every layer with its tensors and the names of the stage's own."""
    return stage.layer_info or {
        "Layers": [
            {
                "Name": layer.name,
                "LayerType": layer.kind,
                "Inputs": _tensors(layer.inputs),
                "Outputs": _tensors(layer.outputs),
                "Precision": _FORMATS.get(layer.dtype, layer.dtype),
            }
            for layer in stage.layers
        ],
        "Bindings": [*stage.inputs, *stage.outputs],
    }


def _tensors(texts: Iterable[str]) -> list[dict[str, Any]]:
    """Of "depth float32[1,1,256,448]", or of what is known of it."""
    tensors = []
    for text in texts:
        match = _TENSOR.fullmatch(text)
        name, dtype, shape = match.group("name", "dtype", "shape") if match else (text, "", "")
        dims = [int(size) for size in shape.split(",") if size]
        tensors.append({"Name": name or "", "Dimensions": dims, "Format/Datatype": _FORMATS.get(dtype, dtype)})
    return tensors


# --- as Perfetto and Chrome -------------------------------------------------------------------------------------------


def trace(profile: Profile) -> dict[str, Any]:
    """In the trace event format: a process of the backend's name, and a thread for each kind of thing."""
    return {
        "traceEvents": [*_names(profile), *_events(profile)],
        "displayTimeUnit": "ms",
        "otherData": dict(profile.about),
    }


def _names(profile: Profile) -> Iterator[dict[str, Any]]:
    yield {"ph": "M", "name": "process_name", "pid": 1, "tid": 0, "args": {"name": profile.backend}}
    gpu = {_GPU: "GPU"} if any(stage.gpu_runs for stage in profile.stages) else {}
    for thread, name in {_STAGES: "stages", **gpu, _LAYERS: "layers", _FRAMES: "rendering"}.items():
        yield {"ph": "M", "name": "thread_name", "pid": 1, "tid": thread, "args": {"name": name}}


def _events(profile: Profile) -> Iterator[dict[str, Any]]:
    """Each stage's usual run, with its copies and its layers below it."""
    now = 0.0
    for stage in profile.stages:
        ms = median(stage.runs_ms) if stage.runs_ms else 0.0
        yield _event(_STAGES, stage.name, now, ms, precision=stage.precision)
        for name, begin, part in gpu_spans_ms(stage):
            yield _event(_GPU, name, now + begin, part, stage=stage.name, precision=stage.precision)
        yield from _layer_events(stage, now + layers_begin_ms(stage))
        now += length_ms(stage)
    for number, ms in enumerate(profile.render_ms):
        yield _event(_FRAMES, f"frame {number}", now, ms)
        now += ms


def _layer_events(stage: StageProfile, begin_ms: float) -> Iterator[dict[str, Any]]:
    """A layer is cut where the next one starts, which readers insist on."""
    for layer, room in zip(stage.layers, rooms_ms(stage.layers)):
        ms = min(layer.ms, max(room, 0.0))
        about = {"kind": layer.kind, "precision": stage.precision, "dtype": layer.dtype, "median_ms": layer.ms}
        about.update({"tactic": layer.tactic} if layer.tactic else {})
        yield _event(_LAYERS, layer.name, begin_ms + layer.start_ms, ms, **about)


def _event(thread: int, name: str, start_ms: float, ms: float, **about: Any) -> dict[str, Any]:
    event = {"ph": "X", "name": name, "pid": 1, "tid": thread, "ts": 1e3 * start_ms, "dur": 1e3 * ms}
    return {**event, "args": about} if about else event
