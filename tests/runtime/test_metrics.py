from __future__ import annotations

import numpy as np
import pytest

from edge4d.runtime.errors import InvalidTensor
from edge4d.runtime.metrics import PSNR_OF_EQUALS, depth_abs_rel, psnr, ssim

rng = np.random.default_rng(0)


def test_psnr_by_hand():
    # A difference of 0.1 everywhere: MSE 0.01, 20 dB. On a quarter of the pixels: 10·log10(4) = 6.02 dB more.
    target = np.full((8, 8, 3), 0.5)
    assert psnr(target + 0.1, target) == pytest.approx(20.0)
    mask = np.zeros((8, 8), bool)
    mask[:4, :4] = True
    image = target + 0.1 * mask[:, :, None]
    assert psnr(image, target) == pytest.approx(20 + 10 * np.log10(4))
    assert psnr(image, target, mask) == pytest.approx(20.0)
    assert psnr(target, target) == PSNR_OF_EQUALS


def test_ssim_of_flat_pictures_by_hand():
    # Without structure only the means count: (2ab + C1) / (a² + b² + C1), C1 = 1e-4.
    a, b = np.full((16, 16, 3), 0.2), np.full((16, 16, 3), 0.6)
    assert ssim(a, b) == pytest.approx((2 * 0.12 + 1e-4) / (0.04 + 0.36 + 1e-4))
    assert ssim(a, a) == pytest.approx(1.0)


def test_ssim_is_the_mean_over_windows():
    """Against the formula written out for every window."""
    x, y = rng.random((14, 13, 2)), rng.random((14, 13, 2))
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for row in range(4):
        for column in range(3):
            for channel in range(2):
                a, b = (
                    x[row : row + 11, column : column + 11, channel],
                    y[row : row + 11, column : column + 11, channel],
                )
                mean_a, mean_b = (window * a).sum(), (window * b).sum()
                var_a, var_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
                cov = (window * (a - mean_a) * (b - mean_b)).sum()
                numerator = (2 * mean_a * mean_b + 1e-4) * (2 * cov + 9e-4)
                values.append(numerator / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4)))
    assert ssim(x, y) == pytest.approx(np.mean(values))


def test_noise_lowers_ssim():
    target = np.repeat(rng.random((6, 8, 3)), 4, axis=0).repeat(4, axis=1)
    scores = [ssim(target + noise * rng.standard_normal(target.shape), target) for noise in (0.0, 0.02, 0.1, 0.5)]
    assert scores == sorted(scores, reverse=True)


def test_depth_abs_rel_by_hand():
    target = np.array([[1.0, 10.0]])
    assert depth_abs_rel(np.array([[1.1, 8.0]]), target) == pytest.approx(0.15)
    assert depth_abs_rel(np.array([[1.1, 8.0]]), target, np.array([[False, True]])) == pytest.approx(0.2)


def test_comparisons_without_meaning():
    a, b = np.zeros((8, 8, 3)), np.zeros((8, 9, 3))
    with pytest.raises(InvalidTensor, match="different shapes"):
        psnr(a, b)
    with pytest.raises(InvalidTensor, match="no pixels"):
        psnr(a, a, np.zeros((8, 8), bool))
    with pytest.raises(InvalidTensor, match="larger"):
        ssim(a, a)
    with pytest.raises(InvalidTensor, match="no pixels"):
        depth_abs_rel(a[:, :, 0], a[:, :, 0], np.zeros((8, 8), bool))
