"""The vision transformer: names, numbers of weights, and a forward pass written out."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from edge4d.export.models.layers.dinov2 import DinoV2, DinoV2Config  # noqa: E402
from edge4d.runtime.errors import InvalidRequest  # noqa: E402

TINY = DinoV2Config(dim=24, depth=2, heads=3, registers=2, patch=4, trained_grid=5)


def tiny(height: int = 20, width: int = 20) -> DinoV2:
    """A network whose every weight matters."""
    torch.manual_seed(0)
    model = DinoV2(height, width, TINY).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.load_state_dict(model.state_dict())  # as a checkpoint would: refreshes the positions
    return model


def test_vit_large_has_the_official_weights():
    with torch.device("meta"):
        model = DinoV2(518, 518)
    # ViT-L/14: 302,358,528 in 24 blocks, 603,136 in the patches, 1,370 positions, CLS, mask, 4 registers, one norm.
    assert sum(value.numel() for value in model.parameters()) == 302_358_528 + 603_136 + (1370 + 1 + 1 + 4 + 2) * 1024
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert len(shapes) == 4 + 2 + 24 * 14 + 2
    assert shapes["cls_token"] == (1, 1, 1024)
    assert shapes["pos_embed"] == (1, 1370, 1024)
    assert shapes["register_tokens"] == (1, 4, 1024)
    assert shapes["mask_token"] == (1, 1024)
    assert shapes["patch_embed.proj.weight"] == (1024, 3, 14, 14)
    assert shapes["blocks.23.attn.qkv.weight"] == (3072, 1024)
    assert shapes["blocks.23.attn.proj.bias"] == (1024,)
    assert shapes["blocks.0.ls1.gamma"] == shapes["blocks.0.ls2.gamma"] == (1024,)
    assert shapes["blocks.0.mlp.fc1.weight"] == (4096, 1024)
    assert shapes["blocks.0.norm2.bias"] == shapes["norm.weight"] == (1024,)


def forward_by_hand(model: DinoV2, image: torch.Tensor) -> torch.Tensor:
    """Tokens of one picture of the trained size, one head and one patch at a time."""
    state = {name: value.double() for name, value in model.state_dict().items()}
    image = image.double()

    def linear(x, name):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(x, name):
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]

    kernel = state["patch_embed.proj.weight"].flatten(1)
    patches = [
        kernel @ image[:, top : top + 4, left : left + 4].flatten() + state["patch_embed.proj.bias"]
        for top in range(0, 20, 4)
        for left in range(0, 20, 4)
    ]
    tokens = torch.stack([state["cls_token"][0, 0], *patches]) + state["pos_embed"][0]
    tokens = torch.cat([tokens[:1], state["register_tokens"][0], tokens[1:]])
    for block in ("blocks.0", "blocks.1"):
        q, k, v = linear(norm(tokens, f"{block}.norm1"), f"{block}.attn.qkv").chunk(3, dim=-1)
        heads = [slice(8 * head, 8 * head + 8) for head in range(3)]
        attended = [torch.softmax(q[:, h] @ k[:, h].T / math.sqrt(8), dim=-1) @ v[:, h] for h in heads]
        tokens = tokens + linear(torch.cat(attended, -1), f"{block}.attn.proj") * state[f"{block}.ls1.gamma"]
        hidden = linear(norm(tokens, f"{block}.norm2"), f"{block}.mlp.fc1")
        hidden = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))
        tokens = tokens + linear(hidden, f"{block}.mlp.fc2") * state[f"{block}.ls2.gamma"]
    return tokens


def test_forward_is_the_formula():
    model, image = tiny(), torch.randn(1, 3, 20, 20, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        features, tokens = model(image)
    expected = forward_by_hand(model, image[0])
    # float32 against float64: sums of some hundred terms of order 1 through two blocks.
    torch.testing.assert_close(tokens[0].double(), expected, rtol=1e-4, atol=1e-4)
    assert features.shape == (1, 24, 5, 5)
    torch.testing.assert_close(features[0, :, 1, 3], tokens[0, 1 + 2 + 1 * 5 + 3])


def test_positions_are_resampled_when_weights_are_loaded():
    square, wide = tiny(), DinoV2(12, 32, TINY).eval()
    wide.load_state_dict(square.state_dict())
    trained = square.pos_embed[:, 1:].reshape(1, 5, 5, 24).permute(0, 3, 1, 2)
    resampled = torch.nn.functional.interpolate(trained, size=(3, 8), mode="bicubic", antialias=True)
    torch.testing.assert_close(wide.positions[:, 1:], resampled.flatten(2).transpose(1, 2))
    torch.testing.assert_close(wide.positions[:, :1], square.pos_embed[:, :1])
    assert wide(torch.zeros(2, 3, 12, 32))[0].shape == (2, 24, 3, 8)
    assert "positions" not in wide.state_dict()


def test_parts_of_patches_are_refused():
    with pytest.raises(InvalidRequest, match="21x20"):
        DinoV2(20, 21, TINY)
