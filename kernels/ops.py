"""The schemas of edge4d's operators: names, order and defaults. Every other place follows this file.

The NumPy twins, the native faces, the C structs, the torch operators and the ONNX nodes all take the inputs in this
order and the attributes under these names. The numbers behind the words are in CONVENTIONS.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Union

DOMAIN = "edge4d"
VERSION = 1

PLUGIN_ATTRIBUTES = {"plugin_namespace": DOMAIN, "plugin_version": str(VERSION)}
"""On every ONNX node of ours: what TensorRT's parser looks a plugin up by, from 8.6 to 11."""

IMAGE, ALPHA, DEPTH = 1, 2, 4  # bits of GaussianRasterize's `outputs`


@dataclass(frozen=True)
class Tensor:
    """An input or output of an operator.

    Args:
        dtype: "float" is float32 or float16, the same for all of a call's tensors that say so; or the dtype itself; or
            the name of the attribute that decides it.
        dims: each a letter that stands for one size in all of the operator, a number, or an attribute's name.
    """

    name: str
    dtype: str
    dims: tuple[Union[str, int], ...]
    doc: str = ""


@dataclass(frozen=True)
class Attribute:
    """A constant of an operator's node.

    Args:
        type: int, float or str, as in an ONNX node; a flag is an int, 0 or 1.
        default: None when it must be given.
    """

    name: str
    type: type[Union[int, float, str]]
    default: Optional[Union[int, float, str]]
    doc: str


@dataclass(frozen=True)
class Operator:
    """An operator: `name` in ONNX graphs and plugins, `function` in `kernels.reference`, `kernels.cpu` and
    `kernels.cuda`."""

    name: str
    function: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    attributes: tuple[Attribute, ...]
    doc: str


GAUSSIAN_RASTERIZE = Operator(
    name="GaussianRasterize",
    function="gaussian_rasterize",
    inputs=(
        Tensor("means", "float", ("B", "N", 3), "world coordinates"),
        Tensor("quats", "float", ("B", "N", 4), "wxyz, normalised inside"),
        Tensor("scales", "float", ("B", "N", 3), "standard deviations along the axes, linear"),
        Tensor("opacities", "float", ("B", "N"), "0 to 1"),
        Tensor("colors", "float", ("B", "N", "C"), "or SH coefficients [B, N, K, 3] when sh_degree >= 0; then C = 3"),
        Tensor("viewmats", "float32", ("B", "V", 4, 4), "world to camera: x right, y down, z forward"),
        Tensor("Ks", "float32", ("B", "V", 3, 3), "pixels; no skew"),
        Tensor("background", "float32", ("C",)),
    ),
    outputs=(
        Tensor("image", "out_dtype", ("B", "V", "height", "width", "C"), "weighted colours + T * background"),
        Tensor("alpha", "out_dtype", ("B", "V", "height", "width", 1), "1 - T; float32 when out_dtype is uint8"),
        Tensor("depth", "out_dtype", ("B", "V", "height", "width", 1), "along z; float32 when out_dtype is uint8"),
        Tensor("stats", "int32", ("B", "V", 5), "visible, non-finite, pairs needed, capacity, overflow"),
    ),
    attributes=(
        Attribute("width", int, None, "of the image in pixels"),
        Attribute("height", int, None, "of the image in pixels"),
        Attribute("near", float, 0.01, "Gaussians with z below it are left out"),
        Attribute("far", float, 1e10, "Gaussians with z above it are left out"),
        Attribute("eps2d", float, 0.3, "blur in square pixels, added to the diagonal of the projected covariance"),
        Attribute("antialiased", int, 0, "1: opacity is multiplied by sqrt(det before the blur / det after it)"),
        Attribute("compensation_floor", float, 0.0, "smallest value of that factor"),
        Attribute("alpha_max", float, 0.999, "largest alpha of one Gaussian at one pixel"),
        Attribute("sh_degree", int, -1, "-1: colours as they are; 0 to 3: spherical harmonics"),
        Attribute("max_pairs", int, 0, "Gaussian-tile pairs per image; 0 on the CPU: as many as are needed"),
        Attribute("outputs", int, IMAGE | ALPHA | DEPTH, "sum of 1 image, 2 alpha, 4 depth; the others have size 0"),
        Attribute("out_dtype", str, "float32", "float32, float16 or uint8"),
        Attribute("fast", int, 0, "1: may give accuracy for speed where the hardware offers that; not on the CPU"),
    ),
    doc="Draws 3-D Gaussians front to back into every camera's image.",
)

