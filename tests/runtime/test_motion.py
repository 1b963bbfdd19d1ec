"""Motion terms against the formulas, worked out per Gaussian in float64 and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge4d.runtime.errors import InvalidScene
from edge4d.runtime.gaussians import Gaussians, check_array
from edge4d.runtime.motion import MAX_GROUPS, MAX_TERMS, MOTIONS, Delta, Poly, groups_from_ids
from edge4d.runtime.rotations import multiply_quats, quats_from_rotvecs, rotations_from_quats

# float32 on coordinates of about ten metres: a subtraction, a product of three terms and a sum.
FLOAT32 = 8 * 10 * np.finfo(np.float32).eps


def f32(values):
    return np.asarray(values, np.float32)


def gaussians(N=5, seed=0, sh=0):
    random = np.random.default_rng(seed)
    quats = random.normal(size=(N, 4))
    colors = random.random((N, 3)) if not sh else random.normal(size=(N, sh, 3))
    return Gaussians(
        f32(random.normal(size=(N, 3)) * 3.0),
        f32(quats / np.linalg.norm(quats, axis=-1, keepdims=True)),
        f32(random.random((N, 3)) + 0.1),
        f32(random.random(N)),
        f32(colors),
    )


def poly(M=4, P=2, Q=2, seed=1):
    random = np.random.default_rng(seed)
    return Poly(*(f32(random.normal(size=shape)) for shape in ((M, 3), (M, P, 3), (M, Q, 3))))


def test_groups_leave_out_the_static_ones_and_keep_members_together():
    groups = groups_from_ids(np.array([2, 0, 1, 2, 0, 5], np.int32))
    assert groups.order.tolist() == [2, 0, 3, 5]
    assert groups.members == ((1, 0, 1), (2, 1, 3), (5, 3, 4))
    assert groups_from_ids(np.zeros(3, np.int32)).members == ()
    assert groups_from_ids(np.zeros(0, np.int32)).members == ()


def test_a_quarter_turn_with_constant_acceleration_by_hand():
    # After one second: pi/2 about z around (1, 0, 0), v = (0, 0, 1) and a = (0, 2, 0), so 1 m each.
    motion = Poly(
        f32([[0, 0, 0], [1, 0, 0]]),
        f32([np.zeros((2, 3)), [[0, 0, 1], [0, 1, 0]]]),
        f32([np.zeros((1, 3)), [[0, 0, math.pi / 2]]]),
    )
    before = gaussians(1)._replace(means=f32([[3, 0, 0]]), quats=f32([[1, 0, 0, 0]]))
    after = motion.apply(before, groups_from_ids(np.array([1], np.int32)), 1.0)
    # (3,0,0) is 2 m from the centre in x; turned it is 2 m in y.
    np.testing.assert_allclose(after.means, [[1.0, 3.0, 1.0]], atol=1e-6)
    np.testing.assert_allclose(after.quats, [[math.sqrt(0.5), 0, 0, math.sqrt(0.5)]], atol=1e-7)


@settings(deadline=None, max_examples=40)
@given(st.floats(-2.0, 2.0), st.integers(0, 3), st.integers(0, 3), st.lists(st.integers(0, 3), min_size=1, max_size=8))
def test_poly_is_its_formula_for_every_gaussian(t, P, Q, ids):
    motion, before = poly(P=P, Q=Q), gaussians(len(ids))
    after = motion.apply(before, groups_from_ids(np.array(ids, np.int32)), t)
    for i, m in enumerate(ids):
        if m == 0:
            assert (after.means[i] == before.means[i]).all()
            assert (after.quats[i] == before.quats[i]).all()
            continue
        theta = sum((motion.angular[m, k].astype(float) * t ** (k + 1) for k in range(Q)), np.zeros(3))
        shift = sum((motion.linear[m, k].astype(float) * t ** (k + 1) for k in range(P)), np.zeros(3))
        turn = quats_from_rotvecs(theta)
        mean = motion.centres[m] + rotations_from_quats(turn) @ (before.means[i] - motion.centres[m]) + shift
        np.testing.assert_allclose(after.means[i], mean, atol=FLOAT32)
        np.testing.assert_allclose(after.quats[i], multiply_quats(turn, before.quats[i]), atol=FLOAT32)
    assert after.means.dtype == after.quats.dtype == np.float32
    assert after.scales is before.scales
    assert after.opacities is before.opacities
    assert after.colors is before.colors


def test_at_time_zero_nothing_moves_and_nothing_is_copied():
    before = gaussians()
    assert poly().apply(before, groups_from_ids(np.ones(5, np.int32)), 0.0) is before


def test_moving_does_not_change_the_canonical_set():
    before = gaussians()
    kept = before.means.copy(), before.quats.copy()
    poly().apply(before, groups_from_ids(np.ones(5, np.int32)), 1.0)
    assert (before.means == kept[0]).all()
    assert (before.quats == kept[1]).all()


def test_rigid_motion_keeps_distances_within_a_group():
    before = gaussians(6)
    after = poly().apply(before, groups_from_ids(np.full(6, 2, np.int32)), 1.3)
    distances = [np.linalg.norm(x[:, None] - x[None], axis=-1) for x in (before.means, after.means)]
    np.testing.assert_allclose(distances[1], distances[0], atol=FLOAT32)


@pytest.mark.parametrize(
    "arrays",
    [
        ([[0, 0, 0]], np.zeros((2, 2, 3)), np.zeros((1, 2, 3))),
        ([[0, 0]], np.zeros((1, 2, 3)), np.zeros((1, 2, 3))),
        (np.zeros((0, 3)), np.zeros((0, 2, 3)), np.zeros((0, 2, 3))),
        (np.zeros((MAX_GROUPS + 1, 3)), np.zeros((MAX_GROUPS + 1, 0, 3)), np.zeros((MAX_GROUPS + 1, 0, 3))),
        (np.zeros((1, 3)), np.zeros((1, MAX_TERMS + 1, 3)), np.zeros((1, 2, 3))),
        (np.zeros((1, 3)), np.full((1, 2, 3), np.nan), np.zeros((1, 2, 3))),
        (np.zeros((1, 3)), np.zeros((1, 2, 3)), np.full((1, 2, 3), np.inf)),
    ],
)
def test_polynomials_that_do_not_fit_are_refused(arrays):
    with pytest.raises(InvalidScene):
        Poly(*map(f32, arrays))


def test_polynomials_are_float32():
    with pytest.raises(InvalidScene, match="float64"):
        Poly(np.zeros((1, 3)), f32(np.zeros((1, 2, 3))), f32(np.zeros((1, 2, 3))))
    with pytest.raises(InvalidScene):
        Poly([[0.0, 0.0, 0.0]], f32(np.zeros((1, 2, 3))), f32(np.zeros((1, 2, 3))))


def test_a_group_beyond_the_polynomial_is_refused():
    poly(M=3).check(count=10, groups=3)
    with pytest.raises(InvalidScene, match="group"):
        poly(M=3).check(count=10, groups=4)


TIMES = np.array([0.0, 1.0, 3.0])


def ramp(channels, n, dtype=np.float32):
    """[3, n, C]: at t = 0, 1, 3 the differences are 0, 1, 3 in every channel."""
    return np.broadcast_to(TIMES[:, None, None], (3, n, channels)).astype(dtype)


NO_GROUPS = groups_from_ids(np.zeros(5, np.int32))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(("t", "expected"), [(-1.0, 0.0), (0.0, 0.0), (0.25, 0.25), (1.0, 1.0), (2.0, 2.0), (9.0, 3.0)])
def test_linear_differences_follow_a_ramp_and_hold_at_its_ends(dtype, t, expected):
    before = gaussians()
    after = Delta(TIMES, ramp(3, 5, dtype), {"means": (0, 3)}).apply(before, NO_GROUPS, t)
    np.testing.assert_array_equal(after.means, before.means + f32(expected))
    assert after.quats is before.quats


@pytest.mark.parametrize(("t", "expected"), [(-1.0, 0.0), (0.99, 0.0), (1.0, 1.0), (2.9, 1.0), (3.0, 3.0)])
def test_held_differences_are_the_latest_sample(t, expected):
    before = gaussians()
    after = Delta(TIMES, ramp(3, 5), {"means": (0, 3)}, interpolation="hold").apply(before, NO_GROUPS, t)
    np.testing.assert_array_equal(after.means, before.means + f32(expected))


def test_only_the_named_gaussians_and_channels_change():
    before, ids = gaussians(), np.array([4, 1], np.int32)
    data = np.zeros((3, 2, 14), np.float32)
    data[:, 0, 10:13], data[:, 1, 13] = 1.0, -5.0
    layout = {"means": (0, 3), "scales": (3, 6), "quats": (6, 10), "colors": (10, 13), "opacities": (13, 14)}
    after = Delta(TIMES, data, layout, ids).apply(before, NO_GROUPS, 1.0)
    expected = before.colors.copy()
    expected[4] += 1.0
    np.testing.assert_array_equal(after.colors, expected)
    assert after.opacities[1] == 0.0  # clipped
    np.testing.assert_array_equal(after.opacities[[0, 2, 3, 4]], before.opacities[[0, 2, 3, 4]])
    np.testing.assert_array_equal(after.means, before.means)


def test_colours_of_harmonics_change_in_their_constant_part():
    before = gaussians(sh=4)
    after = Delta(TIMES, ramp(3, 5), {"colors": (0, 3)}).apply(before, NO_GROUPS, 1.0)
    np.testing.assert_array_equal(after.colors[:, 0], before.colors[:, 0] + 1.0)
    np.testing.assert_array_equal(after.colors[:, 1:], before.colors[:, 1:])


def test_activated_scales_do_not_go_negative_and_raw_ones_may():
    before = gaussians()
    for domain, lowest in (("activated", 0.0), ("raw", before.scales.min() - 3.0)):
        after = Delta(TIMES, -ramp(3, 5), {"scales": (0, 3)}, domain=domain).apply(before, NO_GROUPS, 3.0)
        assert after.scales.min() == f32(lowest)


@pytest.mark.parametrize("rotation", ["mul_left", "mul_right"])
def test_rotations_multiply_from_their_side(rotation):
    before = gaussians()
    turn = quats_from_rotvecs([0.1, 0.2, 0.3])
    data = np.broadcast_to(f32(turn), (3, 5, 4)).copy()
    after = Delta(TIMES, data, {"quats": (0, 4)}, rotation=rotation).apply(before, NO_GROUPS, 0.5)
    for q, found in zip(before.quats, after.quats):
        expected = multiply_quats(turn, q) if rotation == "mul_left" else multiply_quats(q, turn)
        np.testing.assert_allclose(found, expected, atol=1e-6)  # float32 products


def test_multiplied_rotations_interpolate_along_the_shorter_way():
    before = gaussians()._replace(quats=np.tile(f32([1, 0, 0, 0]), (5, 1)))
    ends = quats_from_rotvecs([[0.0, 0.0, 0.0], [0.0, 0.0, 0.2]])
    data = f32(np.stack([np.tile(ends[0], (5, 1)), np.tile(-ends[1], (5, 1))]))
    motion = Delta(np.array([0.0, 1.0]), data, {"quats": (0, 4)}, rotation="mul_left")
    after = motion.apply(before, NO_GROUPS, 0.5)
    np.testing.assert_allclose(after.quats, np.tile(quats_from_rotvecs([0, 0, 0.1]), (5, 1)), atol=1e-6)
    assert (motion.data == data).all()


@pytest.mark.parametrize(
    "changes",
    [
        {"times": np.zeros(0)},
        {"times": np.array([0.0, 0.0, 1.0])},
        {"times": np.array([0.0, np.nan, 1.0])},
        {"times": f32([0, 1, 2])},
        {"data": ramp(3, 5).astype(np.float64)},
        {"data": ramp(3, 5)[:2]},
        {"data": ramp(3, 5)[0]},
        {"layout": {}},
        {"layout": {"means": (0, 2)}},
        {"layout": {"means": (1, 4)}},
        {"layout": {"means": (0, 3), "colors": (0, 3)}},
        {"layout": {"velocities": (0, 3)}},
        {"layout": {"means": "abc"}},
        {"layout": {"means": (False, 3)}},
        {"layout": [["means", 0, 3]]},
        {"domain": "baked"},
        {"domain": ["raw"]},
        {"rotation": "slerp"},
        {"interpolation": "cubic"},
        {"domain": "raw", "rotation": "mul_left"},
    ],
)
def test_differences_that_do_not_fit_are_refused(changes):
    fields = {"times": TIMES, "data": ramp(3, 5), "layout": {"means": (0, 3)}, **changes}
    with pytest.raises(InvalidScene):
        Delta(**fields)


@pytest.mark.parametrize("ids", [[0, 5], [-1, 0], [1, 1]])
def test_ids_outside_the_scene_or_repeated_are_refused(ids):
    motion = Delta(TIMES, ramp(3, 2), {"means": (0, 3)}, np.array(ids, np.int32))
    with pytest.raises(InvalidScene, match="ids"):
        motion.check(count=5, groups=1)


def test_differences_of_all_need_all():
    motion = Delta(TIMES, ramp(3, 5), {"means": (0, 3)})
    motion.check(count=5, groups=1)
    with pytest.raises(InvalidScene):
        motion.check(count=6, groups=1)


def test_terms_know_their_arrays_and_settings():
    motion = Delta(TIMES, ramp(3, 5), {"means": (0, 3)}, domain="raw")
    assert set(motion.tensors()) == {"times", "data"}
    assert motion.settings() == {
        "layout": {"means": (0, 3)},
        "domain": "raw",
        "rotation": "add",
        "interpolation": "linear",
    }
    assert (set(poly().tensors()), poly().settings()) == ({"centres", "linear", "angular"}, {})
    assert {"poly": Poly, "delta": Delta} == MOTIONS


def test_errors_about_arrays_give_both_shapes():
    with pytest.raises(InvalidScene, match=r"float32 \[2, 2\]; expected float32 \[any, 3\]"):
        check_array("means", f32(np.zeros((2, 2))), ("float32",), (None, 3))
