"""Lets these tests import the modules beside them; nothing else lies in this folder that could be mistaken.

And GaussianRasterize as a fixture, so that one test holds for the CPU and the GPU.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))


@pytest.fixture(scope="session", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def draw(request):
    """GaussianRasterize of a scene of kernel_scenes.py: draw(scene, width, height, **attributes), NumPy in and out."""
    if request.param == "cpu":
        from kernel_scenes import draw_cpu

        return draw_cpu
    return request.getfixturevalue("device").draw


@pytest.fixture(scope="session")
def device():
    """The GPU, to draw on as cuda_scenes.py says."""
    from cuda_scenes import Device

    return Device()
