// The hot loops of the operators. loops_inner.hpp holds them and is compiled once per instruction set; `loops()` picks
// the best set that this machine has, when it is first asked.
#pragma once

#include <cstddef>
#include <cstdint>

#include "edge4d.h"

namespace edge4d {

constexpr float LOG2_255 = 7.99435344f;  // alpha < 1/255 is log2(alpha) < -LOG2_255
constexpr int TILE = 16;                 // pixels along each side; a multiple of every vector's lanes
constexpr int TILE_PIXELS = TILE * TILE;
constexpr int PLANE = TILE_PIXELS + 16;  // floats from plane to plane: not a power of two, whose addresses collide

// A Gaussian on the image, followed in memory by its C colours. At pixel centre (x, y), with d = (x, y) - mean,
//   log2(alpha) = log_opacity - (steep_y d.y)^2 - (steep_x (d.x - slope d.y))^2,
// the Cholesky form of the quadric: a sum of squares, so long thin Gaussians lose no digits to cancellation.
// The mean is a whole pixel plus an offset in [0, 1): one float has too few digits for an 8K image.
struct Splat {
  float cell_x, cell_y, offset_x, offset_y;
  float slope, steep_x, steep_y, log_opacity;
  float extent_x, extent_y;  // half sizes of the box that holds alpha >= 1/255
  float tilt_y;              // d.y of the box's rightmost touching point; the leftmost is at -tilt_y
  float depth;
};
static_assert(sizeof(Splat) == 12 * sizeof(float), "loops_inner.hpp writes colours right after it");

// Floats from one splat to the next: RGB fills one 64-byte cache line.
static inline size_t splat_stride(int channels) {
  return (sizeof(Splat) / sizeof(float) + size_t(channels) + 3) / 4 * 4;
}

static inline const Splat& splat_at(const float* splats, size_t i, size_t stride) {
  return *reinterpret_cast<const Splat*>(splats + i * stride);
}

// The integer at or below `value` (not NaN), into [low, high]; floorf would be a call of the C library.
static inline int clamped_floor(float value, int low, int high) {
  return value > float(low) ? (value < float(high) ? int(value - float(low)) + low : high) : low;
}

// One camera's view of one batch entry.
struct View {
  const edge4d_gaussian_rasterize* call;
  size_t batch;
  double rotation[3][3], translation[3], centre[3];  // world to camera; the camera's place in the world
  double focal[2], principal[2], slope_min[2], slope_max[2];
};

// What one tile accumulates, pixel by pixel. A pixel that is done keeps its transmittance with the sign turned.
struct Planes {
  float* transmittance;  // [TILE_PIXELS]
  float* depth;          // [TILE_PIXELS] sum of weight * z
  float* color;          // [C][PLANE] sums of weight * colour
};

constexpr int MATRIX_ROWS = 6;  // of a product at a time: their sums fill the registers
constexpr int PANEL = 32;       // columns; a multiple of every vector's lanes

struct Loops {
  const char* instructions;
  // Writes the visible ones of Gaussians [first, last) to `splats`, in order; returns how many they are and adds to
  // `nonfinite` those that were skipped for a value that is not finite.
  size_t (*project)(const View& view, size_t first, size_t last, float* splats, int64_t& nonfinite);
  // Blends splats[order[0..count)] (low 32 bits) front to back over the tile whose first pixel is (x, y).
  void (*blend)(const float* splats, const uint64_t* order, size_t count, float x, float y, int width, int height,
                int channels, float alpha_max, const Planes& planes);
  // The k nearest of `count` points to a query, nearest first, ties to the lowest index. x, y, z: `padded` floats each.
  void (*nearest)(const float* query, const float* const* xyz, size_t padded, int k, double* distances,
                  int32_t* indices);
  // Lowers distances[first..last) to the squared distance to `taken` where that is less; returns the index of the
  // greatest, the lowest one among equals.
  size_t (*farthest)(const float* points, const float* taken, size_t first, size_t last, double* distances);
  // out[i][0 .. PANEL) += a[i][0 .. depth) times panel [depth, PANEL], for MATRIX_ROWS rows i.
  void (*multiply_add)(const float* const* a, const float* panel, size_t depth, float* const* out);
  // Turns each of `count` scores into 2^(score - greatest), and returns their sum. Writes up to the next multiple of
  // PANEL. One that is NaN or infinite makes all NaN.
  float (*exponentials)(float* scores, size_t count);
};

const Loops& loops();

}  // namespace edge4d
