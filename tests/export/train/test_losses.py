"""Losses against closed forms and a direct evaluation of the definitions."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edge4d.export.train import losses  # noqa: E402


def pictures(seed: int = 0, size: tuple[int, int] = (14, 17)) -> torch.Tensor:
    return torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ssim_by_definition(first: np.ndarray, second: np.ndarray) -> float:
    """Wang et al. 2004, eq. 13, window by window with a two-dimensional kernel."""
    axis = np.arange(11) - 5
    kernel = np.exp(-(axis[:, None] ** 2 + axis[None] ** 2) / (2 * 1.5**2))
    kernel /= kernel.sum()
    values = []
    for b, c, row, column in np.ndindex(*first.shape[:2], first.shape[2] - 10, first.shape[3] - 10):
        x = first[b, c, row : row + 11, column : column + 11]
        y = second[b, c, row : row + 11, column : column + 11]
        mx, my = (kernel * x).sum(), (kernel * y).sum()
        vx, vy = (kernel * (x - mx) ** 2).sum(), (kernel * (y - my) ** 2).sum()
        covariance = (kernel * (x - mx) * (y - my)).sum()
        values.append((2 * mx * my + 1e-4) * (2 * covariance + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4)))
    return float(np.mean(values))


def test_ssim_is_its_definition():
    first, second = pictures(0), pictures(1)
    expected = ssim_by_definition(first.numpy(), second.numpy())
    assert losses.ssim(first, second).item() == pytest.approx(expected, rel=1e-10)  # float64 against float64


def test_ssim_of_a_picture_with_itself_is_one_and_has_a_gradient_elsewhere():
    first = pictures().requires_grad_()
    assert losses.ssim(first, first).item() == pytest.approx(1.0)
    losses.ssim(first, pictures(1)).backward()
    assert first.grad is not None
    assert first.grad.isfinite().all()
    assert (first.grad != 0).any()


def test_kl_is_the_closed_form_of_torch_distributions():
    generator = torch.Generator().manual_seed(0)
    mean, log_variance = torch.randn(2, 2, 4, 3, 5, generator=generator)
    normal = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    standard = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    expected = torch.distributions.kl_divergence(normal, standard).sum(1).mean()
    torch.testing.assert_close(losses.diagonal_gaussian_kl(mean, log_variance), expected)


def test_free_bits_hold_an_unused_channel_but_not_a_used_one():
    mean = torch.zeros(1, 2, 4, 4)
    mean[:, 1] = 3.0
    mean.requires_grad_()
    loss = losses.diagonal_gaussian_kl(mean, torch.zeros_like(mean), free_bits=0.1)
    assert loss.item() == pytest.approx(0.1 + 4.5)
    loss.backward()
    assert mean.grad is not None
    assert (mean.grad[:, 0] == 0).all()
    assert (mean.grad[:, 1] > 0).all()
