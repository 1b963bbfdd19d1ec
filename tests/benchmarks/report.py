"""What every benchmark writes: rows of figures, with the machine, the commit and the command that made them."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).resolve().parent / "results"


def write(script: str, rows: list[dict[str, Any]]) -> Path:
    """Writes `results/<script>-<machine>-<commit>.json` and says where."""
    commit = _git("rev-parse", "--short=12", "HEAD")
    report = {
        "script": script,
        "machine": machine(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "commit": commit + ("+changes" if _git("status", "--porcelain", "--untracked-files=no") else ""),
        "command": shlex.join(["python", os.path.relpath(sys.argv[0], ROOT), *sys.argv[1:]]),
        "rows": rows,
    }
    name = "-".join((script, re.sub(r"[^a-z0-9]+", "_", machine().lower()).strip("_"), commit))
    path = RESULTS / f"{name}.json"
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n")
    print(path.relative_to(ROOT))
    return path


def machine() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _git(*arguments: str) -> str:
    return subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True, check=True).stdout.strip()
