"""What was measured already, kept on disk under all that it depends on: what was interrupted goes on from there."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Optional

from edge4d.runtime.engine_cache import cache_folder
from edge4d.runtime.files import replacing


class Ledger:
    """Figures by name, in one JSON file, written after every new one.

    Args:
        depends_on: all that the figures depend on, as JSON; others give another file.
        folder: `calibration` in the cache folder without it.
    """

    def __init__(self, depends_on: Mapping[str, Any], folder: Optional[Path] = None) -> None:
        digest = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()
        folder = cache_folder() / "calibration" if folder is None else folder
        self.path = folder / f"{digest[:32]}.json"
        self._figures = _read(self.path)
        self.found = len(self._figures)

    def get(self, name: str, measure: Callable[[], Any]) -> Any:
        """The figure of that name: JSON, measured only where it is not there."""
        if name not in self._figures:
            self._figures[name] = measure()
            with contextlib.suppress(OSError):  # where nothing can be kept, only time is lost
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with replacing(self.path) as partial:
                    partial.write_text(json.dumps(self._figures))
        return self._figures[name]


def _read(path: Path) -> dict[str, Any]:
    """Nothing where the file is missing or damaged: figures can be measured again."""
    try:
        figures = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return figures if isinstance(figures, dict) else {}
