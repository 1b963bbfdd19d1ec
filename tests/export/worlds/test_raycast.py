"""Hits against answers computed by hand, and the choice of tiles against every tile."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from edge4d.export.worlds import raycast  # noqa: E402
from edge4d.export.worlds.raycast import BALL, BOX, CYLINDER, NO_HIT, Primitives  # noqa: E402
from edge4d.export.worlds.rotations import about_x, about_y, about_z  # noqa: E402

# float32: numbers of order 10, a handful of roundings of 6e-8 each; one digit is left as a margin
CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}


def primitives(*parts: tuple[int, tuple[float, ...], tuple[float, ...], torch.Tensor | None]) -> Primitives:
    """One scene of (shape, centre, half extents, axes or None)."""
    n = len(parts)
    return Primitives(
        shape=torch.tensor([part[0] for part in parts]),
        material=torch.zeros(n, dtype=torch.int64),
        owner=torch.full((n,), -1),
        present=torch.ones(1, n, dtype=torch.bool),
        centres=torch.tensor([[part[1] for part in parts]]),
        axes=torch.stack([torch.eye(3) if part[3] is None else part[3] for part in parts])[None],
        half=torch.tensor([[part[2] for part in parts]]),
        colors=torch.zeros(1, n, 2, 3),
        traits=torch.zeros(1, n, 4),
    )


def see(
    scene: Primitives, width: int = 16, height: int = 16, focal: float = 8.0, pose: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    """Images [H,W,...] of the hits; the ray through pixel (8, 8) is the camera's z axis."""
    intrinsics = torch.tensor([[focal, focal, 8.5, 8.5]])
    c2w = torch.eye(4)[None] if pose is None else pose[None]
    origins, directions = raycast.rays_of(intrinsics, c2w, width, height)
    hits = raycast.cast(scene, origins, directions, intrinsics, c2w, width, height)
    rows = {
        "index": hits.index[..., None],
        "distance": hits.distance[..., None],
        "local": hits.local,
        "normal": hits.normal,
        "directions": directions,
    }
    return {name: raycast.image_of(value, width, height)[0].squeeze(-1) for name, value in rows.items()}


def near(value: torch.Tensor, expected: list[float] | float) -> None:
    np.testing.assert_allclose(value.numpy(), expected, **CLOSE)


def test_rays_go_through_pixel_centres_with_unit_z():
    pose = torch.eye(4)
    pose[:3, :3], pose[:3, 3] = about_y(torch.tensor(math.pi / 2)), torch.tensor([1.0, 2, 3])
    origins, directions = raycast.rays_of(torch.tensor([[20.0, 10, 16, 8]]), pose[None], 32, 16)
    assert origins.tolist() == [[1, 2, 3]]
    image = raycast.image_of(directions, 32, 16)[0]
    # Camera ray (x, y, 1) of pixel (25, 3); turned to the right its z becomes x and its x becomes −z.
    near(image[3, 25], [1.0, (3.5 - 8) / 10, -(25.5 - 16) / 20])


def test_box_in_front():
    view = see(primitives((BOX, (0.5, 0.0, 6.0), (2.0, 1.0, 1.5), None)))
    near(view["distance"][8, 8], 4.5)
    near(view["local"][8, 8], [-0.25, 0.0, -1.0])
    near(view["normal"][8, 8], [0.0, 0.0, -1.0])
    # The front face ends at x = 2.5, y = ±1 and z = 4.5: slopes 0.556 and 0.222; the box ends behind at 2.5 / 7.5.
    seen = view["index"][8] == 0
    slopes = (torch.arange(16) - 8) / 8
    assert seen.tolist() == [bool(-1.5 / 4.5 <= x <= 2.5 / 4.5) for x in slopes]
    assert view["distance"][8][~seen].isinf().all()


def test_distance_is_depth_along_z_not_along_the_ray():
    view = see(primitives((BOX, (0.0, 0.0, 6.0), (50.0, 50.0, 1.0), None)))
    near(view["distance"], np.full((16, 16), 5.0))


