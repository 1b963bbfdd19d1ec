"""Training: its targets against what the streets do, its losses, and the files that it leaves."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from safetensors.torch import load_file  # noqa: E402

from edge4d.export.checkpoints import checkpoint_metadata  # noqa: E402
from edge4d.export.models.pixel_to_4d import build, gaussians, street, street_config  # noqa: E402
from edge4d.export.train import pixel_to_4d as training  # noqa: E402
from edge4d.export.worlds import street as world  # noqa: E402
from edge4d.runtime.errors import InvalidCheckpoint, InvalidRequest  # noqa: E402

SIZE = (64, 32)
CPU = torch.device("cpu")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- targets ---------------------------------------------------------------------------------------------------------


def test_true_motions_are_derivatives_of_a_point_carried_along():
    """The point is the centre of what is seen of an object; every object turns, so that its pivot moves otherwise."""
    width, height, count = 128, 64, 6
    streets = world.evaluation_streets(1, count)
    turning = torch.linspace(-0.6, 0.6, world.OBJECTS).expand(count, -1)
    streets = replace(streets, objects=replace(streets.objects, yaw_rate=turning))
    photo = world.render(streets, torch.zeros(count), streets.camera, width, height)
    motion, visible = training.true_motions(streets, photo)
    assert motion.shape == (count, gaussians.GROUPS, 12)
    assert visible.shape == (count, gaussians.GROUPS)

    intrinsics = streets.intrinsics(width, height)
    points = gaussians.unproject(photo.depth.clamp_max(street.FAR)[:, None], intrinsics)[:, 0].double()
    h, checked = 1e-3, 0
    for scene in range(count):
        camera = streets.camera[scene].double()
        for slot in range(world.OBJECTS):
            rows = photo.objects[scene] == slot + 1
            assert bool(visible[scene, slot + 1]) == bool(rows.sum() >= 20)
            if not visible[scene, slot + 1]:
                continue
            start = camera[:3, :3] @ points[scene][rows].mean(0) + camera[:3, 3]

            def place(t: float, scene: int = scene, slot: int = slot, start: torch.Tensor = start) -> torch.Tensor:
                o = streets.objects
                c, v, a = (value[scene, slot].double() for value in (o.centres, o.velocity, o.acceleration))
                angle = o.yaw_rate[scene, slot].double() * t
                x, y, z = start - c
                cos, sin = angle.cos(), angle.sin()
                moved = c + torch.stack([cos * x + sin * z, y, cos * z - sin * x]) + v * t + 0.5 * a * t * t
                return streets.camera[scene, :3, :3].double().T @ moved

            velocity = (place(h) - place(-h)) / (2 * h)
            acceleration = (place(h) - 2 * place(0) + place(-h)) / h**2
            row = motion[scene, slot + 1].double()
            # float32 camera and points of 50 m: some µm, times ω; the differences are exact to h² and 1e-15/h².
            np.testing.assert_allclose(row[:3], velocity, rtol=1e-5, atol=2e-5)
            np.testing.assert_allclose(row[3:6], acceleration, rtol=1e-5, atol=2e-5)
            spin = streets.camera[scene, 1, :3].double() * float(turning[scene, slot])
            np.testing.assert_allclose(row[6:9], spin, atol=1e-6)
            assert (row[9:] == 0).all()
            checked += 1
    assert checked > 10
    assert (motion[:, 0] == 0).all()
    assert not visible[:, 0].any()
    assert (motion[:, 1 + world.OBJECTS :] == 0).all()
    assert not visible[:, 1 + world.OBJECTS :].any()


def hand_made() -> torch.Tensor:
    """32x64: object 5 around the cell at (10, 10), object 9 around (46, 18), object 3 too small to have a centre."""
    ids = torch.zeros(1, 32, 64, dtype=torch.int32)
    ids[0, 6:14, 6:14] = 5
    ids[0, 8:28, 34:58] = 9
    ids[0, 28:30, 2:4] = 3
    return ids


def test_centre_targets_of_a_hand_made_map():
    heat, offset, inside = training.centre_targets(hand_made(), torch.Size((8, 16)), torch.Size((16, 32)))
    assert heat.shape == (1, 1, 8, 16)
    assert offset.shape == (1, 2, 16, 32)
    assert inside.shape == (1, 1, 16, 32)
    # Cells are 4 pixels wide: the one around pixel (10, 10) is number 2, that around (46, 18) is (row 4, column 11).
    np.testing.assert_allclose([heat[0, 0, 2, 2], heat[0, 0, 4, 11]], 1, atol=1e-6)
    # 64 pixels: a deviation of 0.15·8, at least 4. 480 pixels: 0.15·21.9 is below 4 as well.
    np.testing.assert_allclose(heat[0, 0, 2, 3], np.exp(-0.5), rtol=1e-5)
    np.testing.assert_allclose(heat[0, 0, 6, 11], np.exp(-0.5 * 4), rtol=1e-5)
    assert heat[0, 0, 7, 0] < 0.01  # object 3
    # Offsets are from the centre of a 2x2 block to the object's centre.
    np.testing.assert_allclose(offset[0, :, 4, 4], [1, 1], atol=1e-4)  # means of float32 numbers below 64
    np.testing.assert_allclose(offset[0, :, 13, 17], [46 - 35, 18 - 27], atol=1e-4)
    expected = torch.zeros(16, 32)
    expected[3:7, 3:7] = expected[4:14, 17:29] = expected[14, 1] = 1
    assert torch.equal(inside[0, 0], expected)


def test_large_objects_have_wide_centres():
    ids = torch.ones(1, 128, 128, dtype=torch.int32)
    heat, _, _ = training.centre_targets(ids, torch.Size((32, 32)), torch.Size((64, 64)))
    # 128² pixels: 0.15·128 = 19.2, at most 16; the centre (64, 64) is a corner of cells.
    np.testing.assert_allclose(heat[0, 0, 16, 16], np.exp(-0.5 * 8 / 256), rtol=1e-5)
    np.testing.assert_allclose(heat[0, 0, 0, 16], np.exp(-0.5 * (62**2 + 4) / 256), rtol=1e-4)


def test_an_empty_street_has_no_centres():
    ids = torch.zeros(2, 32, 64, dtype=torch.int32)
    heat, _, inside = training.centre_targets(ids, torch.Size((8, 16)), torch.Size((16, 32)))
    assert (heat == 0).all()
    assert (inside == 0).all()


def test_grouping_the_targets_gives_the_map_back():
    ids = torch.where(hand_made() == 3, 0, hand_made())
    heat, offset, _ = training.centre_targets(ids, torch.Size((8, 16)), torch.Size((16, 32)))
    objects = torch.where(ids > 0, 5.0, -5.0)[:, None]
    centres = torch.logit(heat.clamp(1e-4, 1 - 1e-4))
    grouped = street.group_pixels(objects, centres, offset / street.CENTRE_UNIT, groups=gaussians.GROUPS)
    assert torch.equal(grouped > 0, ids > 0)
    pairs = torch.stack([grouped[ids > 0], ids[ids > 0]]).unique(dim=1)
    assert pairs.shape[1] == 2  # one id for each


# ---- samples and losses ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sample() -> training.Sample:
    return training.make_sample(world.training_streets(2, 0, 2), generator(), *SIZE, CPU)


def tiny() -> training.Training:
    torch.manual_seed(0)
    return training.Training(street_config("tiny"))


def test_samples_are_views_of_their_streets(sample):
    streets = world.training_streets(2, 0, 2)
    photo = world.render(streets, torch.zeros(2), streets.camera, *SIZE)
    assert torch.equal(sample.photo, photo.image.permute(0, 3, 1, 2))
    assert torch.equal(sample.instances.long(), photo.objects)
    assert sample.depth.shape == (2, 1, 32, 64)
    assert sample.depth.max() <= street.FAR
    other_pose = streets.camera @ torch.linalg.inv(sample.other_viewmat)
    for image, moving, time, pose in (
        (sample.later, sample.later_moving, sample.later_time, streets.camera),
        (sample.other, sample.other_moving, sample.other_time, other_pose),
    ):
        assert ((time >= 0) & (time <= training.CLIP_SECONDS)).all()
        view = world.render(streets, time, pose, *SIZE)
        # The pose went through an inverse twice: an edge here and there differs.
        assert ((image - view.image.permute(0, 3, 1, 2)).abs() > 0.01).float().mean() < 0.01
        expected = torch.cat([torch.zeros(2, 1, dtype=torch.bool), streets.objects.moving], 1)
        expected = expected.gather(1, view.objects.flatten(1)).reshape(2, 1, 32, 64)
        assert (moving.bool() != expected).float().mean() < 0.01


def test_losses_are_finite_and_reach_every_weight(sample):
    model = tiny()
    terms = training.losses(model, sample, generator())
    assert set(terms) == {"depth", "objects", "centres", "offsets", "image", "kl", "motion"}
    assert all(value.ndim == 0 and value.isfinite() and value >= 0 for value in terms.values())
    torch.stack(list(terms.values())).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert (parameter.grad != 0).any(), name


def test_losses_without_perception_leave_it_alone(sample):
    model = tiny()
    model.perceive.requires_grad_(False)
    terms = training.losses(model, sample, generator(), perception=False)
    assert set(terms) == {"image", "kl", "motion"}
    assert all(value.isfinite() for value in terms.values())
    torch.stack(list(terms.values())).sum().backward()
    assert all(parameter.grad is None for parameter in model.perceive.parameters())
    for part in (model.core, model.enc_vae):
        assert all((parameter.grad != 0).any() for parameter in part.parameters())


def test_photographs_are_those_of_the_sample(sample):
    model = tiny().eval()
    found = training.take_photographs(model, world.training_streets(2, 0, 2), 64, 32, torch.device("cpu"))
    depth, seen = model.perceive(sample.photo, sample.intrinsics)
    for value, expected in ((found.image, sample.photo), (found.depth, depth), (found.motion, sample.motion)):
        assert torch.equal(value, expected)
    assert torch.equal(found.seen, seen)
    assert torch.equal(found.instances, sample.instances)


def test_motion_is_learned_from_photographs_alone(sample):
    model = tiny()
    terms = training.motion_losses(model, photographs(sample))
    assert set(terms) == {"motion"}
    terms["motion"].backward()
    reached = {name.split(".")[0] for name, p in model.core.named_parameters() if p.grad is not None}
    assert reached == {"enc_s", "latent", "dec_vae", "dec_d", "motion"}


def test_motion_alone_is_that_of_all_maps(sample):
    core = tiny().core.eval()
    inputs = (sample.photo, sample.depth, sample.instances, torch.randn(2, 4, 2, 4), sample.intrinsics)
    assert torch.equal(core.motion_map(*inputs), core(*inputs)[1])


def photographs(sample: training.Sample) -> training.Photographs:
    return training.Photographs(
        sample.photo,
        sample.depth,
        sample.instances,
        sample.instances,
        sample.intrinsics,
        sample.motion,
        sample.visible,
    )


def test_the_true_motion_costs_nothing_and_others_cost_metres(sample):
    truth = photographs(sample)
    assert truth.visible.any()
    rows = truth.instances.long().flatten(1)[..., None].expand(-1, -1, 12)
    motion = truth.motion.gather(1, rows).transpose(1, 2).reshape(2, 12, 32, 64)
    # Means of equal float32 numbers
    assert training.motion_loss(motion, truth) < 1e-4
    # 1 m/s too fast along x misses by 1 m after 1 s and by 2 m after 2 s: smooth L1 of 0.5 and 1.5.
    faster = motion.clone()
    faster[:, 0] += 1
    assert training.motion_loss(faster, truth).item() == pytest.approx(2.0, rel=1e-3)


def test_perfect_maps_cost_little(sample):
    heat, offset, _ = training.centre_targets(sample.instances, torch.Size((8, 16)), torch.Size((16, 32)))
    objects = torch.where(sample.instances > 0, 12.0, -12.0)[:, None]
    maps = (sample.depth.log(), objects, torch.logit(heat.clamp(1e-5, 1 - 1e-5)), offset / street.CENTRE_UNIT)
    terms = training.perception_loss(maps, sample)
    assert terms["depth"] == 0
    assert terms["objects"] < 1e-4  # log(1 + e⁻¹²)
    assert terms["offsets"] < 1e-6
    flat = training.perception_loss((*maps[:2], torch.zeros_like(maps[2]), maps[3]), sample)
    assert terms["centres"] < flat["centres"]  # not zero: between 0 and 1 it is the entropy of the heat


def test_views_move_what_moves_and_nothing_else(sample):
    """With the true motion the later view is nearer to the truth than with none, where something moves."""
    lift = street.Lift(street_config("tiny"))
    raw = torch.zeros(2, 2 * gaussians.CANONICAL_CHANNELS + 1, *sample.photo.shape[2:])
    motion = torch.zeros(2, gaussians.MOTION_CHANNELS, 8, 16)
    scene = lift(raw, motion, sample.photo, sample.depth, sample.instances, sample.intrinsics)
    parts = dict(zip(gaussians.DynamicGaussians._fields[7:], torch.split(sample.motion, 3, -1)))
    images, depths = training.render_views(scene._replace(**parts), sample)
    still, _ = training.render_views(scene, sample)
    assert images.shape == (4, 3, 32, 64)
    assert depths.shape == (4, 1, 32, 64)
    changed = sample.later_moving.bool() | torch.isin(
        sample.instances, (sample.motion.abs().sum(-1) > 0).nonzero()[:, 1].unique().int()
    ).reshape(2, 1, 32, 64)
    error, error_still = ((view[:2] - sample.later).abs().mean(1, keepdim=True) for view in (images, still))
    assert error[changed].mean() < error_still[changed].mean()


# ---- replay, schedule, averages --------------------------------------------------------------------------------------


def numbered(first: int, count: int) -> training.Photographs:
    values = torch.arange(first, first + count, dtype=torch.float32)
    return training.Photographs(
        image=values.reshape(-1, 1, 1, 1).expand(-1, 3, 2, 2),
        depth=values.reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2),
        seen=values.int().reshape(-1, 1, 1).expand(-1, 2, 2),
        instances=values.int().reshape(-1, 1, 1).expand(-1, 2, 2),
        intrinsics=values[:, None].expand(-1, 4),
        motion=values.reshape(-1, 1, 1).expand(-1, 64, 12),
        visible=torch.ones(count, 64, dtype=torch.bool),
    )


def test_replay_wraps_around_and_keeps_rows_together():
    replay = training.Replay(5)
    drawn = replay.mixed(numbered(0, 2), generator())
    assert drawn.intrinsics[:2, 0].tolist() == [0, 1]
    assert set(drawn.intrinsics[2:, 0].tolist()) <= {0, 1}  # none of the rows that are still empty
    seen = set()
    for first in (2, 4, 6):
        replay.add(numbered(first, 2))
    for step in range(20):
        drawn = replay.mixed(numbered(6, 2), generator(step))
        assert len(drawn.image) == 4
        for name, value in vars(drawn).items():
            if name != "visible":
                assert (value.flatten(1) == drawn.intrinsics[:, :1]).all(), name
        seen |= set(drawn.intrinsics[:, 0].tolist())
    assert replay.filled == 5
    assert seen <= {4, 5, 6, 7}
    assert drawn.instances.dtype == torch.int32
    assert drawn.visible.dtype == torch.bool


def test_learning_rate_warms_up_and_ends_at_a_fiftieth():
    assert training.learning_rate(0, 10_000, 2.0) == pytest.approx(2.0 / 200)
    assert training.learning_rate(199, 10_000, 2.0) == pytest.approx(2.0, rel=1e-3)
    assert training.learning_rate(5_000, 10_000, 2.0) == pytest.approx(2.0 * (0.02 + 0.49))
    assert training.learning_rate(10_000, 10_000, 2.0) == pytest.approx(2.0 / 50)
    assert training.learning_rate(20_000, 10_000, 2.0) == pytest.approx(2.0 / 50)
    rates = [training.learning_rate(step, 1000, 1.0) for step in range(200, 1000)]
    assert rates == sorted(rates, reverse=True)


def test_streets_ahead_are_those_of_their_steps():
    for start, steps in ((0, 2), (3, 9), (4, 4)):
        streets = list(training.streets_ahead(7, start, steps, 2))
        assert len(streets) == steps - start
        for step, found in enumerate(streets, start):
            assert torch.equal(found.camera, world.training_streets(7, step, 2).camera)


def test_poses_are_rigid_and_near(sample):
    poses = training.random_poses(50, generator())
    np.testing.assert_allclose(poses[:, :3, :3] @ poses[:, :3, :3].mT, torch.eye(3).expand(50, 3, 3), atol=1e-6)
    assert (torch.linalg.det(poses[:, :3, :3]) > 0).all()
    assert (poses[:, :3, 3].abs() <= torch.tensor([1.0, 0.4, 4.5])).all()


def test_the_average_follows_weights_and_statistics():
    shadow, model = tiny(), tiny()
    for value in (*model.parameters(), *model.buffers()):
        value.data.add_(1)
    before = {name: value.clone() for name, value in shadow.state_dict().items()}
    training.average(shadow, model)
    for name, value in shadow.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, before[name] + 0.002, rtol=0, atol=1e-6)
        else:
            assert torch.equal(value, before[name] + 1)


# ---- training --------------------------------------------------------------------------------------------------------


def run(out: Path, **options: Any) -> Path:
    return training.train("tiny", out=out, device="cpu", batch=2, size=SIZE, log_every=1, **options)


def log(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module", autouse=True)
def small_and_apart() -> Iterator[None]:
    """Validation on 8 streets, else it takes most of the time. `train` chooses the precision of matrix products for the
    whole process: other tests shall not see it."""
    precision, benchmark = torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "validate", functools.partial(training.validate, batches=2))
        yield
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.benchmark = benchmark


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps."""
    out = tmp_path_factory.mktemp("training") / "new" / "run"
    assert run(out, steps=2, seed=3) == out / "checkpoint.safetensors"
    return out


