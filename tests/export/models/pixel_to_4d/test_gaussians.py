"""The shared activation and grouping, against loops in NumPy."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edge4d.export.models.pixel_to_4d.gaussians import (  # noqa: E402
    CANONICAL_CHANNELS,
    MOTION_CHANNELS,
    SH_C0,
    activate,
    along_ground,
    dynamic_gaussians,
    flatten_layers,
    ground_normal,
    group_of_gaussian,
    instance_mean,
    layer_depths,
    unproject,
)

INTRINSICS = torch.tensor([[50.0, 55.0, 4.2, 2.9]])


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def mean_by_loops(values: np.ndarray, instances: np.ndarray, groups: int) -> np.ndarray:
    B, K, C, H, W = values.shape
    total, count = np.zeros((B, groups, C)), np.zeros((B, groups, 1))
    for b, k, row, column in np.ndindex(B, K, H, W):
        group = instances[b, row, column]
        if 0 < group < groups:
            total[b, group] += values[b, k, :, row, column]
            count[b, group] += 1
    return total / np.maximum(count, 1)


def test_unproject_goes_through_pixel_centres():
    depths = random(1, 2, 6, 8).exp()
    points = unproject(depths, INTRINSICS).double().numpy()
    fx, fy, cx, cy = INTRINSICS[0].tolist()
    for k, row, column in np.ndindex(2, 6, 8):
        z = depths[0, k, row, column].item()
        expected = [(column + 0.5 - cx) / fx * z, (row + 0.5 - cy) / fy * z, z]
        np.testing.assert_allclose(points[0, k, row, column], expected, rtol=1e-5)  # float32: eps · a few roundings


def test_layers_lie_behind_each_other_and_the_first_is_the_depth():
    depth = random(1, 1, 4, 4).exp()
    layers = layer_depths(depth, torch.tensor([0.0, 100.0, -100.0]).reshape(1, 3, 1, 1).expand(1, 3, 4, 4))
    torch.testing.assert_close(layers[:, :1], depth)
    steps = layers.diff(dim=1)[0, :, 0, 0].double()
    expected = torch.tensor([1.0, np.exp(6.0), np.exp(-10.0)], dtype=torch.float64)
    # The last step is added to about 400 m, where float32 has a spacing of 3e-5.
    torch.testing.assert_close(steps, expected, rtol=1e-5, atol=4e-5)


def test_a_single_layer_needs_no_increments():
    depth = random(2, 1, 3, 3).exp()
    torch.testing.assert_close(layer_depths(depth, depth[:, :0]), depth)


def test_activation_of_zero_is_the_documented_neutral_gaussian():
    depths = torch.full((1, 2, 4, 6), 3.0)
    layers = activate(torch.zeros(1, 2, CANONICAL_CHANNELS, 4, 6), depths, INTRINSICS)
    torch.testing.assert_close(layers.means, unproject(depths, INTRINSICS).permute(0, 1, 4, 2, 3))
    torch.testing.assert_close(layers.quats[0, 0, :, 0, 0], torch.tensor([1.0, 0.0, 0.0, 0.0]))
    assert (layers.scales == 0.01).all()
    assert (layers.opacities == 0.5).all()
    assert (layers.colors == 0.5).all()


def test_activation_channel_order_and_formulas():
    raw = random(1, 1, CANONICAL_CHANNELS, 2, 2)
    depths = torch.full((1, 1, 2, 2), 2.0)
    layers = activate(raw, depths, INTRINSICS, scale_unit=0.5)
    f = raw[0, 0, :, 1, 0]
    point = unproject(depths, INTRINSICS)[0, 0, 1, 0]
    torch.testing.assert_close(layers.means[0, 0, :, 1, 0], point + f[:3])
    torch.testing.assert_close(layers.opacities[0, 0, 0, 1, 0], 1 / (1 + (-f[3]).exp()))
    torch.testing.assert_close(layers.scales[0, 0, :, 1, 0], 0.5 * f[4:7].exp())
    rotation = f[7:11] + torch.tensor([1.0, 0.0, 0.0, 0.0])
    torch.testing.assert_close(layers.quats[0, 0, :, 1, 0], rotation / rotation.norm())
    torch.testing.assert_close(layers.colors[0, 0, :, 1, 0], (SH_C0 * f[11:14] + 0.5).clamp_min(0))


def test_pixel_floor_is_in_footprints_of_a_pixel():
    raw = torch.full((1, 1, CANONICAL_CHANNELS, 2, 2), -20.0)
    layers = activate(raw, torch.full((1, 1, 2, 2), 10.0), INTRINSICS, pixel_floor=0.5)
    torch.testing.assert_close(layers.scales, torch.full_like(layers.scales, 0.5 * 10.0 / 50.0))


def test_flatten_is_layer_major_and_agrees_with_the_groups():
    values = torch.arange(2 * 3 * 4 * 5.0).reshape(1, 2, 3, 4, 5)
    flat = flatten_layers(values)
    instances = torch.arange(20, dtype=torch.int32).reshape(1, 4, 5)
    groups = group_of_gaussian(instances, 2, 2)
    assert groups.dtype == torch.int32
    for n, (k, row, column) in enumerate(np.ndindex(2, 4, 5)):
        assert (flat[0, n] == values[0, k, :, row, column]).all()
        assert groups[0, n] == instances[0, row, column]


def test_ids_out_of_range_are_static():
    instances = torch.tensor([[[-5, 0, 1, 63, 64, 2**31 - 1]]], dtype=torch.int32)
    assert group_of_gaussian(instances, 1, 1).tolist() == [[0, 0, 1, 63, 0, 0]]


def test_instance_mean_is_the_mean_by_loops():
    values = random(2, 3, 5, 6, 7)
    instances = torch.randint(-2, 12, (2, 6, 7), generator=torch.Generator().manual_seed(1), dtype=torch.int32)
    means = instance_mean(values, instances, groups=10)
    expected = mean_by_loops(values.double().numpy(), instances.numpy(), 10)
    np.testing.assert_allclose(means.numpy(), expected, atol=1e-6)  # values of order 1, tens of float32 roundings
    assert (means[:, 0] == 0).all()


def test_instance_mean_survives_half_precision():
    """A whole picture of one fast instance, and one single pixel: neither overflows 65,504 nor vanishes."""
    values = torch.full((1, 2, 1, 64, 2048), 90.0, dtype=torch.float16)
    instances = torch.ones(1, 64, 2048, dtype=torch.int32)
    instances[0, 3, 4] = 2
    means = instance_mean(values, instances, groups=4).float()
    # 90 with eps(half) = 1e-3, rounded a few times.
    np.testing.assert_allclose(means[0, :, 0].numpy(), [0, 90, 90, 0], rtol=4e-3)


def test_motion_is_shared_by_an_instance_and_zero_elsewhere():
    instances = torch.zeros(1, 6, 8, dtype=torch.int32)
    instances[0, 1:3, 2:5] = 7
    layers = activate(random(1, 2, CANONICAL_CHANNELS, 6, 8), random(1, 2, 6, 8).exp(), INTRINSICS)
    motion = random(1, 2, MOTION_CHANNELS, 6, 8, seed=1)
    scene = dynamic_gaussians(layers, motion, instances)
    inside = instances[0] == 7
    expected = motion[0, :, :, inside].mean((0, 2))
    for name, channels in zip(
        ("velocity", "acceleration", "angular_velocity", "angular_acceleration"), expected.split(3)
    ):
        rows = getattr(scene, name)[0]
        torch.testing.assert_close(rows[7], channels)
        assert (rows[torch.arange(64) != 7] == 0).all()
    torch.testing.assert_close(scene.centres[0, 7], layers.means[0, :, :, inside].mean((0, 2)))
    assert scene.means.shape == (1, 96, 3)
    assert scene.opacities.shape == (1, 96)
    assert (scene.groups == 7).sum() == 2 * inside.sum()


def test_layers_behind_those_that_move_are_static():
    instances = torch.ones(1, 4, 5, dtype=torch.int32)
    layers = activate(random(1, 3, CANONICAL_CHANNELS, 4, 5), random(1, 3, 4, 5).exp(), INTRINSICS)
    scene = dynamic_gaussians(layers, random(1, 2, MOTION_CHANNELS, 4, 5), instances)
    assert scene.groups.tolist() == [[1] * 40 + [0] * 20]
    torch.testing.assert_close(scene.centres[0, 1], layers.means[0, :2].mean((0, 2, 3)))


def test_gradients_reach_the_raw_channels():
    raw = random(1, 2, CANONICAL_CHANNELS, 4, 4).requires_grad_()
    motion = torch.zeros(1, 2, MOTION_CHANNELS, 4, 4, requires_grad=True)
    depth = random(1, 1, 4, 4).exp()
    layers = activate(raw, layer_depths(depth, torch.zeros(1, 1, 4, 4)), INTRINSICS)
    scene = dynamic_gaussians(layers, motion, torch.ones(1, 4, 4, dtype=torch.int32))
    sum(value.sum() for value in scene if value.is_floating_point()).backward()
    assert raw.grad is not None
    assert raw.grad.isfinite().all()
    assert motion.grad is not None
    assert (motion.grad > 0).all()


# ---- ground ----------------------------------------------------------------------------------------------------------


def seen_plane(normal: tuple[float, float, float], height: float = 1.6) -> tuple[torch.Tensor, ...]:
    """Depth [1,1,64,112] of a plane `height` metres below the camera, 60 m at most; no instances; intrinsics."""
    intrinsics = torch.tensor([[97.0, 97.0, 56.0, 32.0]])
    rays = unproject(torch.ones(1, 1, 64, 112), intrinsics)[:, 0]
    falling = (rays * torch.tensor(normal)).sum(-1)
    depth = torch.where(falling > 0, height / falling.clamp_min(1e-6), torch.tensor(60.0)).clamp_max(60.0)
    return depth[:, None], torch.zeros(1, 64, 112, dtype=torch.int32), intrinsics


@pytest.mark.parametrize("pitch", [-0.08, 0.0, 0.05])
@pytest.mark.parametrize("roll", [0.0, 0.03])
def test_ground_is_found_however_the_camera_looks(pitch, roll):
    tilted = torch.nn.functional.normalize(torch.tensor([roll, 1.0, pitch]), dim=0)
    depth, instances, intrinsics = seen_plane(tuple(tilted.tolist()))
    depth[:, :, 30:, 100:] = 3.0  # a wall
    depth[:, :, 45:58, 30:50] = 2.0  # a car
    instances[:, 45:58, 30:50] = 1
    normal = ground_normal(depth, instances, intrinsics)
    # A thousandth of a radian is a centimetre at ten metres; the wall's foot pulls a little.
    assert torch.allclose(normal, tilted[None], atol=2e-3)


def test_ground_that_is_not_seen_is_level():
    depth, instances, intrinsics = seen_plane((0.0, 1.0, 0.0))
    for hidden in (
        ground_normal(depth, instances + 1, intrinsics),
        ground_normal(torch.full_like(depth, 150.0), instances, intrinsics),
    ):
        assert torch.allclose(hidden, torch.tensor([[0.0, 1.0, 0.0]]), atol=1e-6)


def test_what_moves_stays_on_the_ground():
    normal = torch.nn.functional.normalize(torch.tensor([[0.1, 1.0, -0.2]]), dim=1)
    vectors = torch.randn(1, 5, 3, generator=torch.Generator().manual_seed(0))
    level = along_ground(vectors, normal)
    assert (level * normal[:, None]).sum(-1).abs().max() < 1e-6  # float32 rounding of numbers about 1
    assert torch.allclose(along_ground(level, normal), level, atol=1e-6)
