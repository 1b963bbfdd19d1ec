"""The fast forms are the plain forms: keys and values computed once, the decoder's last layers folded into values."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from formulas import every_weight_matters, random  # noqa: E402

from edge4d.export.models.gvf_diffusion.fast import (  # noqa: E402
    CONTEXTS,
    DitCond,
    DitStep,
    Standardise,
    VaeAttend,
    VaeEncode,
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


UNCHANGED = Standardise(torch.zeros(14), torch.ones(14))


@torch.no_grad()
def test_cond_and_step_are_the_network():
    dit = every_weight_matters(VariationField(DIT))
    x, t = random(T, L, 16), torch.tensor([321.5])
    images, static, positions = random(T, S, 24, seed=1), random(M, 14, seed=2), 0.3 * random(L, 3, seed=3)
    contexts = DitCond(dit, UNCHANGED)(images, static)
    assert len(contexts) == len(CONTEXTS) * DIT.depth
    found = DitStep(dit)(x, t, positions, *contexts)
    expected = dit(x[None], t, images[None], static[None], positions[None])[0]
    assert expected.abs().max() > 0.5
    assert (found - expected).abs().max() <= SAME


@torch.no_grad()
def test_contexts_are_in_their_order():
    dit = every_weight_matters(VariationField(DIT))
    contexts = DitCond(dit, UNCHANGED)(random(T, S, 24), random(M, 14))
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
    latents = Standardise(random(16, seed=2), random(16, seed=3).exp())
    queries = VaeQuery(vae)(gaussians)
    keys, values = VaeLatent(vae, latents)(samples)
    assert (queries.shape, keys.shape, values.shape) == ((4, N, 24), (T, 4, L, 24), (T, 4, L, 14))
    found = VaeAttend(vae)(queries, keys, values)
    expected = vae.decode(samples * latents.deviation + latents.mean, gaussians.expand(T, -1, -1))
    assert expected.abs().max() > 0.5
    assert (found - expected).abs().max() <= SAME


@torch.no_grad()
def test_gaussians_and_frames_can_be_decoded_in_parts():
    vae = every_weight_matters(MotionVae(VAE))
    queries = VaeQuery(vae)(random(N, 14))
    keys, values = VaeLatent(vae, Standardise(torch.zeros(16), torch.ones(16)))(random(T, L, 16))
    whole = VaeAttend(vae)(queries, keys, values)
    part = VaeAttend(vae)(queries[:, 30:], keys[1:2], values[1:2])
    assert (part[0] - whole[1, 30:]).abs().max() <= SAME


@torch.no_grad()
def test_at_the_official_width_the_folded_decoder_is_the_plain_one():
    vae = every_weight_matters(MotionVae(MotionVaeConfig(depth=1)))
    samples, gaussians = random(1, 64, 16), random(40, 14, seed=1)
    keys, values = VaeLatent(vae, Standardise(torch.zeros(16), torch.ones(16)))(samples)
    found = VaeAttend(vae)(VaeQuery(vae)(gaussians), keys, values)
    assert (found - vae.decode(samples, gaussians[None])).abs().max() <= SAME


@torch.no_grad()
def test_gaussians_and_positions_are_standardised():
    dit = every_weight_matters(VariationField(DIT))
    standardise = Standardise(random(14, seed=4), random(14, seed=5).exp())
    images, static = random(T, S, 24), random(M, 14, seed=2)
    ready = (static - standardise.mean) / standardise.deviation
    for found, expected in zip(DitCond(dit, standardise)(images, static), DitCond(dit, UNCHANGED)(images, ready)):
        assert torch.equal(found, expected)

    x, t, positions = random(T, L, 16), torch.tensor([5.0]), 0.3 * random(L, 3, seed=3)
    contexts = DitCond(dit, UNCHANGED)(images, ready)
    of_positions = Standardise(standardise.mean[:3], standardise.deviation[:3])
    found = DitStep(dit, of_positions)(x, t, positions, *contexts)
    ready = (positions - standardise.mean[:3]) / standardise.deviation[:3]
    assert torch.equal(found, DitStep(dit)(x, t, ready, *contexts))


@torch.no_grad()
def test_a_mesh_becomes_samples():
    vae = every_weight_matters(MotionVae(VAE))
    latents = Standardise(random(16, seed=2), random(16, seed=3).exp())
    points, motion, anchors = 0.3 * random(60, 3), 0.1 * random(T, 60, 3, seed=1), 0.3 * random(L, 3, seed=6)
    found = VaeEncode(vae, latents)(points, motion, anchors)
    squared = (anchors[:, None] - points).square().sum(-1)
    nearest, indices = squared.topk(8, largest=False)
    radius = nearest.mean(1, keepdim=True).sqrt() + 1e-6
    weights = torch.exp(-7 * nearest / radius**2) * (nearest <= radius**2)
    weights = weights / (weights.sum(1, keepdim=True) + 1e-8)
    around = (weights[..., None] * motion[:, indices]).sum(2)
    mean, _ = vae.encode(motion, points[None], around, anchors[None])
    torch.testing.assert_close(found, (mean - latents.mean) / latents.deviation, atol=SAME, rtol=0)


@torch.no_grad()
def test_samples_survive_standardising():
    latents = Standardise(random(16, seed=2), random(16, seed=3).exp())
    torch.testing.assert_close(latents.restored(latents(random(T, L, 16))), random(T, L, 16))
