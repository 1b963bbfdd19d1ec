"""The variation field of GVFDiffusion: what the 14 channels of a Gaussian mean to its networks, and those of a change.

The two orders differ. A network sees activated Gaussians in the order of QUERY; it answers changes in the order of
DELTA, which are added to raw values and biases before they are activated.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge4d.runtime.errors import InvalidScene
from edge4d.runtime.gaussians import Activation, Float32Array, Gaussians
from edge4d.runtime.motion import Delta

CHANNELS = 14

QUERY = {"means": (0, 3), "colors": (3, 6), "opacities": (6, 7), "scales": (7, 10), "quats": (10, 14)}
"""Channels of a Gaussian; colours are the constant coefficients of spherical harmonics, quaternions wxyz."""

DELTA = {"means": (0, 3), "scales": (3, 6), "quats": (6, 10), "colors": (10, 13), "opacities": (13, 14)}
"""Channels of a change."""

ACTIVATION = Activation(
    "softplus",
    "sigmoid",
    scale_bias=0.004 + math.log(-math.expm1(-0.004)),  # softplus of it is 0.004
    opacity_bias=math.log(0.1 / 0.9),
    scale_floor=0.0009,
    quat_bias=(1.0, 0.0, 0.0, 0.0),
)
"""How the raw values of its canonical Gaussians are activated."""


def query_from_gaussians(gaussians: Gaussians) -> Float32Array:
    """What the networks see of N activated Gaussians, [N,14].

    Raises:
        InvalidScene: the colours are RGB; changes are made for coefficients of spherical harmonics.
    """
    if gaussians.colors.ndim != 3:
        raise InvalidScene(
            "GVFDiffusion needs colours as spherical harmonics.",
            note=f"found colours of shape {list(gaussians.colors.shape)}; expected [N, K, 3].",
            hint="Give [N, 1, 3] of (RGB - 0.5) / 0.28209479.",
        )
    query = np.empty((len(gaussians.means), CHANNELS), np.float32)
    for name, (start, stop) in QUERY.items():
        values = gaussians.colors[:, 0] if name == "colors" else getattr(gaussians, name)
        query[:, start:stop] = values.reshape(len(query), -1)
    return query


def motion_from_changes(changes: NDArray[Any], times: NDArray[np.float64]) -> Delta:
    """A scene's motion from changes [T,N,14] of all its Gaussians at times [T], in seconds."""
    return Delta(times, changes, DELTA, domain="raw", rotation="add")
