"""The motion law that training differentiates, against the one that plays scenes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from edge4d.export.models.pixel_to_4d.gaussians import DynamicGaussians, SceneLift  # noqa: E402
from edge4d.export.models.pixel_to_4d.motion import move, multiply, quaternions, rotation_matrices  # noqa: E402
from edge4d.runtime.gaussians import Gaussians  # noqa: E402
from edge4d.runtime.motion import Poly, groups_from_ids  # noqa: E402
from edge4d.runtime.rotations import rotations_from_quats  # noqa: E402

BATCH, COUNT, GROUPS = 2, 40, 5


def scene(seed: int, *, moving: bool = True) -> DynamicGaussians:
    """Random Gaussians of the static and four moving groups; row 0 of the motions is zero."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    def motion(size: float) -> torch.Tensor:
        values = size * normal(BATCH, GROUPS, 3)
        values[:, 0] = 0
        return values

    groups = torch.randint(0, GROUPS, (BATCH, COUNT), generator=generator, dtype=torch.int32)
    return DynamicGaussians(
        means=5 * normal(BATCH, COUNT, 3),
        quats=torch.nn.functional.normalize(normal(BATCH, COUNT, 4), dim=-1),
        scales=normal(BATCH, COUNT, 3).exp(),
        opacities=normal(BATCH, COUNT).sigmoid(),
        colors=normal(BATCH, COUNT, 3).sigmoid(),
        groups=groups if moving else torch.zeros_like(groups),
        centres=motion(5.0),
        velocity=motion(3.0),
        acceleration=motion(1.0),
        angular_velocity=motion(1.0),
        angular_acceleration=motion(0.5),
    )


def played(gaussians: DynamicGaussians, row: int, t: float) -> Gaussians:
    """As `edge4d.runtime.systems.pixel_to_4d` makes its scene of what the stage gives."""
    arrays = {name: value[row].numpy() for name, value in SceneLift(torch.nn.Identity())(gaussians)._asdict().items()}
    poly = Poly(arrays["centres"], arrays["linear"], arrays["angular"])
    still = Gaussians(*(arrays[name] for name in Gaussians._fields))
    return poly.apply(still, groups_from_ids(arrays["groups"]), t)


@given(seed=st.integers(0, 2**31), first=st.floats(-2, 2), second=st.floats(-2, 2))
def test_it_is_the_law_that_scenes_are_played_by(seed, first, second):
    gaussians = scene(seed)
    means, quats = move(gaussians, torch.tensor([first, second]))
    for row, t in enumerate((first, second)):
        # The same float32 time for both, else they differ by t's rounding.
        expected = played(gaussians, row, float(np.float32(t)))
        # float32: arms and paths of up to 30 m, a dozen roundings of 6e-8 of that
        np.testing.assert_allclose(means[row].numpy(), expected.means, rtol=0, atol=3e-5)
        np.testing.assert_allclose(quats[row].numpy(), expected.quats, rtol=0, atol=2e-6)


def test_a_quarter_turn_about_the_centre_on_the_way():
    gaussians = scene(0)
    gaussians.groups[0, 0] = 3
    gaussians.means[0, 0] = torch.tensor([2.0, 1, 7])
    gaussians.quats[0, 0] = torch.tensor([1.0, 0, 0, 0])
    gaussians.centres[0, 3] = torch.tensor([2.0, 1, 5])
    gaussians.velocity[0, 3] = torch.tensor([1.0, 0, 0])
    gaussians.acceleration[0, 3] = torch.tensor([0.0, 1, 0])
    # ω t + ½ α t² = π/2 about y after 2 s, which turns z to x
    gaussians.angular_velocity[0, 3] = torch.tensor([0.0, math.pi / 8, 0])
    gaussians.angular_acceleration[0, 3] = torch.tensor([0.0, math.pi / 8, 0])
    means, quats = move(gaussians, torch.tensor([2.0, 2.0]))
    # float32, numbers below 10
    np.testing.assert_allclose(means[0, 0], [2 + 2 + 2, 1 + 2, 5], atol=3e-6)
    np.testing.assert_allclose(quats[0, 0], [math.sqrt(0.5), 0, math.sqrt(0.5), 0], atol=1e-6)


def test_the_static_group_and_the_start_are_left_as_they_are():
    gaussians = scene(1)
    means, quats = move(gaussians, torch.tensor([1.5, 0.7]))
    still = gaussians.groups == 0
    assert torch.equal(means[still], gaussians.means[still])
    assert torch.equal(quats[still], gaussians.quats[still])
    assert not torch.isclose(means, gaussians.means)[~still].all(-1).any()
    means, quats = move(gaussians, torch.zeros(2))
    # At t = 0 it goes to the centre and back.
    torch.testing.assert_close(means, gaussians.means, rtol=0, atol=4e-6)
    torch.testing.assert_close(quats, gaussians.quats, rtol=0, atol=1e-6)


def test_a_scene_without_motion():
    gaussians = scene(2, moving=False)
    means, quats = move(gaussians, torch.tensor([1.0, 2.0]))
    assert torch.equal(means, gaussians.means)
    assert torch.equal(quats, gaussians.quats)


@given(st.lists(st.floats(-4, 4), min_size=3, max_size=3))
def test_quaternions_and_matrices_are_the_same_turn(vector):
    rotvec = torch.tensor(vector, dtype=torch.float64)
    matrix, quat = rotation_matrices(rotvec), quaternions(rotvec)
    # float64; angles below 1e-6 are taken as 1e-6, which scales the turn by 1e-13
    np.testing.assert_allclose(matrix, torch.linalg.matrix_exp(cross(rotvec)), atol=1e-11)
    np.testing.assert_allclose(rotations_from_quats(quat.numpy()[None])[0], matrix, atol=1e-11)
    assert quat.norm().item() == pytest.approx(1, abs=1e-12)


def cross(v: torch.Tensor) -> torch.Tensor:
    zero = torch.zeros((), dtype=v.dtype)
    return torch.stack([zero, -v[2], v[1], v[2], zero, -v[0], -v[1], v[0], zero]).reshape(3, 3)


def test_the_product_of_quaternions_is_one_turn_after_the_other():
    p, q = torch.tensor([[0.3, -1.2, 0.4], [0.0, 2.0, 1.0]], dtype=torch.float64)
    both = rotations_from_quats(multiply(quaternions(p), quaternions(q)).numpy()[None])[0]
    np.testing.assert_allclose(both, rotation_matrices(p) @ rotation_matrices(q), atol=1e-12)


def test_gradients_are_right_and_finite_at_rest():
    names = ("centres", "velocity", "acceleration", "angular_velocity", "angular_acceleration")
    gaussians = scene(3)
    gaussians = gaussians._replace(
        **{n: v[:, :4].double() for n, v in gaussians._asdict().items() if n in ("means", "quats")},
        groups=torch.tensor([[0, 1, 2, 1], [3, 0, 1, 4]], dtype=torch.int32),
    )
    values = [getattr(gaussians, name).double().requires_grad_() for name in names]
    times = torch.tensor([0.9, 1.6], dtype=torch.float64)

    def moved(*values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return move(gaussians._replace(**dict(zip(names, values))), times)

    assert torch.autograd.gradcheck(moved, values)
    resting = [torch.zeros_like(value).requires_grad_() for value in values]
    sum(value.square().sum() for value in moved(*resting)).backward()
    assert all(value.grad.isfinite().all() for value in resting)
    assert (resting[3].grad != 0).any()
