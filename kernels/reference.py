"""NumPy twins of the operators in float64: slow, short, and what every kernel is tested against.

GaussianRasterize reads from top to bottom as project, sort, blend. Sizes: B batch, V cameras, N Gaussians, H W pixels,
C channels, K spherical-harmonics coefficients or neighbours, T frames; of voxels N, too. The constants are those of
CONVENTIONS.md.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edge4d.kernels.ops import ALPHA, DEPTH, IMAGE

Array = NDArray[np.float64]

ALPHA_MIN = 1 / 255  # a fainter Gaussian does not change an 8-bit pixel
TRANSMITTANCE_MIN = 1e-4  # the pixel is done when this little of the background would be left
EXTENT_MAX = 3.33  # standard deviations; exp(-3.33**2 / 2) is just under 1/255, so nothing visible lies beyond


class Rasterization(NamedTuple):
    """What `gaussian_rasterize` gives; an output that was not asked for has size 0."""

    image: NDArray[Any]  # [B, V, H, W, C]
    alpha: NDArray[Any]  # [B, V, H, W, 1]
    depth: NDArray[Any]  # [B, V, H, W, 1]
    stats: NDArray[np.int32]  # [B, V, 5] visible, non-finite, pairs needed, capacity, overflow


class KnnInterpolation(NamedTuple):
    """What `knn_interpolate` gives."""

    values: NDArray[np.float32]  # [T, Q, C]
    indices: NDArray[np.int32]  # [Q, K]
    weights: NDArray[np.float32]  # [Q, K]


class Splats(NamedTuple):
    """The visible Gaussians of one image."""

    means: Array  # [N, 2] pixels
    covariances: Array  # [N, 2, 2] square pixels, blurred
    opacities: Array  # [N] after antialiasing
    radii: Array  # [N, 2] whole pixels
    depths: Array  # [N] metres along z
    colors: Array  # [N, C]


def gaussian_rasterize(
    means: ArrayLike,
    quats: ArrayLike,
    scales: ArrayLike,
    opacities: ArrayLike,
    colors: ArrayLike,
    viewmats: ArrayLike,
    Ks: ArrayLike,
    background: ArrayLike,
    *,
    width: int,
    height: int,
    near: float = 0.01,
    far: float = 1e10,
    eps2d: float = 0.3,
    antialiased: bool = False,
    compensation_floor: float = 0.0,
    alpha_max: float = 0.999,
    sh_degree: int = -1,
    max_pairs: int = 0,
    outputs: int = IMAGE | ALPHA | DEPTH,
    out_dtype: str = "float32",
    fast: bool = False,
) -> Rasterization:
    """Twin of GaussianRasterize in `kernels.ops`. It has no tiles: `stats` counts no pairs, `max_pairs` does nothing.

    Args:
        means: [B, N, 3] world coordinates.
        quats: [B, N, 4] wxyz.
        scales: [B, N, 3] standard deviations, linear.
        opacities: [B, N] in 0..1.
        colors: [B, N, C], or SH coefficients [B, N, K, 3] when `sh_degree` >= 0.
        viewmats: [B, V, 4, 4] world to camera, OpenCV axes.
        Ks: [B, V, 3, 3] pixels.
        background: [C].
    """
    means, quats, scales, opacities, colors, viewmats, Ks, background = (
        np.asarray(array, np.float64) for array in (means, quats, scales, opacities, colors, viewmats, Ks, background)
    )
    frames, stats = [], []
    for b, v in np.ndindex(viewmats.shape[:2]):
        finite = _finite(means[b], quats[b], scales[b], opacities[b], colors[b])
        splats = project(
            means[b, finite],
            quats[b, finite],
            scales[b, finite],
            opacities[b, finite],
            colors[b, finite],
            viewmats[b, v],
            Ks[b, v],
            width,
            height,
            near,
            far,
            eps2d,
            antialiased,
            compensation_floor,
            sh_degree,
        )
        splats = in_depth_order(splats)
        frames.append(blend(splats, background, width, height, alpha_max))
        stats.append([len(splats.depths), np.count_nonzero(~finite), 0, max_pairs, 0])
    image, alpha, depth = (np.reshape(plane, (*viewmats.shape[:2], height, width, -1)) for plane in zip(*frames))
    plane_dtype = "float32" if out_dtype == "uint8" else out_dtype
    return Rasterization(
        _stored(image, out_dtype) if outputs & IMAGE else np.empty(0, out_dtype),
        _stored(alpha, plane_dtype) if outputs & ALPHA else np.empty(0, plane_dtype),
        _stored(depth, plane_dtype) if outputs & DEPTH else np.empty(0, plane_dtype),
        np.reshape(np.asarray(stats, np.int32), (*viewmats.shape[:2], 5)),
    )


# ---- project --------------------------------------------------------------------------------------------------------


def project(
    means: Array,  # [N, 3]
    quats: Array,  # [N, 4]
    scales: Array,  # [N, 3]
    opacities: Array,  # [N]
    colors: Array,  # [N, C] or [N, K, 3]
    viewmat: Array,  # [4, 4]
    K: Array,  # [3, 3]
    width: int,
    height: int,
    near: float,
    far: float,
    eps2d: float,
    antialiased: bool,
    compensation_floor: float,
    sh_degree: int,
) -> Splats:
    """The Gaussians that the camera sees, as 2-D Gaussians on its image (EWA splatting, Zwicker et al. 2002)."""
    rotation, translation = viewmat[:3, :3], viewmat[:3, 3]
    points = means @ rotation.T + translation
    z = points[:, 2]
    seen = (z >= near) & (z <= far)
    means, quats, scales, opacities, colors, points, z = (
        array[seen] for array in (means, quats, scales, opacities, colors, points, z)
    )

    axes = rotation @ rotation_from_quat(quats) * scales[:, None, :]  # [N, 3, 3] columns: the axes, camera frame
    rows = projection_jacobian(points, K, width, height) @ axes  # [N, 2, 3]; covariance = rows @ rows^T
    covariances = rows @ rows.swapaxes(1, 2)
    # |a x b|^2 is the determinant without its cancellation; the blur's part is then added, all terms positive.
    det_sharp = (np.cross(rows[:, 0], rows[:, 1]) ** 2).sum(-1)
    det = det_sharp + eps2d * (covariances[:, 0, 0] + covariances[:, 1, 1]) + eps2d**2
    covariances = covariances + eps2d * np.eye(2)
    if antialiased:
        ratio = det_sharp / np.where(det > 0, det, 1)
        opacities = opacities * np.sqrt(np.maximum(compensation_floor**2, ratio))

    centres = points[:, :2] / z[:, None] * [K[0, 0], K[1, 1]] + K[:2, 2]
    radii = radii_from_covariances(covariances, opacities)
    on_screen = ((centres + radii > 0) & (centres - radii < [width, height])).all(-1)
    visible = (det > 0) & (opacities >= ALPHA_MIN) & on_screen
    if sh_degree >= 0:
        camera_centre = -rotation.T @ translation
        colors = color_from_sh(colors, means - camera_centre, sh_degree)
    return Splats(*(array[visible] for array in (centres, covariances, opacities, radii, z, colors)))


def rotation_from_quat(quats: Array) -> Array:
    """Rotation matrices [N, 3, 3] of quaternions [N, 4], wxyz, of any length but 0."""
    w, x, y, z = (quats / np.linalg.norm(quats, axis=-1, keepdims=True)).T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.moveaxis(np.array(rows), 2, 0)


def projection_jacobian(points: Array, K: Array, width: int, height: int) -> Array:
    """Derivative [N, 2, 3] of pixels by camera coordinates, taken no farther out than 30 % beyond the image's edge.

    Far beside the image the derivative of x / z would stretch Gaussians across it; the limits are those of gsplat.
    """
    z = points[:, 2]
    jacobian = np.zeros((len(points), 2, 3))
    for axis, size in enumerate((width, height)):
        focal, centre = K[axis, axis], K[axis, 2]
        margin = 0.3 * 0.5 * size / focal
        slope = np.clip(points[:, axis] / z, -(margin + centre / focal), (size - centre) / focal + margin)
        jacobian[:, axis, axis] = focal / z
        jacobian[:, axis, 2] = -focal * slope / z
    return jacobian


def radii_from_covariances(covariances: Array, opacities: Array) -> Array:
    """Half sizes [N, 2] of the boxes in whole pixels outside of which alpha is below 1/255."""
    deviations = np.sqrt(2 * np.log(np.maximum(255 * opacities, 1)))
    variances = np.diagonal(covariances, axis1=1, axis2=2)
    return np.asarray(np.ceil(np.minimum(EXTENT_MAX, deviations)[:, None] * np.sqrt(variances)))


def color_from_sh(coefficients: Array, directions: Array, degree: int) -> Array:
    """Colours [N, 3] of SH coefficients [N, K, 3] seen along `directions` [N, 3] (camera to Gaussian, any length)."""
    basis = sh_basis(directions / np.linalg.norm(directions, axis=-1, keepdims=True), degree)
    return np.asarray(np.maximum(np.einsum("nk,nkc->nc", basis, coefficients[:, : basis.shape[1]]) + 0.5, 0))


def sh_basis(directions: Array, degree: int) -> Array:
    """Spherical harmonics [N, (degree + 1)**2] of unit vectors [N, 3]: order and signs of 3D Gaussian splatting."""

    def root(numerator: int, denominator: int) -> float:
        return math.sqrt(numerator / (denominator * math.pi))

    x, y, z = directions.T
    basis = [np.full_like(x, root(1, 4))]
    if degree >= 1:
        basis += [-root(3, 4) * y, root(3, 4) * z, -root(3, 4) * x]
    if degree >= 2:
        basis += [
            root(15, 4) * x * y,
            -root(15, 4) * y * z,
            root(5, 16) * (2 * z * z - x * x - y * y),
            -root(15, 4) * x * z,
            root(15, 16) * (x * x - y * y),
        ]
    if degree >= 3:
        basis += [
            -root(35, 32) * y * (3 * x * x - y * y),
            root(105, 4) * x * y * z,
            -root(21, 32) * y * (4 * z * z - x * x - y * y),
            root(7, 16) * z * (2 * z * z - 3 * x * x - 3 * y * y),
            -root(21, 32) * x * (4 * z * z - x * x - y * y),
            root(105, 16) * z * (x * x - y * y),
            -root(35, 32) * x * (x * x - 3 * y * y),
        ]
    return np.stack(basis, -1)


# ---- sort -----------------------------------------------------------------------------------------------------------


def in_depth_order(splats: Splats) -> Splats:
    """Front to back by z rounded to float32, as the kernels' keys hold it; equal ones in their given order."""
    order = np.argsort(splats.depths.astype(np.float32), kind="stable")
    return Splats(*(array[order] for array in splats))


