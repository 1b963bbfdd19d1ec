"""The fast forms are the plain forms: keys and values computed once, the decoder's last layers folded into values."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from formulas import every_weight_matters, random  # noqa: E402

from edge4d.export.models.gvf_diffusion.fast import (  # noqa: E402
    CONTEXTS,
    DitCond,
    DitStep,
    VaeAttend,
    VaeLatent,
    VaeQuery,
)
from edge4d.export.models.gvf_diffusion.motion_vae import MotionVae, MotionVaeConfig  # noqa: E402
from edge4d.export.models.gvf_diffusion.variation_field import VariationField, VariationFieldConfig  # noqa: E402

DIT = VariationFieldConfig(dim=96, depth=2, heads=4, latent_channels=16, image_channels=24)
VAE = MotionVaeConfig(dim=96, depth=2, heads=4)
T, L, S, M, N = 4, 32, 20, 40, 50

SAME = 1e-5
"""Values are of order 1; the same products are added in another order."""


@torch.no_grad()
def test_cond_and_step_are_the_network():
    dit = every_weight_matters(VariationField(DIT))
    x, t = random(T, L, 16), torch.tensor([321.5])
    images, static, positions = random(T, S, 24, seed=1), random(M, 14, seed=2), 0.3 * random(L, 3, seed=3)
    contexts = DitCond(dit)(images, static)
    assert len(contexts) == len(CONTEXTS) * DIT.depth
    found = DitStep(dit)(x, t, positions, *contexts)
    expected = dit(x[None], t, images[None], static[None], positions[None])[0]
    assert expected.abs().max() > 0.5
    assert (found - expected).abs().max() <= SAME


@torch.no_grad()
def test_contexts_are_in_their_order():
    dit = every_weight_matters(VariationField(DIT))
    contexts = DitCond(dit)(random(T, S, 24), random(M, 14))
    for i, block in enumerate(dit.blocks):
        tensors = dict(zip(CONTEXTS, contexts[len(CONTEXTS) * i :]))
        assert tensors["image_keys"].shape == tensors["image_values"].shape == (T, 4, S, 24)
        assert tensors["static_keys"].shape == tensors["static_values"].shape == (1, 4, M, 24)
        pictures = block.image_cross_attn.to_kv(dit.image_cond_proj(random(T, S, 24)))
        torch.testing.assert_close(tensors["image_keys"][2, 3], pictures[2, :, 3 * 24 : 4 * 24])
        torch.testing.assert_close(tensors["image_values"][2, 3], pictures[2, :, 96 + 3 * 24 : 96 + 4 * 24])


@torch.no_grad()
def test_latent_query_and_attend_are_the_decoder():
    vae = every_weight_matters(MotionVae(VAE))
    samples, gaussians = random(T, L, 16), random(N, 14, seed=1)
    mean, deviation = random(16, seed=2), random(16, seed=3).exp()
    queries = VaeQuery(vae)(gaussians)
    keys, values = VaeLatent(vae, mean, deviation)(samples)
    assert (queries.shape, keys.shape, values.shape) == ((4, N, 24), (T, 4, L, 24), (T, 4, L, 14))
    found = VaeAttend(vae)(queries, keys, values)
    expected = vae.decode(samples * deviation + mean, gaussians.expand(T, -1, -1))
    assert expected.abs().max() > 0.5
    assert (found - expected).abs().max() <= SAME


@torch.no_grad()
def test_gaussians_and_frames_can_be_decoded_in_parts():
    vae = every_weight_matters(MotionVae(VAE))
    queries = VaeQuery(vae)(random(N, 14))
    keys, values = VaeLatent(vae, torch.zeros(16), torch.ones(16))(random(T, L, 16))
    whole = VaeAttend(vae)(queries, keys, values)
    part = VaeAttend(vae)(queries[:, 30:], keys[1:2], values[1:2])
    assert (part[0] - whole[1, 30:]).abs().max() <= SAME


@torch.no_grad()
def test_at_the_official_width_the_folded_decoder_is_the_plain_one():
    vae = every_weight_matters(MotionVae(MotionVaeConfig(depth=1)))
    samples, gaussians = random(1, 64, 16), random(40, 14, seed=1)
    keys, values = VaeLatent(vae, torch.zeros(16), torch.ones(16))(samples)
    found = VaeAttend(vae)(VaeQuery(vae)(gaussians), keys, values)
    assert (found - vae.decode(samples, gaussians[None])).abs().max() <= SAME
