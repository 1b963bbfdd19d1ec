// A Gaussian as one image sees it, and which pixels it reaches.
#pragma once

#include <cstdint>

#include "edge4d.h"

namespace edge4d {

constexpr float LOG2_255 = 7.99435344f;  // alpha < 1/255 is log2(alpha) < -LOG2_255
constexpr int TILE = 16;                 // pixels along each side

// At pixel centre (x, y), with d = (x, y) - mean,
//   log2(alpha) = log_opacity - (steep_y d.y)^2 - (steep_x (d.x - slope d.y))^2,
// the Cholesky form of the quadric: a sum of squares, so long thin Gaussians lose no digits to cancellation.
// The mean is a whole pixel plus an offset in [0, 1): one float has too few digits for an 8K image.
struct __align__(16) Splat {
  float offset_x, offset_y, slope, steep_x;
  float steep_y, log_opacity, depth;
  int16_t cell_x, cell_y;

  // How far log2(alpha) at the mean lies above that of the faintest visible pixel; not positive: nothing to see.
  __device__ float headroom() const { return log_opacity + LOG2_255; }
};

// In two 16-byte accesses each way.
__device__ inline Splat load_splat(const Splat* splats, size_t i) {
  union {
    float4 halves[2];
    Splat splat;
  } both;
  both.halves[0] = reinterpret_cast<const float4*>(splats + i)[0];
  both.halves[1] = reinterpret_cast<const float4*>(splats + i)[1];
  return both.splat;
}

__device__ inline void store_splat(Splat* splats, size_t i, const Splat& splat) {
  const float4* halves = reinterpret_cast<const float4*>(&splat);
  reinterpret_cast<float4*>(splats + i)[0] = halves[0];
  reinterpret_cast<float4*>(splats + i)[1] = halves[1];
}

// The splat's quadric about an origin on the image: log2(alpha) = log_opacity - u^2 - v^2 with
// u = along_x x + along_y y + shift_u and v = steep_y y + shift_v.
struct Quadric {
  float along_x, along_y, shift_u, steep_y, shift_v;
};

// Every rounding is spelled out: counting and listing pairs must agree on who meets which tile, bit for bit, and a
// compiler may fuse differently in each.
__device__ inline Quadric quadric_about(const Splat& splat, float x, float y) {
  const float mean_x = __fadd_rn(__fadd_rn(float(splat.cell_x), -x), splat.offset_x);
  const float mean_y = __fadd_rn(__fadd_rn(float(splat.cell_y), -y), splat.offset_y);
  Quadric q;
  q.along_x = splat.steep_x;
  q.along_y = -__fmul_rn(splat.steep_x, splat.slope);
  q.shift_u = __fmul_rn(-splat.steep_x, __fmaf_rn(-splat.slope, mean_y, mean_x));
  q.steep_y = splat.steep_y;
  q.shift_v = -__fmul_rn(splat.steep_y, mean_y);
  return q;
}

// Whether any pixel centre of a box may see the splat; `middle` counts from the quadric's origin, `half` is half the
// distance between the outermost centres. The least |u| and the least |v| in the box need not meet in one point, so a
// few boxes pass that the ellipse only comes near.
__device__ inline bool meets(const Quadric& q, float headroom, float2 middle, float2 half) {
  constexpr float SLACK = 0.005f;  // of u and v, for rounding
  const float u = fabsf(__fmaf_rn(q.along_x, middle.x, __fmaf_rn(q.along_y, middle.y, q.shift_u)));
  const float v = fabsf(__fmaf_rn(q.steep_y, middle.y, q.shift_v));
  const float reach_u = __fmaf_rn(fabsf(q.along_x), half.x, __fmaf_rn(fabsf(q.along_y), half.y, SLACK));
  const float reach_v = __fmaf_rn(q.steep_y, half.y, SLACK);
  const float least_u = fmaxf(__fsub_rn(u, reach_u), 0.f), least_v = fmaxf(__fsub_rn(v, reach_v), 0.f);
  return __fmaf_rn(least_u, least_u, __fmul_rn(least_v, least_v)) <= headroom;
}

struct Tiles {
  int columns, rows;
  __host__ __device__ Tiles(int width, int height)
      : columns((width + TILE - 1) / TILE), rows((height + TILE - 1) / TILE) {}
  __host__ __device__ int count() const { return columns * rows; }
};

// Tiles [left, right) x [top, bottom).
struct TileBox {
  int left, top, right, bottom;
  __device__ int count() const { return (right - left) * (bottom - top); }
};

// The tiles that hold pixel centres of the box around the splat's ellipse alpha = 1/255.
__device__ inline TileBox tile_box(const Splat& splat, const Tiles& tiles) {
  constexpr float SLACK = 0.01f;  // pixels, for rounding
  const float headroom = splat.headroom();
  if (!(headroom >= 0)) return {0, 0, 0, 0};
  const float reach = __fsqrt_rn(headroom), tilt = __fdiv_rn(splat.slope, splat.steep_y);
  const float wide = __fdiv_rn(1.f, splat.steep_x);
  const float reach_x = __fmaf_rn(reach, __fsqrt_rn(__fmaf_rn(tilt, tilt, __fmul_rn(wide, wide))), SLACK);
  const float reach_y = __fadd_rn(__fdiv_rn(reach, splat.steep_y), SLACK);
  // Counted from the centre of the first pixel, so that tile t holds the centres TILE t .. TILE t + TILE - 1.
  const float x = __fadd_rn(__fadd_rn(float(splat.cell_x), -0.5f), splat.offset_x);
  const float y = __fadd_rn(__fadd_rn(float(splat.cell_y), -0.5f), splat.offset_y);
  constexpr float SHARE = 1.f / TILE;
  const auto first = [&](float from) { return __float2int_ru(__fmul_rn(__fadd_rn(from, -(TILE - 1.f)), SHARE)); };
  const auto last = [&](float to) { return __float2int_rd(__fmul_rn(to, SHARE)); };
  TileBox box;
  box.left = max(first(__fsub_rn(x, reach_x)), 0);
  box.top = max(first(__fsub_rn(y, reach_y)), 0);
  box.right = max(min(last(__fadd_rn(x, reach_x)), tiles.columns - 1) + 1, box.left);
  box.bottom = max(min(last(__fadd_rn(y, reach_y)), tiles.rows - 1) + 1, box.top);
  return box;
}

__device__ inline bool meets_tile(const Splat& splat, int column, int row) {
  constexpr float MIDDLE = 0.5f * (TILE - 1);
  const Quadric q = quadric_about(splat, float(column * TILE) + 0.5f, float(row * TILE) + 0.5f);
  return meets(q, splat.headroom(), {MIDDLE, MIDDLE}, {MIDDLE, MIDDLE});
}

constexpr int FEW = 16;  // tiles of a box that one thread looks at alone; larger boxes are shared by a warp

// Which tiles of a box of at most 32 the splat meets: bit i stands for the i-th, row by row.
__device__ inline uint32_t tiles_met(const Splat& splat, const TileBox& box) {
  if (box.count() == 1) return 1;
  uint32_t met = 0, bit = 1;
  for (int row = box.top; row < box.bottom; ++row)
    for (int column = box.left; column < box.right; ++column, bit <<= 1)
      if (meets_tile(splat, column, row)) met |= bit;
  return met;
}

// Calls visit(source, tile, met) for every 32 tiles of the boxes of more than FEW tiles that this warp's threads have:
// `source` is the lane whose splat it is, `tile` this lane's tile, and the bits of `met` the lanes whose tiles it
// meets. All threads of a warp must come here together.
template <class Visit>
__device__ inline void for_large_boxes(const Splat& splat, const TileBox& box, const Tiles& tiles, const Visit& visit) {
  const int lane = int(threadIdx.x) % 32;
  for (uint32_t large = __ballot_sync(~0u, box.count() > FEW); large; large &= large - 1) {
    const int source = __ffs(int(large)) - 1;
    Splat shared;
    int* const words = reinterpret_cast<int*>(&shared);
    for (int i = 0; i < int(sizeof(Splat) / sizeof(int)); ++i)
      words[i] = __shfl_sync(~0u, reinterpret_cast<const int*>(&splat)[i], source);
    const int left = __shfl_sync(~0u, box.left, source), top = __shfl_sync(~0u, box.top, source);
    const int columns = __shfl_sync(~0u, box.right, source) - left, all = __shfl_sync(~0u, box.count(), source);
    for (int first = 0; first < all; first += 32) {
      const int i = first + lane, column = left + i % columns, row = top + i / columns;
      const uint32_t met = __ballot_sync(~0u, i < all && meets_tile(shared, column, row));
      visit(source, row * tiles.columns + column, met);
    }
  }
}

}  // namespace edge4d
