"""The motion VAE: its size and names, and its formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from formulas import Weights, attention, every_weight_matters, norm, random, waves  # noqa: E402

from edge4d.export.models.gvf_diffusion.motion_vae import MotionVae, MotionVaeConfig  # noqa: E402

TINY = MotionVaeConfig(dim=48, depth=2, heads=4, latent_channels=5)
B, L, M, N = 2, 6, 9, 7


def tiny() -> MotionVae:
    return every_weight_matters(MotionVae(TINY))


def test_the_official_size_and_names():
    with torch.device("meta"):
        model = MotionVae()
    assert sum(value.numel() for value in model.parameters()) == 125_206_318
    state = model.state_dict()
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    attention = {"to_q.weight": (768, 768), "to_kv.weight": (1536, 768), "to_out.weight": (768, 768)}
    attention["to_out.bias"] = (768,)
    feed_forward = {"net.0.weight": (6144, 768), "net.0.bias": (6144,), "net.2.weight": (768, 3072)}
    feed_forward["net.2.bias"] = (768,)
    expected = {
        "input_embedding.0.weight": (768, 3),
        "input_embedding.0.bias": (768,),
        "gs_embedding.0.weight": (768, 14),
        "gs_embedding.0.bias": (768,),
        "position_encoding.0.omega": (128,),
        "to_outputs.weight": (14, 768),
        "to_outputs.bias": (14,),
        "proj.weight": (768, 16),
        "proj.bias": (768,),
        **{f"{name}.{part}": (16, 768)[: 2 if part == "weight" else 1]
           for name in ("mean_fc", "logvar_fc") for part in ("weight", "bias")},
        **{f"decoder_cross_attn.fn.{name}": shape for name, shape in attention.items()},
    }  # fmt: skip
    for block in ("cross_attend_blocks", *(f"layers.{i}" for i in range(12))):
        expected.update({f"{block}.0.fn.{name}": shape for name, shape in attention.items()})
        expected.update({f"{block}.1.fn.{name}": shape for name, shape in feed_forward.items()})
    assert shapes == expected
    assert state["position_encoding.0.omega"].dtype == torch.float64


def test_frequencies():
    omega = MotionVae(MotionVaeConfig(depth=0)).position_encoding[0].omega
    np.testing.assert_allclose(omega, [10000.0 ** -(i / 64) for i in range(128)], rtol=1e-14)


class Reference:
    """Encoder and decoder of one frame."""

    def __init__(self, model: MotionVae) -> None:
        self.weights, self.heads = Weights(model), model.config.heads

    def embedding(self, name, values, points):
        places = np.array([waves(point, self.weights["position_encoding.0.omega"]) for point in points])
        return norm(self.weights.linear(f"{name}.0", values), 1e-5) + norm(places, 1e-5)

    def attention(self, name, x, context):
        x, context = norm(x), norm(context)
        k, v = np.split(self.weights.linear(f"{name}.fn.to_kv", context), 2, axis=1)
        return self.weights.linear(
            f"{name}.fn.to_out", attention(self.weights.linear(f"{name}.fn.to_q", x), k, v, self.heads)
        )

    def feed_forward(self, name, x):
        values, gates = np.split(self.weights.linear(f"{name}.fn.net.0", norm(x)), 2, axis=1)
        erf = np.vectorize(math.erf)
        return self.weights.linear(f"{name}.fn.net.2", values * gates * 0.5 * (1 + erf(gates / math.sqrt(2))))

    def encode(self, motion, points, anchor_motion, anchors):
        x = self.embedding("input_embedding", anchor_motion, anchors)
        x = x + self.attention("cross_attend_blocks.0", x, self.embedding("input_embedding", motion, points))
        x = x + self.feed_forward("cross_attend_blocks.1", x)
        return self.weights.linear("mean_fc", x), self.weights.linear("logvar_fc", x)

    def decode(self, samples, gaussians):
        x = self.weights.linear("proj", samples)
        for i in range(TINY.depth):
            x = x + self.attention(f"layers.{i}.0", x, x)
            x = x + self.feed_forward(f"layers.{i}.1", x)
        queries = self.embedding("gs_embedding", gaussians, gaussians[:, :3])
        return self.weights.linear("to_outputs", self.attention("decoder_cross_attn", queries, x))


@torch.no_grad()
def test_encode_is_the_formula():
    model = tiny()
    given = [random(B, M, 3), random(1, M, 3, seed=1), random(B, L, 3, seed=2), random(1, L, 3, seed=3)]
    mean, log_variance = model.encode(*given)
    for frame in range(B):
        arrays = [value[min(frame, len(value) - 1)].double().numpy() for value in given]
        expected = Reference(model).encode(*arrays)
        # float32 against float64: sums of some hundred terms of order 1.
        np.testing.assert_allclose(mean[frame], expected[0], atol=1e-4)
        np.testing.assert_allclose(log_variance[frame], expected[1], atol=1e-4)


@torch.no_grad()
def test_decode_is_the_formula():
    model, samples, gaussians = tiny(), random(B, L, 5), random(B, N, 14, seed=1)
    found = model.decode(samples, gaussians)
    assert found.shape == (B, N, 14)
    for frame in range(B):
        expected = Reference(model).decode(samples[frame].double().numpy(), gaussians[frame].double().numpy())
        np.testing.assert_allclose(found[frame], expected, atol=1e-4)


@torch.no_grad()
def test_log_variances_stay_usable():
    model = tiny()
    model.logvar_fc.bias.copy_(torch.tensor([-100.0, 100.0, 0.0, 0.0, 0.0]))
    _, log_variance = model.encode(random(1, M, 3), random(1, M, 3), random(1, L, 3), random(1, L, 3))
    assert (log_variance[..., 0] == -30).all()
    assert (log_variance[..., 1] == 20).all()


def test_every_weight_learns():
    model = tiny()
    mean, log_variance = model.encode(random(B, M, 3), random(1, M, 3), random(B, L, 3), random(1, L, 3))
    changes = model.decode(mean + (0.5 * log_variance).exp() * random(B, L, 5), random(B, N, 14))
    (changes * random(B, N, 14, seed=4)).sum().backward()
    without = [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()]
    assert without == []
