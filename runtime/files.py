"""Writing files so that nobody ever reads half of one."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, Union


@contextmanager
def replacing(path: Union[str, Path]) -> Iterator[Path]:
    """A path beside `path` to write to; it is renamed to `path` at the end, or removed when writing failed.

    Readers that have the old file open or mapped keep it; a writer that is interrupted leaves the old one in place.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
