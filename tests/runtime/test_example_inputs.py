"""Inputs that are made up: the same ones each time, of any size, and such as the pipelines take."""

from __future__ import annotations

import numpy as np
import pytest

from edge4d.runtime.clip import SHARE, read_clip
from edge4d.runtime.example_inputs import ball, picture, shell, sliding_octahedron, swinging_ball
from edge4d.runtime.mesh import sample_surface
from edge4d.runtime.object_views import object_camera
from edge4d.runtime.renderer import Renderer
from edge4d.runtime.scene import Scene4D


@pytest.mark.parametrize("size", [(1, 1), (64, 32), (70, 333)])
def test_the_picture_has_any_size(size):
    image, instances = picture(*size)
    assert image.shape == (size[1], size[0], 3)
    assert instances.shape == image.shape[:2]
    np.testing.assert_array_equal(image, picture(*size)[0])


@pytest.mark.parametrize("count", [1, 2, 1000])
def test_the_ball_is_round(count):
    gaussians = ball(count)
    np.testing.assert_allclose(np.linalg.norm(gaussians.means, axis=1), 0.3, rtol=1e-5)  # float32
    assert len(gaussians.means) == count
    assert np.abs(gaussians.means.mean(axis=0)).max() < 0.3 / np.sqrt(count) + 1e-6
    assert {len(part) for part in gaussians} == {count}


def test_the_video_shows_the_ball():
    video = swinging_ball(4, 64)
    scene = Scene4D(**ball(4000)._asdict(), groups=np.zeros(4000, np.int32), camera=object_camera(64))
    frame = Renderer(scene, dtype="float32", backend="onnxruntime").render(object_camera(64), 0.0)
    # A camera at a distance sees the ball smaller than the video has it: the colours of their middles are compared.
    middle = (slice(30, 34), slice(30, 34))
    drawn = frame.image[middle] / frame.alpha[middle][..., None]
    np.testing.assert_allclose(
        drawn, video[0][middle][..., :3] / 255, atol=0.03
    )  # of 0.4, which the colours range over
    left, right = (np.flatnonzero(video[n, ..., 3].any(axis=0)).mean() for n in (3, 1))
    assert left < np.flatnonzero(video[0, ..., 3].any(axis=0)).mean() < right


@pytest.mark.parametrize(("frames", "size"), [(1, 8), (2, 32), (24, 128)])
def test_the_video_is_one_that_is_read(frames, size):
    clip = read_clip(swinging_ball(frames, size), 32)
    assert len(clip.pictures) == frames
    assert (clip.mask > 127).any(axis=0).mean() == pytest.approx(SHARE, abs=2 / 32)  # a pixel at either side


def test_the_octahedron_faces_outward():
    vertices, faces = sliding_octahedron(3)
    assert vertices.shape == (3, 6, 3)
    corners = vertices[0][faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert ((normals * corners.mean(axis=1)).sum(axis=1) > 0).all()
    assert len({tuple(sorted(face)) for face in faces.tolist()}) == 8
    sample_surface(vertices[0], faces, 64)


@pytest.mark.parametrize(("count", "resolution"), [(1, 4), (100, 16), (5000, 8)])
def test_the_shell_is_voxels_in_order(count, resolution):
    coords = shell(count, resolution)
    assert coords.dtype == np.int32
    assert len(coords) == min(count, resolution**3)
    assert coords.tolist() == sorted(map(list, {tuple(voxel) for voxel in coords.tolist()}))
    assert coords.min() >= 0
    assert coords.max() < resolution
    # All are about as far from the middle, but for the thickness of the shell.
    far = np.linalg.norm(coords + 0.5 - resolution / 2, axis=1)
    assert count > resolution**2 or np.ptp(far) < 2