KNN_INTERPOLATE = Operator(
    name="KnnInterpolate",
    function="knn_interpolate",
    inputs=(
        Tensor("queries", "float32", ("Q", 3)),
        Tensor("points", "float32", ("M", 3)),
        Tensor("values", "float32", ("T", "M", "C"), "at the points, for every frame"),
    ),
    outputs=(
        Tensor("values", "float32", ("T", "Q", "C")),
        Tensor("indices", "int32", ("Q", "k"), "nearest first, ties to the lowest index"),
        Tensor("weights", "float32", ("Q", "k")),
    ),
    attributes=(
        Attribute("k", int, 8, "neighbours, 1 to 16"),
        Attribute("beta", float, 7.0, "fall-off of the weights"),
        Attribute("radius_mask", int, 1, "1: neighbours beyond the root mean square distance get no weight"),
    ),
    doc="Interpolates values from the k nearest points; neighbours are found once and serve all frames.",
)

FARTHEST_POINT_SAMPLE = Operator(
    name="FarthestPointSample",
    function="farthest_point_sample",
    inputs=(Tensor("points", "float32", ("N", 3)),),
    outputs=(Tensor("indices", "int32", ("count",)),),
    attributes=(Attribute("count", int, None, "points to choose, 1 to N"),),
    doc="Starts at point 0 and keeps taking the point farthest from those taken; ties to the lowest index.",
)

VOXEL_NEIGHBOURS = Operator(
    name="VoxelNeighbours",
    function="voxel_neighbours",
    inputs=(Tensor("coords", "int32", ("N", 3), "x, y, z; a row outside of the cube is no voxel, and fills up"),),
    outputs=(
        Tensor("neighbours", "int32", ("N", 27), "by offset, z fastest, 13 the voxel itself; -1: no voxel there"),
    ),
    attributes=(Attribute("resolution", int, None, "cells along a side of the cube, 1 to 256"),),
    doc="The voxels around each voxel, once for all convolutions on them; of several in a cell the last counts.",
)

SUBMANIFOLD_CONVOLUTION = Operator(
    name="SubmanifoldConvolution",
    function="submanifold_convolution",
    inputs=(
        Tensor("features", "float", ("N", "C")),
        Tensor("neighbours", "int32", ("N", 27), "rows of features as VoxelNeighbours gives them, -1: zeros"),
        Tensor("weight", "float", (27, "C", "D")),
        Tensor("bias", "float", ("D",)),
    ),
    outputs=(Tensor("convolved", "float", ("N", "D")),),
    attributes=(),
    doc="3x3x3 convolution at voxels, of voxels; sums are float32.",
)

GATHER_MEAN = Operator(
    name="GatherMean",
    function="gather_mean",
    inputs=(
        Tensor("features", "float", ("N", "C")),
        Tensor("table", "int32", ("M", "K"), "rows of features, -1: none"),
    ),
    outputs=(Tensor("means", "float", ("M", "C"), "zeros where the table names no row"),),
    attributes=(Attribute("zeros", int, 0, "zeros that each mean counts beside its rows"),),
    doc="Means of rows: fine voxels to the coarse one that they lie in, or, one row each, back.",
)

WINDOW_ATTENTION = Operator(
    name="WindowAttention",
    function="window_attention",
    inputs=(
        Tensor("qkv", "float", ("N", 3, "H", "D"), "queries, keys and values of each head"),
        Tensor("windows", "int32", ("W", "K"), "rows of qkv, each at most once; -1 behind a window's last"),
    ),
    outputs=(Tensor("attended", "float", ("N", "H", "D"), "zeros for a row that is in no window"),),
    attributes=(),
    doc="Self-attention among the rows of each window, weights softmax(q k / sqrt(D)) in float32; D at most 128.",
)

OPERATORS: dict[str, Operator] = {
    operator.name: operator
    for operator in (
        GAUSSIAN_RASTERIZE,
        KNN_INTERPOLATE,
        FARTHEST_POINT_SAMPLE,
        VOXEL_NEIGHBOURS,
        SUBMANIFOLD_CONVOLUTION,
        GATHER_MEAN,
        WINDOW_ATTENTION,
    )
}
