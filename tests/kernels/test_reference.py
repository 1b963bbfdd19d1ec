"""The NumPy twins against numbers computed by hand. Their arithmetic is float64: tolerances are its rounding."""

from __future__ import annotations

import math

import numpy as np
import pytest
from kernel_scenes import draw_twin, intrinsics, one_gaussian

from edge4d.kernels import reference

# f = 60 px, z = 2 m, scale 0.1 m: 3 px standard deviation, 9 square pixels, 9.3 after the blur.
VARIANCE = (60 * 0.1 / 2) ** 2 + 0.3
FLOAT32 = 1e-6  # results are stored in float32, near 1


def at(output, x: int, y: int):
    return output[0, 0, y, x]


def test_one_gaussian() -> None:
    scene = one_gaussian(Ks=[[intrinsics(cx=32.5, cy=24.5)]], background=[0.0, 0.0, 1.0])
    result = draw_twin(scene)
    # The mean lies on the centre of pixel (32, 24).
    np.testing.assert_allclose(at(result.alpha, 32, 24), [0.5], atol=FLOAT32)
    np.testing.assert_allclose(at(result.image, 32, 24), [0.5, 0.25, 0.125 + 0.5], atol=FLOAT32)
    np.testing.assert_allclose(at(result.depth, 32, 24), [2], atol=FLOAT32)
    # Two pixels right, one down: squared distance 5.
    alpha = 0.5 * math.exp(-5 / (2 * VARIANCE))
    np.testing.assert_allclose(at(result.alpha, 34, 25), [alpha], atol=FLOAT32)
    np.testing.assert_allclose(at(result.image, 34, 25), [alpha, alpha / 2, alpha / 4 + 1 - alpha], atol=FLOAT32)
    assert result.stats.tolist() == [[[1, 0, 0, 0, 0]]]


def test_a_turned_gaussian_lies_the_way_it_was_turned() -> None:
    # Long in x, turned a quarter about z: x goes to y (down). Quaternion of 90 degrees, not normalised.
    scene = one_gaussian(scale=(0.1, 1e-4, 1e-4), quat=(3, 0, 0, 3), Ks=[[intrinsics(cx=32.5, cy=24.5)]])
    alpha = draw_twin(scene).alpha
    np.testing.assert_allclose(at(alpha, 32, 27), [0.5 * math.exp(-9 / (2 * VARIANCE))], atol=FLOAT32)
    assert at(alpha, 35, 24) == 0


def test_an_antialiased_gaussian_keeps_its_light() -> None:
    scene = one_gaussian(scale=(0.01, 0.01, 0.01), Ks=[[intrinsics(cx=32.5, cy=24.5)]])
    sharp = (60 * 0.01 / 2) ** 2
    factor = sharp / (sharp + 0.3)  # sqrt of the ratio of two determinants that are squares
    np.testing.assert_allclose(at(draw_twin(scene, antialiased=True).alpha, 32, 24), [0.5 * factor], atol=FLOAT32)
    floored = draw_twin(scene, antialiased=True, compensation_floor=0.6).alpha
    np.testing.assert_allclose(at(floored, 32, 24), [0.5 * 0.6], atol=FLOAT32)


def stack(depths, opacities, colors):
    """Gaussians one behind another, all on the centre of pixel (32, 24) and three pixels wide."""
    count = len(depths)
    return one_gaussian(
        means=[[[0, 0, z] for z in depths]],
        quats=[[[1, 0, 0, 0]] * count],
        scales=[[[0.05 * z] * 3 for z in depths]],
        opacities=[opacities],
        colors=[[[c, 0, 0] for c in colors]],
        Ks=[[intrinsics(cx=32.5, cy=24.5)]],
    )


def test_the_nearer_one_covers_the_farther_one() -> None:
    result = draw_twin(stack([3, 2], [0.5, 0.4], [1, 0]))
    np.testing.assert_allclose(at(result.image, 32, 24), [0.6 * 0.5, 0, 0], atol=FLOAT32)
    np.testing.assert_allclose(at(result.alpha, 32, 24), [1 - 0.6 * 0.5], atol=FLOAT32)
    np.testing.assert_allclose(at(result.depth, 32, 24), [(0.4 * 2 + 0.3 * 3) / 0.7], atol=FLOAT32)