# ---- blend ----------------------------------------------------------------------------------------------------------


def blend(splats: Splats, background: Array, width: int, height: int, alpha_max: float) -> tuple[Array, Array, Array]:
    """Image [H, W, C], alpha [H, W] and depth [H, W] of splats in depth order."""
    image = np.zeros((height, width, len(background)))
    depth = np.zeros((height, width))
    transmittance = np.ones((height, width))
    done = np.zeros((height, width), bool)
    for mean, covariance, opacity, radius, z, color in zip(*splats):
        first = np.maximum(np.floor(mean - radius), 0).astype(int)
        last = np.minimum(np.ceil(mean + radius), [width, height]).astype(int)
        box = (slice(first[1], last[1]), slice(first[0], last[0]))
        alpha = np.minimum(alpha_max, opacity * np.exp(-_sigma(mean, covariance, first, last)))
        left = transmittance[box] * (1 - alpha)
        touched = (alpha >= ALPHA_MIN) & ~done[box]
        done[box] |= touched & (left <= TRANSMITTANCE_MIN)
        blended = touched & ~done[box]
        weight = np.where(blended, transmittance[box] * alpha, 0)
        image[box] += weight[..., None] * color
        depth[box] += weight * z
        transmittance[box] = np.where(blended, left, transmittance[box])
    alpha = 1 - transmittance
    return image + transmittance[..., None] * background, alpha, depth / np.maximum(alpha, 1e-10)


