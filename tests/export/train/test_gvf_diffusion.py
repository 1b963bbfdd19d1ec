"""Training of GVFDiffusion: its data against the meshes, what it learns against what is exported, and its files."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from safetensors.torch import load_file  # noqa: E402

from edge4d.export.checkpoints import checkpoint_metadata, load_checkpoint  # noqa: E402
from edge4d.export.models.gvf_diffusion import build  # noqa: E402
from edge4d.export.models.gvf_diffusion.animals import Animals  # noqa: E402
from edge4d.export.models.gvf_diffusion.fast import DitCond, DitStep  # noqa: E402
from edge4d.export.train import gvf_diffusion as training  # noqa: E402
from edge4d.export.worlds import mesh_render  # noqa: E402
from edge4d.export.worlds.surface_gaussians import gaussians_at, positions, sample_points  # noqa: E402
from edge4d.kernels import reference  # noqa: E402
from edge4d.runtime import cli  # noqa: E402
from edge4d.runtime.clip import read_clip  # noqa: E402
from edge4d.runtime.errors import InvalidCheckpoint, InvalidRequest  # noqa: E402
from edge4d.runtime.gaussians import Gaussians  # noqa: E402
from edge4d.runtime.motion import Delta  # noqa: E402
from edge4d.runtime.object_views import object_camera  # noqa: E402
from edge4d.runtime.ply import C0  # noqa: E402
from edge4d.runtime.samplers import CosineSchedule  # noqa: E402
from edge4d.runtime.variation_field import ACTIVATION, DELTA, query_from_gaussians  # noqa: E402

CPU = torch.device("cpu")
COUNT, POINTS, SIDE, TIMES = 300, 40, 32, 3


@pytest.fixture(scope="module", autouse=True)
def small_and_apart() -> Iterator[None]:
    """Few times of few Gaussians, and a short validation. `train` chooses the precision of matrix products for the
    whole process: other tests shall not see it."""
    precision, benchmark = torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "TIMES", TIMES)
        patch.setattr(training, "GAUSSIANS", 160)
        patch.setattr(training, "QUERIES", 20)
        patch.setattr(training, "validate", functools.partial(training.validate, batch=2))
        yield
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.benchmark = benchmark


@pytest.fixture(scope="module")
def herds() -> list[training.Herd]:
    """Five animals, one of each plan."""
    return training.Herds(0, 5, COUNT, TIMES)(0)


@pytest.fixture(scope="module")
def clips(herds) -> training.Clips:
    return training.make_clips(herds, POINTS, SIDE, CPU)


def tiny() -> Animals:
    """With no weight at zero."""
    torch.manual_seed(0)
    model = build("animals-tiny")
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return model


# ---- data ------------------------------------------------------------------------------------------------------------


def test_steps_depend_on_number_and_seed_alone():
    herds = training.Herds(3, 5, 20, TIMES)
    for first, second in zip(herds(7), training.Herds(3, 5, 20, TIMES)(7)):
        assert all(torch.equal(a, b) for a, b in zip(first, second))
    assert not torch.equal(herds(7)[0].vertices, herds(8)[0].vertices)


def test_processes_make_the_same_herds():
    herds = training.Herds(1, 2, 10, TIMES)
    ahead = list(training.herds_ahead(herds, range(4, 9), workers=1))
    assert len(ahead) == 5
    for step, made in enumerate(ahead, start=4):
        for first, second in zip(made, herds(step)):
            assert all(torch.equal(a, b) for a, b in zip(first, second))


def test_changes_added_to_raw_values_are_the_later_gaussians(herds):
    """By the runtime's own arithmetic, which is what becomes of a network's changes."""
    for herd in herds:
        points = sample_points(herd.vertices[:, 0], herd.faces, herd.uniform)
        query, changes = training.query_and_changes(points, herd)
        truth = gaussians_at(points, herd.faces, herd.vertices, herd.colors)
        size = 0.6 + 0.8 * float(herd.jitter[0, 3])
        now = Gaussians(
            truth.means[0, 0].numpy(),
            truth.quats[0, 0].numpy(),
            size * truth.scales[0, 0].numpy(),
            query[0, :, 6].numpy(),
            ((truth.colors[0, :, None] - 0.5) / C0).numpy(),
        )
        np.testing.assert_allclose(query[0], query_from_gaussians(now), rtol=1e-5, atol=1e-6)
        raw = now._replace(
            quats=now.quats - np.array(ACTIVATION.quat_bias, np.float32),
            scales=training.raw_scales(truth.scales[0, 0] * size).numpy() - np.float32(ACTIVATION.scale_bias),
            opacities=np.log(now.opacities / (1 - now.opacities)) - np.float32(ACTIVATION.opacity_bias),
        )
        motion = Delta(np.arange(3.0), changes[0].numpy(), DELTA, domain="raw", rotation="add")
        for index in range(3):
            later = ACTIVATION.apply(motion.apply(raw, None, float(index)))  # type: ignore[arg-type]
            np.testing.assert_allclose(later.means, truth.means[0, index], atol=1e-5)
            np.testing.assert_allclose(later.quats, truth.quats[0, index], atol=1e-4)
            # The changes are stored in half precision: 11 bits of up to 4.
            np.testing.assert_allclose(later.scales, size * truth.scales[0, index].numpy(), rtol=4e-3)
            np.testing.assert_allclose(later.opacities, now.opacities, atol=1e-6)
            np.testing.assert_allclose(later.colors, now.colors, atol=1e-6)


def test_the_farthest_come_first(herds, clips):
    gaussians = clips.gaussians
    assert gaussians.shape == (5, COUNT, 14)
    for points in gaussians[..., :3]:
        indices = reference.farthest_point_sample(points.numpy(), count=POINTS)
        np.testing.assert_array_equal(indices, np.arange(POINTS))
    order = training.farthest_first(torch.rand(2, 9, 3), 4)
    assert [sorted(row) for row in order.tolist()] == [list(range(9))] * 2


def test_the_last_gaussians_are_from_all_over(clips):
    """The VAE's encoder takes them for a mesh."""
    everywhere, last = clips.gaussians[..., :3], clips.gaussians[:, -64:, :3]
    np.testing.assert_allclose(last.std(1), everywhere.std(1), rtol=0.4)


