"""The decoder of voxels to Gaussians: its size, names and formulas."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from formulas import Weights, attention, every_weight_matters, mlp, norm, position, random  # noqa: E402

from edge4d.export.checkpoints import load_checkpoint  # noqa: E402
from edge4d.export.models.gvf_diffusion.gaussian_decoder import (  # noqa: E402
    GaussianDecoder,
    GaussianDecoderConfig,
    official_key,
)
from edge4d.runtime.errors import InvalidCheckpoint  # noqa: E402
from edge4d.runtime.voxels import windows  # noqa: E402

TINY = GaussianDecoderConfig(latent_channels=3, dim=24, depth=3, heads=4, resolution=20, gaussians=2)


def voxels(count: int = 60) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.permutation(np.unique(rng.integers(0, TINY.resolution, (count, 3)), axis=0)).astype(np.int32)


def inputs(coords: np.ndarray) -> list[torch.Tensor]:
    tables = [coords, windows(coords, 8), windows(coords, 8, 4)]
    return [random(len(coords), 3), *map(torch.from_numpy, tables)]


def test_the_official_size_names_and_spread():
    model = GaussianDecoder()
    assert sum(value.numel() for value in model.parameters()) == 85_110_640
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    expected = {
        "input_layer.weight": (768, 8),
        "blocks.11.attn.to_qkv.weight": (2304, 768),
        "blocks.0.attn.to_out.bias": (768,),
        "blocks.0.mlp.mlp.0.weight": (3072, 768),
        "blocks.0.mlp.mlp.2.weight": (768, 3072),
        "out_layer.weight": (112, 768),
        "offset_perturbation": (8, 3),
    }
    assert {name: shapes.get(name) for name in expected} == expected
    assert len(shapes) == 2 + 12 * 8 + 2 + 1
    spread = [[-0.804719] * 3, [-0.549306, 0, -0.225993], [-0.346574, -0.346574, 0.225993]]
    spread += [[-0.168236, 0.346574, -0.574311], [0, -0.549306, -0.074210], [0.168236, 0.168236, 0.388852]]
    spread += [[0.346574, -0.168236, -0.388852], [0.549306, 0.549306, 0.074210]]
    np.testing.assert_allclose(model.offset_perturbation, spread, atol=1e-6)


@torch.no_grad()
def test_the_decoder_is_the_formula():
    model, coords = every_weight_matters(GaussianDecoder(TINY)), voxels()
    latents, *rest = inputs(coords)
    found = model(latents, *rest)
    weights = Weights(model)
    x = weights.linear("input_layer", latents.double().numpy()) + np.array([position(cell, 24) for cell in coords])
    for block in range(TINY.depth):
        name = f"blocks.{block}"
        qkv = weights.linear(f"{name}.attn.to_qkv", norm(x))
        cubes = [tuple(cell) for cell in ((coords + 4 * (block % 2)) // 8).tolist()]
        among = np.empty_like(x)
        for cube in set(cubes):
            inside = [i for i, other in enumerate(cubes) if other == cube]
            among[inside] = attention(*np.split(qkv[inside], 3, axis=1), TINY.heads)
        x = x + weights.linear(f"{name}.attn.to_out", among)
        x = x + mlp(weights, f"{name}.mlp", norm(x))
    decoded = weights.linear("out_layer", norm(x, 1e-5))
    for i, cell in enumerate(coords):
        for j in range(2):
            row = 2 * i + j
            offset = decoded[i, 3 * j : 3 * j + 3] + weights["offset_perturbation"][j]
            place = (cell + 0.5) / 20 - 0.5 + np.tanh(offset) / 20 * 0.5 * 1.5
            # float32 against float64: sums of some ten terms of order 1 through three blocks.
            np.testing.assert_allclose(found.means[row], place, atol=1e-5)
            np.testing.assert_allclose(found.colors[row, 0], decoded[i, 6 + 3 * j :][:3], atol=1e-4)
            np.testing.assert_allclose(found.scales[row], decoded[i, 12 + 3 * j :][:3], atol=1e-4)
            np.testing.assert_allclose(found.quats[row], 0.1 * decoded[i, 18 + 4 * j :][:4], atol=1e-4)
            np.testing.assert_allclose(found.opacities[row], decoded[i, 26 + j], atol=1e-4)


@torch.no_grad()
def test_before_training_gaussians_are_spread_in_their_voxels():
    coords = voxels()
    found = GaussianDecoder(TINY)(*inputs(coords))
    centres = (coords.repeat(2, axis=0) + 0.5) / TINY.resolution - 0.5
    offsets = (found.means.numpy() - centres) * TINY.resolution
    np.testing.assert_allclose(offsets[:2], [[-0.5, -0.5, -0.5], [0, 0, -1 / 6]], atol=1e-5)
    assert (found.scales == 0).all()


def official(model: GaussianDecoder) -> dict[str, torch.Tensor]:
    """The decoder in the official file, with something of the encoder."""
    names = {"blocks": "decoder", "input_layer": "from_latent"}
    tensors = {"module.encoder.0.weight": torch.ones(2), "module.to_latent.bias": torch.ones(3)}
    for key, value in model.state_dict().items():
        first, dot, rest = key.partition(".")
        tensors[f"module.{names.get(first, first)}{dot}{rest}"] = value
    return tensors


def test_official_names_are_mapped(tmp_path):
    model, loaded = every_weight_matters(GaussianDecoder(TINY)), GaussianDecoder(TINY)
    torch.save(official(model), tmp_path / "a.pt")
    load_checkpoint(loaded, tmp_path / "a.pt", rename=official_key)
    assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), model.state_dict().values()))


def test_weights_of_the_decoder_that_are_unknown_are_named(tmp_path):
    model = GaussianDecoder(TINY)
    torch.save({**official(model), "module.decoder.0.norm1.weight": torch.ones(1)}, tmp_path / "a.pt")
    with pytest.raises(InvalidCheckpoint, match=r"unexpected: blocks\.0\.norm1\.weight"):
        load_checkpoint(model, tmp_path / "a.pt", rename=official_key)
