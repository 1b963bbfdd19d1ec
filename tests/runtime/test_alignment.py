"""From where a picture shows an asset, whose sides all differ (see gvf_bundle.py)."""

from __future__ import annotations

import numpy as np
import pytest
from gvf_bundle import asset, pictures

from edge4d.runtime.alignment import best_azimuth
from edge4d.runtime.clip import read_clip
from edge4d.runtime.errors import InvalidScene


@pytest.mark.parametrize("azimuth", [-179, -98, 0, 40, 171])
def test_azimuths_are_found(azimuth):
    clip = read_clip(pictures(asset(), azimuth, 1, size=128), 128)
    found = best_azimuth(asset(), clip.pictures[0], clip.mask, "onnxruntime")
    # Pictures of 96 pixels that are a degree apart differ by half a pixel at most.
    assert abs((found.degrees - azimuth + 180) % 360 - 180) <= 2
    assert found.psnr > 25
    assert -180 <= found.degrees < 180


def test_size_and_place_do_not_matter():
    whole = pictures(asset(), 60, 1, size=256)
    small = np.zeros((1, 400, 500, 4), np.uint8)
    small[:, 20:276, 200:456] = whole
    clip = read_clip(small, 64)
    assert abs(best_azimuth(asset(), clip.pictures[0], clip.mask, "onnxruntime").degrees - 60) <= 3


def test_an_asset_that_cannot_be_seen():
    clip = read_clip(pictures(asset(), 0, 1), 64)
    faint = asset()._replace(opacities=np.full(500, 0.001, np.float32))
    with pytest.raises(InvalidScene, match="--up"):
        best_azimuth(faint, clip.pictures[0], clip.mask, "onnxruntime")
