"""Differentiable rasterization for training: gsplat on a GPU, plain PyTorch tile by tile elsewhere.

Both follow CONVENTIONS.md, as `edge4d.kernels.reference.gaussian_rasterize` does. The plain one is slow and meant for
small pictures; the backward pass recomputes what a tile needs, so that memory does not grow with the picture.
"""

from __future__ import annotations

import importlib
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from edge4d.runtime.errors import BackendUnavailable

ALPHA_MIN = 1.0 / 255.0  # what changes no 8-bit picture is skipped
ALPHA_MAX = 0.999
TRANSMITTANCE_MIN = 1e-4  # a pixel is done before the Gaussian that would leave less than this
SIGMAS_MAX = 3.33  # sqrt(2·ln 255) rounded up: no Gaussian reaches ALPHA_MIN beyond it
FAR = 1e10
TILE = 16


class Rendering(NamedTuple):
    """image [...,V,H,W,3]; alpha [...,V,H,W,1], 1 − transmittance; depth [...,V,H,W,1], weighted mean in metres."""

    image: Tensor
    alpha: Tensor
    depth: Tensor


class _Camera(NamedTuple):
    """viewmat [4,4] world → camera, K [3,3] pixels, size [2] = width, height in pixels."""

    viewmat: Tensor
    K: Tensor
    size: tuple[int, int]


class _Splats(NamedTuple):
    """What one camera sees, front to back: centres [S,2] pixels, conics [S,3] (inverse 2-D covariance: xx, xy, yy),
    extents [S,2] pixels, opacities [S], features [S,4] = RGB and depth."""

    centres: Tensor
    conics: Tensor
    extents: Tensor
    opacities: Tensor
    features: Tensor


def rasterize(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    colors: Tensor,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    *,
    near: float = 0.01,
    eps2d: float = 0.3,
    background: Tensor | None = None,
) -> Rendering:
    """Renders Gaussians with V cameras; any number of equal leading batch dimensions may come first in every tensor.

    Args:
        means: [...,N,3] metres.
        quats: [...,N,4] wxyz, of any length but 0.
        scales: [...,N,3] metres, above 0.
        opacities: [...,N] in 0..1.
        colors: [...,N,3] RGB.
        viewmats: [...,V,4,4] world → camera (x right, y down, z forward).
        Ks: [...,V,3,3] pixels.
        width, height: pixels.
        near: metres along z, below which a Gaussian is skipped.
        eps2d: added to the diagonal of the 2-D covariance, pixels².
        background: [3] RGB, black when None.

    Raises:
        BackendUnavailable: the tensors are on a GPU and gsplat is not installed.
    """
    if background is None:
        background = means.new_zeros(3)
    gaussians = (means, quats, scales, opacities.unsqueeze(-1), colors)
    if means.is_cuda:
        return _rasterize_gsplat(gaussians, viewmats, Ks, (width, height), near, eps2d, background)
    lead = viewmats.shape[:-2]
    worlds = torch.cat(gaussians, dim=-1).unsqueeze(-3).expand(*lead, *means.shape[-2:-1], 14)
    rendered = [
        _render(world, _Camera(viewmat, K, (width, height)), near, eps2d, background)
        for world, viewmat, K in zip(worlds.flatten(0, -3), viewmats.reshape(-1, 4, 4), Ks.reshape(-1, 3, 3))
    ]
    return Rendering(*(torch.unflatten(torch.stack(values), 0, lead) for values in zip(*rendered)))


def _rasterize_gsplat(
    gaussians: tuple[Tensor, ...],
    viewmats: Tensor,
    Ks: Tensor,
    size: tuple[int, int],
    near: float,
    eps2d: float,
    background: Tensor,
) -> Rendering:
    try:
        gsplat = importlib.import_module("gsplat")
    except ImportError as cause:
        raise BackendUnavailable(
            "Training on a GPU renders with gsplat, which cannot be imported.",
            note=str(cause),
            hint="pip install 'edge4d[train]', or train with --device cpu.",
        ) from cause
    means, quats, scales, opacities, colors = (value.float() for value in gaussians)
    colors_and_depth, alpha, _ = gsplat.rasterization(
        means,
        quats,
        scales,
        opacities.squeeze(-1),
        colors,
        viewmats.float(),
        Ks.float(),
        *size,
        near_plane=near,
        eps2d=eps2d,
        packed=False,
        backgrounds=background.float().expand(*viewmats.shape[:-2], 3),
        render_mode="RGB+ED",
    )
    return Rendering(colors_and_depth[..., :3], alpha, colors_and_depth[..., 3:])


def _render(gaussians: Tensor, camera: _Camera, near: float, eps2d: float, background: Tensor) -> Rendering:
    """One world [N,14] (mean 3, quaternion 4, scale 3, opacity 1, colour 3), one camera."""
    splats = _project(gaussians, camera, near, eps2d)
    width, height = camera.size
    rows = [
        torch.cat([_tile(splats, left, top, camera.size) for left in range(0, width, TILE)], dim=1)
        for top in range(0, height, TILE)
    ]
    color, depth_sum, alpha = torch.split(torch.cat(rows), [3, 1, 1], dim=-1)
    return Rendering(color + (1.0 - alpha) * background, alpha, depth_sum / alpha.clamp_min(1e-10))


