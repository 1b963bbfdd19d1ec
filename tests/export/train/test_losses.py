"""Losses against closed forms and a direct evaluation of the definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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


@given(st.floats(1e-4, 1.0))
def test_psnr_and_l1_of_a_constant_error(error):
    target = torch.zeros(1, 3, 4, 4, dtype=torch.float64)
    assert losses.psnr(target + error, target).item() == pytest.approx(-20 * math.log10(error))
    assert losses.l1(target + error, target).item() == pytest.approx(error)


def test_weights_choose_the_pixels_that_count():
    target = torch.zeros(2, 3, 4, 4)
    image = target.clone()
    image[..., 0] = 0.5
    weight = torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    weight[..., :2] = True
    assert losses.l1(image, target, weight).item() == pytest.approx(0.25)
    assert losses.psnr(image, target, weight).item() == pytest.approx(-10 * math.log10(0.125))
    assert losses.l1(image, target, torch.zeros_like(weight)).item() == 0
    assert losses.psnr(target, target).item() == pytest.approx(100)


@given(st.floats(0.1, 10.0))
def test_log_depth_forgives_a_factor_as_far_as_its_focus_says(factor):
    target = pictures()[:, :1] + 1.0
    found = losses.scale_invariant_log_depth(target * factor, target, variance_focus=0.75).item()
    # sqrt((1 − λ)·log²factor); the floor under the root is 1e-8.
    assert found == pytest.approx(max(0.5 * abs(math.log(factor)), 1e-4), rel=1e-6)


def test_log_depth_looks_at_valid_pixels_only_and_is_differentiable_at_the_answer():
    target = pictures()[:, :1] + 1.0
    depth = target.clone()
    depth[..., 0, :] = 50.0
    valid = torch.ones_like(target, dtype=torch.bool)
    valid[..., 0, :] = False
    depth.requires_grad_()
    loss = losses.scale_invariant_log_depth(depth, target, valid)
    assert loss.item() == pytest.approx(1e-4)
    loss.backward()
    assert depth.grad is not None
    assert depth.grad.isfinite().all()


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
