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
from typing import Any, Optional

from edge4d.runtime import machine

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).resolve().parent / "results"


def write(
    script: str, rows: list[dict[str, Any]], *, on_gpu: bool = False, notes: Optional[dict[str, str]] = None
) -> Path:
    """Writes `results/<script>-<machine>-<commit>.json` and says where.

    Args:
        on_gpu: the machine is the GPU, not the processor.
        notes: what some of the rows' fields mean, by their names.
    """
    where = gpu() if on_gpu else {"machine": machine.processor(), "cores": machine.cores()}
    commit = _commit()
    report = {
        "script": script,
        **where,
        "python": platform.python_version(),
        "commit": commit,
        "command": shlex.join(["python", os.path.relpath(sys.argv[0], ROOT), *sys.argv[1:]]),
        **({"notes": notes} if notes else {}),
        "rows": rows,
    }
    name = "-".join((script, re.sub(r"[^a-z0-9]+", "_", where["machine"].lower()).strip("_"), commit.split("+")[0]))
    path = RESULTS / f"{name}.json"
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n")
    print(path.relative_to(ROOT))
    return path


def gpu() -> dict[str, Any]:
    """The first GPU's name, driver, and what limits its speed: the highest clock and power that it may take."""
    fields = "name,driver_version,clocks.max.sm,power.limit"
    command = ["nvidia-smi", "--id=0", f"--query-gpu={fields}", "--format=csv,noheader"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return dict(zip(("machine", "driver", "max_clock", "power_limit"), answer.split(", ")))


def _commit() -> str:
    """The commit that is measured: $EDGE4D_COMMIT where it is set, for a source that came without its history."""
    named = os.environ.get("EDGE4D_COMMIT", "" if (ROOT / ".git").exists() else "unknown")
    if named:
        return named
    changes = _git("status", "--porcelain", "--untracked-files=no")
    return _git("rev-parse", "--short=12", "HEAD") + ("+changes" if changes else "")


def _git(*arguments: str) -> str:
    return subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True, check=True).stdout.strip()
