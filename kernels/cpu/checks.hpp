// What a call of an operator must hold, whichever device it runs on.
#pragma once

#include <string>

#include "edge4d.h"
#include "status.hpp"

namespace edge4d {

// Refuses an operator's call unless something holds.
struct Require {
  const char* name;
  void operator()(bool holds, const char* what) const {
    if (!holds) refuse(std::string(name) + ": " + what + ".");
  }
};

constexpr int K_MAX = 16;  // neighbours

// All but max_pairs, which devices differ in, and the tensors.
inline void check_attributes(const edge4d_gaussian_rasterize& call) {
  constexpr Require require{"GaussianRasterize"};
  require(call.size == sizeof call, "the parameter struct is of another version");
  require(call.batch >= 0 && call.cameras >= 0 && call.gaussians >= 0, "a size is negative");
  require(call.channels > 0, "there must be at least one channel");
  require(call.width > 0 && call.height > 0, "width and height must be positive");
  require(call.near > 0 && call.far >= call.near, "near must be positive, and far not below it");
  require(call.eps2d >= 0, "eps2d must not be negative");
  require(call.compensation_floor >= 0, "compensation_floor must not be negative");
  require(call.alpha_max > 0 && call.alpha_max <= 1, "alpha_max must lie in (0, 1]");
  require(call.sh_degree >= -1 && call.sh_degree <= 3, "sh_degree must lie in -1 .. 3");
  require(call.sh_degree < 0 || call.coefficients >= (call.sh_degree + 1) * (call.sh_degree + 1),
          "too few coefficients for sh_degree");
  require(call.sh_degree < 0 || call.channels == 3, "spherical harmonics give 3 channels");
  require((call.sh_degree < 0) == (call.coefficients == 0), "coefficients and sh_degree do not agree");
  require(call.outputs >= 0 && call.outputs <= 7, "outputs is a sum of 1, 2 and 4");
  require(call.dtype == EDGE4D_FLOAT32 || call.dtype == EDGE4D_FLOAT16, "Gaussians are float32 or float16");
  require(call.out_dtype >= EDGE4D_FLOAT32 && call.out_dtype <= EDGE4D_UINT8, "out_dtype is unknown");
}

// Of a call that has images to draw.
inline void check_tensors(const edge4d_gaussian_rasterize& call) {
  const auto require = [](bool holds) { Require{"GaussianRasterize"}(holds, "a pointer is null"); };
  require(call.viewmats && call.Ks && call.background && call.stats);
  require(call.gaussians == 0 || (call.means && call.quats && call.scales && call.opacities && call.colors));
  require((call.image || !(call.outputs & EDGE4D_IMAGE)) && (call.alpha || !(call.outputs & EDGE4D_ALPHA)) &&
          (call.depth || !(call.outputs & EDGE4D_DEPTH)));
}

inline void check_attributes(const edge4d_knn_interpolate& call) {
  constexpr Require require{"KnnInterpolate"};
  require(call.size == sizeof call, "the parameter struct is of another version");
  require(call.query_count >= 0 && call.frames >= 0 && call.channels >= 0, "a size is negative");
  require(call.k >= 1 && call.k <= K_MAX, "k must lie in 1 .. 16");
  require(call.k <= call.point_count, "there are fewer points than neighbours");
}

// Of a call that has queries.
inline void check_tensors(const edge4d_knn_interpolate& call) {
  constexpr Require require{"KnnInterpolate"};
  require(call.queries && call.points && call.indices && call.weights, "a pointer is null");
  require(call.frames == 0 || call.channels == 0 || (call.values && call.interpolated), "a pointer is null");
}

inline void check_attributes(const edge4d_farthest_point_sample& call) {
  constexpr Require require{"FarthestPointSample"};
  require(call.size == sizeof call, "the parameter struct is of another version");
  require(call.count >= 1 && call.count <= call.point_count, "count must lie in 1 .. number of points");
}

inline void check_tensors(const edge4d_farthest_point_sample& call) {
  Require{"FarthestPointSample"}(call.points && call.indices, "a pointer is null");
}

constexpr int RESOLUTION_MAX = 256;  // the grid of that many cells along a side takes 69 MB
constexpr int HEAD_CHANNELS_MAX = 128;

inline void check_attributes(const edge4d_voxel_neighbours& call) {
  constexpr Require require{"VoxelNeighbours"};
  require(call.size == sizeof call, "the parameter struct is of another version");
  require(call.voxel_count >= 0, "a size is negative");
  require(call.resolution >= 1 && call.resolution <= RESOLUTION_MAX, "resolution must lie in 1 .. 256");
}

inline void check_tensors(const edge4d_voxel_neighbours& call) {
  Require{"VoxelNeighbours"}(call.coords && call.neighbours, "a pointer is null");
}

inline bool is_stored(int32_t dtype) { return dtype == EDGE4D_FLOAT32 || dtype == EDGE4D_FLOAT16; }

inline void check_attributes(const edge4d_submanifold_convolution& call) {
  constexpr Require require{"SubmanifoldConvolution"};
  require(call.size == sizeof call, "the parameter struct is of another version");
  require(call.voxel_count >= 0, "a size is negative");
  require(call.inputs > 0 && call.outputs > 0, "there must be at least one channel");
  require(is_stored(call.dtype), "features are float32 or float16");
}

inline void check_tensors(const edge4d_submanifold_convolution& call) {
  Require{"SubmanifoldConvolution"}(call.features && call.neighbours && call.weight && call.bias && call.convolved,
                                    "a pointer is null");
}

inline void check_attributes(const edge4d_gather_mean& call) {
  constexpr Require require{"GatherMean"};
  require(call.size == sizeof call, "the parameter struct is of another version");
  require(call.row_count >= 0 && call.mean_count >= 0 && call.most_rows >= 0, "a size is negative");
  require(call.channels > 0, "there must be at least one channel");
  require(call.zeros >= 0, "zeros must not be negative");
  require(is_stored(call.dtype), "features are float32 or float16");
}

// Of a call that has means.
inline void check_tensors(const edge4d_gather_mean& call) {
  constexpr Require require{"GatherMean"};
  require(call.means, "a pointer is null");
  require(call.row_count == 0 || call.features, "a pointer is null");
  require(call.most_rows == 0 || call.table, "a pointer is null");
}

inline void check_attributes(const edge4d_window_attention& call) {
  constexpr Require require{"WindowAttention"};
  require(call.size == sizeof call, "the parameter struct is of another version");
  require(call.row_count >= 0 && call.window_count >= 0 && call.longest >= 0, "a size is negative");
  require(call.heads > 0, "there must be at least one head");
  require(call.channels >= 1 && call.channels <= HEAD_CHANNELS_MAX, "a head has 1 .. 128 channels");
  require(is_stored(call.dtype), "queries, keys and values are float32 or float16");
}

// Of a call that has rows.
inline void check_tensors(const edge4d_window_attention& call) {
  constexpr Require require{"WindowAttention"};
  require(call.qkv && call.attended, "a pointer is null");
  require(call.window_count == 0 || call.longest == 0 || call.windows, "a pointer is null");
}

}  // namespace edge4d
