"""The int8 variant of a bundle: ranges, the layers that can be int8, and the bundle with it.

photographs → ranges of all tensors           the whole pipeline runs, in fp32
            → each layer alone in int8        scored by the rendered video
            → the mix that keeps the picture  the others stay float
            → where there is a GPU, the mix that is not slower than fp16
            → NAME.e4d with `STAGE.int8.onnx`, `STAGE.int8.engine.onnx` and `calibration.json`
"""

from __future__ import annotations

import hashlib
import importlib.resources
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import numpy as np

import edge4d
from edge4d.calib import score
from edge4d.calib.ledger import Ledger
from edge4d.calib.mixes import ENGINE, Calibrated, Floating, Mixes, calibrated, layer_id, read_stages
from edge4d.calib.photos import CalibrationData, content_of
from edge4d.calib.ranges import Range, Seen, check_method, making_scenes, observe
from edge4d.calib.results import Results, Settings, layer_results, work_of
from edge4d.calib.score import Reference
from edge4d.calib.sensitivity import Choice, Trials, choose
from edge4d.calib.speed import TimingBackend, not_slower
from edge4d.runtime.bundle import DESCRIPTION, SUFFIX, Bundle, OperatorStep, Step, sha256_of
from edge4d.runtime.calibration_file import CALIBRATION
from edge4d.runtime.errors import InvalidRequest
from edge4d.runtime.files import replacing_folder
from edge4d.runtime.onnx_files import external_locations
from edge4d.runtime.profile_inputs import sample

SYSTEM = "pixel_to_4d"
SCORED = 8  # photographs whose videos decide; drawing them takes most of a calibration's time
_VARIANT = "int8"

Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Calibration:
    """A bundle with an int8 variant, and how it came to be.

    Attributes:
        ranges: by stage and tensor.
        reference: frames of the fp32 variant, with which others were compared.
        reused: figures that an earlier calibration had left.
    """

    bundle: Bundle
    results: Results
    ranges: Mapping[str, Mapping[str, Range]]
    reference: Reference
    reused: int


def check_system(bundle: Bundle) -> None:
    """Raises InvalidRequest for bundles that are not made of photographs."""
    if bundle.system != SYSTEM:
        raise InvalidRequest(
            f"The bundle '{bundle.name}' cannot be calibrated.",
            note=f"Its system is {bundle.system}; int8 variants are made of {SYSTEM} alone.",
            hint="Where half precision is enough: --precision fp16.",
        )


def calibrate(
    bundle: Bundle,
    data: CalibrationData,
    output: Path,
    *,
    method: str = "percentile",
    smooth: Optional[float] = None,
    keep_above: float = 40.0,
    tensorrt: Optional[TimingBackend] = None,
    cache: Optional[Path] = None,
    report: Report = lambda done, total: None,
) -> Calibration:
    """Writes `bundle` with an int8 variant to `output`, which may be the same folder.

    The same data gives the same bytes, but where a GPU's times decide. What was measured is kept in the cache: a
    calibration that was interrupted goes on from there.

    Args:
        output: `NAME.e4d`; an older bundle there is replaced.
        method: how ranges are chosen; see `edge4d.calib.ranges`.
        smooth: SmoothQuant's alpha, from 0 to 1, for matrix products.
        keep_above: dB that the rendered video keeps to the fp32 variant's.
        tensorrt: the backend on whose GPU no stage may be slower than in fp16; nothing is timed without it.
        cache: a folder; the user's cache without it.
        report: is told how many steps are done, and how many there are at most.

    Raises:
        InvalidCalibration: ranges cannot be taken from the data, or nothing can be int8.
        InvalidRequest: the bundle's system, an argument, or the data's size, cannot be used.
        PrecisionNotInBundle: fp32 or fp16 is missing.
    """
    check_system(bundle)
    settings = Settings(method, smooth, keep_above)
    _check(settings, output)
    floating = read_stages(bundle)
    ledger = Ledger(_dependencies(bundle, data, settings), cache)
    steps = _Steps(floating, data, report)
    with _workplace(bundle, output) as folder:
        seen = _seen(bundle, floating, data, folder, ledger, settings, steps)
        stages = {name: calibrated(stage, seen[name], smooth) for name, stage in floating.items()}
        ranges = {name: stage.ranges for name, stage in seen.items()}
        mixes = Mixes(bundle, stages, folder)
        reference = Reference(bundle, data.photos[:SCORED], data.size)
        trials = Trials(mixes, reference, ledger, steps.advance)
        choice = choose(trials, mixes.ids, work_of(stages, ranges), keep_above)
        if tensorrt is not None:
            inputs = sample(bundle, tensorrt, "fp16", data.size).inputs
            in_engine = not_slower(mixes, choice.int8, tensorrt, inputs, report=steps.advance)
            choice = choice._replace(in_engine=in_engine, engine=trials.score(in_engine, ENGINE))
        results = Results(
            settings=settings,
            data=data.origin,
            scored={"photographs": len(reference.photos), "frames": len(reference.frames)},
            layers=layer_results(stages, ranges, choice),
            cpu=choice.cpu,
            engine=choice.engine,
            warnings=(*data.warnings, *_warnings(stages)),
        )
        _finish(mixes, choice, results, folder)
    steps.finish()
    return Calibration(Bundle.load(output), results, ranges, reference, ledger.found)


