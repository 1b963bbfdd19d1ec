"""The small networks: grouping by hand-made maps, what comes out, size, and the way into a bundle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

import edge4d  # noqa: E402
from edge4d.export.bundle_from_model import bundle_from_model  # noqa: E402
from edge4d.export.checkpoints import save_checkpoint  # noqa: E402
from edge4d.export.models.pixel_to_4d import CONFIGS, Street, build, street, street_config  # noqa: E402
from edge4d.export.models.pixel_to_4d.gaussians import DynamicGaussians, SceneLift, SceneTensors  # noqa: E402
from edge4d.export.models.pixel_to_4d.motion import move  # noqa: E402
from edge4d.runtime.bundle import Bundle  # noqa: E402
from edge4d.runtime.errors import InvalidCheckpoint, InvalidRequest  # noqa: E402

WIDTH, HEIGHT = 128, 64
INTRINSICS = torch.tensor([[110.0, 110.0, 64.0, 32.0]])
GROUPS = 64


# ---- grouping --------------------------------------------------------------------------------------------------------


def maps(
    ids: torch.Tensor, centres: dict[int, tuple[int, int, float]]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Perfect maps of objects [H,W] with centres {id: (row, column of the coarse map, logit)}: each pixel points at its
    own. The centre of a coarse cell is at 4·(cell + 0.5) pixels."""
    height, width = ids.shape
    heat = torch.full((1, 1, height // 4, width // 4), -8.0)
    offsets = torch.zeros(1, 2, height // 2, width // 2)
    y, x = torch.meshgrid(2 * torch.arange(height // 2) + 1.0, 2 * torch.arange(width // 2) + 1.0, indexing="ij")
    for name, (row, column, logit) in centres.items():
        heat[0, 0, row, column] = logit
        own = ids[1::2, 1::2] == name
        offsets[0, 0][own] = (4 * (column + 0.5) - x[own]) / street.CENTRE_UNIT
        offsets[0, 1][own] = (4 * (row + 0.5) - y[own]) / street.CENTRE_UNIT
    objects = torch.where(ids > 0, 5.0, -5.0)[None, None]
    return objects, heat, offsets


def test_two_objects_with_the_most_certain_first():
    ids = torch.zeros(HEIGHT, WIDTH, dtype=torch.int64)
    ids[8:24, 8:40] = 2
    ids[30:60, 90:120] = 1
    grouped = street.group_pixels(*maps(ids, {2: (4, 6, 1.0), 1: (11, 26, 3.0)}), groups=GROUPS)
    assert grouped.dtype == torch.int32
    assert grouped.shape == (1, HEIGHT, WIDTH)
    assert torch.equal(grouped[0].long(), ids)


def test_touching_objects_are_told_apart_by_where_they_point():
    ids = torch.zeros(HEIGHT, WIDTH, dtype=torch.int64)
    ids[16:48, 32:64] = 1
    ids[16:48, 64:100] = 2
    # The border is much nearer to the second centre: the nearest centre alone would not do.
    grouped = street.group_pixels(*maps(ids, {1: (8, 9, 3.0), 2: (8, 17, 2.0)}), groups=GROUPS)
    assert torch.equal(grouped[0].long(), ids)


def test_without_a_certain_centre_there_are_no_objects():
    ids = torch.ones(HEIGHT, WIDTH, dtype=torch.int64)
    below = float(np.log(0.59 / 0.41))
    assert (street.group_pixels(*maps(ids, {1: (8, 9, below)}), groups=GROUPS) == 0).all()
    above = float(np.log(0.61 / 0.39))
    assert (street.group_pixels(*maps(ids, {1: (8, 9, above)}), groups=GROUPS) == 1).all()


def test_uncertain_centres_attract_nothing():
    ids = torch.zeros(HEIGHT, WIDTH, dtype=torch.int64)
    ids[8:24, 8:40], ids[30:60, 90:120] = 1, 2
    grouped = street.group_pixels(*maps(ids, {1: (4, 6, 1.0), 2: (11, 26, -3.0)}), groups=GROUPS)
    assert torch.equal(grouped[0] > 0, ids > 0)
    assert grouped.max() == 1  # all point at the one that is certain, near or not


def test_only_peaks_are_centres():
    ids = torch.zeros(HEIGHT, WIDTH, dtype=torch.int64)
    ids[8:40, 8:60] = 1
    objects, heat, offsets = maps(ids, {1: (6, 8, 3.0)})
    heat[0, 0, 5:8, 7:10] = 2.0
    heat[0, 0, 6, 8] = 3.0
    offsets[:] = 0  # every pixel joins what is nearest to it
    assert torch.equal(street.group_pixels(objects, heat, offsets, groups=GROUPS)[0].long(), ids)


def test_more_centres_than_groups_keep_the_most_certain():
    heat = torch.full((1, 1, 32, 32), -8.0)
    cells = [(row, column) for row in range(1, 31, 3) for column in range(1, 31, 3)]  # 100, three apart
    order = torch.randperm(len(cells), generator=torch.Generator().manual_seed(0)).tolist()
    for rank, cell in enumerate(order):
        heat[0, 0][cells[cell]] = 4 - 0.03 * rank
    everywhere = torch.full((1, 1, 128, 128), 5.0)
    for groups in (GROUPS, 5):
        ids = street.group_pixels(everywhere, heat, torch.zeros(1, 2, 64, 64), groups=groups)[0]
        assert sorted(ids.unique().tolist()) == list(range(1, groups))
        for rank, cell in enumerate(order[: groups - 1]):
            row, column = cells[cell]
            assert (ids[4 * row + 1 : 4 * row + 3, 4 * column + 1 : 4 * column + 3] == rank + 1).all()


def test_each_picture_of_a_batch_has_its_own_objects():
    ids = torch.zeros(HEIGHT, WIDTH, dtype=torch.int64)
    ids[8:24, 8:40] = 1
    some, none = maps(ids, {1: (4, 6, 1.0)}), maps(ids, {})
    grouped = street.group_pixels(*(torch.cat(pair) for pair in zip(some, none)), groups=GROUPS)
    assert torch.equal(grouped[0].long(), ids)
    assert (grouped[1] == 0).all()


# ---- the networks ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny() -> Street:
    torch.manual_seed(0)
    model = build("tiny")
    assert isinstance(model, Street)
    torch.nn.init.normal_(model.core.dec_s[-1].weight, std=0.3)  # away from the start, where all Gaussians are alike
    torch.nn.init.normal_(model.core.motion[-1].weight, std=0.3)
    return model


def photograph(seed: int = 0, width: int = WIDTH, height: int = HEIGHT) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, height // 8, width // 8, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)


def instances() -> torch.Tensor:
    ids = torch.zeros(1, HEIGHT, WIDTH, dtype=torch.int32)
    ids[0, 20:40, 30:60], ids[0, 10:20, 100:110], ids[0, 50:52, :] = 1, 63, 7
    return ids


def core_inputs(model: Street, *, noise: float = 0.0, depth: float = 8.0) -> tuple[torch.Tensor, ...]:
    size = (1, model.config.noise_channels, HEIGHT // 16, WIDTH // 16)
    drawn = noise * torch.randn(size, generator=torch.Generator().manual_seed(1))
    return photograph(), torch.full((1, 1, HEIGHT, WIDTH), depth), instances(), drawn, INTRINSICS


@torch.no_grad()
def scene_of(model: Street, **inputs: float) -> DynamicGaussians:
    return model.core.scene(*core_inputs(model, **inputs))


def test_perceive_gives_depth_and_ids_within_their_ranges(tiny):
    with torch.no_grad():
        for scale in (1.0, 1e3):  # an input far outside what it knows
            depth, ids = tiny.perceive(scale * photograph(), INTRINSICS)
            assert depth.shape == (1, 1, HEIGHT, WIDTH)
            assert ids.shape == (1, HEIGHT, WIDTH)
            assert ids.dtype == torch.int32
            assert ids.min() >= 0
            assert ids.max() < GROUPS
            # exp(log(limit)) in float32
            assert depth.min() >= 0.3 * (1 - 1e-6)
            assert depth.max() <= street.FAR * (1 + 1e-6)


@torch.no_grad()
def scene_tensors_of(model: Street, *inputs: torch.Tensor) -> SceneTensors:
    image, depth, ids, _, intrinsics = inputs
    lifted: SceneTensors = SceneLift(model.core.lift)(*model.core(*inputs), image, depth, ids, intrinsics)
    return lifted


def test_stages_give_what_they_promise(tiny):
    tensors = dict(zip(("image", "intrinsics"), (photograph(), INTRINSICS)))
    tensors["noise"] = core_inputs(tiny)[3]
    for stage in tiny.stages():
        with torch.no_grad():
            outputs = stage.module(*(tensors[spec.name] for spec in stage.inputs))
        for spec, value in zip(stage.outputs, outputs):
            assert tuple(value.shape) == spec.shape_at({"H": HEIGHT, "W": WIDTH}), spec.name
            assert str(value.dtype) == f"torch.{spec.dtype}", spec.name
            assert value.isfinite().all(), spec.name
            tensors[spec.name] = value
    assert [stage.name for stage in tiny.stages()] == ["perceive", "readout", "core", "lift"]
    assert tuple(spec.name for spec in tiny.stages()[-1].outputs) == SceneTensors._fields


def test_gaussians_are_within_their_ranges(tiny):
    outputs = scene_tensors_of(tiny, *core_inputs(tiny))
    torch.testing.assert_close(outputs.quats.norm(dim=-1), torch.ones(1, 2 * HEIGHT * WIDTH), rtol=0, atol=1e-6)
    assert (outputs.opacities >= 0).all()
    assert (outputs.opacities <= 1).all()
    assert (outputs.scales > 0).all()
    assert (outputs.colors >= 0).all()


def test_each_object_moves_as_one_and_the_hidden_layer_stands_still(tiny):
    scene, ids = scene_of(tiny), instances()
    first, hidden = scene.groups.reshape(2, HEIGHT, WIDTH)
    assert torch.equal(first, ids[0])
    assert (hidden == 0).all()
    present = {1, 7, 63}
    for name in DynamicGaussians._fields[6:]:
        rows = getattr(scene, name)[0]
        assert {row for row in range(GROUPS) if (rows[row] != 0).any()} == present, name
    means, _ = move(scene, torch.tensor([1.0]))
    moved = (means != scene.means).any(-1).reshape(2, HEIGHT, WIDTH)
    assert not moved[1].any()
    assert not moved[0][ids[0] == 0].any()
    assert moved[0][ids[0] > 0].all()


def test_the_hidden_layer_lies_behind(tiny):
    z = scene_of(tiny).means[0, :, 2].reshape(2, HEIGHT, WIDTH)
    assert (z[1] > z[0]).float().mean() > 0.9  # but for offsets, which the network chooses


def test_at_the_start_the_scene_is_the_photograph():
    """Before training: Gaussians on their rays in the photograph's colours, about as large as their pixel, at rest."""
    torch.manual_seed(0)
    scene = scene_of(build("tiny"))
    first = slice(0, HEIGHT * WIDTH)
    # The last layer's weights are drawn with a deviation of 0.001.
    np.testing.assert_allclose(scene.colors[0, first], photograph()[0].flatten(1).T, atol=0.02)
    np.testing.assert_allclose(scene.means[0, first, 2], 8.0, atol=0.01)
    np.testing.assert_allclose(scene.scales[0, first] * 110 / 8, 0.6, atol=0.03)
    assert scene.velocity.abs().max() < 0.5


def test_without_noise_it_is_deterministic_and_noise_changes_motion_alone(tiny):
    first, second, other = scene_of(tiny), scene_of(tiny), scene_of(tiny, noise=2.0)
    assert all(torch.equal(a, b) for a, b in zip(first, second))
    for name, a, b in zip(DynamicGaussians._fields, first, other):
        assert torch.equal(a, b) == (name not in DynamicGaussians._fields[7:]), name


def test_depths_that_cannot_be_are_brought_within_the_limits(tiny):
    assert all(torch.equal(a, b) for a, b in zip(scene_of(tiny, depth=1e6), scene_of(tiny, depth=street.FAR)))
    assert scene_of(tiny, depth=0.0).means.isfinite().all()


def test_the_motion_encoder_gives_a_distribution_for_the_noise(tiny):
    encoder = street.MotionEncoder(tiny.config).eval()
    with torch.no_grad():
        mean, log_variance = encoder(photograph(0), photograph(1), torch.full((1, 1, HEIGHT, WIDTH), 8.0))
    assert mean.shape == log_variance.shape == (1, tiny.config.noise_channels, HEIGHT // 16, WIDTH // 16)
    assert log_variance.abs().max() <= 8


def test_half_precision_weights_stay_within_six_megabytes():
    model = build("street")
    assert isinstance(model, Street)
    weights = sum(parameter.numel() for parameter in model.parameters())
    assert 2 * weights <= 6_000_000


# ---- building and exporting ------------------------------------------------------------------------------------------


def test_configurations_by_name():
    assert set(CONFIGS) == {"street", "tiny", "paper"}
    assert build("tiny").config == street_config("tiny") == street.TINY
    for name in ("", "Street", "large"):
        with pytest.raises(InvalidRequest, match="street"):
            build(name)
    with pytest.raises(InvalidRequest, match="street or tiny"):
        street_config("paper")


def test_a_checkpoint_goes_round(tiny, tmp_path):
    tiny_with_encoder = torch.nn.Module()
    tiny_with_encoder.perceive, tiny_with_encoder.core = tiny.perceive, tiny.core
    tiny_with_encoder.enc_vae = street.MotionEncoder(tiny.config)
    for name, model in (("export", tiny), ("training", tiny_with_encoder)):
        path = tmp_path / f"{name}.safetensors"
        save_checkpoint(model, path, metadata={"steps": 12, "name": name})
        loaded = build("tiny", path)
        assert not loaded.training
        assert loaded.provenance == {"steps": 12, "name": name}
        expected = tiny.state_dict()
        assert all(torch.equal(value, expected[key]) for key, value in loaded.state_dict().items())
    with pytest.raises(InvalidCheckpoint):
        build("street", tmp_path / "export.safetensors")
    with pytest.raises(InvalidCheckpoint):
        build("tiny", tmp_path / "missing.safetensors")


@pytest.fixture(scope="module")
def bundle(tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "small.e4d"
    bundle_from_model(tiny, folder, **tiny.description())
    return folder


def test_the_bundle_says_what_it_is(tiny, bundle):
    found = Bundle.load(bundle)
    assert found.system == "pixel_to_4d"
    assert tuple(found.precisions) == ("fp32", "fp16")
    assert list(found.stages) == ["perceive", "readout", "core", "lift"]
    assert found.config["layers"] == 2
    assert found.config["groups"] == GROUPS
    assert found.config["noise_channels"] == tiny.config.noise_channels
    assert found.provenance == {"weights": "random"}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_bundle_generates_scenes(tiny, bundle, precision):
    """At two sizes, against the module, which gets the same depth and objects."""
    with edge4d.load(bundle, backend="onnxruntime", precision=precision) as pipeline:
        for width, height in ((64, 64), (160, 96)):
            image = (photograph(3, width, height)[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)
            scene = pipeline.generate(image, size=(width, height), fov=60.0)
            assert 0 < len(scene) <= 2 * width * height
            assert np.isfinite(scene.evaluate(1.0).means).all()
            ids = np.zeros((height, width), np.uint16)
            ids[10:30, 20:50] = 5
            depth = np.full((height, width), 12.0, np.float32)
            scene = pipeline.generate(image, size=(width, height), fov=60.0, depth=depth, instances=ids)
            expected = scene_tensors_of(
                tiny,
                torch.from_numpy(image).permute(2, 0, 1)[None] / 255,
                torch.from_numpy(depth)[None, None],
                torch.from_numpy(ids.astype(np.int32))[None],
                torch.zeros(1, tiny.config.noise_channels, height // 16, width // 16),
                torch.tensor([scene.camera.intrinsics]),
            )
            assert len(scene) == 2 * width * height  # none is transparent
            # float32 in another order of summation; float16 has 11 bits and a dozen layers
            tolerance = 1e-3 if precision == "fp32" else 0.05
            for name in ("means", "scales", "opacities", "colors"):
                reference = getattr(expected, name)[0].numpy()
                error = np.linalg.norm(getattr(scene, name) - reference) / np.linalg.norm(reference)
                assert error < tolerance, name
            np.testing.assert_array_equal(scene.groups, expected.groups[0])
            for name in ("linear", "angular"):
                reference = getattr(expected, name)[0].numpy()
                error = np.linalg.norm(getattr(scene.motion[0], name) - reference) / np.linalg.norm(reference)
                assert error < tolerance, name


def test_seeds_choose_among_motions(bundle):
    image = (photograph(3)[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    ids = instances()[0].numpy()
    with edge4d.load(bundle, backend="onnxruntime") as pipeline:

        def linear(seed: int | None) -> np.ndarray:
            return pipeline.generate(image, size=(WIDTH, HEIGHT), instances=ids, seed=seed).motion[0].linear

        assert np.array_equal(linear(1), linear(1))
        assert not np.allclose(linear(1), linear(2))
        assert not np.allclose(linear(1), linear(None))


def test_configurations_can_be_changed():
    config = replace(street.TINY, layers=3, noise_channels=2)
    model = Street(config).eval()
    scene = scene_of(model)
    assert scene.means.shape == (1, 3 * HEIGHT * WIDTH, 3)
    assert (scene.groups[0, HEIGHT * WIDTH :] == 0).all()
