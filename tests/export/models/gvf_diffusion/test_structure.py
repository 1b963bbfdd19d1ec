"""The networks that say which voxels are occupied: sizes, names, formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from formulas import (  # noqa: E402
    Weights,
    conditioned_block,
    every_weight_matters,
    norm,
    position,
    random,
    time_embedding,
)
from torch.nn import functional  # noqa: E402

from edge4d.export.models.gvf_diffusion.structure import (  # noqa: E402
    StructureDecoder,
    StructureDecoderConfig,
    StructureFlow,
    StructureFlowConfig,
)

FLOW = StructureFlowConfig(resolution=3, channels=2, dim=32, depth=2, heads=4, context_dim=10)
DECODER = StructureDecoderConfig(latent_channels=3, channels=(6, 4, 2), blocks=1)


def test_the_official_sizes_and_names():
    with torch.device("meta"):
        flow, decoder = StructureFlow(), StructureDecoder()
    block = 1024 * (3 + 1 + 1 + 2 + 1 + 8 + 6) * 1024 + 1024 * (3 + 2 + 1 + 2 + 1 + 2 + 1 + 4 + 1 + 6)
    rest = 256 * 1024 + 1024 + 1024 * 1024 + 1024 + 8 * 1024 + 1024 + 1024 * 8 + 8
    assert sum(value.numel() for value in flow.parameters()) == 24 * block + rest == 555_543_560
    shapes = {name: tuple(value.shape) for name, value in flow.state_dict().items()}
    expected = {
        "t_embedder.mlp.0.weight": (1024, 256),
        "pos_emb": (4096, 1024),
        "input_layer.weight": (1024, 8),
        "blocks.23.self_attn.to_qkv.weight": (3072, 1024),
        "blocks.0.self_attn.q_rms_norm.gamma": (16, 64),
        "blocks.0.self_attn.k_rms_norm.gamma": (16, 64),
        "blocks.0.self_attn.to_out.bias": (1024,),
        "blocks.0.cross_attn.to_q.weight": (1024, 1024),
        "blocks.0.cross_attn.to_kv.weight": (2048, 1024),
        "blocks.0.cross_attn.to_out.weight": (1024, 1024),
        "blocks.0.norm2.weight": (1024,),
        "blocks.0.mlp.mlp.0.weight": (4096, 1024),
        "blocks.0.mlp.mlp.2.bias": (1024,),
        "blocks.0.adaLN_modulation.1.weight": (6144, 1024),
        "out_layer.weight": (8, 1024),
    }
    assert {name: shapes.get(name) for name in expected} == expected
    assert len(shapes) == 4 + 1 + 2 + 24 * 20 + 2

    shapes = {name: tuple(value.shape) for name, value in decoder.state_dict().items()}
    assert 73_600_000 < sum(math.prod(shape) for shape in shapes.values()) < 73_700_000
    expected = {
        "input_layer.weight": (512, 8, 3, 3, 3),
        "middle_block.1.norm1.weight": (512,),
        "middle_block.0.conv2.bias": (512,),
        "blocks.1.conv1.weight": (512, 512, 3, 3, 3),
        "blocks.2.conv.weight": (1024, 512, 3, 3, 3),
        "blocks.4.norm2.bias": (128,),
        "blocks.5.conv.weight": (256, 128, 3, 3, 3),
        "blocks.7.conv2.weight": (32, 32, 3, 3, 3),
        "out_layer.0.weight": (32,),
        "out_layer.2.weight": (1, 32, 3, 3, 3),
    }
    assert {name: shapes.get(name) for name in expected} == expected
    assert len(shapes) == 2 + 2 * 8 + 6 * 8 + 2 * 2 + 4


@torch.no_grad()
def test_the_flow_is_the_formula():
    model = every_weight_matters(StructureFlow(FLOW))
    x, t, condition = random(2, 2, 3, 3, 3), torch.tensor([750.0, 20.5]), random(2, 5, 10, seed=1)
    found = model(x, t, condition)
    weights = Weights(model)
    for i in range(2):
        time = time_embedding(weights, t[i].item())
        cells = [(a, b, c) for a in range(3) for b in range(3) for c in range(3)]
        tokens = np.array([x[i, :, a, b, c].double().numpy() for a, b, c in cells])
        tokens = weights.linear("input_layer", tokens) + np.array([position(cell, 32) for cell in cells])
        for block in range(2):
            context = condition[i].double().numpy()
            tokens = conditioned_block(weights, f"blocks.{block}", tokens, time, context, heads=4)
        expected = weights.linear("out_layer", norm(tokens, 1e-5))
        result = np.array([found[i, :, a, b, c].numpy() for a, b, c in cells])
        # float32 against float64: sums of some hundred terms of order 1 through two blocks.
        np.testing.assert_allclose(result, expected, atol=1e-4)


@torch.no_grad()
def test_the_decoder_is_the_formula():
    model = every_weight_matters(StructureDecoder(DECODER))
    state = {name: value.double() for name, value in model.state_dict().items()}

    def conv(name, x):
        return functional.conv3d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=1)

    def channel_norm(name, x):
        centred = x - x.mean(1, keepdim=True)
        x = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
        return x * state[f"{name}.weight"].reshape(-1, 1, 1, 1) + state[f"{name}.bias"].reshape(-1, 1, 1, 1)

    def residual(name, x):
        y = conv(f"{name}.conv1", functional.silu(channel_norm(f"{name}.norm1", x)))
        return x + conv(f"{name}.conv2", functional.silu(channel_norm(f"{name}.norm2", y)))

    def upsample(name, x):
        y = conv(f"{name}.conv", x)
        side = x.shape[-1]
        grid = torch.empty(1, y.shape[1] // 8, *(2 * side,) * 3, dtype=y.dtype)
        for a in range(2):
            for b in range(2):
                for c in range(2):
                    grid[:, :, a::2, b::2, c::2] = y[:, 4 * a + 2 * b + c :: 8]
        return grid

    latent = random(1, 3, 2, 2, 2)
    x = residual("middle_block.0", conv("input_layer", latent.double()))
    x = residual("blocks.2", upsample("blocks.1", residual("blocks.0", x)))
    x = residual("blocks.4", upsample("blocks.3", x))
    expected = conv("out_layer.2", functional.silu(channel_norm("out_layer.0", x)))
    found = model(latent)
    assert found.shape == (1, 1, 8, 8, 8)
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=0)
