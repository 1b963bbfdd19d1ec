"""SmoothQuant (arXiv 2211.10438): outliers of a few channels move from what a matrix product takes into its weights.

Channel j of the input is divided by s_j and row j of the weights multiplied by it, which leaves the product as it is;
s_j = max|x_j|^alpha / max|w_j|^(1 - alpha). The division is a node of its own in front of the product, so that nothing
else that reads the input changes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_SMALLEST = 1e-5  # of a factor: channels that are zero, in the input or in the weights, are left alone


def smoothing(largest: NDArray[np.float32], weight: NDArray[np.float32], alpha: float) -> NDArray[np.float32]:
    """The factors s [K].

    Args:
        largest: [K], the largest magnitude of each channel that the product takes.
        weight: [K,N].
        alpha: from 0, which moves nothing of the input's range, to 1, which moves all of it.
    """
    rows = np.abs(weight).max(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        factors = largest**alpha / rows ** (1 - alpha)
    usable = (largest > _SMALLEST) & (rows > _SMALLEST) & np.isfinite(factors) & (factors > _SMALLEST)
    return np.where(usable, factors, 1).astype(np.float32)


def smoothed_largest(largest: NDArray[np.float32], factors: NDArray[np.float32]) -> float:
    """The largest magnitude of the input after its division."""
    return float((largest / factors).max())
