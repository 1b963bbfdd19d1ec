"""The four folders have one name each: `edge4d.runtime`, never `runtime`, or classes would exist twice.

Fails under `python -m pytest`, which puts the repository on sys.path; run `pytest`, or `python -P -m pytest`.
"""

from __future__ import annotations

import importlib.util

import pytest


@pytest.mark.parametrize("name", ["calib", "export", "kernels", "runtime"])
def test_folders_are_not_importable_by_their_bare_names(name):
    assert importlib.util.find_spec(name) is None
    assert importlib.util.find_spec(f"edge4d.{name}") is not None
