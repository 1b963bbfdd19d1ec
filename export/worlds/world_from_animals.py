"""Writes animals as folders that `edge4d.runtime.object_world_files` reads: videos, what other cameras see, meshes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from edge4d.export.worlds.animals import Animals, evaluation_animals
from edge4d.export.worlds.mesh_render import render
from edge4d.export.worlds.surface_gaussians import OPACITY, SurfacePoints, gaussians_at, positions, sample_points
from edge4d.export.worlds.world_request import WorldRequest
from edge4d.kernels.cpu import farthest_point_sample
from edge4d.runtime.errors import InvalidRequest
from edge4d.runtime.gaussians import Gaussians
from edge4d.runtime.object_views import object_camera
from edge4d.runtime.object_world_files import KIND
from edge4d.runtime.ply import C0, write_ply

SIZE = (256, 256)
CAMERAS = ((0, 0), (45, 0), (135, 20), (225, 0), (315, 20))
"""Azimuth and elevation in degrees: of the video, and of the views that are not shown to a network."""
GAUSSIANS = 8192
_CANDIDATES = 4  # points on the surface for each Gaussian that is chosen
_SAMPLES = 3  # along each side of a pixel


def check(request: WorldRequest) -> None:
    """Raises InvalidRequest for a size that is not square."""
    width, height = request.size
    if width != height:
        raise InvalidRequest(
            "Animals are seen in square pictures.", note=f"{width}x{height}.", hint=f"Use {width}x{width}."
        )


def write_sequences(folder: Path, request: WorldRequest, progress: Callable[[int, int], None]) -> dict[str, Any]:
    """Writes the folders of all sequences, one animal each.

    Returns:
        What world.json says besides.
    """
    names = []
    for index in range(request.count):
        animal = evaluation_animals(request.seed, index)
        names.append(f"{index:04d}-{animal.plan}")
        _write_sequence(animal, request, folder / names[-1])
        progress(index + 1, request.count)
    return {"kind": KIND, "views": len(CAMERAS) - 1, "sequences": names}


def _write_sequence(animal: Animals, request: WorldRequest, folder: Path) -> None:
    for name in ("video", "views"):
        (folder / name).mkdir(parents=True)
    times = torch.arange(request.frames, dtype=torch.float64) / request.fps
    vertices, faces = animal.vertices(times[None].float())[0], animal.faces
    cameras = [object_camera(request.size[0], *angles) for angles in CAMERAS]
    for number, mesh in enumerate(vertices):
        pictures = _pictures(mesh, faces, animal.colors[0], np.stack([c.viewmat for c in cameras]), cameras[0].K)
        Image.fromarray(pictures[0]).save(folder / "video" / f"{number:04d}.png")
        for view, picture in enumerate(pictures[1:]):
            Image.fromarray(picture).save(folder / "views" / f"{number:04d}-{view}.png")
    np.save(folder / "cameras.npy", np.stack([camera.c2w for camera in cameras]))
    np.save(folder / "K.npy", cameras[0].K)
    np.save(folder / "times.npy", times.numpy())
    np.save(folder / "vertices.npy", vertices.numpy())
    np.save(folder / "faces.npy", faces.to(torch.int32).numpy())
    np.save(folder / "colors.npy", animal.colors[0].numpy())
    write_ply(folder / "canonical.ply", _canonical(vertices[:1], faces, animal.colors))


def _pictures(
    mesh: Tensor, faces: Tensor, colors: Tensor, viewmats: NDArray[np.float64], K: NDArray[np.float64]
) -> NDArray[np.uint8]:
    """[C,H,W,4] 8-bit RGBA of a mesh [V,3] as C cameras see it; the colours are not multiplied by alpha."""
    size, count = round(2 * K[0, 2]), len(viewmats)
    poses, intrinsics = (torch.tensor(matrices, dtype=torch.float32) for matrices in (viewmats, K))
    drawn = render(
        mesh.expand(count, -1, -1), faces, colors.expand(count, -1, -1), poses, intrinsics, size, samples=_SAMPLES
    )
    rgb, alpha = torch.split(drawn, [3, 1], -1)
    straight = torch.cat([rgb / alpha.clamp_min(1e-6), alpha], -1)
    pixels: NDArray[np.uint8] = (straight.clamp(0, 1) * 255 + 0.5).to(torch.uint8).numpy()
    return pixels


def _canonical(vertices: Tensor, faces: Tensor, colors: Tensor) -> Gaussians:
    """Gaussians on a mesh [1,V,3]: of many points those that are far from each other, so that none leave a gap."""
    uniform = np.random.Generator(np.random.Philox(0)).random((1, _CANDIDATES * GAUSSIANS, 3), np.float32)
    candidates = sample_points(vertices, faces, torch.from_numpy(uniform))
    means = positions(candidates, faces, vertices[:, None])[0, 0].numpy()
    chosen = torch.from_numpy(farthest_point_sample(means, count=GAUSSIANS)).long()
    points = SurfacePoints(candidates.triangles[:, chosen], candidates.weights[:, chosen])
    found = gaussians_at(points, faces, vertices[:, None], colors)
    harmonics = ((found.colors[0, :, None] - 0.5) / C0).numpy()
    opacities = np.full(GAUSSIANS, OPACITY, np.float32)
    return Gaussians(
        found.means[0, 0].numpy(), found.quats[0, 0].numpy(), found.scales[0, 0].numpy(), opacities, harmonics
    )