def test_pictures_are_what_a_clip_is_cut_out_of(herds):
    """A video of azimuth 0 as the runtime cuts it, against the picture that is learned from."""
    size, camera = 256, object_camera(256)
    viewmat, K = (torch.tensor(matrix).float() for matrix in (camera.viewmat, camera.K))
    for herd in herds:
        herd = herd._replace(jitter=torch.full_like(herd.jitter, 0.5))  # no jitter
        vertices = herd.vertices[0]
        drawn = mesh_render.render(
            vertices, herd.faces, herd.colors.expand(3, -1, -1), viewmat.expand(3, -1, -1), K, size
        )
        straight = torch.cat([drawn[..., :3] / drawn[..., 3:].clamp_min(1e-6), drawn[..., 3:]], -1)
        video = (straight.clamp(0, 1) * 255 + 0.5).to(torch.uint8).numpy()
        expected = read_clip(video, 64).pictures.astype(np.float32) / 255
        found = training.front_pictures(herd, 64)[0].permute(0, 2, 3, 1).numpy()
        assert (expected.mean(-1) < 0.9).mean() > 0.01
        # Edges are drawn with four samples here and with sixteen there, and masks end at whole pixels.
        assert np.abs(found - expected).mean() < 0.012


def test_squares_are_a_little_off(herds):
    pictures = [
        training.front_pictures(herds[0]._replace(jitter=torch.full_like(herds[0].jitter, value)), SIDE)
        for value in (0.0, 0.5, 1.0)
    ]
    for picture in (pictures[0], pictures[2]):
        difference = (picture - pictures[1]).abs().mean()
        assert 0.0005 < difference < 0.05


