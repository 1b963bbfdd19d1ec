"""Writes the tables between the two marks in README.md from the newest report of each benchmark on each machine."""

from __future__ import annotations

import json
import sys
from typing import Any

from report import RESULTS, ROOT

BEGIN, END = "<!-- tables -->", "<!-- end of tables -->"

# What README.md shows of a benchmark's rows; without an entry, every field. The whole rows are in the results' files.
COLUMNS = {
    "rasterize": (
        *("name", "gaussians", "pairs", "peer_ms", "ours_ms", "speedup", "graph_ms", "graph_speedup"),
        *("fast_graph_ms", "fast_moving_graph_ms", "higs_ms", "views8_over_single", "psnr_db", "fast_psnr_db"),
    ),
    "knn": ("name", "k", "ours_ms", "graph_ms", "peer", "peer_ms", "speedup", "peer_agreement"),
    "fps": ("name", "ours_ms", "graph_ms", "step_us", "peer", "peer_ms", "speedup", "peer_agreement"),
    "player": (
        *("name", "gaussians", "size", "frames", "frames_per_second", "missed"),
        *("latency_ms", "latency_ms_p95", "latency_ms_p99"),
    ),
}


def main() -> None:
    readme = ROOT / "README.md"
    before, begin, rest = readme.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        sys.exit(f"README.md has no {BEGIN} … {END}")
    tables = "\n\n".join(table(report) for report in newest())
    readme.write_text(f"{before}{BEGIN}\n{tables}\n{END}{after}")


def newest() -> list[dict[str, Any]]:
    """By script and machine; the newest file wins."""
    reports = {}
    for path in sorted(RESULTS.glob("*.json"), key=lambda path: path.stat().st_mtime):
        report = json.loads(path.read_text())
        reports[report["script"], report["machine"]] = report
    return [reports[key] for key in sorted(reports)]


def table(report: dict[str, Any]) -> str:
    found = dict.fromkeys(key for row in report["rows"] for key in row)
    columns = [key for key in COLUMNS.get(report["script"], found) if key in found]
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(str(row.get(column, "")) for column in columns) + " |" for row in report["rows"]]
    notes = [f"`{key}`: {note}" for key, note in report.get("notes", {}).items() if key in columns]
    return "\n".join((source(report), "", *lines, *([""] if notes else []), "  \n".join(notes))).rstrip("\n")


def source(report: dict[str, Any]) -> str:
    size = f"{report['cores']} cores" if "cores" in report else f"driver {report['driver']}"
    return f"{report['machine']}, {size}, commit {report['commit']}: `{report['command']}`"


if __name__ == "__main__":
    main()
