"""Gaussians on surfaces: spread evenly, and carried along by their triangles."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edge4d.export.worlds import surface_gaussians as surface  # noqa: E402
from edge4d.export.worlds.rotations import about_x, about_z  # noqa: E402
from edge4d.export.worlds.tubes import Lattice  # noqa: E402
from edge4d.export.worlds.tubes import surface as tube  # noqa: E402
from edge4d.runtime.rotations import rotations_from_quats  # noqa: E402

LATTICE = Lattice(2, 21, 30, (0.5, 0.5))
FACES = LATTICE.faces
COUNT = 500


def ball() -> torch.Tensor:
    """[1,V,3] of radius 0.4."""
    joints = torch.tensor([[0.0, 0.0, -0.4], [0.0, 0.0, 0.4]])
    return tube(LATTICE, joints, torch.full((2, 2), 0.4), torch.tensor([0.0, 1.0, 0.0]))[None]


def points(vertices: torch.Tensor) -> surface.SurfacePoints:
    return surface.sample_points(vertices, FACES, torch.rand(1, COUNT, 3, generator=torch.Generator().manual_seed(0)))


def at(*meshes: torch.Tensor) -> surface.SurfaceGaussians:
    colors = torch.rand(1, LATTICE.points, 3, generator=torch.Generator().manual_seed(1))
    return surface.gaussians_at(points(meshes[0]), FACES, torch.stack(meshes, 1), colors)


def test_points_are_spread_evenly():
    found = points(ball())
    assert found.triangles.shape == (1, COUNT)
    np.testing.assert_allclose(found.weights.sum(-1), 1, atol=1e-6)
    assert (found.weights >= 0).all()
    places = surface.positions(found, FACES, ball()[:, None])[0, 0]
    # Of a ball's surface, equal heights have equal parts (Archimedes).
    heights = np.histogram(places[:, 2], bins=5, range=(-0.4, 0.4))[0]
    np.testing.assert_allclose(heights, COUNT / 5, atol=0.12 * COUNT / 5)


def test_gaussians_lie_flat_on_the_surface():
    found = at(ball())
    rotations = rotations_from_quats(found.quats[0, 0].double().numpy())
    normals = torch.nn.functional.normalize(found.means[0, 0], dim=-1).numpy()
    # Triangles of 12° by 9° lean against the ball by half of that at most.
    assert (np.einsum("nc,nc->n", rotations[:, :, 2], normals) > np.cos(np.radians(8))).all()
    scales = found.scales[0, 0]
    np.testing.assert_allclose(scales[:, 2] / scales[:, 0], surface.FLATNESS, rtol=1e-5)
    # 4π·0.4² over 500 Gaussians, less some of it between the points of a mesh.
    np.testing.assert_allclose(scales[:, 0], surface.WIDTH * np.sqrt(4 * np.pi * 0.16 / COUNT), rtol=0.02)


def test_a_rigid_motion_turns_all_alike():
    turn = about_z(torch.tensor(0.7)) @ about_x(torch.tensor(2.9))
    moved = ball() @ turn.T + torch.tensor([0.1, -0.2, 0.3])
    found = at(ball(), moved)
    np.testing.assert_allclose(
        found.means[0, 1], found.means[0, 0] @ turn.T + torch.tensor([0.1, -0.2, 0.3]), atol=1e-5
    )
    np.testing.assert_allclose(found.scales[0, 1], found.scales[0, 0], rtol=1e-3)
    first, second = (rotations_from_quats(q.double().numpy()) for q in found.quats[0])
    # Edges of 0.01 in float32: their directions are good to 1e-5.
    np.testing.assert_allclose(second, turn.double().numpy() @ first, atol=2e-4)
    assert ((found.quats[0, 1] * found.quats[0, 0]).sum(-1) >= 0).all()  # the nearer of two signs


def test_growing_triangles_have_larger_gaussians():
    found = at(ball(), 1.5 * ball(), 100 * ball())
    np.testing.assert_allclose(found.scales[0, 1] / found.scales[0, 0], 1.5, rtol=1e-4)
    np.testing.assert_allclose(found.scales[0, 2] / found.scales[0, 0], 2.0, rtol=1e-4)  # no further


def test_colours_are_those_between_the_corners():
    vertices = ball()
    found = surface.gaussians_at(points(vertices), FACES, vertices[:, None], vertices + 0.5)
    np.testing.assert_allclose(found.colors, found.means[:, 0] + 0.5, atol=1e-6)


def test_rotations_of_every_kind_become_quaternions():
    angles = torch.tensor([0.0, 0.5, 1.6, 3.1, np.pi, -2.0])
    matrices = (about_z(angles)[:, None] @ about_x(angles)[None]).flatten(0, 1)
    quats = surface._quat_from_rotation(matrices)
    np.testing.assert_allclose(rotations_from_quats(quats.double().numpy()), matrices.double(), atol=1e-6)


def test_normals_of_every_direction_become_quaternions():
    normals = torch.nn.functional.normalize(torch.randn(50, 3, generator=torch.Generator().manual_seed(3)), dim=-1)
    normals = torch.cat([normals, torch.tensor([[0.0, 0, 1], [0, 0, -1], [1e-4, 0, -1]])])
    quats = surface._quat_from_normal(normals)
    np.testing.assert_allclose(quats.norm(dim=-1), 1, atol=1e-6)
    found = rotations_from_quats(quats.double().numpy())[:, :, 2]
    np.testing.assert_allclose(found, normals.double(), atol=3e-4)  # near −z a direction has half of float32's digits
