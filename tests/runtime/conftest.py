"""Lets these tests import the modules beside them, and a bundle that several of them run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))


@pytest.fixture(scope="session")
def random_gvf_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """See gvf_bundle.py; exported once."""
    pytest.importorskip("torch")
    from gvf_bundle import write_bundle

    return write_bundle(tmp_path_factory.mktemp("bundles") / "random.e4d")
