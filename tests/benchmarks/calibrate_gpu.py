"""What int8 saves on TensorRT: milliseconds on the GPU and megabytes of engines, against fp16 of the same bundle.

With --data a bundle is calibrated as `edge4d calibrate` does it, with the speed check; the result stays in -o. With
--paper the bundle is the one that paper_bundle.py writes, one stage of random weights, whose picture nobody can judge:
its ranges come from that stage's inputs in workloads.py, every layer is int8, and then what the speed check leaves.

    python tests/benchmarks/calibrate_gpu.py --bundle NAME --data DIR [--samples N] [--keep-above DB] [-o BUNDLE]
    python tests/benchmarks/calibrate_gpu.py --paper out/paper.e4d
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import report
import workloads

from edge4d.calib.calibrate import calibrate
from edge4d.calib.mixes import Mixes, calibrated, read_stages
from edge4d.calib.photos import read_photos
from edge4d.calib.ranges import WatchingBackend, observe
from edge4d.calib.speed import TimingBackend, not_slower, speeds, tensorrt_backend
from edge4d.runtime.bundle import Bundle
from edge4d.runtime.systems.pixel_to_4d import perceives

SEEN = 4  # inputs of the paper's stage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", default="street")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--paper", type=Path)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--keep-above", type=float, default=40.0)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("-o", "--output", type=Path, default=Path("int8.e4d"))
    options = parser.parse_args()
    if (options.data is None) == (options.paper is None):
        parser.error("give --data or --paper")
    backend = tensorrt_backend()
    if backend is None:
        sys.exit("there is no TensorRT with a GPU here: see edge4d doctor")
    rows = of_paper(options, backend) if options.paper else of_bundle(options, backend)
    report.write("calibrate_gpu", rows, on_gpu=True, notes=NOTES)


def of_bundle(options: argparse.Namespace, backend: TimingBackend) -> list[dict[str, Any]]:
    bundle = Bundle.load(options.bundle)
    size = tuple(bundle.config["size"])
    data = read_photos(options.data, options.samples, size, with_maps=not perceives(bundle))
    made = calibrate(bundle, data, options.output, keep_above=options.keep_above, tensorrt=backend)
    found = {(speed.stage, speed.precision): speed for speed in speeds(made.bundle, backend, size, options.runs)}
    rows = []
    for stage in read_stages(bundle):
        layers = [layer for layer in made.results.layers if layer.stage == stage]
        fp16, int8 = ((found[stage, precision].ms, found[stage, precision].engine_bytes) for precision in PRECISIONS)
        row = {"name": f"{bundle.name} {stage}", "layers": len(layers)}
        row |= {"int8_layers": sum(layer.in_engine for layer in layers), **compared(fp16, int8)}
        rows.append({**row, "int8_from_fp32_db": round(made.results.engine.mean, 2)})
        print(rows[-1])
    return rows


def of_paper(options: argparse.Namespace, backend: TimingBackend) -> list[dict[str, Any]]:
    bundle = Bundle.load(options.paper)
    taken = [tensor.name for tensor in bundle.stage("core").inputs]
    made = [workloads.paper_inputs(seed)._asdict() for seed in range(SEEN)]
    inputs = [{name: tensors[name] for name in taken} for tensors in made]

    def run(watching: WatchingBackend) -> None:
        with watching.engine(bundle, "core", "fp32") as engine:
            for tensors in inputs:
                engine.run(tensors)

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(shutil.copytree(bundle.folder, Path(temporary, "paper.e4d")))
        stages = read_stages(bundle)
        seen = observe({name: stage.watched() for name, stage in stages.items()}, run, folder, method="percentile")
        mixes = Mixes(bundle, {name: calibrated(stage, seen[name], None) for name, stage in stages.items()}, folder)

        def measured(chosen: Collection[str], precision: str) -> tuple[float, int]:
            """The GPU's milliseconds, and the engine's bytes."""
            inside = backend.look_inside(mixes.bundle_with(chosen), "core", precision, inputs[0], options.runs)
            return statistics.median(run.compute_ms for run in inside.gpu_runs), inside.engine_bytes

        fp16 = measured((), "fp16")
        kept = not_slower(mixes, mixes.ids, backend, {"core": inputs[0]})
        rows = []
        for name, chosen in {"every layer": mixes.ids, "what the speed check leaves": kept}.items():
            row = {"name": f"paper core, {name}", "layers": len(mixes.ids), "int8_layers": len(chosen)}
            rows.append({**row, **compared(fp16, measured(chosen, "int8"))})
            print(rows[-1])
    return rows


def compared(fp16: tuple[float, int], int8: tuple[float, int]) -> dict[str, float]:
    """Of milliseconds and bytes."""
    return {
        "fp16_ms": round(fp16[0], 4),
        "int8_ms": round(int8[0], 4),
        "speedup": round(fp16[0] / int8[0], 2),
        "fp16_mb": round(fp16[1] / 1e6, 2),
        "int8_mb": round(int8[1] / 1e6, 2),
        "int8_bytes_to_fp16": round(int8[1] / fp16[1], 2),
    }


PRECISIONS = ("fp16", "int8")
NOTES = {
    "int8_layers": "of the layers that could be int8: without those that cost the picture, or time",
    "fp16_ms": "the GPU's, for computing, without copies; `int8_ms` likewise",
    "fp16_mb": "the engine as a file: weights, and what TensorRT keeps beside them; `int8_mb` likewise",
    "int8_from_fp32_db": "the rendered video's PSNR from fp32, of the whole bundle",
}


if __name__ == "__main__":
    main()
