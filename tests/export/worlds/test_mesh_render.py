"""The mesh renderer against rays through pixels, one triangle at a time."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edge4d.export.worlds.mesh_render import render  # noqa: E402
from edge4d.export.worlds.tubes import Lattice, surface  # noqa: E402
from edge4d.runtime.object_views import object_camera  # noqa: E402

SIZE = 24


def cast(vertices: np.ndarray, faces: np.ndarray, colors: np.ndarray, viewmat: np.ndarray, K: np.ndarray) -> np.ndarray:
    """[SIZE,SIZE,4]: the nearest triangle on the ray through each pixel's centre (Möller and Trumbore), both sides."""
    points = vertices @ viewmat[:3, :3].T + viewmat[:3, 3]
    image = np.zeros((SIZE, SIZE, 4))
    for row in range(SIZE):
        for column in range(SIZE):
            ray = np.linalg.inv(K) @ [column + 0.5, row + 0.5, 1.0]
            nearest = np.inf
            for face in faces:
                a, b, c = points[face]
                system = np.stack([b - a, c - a, -ray], 1)
                if abs(np.linalg.det(system)) < 1e-12:
                    continue
                u, v, z = np.linalg.solve(system, -a)
                if u >= 0 and v >= 0 and u + v <= 1 and 0.01 < z < nearest:
                    nearest = z
                    image[row, column] = [
                        *((1 - u - v) * colors[face[0]] + u * colors[face[1]] + v * colors[face[2]]),
                        1,
                    ]
    return image


def two_balls() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Interpenetrating, one nearer; [V,3], [F,3], [V,3]."""
    lattice = Lattice(2, 7, 8, (0.5, 0.5))
    joints = torch.tensor([[[-0.35, 0.1, -0.2], [0.15, 0.1, 0.3]], [[-0.1, -0.3, 0.0], [0.5, -0.2, -0.1]]])
    points = surface(lattice, joints, torch.full((2, 2, 2), 0.3), torch.tensor([0.0, 0.2, 1.0]))
    colors = torch.rand(2 * lattice.points, 3, generator=torch.Generator().manual_seed(0))
    return points.flatten(0, 1), torch.cat([lattice.faces, lattice.faces + lattice.points]), colors


def matrices(*angles: tuple[float, float]) -> tuple[torch.Tensor, torch.Tensor]:
    cameras = [object_camera(SIZE, *pair) for pair in angles]
    return torch.tensor(np.stack([c.viewmat for c in cameras])).float(), torch.tensor(cameras[0].K).float()


def test_pictures_are_what_rays_hit():
    vertices, faces, colors = two_balls()
    angles = ((0.0, 0.0), (130.0, 35.0))
    viewmats, K = matrices(*angles)
    drawn = render(vertices.expand(2, -1, -1), faces, colors.expand(2, -1, -1), viewmats, K, SIZE, samples=1)
    assert drawn.shape == (2, SIZE, SIZE, 4)
    for image, viewmat in zip(drawn, viewmats):
        expected = cast(vertices.double().numpy(), faces.numpy(), colors.double().numpy(), viewmat.numpy(), K.numpy())
        assert 30 < expected[..., 3].sum() < 300
        difference = np.abs(image.numpy() - expected).max(-1)
        # float32 pixels of a size of 24 are good to 1e-6; a ray through an edge may fall to either side.
        assert (difference > 1e-4).mean() < 0.005


def test_samples_are_the_mean_of_a_finer_picture():
    vertices, faces, colors = two_balls()
    viewmats, K = matrices((20.0, 10.0))
    batch = (vertices[None], faces, colors[None], viewmats)
    coarse = render(*batch, K, SIZE, samples=3)
    fine = render(*batch, torch.diag(torch.tensor([3.0, 3.0, 1.0])) @ K, 3 * SIZE, samples=1)
    expected = fine.reshape(1, SIZE, 3, SIZE, 3, 4).mean((2, 4))
    torch.testing.assert_close(coarse, expected)
    alpha = coarse[..., 3]
    assert ((alpha > 0) & (alpha < 1)).any()  # anti-aliased
    assert (coarse[..., :3].amax(-1) <= alpha + 1e-6).all()  # multiplied by alpha


def test_what_faces_away_is_not_drawn_and_what_is_behind_the_camera_neither():
    triangle = torch.tensor([[-0.5, 0.0, -0.5], [0.5, 0.0, -0.5], [0.0, 0.0, 0.5]])
    faces, colors = torch.tensor([[0, 1, 2]]), torch.ones(1, 3, 3)
    viewmats, K = matrices((0.0, 0.0), (180.0, 0.0))
    front, back = render(triangle.expand(2, -1, -1), faces, colors.expand(2, -1, -1), viewmats, K, SIZE)
    assert front[..., 3].sum() > 10
    assert (back == 0).all()
    behind = triangle - torch.tensor([0.0, 3.0, 0.0])
    assert (render(behind[None], faces, colors, viewmats[:1], K, SIZE) == 0).all()
    outside = triangle + torch.tensor([9.0, 0.0, 0.0])
    assert (render(outside[None], faces, colors, viewmats[:1], K, SIZE) == 0).all()


def test_many_pictures_are_drawn_as_one_by_one(monkeypatch):
    vertices, faces, colors = two_balls()
    viewmats, K = matrices((0.0, 0.0), (60.0, 0.0), (200.0, -20.0))
    batch = (vertices.expand(3, -1, -1), faces, colors.expand(3, -1, -1), viewmats, K, SIZE)
    together = render(*batch)
    monkeypatch.setattr("edge4d.export.worlds.mesh_render._TOGETHER", 1)
    assert torch.equal(together, render(*batch))
    assert torch.equal(together[1:2], render(vertices[None], faces, colors[None], viewmats[1:2], K, SIZE))