def test_equal_depths_keep_their_order() -> None:
    # The two depths differ in float64 but not in float32.
    result = draw_twin(stack([2, 2], [0.5, 0.4], [1, 0]))
    np.testing.assert_allclose(at(result.image, 32, 24), [0.5, 0, 0], atol=FLOAT32)


def test_the_one_that_would_end_the_light_is_left_out() -> None:
    # 1 - 0.999 leaves 1e-3; 0.95 of that would leave 5e-5 <= 1e-4, so it and all behind it do not count.
    result = draw_twin(stack([2, 3, 4], [1, 0.95, 0.1], [0.25, 1, 1]))
    np.testing.assert_allclose(at(result.image, 32, 24), [0.999 * 0.25, 0, 0], atol=FLOAT32)
    np.testing.assert_allclose(at(result.alpha, 32, 24), [0.999], atol=FLOAT32)


@pytest.mark.parametrize(
    "change",
    [
        {"mean": (0, 0, 0.005)},  # before the near plane
        {"mean": (0, 0, -2)},  # behind the camera
        {"mean": (0, 0, 2e10)},  # beyond the far plane
        {"opacity": 0.0039},  # below 1/255
        {"mean": (20, 0, 2)},  # beside the image
    ],
)
def test_what_is_not_seen_leaves_the_background(change) -> None:
    result = draw_twin(one_gaussian(**change))
    assert not result.alpha.any()
    assert result.stats[0, 0, 0] == 0


def test_the_box_ends_where_alpha_does() -> None:
    covariances = np.array([[[9.0, 0], [0, 4.0]]])
    # sqrt(2 ln(255)) = 3.329 deviations of 3 and 2 pixels, rounded up; at opacity 1/255 none.
    assert reference.radii_from_covariances(covariances, np.array([1.0])).tolist() == [[10, 7]]
    assert reference.radii_from_covariances(covariances, np.array([1 / 255])).tolist() == [[0, 0]]


def test_the_jacobian_is_the_derivative_of_the_projection() -> None:
    K, point, step = intrinsics(), np.array([0.3, -0.2, 2.0]), 1e-6

    def pixel(p):
        return (K @ p)[:2] / p[2]

    numeric = [(pixel(point + step * e) - pixel(point - step * e)) / (2 * step) for e in np.eye(3)]
    exact = reference.projection_jacobian(point[None], K, 64, 48)[0]
    np.testing.assert_allclose(exact, np.transpose(numeric), atol=1e-6)  # of central differences


def test_the_jacobian_stops_beyond_the_edge() -> None:
    # f 60, width 64: slopes are cut at 0.3 * 32 / 60 beyond 32 / 60.
    far_out = reference.projection_jacobian(np.array([[9.0, 0, 1]]), intrinsics(), 64, 48)[0]
    assert far_out[0, 2] == pytest.approx(-60 * 1.3 * 32 / 60)


def test_spherical_harmonics_are_orthonormal() -> None:
    # Exact quadrature on the sphere for polynomials of degree 6: Gauss-Legendre in z, equal steps around.
    z, weights = np.polynomial.legendre.leggauss(8)
    angle = np.arange(16) * (2 * np.pi / 16)
    ring = np.sqrt(1 - z * z)[:, None]
    directions = np.stack([ring * np.cos(angle), ring * np.sin(angle), np.broadcast_to(z[:, None], (8, 16))], -1)
    basis = reference.sh_basis(directions.reshape(-1, 3), 3)
    gram = np.einsum("nk,nl,n->kl", basis, basis, np.repeat(weights, 16) * (2 * np.pi / 16))
    np.testing.assert_allclose(gram, np.eye(16), atol=1e-12)


def test_spherical_harmonics_have_the_signs_of_3d_gaussian_splatting() -> None:
    basis = reference.sh_basis(np.eye(3), 2)
    degree1 = 0.4886025119029199
    np.testing.assert_allclose(basis[:, 1], [0, -degree1, 0], atol=1e-15)
    np.testing.assert_allclose(basis[:, 2], [0, 0, degree1], atol=1e-15)
    np.testing.assert_allclose(basis[:, 3], [-degree1, 0, 0], atol=1e-15)
    np.testing.assert_allclose(basis[2, 6], 0.6307831305050401, atol=1e-15)