def test_interpolation_is_that_of_the_operator():
    generator = torch.Generator().manual_seed(0)
    anchors, points = torch.rand(2, 7, 3, generator=generator), torch.rand(2, 50, 3, generator=generator)
    motion = torch.randn(2, 4, 50, 3, generator=generator)
    found = training.interpolated(anchors, points, motion)
    for b in range(2):
        expected = reference.knn_interpolate(anchors[b].numpy(), points[b].numpy(), motion[b].numpy()).values
        np.testing.assert_allclose(found[b], expected, atol=1e-5)


# ---- losses ----------------------------------------------------------------------------------------------------------


def test_noise_levels_are_the_samplers():
    levels, schedule = training.NoiseLevels(CPU), CosineSchedule()
    np.testing.assert_allclose(levels.alpha.square() + levels.sigma.square(), 1, atol=1e-6)
    assert levels.time[-1] == pytest.approx(schedule.model_time(1.0))
    assert levels.alpha[500] == pytest.approx(schedule.alpha(0.001 + 500 * 0.999 / 999))
    assert (levels.alpha.diff() <= 0).all()


def test_the_vae_learns_changes_alone(clips):
    model = tiny()
    terms = training.vae_losses(model, clips)
    assert set(terms) == {*DELTA, "kl"}
    torch.stack(list(terms.values())).sum().backward()
    for name, parameter in model.named_parameters():
        reached = parameter.grad is not None and parameter.grad.isfinite().all() and (parameter.grad != 0).any()
        assert reached == name.startswith("vae."), name


def test_the_transformer_learns_with_its_encoder_and_leaves_the_vae(clips):
    model = tiny()
    terms = training.dit_losses(model, clips, training.NoiseLevels(CPU))
    assert set(terms) == {"v"}
    terms["v"].backward()
    for name, parameter in model.named_parameters():
        reached = parameter.grad is not None and parameter.grad.isfinite().all() and (parameter.grad != 0).any()
        assert reached != name.startswith("vae."), name


def test_true_latents_cost_nothing_to_a_network_that_knows_them(clips, monkeypatch):
    model = tiny()
    seen: dict[str, Any] = {}

    def perfect(model: Any, x: Any, t: Any, clips: Any) -> Any:
        """v from x, for data that is always zero: the latents below have no deviation."""
        seen["t"] = t
        return x / levels.sigma[(levels.time == t[:, None]).float().argmax(1)][:, None, None, None] * alpha(t)

    def alpha(t: Any) -> Any:
        return levels.alpha[(levels.time == t[:, None]).float().argmax(1)][:, None, None, None]

    levels = training.NoiseLevels(CPU)
    monkeypatch.setattr(training, "velocity", perfect)
    monkeypatch.setattr(training, "drawn_latents", lambda mean, log_variance: torch.zeros_like(mean))
    assert training.dit_losses(model, clips, levels)["v"] < 1e-10
    assert seen["t"].shape == (5 * training.LEVELS,)


@pytest.mark.parametrize("count", [training.LEVELS, 10, 1000])
def test_noise_levels_are_spread_over_each_clip(count):
    levels = training.evenly(count, 7).reshape(training.LEVELS, 7)
    assert (levels >= 0).all()
    assert (levels < count).all()
    edges = count / training.LEVELS * torch.arange(training.LEVELS)[:, None]
    assert (levels >= edges.floor()).all()
    assert (levels < edges + count / training.LEVELS).all()


