"""Writes the tables between the two marks in README.md from the report of each benchmark on each machine."""

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
    "generate_paper": (
        *("name", "ours", "ours_ms", "ours_scene_ms", "peer", "peer_ms", "peer_scene_ms", "speedup"),
        *("psnr_db", "peer_psnr_db", "output_error"),
    ),
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
    tables = "\n\n".join(table(report) for report in reports())
    readme.write_text(f"{before}{BEGIN}\n{tables}\n{END}{after}")


def reports() -> list[dict[str, Any]]:
    """By script and machine, of which there is one report each: what is older has no place beside what is newer."""
    found: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {}
    for path in sorted(RESULTS.glob("*.json")):
        report = json.loads(path.read_text())
        other, _ = found.setdefault((report["script"], report["machine"]), (path.name, report))
        if other != path.name:
            sys.exit(f"{other} and {path.name} are of the same script and machine: remove the older one.")
    return [found[key][1] for key in sorted(found)]


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
