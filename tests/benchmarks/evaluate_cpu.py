"""How well the shipped bundle foresees a world that it never saw: `edge4d evaluate`, as one row. Takes some minutes.

python tests/benchmarks/evaluate_cpu.py [--bundle NAME] [--count N] [--seed N]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

import report

from edge4d.runtime.evaluate import FIGURES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", default="street")
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    command = [sys.executable, "-m", "edge4d.runtime.cli", "evaluate", options.bundle, "--json", "-"]
    command += ["--count", str(options.count), "--seed", str(options.seed)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    figures = json.loads(output[output.index("{") :])
    name = f"{figures['bundle']} on {figures['count']} {figures['world']}s, seed {figures['seed']}, {figures['size']}"
    report.write("evaluate_cpu", [{"name": name, **{key: round(figures[key], 2) for key in FIGURES}}])


if __name__ == "__main__":
    main()
