"""Tubes: closed, the right way out, through their joints, and of the size that they are given."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edge4d.export.worlds.tubes import Lattice, rings_of, surface  # noqa: E402

LATTICES = [Lattice(2, 4, 3, (0.5, 0.5)), Lattice(3, 9, 8), Lattice(6, 34, 28, (0.3, 0.0))]
SIDE = torch.tensor([0.0, 1.0, 0.0])


def curve(joints: int) -> torch.Tensor:
    x = torch.linspace(-1, 1, joints)
    return torch.stack([x, 0.1 * x, 0.4 * x * x], -1)


def volume(points: torch.Tensor, faces: torch.Tensor) -> float:
    a, b, c = points.double()[faces].unbind(1)
    return float((a * torch.linalg.cross(b, c)).sum()) / 6


@pytest.mark.parametrize("lattice", LATTICES)
def test_surfaces_are_closed(lattice):
    """Each edge belongs to two triangles, which run along it in opposite directions; every point is used."""
    faces = lattice.faces
    assert set(faces.flatten().tolist()) == set(range(lattice.points))
    edges = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]).tolist()
    directed = {tuple(edge) for edge in edges}
    assert len(directed) == len(edges)
    assert directed == {(b, a) for a, b in directed}
    assert lattice.points - len(edges) // 2 + len(faces) == 2  # Euler: a sphere


@pytest.mark.parametrize("lattice", LATTICES)
def test_the_outside_is_outside(lattice):
    points = surface(lattice, curve(lattice.joints), torch.full((lattice.joints, 2), 0.2), SIDE)
    assert points.shape == (lattice.points, 3)
    assert volume(points, lattice.faces) > 0


def test_a_short_tube_with_round_ends_is_a_ball():
    lattice = Lattice(2, 41, 60, (0.5, 0.5))
    joints = torch.tensor([[-0.7, 0.0, 0.0], [0.7, 0.0, 0.0]])
    points = surface(lattice, joints, torch.full((2, 2), 0.7), SIDE)
    np.testing.assert_allclose(points.norm(dim=-1), 0.7, atol=1e-6)
    # Triangles between points of a ball lose some (π/40)² of it.
    assert volume(points, lattice.faces) == pytest.approx(4 / 3 * math.pi * 0.7**3, rel=0.01)


def test_the_curve_goes_through_its_joints():
    """A quarter of the rings of a lattice without rounded ends lie at joints."""
    lattice = Lattice(5, 17, 6, (0.0, 0.0))
    joints = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    centres = rings_of(lattice, joints, torch.ones(5, 2), torch.tensor([0.3, 1.0, 0.2]))[0]
    np.testing.assert_allclose(centres[::4], joints, atol=1e-6)


def test_the_direction_is_the_curves_derivative():
    lattice = Lattice(4, 301, 3, (0.0, 0.0))
    centres, ahead, *_ = rings_of(lattice, curve(4), torch.ones(4, 2), SIDE)
    steps = torch.nn.functional.normalize(centres[2:] - centres[:-2], dim=-1)
    np.testing.assert_allclose(ahead[1:-1], steps, atol=2e-3)  # at joints the second derivative jumps


def test_rings_have_their_half_axes():
    lattice = Lattice(3, 21, 4, (0.1, 0.1))
    joints = torch.tensor([[0.0, 0.0, -1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    points = surface(lattice, joints, torch.tensor([[0.3, 0.1]]).expand(3, 2), SIDE)
    middle = points[1 + 9 * 4 : 1 + 10 * 4]
    # The first axis lies along the side, the second along direction × side: z × y = −x.
    np.testing.assert_allclose(middle, [[0, 0.3, 0], [-0.1, 0, 0], [0, -0.3, 0], [0.1, 0, 0]], atol=1e-6)


def test_places_run_from_end_to_end():
    for lattice in LATTICES:
        places = lattice.places
        assert places.shape == (lattice.points,)
        assert (places.diff() >= 0).all()
        assert (places[0], places[-1]) == (0, 1)


def test_batches_are_tubes_one_by_one():
    lattice = LATTICES[1]
    joints = torch.randn(2, 5, 3, 3, generator=torch.Generator().manual_seed(1))
    axes = torch.rand(2, 1, 3, 2, generator=torch.Generator().manual_seed(2))
    together = surface(lattice, joints, axes, SIDE)
    assert together.shape == (2, 5, lattice.points, 3)
    torch.testing.assert_close(together[1, 3], surface(lattice, joints[1, 3], axes[1, 0], SIDE))
