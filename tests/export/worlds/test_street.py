"""Streets: which they are, and that what is seen is what the geometry and the motion law say."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from edge4d.export.worlds import street  # noqa: E402
from edge4d.export.worlds.raycast import rays_of  # noqa: E402

WIDTH, HEIGHT = 128, 64
SEEDS = st.integers(0, 2**63 - 1)
INDICES = st.integers(0, 2**64 - 1)


def assert_same(first: street.Street, second: street.Street, rows: int | None = None) -> None:
    """Bit for bit, in the first `rows` scenes."""
    for part in ("primitives", "objects", "look"):
        a, b = getattr(first, part), getattr(second, part)
        for field in fields(a):
            shared = field.name in ("shape", "material", "owner")
            x, y = getattr(a, field.name), getattr(b, field.name)
            assert torch.equal(*((x, y) if shared else (x[:rows], y[:rows]))), f"{part}.{field.name}"
    assert torch.equal(first.fov[:rows], second.fov[:rows])
    assert torch.equal(first.camera[:rows], second.camera[:rows])


@pytest.fixture(scope="module")
def streets() -> street.Street:
    return street.evaluation_streets(3, 6)


def at(streets: street.Street, seconds: float, samples: int = 1) -> street.View:
    time = torch.full((len(streets.fov),), seconds)
    return street.render(streets, time, streets.camera, WIDTH, HEIGHT, samples=samples)


def test_the_same_key_gives_the_same_street():
    assert_same(street.evaluation_streets(5, 3), street.evaluation_streets(5, 3))
    assert_same(street.training_streets(5, 7, 3), street.training_streets(5, 7, 3))


def test_the_first_scenes_do_not_depend_on_the_count():
    assert_same(street.evaluation_streets(5, 2), street.evaluation_streets(5, 4), rows=2)


def test_steps_of_training_do_not_share_streets():
    cameras = [street.training_streets(5, step, 3).camera for step in range(3)]
    assert len(torch.cat(cameras).flatten(1).unique(dim=0)) == 9
    assert not torch.equal(street.training_streets(6, 0, 3).camera, cameras[0])


def test_training_and_evaluation_streets_of_one_seed_differ():
    assert not torch.equal(street.training_streets(5, 0, 2).camera, street.evaluation_streets(5, 2).camera)


def plane(streets: street.Street) -> torch.Tensor:
    """Depth of the ground y = 0 at every pixel by solving for it, [S,H,W] float64; infinite above the horizon."""
    fx, _, cx, cy = (v.double()[:, None, None] for v in streets.intrinsics(WIDTH, HEIGHT).unbind(-1))
    v, u = torch.meshgrid(torch.arange(HEIGHT) + 0.5, torch.arange(WIDTH) + 0.5, indexing="ij")
    down = streets.camera[:, 1, :3].double()[:, None, None]  # the street's y of the camera's axes
    rate = down[..., 0] * (u - cx) / fx + down[..., 1] * (v - cy) / fx + down[..., 2]
    return torch.where(rate > 0, -streets.camera[:, 1, 3].double()[:, None, None] / rate.clamp_min(1e-12), torch.inf)


def test_depth_of_an_empty_street_is_that_of_the_plane(streets):
    primitives = replace(streets.primitives, present=torch.zeros_like(streets.primitives.present))
    view = at(replace(streets, primitives=primitives), 0.0)
    expected = plane(streets)
    # Near the horizon depth is 1.5 m over a slope of 0.01, in float32: the relative error is some 1e-5.
    seen = expected < 0.99 * street.SKY_DEPTH
    assert seen.sum() > 1000
    torch.testing.assert_close(view.depth[seen].double(), expected[seen], rtol=1e-4, atol=0)
    assert view.depth[expected > 1.01 * street.SKY_DEPTH].isinf().all()
    assert (view.objects == 0).all()


def test_nothing_is_below_the_ground_and_most_of_what_is_near_is_ground(streets):
    depth, ground = at(streets, 0.0).depth.double(), plane(streets)
    assert (depth <= ground * (1 + 1e-4) + 1e-4)[ground < street.SKY_DEPTH].all()
    last = (depth[:, -1] / ground[:, -1] - 1).abs() < 1e-4
    assert last.double().mean() > 0.4


def test_depth_is_along_z_and_not_along_the_ray(streets):
    view, ground = at(streets, 0.0), plane(streets)
    _, directions = rays_of(streets.intrinsics(WIDTH, HEIGHT), streets.camera, WIDTH, HEIGHT)
    longest = directions.norm(dim=-1).amax()
    assert longest > 1.1  # so that the two differ
    corner = view.depth[:, -1, [0, -1]].double() / ground[:, -1, [0, -1]]
    assert ((corner - 1).abs() < 1e-4).any()  # a corner that shows the ground, whose ray is longest


def test_pictures_are_finite_and_within_range(streets):
    for samples in (1, 2):
        image = at(streets, 1.3, samples).image
        assert image.shape == (6, HEIGHT, WIDTH, 3)
        assert ((image >= 0) & (image <= 1)).all()  # false for NaN
        assert (image.flatten(1).std(1) > 0.03).all()  # not of one colour


def test_samples_refine_colour_alone(streets):
    view = at(streets, 0.7, samples=2)
    assert view.depth.shape == view.objects.shape == (6, HEIGHT, WIDTH)
    time = torch.full((6,), 0.7)
    fine = street.render(streets, time, streets.camera, 2 * WIDTH, 2 * HEIGHT, samples=1)
    assert torch.equal(view.depth, fine.depth[:, ::2, ::2])
    assert torch.equal(view.objects, fine.objects[:, ::2, ::2])
    mean = sum(fine.image[:, y::2, x::2] for x in (0, 1) for y in (0, 1)) / 4
    torch.testing.assert_close(view.image, mean, rtol=0, atol=1e-6)  # four float32 numbers below 1, in another order


def test_intrinsics_are_the_field_of_view(streets):
    fx, fy, cx, cy = streets.intrinsics(WIDTH, HEIGHT).double().unbind(-1)
    torch.testing.assert_close(2 * torch.atan(WIDTH / 2 / fx), streets.fov.double(), rtol=1e-6, atol=0)  # float32
    assert torch.equal(fx, fy)
    assert (cx == WIDTH / 2).all()
    assert (cy == HEIGHT / 2).all()


def test_what_does_not_move_has_the_same_depth_at_every_time(streets):
    moving = torch.cat([torch.zeros(6, 1, dtype=torch.bool), streets.objects.moving], 1)
    first = at(streets, 0.0)
    for seconds in (0.4, 2.0):
        later = at(streets, seconds)
        moves = [moving.gather(1, v.objects.flatten(1)).reshape(v.objects.shape) for v in (first, later)]
        still = ~moves[0] & ~moves[1]
        assert torch.equal(first.depth[still], later.depth[still])
        assert torch.equal(first.objects[still], later.objects[still])
        assert (first.objects[still] > 0).any()  # parked cars among them
        assert moves[0].any()
        assert not torch.equal(first.objects, later.objects)


def law(streets: street.Street, scene: int, slot: int, points: np.ndarray, t: float) -> np.ndarray:
    """Where points [n,3] of an object are after t seconds, from its numbers alone, street frame, float64."""
    o = streets.objects
    c, v, a = (x[scene, slot].double().numpy() for x in (o.centres, o.velocity, o.acceleration))
    angle = float(o.yaw_rate[scene, slot]) * t
    turn = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    return c + (points - c) @ turn.T + v * t + a * t * t / 2


def test_objects_move_as_their_law_says(streets):
    """Points seen at t = 0 are carried by the law; where they are not hidden, ids and depths say they arrived."""
    turning = streets.objects.yaw_rate + 0.3 * streets.objects.moving  # else few would turn
    streets = replace(streets, objects=replace(streets.objects, yaw_rate=turning))
    t = 0.5
    before, after = at(streets, 0.0), at(streets, t)
    _, directions = rays_of(streets.intrinsics(WIDTH, HEIGHT), streets.camera, WIDTH, HEIGHT)
    from edge4d.export.worlds.raycast import image_of

    directions = image_of(directions, WIDTH, HEIGHT)
    checked = 0
    for scene in range(6):
        fx, fy, cx, cy = streets.intrinsics(WIDTH, HEIGHT)[scene].tolist()
        camera = streets.camera[scene].double().numpy()
        for slot in streets.objects.moving[scene].nonzero()[:, 0].tolist():
            rows = before.objects[scene] == slot + 1
            points = camera[:3, 3] + (directions[scene][rows] * before.depth[scene][rows][:, None]).double().numpy()
            place = (law(streets, scene, slot, points, t) - camera[:3, 3]) @ camera[:3, :3]
            place = place[place[:, 2] > 0.5]
            column = np.floor(place[:, 0] / place[:, 2] * fx + cx).astype(int)
            row = np.floor(place[:, 1] / place[:, 2] * fy + cy).astype(int)
            inside = (column >= 0) & (column < WIDTH) & (row >= 0) & (row < HEIGHT)
            z, column, row = place[inside, 2], column[inside], row[inside]
            depth = after.depth[scene].numpy()[row, column]
            in_view = depth > z - 0.5  # not hidden by something else
            if in_view.sum() < 30:
                continue
            found = after.objects[scene].numpy()[row, column][in_view] == slot + 1
            # Silhouettes may miss by a pixel; of 30 and more pixels most are inside.
            assert found.mean() > 0.75, (scene, slot)
            # A pixel on the flank of a car spans some centimetres of depth.
            assert np.median(np.abs(depth - z)[in_view][found]) < 0.1, (scene, slot)
            checked += 1
    assert checked >= 5


def test_displacement_is_that_of_constant_acceleration(streets):
    objects = streets.objects
    shift, turn = objects.at(torch.full((6,), 1.5))
    torch.testing.assert_close(shift, 1.5 * objects.velocity + 1.125 * objects.acceleration)
    torch.testing.assert_close(turn, 1.5 * objects.yaw_rate)
    still = objects.present & ~objects.moving
    assert (shift[still] == 0).all()
    assert (turn[still] == 0).all()


def test_one_scene_repeated(streets):
    repeated = streets.repeated(4, 2)
    alone = street.evaluation_streets(3, 5)
    for row in range(2):
        assert torch.equal(repeated.camera[row], alone.camera[4])
    assert repeated.primitives.centres.shape[0] == repeated.look.seed.shape[0] == 2
    # Two times of one street, against the same street among the others.
    times = torch.tensor([0.0, 1.0])
    view = street.render(repeated, times, repeated.camera, WIDTH, HEIGHT, samples=1)
    for row, seconds in enumerate(times.tolist()):
        other = at(streets, seconds)
        assert torch.equal(view.objects[row], other.objects[4])
        torch.testing.assert_close(view.depth[row], other.depth[4], rtol=1e-6, atol=0)  # other blocks, same numbers


def test_to_moves_every_part(streets):
    moved = streets.to(torch.device("meta"))
    for part in (moved.primitives, moved.objects, moved.look):
        assert all(value.is_meta for value in vars(part).values())
    assert moved.fov.is_meta
    assert moved.camera.is_meta
