"""Official checkpoints are loaded by the names of files and weights, strictly."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from formulas import every_weight_matters, random  # noqa: E402

from edge4d.export.checkpoints import save_checkpoint  # noqa: E402
from edge4d.export.models.gvf_diffusion import CONFIGS, GvfDiffusion, build  # noqa: E402
from edge4d.export.models.gvf_diffusion.official import DIT, LATENTS, STATIC, VAE  # noqa: E402
from edge4d.runtime.errors import InvalidCheckpoint, InvalidRequest  # noqa: E402


@pytest.fixture(scope="module")
def trained() -> GvfDiffusion:
    return every_weight_matters(build("tiny"))


@pytest.fixture
def folder(tmp_path: Path, trained: GvfDiffusion) -> Path:
    """The files as officially: networks wrapped for several GPUs, statistics with further axes and in float64."""
    for network, name in ((trained.dit, DIT), (trained.vae, VAE)):
        torch.save({f"module.{key}": value for key, value in network.state_dict().items()}, tmp_path / name)
    for names, channels in ((STATIC, 14), (LATENTS, 16)):
        torch.save(random(1, channels).double(), tmp_path / names[0])
        torch.save(random(1, 1, channels, seed=1).double().exp(), tmp_path / names[1])
    return tmp_path


def test_a_folder_is_loaded(folder, trained):
    model = build("tiny", folder)
    assert not model.training
    for network, found in ((trained.dit, model.dit), (trained.vae, model.vae)):
        for key, value in network.state_dict().items():
            assert torch.equal(found.state_dict()[key], value), key
    torch.testing.assert_close(model.static.mean, random(14))
    torch.testing.assert_close(model.static.deviation, random(14, seed=1).exp())
    torch.testing.assert_close(model.latents.mean, random(16))
    torch.testing.assert_close(model.latents.deviation, random(16, seed=1).exp())


def test_a_checkpoint_of_ours_is_loaded(tmp_path, trained):
    save_checkpoint(trained, tmp_path / "a.safetensors")
    model = build("tiny", tmp_path / "a.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), trained.state_dict().values()))


@pytest.mark.parametrize("name", [DIT, VAE, *STATIC, *LATENTS])
def test_missing_files_are_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(InvalidCheckpoint, match=f"(?s){name}.*cannot be read"):
        build("tiny", folder)


def test_missing_and_unexpected_weights_are_listed(folder):
    tensors = torch.load(folder / DIT)
    tensors["module.blocks.0.extra.weight"] = tensors.pop("module.blocks.0.norm3.weight")
    tensors["step"] = torch.ones(1)
    torch.save(tensors, folder / DIT)
    with pytest.raises(InvalidCheckpoint) as caught:
        build("tiny", folder)
    assert "Missing: blocks.0.norm3.weight; unexpected: blocks.0.extra.weight, step;" in caught.value.note


@pytest.mark.parametrize("value", [torch.ones(15), torch.ones(14, 1), {"mean": torch.ones(14)}])
def test_statistics_of_another_shape_are_refused(folder, value):
    torch.save(value, folder / STATIC[0])
    with pytest.raises(InvalidCheckpoint, match="does not hold 14 numbers"):
        build("tiny", folder)


def test_deviations_must_be_positive(folder):
    torch.save(torch.zeros(16), folder / LATENTS[1])
    with pytest.raises(InvalidCheckpoint, match="not positive"):
        build("tiny", folder)


def test_unknown_configurations_are_refused():
    with pytest.raises(InvalidRequest, match="'huge'"):
        build("huge")


def test_the_official_size():
    with torch.device("meta"):
        model = GvfDiffusion(CONFIGS["paper"])
    assert sum(value.numel() for value in model.parameters()) == 105_511_440 + 125_206_318
