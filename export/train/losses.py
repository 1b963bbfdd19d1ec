"""What training minimises, each a mean over the batch. Images are [B,C,H,W] in 0..1."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
SSIM_C1 = 0.01**2
SSIM_C2 = 0.03**2


def l1(image: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean absolute error of [...,C,H,W], over the pixels that `weight` [...,1,H,W] counts (all when None)."""
    return _mean((image - target).abs(), weight)


def psnr(image: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio in dB of [...,C,H,W] with peak 1; 100 dB when the images are equal."""
    return -10.0 * _mean((image - target).square(), weight).clamp_min(1e-10).log10()


def _mean(values: Tensor, weight: Tensor | None) -> Tensor:
    if weight is None:
        return values.mean()
    weight = weight.to(values).expand_as(values)
    return (values * weight).sum() / weight.sum().clamp_min(1.0)


def ssim(image: Tensor, target: Tensor) -> Tensor:
    """Structural similarity, 1 for equal images: mean over windows that lie inside the picture.

    Gaussian window of 11×11, σ = 1.5, K₁ = 0.01, K₂ = 0.03, population moments (Wang et al. 2004, eq. 13).

    Args:
        image, target: [B,C,H,W] in 0..1, H and W at least 11.
    """
    first, second = _blur(image), _blur(target)
    products = first * second
    variances = _blur(image.square()) - first.square() + _blur(target.square()) - second.square()
    covariance = _blur(image * target) - products
    luminance = (2.0 * products + SSIM_C1) / (first.square() + second.square() + SSIM_C1)
    structure = (2.0 * covariance + SSIM_C2) / (variances + SSIM_C2)
    return (luminance * structure).mean()


def _blur(image: Tensor) -> Tensor:
    """[B,C,H,W] → [B,C,H−10,W−10], one axis after the other."""
    channels = image.shape[1]
    offsets = torch.arange(SSIM_WINDOW, device=image.device, dtype=image.dtype) - SSIM_WINDOW // 2
    window = (-0.5 * (offsets / SSIM_SIGMA).square()).exp()
    window = (window / window.sum()).expand(channels, 1, 1, SSIM_WINDOW)
    rows = functional.conv2d(image, window, groups=channels)
    return functional.conv2d(rows, window.mT, groups=channels)


def scale_invariant_log_depth(
    depth: Tensor, target: Tensor, valid: Tensor | None = None, *, variance_focus: float = 0.85
) -> Tensor:
    """sqrt(mean d² − λ·(mean d)²) with d = log depth − log target, for each picture, then the mean over pictures.

    Eigen et al. 2014, eq. 4, with the root and λ = 0.85 of Lee et al. 2019 ("From Big to Small"). λ = 0 measures metric
    depth, λ = 1 depth up to a factor.

    Args:
        depth, target: [B,1,H,W] metres, above 0.
        valid: [B,1,H,W] bool, the pixels that count; all when None.
    """
    difference = (depth.clamp_min(1e-6).log() - target.clamp_min(1e-6).log()).flatten(1)
    weight = torch.ones_like(difference) if valid is None else valid.flatten(1).to(difference)
    weight = weight / weight.sum(1, keepdim=True).clamp_min(1.0)
    mean = (weight * difference).sum(1)
    mean_square = (weight * difference.square()).sum(1)
    # The floor keeps the root differentiable where the prediction is exact.
    return (mean_square - variance_focus * mean.square()).clamp_min(1e-8).sqrt().mean()


def diagonal_gaussian_kl(mean: Tensor, log_variance: Tensor, *, free_bits: float = 0.0) -> Tensor:
    """KL(N(mean, exp(log_variance)) ‖ N(0, I)) in nats: mean over batch and positions, sum over channels.

    Formula: Kingma and Welling 2014, appendix B. The first `free_bits` nats of each channel's mean cost no more than
    none would, so that the latent is not switched off before the decoder has learned to read it (free bits of Kingma
    et al. 2016, "Improved Variational Inference with Inverse Autoregressive Flow").

    Args:
        mean, log_variance: [B,C,...].
        free_bits: nats per channel and position.
    """
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance)
    per_channel = divergence.transpose(0, 1).flatten(1).mean(1)
    return per_channel.clamp_min(free_bits).sum()
