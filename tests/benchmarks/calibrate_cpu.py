"""What int8 costs and saves on the CPU: the networks' time, and the video's PSNR from fp32 and from the true frames.

Videos are those of `edge4d evaluate`: streets that neither training nor calibration saw, along their own camera paths.
Takes some minutes; with --data it reads such streets instead of making them.

    python tests/benchmarks/calibrate_cpu.py [--bundle NAME] [--data DIR] [--count N] [--seed N] [--runs N]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from statistics import fmean

import numpy as np
import report

import edge4d
from edge4d.calib.mixes import read_stages
from edge4d.calib.speed import StageSpeed, speeds
from edge4d.runtime.backends.onnxruntime import OnnxRuntimeBackend
from edge4d.runtime.bundle import Bundle
from edge4d.runtime.metrics import psnr
from edge4d.runtime.world_files import World

PRECISIONS = ("fp32", "int8")
LEAST = 30.0  # dB: a video that is farther away is another one, and its times say nothing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", default="street")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--runs", type=int, default=50)
    options = parser.parse_args()
    bundle = Bundle.load(options.bundle)
    with tempfile.TemporaryDirectory() as temporary:
        world = World.load(options.data or made_world(bundle, Path(temporary, "world"), options.count, options.seed))
        row = {"name": f"{bundle.name} on {len(world.sequences)} {world.name}s, seed {world.seed}"}
        row |= picture(bundle, world)
        if row["int8_from_fp32_db"] < LEAST:
            sys.exit(f"int8 is {row['int8_from_fp32_db']} dB from fp32")
        networks = read_stages(bundle)
        found = speeds(bundle, OnnxRuntimeBackend(), world.size, options.runs)
        row |= times([speed for speed in found if speed.stage in networks])
    print(row)
    report.write("calibrate_cpu", [row], notes=NOTES)


def made_world(bundle: Bundle, folder: Path, count: int, seed: int) -> Path:
    from edge4d.export.worlds import write_world

    config = bundle.config
    size = tuple(config["size"])
    write_world("street", folder, count=count, seed=seed, size=size, frames=config["frames"], fps=config["fps"])
    return folder


def picture(bundle: Bundle, world: World) -> dict[str, float]:
    """Means over all frames but the photographs of each frame's PSNR."""
    found: dict[str, list[float]] = {"psnr_fp32": [], "psnr_int8": [], "int8_from_fp32_db": []}
    pipelines = [edge4d.load(bundle.folder, backend="onnxruntime", precision=precision) for precision in PRECISIONS]
    for name in world.sequences:
        sequence = world.sequence(name)
        renderers = [
            edge4d.Renderer(
                pipeline.generate(
                    sequence.photo, intrinsics=sequence.cameras[0].intrinsics, temperature=0.0, size=world.size
                ),
                outputs=("image",),
                dtype="float32",
                backend="onnxruntime",
            )
            for pipeline in pipelines
        ]
        for index in range(1, world.frames):
            camera, t = sequence.cameras[index], float(sequence.times[index])
            fp32, int8 = (np.clip(renderer.render(camera, t).image, 0, 1) for renderer in renderers)
            true = sequence.frame(index) / np.float32(255)
            for key, pair in zip(found, ((fp32, true), (int8, true), (int8, fp32))):
                found[key].append(psnr(*pair))
    return {key: round(fmean(values), 2) for key, values in found.items()}


def times(found: list[StageSpeed]) -> dict[str, float]:
    """Of all networks together, and the ratio for each."""
    ms = {(speed.stage, speed.precision): speed.ms for speed in found}
    stages = list(dict.fromkeys(speed.stage for speed in found))
    fp32, int8 = (sum(ms[stage, precision] for stage in stages) for precision in PRECISIONS)
    ratios = {f"{stage}_speedup": round(ms[stage, "fp32"] / ms[stage, "int8"], 2) for stage in stages}
    return {"fp32_ms": round(fp32, 1), "int8_ms": round(int8, 1), "speedup": round(fp32 / int8, 2), **ratios}


NOTES = {
    "psnr_fp32": "dB from the true frames, as `edge4d evaluate` counts it; `psnr_int8` likewise",
    "int8_from_fp32_db": "the int8 variant's frames against those of fp32",
    "fp32_ms": "both networks on ONNX Runtime, all cores: the sum of their medians, precisions taking turns; `int8_ms` "
    "likewise",
}


if __name__ == "__main__":
    main()