def test_ball():
    view = see(primitives((BALL, (0.0, 0.0, 5.0), (2.0, 2.0, 2.0), None)))
    near(view["distance"][8, 8], 3.0)
    near(view["normal"][8, 8], [0, 0, -1])
    # Direction (0.25, 0, 1): t²·1.0625 − 10 t + 21 = 0.
    t = (10 - math.sqrt(100 - 4 * 1.0625 * 21)) / (2 * 1.0625)
    near(view["distance"][8, 10], t)
    near(view["local"][8, 10], [0.25 * t / 2, 0, (t - 5) / 2])
    near(view["normal"][8, 10], [0.25 * t / 2, 0, (t - 5) / 2])
    # The cone that touches the ball has slope 2 / sqrt(21) = 0.436: the fourth pixel (0.5) misses.
    assert view["index"][8, 11] == 0
    assert view["index"][8, 12] == NO_HIT


def test_ellipsoid_has_the_normal_of_its_gradient():
    view = see(primitives((BALL, (0.0, 0.0, 5.0), (4.0, 1.0, 2.0), None)))
    # Direction (0.5, 0, 1): (t/2/4)² + ((t − 5)/2)² = 1, so t²·(1/64 + 1/4) − 2.5 t + 5.25 = 0.
    a = 1 / 64 + 1 / 4
    t = (2.5 - math.sqrt(6.25 - 4 * a * 5.25)) / (2 * a)
    near(view["distance"][8, 12], t)
    gradient = np.array([0.5 * t / 16, 0, (t - 5) / 4])
    near(view["normal"][8, 12], gradient / np.linalg.norm(gradient))


def test_upright_cylinder_by_its_side():
    view = see(primitives((CYLINDER, (0.0, 0.5, 5.0), (2.0, 1.0, 2.0), None)))
    near(view["distance"][8, 8], 3.0)
    near(view["local"][8, 8], [0, -0.5, -1])
    t = (10 - math.sqrt(100 - 4 * 1.0625 * 21)) / (2 * 1.0625)  # as for the ball, in the plane y = 0
    near(view["distance"][8, 10], t)
    near(view["normal"][8, 10], [t / 8, 0, (t - 5) / 2])
    # It reaches from y = −0.5 to 1.5 at z = 3 and more: −1/8 is inside, −2/8 above.
    assert view["index"][7, 8] == 0
    assert view["index"][6, 8] == NO_HIT


def test_cylinder_by_its_cap():
    """Seen from above: the camera looks down its axis."""
    upright = about_x(torch.tensor(math.pi / 2))  # carries y to z
    view = see(primitives((CYLINDER, (0.0, 0.0, 6.0), (2.0, 1.0, 3.0), upright)))
    near(view["distance"][8, 8], 5.0)
    near(view["normal"][8, 8], [0, 0, -1])
    near(view["local"][8, 8].abs(), [0, 1, 0])
    # The cap at z = 5 ends at x = 2 (slope 0.4) and at |y| = 3 (slope 0.6).
    assert (view["index"][8] == 0).tolist() == [abs(u - 8) <= 3 for u in range(16)]
    assert (view["index"][:, 8] == 0).tolist() == [abs(v - 8) <= 4 for v in range(16)]


def test_turned_and_stretched_box():
    """45 degrees about y: an edge looks at the camera, its faces slope away."""
    turn = about_y(torch.tensor(math.pi / 4))
    view = see(primitives((BOX, (0.0, 0.0, 5.0), (1.0, 3.0, 1.0), turn)))
    edge = 5 - math.sqrt(2)
    # The right face is the line z = edge + x: along (0.25, 0, 1) it is met at t = edge / (1 − 0.25).
    near(view["distance"][8, 10], edge / 0.75)
    near(view["distance"][8, 6], edge / 0.75)
    near(view["normal"][8, 10], [math.sqrt(0.5), 0, -math.sqrt(0.5)])
    near(view["normal"][8, 6], [-math.sqrt(0.5), 0, -math.sqrt(0.5)])
    near(view["local"][8, 10].abs().amax(), 1.0)


