"""Made-up inputs, the same ones every time: what bundles are measured on, where nobody gives a photograph or video."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge4d.runtime.gaussians import Float32Array, Gaussians
from edge4d.runtime.ply import C0

_INSTANCE = 1  # id of the thing in the picture
_BALL = 0.3  # radius of the ball: of the unit cube, and of the picture's side
_SWING = 0.05  # how far it swings to either side, of the picture's


def picture(width: int, height: int) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """A thing on the ground under the sky, [H,W,3], with detail of every size as photographs have it; and ids [H,W]."""
    rng = np.random.default_rng(0)
    image = np.empty((height, width, 3), np.float32)
    image[: height // 2] = (150, 180, 220)
    image[height // 2 :] = (110, 105, 100)
    instances = np.zeros((height, width), np.int32)
    thing = slice(2 * height // 5, 4 * height // 5), slice(width // 3, width // 2)
    image[thing], instances[thing] = (190, 60, 50), _INSTANCE
    for block in (1, 4, 16, 64):
        noise = rng.normal(0, 8, (-(-height // block), -(-width // block), 1))
        image += noise.repeat(block, 0).repeat(block, 1)[:height, :width]
    return image.clip(0, 255).astype(np.uint8), instances


def ball(count: int) -> Gaussians:
    """Activated Gaussians all over a ball in the unit cube; each side has colours of its own."""
    index = np.arange(count) + 0.5
    turn, z = index * math.pi * (3.0 - math.sqrt(5.0)), 1.0 - 2.0 * index / count  # a spiral of golden angles
    radius = np.sqrt(1.0 - z**2)
    normals = np.stack([radius * np.cos(turn), radius * np.sin(turn), z], axis=1)
    apart = _BALL * math.sqrt(4.0 * math.pi / count)
    return Gaussians(
        means=(_BALL * normals).astype(np.float32),
        quats=np.tile(np.array([1.0, 0.0, 0.0, 0.0], np.float32), (count, 1)),
        scales=np.full((count, 3), 0.5 * apart, np.float32),
        opacities=np.full(count, 0.95, np.float32),
        colors=((_painted(normals) - 0.5) / C0).astype(np.float32)[:, None],
    )


def swinging_ball(frames: int, size: int) -> NDArray[np.uint8]:
    """A video [T,S,S,4] of that ball from azimuth 0, on nothing: it swings to the right, to the left and back."""
    side = (np.arange(size) + 0.5) / size - 0.5
    video = np.zeros((frames, size, size, 4), np.uint8)
    for number, frame in enumerate(video):
        swing = _SWING * math.sin(2.0 * math.pi * number / frames)
        x, z = np.meshgrid((side - swing) / _BALL, -side / _BALL)
        inside = x**2 + z**2 < 1.0
        toward = np.sqrt(np.maximum(1.0 - x**2 - z**2, 0.0))
        frame[..., :3] = np.rint(255.0 * _painted(np.stack([x, -toward, z], axis=2)).clip(0.0, 1.0))
        frame[..., 3] = np.where(inside, 255, 0)
    return video


def _painted(normals: NDArray[np.float64]) -> NDArray[np.float64]:
    """RGB in 0..1 by the direction [...,3] that a surface faces."""
    return 0.5 + 0.4 * normals


def sliding_octahedron(frames: int) -> tuple[Float32Array, NDArray[np.int32]]:
    """Vertices [T,6,3] and triangles [8,3] of a mesh about as large as the ball, that goes towards +x."""
    corners = _BALL * np.concatenate([np.eye(3), -np.eye(3)])
    steps = np.linspace(0.0, _SWING, frames)[:, None, None] * np.array([1.0, 0.0, 0.0])
    outward = [(0, 1, 2), (1, 3, 2), (3, 4, 2), (4, 0, 2)]
    faces = np.array([*outward, *((b, a, 5) for a, b, _ in outward)], np.int32)
    return (corners + steps).astype(np.float32), faces


def shell(count: int, resolution: int) -> NDArray[np.int32]:
    """Voxels [V,3] on a sphere's surface in a grid, in order of x, then y, then z: so many, or all that there are."""
    cells = np.stack(np.unravel_index(np.arange(resolution**3), (resolution,) * 3), axis=1)
    outside: NDArray[Any] = np.abs(np.linalg.norm(cells + 0.5 - 0.5 * resolution, axis=1) - 0.4 * resolution)
    nearest = np.argsort(outside, kind="stable")[:count]
    return cells[np.sort(nearest)].astype(np.int32)