def test_colours_of_spherical_harmonics() -> None:
    coefficients = np.zeros((1, 4, 3))
    coefficients[0, 0] = [1, 0, -9]  # the constant term
    coefficients[0, 3, 1] = 0.5  # seen along -x it brightens green
    color = reference.color_from_sh(coefficients, np.array([[-7.0, 0, 0]]), 1)
    np.testing.assert_allclose(color, [[0.5 + 0.28209479177387814, 0.5 + 0.24430125595145996, 0]])


def test_what_is_not_finite_is_counted_and_skipped() -> None:
    scene = stack([2, 3, 4, 5], [0.5, 0.5, 0.5, 0.5], [1, 1, 1, 1])
    scene["means"][0, 0, 0] = np.nan
    scene["colors"][0, 1, 2] = np.inf
    scene["quats"][0, 2] = 0  # no direction
    result = draw_twin(scene)
    assert result.stats[0, 0, :2].tolist() == [1, 3]
    np.testing.assert_allclose(at(result.depth, 32, 24), [5], atol=1e-5)


def test_outputs_that_were_not_asked_for_are_empty() -> None:
    result = draw_twin(one_gaussian(), outputs=2)
    assert (result.image.size, result.alpha.size, result.depth.size) == (0, 64 * 48, 0)


def test_bytes_are_rounded_and_clamped() -> None:
    scene = one_gaussian(means=np.zeros((1, 0, 3)), quats=np.zeros((1, 0, 4)), scales=np.zeros((1, 0, 3)),
                         opacities=np.zeros((1, 0)), colors=np.zeros((1, 0, 3)), background=[-1, 0.5, 2])  # fmt: skip
    image = draw_twin(scene, out_dtype="uint8").image
    assert image.dtype == np.uint8
    assert at(image, 0, 0).tolist() == [0, 128, 255]


def test_neighbours_on_a_line() -> None:
    points = np.array([[0, 0, 0], [1, 0, 0], [3, 0, 0], [1, 0, 0]])
    values = np.array([[[10.0], [20.0], [30.0], [40.0]]])
    result = reference.knn_interpolate(np.array([[0.5, 0, 0]]), points, values, k=3, beta=2.0)
    assert result.indices.tolist() == [[0, 1, 3]]  # all at 0.25: the lowest index first
    np.testing.assert_allclose(result.weights, [[1 / 3] * 3], atol=1e-6)  # the 1e-8 below the sum
    np.testing.assert_allclose(result.values, [[[70 / 3]]], rtol=1e-6)


def test_neighbours_beyond_the_mean_distance_have_no_weight() -> None:
    points, values = np.array([[1.0, 0, 0], [3, 0, 0]]), np.array([[[1.0], [5.0]]])
    query = np.zeros((1, 3))
    assert reference.knn_interpolate(query, points, values, k=2).weights[0, 1] == 0  # 9 > mean(1, 9) = 5
    weights = reference.knn_interpolate(query, points, values, k=2, beta=1.0, radius_mask=False).weights
    np.testing.assert_allclose(weights, [[1 / (1 + math.exp(-8 / 5)), 1 / (1 + math.exp(8 / 5))]], atol=1e-5)


def test_farthest_points_on_a_line() -> None:
    points = np.array([[2, 0, 0], [0, 0, 0], [4, 0, 0], [5, 0, 0], [2, 0, 0]])
    # From 2 the farthest is 5 (index 3), then 0; then 4 and the second 2 are left: 1 and 0 away.
    assert reference.farthest_point_sample(points, count=5).tolist() == [0, 3, 1, 2, 0]


def test_farthest_points_prefer_the_lowest_index() -> None:
    points = np.array([[0, 0, 0], [1, 0, 0], [-1, 0, 0], [0, 1, 0]])
    assert reference.farthest_point_sample(points, count=2).tolist() == [0, 1]


