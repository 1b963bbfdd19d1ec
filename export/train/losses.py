"""What training minimises, each a mean over the batch. Images are [B,C,H,W] in 0..1."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
SSIM_C1 = 0.01**2
SSIM_C2 = 0.03**2


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
