"""Rotations about the three axes, for angles of any batch shape; right-handed, y down."""

from __future__ import annotations

import torch
from torch import Tensor


def about_x(angle: Tensor) -> Tensor:
    """Turns y towards z, [..., 3, 3]; `angle` in radians."""
    c, s, zero, one = _parts(angle)
    return _matrix((one, zero, zero), (zero, c, -s), (zero, s, c))


def about_y(angle: Tensor) -> Tensor:
    """Turns z towards x, [..., 3, 3]; y points down, so a positive angle turns to the right."""
    c, s, zero, one = _parts(angle)
    return _matrix((c, zero, s), (zero, one, zero), (-s, zero, c))


def about_z(angle: Tensor) -> Tensor:
    """Turns x towards y, [..., 3, 3]."""
    c, s, zero, one = _parts(angle)
    return _matrix((c, -s, zero), (s, c, zero), (zero, zero, one))


def _parts(angle: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return torch.cos(angle), torch.sin(angle), torch.zeros_like(angle), torch.ones_like(angle)


def _matrix(*rows: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    return torch.stack([torch.stack(row, -1) for row in rows], -2)