def _check(settings: Settings, output: Path) -> None:
    check_method(settings.method)
    if settings.smooth is not None and not 0 <= settings.smooth <= 1:
        raise InvalidRequest("SmoothQuant's alpha cannot be used.", note=f"It is {settings.smooth}, from 0 to 1.")
    if not 10 <= settings.keep_above <= 80:
        raise InvalidRequest(
            "The video cannot be kept to that.",
            note=f"{settings.keep_above:g} dB were asked for; 10 to 80 can be.",
            hint="40 dB is a difference that is hard to see.",
        )
    if output.suffix != SUFFIX:
        raise InvalidRequest(f"A bundle cannot be named '{output.name}'.", hint=f"End the name in {SUFFIX}.")
    if output.exists() and not (output / DESCRIPTION).is_file():
        raise InvalidRequest(f"'{output}' exists and is not a bundle.", hint="Remove it, or choose another name.")


def _dependencies(bundle: Bundle, data: CalibrationData, settings: Settings) -> dict[str, Any]:
    """All that figures depend on; not `keep_above`, which only chooses among them."""
    from importlib.metadata import version

    return {
        "edge4d": edge4d.__version__,
        "calib": _own_code(),
        "onnxruntime": version("onnxruntime"),
        "numpy": np.__version__,
        "files": {path: bundle.files[path].sha256 for path in _kept_files(bundle)},
        "photographs": content_of(data),
        "video": [SCORED, score.FRAMES, list(score.PATHS), dict(bundle.config)],
        "method": settings.method,
        "smooth": settings.smooth,
    }


def _own_code() -> str:
    """SHA-256 of this package: what it measured before it was changed is no longer what it would measure."""
    modules = sorted(Path(str(importlib.resources.files("edge4d.calib"))).glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in modules)).hexdigest()


class _Steps:
    """Counts photographs seen and mixes scored; how many mixes it takes is not known before."""

    def __init__(self, floating: Mapping[str, Floating], data: CalibrationData, report: Report) -> None:
        layers = sum(len(stage.layers) for stage in floating.values())
        self._done, self._total = 0, len(data.photos) + layers + 20
        self._report = report

    def advance(self) -> None:
        self._done += 1
        self._report(min(self._done, self._total), self._total)

    def finish(self) -> None:
        self._report(self._total, self._total)


@contextmanager
def _workplace(bundle: Bundle, output: Path) -> Iterator[Path]:
    """A copy of the bundle's files without its int8 variant, which becomes the bundle `output` at the end."""
    with replacing_folder(output) as folder:
        for path in _kept_files(bundle):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.folder / path, folder / path)
        yield folder


def _kept_files(bundle: Bundle) -> list[str]:
    """What the graphs of the other variants read."""
    graphs = [graph for stage in bundle.stages.values() for name, graph in stage.graphs.items() if name != _VARIANT]
    onnx = {graph.whole for graph in graphs}
    onnx |= {step.onnx for graph in graphs for step in graph.steps if not isinstance(step, OperatorStep)}
    weights = {path.parent / location for path in onnx for location in external_locations(path)}
    return sorted(path.relative_to(bundle.folder).as_posix() for path in onnx | weights)


def _seen(
    bundle: Bundle,
    floating: Mapping[str, Floating],
    data: CalibrationData,
    folder: Path,
    ledger: Ledger,
    settings: Settings,
    steps: _Steps,
) -> dict[str, Seen]:
    watched = {name: stage.watched() for name, stage in floating.items()}

    def measure() -> dict[str, Any]:
        run = making_scenes(bundle, data, steps.advance)
        found = observe(watched, run, folder, method=settings.method)
        return {name: stage.as_json() for name, stage in found.items()}

    return {name: Seen.from_json(node) for name, node in ledger.get("ranges", measure).items()}


def _warnings(stages: Mapping[str, Calibrated]) -> Iterator[str]:
    for name, stage in stages.items():
        for layer in stage.dead:
            yield f"{layer_id(name, layer)} takes nothing but zeros, and stays float."


# ---- the bundle ------------------------------------------------------------------------------------------------------


def _finish(mixes: Mixes, choice: Choice, results: Results, folder: Path) -> None:
    """Leaves in `folder` a bundle with the chosen mix."""
    for path in folder.glob("*.trial.*"):
        path.unlink()
    variant = mixes.bundle_with(choice.int8, choice.in_engine, _VARIANT)
    (folder / CALIBRATION).write_bytes(results.json_bytes())
    description = json.loads((mixes.bundle.folder / DESCRIPTION).read_bytes())
    kept = [precision for precision in description["precisions"] if precision != _VARIANT]
    description["precisions"] = [*kept, _VARIANT]
    for node in description["stages"]:
        graph = variant.stage(node["name"]).graphs[_VARIANT]
        node["graphs"][_VARIANT] = {"whole": graph.whole.name, "steps": [_step_json(step) for step in graph.steps]}
    description["files"] = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _step_json(step: Step) -> dict[str, Any]:
    names = {"inputs": list(step.inputs), "outputs": list(step.outputs)}
    if isinstance(step, OperatorStep):
        return {"operator": step.operator, **names, "attributes": dict(step.attributes)}
    return {"onnx": step.onnx.name, **names}