def test_training_writes_its_files(trained):
    assert sorted(path.name for path in trained.iterdir()) == ["checkpoint.safetensors", "log.jsonl", "training.pt"]
    entries = log(trained)
    assert [entry["step"] for entry in entries] == [1, 2]
    assert {"depth", "objects", "centres", "offsets", "image", "kl", "motion"} <= set(entries[0])
    assert {"psnr", "psnr_moving", "psnr_static", "psnr_copy", "depth_abs_rel"} <= set(entries[1])
    # At this size there may be no moving object of 50 pixels.
    assert all(np.isfinite(v) for entry in entries for name, v in entry.items() if not name.endswith("_moving"))


def test_the_checkpoint_says_how_it_came_to_be_and_can_be_built(trained):
    path = trained / "checkpoint.safetensors"
    about = checkpoint_metadata(path)
    assert about.pop("cues") == list(world.CUES)
    expected = {"world": "street", "network": "tiny", "seed": 3, "batch": 2, "size": [64, 32], "steps": 2}
    assert {name: about[name] for name in expected} == expected
    model = build("tiny", path)
    assert model.provenance["steps"] == 2
    assert all(value.isfinite().all() for value in model.state_dict().values())


def test_the_checkpoint_is_the_average_and_not_the_last_weights(trained):
    state = torch.load(trained / "training.pt", weights_only=True)
    assert state["step"] == 2
    weights = load_file(trained / "checkpoint.safetensors")
    assert weights.keys() == state["shadow"].keys()
    assert all(torch.equal(value, state["shadow"][name]) for name, value in weights.items())
    assert any(not torch.equal(value, state["model"][name]) for name, value in weights.items())


