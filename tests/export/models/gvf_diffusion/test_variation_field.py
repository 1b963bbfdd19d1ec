"""The variation-field transformer: its size and names, its formulas, and frames in any order."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from formulas import (  # noqa: E402
    Weights,
    attention,
    every_weight_matters,
    mlp,
    norm,
    position,
    random,
    silu,
    time_embedding,
)

from edge4d.export.models.gvf_diffusion.variation_field import VariationField, VariationFieldConfig  # noqa: E402

TINY = VariationFieldConfig(dim=32, depth=2, heads=4, latent_channels=3, gaussian_channels=14, image_channels=10)
T, L, S, M = 3, 5, 7, 6


def tiny() -> VariationField:
    return every_weight_matters(VariationField(TINY))


def inputs(batch: int = 1) -> tuple[torch.Tensor, ...]:
    """x, t, images, static, positions."""
    t = torch.tensor([431.7, 12.3])[:batch]
    return (
        random(batch, T, L, 3),
        t,
        random(batch, T, S, 10, seed=1),
        random(batch, M, 14, seed=2),
        (random(batch, L, 3, seed=3) * 0.3),
    )


def test_the_official_size_and_names():
    with torch.device("meta"):
        model = VariationField()
    assert sum(value.numel() for value in model.parameters()) == 105_511_440
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    block = {
        "norm3.weight": (512,),
        "norm4.bias": (512,),
        "spatial_self_attn.to_qkv.weight": (1536, 512),
        "temporal_self_attn.q_rms_norm.gamma": (16, 32),
        "spatial_self_attn.k_rms_norm.gamma": (16, 32),
        "temporal_self_attn.to_out.bias": (512,),
        "image_cross_attn.to_q.bias": (512,),
        "static_cross_attn.to_kv.weight": (1024, 512),
        "image_cross_attn.to_out.weight": (512, 512),
        "mlp.mlp.0.weight": (2048, 512),
        "mlp.mlp.2.bias": (512,),
        "adaLN_modulation.1.weight": (3072, 512),
        "adaLN_modulation_temporal.1.bias": (1536,),
    }
    expected = {
        "t_embedder.mlp.0.weight": (512, 256),
        "t_embedder.mlp.2.bias": (512,),
        "input_layer.weight": (512, 16),
        "static_cond_proj.weight": (512, 14),
        "image_cond_proj.weight": (512, 1024),
        "final_layer.linear.weight": (16, 512),
        "final_layer.adaLN_modulation.1.weight": (1024, 512),
        **{f"blocks.{i}.{name}": shape for i in (0, 11) for name, shape in block.items()},
    }
    assert {name: shapes.get(name) for name in expected} == expected
    assert len(shapes) == 2 * 7 + 12 * (2 * 2 + 2 * 6 + 2 * 6 + 2 * 2 + 2 * 2)  # 14 outside the blocks, 36 in each


def forward_by_hand(model, x, t, images, static, positions) -> np.ndarray:
    """One object, frame by frame and token by token."""
    weights, config = Weights(model), model.config
    dim, heads = config.dim, config.heads
    x, images, static, positions = (value[0].double().numpy() for value in (x, images, static, positions))

    def self_attention(name, tokens):
        q, k, v = weights.linear(f"{name}.to_qkv", tokens).reshape(len(tokens), 3, heads, -1).transpose(1, 0, 2, 3)
        q, k = (
            value / np.linalg.norm(value, axis=-1, keepdims=True) * weights[f"{name}.{norm_name}.gamma"]
            * math.sqrt(dim / heads)
            for value, norm_name in ((q, "q_rms_norm"), (k, "k_rms_norm"))
        )  # fmt: skip
        return weights.linear(f"{name}.to_out", attention(*(a.reshape(-1, dim) for a in (q, k, v)), heads))

    def cross_attention(name, tokens, context):
        k, v = np.split(weights.linear(f"{name}.to_kv", context), 2, axis=1)
        return weights.linear(f"{name}.to_out", attention(weights.linear(f"{name}.to_q", tokens), k, v, heads))

    time = silu(time_embedding(weights, t.item()))
    tokens = weights.linear("input_layer", x) + np.array([position(place, dim) for place in positions])
    pictures = weights.linear("image_cond_proj", images)
    points = weights.linear("static_cond_proj", static)
    for i in range(config.depth):
        name = f"blocks.{i}"
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = np.split(
            weights.linear(f"{name}.adaLN_modulation.1", time), 6
        )
        for frame in range(T):
            y = norm(tokens[frame]) * (1 + scale) + shift
            tokens[frame] += gate * self_attention(f"{name}.spatial_self_attn", y)
        shift, scale, gate = np.split(weights.linear(f"{name}.adaLN_modulation_temporal.1", time), 3)
        for token in range(L):
            y = norm(tokens[:, token]) * (1 + scale) + shift
            tokens[:, token] += gate * self_attention(f"{name}.temporal_self_attn", y)
        for frame in range(T):
            y = weights.norm(f"{name}.norm3", tokens[frame])
            tokens[frame] += cross_attention(f"{name}.image_cross_attn", y, pictures[frame])
            y = weights.norm(f"{name}.norm4", tokens[frame])
            tokens[frame] += cross_attention(f"{name}.static_cross_attn", y, points)
            y = norm(tokens[frame]) * (1 + mlp_scale) + mlp_shift
            tokens[frame] += mlp_gate * mlp(weights, f"{name}.mlp", y)
    shift, scale = np.split(weights.linear("final_layer.adaLN_modulation.1", time), 2)
    return weights.linear("final_layer.linear", norm(tokens) * (1 + scale) + shift)


@torch.no_grad()
def test_forward_is_the_formula():
    model = tiny()
    found = model(*inputs())
    expected = forward_by_hand(model, *inputs())
    assert np.abs(expected).max() > 0.5
    # float32 against float64: sums of some hundred terms of order 1 through two blocks.
    np.testing.assert_allclose(found[0].numpy(), expected, atol=1e-4)


@torch.no_grad()
def test_a_batch_of_two_is_two_objects():
    model, both = tiny(), inputs(2)
    found = model(*both)
    for i in range(2):
        alone = model(*(value[i : i + 1] for value in both))
        torch.testing.assert_close(found[i], alone[0], atol=1e-5, rtol=0)


@torch.no_grad()
def test_frames_in_another_order_give_the_same_in_that_order():
    model, (x, t, images, static, positions) = tiny(), inputs()
    order = torch.tensor([2, 0, 1])
    found = model(x[:, order], t, images[:, order], static, positions)
    difference = (found - model(x, t, images, static, positions)[:, order]).abs().max()
    assert difference <= 1e-5  # the same sums in another order


@torch.no_grad()
def test_every_input_counts():
    model, given = tiny(), inputs()
    expected = model(*given)
    for i in range(len(given)):
        changed = [value + 0.3 if i == j else value for j, value in enumerate(given)]
        assert (model(*changed) - expected).abs().max() > 1e-3


@torch.no_grad()
def test_the_official_width_fills_its_position_embedding_with_two_zeros():
    with torch.device("meta"):
        embedder = VariationField().pos_embedder
    assert embedder.frequencies.shape == (85,)
    assert embedder.padding == 2
    small = tiny().pos_embedder(torch.tensor([[0.1, 0.2, 0.3]]))
    assert small.shape == (1, 32)
    assert (small[0, 30:] == 0).all()


def test_before_training_it_answers_zero_and_then_learns_everywhere():
    torch.manual_seed(0)
    model = VariationField(TINY)
    assert (model(*inputs()) == 0).all()
    model = tiny()
    (model(*inputs(2)) * random(2, T, L, 3, seed=5)).sum().backward()
    without = [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()]
    assert without == []
