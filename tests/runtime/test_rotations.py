"""Rotations in their three forms agree with each other and with cases worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge4d.runtime.rotations import (
    left_multiplications,
    multiply_quats,
    nearest_rotation,
    quat_from_rotation,
    quats_from_rotvecs,
    rotations_from_quats,
    rotvecs_from_quats,
)

# A handful of float64 roundings on numbers of size one.
ROUNDING = 1e-14

components = st.floats(-1.0, 1.0, allow_subnormal=True)
rotvecs = st.tuples(components, components, components).map(lambda v: 1.7 * np.array(v))  # below pi in length


def test_a_quarter_turn_about_z_in_all_forms():
    half = math.sqrt(0.5)
    quat = quats_from_rotvecs([0.0, 0.0, math.pi / 2])
    np.testing.assert_allclose(quat, [half, 0.0, 0.0, half], atol=ROUNDING)
    rotation = rotations_from_quats(3.0 * quat)
    np.testing.assert_allclose(rotation, [[0, -1, 0], [1, 0, 0], [0, 0, 1]], atol=ROUNDING)
    np.testing.assert_allclose(quat_from_rotation(rotation), quat, atol=ROUNDING)


def test_no_turn_is_exactly_the_identity():
    assert quats_from_rotvecs(np.zeros(3)).tolist() == [1.0, 0.0, 0.0, 0.0]
    assert rotvecs_from_quats([1.0, 0.0, 0.0, 0.0]).tolist() == [0.0, 0.0, 0.0]
    assert rotvecs_from_quats([-2.0, 0.0, 0.0, 0.0]).tolist() == [0.0, 0.0, 0.0]


@given(rotvecs)
def test_the_logarithm_undoes_the_exponential(rotvec):
    np.testing.assert_allclose(rotvecs_from_quats(quats_from_rotvecs(rotvec)), rotvec, atol=ROUNDING)


@given(rotvecs)
def test_matrices_and_quaternions_undo_each_other(rotvec):
    quat = quats_from_rotvecs(rotvec)
    found = quat_from_rotation(rotations_from_quats(quat))
    np.testing.assert_allclose(found, quat if quat[0] >= 0.0 else -quat, atol=ROUNDING)


@given(rotvecs, rotvecs)
def test_products_of_quaternions_are_products_of_matrices(a, b):
    a, b = quats_from_rotvecs(a), quats_from_rotvecs(b)
    product = rotations_from_quats(a) @ rotations_from_quats(b)
    np.testing.assert_allclose(rotations_from_quats(multiply_quats(a, b)), product, atol=ROUNDING)
    np.testing.assert_allclose(left_multiplications(a) @ b, multiply_quats(a, b), atol=ROUNDING)


@pytest.mark.parametrize("axis", np.eye(3).tolist())
def test_half_turns_keep_their_axis(axis):
    quat = quat_from_rotation(rotations_from_quats([0.0, *axis]))
    np.testing.assert_allclose(np.abs(quat), [0.0, *axis], atol=ROUNDING)


@given(rotvecs)
def test_the_nearest_rotation_to_a_rotation_is_itself(rotvec):
    rotation = rotations_from_quats(quats_from_rotvecs(rotvec))
    np.testing.assert_allclose(nearest_rotation(1.001 * rotation), rotation, atol=ROUNDING)
    assert np.linalg.det(nearest_rotation(np.diag([1.0, 1.0, -1.0]))) == pytest.approx(1.0)