# ---- voxels ---------------------------------------------------------------------------------------------------------


def test_neighbours_of_voxels() -> None:
    # Two above each other in z, one in the opposite corner, one row that is no voxel.
    near = reference.voxel_neighbours([[0, 0, 0], [0, 0, 1], [3, 3, 3], [-1, -1, -1]], resolution=4)
    expected = np.full((4, 27), -1)
    expected[[0, 1, 2], 13] = [0, 1, 2]
    expected[0, 14] = 1  # offset (0, 0, 1)
    expected[1, 12] = 0  # offset (0, 0, -1)
    assert near.tolist() == expected.tolist()
    assert reference.voxel_neighbours([[1, 2, 0], [0, 1, 1]], resolution=3)[0].tolist().index(1) == 0 * 9 + 0 * 3 + 2


def test_of_voxels_in_one_cell_the_last_counts() -> None:
    near = reference.voxel_neighbours([[1, 1, 1], [1, 1, 1]], resolution=2)
    assert near[:, 13].tolist() == [1, 1]
    assert (near >= 0).sum() == 2


def test_a_convolution_of_voxels() -> None:
    near = reference.voxel_neighbours([[0, 0, 0], [0, 0, 1]], resolution=2)
    weight = np.zeros((27, 2, 1))
    weight[13], weight[14] = [[1], [10]], [[100], [1000]]
    # The first sees the second at offset 14; the second has nobody there.
    convolved = reference.submanifold_convolution([[1, 2], [3, 4]], near, weight, [0.5])
    assert convolved.tolist() == [[1 + 20 + 300 + 4000 + 0.5], [3 + 40 + 0.5]]


def test_a_convolution_of_a_full_grid_is_a_dense_one() -> None:
    rng = np.random.default_rng(0)
    coords = np.argwhere(np.ones((4, 4, 4)))
    features, weight = rng.normal(size=(64, 2)), rng.normal(size=(27, 2, 3))
    convolved = reference.submanifold_convolution(
        features, reference.voxel_neighbours(coords, resolution=4), weight, np.zeros(3)
    )
    padded = np.pad(features.reshape(4, 4, 4, 2), [(1, 1)] * 3 + [(0, 0)])
    cells = np.lib.stride_tricks.sliding_window_view(padded, (3, 3, 3), axis=(0, 1, 2))  # [4, 4, 4, C, 3, 3, 3]
    dense = np.einsum("xyzcijk,ijkcd->xyzd", cells, weight.reshape(3, 3, 3, 2, 3))
    np.testing.assert_allclose(convolved, dense.reshape(64, 3), rtol=0, atol=20 * FLOAT32)  # values up to 20


def test_means_of_rows() -> None:
    features = [[1.0, 2.0], [3.0, 6.0]]
    table = [[0, 1, -1], [-1, 1, -1], [-1, -1, -1]]
    assert reference.gather_mean(features, table).tolist() == [[2, 4], [3, 6], [0, 0]]
    halves = reference.gather_mean(features, table, zeros=1)
    np.testing.assert_allclose(halves, [[4 / 3, 8 / 3], [1.5, 3], [0, 0]], atol=FLOAT32)


def test_attention_among_the_rows_of_a_window() -> None:
    qkv = np.zeros((4, 3, 1, 4))
    qkv[0, 0, 0, 0] = 2 * math.log(3)  # over sqrt(4): a score of ln 3 with the first's key, 0 with the second's
    qkv[0, 1, 0, 0] = 1
    qkv[:, 2, 0] = [[1, 0, 0, 0], [5, 0, 0, 0], [7, 7, 7, 7], [9, 9, 9, 9]]
    attended = reference.window_attention(qkv, [[0, 1, -1], [2, -1, -1]])
    np.testing.assert_allclose(attended[0, 0], [(3 * 1 + 5) / 4, 0, 0, 0], atol=FLOAT32)
    np.testing.assert_allclose(attended[1, 0], [3, 0, 0, 0], atol=FLOAT32)  # equal scores
    assert attended[2:].tolist() == [[[7, 7, 7, 7]], [[0, 0, 0, 0]]]  # alone, and in no window