def test_a_moved_and_turned_camera_sees_the_same():
    scene = primitives((BOX, (0.5, 0.0, 6.0), (2.0, 1.0, 1.5), None))
    pose = torch.eye(4)
    pose[:3, :3] = about_y(torch.tensor(0.7)) @ about_x(torch.tensor(-0.3)) @ about_z(torch.tensor(0.2))
    pose[:3, 3] = torch.tensor([3.0, -1.0, 2.0])
    centre = pose[:3, :3] @ scene.centres[0, 0] + pose[:3, 3]
    moved = see(primitives((BOX, tuple(centre.tolist()), (2.0, 1.0, 1.5), pose[:3, :3])), pose=pose)
    view = see(scene)
    assert (moved["index"] == view["index"]).all()
    near(moved["distance"], view["distance"].numpy())
    hit = view["index"] == 0
    near(moved["local"][hit], view["local"][hit].numpy())
    near(moved["normal"][hit], (view["normal"][hit] @ pose[:3, :3].T).numpy())


def test_the_nearest_wins_whatever_the_order():
    front, behind = (BALL, (0.0, 0.0, 3.0), (1.0, 1.0, 1.0), None), (BOX, (0.0, 0.0, 6.0), (9.0, 9.0, 1.0), None)
    for parts, slot in (((front, behind), 0), ((behind, front), 1)):
        view = see(primitives(*parts))
        assert view["index"][8, 8] == slot
        near(view["distance"][8, 8], 2.0)
        assert view["index"][0, 0] == 1 - slot
        near(view["distance"][0, 0], 5.0)


def test_slots_that_are_not_present_are_not_seen():
    scene = primitives((BOX, (0.0, 0.0, 6.0), (9.0, 9.0, 1.0), None))
    scene.present[:] = False
    assert (see(scene)["index"] == NO_HIT).all()


def test_what_crosses_the_near_plane_is_seen_in_every_tile():
    """A wall beside the camera that begins behind it: x = 1 to 2 from z = −10 to 30."""
    view = see(primitives((BOX, (1.5, 0.0, 10.0), (0.5, 50.0, 20.0), None)), width=64, height=32, focal=8.0)
    slope = view["directions"][..., 0]
    seen = slope > 1 / 30 + 1e-6
    assert ((view["index"] == 0) == seen).all()
    near(view["distance"][seen], (1 / slope[seen]).numpy())
    near(view["normal"][seen], np.tile([-1.0, 0, 0], (int(seen.sum()), 1)))


def test_a_rod_past_the_camera_is_seen_beyond_the_projection_of_its_ends():
    """From (0, 0, −2) to (3, 0, 2): it fills the slopes from 1.5 up, while its far end shows at 1.5 alone."""
    along = torch.tensor(math.atan2(3, 4))
    view = see(primitives((BOX, (1.5, 0.0, 0.0), (0.02, 0.02, 2.5), about_y(along))), width=64, height=16, focal=8.0)
    slope = view["directions"][8, :, 0]
    seen = (slope > 1.6) & (slope < 6.9)
    assert (view["index"][8][seen] == 0).all()
    # Its near flank is 0.02 / cos off the line x = 1.5 + 0.75 z, towards the camera.
    near(view["distance"][8][seen], ((1.5 - 0.025) / (slope[seen] - 0.75)).numpy())


@pytest.mark.parametrize("shape", [BOX, CYLINDER, BALL])
def test_what_is_behind_the_camera_is_not_seen(shape):
    assert (see(primitives((shape, (0.0, 0.0, -4.0), (3.0, 3.0, 3.0), None)))["index"] == NO_HIT).all()


@pytest.mark.parametrize("shape", [BOX, CYLINDER, BALL])
def test_the_inside_is_not_seen(shape):
    assert (see(primitives((shape, (0.0, 0.0, 0.0), (3.0, 3.0, 3.0), None)))["index"] == NO_HIT).all()


def test_image_of_undoes_the_order_of_tiles():
    image = torch.arange(2 * 48 * 32 * 3).reshape(2, 48, 32, 3)
    rows = raycast._tiled(image)
    assert (raycast.image_of(rows, 32, 48) == image).all()
    first = rows[1, : raycast.TILE**2].reshape(raycast.TILE, raycast.TILE, 3)
    assert (first == image[1, : raycast.TILE, : raycast.TILE]).all()


