"""Writing files and folders so that nobody ever reads half of one."""

from __future__ import annotations

import os
import shutil
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


@contextmanager
def replacing_folder(path: Union[str, Path]) -> Iterator[Path]:
    """An empty folder beside `path`, with the same ending; it takes that place at the end, or goes when filling failed.

    A folder cannot be renamed over another one that holds files: the old one steps aside first.
    """
    path = Path(path).absolute()
    partial = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    aside = partial.with_name(f"{partial.name}.old")
    partial.mkdir(parents=True)
    try:
        yield partial
        if path.exists():
            path.rename(aside)
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(aside, ignore_errors=True)
