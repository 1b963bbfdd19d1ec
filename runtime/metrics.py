"""How near one picture is to another. Values in 0..1, so the data range is 1 everywhere."""

from __future__ import annotations

from typing import Any, Optional

import numpy as np
from numpy.typing import NDArray

from edge4d.runtime.errors import InvalidTensor

SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
PSNR_OF_EQUALS = 100.0  # dB; identical pictures would give infinity, which no mean and no JSON survives


def psnr(image: NDArray[Any], target: NDArray[Any], mask: Optional[NDArray[np.bool_]] = None) -> float:
    """Peak signal-to-noise ratio in dB, 10·log10(1/MSE), capped at 100.

    Args:
        image, target: [H,W,C] in 0..1.
        mask: [H,W], the pixels that count; all of them without it.

    Raises:
        InvalidTensor: shapes differ, or no pixel counts.
    """
    _check_same_shape(image, target)
    squared = (image.astype(np.float64) - target) ** 2
    if mask is not None:
        squared = squared[mask]
    if squared.size == 0:
        raise InvalidTensor("PSNR of no pixels.", note="The mask has no pixel that counts.")
    error = float(squared.mean())
    return PSNR_OF_EQUALS if error == 0.0 else min(PSNR_OF_EQUALS, -10.0 * float(np.log10(error)))


def ssim(image: NDArray[Any], target: NDArray[Any]) -> float:
    """Structural similarity, the mean over channels and over all windows that lie wholly inside the picture.

    Wang, Bovik, Sheikh and Simoncelli, "Image Quality Assessment: From Error Visibility to Structural Similarity",
    2004: 11×11 Gaussian window with σ = 1.5, K1 = 0.01, K2 = 0.03, population variances.

    Args:
        image, target: [H,W,C] in 0..1, H and W at least 11.

    Raises:
        InvalidTensor: shapes differ or are smaller than the window.
    """
    _check_same_shape(image, target)
    if min(image.shape[:2]) < SSIM_WINDOW:
        raise InvalidTensor(
            "SSIM needs a larger picture.",
            note=f"{image.shape[1]}x{image.shape[0]}, the window is {SSIM_WINDOW}x{SSIM_WINDOW}.",
        )
    x, y = image.astype(np.float64), target.astype(np.float64)
    mean_x, mean_y = _blur(x), _blur(y)
    variance_x = _blur(x * x) - mean_x**2
    variance_y = _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    similarity = ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / (
        (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    )
    return float(similarity.mean())


def depth_abs_rel(depth: NDArray[Any], target: NDArray[Any], mask: Optional[NDArray[np.bool_]] = None) -> float:
    """Mean of |d − d*| / d*.

    Args:
        depth, target: [H,W] metres; `target` > 0 where it counts.
        mask: [H,W], the pixels that count; all of them without it.

    Raises:
        InvalidTensor: shapes differ, or no pixel counts.
    """
    _check_same_shape(depth, target)
    if mask is not None:
        depth, target = depth[mask], target[mask]
    if target.size == 0:
        raise InvalidTensor("Depth error of no pixels.", note="The mask has no pixel that counts.")
    true = target.astype(np.float64)
    return float((np.abs(depth - true) / true).mean())


def _blur(image: NDArray[np.float64]) -> NDArray[np.float64]:
    """The Gaussian window, along rows and then columns: [H,W,C] → [H−10,W−10,C]."""
    offsets = np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
    weights = np.exp(-0.5 * (offsets / SSIM_SIGMA) ** 2)
    weights /= weights.sum()
    height, width = image.shape[0] - SSIM_WINDOW + 1, image.shape[1] - SSIM_WINDOW + 1
    rows = sum(weight * image[i : i + height] for i, weight in enumerate(weights))
    blurred: NDArray[np.float64] = sum(weight * rows[:, i : i + width] for i, weight in enumerate(weights))
    return blurred


def _check_same_shape(a: NDArray[Any], b: NDArray[Any]) -> None:
    if a.shape != b.shape:
        raise InvalidTensor("Pictures of different shapes cannot be compared.", note=f"{a.shape} and {b.shape}.")
