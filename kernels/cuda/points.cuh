// What KnnInterpolate and FarthestPointSample share: squared distances.
//
// Distances decide, and they are the twins': float64, in their order of operations. GPUs for the edge have a 64th of
// their speed in float64, so float32 goes first, and float64 is asked only where float32 cannot tell.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace edge4d {

constexpr unsigned ALL_LANES = 0xffffffffu;
constexpr int WARP = 32;

struct Point {
  float x, y, z;
};

__device__ inline Point point_at(const float* points, size_t i) {
  return {points[3 * i], points[3 * i + 1], points[3 * i + 2]};
}

__device__ inline float squared_distance(Point a, Point b) {
  const float x = a.x - b.x, y = a.y - b.y, z = a.z - b.z;
  return fmaf(x, x, fmaf(y, y, z * z));
}

// The twins' bits: no product is fused with a sum.
__device__ inline double exact_squared_distance(Point a, Point b) {
  const double x = double(a.x) - double(b.x), y = double(a.y) - double(b.y), z = double(a.z) - double(b.z);
  return __dadd_rn(__dadd_rn(__dmul_rn(x, x), __dmul_rn(y, y)), __dmul_rn(z, z));
}

// A float32 distance that is larger than this belongs to a larger one in float64 too. float32 errs by at most 5
// roundings, 3e-7 of the distance, and two of them by less than 1e-6; by less than 1e-37 where it underflows.
__device__ inline float above(float squared_distance) { return fmaf(squared_distance, 1.000001f, 1e-37f); }

}  // namespace edge4d