@torch.no_grad()
def test_clips_that_are_repeated_are_seen_alike(clips):
    model = tiny().eval()
    B, T = clips.changes.shape[:2]
    x = torch.randn(2 * B, T, model.config.latents, model.config.dit.latent_channels)
    t = 1000 * torch.rand(2 * B)
    found = training.velocity(model, x, t, clips)
    alone = [training.velocity(model, part, at, clips) for part, at in zip(x.split(B), t.split(B))]
    # The same sums, in batches of another size.
    torch.testing.assert_close(found, torch.cat(alone), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_what_is_trained_is_what_is_exported(clips):
    """One object through the engines' stages."""
    model = tiny().eval()
    training.settle(model, iter([training.Herds(5, 5, 160, TIMES)(step) for step in range(2)]), CPU, batches=2)
    config = model.config
    one = training.Clips(*(value[1:2] for value in clips))
    x, t = torch.randn(1, 3, config.latents, config.dit.latent_channels), torch.tensor([412.0])
    expected = training.velocity(model, x, t, one)[0]
    cond, stages = DitCond(model.dit, model.static), {stage.name: stage.module for stage in model.stages()}
    images = stages["image"](one.pictures[0])
    contexts = cond(images, one.gaussians[0, : config.static_points])
    assert isinstance(stages["dit_step"], DitStep)
    found = stages["dit_step"](x[0], t, one.gaussians[0, : config.latents, :3], *contexts)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_settling_standardises(clips):
    model = tiny()
    herds = [training.Herds(6, 10, 160, TIMES)(step) for step in range(3)]
    training.settle(model, iter(herds), CPU, batches=3)
    assert (model.static.deviation >= training._SMALLEST_DEVIATION).all()
    made = training.make_clips(herds[0], model.config.static_points, 0, CPU)
    latents = model.latents(training.drawn_latents(*training.encode(model, made)))
    np.testing.assert_allclose(latents.mean((0, 1)), 0, atol=0.5)
    np.testing.assert_allclose(latents.std((0, 1)), 1, atol=0.3)


# ---- validation ------------------------------------------------------------------------------------------------------


def test_vertices_are_points_of_their_triangles(herds):
    for herd in herds:
        points = training.vertex_points(herd)
        found = positions(points, herd.faces, herd.vertices)
        assert torch.equal(found, herd.vertices)


def test_validation_scores_the_truth_and_what_stands_still(monkeypatch):
    model = tiny().eval()
    figures = training.validate(model, CPU, transformer=True)
    assert set(figures) == {f"{what}{how}" for what in ("psnr", "miss") for how in ("", "_vae", "_static")}
    assert all(np.isfinite(value) for value in figures.values())
    assert 0 < figures["miss_static"] < 0.3
    assert figures == training.validate(model, CPU, transformer=True)
    still = torch.zeros(14)

    def decode(samples: Any, gaussians: Any) -> Any:
        return still.expand(*gaussians.shape[:2], 14)

    monkeypatch.setattr(model.vae, "decode", decode)
    figures = training.validate(model, CPU, transformer=False)
    assert set(figures) == {f"{what}{how}" for what in ("psnr", "miss") for how in ("_vae", "_static")}
    assert figures["psnr_vae"] == figures["psnr_static"]


# ---- training --------------------------------------------------------------------------------------------------------


def run(out: Path, **options: Any) -> Path:
    return training.train("animals-tiny", out=out, device="cpu", batch=2, log_every=1, **options)


def log(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps: one of the VAE, one of the transformer."""
    out = tmp_path_factory.mktemp("training") / "new" / "run"
    assert run(out, steps=2, seed=3) == out / "checkpoint.safetensors"
    return out


def test_training_writes_its_files(trained):
    assert sorted(path.name for path in trained.iterdir()) == ["checkpoint.safetensors", "log.jsonl", "training.pt"]
    first, second = log(trained)
    assert (first["step"], second["step"]) == (1, 2)
    assert {"means", "kl"} <= set(first)
    assert {"v", "psnr", "psnr_vae", "psnr_static"} <= set(second)
    assert all(np.isfinite(value) for entry in (first, second) for value in entry.values())
    state = torch.load(trained / "training.pt", weights_only=True)
    weights = load_file(trained / "checkpoint.safetensors")
    assert all(torch.equal(value, state["shadow"][name]) for name, value in weights.items())
    assert any(not torch.equal(value, state["model"][name]) for name, value in weights.items())


def test_the_checkpoint_says_how_it_came_to_be_and_can_be_loaded(trained):
    path = trained / "checkpoint.safetensors"
    expected = {"world": "animals", "network": "animals-tiny", "seed": 3, "batch": 2, "schedule": 2, "steps": 2}
    assert checkpoint_metadata(path) == expected
    model = build("animals-tiny", path)
    assert model.provenance == expected
    assert (model.static.deviation != 1).any()
    assert model.description()["provenance"] == expected


def test_training_resumes_where_it_was(trained, tmp_path):
    """Out of time after one more step; another schedule may go on, here still with the transformer."""
    run(tmp_path, steps=4, seed=3, minutes=0.0, resume=trained / "training.pt")
    assert [entry["step"] for entry in log(tmp_path)] == [3]
    assert "v" in log(tmp_path)[0]
    before, after = (torch.load(folder / "training.pt", weights_only=True) for folder in (trained, tmp_path))
    assert after["step"] == 3
    count = len(after["optimizer"]["state"])
    assert count == len(list(build("animals-tiny").parameters()))  # all have been learned by now
    assert len(before["optimizer"]["state"]) == count
    kept = [name for name in before["model"] if name.startswith(("vae.", "static.", "latents."))]
    assert all(torch.equal(before["model"][name], after["model"][name]) for name in kept)


def test_refining_keeps_the_vae_bit_for_bit(trained, tmp_path):
    run(tmp_path, steps=2, seed=4, refine=trained / "checkpoint.safetensors")
    assert all("v" in entry for entry in log(tmp_path))
    before, after = (load_file(folder / "checkpoint.safetensors") for folder in (trained, tmp_path))
    kept = [name for name in before if name.startswith(("vae.", "static.", "latents."))]
    assert len(kept) > 10
    assert all(torch.equal(before[name], after[name]) for name in kept)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    about = checkpoint_metadata(tmp_path / "checkpoint.safetensors")
    assert about["refined_from"] == checkpoint_metadata(trained / "checkpoint.safetensors")


@pytest.mark.parametrize("wrong", [{"steps": 1}, {"batch": 0}, {"seed": -1}, {"seed": 1 << 32}])
def test_requests_that_cannot_be_trained(tmp_path, wrong):
    with pytest.raises(InvalidRequest):
        training.train("animals-tiny", out=tmp_path, device="cpu", **{"steps": 2, "batch": 1, **wrong})
    with pytest.raises(InvalidRequest, match="animals or animals-tiny"):
        training.train("paper", out=tmp_path, device="cpu", steps=2)


def test_there_is_nothing_to_resume(trained, tmp_path):
    (tmp_path / "training.pt").write_bytes(b"no checkpoint")
    with pytest.raises(InvalidCheckpoint, match="cannot go on"):
        run(tmp_path, steps=2, resume=tmp_path / "training.pt")
    with pytest.raises(InvalidRequest, match="nothing left"):
        run(tmp_path, steps=2, resume=trained / "training.pt")
    with pytest.raises(InvalidCheckpoint):
        load_checkpoint(build("animals"), trained / "checkpoint.safetensors")


def test_the_command_line_trains(tmp_path, capsys):
    command = ["train", "gvf-diffusion", "--config", "animals-tiny", "--device", "cpu", "--steps", "2", "--batch", "1"]
    with pytest.raises(SystemExit) as stop:
        cli.main([*command, "-o", str(tmp_path / "run")])
    assert not stop.value.code
    assert str(tmp_path / "run") in capsys.readouterr().out
    assert checkpoint_metadata(tmp_path / "run" / "checkpoint.safetensors")["steps"] == 2
