"""Official checkpoints are loaded by the names of files and weights, strictly."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from formulas import every_weight_matters, random  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from edge4d.export.checkpoints import save_checkpoint  # noqa: E402
from edge4d.export.models.gvf_diffusion import Animals, GvfDiffusion, Paper, build, official  # noqa: E402
from edge4d.export.models.gvf_diffusion.official import DIT, GENERATOR, LATENTS, MOTION, STATIC, VAE  # noqa: E402
from edge4d.runtime.bundle import sha256_of  # noqa: E402
from edge4d.runtime.errors import InvalidCheckpoint, InvalidRequest  # noqa: E402


@pytest.fixture(scope="module")
def trained() -> Paper:
    return every_weight_matters(build("tiny"))


@pytest.fixture
def folder(tmp_path: Path, trained: Paper) -> Path:
    """What follows a video: networks as wrapped for several GPUs, statistics of more axes and in float64."""
    torch.save(trained.dino.state_dict(), tmp_path / official.DINO)
    for network, name in ((trained.dit, DIT), (trained.vae, VAE)):
        torch.save({f"module.{key}": value for key, value in network.state_dict().items()}, tmp_path / name)
    for names, channels in ((STATIC, 14), (LATENTS, 16)):
        torch.save(random(1, channels).double(), tmp_path / names[0])
        torch.save(random(1, 1, channels, seed=1).double().exp(), tmp_path / names[1])
    return tmp_path


@pytest.fixture
def whole_folder(folder: Path, trained: Paper) -> Path:
    """With the generator: TRELLIS's weights are in half precision, and the decoder's file has those of its encoder."""
    (folder / official.TRELLIS).mkdir()
    generator = trained.canonical
    for network, name in (
        (generator.structure_flow, official.STRUCTURE_FLOW),
        (generator.structure_decoder, official.STRUCTURE_DECODER),
        (generator.slat_flow, official.SLAT_FLOW),
    ):
        save_file({key: value.half() for key, value in network.state_dict().items()}, folder / name)
    decoder = {
        key.replace("blocks.", "decoder.").replace("input_layer.", "from_latent."): value
        for key, value in generator.gaussian_decoder.state_dict().items()
    }
    tensors = {f"module.{key}": value for key, value in {**decoder, "encoder.0.weight": torch.ones(3)}.items()}
    torch.save(tensors, folder / official.GAUSSIAN_DECODER)
    return folder


def test_a_folder_is_loaded(folder, trained):
    model = build("tiny", folder)
    assert not model.training
    assert model.canonical is None
    for network, found in ((trained.dino, model.dino), (trained.dit, model.dit), (trained.vae, model.vae)):
        for key, value in network.state_dict().items():
            assert torch.equal(found.state_dict()[key], value), key
    torch.testing.assert_close(model.static.mean, random(14))
    torch.testing.assert_close(model.static.deviation, random(14, seed=1).exp())
    torch.testing.assert_close(model.latents.mean, random(16))
    torch.testing.assert_close(model.latents.deviation, random(16, seed=1).exp())
    assert [stage.name for stage in model.stages()][:2] == ["dino", "dit_cond"]


def test_the_generator_is_loaded_where_it_is(whole_folder, trained):
    model = build("tiny", whole_folder)
    state = model.canonical.state_dict()
    for name, value in trained.canonical.state_dict().items():
        exact = name.startswith(("gaussian_decoder", "latents"))
        assert torch.equal(state[name], value if exact else value.half().float()), name
    assert [stage.name for stage in model.stages()][-4:] == ["ss_flow", "ss_dec", "slat_flow", "gs_dec"]


def test_bundles_say_whose_weights_they_are(whole_folder):
    description = build("tiny", whole_folder).description()
    assert description["system"] == "gvf_diffusion"
    assert description["config"] == {"size": [128, 128], "frames": 4, "fps": 10}
    assert description["camera"].width == 128
    assert description["licence"] == "LicenseRef-GVFDiffusion AND Apache-2.0 AND MIT"
    files = description["provenance"]["files"]
    assert list(files) == [*MOTION, *GENERATOR]
    assert files[DIT] == sha256_of(whole_folder / DIT)


def test_random_weights_are_ours():
    description = build("tiny").description()
    assert (description["licence"], description["provenance"]) == ("Apache-2.0", {"training": "none"})


def test_a_checkpoint_of_ours_is_loaded(tmp_path, trained):
    save_checkpoint(trained, tmp_path / "a.safetensors")
    model = build("tiny", tmp_path / "a.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), trained.state_dict().values()))


@pytest.mark.parametrize("name", [*MOTION, *GENERATOR])
def test_missing_files_are_named(whole_folder, name):
    (whole_folder / name).unlink()
    with pytest.raises(InvalidCheckpoint, match=f"(?s)lacks.*Missing: {name}"):
        build("tiny", whole_folder)


@pytest.mark.parametrize("name", [*MOTION, *GENERATOR])
def test_damaged_files_are_named(whole_folder, name):
    path = whole_folder / name
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InvalidCheckpoint, match=f"{name}' cannot be read"):
        build("tiny", whole_folder)


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


@pytest.mark.parametrize("name", ["animals", "animals-tiny"])
def test_animals_have_no_official_files(folder, name):
    assert isinstance(build(name), Animals)
    with pytest.raises(InvalidCheckpoint, match="cannot be read"):
        build(name, folder)


def test_the_official_size():
    with torch.device("meta"):
        model = GvfDiffusion()
    assert sum(value.numel() for value in model.parameters()) == 105_511_440 + 125_206_318
    assert model.config.patches * 14 == 518
