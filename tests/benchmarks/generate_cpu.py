"""Photograph to a video of 24 frames, from the shell: wall-clock seconds and peak memory of the whole process.

Checks the video first. Files are in the system's cache after the first run, which is not counted.

    python tests/benchmarks/generate_cpu.py [--photo FILE] [--bundle NAME] [--repeats N]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import av
import numpy as np
import report

FRAMES, SIZE = 24, (448, 256)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photo", default=report.ROOT / "examples" / "street.png")
    parser.add_argument("--bundle", default="street")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    rows = [measure(options.photo, options.bundle, precision, options.repeats) for precision in ("fp32", "fp16")]
    report.write("generate_cpu", rows)


def measure(photo: Path, bundle: str, precision: str, repeats: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        video = Path(folder, "out.mp4")
        command = [sys.executable, "-m", "edge4d.runtime.cli", "generate", str(photo), "--bundle", bundle]
        command += [
            "--precision",
            precision,
            "--frames",
            str(FRAMES),
            "--size",
            f"{SIZE[0]}x{SIZE[1]}",
            "-o",
            str(video),
        ]
        run(command)
        check(video)
        runs = [run(command) for _ in range(repeats)]
    seconds = [run[0] for run in runs]
    row = {
        "name": f"photo to {FRAMES} frames, {SIZE[0]}x{SIZE[1]}, {precision}",
        "seconds": round(median(seconds), 2),
        "seconds_p5": round(float(np.percentile(seconds, 5)), 2),
        "seconds_p95": round(float(np.percentile(seconds, 95)), 2),
        "peak_mb": round(max(run[1] for run in runs)),
        "repeats": repeats,
    }
    print(row)
    return row


def run(command: list[str]) -> tuple[float, float]:
    """Seconds, and peak resident memory in megabytes."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if os.waitstatus_to_exitcode(status) != 0:
        sys.exit(f"failed: {' '.join(command)}")
    return seconds, usage.ru_maxrss / 1000


def check(video: Path) -> None:
    """The video has all frames, of the right size, that show something and change."""
    with av.open(str(video)) as container:
        frames = [frame.to_ndarray(format="rgb24").astype(float) for frame in container.decode(video=0)]
    right_size = all(frame.shape == (SIZE[1], SIZE[0], 3) for frame in frames)
    if len(frames) != FRAMES or not right_size or frames[0].std() < 5 or abs(frames[0] - frames[-1]).mean() < 1:
        sys.exit(f"{video} is not the video that was asked for: {len(frames)} frames")


if __name__ == "__main__":
    main()