def _project(gaussians: Tensor, camera: _Camera, near: float, eps2d: float) -> _Splats:
    """EWA splatting (Zwicker et al. 2001)."""
    gaussians = gaussians[_visible(gaussians, camera, near, eps2d)]
    opacities = gaussians[:, 10]
    xx, xy, yy = _covariance2d(gaussians, camera, eps2d)
    points = _camera_points(gaussians, camera)
    reach = (2.0 * (opacities / ALPHA_MIN).log()).clamp(0.0, SIGMAS_MAX**2).sqrt()
    return _Splats(
        centres=_focal(camera) * points[:, :2] / points[:, 2:] + camera.K[:2, 2],
        conics=torch.stack([yy, -xy, xx], dim=-1) / (xx * yy - xy * xy).unsqueeze(-1),
        extents=(reach.unsqueeze(-1) * torch.stack([xx, yy], dim=-1).sqrt()).ceil().detach(),
        opacities=opacities,
        features=torch.cat([gaussians[:, 11:], points[:, 2:]], dim=-1),
    )


@torch.no_grad()
def _visible(gaussians: Tensor, camera: _Camera, near: float, eps2d: float) -> Tensor:
    """Indices front to back, ties by index, of what can be drawn. Found before anything is differentiated, so that the
    undefined numbers of the others cannot reach a gradient."""
    z = _camera_points(gaussians, camera)[:, 2]
    seen = gaussians.isfinite().all(-1) & (gaussians[:, 3:7] != 0).any(-1) & (gaussians[:, 10] >= ALPHA_MIN)
    indices = (seen & (z >= near) & (z <= FAR)).nonzero().squeeze(-1)
    xx, xy, yy = _covariance2d(gaussians[indices], camera, eps2d)
    determinant = xx * yy - xy * xy
    indices = indices[(determinant > 0) & determinant.isfinite()]
    return indices[torch.argsort(z[indices].float(), stable=True)]


def _camera_points(gaussians: Tensor, camera: _Camera) -> Tensor:
    """[N,3] metres in the camera's frame."""
    return gaussians[:, :3] @ camera.viewmat[:3, :3].T + camera.viewmat[:3, 3]


def _focal(camera: _Camera) -> Tensor:
    return torch.stack([camera.K[0, 0], camera.K[1, 1]])


def _covariance2d(gaussians: Tensor, camera: _Camera, eps2d: float) -> tuple[Tensor, Tensor, Tensor]:
    """xx, xy, yy of the blurred 2-D covariance, [N] pixels² each. The Jacobian is taken at slopes x/z, y/z at most 0.3
    half-pictures beyond the border, as gsplat does: further out the linear approximation explodes."""
    focal, centre = _focal(camera), camera.K[:2, 2]
    points, size = _camera_points(gaussians, camera), gaussians.new_tensor(camera.size)
    z = points[:, 2:]
    margin = 0.3 * 0.5 * size / focal
    slopes = (points[:, :2] / z).clamp(-(margin + centre / focal), (size - centre) / focal + margin)
    jacobian = torch.cat([torch.diag_embed(focal / z), -(focal * slopes / z).unsqueeze(-1)], dim=-1)  # [N,2,3]
    axes = _rotation(gaussians[:, 3:7]) * gaussians[:, 7:10].unsqueeze(-2)
    half = jacobian @ camera.viewmat[:3, :3] @ axes
    covariance = half @ half.mT
    return covariance[:, 0, 0] + eps2d, covariance[:, 0, 1], covariance[:, 1, 1] + eps2d


def _rotation(quats: Tensor) -> Tensor:
    """[N,4] wxyz → [N,3,3]."""
    w, x, y, z = (quats / quats.norm(dim=-1, keepdim=True)).unbind(-1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def _tile(splats: _Splats, left: int, top: int, size: tuple[int, int]) -> Tensor:
    """[h,w,5]: the blended RGB, depth sum and alpha of one tile, cut at the picture's border."""
    right, bottom = min(left + TILE, size[0]), min(top + TILE, size[1])
    first, last = splats.centres - splats.extents, splats.centres + splats.extents
    touches = (last[:, 0] >= left) & (first[:, 0] <= right) & (last[:, 1] >= top) & (first[:, 1] <= bottom)
    chosen = touches.nonzero().squeeze(-1)
    y, x = torch.meshgrid(torch.arange(top, bottom), torch.arange(left, right), indexing="ij")
    pixels = torch.stack([x, y], dim=-1).to(splats.centres) + 0.5
    blended: Tensor = checkpoint(_blend, pixels, *(value[chosen] for value in splats), use_reentrant=False)
    return blended


def _blend(pixels: Tensor, centres: Tensor, conics: Tensor, _: Tensor, opacities: Tensor, features: Tensor) -> Tensor:
    """Front to back: pixels [h,w,2] and the five tensors of some `_Splats` → [h,w,5]."""
    dx, dy = (pixels.unsqueeze(-2) - centres).unbind(-1)  # [h,w,S]
    sigma = 0.5 * (conics[:, 0] * dx * dx + conics[:, 2] * dy * dy) + conics[:, 1] * dx * dy
    alpha = (opacities * (-sigma).exp()).clamp_max(ALPHA_MAX)
    alpha = torch.where((sigma >= 0) & (alpha >= ALPHA_MIN), alpha, 0.0)
    after = (1.0 - alpha).cumprod(-1)
    before = torch.cat([torch.ones_like(after[..., :1]), after[..., :-1]], dim=-1)
    # `after` never grows, so the first Gaussian that is left out is followed by none that is kept.
    weights = torch.where(after > TRANSMITTANCE_MIN, alpha * before, 0.0)
    return torch.cat([weights @ features, weights.sum(-1, keepdim=True)], dim=-1)
