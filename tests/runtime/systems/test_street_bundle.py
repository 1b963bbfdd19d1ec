"""The shipped bundle on photographs: of its own world, and real ones where they are at hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import edge4d
from edge4d.runtime.metrics import psnr
from edge4d.runtime.photo import read_rgb8

ROOT = Path(__file__).parents[3]
PHOTOS = ROOT.parent / "shared" / "data" / "photos"
STREET = ROOT / "examples" / "street.png"


@pytest.fixture(scope="module")
def pipeline():
    with edge4d.load("street") as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def street(pipeline):
    return pipeline.generate(STREET)


def shift_of(before, after, rows):
    """Pixels by which these rows moved to the right: the best match of their edges, to one pixel."""
    a, b = (np.diff(image[rows].mean(-1), axis=1)[:, 40:-40] for image in (before, after))
    shifts = range(-30, 31)
    return max(shifts, key=lambda shift: float((np.roll(a, shift, 1) * b)[:, 30:-30].sum()))


def test_the_first_frame_is_the_photograph(street):
    frame = edge4d.Renderer(street, dtype="float32").render(street.camera, 0.0)
    # Pixel-sized Gaussians blur what they draw: this picture comes back at 29 dB. A wrong pose, focal length or colour
    # leaves less than 20.
    assert psnr(np.clip(frame.image, 0, 1), read_rgb8(STREET) / np.float32(255)) > 24
    assert (frame.alpha > 0.9).mean() > 0.99


def test_near_things_shift_more_than_far_ones(street):
    renderer = edge4d.Renderer(street.without_motion(), dtype="float32")
    pose = np.eye(4)
    pose[0, 3] = 0.4  # the camera steps to the right, so the picture goes to the left
    before, after = (renderer.render(street.camera.with_pose(p), 0.0).image for p in (np.eye(4), pose))
    near, far = shift_of(before, after, slice(200, 250)), shift_of(before, after, slice(40, 90))
    assert near < far <= 0


def test_ground_is_near_below_and_sky_far_above(street):
    depth = edge4d.Renderer(street, dtype="float32").render(street.camera, 0.0).depth
    depth = depth.reshape(street.camera.height, street.camera.width)
    assert np.median(depth[-10:]) < 6 < 60 < np.median(depth[:30, 180:240])


def test_something_moves(street):
    early, late = street.evaluate(0.0), street.evaluate(1.5)
    moved = np.linalg.norm(late.means - early.means, axis=1)
    assert (moved > 1.0).any()
    assert (moved == 0).mean() > 0.5


def test_temperature_chooses_among_motions(pipeline):
    first, again, other = (pipeline.generate(STREET, seed=seed).evaluate(1.0).means for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.05


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("name", ["cars.jpg", "truck.jpg"])
def test_real_photographs(name, precision, tmp_path):
    if not (PHOTOS / name).exists():
        pytest.skip("the real photographs are not here")
    with edge4d.load("street", precision=precision) as pipeline:
        scene = pipeline.generate(PHOTOS / name)
    video = edge4d.render(scene, camera="orbit", frames=4, fps=12)
    video.save(tmp_path / "video.mp4")
    assert (tmp_path / "video.mp4").stat().st_size > 1000
    first = edge4d.Renderer(scene, dtype="float32").render(scene.camera, 0.0)
    assert np.isfinite(first.image).all()
    assert (first.alpha > 0.5).mean() > 0.95