def _sigma(mean: Array, covariance: Array, first: NDArray[np.int_], last: NDArray[np.int_]) -> Array:
    """Half the squared Mahalanobis distance of the pixel centres of a box: alpha = opacity * exp(-sigma)."""
    dx = np.arange(first[0], last[0]) + 0.5 - mean[0]
    dy = np.arange(first[1], last[1])[:, None] + 0.5 - mean[1]
    (xx, xy), (_, yy) = np.linalg.inv(covariance)
    return np.asarray(0.5 * (xx * dx * dx + yy * dy * dy) + xy * dx * dy)


def _finite(*arrays: Array) -> NDArray[np.bool_]:
    """Whether everything of a Gaussian is finite, and its quaternion (the second array) has a direction."""
    finite = np.all([np.isfinite(array).all(axis=tuple(range(1, array.ndim))) for array in arrays], axis=0)
    return np.asarray(finite & (arrays[1] != 0).any(-1))


def _stored(values: Array, dtype: str) -> NDArray[Any]:
    if dtype == "uint8":
        return np.asarray(np.floor(np.clip(values, 0, 1) * 255 + 0.5), np.uint8)
    return values.astype(dtype)


# ---- points ---------------------------------------------------------------------------------------------------------


def knn_interpolate(
    queries: ArrayLike, points: ArrayLike, values: ArrayLike, *, k: int = 8, beta: float = 7.0, radius_mask: bool = True
) -> KnnInterpolation:
    """Twin of KnnInterpolate: the mesh-guided interpolation of GVFDiffusion.

    With d2 the squared distances of the k nearest: r = sqrt(mean d2) + 1e-6, w = exp(-beta d2 / r^2), without weight
    where d2 > r^2 (`radius_mask`), then w / (sum w + 1e-8).

    Args:
        queries: [Q, 3].
        points: [M, 3], M >= k.
        values: [T, M, C].
    """
    queries, points, values = (np.asarray(array, np.float64) for array in (queries, points, values))
    offsets = queries[:, None] - points
    distances = (offsets[..., 0] ** 2 + offsets[..., 1] ** 2) + offsets[..., 2] ** 2
    indices = np.argsort(distances, axis=1, kind="stable")[:, :k]
    nearest = np.take_along_axis(distances, indices, axis=1)
    radius = (np.sqrt(nearest.mean(1)) + 1e-6)[:, None]
    weights = np.exp(-beta * nearest / radius**2)
    if radius_mask:
        weights = weights * (nearest <= radius**2)
    weights = weights / (weights.sum(1, keepdims=True) + 1e-8)
    interpolated = np.einsum("qk,tqkc->tqc", weights, values[:, indices])
    return KnnInterpolation(interpolated.astype(np.float32), indices.astype(np.int32), weights.astype(np.float32))


