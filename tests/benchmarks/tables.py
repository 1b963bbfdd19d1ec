"""Writes the tables between the two marks in README.md from the newest report of each benchmark on each machine."""

from __future__ import annotations

import json
import sys
from typing import Any

from report import RESULTS, ROOT

BEGIN, END = "<!-- tables -->", "<!-- end of tables -->"


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
    columns = list(dict.fromkeys(key for row in report["rows"] for key in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(str(row.get(column, "")) for column in columns) + " |" for row in report["rows"]]
    source = f"{report['machine']}, {report['cores']} cores, commit {report['commit']}: `{report['command']}`"
    return "\n".join((source, "", *lines))


if __name__ == "__main__":
    main()