def every_tile(primitives: Primitives, intrinsics: Any, c2w: Any, width: int, height: int) -> tuple[Any, Any, Any]:
    tiles = torch.ones((width // raycast.TILE) * (height // raycast.TILE), dtype=torch.bool)
    return (primitives.present[..., None] & tiles).nonzero(as_tuple=True)  # type: ignore[return-value]


def random_scenes(seed: int, scenes: int = 2, slots: int = 24) -> tuple[Primitives, torch.Tensor]:
    """Shapes of all sizes and turns around cameras that look anywhere, many of them beside or behind."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *size: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(size, generator=generator)

    def turns(*size: int) -> torch.Tensor:
        return about_y(uniform(-3, 3, *size)) @ about_x(uniform(-3, 3, *size)) @ about_z(uniform(-3, 3, *size))

    poses = torch.eye(4).repeat(scenes, 1, 1)
    poses[:, :3, :3], poses[:, :3, 3] = turns(scenes), uniform(-3, 3, scenes, 3)
    scene = Primitives(
        shape=torch.arange(slots) % 3,
        material=torch.zeros(slots, dtype=torch.int64),
        owner=torch.full((slots,), -1),
        present=uniform(0, 1, scenes, slots) < 0.8,
        centres=uniform(-9, 9, scenes, slots, 3),
        axes=turns(scenes, slots),
        half=uniform(-3, 1.2, scenes, slots, 3).exp(),
        colors=torch.zeros(scenes, slots, 2, 3),
        traits=torch.zeros(scenes, slots, 4),
    )
    return scene, poses


def cast_scenes(scene: Primitives, poses: torch.Tensor) -> raycast.Hits:
    intrinsics = torch.tensor([[40.0, 44, 30, 17]]).expand(len(poses), 4)
    origins, directions = raycast.rays_of(intrinsics, poses, 64, 32)
    return raycast.cast(scene, origins, directions, intrinsics, poses, 64, 32)


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_tiles_lose_nothing(seed):
    scene, poses = random_scenes(seed)
    culled = cast_scenes(scene, poses)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(raycast, "_candidates", every_tile)
        complete = cast_scenes(scene, poses)
    # A ray that grazes a corner of the bounding box may be cut by the last bit of its projection: no pixel did so far.
    assert torch.equal(culled.index, complete.index)
    assert torch.equal(culled.distance, complete.distance)


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_hits_lie_on_surfaces_that_face_the_camera(seed):
    scene, poses = random_scenes(seed)
    hits = cast_scenes(scene, poses)
    measures: dict[int, Callable[[torch.Tensor], torch.Tensor]] = {
        BOX: lambda p: p.abs().amax(-1),
        CYLINDER: lambda p: torch.maximum(p[:, 1].abs(), p[:, ::2].norm(dim=-1)),
        BALL: lambda p: p.norm(dim=-1),
    }
    directions = raycast.rays_of(torch.tensor([[40.0, 44, 30, 17]]).expand(2, 4), poses, 64, 32)[1]
    smallest = scene.half.amin(-1)
    for shape, measure in measures.items():
        rows = (hits.index != NO_HIT) & (scene.shape[hits.index.clamp_min(0)] == shape)
        batch, ray = rows.nonzero(as_tuple=True)
        slot = hits.index[batch, ray]
        # In metres. Flat shapes lose digits in the discriminant: 0.2 mm was the most that 60 seeds gave.
        error = (measure(hits.local[batch, ray]) - 1).abs() * smallest[batch, slot]
        assert (error < 1e-3).all()
        normal = hits.normal[batch, ray]
        assert ((normal.norm(dim=-1) - 1).abs() < 1e-5).all()
        facing = (normal * directions[batch, ray]).sum(-1)
        # At an edge of a box or cylinder rounding may choose the other face.
        assert (facing > 1e-3).sum() <= 0.01 * len(facing)
