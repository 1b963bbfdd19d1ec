from __future__ import annotations

import json

import numpy as np
import pytest

import edge4d
from edge4d.runtime.errors import InvalidWorld
from edge4d.runtime.evaluate import FIGURES, evaluate
from edge4d.runtime.world_files import World


@pytest.fixture
def pipeline(tiny_bundle):
    with edge4d.load(tiny_bundle) as pipeline:
        yield pipeline


def test_a_world_that_is_foreseen(pipeline, tiny_world):
    """The true frames are the bundle's own, rounded to 8 bits."""
    done = []
    figures = evaluate(pipeline, World.load(tiny_world), progress=lambda *step: done.append(step))
    assert done == [(1, 2), (2, 2)]
    # Rounding to 8 bits is an error of at most half a level: 10·log10(255² / 0.25) = 54.2 dB at worst.
    assert figures["psnr"] > 54.1
    assert figures["psnr_moving"] > 54.1
    assert figures["ssim"] > 0.999
    # Depth was stored as float16: 2^-11.
    assert figures["depth_abs_rel"] < 5e-4
    # The square moves by up to 0.3 m, 3 pixels; its photograph stays behind the camera that moves.
    assert figures["psnr_static"] < figures["psnr"] - 10
    assert figures["psnr_static_moving"] < figures["psnr_moving"] - 10
    assert figures["psnr_copy"] < figures["psnr"] - 10
    assert figures["psnr_copy_moving"] < figures["psnr_moving"] - 10


def test_the_result_is_one_flat_object(pipeline, tiny_world):
    figures = evaluate(pipeline, World.load(tiny_world), frames=2)
    assert json.loads(json.dumps(figures)) == figures
    assert set(FIGURES) < set(figures)
    context = {name: value for name, value in figures.items() if name not in FIGURES}
    assert context == {
        "bundle": "tiny",
        "world": "tiny",
        "count": 2,
        "seed": 7,
        "frames": 2,
        "fps": 10.0,
        "size": "64x32",
        "precision": "fp32",
        "backend": "onnxruntime",
    }


def test_the_network_sees_nothing_but_the_photograph(pipeline, tiny_world):
    """True depth and ids lie beside the photograph; wrong ones must not matter."""
    before = evaluate(pipeline, World.load(tiny_world))
    for name in World.load(tiny_world).sequences:
        np.save(tiny_world / name / "depth.npy", np.full((32, 64), 1.0, np.float32))
        (tiny_world / name / "motion.json").write_text("{}")
    assert evaluate(pipeline, World.load(tiny_world)) == before


def test_where_nothing_moves_there_are_no_moving_figures(pipeline, tiny_world):
    for name in World.load(tiny_world).sequences:
        np.savez_compressed(tiny_world / name / "frames_moving.npz", np.zeros((4, 32, 64), bool))
    figures = evaluate(pipeline, World.load(tiny_world))
    assert figures["psnr_moving"] is None
    assert figures["psnr"] > 54.1


@pytest.mark.parametrize("frames", [1, 5])
def test_frames_that_the_world_does_not_have(pipeline, tiny_world, frames):
    with pytest.raises(InvalidWorld, match="frames asked for"):
        evaluate(pipeline, World.load(tiny_world), frames=frames)
