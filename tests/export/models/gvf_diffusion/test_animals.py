"""The small GVFDiffusion: its size, its encoder of pictures, and that its stages become graphs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edge4d.export.models.gvf_diffusion import build  # noqa: E402
from edge4d.export.models.gvf_diffusion.animals import STRIDE, TRY, Animals, animals_config  # noqa: E402
from edge4d.export.onnx_from_torch import onnx_from_torch, run_onnx  # noqa: E402
from edge4d.runtime.errors import InvalidRequest  # noqa: E402

SIDE = 32


def test_it_is_small():
    """8 MB in half precision, all buffers included."""
    state = build("animals").state_dict()
    assert 2 * sum(value.numel() for value in state.values()) <= 8_000_000


def test_stages_are_those_that_the_runtime_runs():
    stages = build("animals-tiny").stages()
    names = ["image", "dit_cond", "dit_step", "vae_latent", "vae_query", "vae_attend", "vae_encode"]
    assert [stage.name for stage in stages] == names
    description = build("animals").description()
    assert description["config"] == {"size": [256, 256], "frames": 24, "fps": 12}
    assert description["camera"].width == 256


def test_tokens_are_patches_row_by_row_and_then_their_mean():
    encoder = build("animals-tiny").image
    across = SIDE // STRIDE
    with torch.no_grad():
        tokens = encoder(torch.rand(2, 3, SIDE, SIDE))
        for parameter in encoder.to_tokens.parameters():
            parameter.zero_()  # what is left is where a patch is
        places = encoder(torch.rand(1, 3, SIDE, SIDE))[0]
    assert tokens.shape == (2, across * across + 1, 24)
    assert (tokens[0, 0] - tokens[1, 0]).abs().max() > 1e-3
    np.testing.assert_allclose(tokens.mean(-1), 0, atol=1e-5)
    row, column = 2, 1
    expected = encoder.places[:, row, column].detach()
    expected = (expected - expected.mean()) / (expected.var(unbiased=False) + 1e-5).sqrt()
    np.testing.assert_allclose(places[row * across + column], expected, atol=1e-4)
    mean = encoder.places.detach().mean((1, 2))
    np.testing.assert_allclose(places[-1], (mean - mean.mean()) / (mean.var(unbiased=False) + 1e-5).sqrt(), atol=1e-4)


def test_the_encoder_becomes_a_graph():
    """onnx_from_torch refuses what ONNX Runtime does not compute as torch does; here another number of frames."""
    stage = build("animals-tiny").stages()[0]
    pictures = torch.rand(5, 3, SIDE, SIDE)
    with torch.no_grad():
        expected = stage.module(pictures)
    found = run_onnx(stage, onnx_from_torch(stage), {"pictures": pictures.numpy()})["images"]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_waves_are_as_short_as_a_tenth_of_an_object():
    model = build("animals")
    omega = model.vae.position_encoding[0].omega
    assert omega.dtype == torch.float64
    assert omega[-1] == pytest.approx(60)
    assert (omega.diff() > 0).all()
    assert model.dit.pos_embedder.frequencies[-1] == pytest.approx(12)


def test_configurations_that_do_not_fit_are_refused():
    with pytest.raises(InvalidRequest, match="animals or animals-tiny"):
        animals_config("paper")
    with pytest.raises(InvalidRequest, match="tokens"):
        Animals(replace(TRY, image_tokens=16))
