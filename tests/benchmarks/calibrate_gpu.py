"""What int8 saves on TensorRT: calibrates a bundle with the speed check, then times fp16 and int8 and weighs engines.

    python tests/benchmarks/calibrate_gpu.py --bundle DIR --data DIR [--samples N] [--keep-above DB] [--runs N]
        [--size WxH] [-o BUNDLE]

`--data` is a folder of photographs, or one that `edge4d world` wrote. The calibrated bundle stays in -o.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import report

from edge4d.calib.calibrate import calibrate
from edge4d.calib.photos import read_photos
from edge4d.calib.speed import speeds, tensorrt_backend
from edge4d.runtime.bundle import Bundle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", default="street")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--keep-above", type=float, default=40.0)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--size", help="of photographs, WxH; the bundle's own if not given")
    parser.add_argument("-o", "--output", type=Path, default=Path("int8.e4d"))
    options = parser.parse_args()
    backend = tensorrt_backend()
    if backend is None:
        sys.exit("there is no TensorRT with a GPU here: see edge4d doctor")
    bundle = Bundle.load(options.bundle)
    size = tuple(map(int, options.size.split("x"))) if options.size else tuple(bundle.config["size"])
    data = read_photos(options.data, options.samples, size)
    made = calibrate(bundle, data, options.output, keep_above=options.keep_above, tensorrt=backend)
    found = {(speed.stage, speed.precision): speed for speed in speeds(made.bundle, backend, size, options.runs)}
    rows = []
    for stage in made.bundle.stages:
        layers = [layer for layer in made.results.layers if layer.stage == stage]
        fp16, int8 = found[stage, "fp16"], found[stage, "int8"]
        rows.append(
            {
                "name": f"{bundle.name} {stage}, {size[0]}x{size[1]}",
                "layers": len(layers),
                "int8_layers": sum(layer.in_engine for layer in layers),
                "fp16_ms": round(fp16.ms, 4),
                "int8_ms": round(int8.ms, 4),
                "speedup": round(fp16.ms / int8.ms, 2),
                "fp16_mb": round(fp16.engine_bytes / 1e6, 2),
                "int8_mb": round(int8.engine_bytes / 1e6, 2),
                "int8_from_fp32_db": round(made.results.engine.mean, 2),
            }
        )
        print(rows[-1])
    report.write("calibrate_gpu", rows, on_gpu=True, notes=NOTES)


NOTES = {
    "int8_layers": "of the layers that could be int8: without those that cost the picture, or time",
    "fp16_ms": "the GPU's, for computing, without copies",
    "fp16_mb": "the engine as a file: weights, and what TensorRT keeps beside them",
    "int8_from_fp32_db": "the rendered video's PSNR from fp32, of the whole bundle",
}


if __name__ == "__main__":
    main()
