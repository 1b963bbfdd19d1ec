"""A set of Gaussians as the rasterizer takes it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Gaussians(NamedTuple):
    """N activated Gaussians, float32, C-contiguous, without the batch axis that the operators have.

    Whoever gets a `Gaussians` must not write into its arrays: a scene shares between times what does not change.

    Attributes:
        means: [N, 3] metres.
        quats: [N, 4] wxyz.
        scales: [N, 3] metres along each axis, one standard deviation.
        opacities: [N] in [0, 1].
        colors: [N, 3] RGB, or [N, K, 3] coefficients of spherical harmonics with K = 1, 4, 9 or 16.
    """

    means: NDArray[np.float32]
    quats: NDArray[np.float32]
    scales: NDArray[np.float32]
    opacities: NDArray[np.float32]
    colors: NDArray[np.float32]
