"""Assets of any origin as canonical Gaussians: activations undone, turned, placed, and as one array."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge4d.runtime.canonical import (
    UP,
    Placement,
    raw_from_gaussians,
    rotated,
    turned,
    up_rotation,
)
from edge4d.runtime.errors import InvalidRequest, InvalidScene
from edge4d.runtime.gaussians import Gaussians
from edge4d.runtime.rotations import multiply_quats, rotations_from_quats
from edge4d.runtime.variation_field import ACTIVATION


def gaussians(count: int = 50, seed: int = 0) -> Gaussians:
    rng = np.random.default_rng(seed)
    quats = rng.standard_normal((count, 4))
    return Gaussians(
        means=rng.uniform(-0.45, 0.45, (count, 3)).astype(np.float32),
        quats=(quats / np.linalg.norm(quats, axis=1, keepdims=True)).astype(np.float32),
        scales=rng.uniform(0.001, 0.2, (count, 3)).astype(np.float32),
        opacities=rng.uniform(0.01, 0.99, count).astype(np.float32),
        colors=rng.standard_normal((count, 1, 3)).astype(np.float32),
    )


def same_rotations(a, b) -> None:
    np.testing.assert_allclose(rotations_from_quats(a), rotations_from_quats(b), atol=1e-5)


def test_raw_values_are_activated_to_what_they_were():
    before = gaussians()
    after = ACTIVATION.apply(raw_from_gaussians(before))
    same_rotations(after.quats, before.quats)
    for name in ("means", "scales", "opacities", "colors"):
        # Logarithms in float32 of numbers up to 7: 5e-7, relative.
        np.testing.assert_allclose(getattr(after, name), getattr(before, name), rtol=1e-5)


@settings(max_examples=50, deadline=None)
@given(st.floats(0, 1e3, width=32), st.floats(0, 1, width=32))
def test_raw_values_are_finite(scale, opacity):
    one = gaussians(1)._replace(scales=np.full((1, 3), scale, np.float32), opacities=np.array([opacity], np.float32))
    raw = raw_from_gaussians(one)
    assert all(np.isfinite(array).all() for array in raw)
    after = ACTIVATION.apply(raw)
    np.testing.assert_allclose(after.scales, max(scale, ACTIVATION.scale_floor), rtol=1e-4)
    np.testing.assert_allclose(after.opacities, opacity, atol=2e-6)


def test_real_parts_are_not_negative():
    raw = raw_from_gaussians(gaussians())
    assert (raw.quats[:, 0] + 1 >= 0).all()


def test_turning_by_a_quarter():
    """Anticlockwise from above: x becomes y."""
    one = gaussians(1)._replace(means=np.array([[0.3, 0.1, 0.2]], np.float32))
    after = turned(one, 90.0)
    np.testing.assert_allclose(after.means, [[-0.1, 0.3, 0.2]], atol=1e-7)
    quarter = np.sqrt(0.5) * np.array([1, 0, 0, 1])
    same_rotations(after.quats, multiply_quats(quarter, one.quats))
    for name in ("scales", "opacities", "colors"):
        np.testing.assert_array_equal(getattr(after, name), getattr(one, name))


@pytest.mark.parametrize(("up", "axis"), [("z", (0, 0, 1)), ("y", (0, 1, 0)), ("-y", (0, -1, 0))])
def test_up_is_up(up, axis):
    rotation = UP[up]
    np.testing.assert_array_equal(rotation @ axis, [0, 0, 1])
    np.testing.assert_array_equal(rotation @ rotation.T, np.eye(3))
    assert np.linalg.det(rotation) == 1.0
    np.testing.assert_array_equal(rotation @ [1, 0, 0], [1, 0, 0])


def test_the_frame_of_a_camera_at_azimuth_0_is_up_minus_y():
    from edge4d.runtime.object_views import object_pose

    np.testing.assert_allclose(object_pose(0.0)[:3, :3], UP["-y"], atol=1e-12)


def test_objects_in_the_cube_stay_where_they_are():
    before = gaussians()
    after = Placement(before.means).gaussians(before)
    for name, array in before._asdict().items():
        np.testing.assert_allclose(getattr(after, name), array, atol=1e-6)


@pytest.mark.parametrize(("factor", "shift"), [(20.0, 0.0), (0.01, 0.0), (1.0, 7.0)])
def test_others_are_centred_and_fill_it(factor, shift):
    asset = gaussians(500)
    far = asset._replace(means=(asset.means * factor + shift).astype(np.float32))
    place = Placement(far.means)
    after = place.gaussians(far)
    assert 0.95 < np.ptp(after.means, axis=0).max() < 1.1  # one percent of 500 is left out
    np.testing.assert_allclose(np.percentile(after.means, (0.5, 99.5), axis=0).sum(axis=0), 0.0, atol=1e-3)
    np.testing.assert_allclose(after.scales, place.scale * asset.scales, rtol=1e-5)
    np.testing.assert_array_equal(place.points(far.means), after.means)
    distances = [np.linalg.norm(np.diff(means[:5], axis=0), axis=1) for means in (far.means, after.means)]
    np.testing.assert_allclose(distances[1], place.scale * distances[0], rtol=1e-3)


def test_strays_do_not_count():
    asset = gaussians(1000)
    asset.means[0] = 50.0
    assert Placement(asset.means).scale == 1.0


def test_gaussians_turn_with_their_positions():
    before = gaussians()
    after = rotated(before, UP["-y"])
    np.testing.assert_allclose(after.means, before.means @ UP["-y"].T, atol=1e-6)
    axes = rotations_from_quats(before.quats), rotations_from_quats(after.quats)
    np.testing.assert_allclose(axes[1], UP["-y"] @ axes[0], atol=1e-5)


def test_colours_are_their_constant_part():
    asset = gaussians()
    harmonics = np.concatenate([asset.colors, np.ones((50, 3, 3), np.float32)], axis=1)
    np.testing.assert_array_equal(rotated(asset._replace(colors=harmonics), np.eye(3)).colors, asset.colors)
    rgb = (0.28209479 * asset.colors[:, 0] + 0.5).astype(np.float32)
    np.testing.assert_allclose(rotated(asset._replace(colors=rgb), np.eye(3)).colors, asset.colors, atol=1e-5)


def test_what_cannot_be_placed():
    with pytest.raises(InvalidRequest, match="'x' does not point up"):
        up_rotation("x")
    with pytest.raises(InvalidScene, match="single point"):
        Placement(np.zeros((5, 3), np.float32))
