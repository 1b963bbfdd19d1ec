"""A model's stages → a bundle on disk (the format is in `edge4d.runtime.bundle`).

With both precisions the large weights are in the bundle once, rounded to half, for size: 2 bytes per weight instead of
4 + 2. The fp32 graphs compute in float32 with these weights. A rounding moves a weight by at most 5e-4 of itself, far
below the network's own error. A bundle of fp32 alone has the weights as they are.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from edge4d.export.cut import write_graphs
from edge4d.export.onnx_from_torch import check_sizes, example_arrays, onnx_from_torch, run_onnx
from edge4d.export.precision import fp16_from_fp32, rounded_to_half, with_half_weights
from edge4d.export.stage import ExportStage
from edge4d.runtime.bundle import (
    DESCRIPTION,
    FORMAT,
    SUFFIX,
    Bundle,
    Graph,
    SessionStep,
    Step,
    TensorSpec,
    sha256_of,
)
from edge4d.runtime.camera import Camera
from edge4d.runtime.errors import ExportFailed, InvalidRequest

HALF_TOLERANCE = 0.05
"""Largest relative difference (of 2-norms) that half precision may make in an output, by the fp16 graph or by the half
weights of the fp32 graph. A rounding to half is 5e-4, and a network adds up some of them to about 1e-2; what is beyond
is a lost constant or an overflow."""


_PRECISIONS = ("fp32", "fp16")


class Exportable(Protocol):
    def stages(self) -> list[ExportStage]: ...


def bundle_from_model(
    model: Exportable,
    folder: str | Path,
    *,
    system: str,
    config: Mapping[str, Any],
    camera: Camera,
    licence: str,
    provenance: Mapping[str, Any],
    precisions: Iterable[str] = ("fp32", "fp16"),
) -> Bundle:
    """Exports every stage in every precision, checks them, and puts the bundle in place as a whole.

    The same weights give the same bytes. An older bundle of that name is replaced; on an error it is left as it was.

    Args:
        folder: `NAME.e4d`.
        system, config, camera, licence, provenance: as in `bundle.json`; config and provenance of JSON's types.
        precisions: "fp32", "fp16" or both; the first one is the default of whoever runs the bundle.

    Raises:
        ExportFailed: a stage cannot be exported, or a graph does not compute what the module does.
        InvalidRequest: the folder, a precision or a value for `bundle.json` cannot be used.
    """
    folder, precisions = Path(folder).absolute(), tuple(precisions)
    _check_request(folder, precisions)
    _json_bytes({"config": dict(config), "provenance": dict(provenance)})  # before the long work
    stages = model.stages()
    temporary = folder.with_name(f".{folder.stem}.{os.getpid()}{SUFFIX}")
    temporary.mkdir(parents=True)
    try:
        graphs = {stage.name: _write_stage(stage, temporary, precisions) for stage in stages}
        description = {
            "format": FORMAT,
            "system": system,
            "config": dict(config),
            "precisions": list(precisions),
            "stages": [_stage_json(stage, graphs[stage.name]) for stage in stages],
            "files": _files_json(temporary),
            "camera": {"width": camera.width, "height": camera.height, "intrinsics": list(camera.intrinsics)},
            "licence": licence,
            "provenance": dict(provenance),
        }
        (temporary / DESCRIPTION).write_bytes(_json_bytes(description))
        Bundle.load(temporary)
        _move(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Bundle.load(folder)


def _check_request(folder: Path, precisions: tuple[str, ...]) -> None:
    if folder.suffix != SUFFIX:
        raise InvalidRequest(f"A bundle cannot be named '{folder.name}'.", hint=f"End the name in {SUFFIX}.")
    if folder.exists() and not (folder / DESCRIPTION).is_file():
        raise InvalidRequest(f"'{folder}' exists and is not a bundle.", hint="Remove it, or choose another name.")
    if not precisions or not set(precisions) <= set(_PRECISIONS):
        raise InvalidRequest(
            f"Cannot export the precisions {list(precisions)}.", hint=f"Choose from {', '.join(_PRECISIONS)}."
        )


def _write_stage(stage: ExportStage, folder: Path, precisions: tuple[str, ...]) -> dict[str, Graph]:
    exact = onnx_from_torch(stage)  # compared there with torch, both with the weights as they are
    graphs = {"fp32": exact}
    if "fp16" in precisions:
        half = fp16_from_fp32(exact, fp32_scopes=stage.fp32_scopes)
        graphs = {"fp32": with_half_weights(exact, half), "fp16": half}
        _check_half(stage, exact, {"fp32": graphs["fp32"], "fp16": rounded_to_half(half)})
    return write_graphs({precision: graphs[precision] for precision in precisions}, folder, stage.name)


def _move(temporary: Path, folder: Path) -> None:
    """A folder cannot be renamed over another one that holds files: the old one steps aside first."""
    aside = temporary.with_name(f"{temporary.name}.old")
    if folder.exists():
        folder.rename(aside)
    temporary.rename(folder)
    shutil.rmtree(aside, ignore_errors=True)


# ---- objects → bundle.json ------------------------------------------------------------------------------------------


def _stage_json(stage: ExportStage, graphs: Mapping[str, Graph]) -> dict[str, Any]:
    return {
        "name": stage.name,
        "axes": {
            axis.name: {"min": axis.min, "opt": axis.opt, "max": axis.max, "multiple_of": axis.multiple_of}
            for axis in stage.axes
        },
        "inputs": [_tensor_json(tensor) for tensor in stage.inputs],
        "outputs": [_tensor_json(tensor) for tensor in stage.outputs],
        "graphs": {
            precision: {"whole": graph.whole.name, "steps": [_step_json(step) for step in graph.steps]}
            for precision, graph in graphs.items()
        },
    }


def _tensor_json(tensor: TensorSpec) -> dict[str, Any]:
    return {"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape)}


def _step_json(step: Step) -> dict[str, Any]:
    names = {"inputs": list(step.inputs), "outputs": list(step.outputs)}
    if isinstance(step, SessionStep):
        return {"onnx": step.onnx.name, **names}
    return {"operator": step.operator, **names, "attributes": dict(step.attributes)}


def _files_json(folder: Path) -> dict[str, Any]:
    return {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in sorted(folder.iterdir())}


def _json_bytes(description: Mapping[str, Any]) -> bytes:
    try:
        text = json.dumps(description, indent=1, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidRequest(
            f"A value for '{DESCRIPTION}' is not of JSON's types.", note=f"{error}.", hint="NaN and Inf are not either."
        ) from error
    return f"{text}\n".encode()


# ---- is half precision enough? --------------------------------------------------------------------------------------


def _check_half(stage: ExportStage, exact: ModelProto, graphs: Mapping[str, ModelProto]) -> None:
    for sizes in check_sizes(stage):
        inputs = example_arrays(stage, sizes)
        expected = run_onnx(stage, exact, inputs)
        for precision, graph in graphs.items():
            found = run_onnx(stage, graph, inputs)
            for name, reference in expected.items():
                if reference.dtype.kind == "f":  # an index has no distance; what it selects shows in other outputs
                    _check_near(f"'{name}' of stage '{stage.name}'", precision, found[name], reference)


def _check_near(output: str, precision: str, found: NDArray[Any], expected: NDArray[Any]) -> None:
    size, error = float(np.linalg.norm(expected)), float(np.linalg.norm(found - expected))
    if not error <= HALF_TOLERANCE * size:  # written so that NaN fails
        raise ExportFailed(
            f"Output {output} is lost in half precision.",
            note=f"It differs by {error:.3g} in {precision}, from norm {size:.3g}; allowed {HALF_TOLERANCE:.0%}.",
            hint="Put the module that needs the digits into the stage's fp32_scopes.",
        )