def farthest_point_sample(points: ArrayLike, *, count: int) -> NDArray[np.int32]:
    """Twin of FarthestPointSample: `count` indices into points [N, 3], the first 0, ties to the lowest index."""
    points = np.asarray(points, np.float64)
    indices = np.zeros(count, np.int32)
    nearest = np.full(len(points), np.inf)  # squared distance of every point to the nearest one taken
    for i in range(1, count):
        offsets = points - points[indices[i - 1]]
        nearest = np.minimum(nearest, (offsets[:, 0] ** 2 + offsets[:, 1] ** 2) + offsets[:, 2] ** 2)
        indices[i] = np.argmax(nearest)
    return indices


# ---- voxels ---------------------------------------------------------------------------------------------------------


def voxel_neighbours(coords: ArrayLike, *, resolution: int) -> NDArray[np.int32]:
    """Twin of VoxelNeighbours: [N, 27], the voxel in each cell around each voxel, -1 where there is none.

    Args:
        coords: [N, 3] integers. A row outside of 0 .. resolution - 1 is no voxel: nobody's neighbour, and without any.
    """
    coords = np.asarray(coords, np.int64)
    inside = np.all((coords >= 0) & (coords < resolution), axis=1)
    grid = np.full((resolution + 2,) * 3, -1, np.int32)  # a border of empty cells, so that no neighbour is outside
    grid[tuple(coords[inside].T + 1)] = np.flatnonzero(inside)
    offsets = np.stack(np.meshgrid(*[np.arange(-1, 2)] * 3, indexing="ij"), -1).reshape(27, 3)
    cells = np.where(inside[:, None, None], coords[:, None] + 1 + offsets, 0)
    x, y, z = np.moveaxis(cells, -1, 0)
    near: NDArray[np.int32] = grid[x, y, z]
    return near