def test_training_resumes_where_it_was(trained, tmp_path):
    """Out of time after one more step."""
    run(tmp_path, steps=9, seed=3, minutes=0.0, resume=trained / "training.pt")
    assert [entry["step"] for entry in log(tmp_path)] == [3]
    before, after = (torch.load(folder / "training.pt", weights_only=True) for folder in (trained, tmp_path))
    assert after["step"] == 3
    assert checkpoint_metadata(tmp_path / "checkpoint.safetensors")["steps"] == 3
    steps = [{int(moments["step"]) for moments in s["optimizer"]["state"].values()} for s in (before, after)]
    assert steps == [{2}, {3}]  # AdamW's moments go on too
    norms = [state["model"]["core.enc_s.stem.1.num_batches_tracked"].item() for state in (before, after)]
    assert norms == [2, 3]


def test_refining_keeps_perception_bit_for_bit(trained, tmp_path):
    run(tmp_path, steps=2, seed=4, refine=trained / "checkpoint.safetensors")
    before, after = (load_file(folder / "checkpoint.safetensors") for folder in (trained, tmp_path))
    last = torch.load(tmp_path / "training.pt", weights_only=True)["model"]
    kept = [name for name in before if name.startswith("perceive.")]
    assert any(name.endswith("running_mean") for name in kept)
    for name in kept:
        assert torch.equal(before[name], after[name]), name
        assert torch.equal(before[name], last[name]), name
    for part in ("core.", "enc_vae."):
        assert any(not torch.equal(before[name], after[name]) for name in before if name.startswith(part))
    about = checkpoint_metadata(tmp_path / "checkpoint.safetensors")
    assert about["refined_from"] == checkpoint_metadata(trained / "checkpoint.safetensors")
    assert not {"depth", "objects"} & set(log(tmp_path)[0])


def test_networks_that_cannot_be_trained(trained, tmp_path):
    with pytest.raises(InvalidRequest, match="street or tiny"):
        training.train("paper", out=tmp_path / "run", device="cpu", steps=1)
    with pytest.raises(InvalidCheckpoint):
        training.train("street", out=tmp_path / "run", device="cpu", refine=trained / "checkpoint.safetensors")


@pytest.mark.parametrize(
    "wrong",
    [{"steps": 0}, {"batch": 0}, {"seed": -1}, {"size": (40, 24)}, {"size": (0, 32)}],
)
def test_requests_that_cannot_be_trained(tmp_path, wrong):
    with pytest.raises(InvalidRequest):
        training.train("tiny", out=tmp_path, device="cpu", **{"steps": 1, "batch": 1, "size": (64, 32), **wrong})


def test_there_is_nothing_to_resume(tmp_path):
    (tmp_path / "training.pt").write_bytes(b"no checkpoint")
    for name in ("training.pt", "absent.pt"):
        with pytest.raises(InvalidCheckpoint, match="cannot go on"):
            training.train("tiny", out=tmp_path, device="cpu", steps=1, batch=1, size=(64, 32), resume=tmp_path / name)
