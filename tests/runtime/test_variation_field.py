"""The two orders of 14 channels, with values that no other order would put in the same places."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edge4d.runtime.camera import Camera
from edge4d.runtime.errors import InvalidScene
from edge4d.runtime.gaussians import Gaussians
from edge4d.runtime.motion import WIDTHS
from edge4d.runtime.scene import Scene4D
from edge4d.runtime.variation_field import ACTIVATION, DELTA, QUERY, motion_from_changes, query_from_gaussians


def gaussians() -> Gaussians:
    """Two Gaussians whose 28 numbers all differ."""
    values = np.arange(1, 29, dtype=np.float32).reshape(2, 14) / 32
    return Gaussians(
        means=values[:, 0:3], quats=values[:, 3:7], scales=values[:, 7:10], opacities=values[:, 10],
        colors=values[:, None, 11:14],
    )  # fmt: skip


@pytest.mark.parametrize("order", [QUERY, DELTA])
def test_each_order_has_every_channel_once(order):
    assert sorted(channel for span in order.values() for channel in range(*span)) == list(range(14))
    assert {name: stop - start for name, (start, stop) in order.items()} == WIDTHS


def test_a_query_is_position_colour_opacity_scale_rotation():
    query = query_from_gaussians(gaussians())
    assert query.dtype == np.float32
    assert (query[1] * 32).tolist() == [15, 16, 17, 26, 27, 28, 25, 22, 23, 24, 18, 19, 20, 21]


def test_a_query_takes_the_constant_coefficient_of_colours():
    more = gaussians()._replace(colors=np.stack([gaussians().colors[:, 0], np.full((2, 3), 9, np.float32)], axis=1))
    np.testing.assert_array_equal(query_from_gaussians(more), query_from_gaussians(gaussians()))


def test_rgb_is_refused():
    with pytest.raises(InvalidScene, match="spherical harmonics"):
        query_from_gaussians(gaussians()._replace(colors=np.zeros((2, 3), np.float32)))


def test_a_change_is_position_scale_rotation_colour_opacity_before_the_activation():
    raw = gaussians()
    change = np.array([0.1, -0.2, 0.3, 1.4, -1.5, 1.6, 0.7, -0.8, 0.9, -0.11, 0.12, -0.13, 0.14, 2.5], np.float32)
    changes = np.stack([np.zeros((2, 14), np.float32), np.stack([change, 2 * change])])
    motion = motion_from_changes(changes, np.array([0.0, 1.0]))
    camera, groups = Camera.from_fov(8, 8, 60.0), np.zeros(2, np.int32)
    found = Scene4D(**raw._asdict(), groups=groups, camera=camera, activation=ACTIVATION, motion=(motion,)).evaluate(
        1.0
    )
    for i, d in enumerate((change.astype(np.float64), 2 * change.astype(np.float64))):
        np.testing.assert_allclose(found.means[i], raw.means[i] + d[0:3], rtol=1e-6)
        softplus = np.log1p(np.exp(raw.scales[i] - 5.519461 + d[3:6]))
        np.testing.assert_allclose(found.scales[i], np.sqrt(softplus**2 + 0.0009**2), rtol=1e-5)
        quat = raw.quats[i] + [1, 0, 0, 0] + d[6:10]
        np.testing.assert_allclose(found.quats[i], quat / np.linalg.norm(quat), rtol=1e-5)
        np.testing.assert_allclose(found.colors[i, 0], raw.colors[i, 0] + d[10:13], rtol=1e-5)
        opacity = 1 / (1 + math.exp(-(raw.opacities[i] - 2.197225 + d[13])))
        assert found.opacities[i] == pytest.approx(opacity, rel=1e-5)


def test_raw_zeros_are_small_faint_and_upright():
    zeros = Gaussians(*(np.zeros(shape, np.float32) for shape in ((1, 3), (1, 4), (1, 3), (1,), (1, 1, 3))))
    active = ACTIVATION.apply(zeros)
    np.testing.assert_allclose(active.scales, math.hypot(0.004, 0.0009), rtol=1e-5)
    np.testing.assert_allclose(active.opacities, 0.1, rtol=1e-5)
    np.testing.assert_array_equal(active.quats, [[1, 0, 0, 0]])