def submanifold_convolution(
    features: ArrayLike, neighbours: ArrayLike, weight: ArrayLike, bias: ArrayLike
) -> NDArray[Any]:
    """Twin of SubmanifoldConvolution: [N, D], sum_k features[neighbours[n, k]] weight[k] + bias.

    Args:
        features: [N, C].
        neighbours: [N, 27], -1 for zeros.
        weight: [27, C, D].
        bias: [D].
    """
    gathered = _rows(features, neighbours)
    weight, bias = np.asarray(weight, np.float64), np.asarray(bias, np.float64)
    cells, channels, outputs = weight.shape
    convolved = gathered.reshape(-1, cells * channels) @ weight.reshape(cells * channels, outputs) + bias
    return _stored(convolved, _dtype_of(features))


def gather_mean(features: ArrayLike, table: ArrayLike, *, zeros: int = 0) -> NDArray[Any]:
    """Twin of GatherMean: [M, C], the sum of the rows that the table names over their number plus `zeros`.

    Args:
        features: [N, C].
        table: [M, K], -1 for none.
    """
    counts = (np.asarray(table) >= 0).sum(1, keepdims=True) + zeros
    return _stored(_rows(features, table).sum(1) / np.maximum(counts, 1), _dtype_of(features))


def window_attention(qkv: ArrayLike, windows: ArrayLike) -> NDArray[Any]:
    """Twin of WindowAttention: [N, H, D].

    Args:
        qkv: [N, 3, H, D].
        windows: [W, K], each row's members, then -1.
    """
    numbers, windows = np.asarray(qkv, np.float64), np.asarray(windows)
    attended = np.zeros((len(numbers), *numbers.shape[2:]))
    for window in windows:
        members = window[window >= 0]
        queries, keys, values = numbers[members].transpose(1, 2, 0, 3)  # [H, L, D] each
        scores = queries @ keys.swapaxes(1, 2) / math.sqrt(numbers.shape[3])
        weights = np.exp(scores - scores.max(2, keepdims=True, initial=-np.inf))
        attended[members] = (weights / weights.sum(2, keepdims=True) @ values).swapaxes(0, 1)
    return _stored(attended, _dtype_of(qkv))


def _rows(features: ArrayLike, table: ArrayLike) -> Array:
    """Rows of features [N, C] by a table of any shape [...]: [..., C], zeros for -1."""
    features = np.asarray(features, np.float64)
    rows: Array = np.concatenate([features, np.zeros((1, features.shape[1]))])[np.asarray(table)]
    return rows


def _dtype_of(array: ArrayLike) -> str:
    """What a twin's result is stored in: float16 like its input, or float32."""
    return "float16" if np.asarray(array).dtype == np.float16 else "float32"
