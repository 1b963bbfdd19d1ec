"""Lets these tests import the modules beside them, and a bundle that several of them run."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))


@pytest.fixture(scope="session")
def random_gvf_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """See gvf_bundle.py; exported once. In the folder $EDGE4D_TEST_BUNDLES it lasts, for whoever has no torch."""
    kept = os.environ.get("EDGE4D_TEST_BUNDLES")
    bundle = Path(kept or tmp_path_factory.mktemp("bundles")) / "random.e4d"
    if bundle.is_dir():
        return bundle
    pytest.importorskip("torch")
    from gvf_bundle import write_bundle

    return write_bundle(bundle)


@pytest.fixture(scope="session")
def tiny_gvf_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a canonical generator; by `edge4d export`."""
    pytest.importorskip("torch")
    from gvf_bundle import write_tiny_checkpoint

    from edge4d.runtime import cli

    folder = tmp_path_factory.mktemp("bundles")
    checkpoint = write_tiny_checkpoint(folder / "tiny.safetensors")
    options = ["--config", "tiny", "--checkpoint", str(checkpoint), "-o", str(folder / "tiny.e4d")]
    with pytest.raises(SystemExit) as stop:
        cli.main(["export", "gvf-diffusion", *options])
    assert not stop.value.code
    return folder / "tiny.e4d"
