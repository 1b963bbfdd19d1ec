// GaussianRasterize on the GPU: project → scan → fill → sort → blend, the same kernels for every scene, all images of a
// call at once. Sizes are known beforehand and nothing is read back, so the chain can be captured into a CUDA graph.
//
// Project: every Gaussian becomes a Splat for each camera. Each pair of a splat and a tile that it meets is counted in
//   the tile, and listed with the rank that this gave it.
// Scan: each image's counts become places, one block per image. It also lists the tiles, longest lists first: work that
//   takes long begins early.
// Fill: pairs become depth << 32 | index in their tiles' lists, in the order of their ranks, which is any.
// Sort: one block per tile; as numbers the entries have one order, so the result does not depend on how they came.
// Blend: one block per tile, or half a tile where tiles are few, front to back. Splats are listed anew for each box of
//   8 x 4 pixels that sees them.
//
// Measured on an NVIDIA H200, microseconds before and after for the first two scenes and the last one of
// tests/benchmarks/rasterize.py's four made-up ones (573,440 Gaussians on 448x256; 1,638,400 on 1024x320; 1,000,000 on
// 1920x1080):
//   won   sorting in registers, not merging in shared memory            sort     100 -> 46    238 -> 108   111 -> 69
//   won   32 bytes for each tile's counter, not 4                       project and fill
//                                                                                279 -> 108   474 -> 235   175 -> 136
//   won   the alphas of four splats before any of them is blended       blend    353 -> 164   439 -> 359   343 -> 310
//   won   pairs listed once with their ranks, no atomics in fill        project and fill
//                                                                                108 -> 42    235 -> 115   136 -> 147
//   won   fewer instructions, one pixel per thread where tiles are few  blend    164 -> 107   359 -> 253   310 -> 246
//   won   lists for boxes of 8 x 4 pixels where a thread draws two      blend                              245 -> 229
//   won   float16 in `fast` where tiles are many                        blend                              229 -> 198
//   lost  float16 in `fast` where tiles are few (512x512: 75 -> 98)     blend    107 -> 118
//   lost  boxes of 4 x 4 pixels where tiles are few                     blend    108 -> 111   270 -> 276
//   lost  four pairs of a thread on their way together                  fill     8.5 -> 9.3    28 ->  29    60 ->  59
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "checks.hpp"
#include "edge4d.h"
#include "launch.cuh"
#include "sort.cuh"
#include "splat.cuh"
#include "status.hpp"
#include "values.cuh"

namespace edge4d {
namespace {

constexpr float LOG2_E = 1.44269504f;
constexpr float TRANSMITTANCE_MIN = 1e-4f;
constexpr int PROJECT_THREADS = 256, SCAN_THREADS = 1024;
constexpr int STATS = 5;
constexpr int SPREAD = 8;  // a tile's counter has 32 bytes of its own: counters side by side are slow to add to

// ---- workspace ------------------------------------------------------------------------------------------------------

// What an image has.
struct Tally {
  unsigned long long pairs;
  int32_t visible, nonfinite;
};

// A splat and a tile that it meets.
struct __align__(16) Pair {
  uint64_t entry;       // depth << 32 | index
  uint32_t tile, rank;  // rank: how many of the tile were counted before
};

__device__ Pair load_pair(const Pair* from) {
  const uint4 words = __ldcs(reinterpret_cast<const uint4*>(from));  // once: others have more use of the cache
  return {uint64_t(words.y) << 32 | words.x, words.z, words.w};
}

__device__ void store_pair(Pair* to, const Pair& pair) {
  *reinterpret_cast<uint4*>(to) = {uint32_t(pair.entry), uint32_t(pair.entry >> 32), pair.tile, pair.rank};
}

// I images of N Gaussians and T tiles.
struct Buffers {
  Splat* splats;         // [I][N]
  float4* colors;        // [I][N] of spherical harmonics; else colours stay where the caller has them
  Tally* tallies;        // [I]
  uint32_t* counts;      // [I][T][SPREAD] pairs of each tile
  uint32_t* tile_begin;  // [I][T + 1]
  uint32_t* order;       // [I][T] tiles, those with the most pairs first
  Pair* found;           // [I][max_pairs] in any order
  uint64_t* pairs;       // [I][max_pairs] entries, tile by tile
  uint64_t* spare;       // [I][max_pairs] for lists too long to be sorted in shared memory; where `found` was
  uint64_t cleared_bytes;  // tallies and counts lie at the beginning, and start as 0
};

Buffers buffers_in(Workspace& workspace, const edge4d_gaussian_rasterize& call) {
  const size_t images = size_t(call.batch) * size_t(call.cameras), splats = images * size_t(call.gaussians);
  const size_t tiles = size_t(Tiles(call.width, call.height).count()), pairs = images * size_t(call.max_pairs);
  Buffers buffers = {};
  buffers.tallies = workspace.take<Tally>(images);
  buffers.counts = workspace.take<uint32_t>(images * tiles * SPREAD);
  buffers.cleared_bytes = workspace.bytes();
  buffers.tile_begin = workspace.take<uint32_t>(images * (tiles + 1));
  buffers.order = workspace.take<uint32_t>(images * tiles);
  buffers.splats = workspace.take<Splat>(splats);
  buffers.colors = workspace.take<float4>(call.sh_degree >= 0 ? splats : 0);
  buffers.found = workspace.take<Pair>(pairs);
  buffers.pairs = workspace.take<uint64_t>(pairs);
  buffers.spare = reinterpret_cast<uint64_t*>(buffers.found);
  return buffers;
}

// ---- project --------------------------------------------------------------------------------------------------------

// A camera. Means are projected in float64, a few operations each: the order of depths and the places of edges are then
// the twin's, and a pixel far from the first one is as exact as it.
struct View {
  double rotation[9], translation[3];
  double focal[2], principal[2];
  float centre[3];  // the camera's place in the world
  float slope_min[2], slope_max[2];
};

__device__ void read_view(const edge4d_gaussian_rasterize& call, int64_t image, View& view) {
  const float* matrix = call.viewmats + image * 16;
  const float* K = call.Ks + image * 9;
  double centre[3] = {};
  for (int i = 0; i < 3; ++i) {
    for (int j = 0; j < 3; ++j) {
      view.rotation[3 * i + j] = matrix[4 * i + j];
      centre[j] -= double(matrix[4 * i + j]) * double(matrix[4 * i + 3]);
    }
    view.translation[i] = matrix[4 * i + 3];
  }
  const int size[2] = {call.width, call.height};
  for (int axis = 0; axis < 2; ++axis) {
    const double focal = K[4 * axis], principal = K[3 * axis + 2], margin = 0.3 * 0.5 * size[axis] / focal;
    view.focal[axis] = focal;
    view.principal[axis] = principal;
    view.slope_min[axis] = float(-(margin + principal / focal));
    view.slope_max[axis] = float((size[axis] - principal) / focal + margin);
  }
  for (int i = 0; i < 3; ++i) view.centre[i] = float(centre[i]);
}

// The Gaussian's world axes as columns, from a quaternion of any length but 0; false for that.
__device__ bool axes_from_quat(const float (&quat)[4], float (&axes)[3][3]) {
  // Divided by the largest first, no length is too great or too small to be squared.
  const float largest = fmaxf(fmaxf(fabsf(quat[0]), fabsf(quat[1])), fmaxf(fabsf(quat[2]), fabsf(quat[3])));
  if (!(largest > 0)) return false;
  const float w = quat[0] / largest, x = quat[1] / largest, y = quat[2] / largest, z = quat[3] / largest;
  const float two = 2 / (w * w + x * x + y * y + z * z);
  axes[0][0] = 1 - two * (y * y + z * z), axes[0][1] = two * (x * y - w * z), axes[0][2] = two * (x * z + w * y);
  axes[1][0] = two * (x * y + w * z), axes[1][1] = 1 - two * (x * x + z * z), axes[1][2] = two * (y * z - w * x);
  axes[2][0] = two * (x * z - w * y), axes[2][1] = two * (y * z + w * x), axes[2][2] = 1 - two * (x * x + y * y);
  return true;
}

struct Covariance {
  float xx, xy, yy, det;  // square pixels, before the blur
};

// Of the Gaussian's projection: rows * rows^T with the two rows of Jacobian * view rotation * axes * scales.
__device__ Covariance project_covariance(const View& view, const float (&axes)[3][3], const float (&scale)[3],
                                         float slope_x, float slope_y, float inverse_z) {
  constexpr float WIDEST = 1e8f;  // pixels: as flat as anything larger, and its fourth power is a float
  float a[3], b[3];
  for (int j = 0; j < 3; ++j) {
    float along[3];
    for (int i = 0; i < 3; ++i)
      along[i] = float(view.rotation[3 * i]) * axes[0][j] + float(view.rotation[3 * i + 1]) * axes[1][j] +
                 float(view.rotation[3 * i + 2]) * axes[2][j];
    const float size = scale[j] * inverse_z;
    a[j] = fminf(float(view.focal[0]) * size, WIDEST) * (along[0] - slope_x * along[2]);
    b[j] = fminf(float(view.focal[1]) * size, WIDEST) * (along[1] - slope_y * along[2]);
  }
  // |a x b|^2 is the determinant without its cancellation.
  const float cross[3] = {a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]};
  return {a[0] * a[0] + a[1] * a[1] + a[2] * a[2], a[0] * b[0] + a[1] * b[1] + a[2] * b[2],
          b[0] * b[0] + b[1] * b[1] + b[2] * b[2],
          cross[0] * cross[0] + cross[1] * cross[1] + cross[2] * cross[2]};
}

// Colour of spherical harmonics along the direction (x, y, z): basis and signs of 3D Gaussian splatting.
template <class T>
__device__ float4 color_from_sh(const T* coefficients, float x, float y, float z, int degree) {
  const float scale = rsqrtf(x * x + y * y + z * z);
  x *= scale, y *= scale, z *= scale;
  const float xx = x * x, yy = y * y, zz = z * z;
  float color[3] = {0.5f, 0.5f, 0.5f};
  const auto add = [&](int k, float basis) {
    for (int c = 0; c < 3; ++c) color[c] += basis * to_float(coefficients[3 * k + c]);
  };
  add(0, 0.282094792f);
  if (degree > 0) {
    add(1, -0.488602512f * y);
    add(2, 0.488602512f * z);
    add(3, -0.488602512f * x);
  }
  if (degree > 1) {
    add(4, 1.09254843f * x * y);
    add(5, -1.09254843f * y * z);
    add(6, 0.315391565f * (2 * zz - xx - yy));
    add(7, -1.09254843f * x * z);
    add(8, 0.546274215f * (xx - yy));
  }
  if (degree > 2) {
    add(9, -0.590043590f * y * (3 * xx - yy));
    add(10, 2.89061144f * x * y * z);
    add(11, -0.457045799f * y * (4 * zz - xx - yy));
    add(12, 0.373176333f * z * (2 * zz - 3 * xx - 3 * yy));
    add(13, -0.457045799f * x * (4 * zz - xx - yy));
    add(14, 1.44530572f * z * (xx - yy));
    add(15, -0.590043590f * x * (xx - 3 * yy));
  }
  return {fmaxf(color[0], 0), fmaxf(color[1], 0), fmaxf(color[2], 0), 0};
}

// What is stored of one Gaussian.
template <class T>
struct Stored {
  float mean[3], quat[4], scale[3], opacity;
  const T* colors;
  int width;       // numbers of its colour
  float color[3];  // the first ones, on their way together with the rest

  __device__ Stored(const edge4d_gaussian_rasterize& call, int64_t g)
      : opacity(to_float(static_cast<const T*>(call.opacities)[g])),
        width(call.coefficients ? 3 * call.coefficients : call.channels) {
    load_values(static_cast<const T*>(call.means) + 3 * g, mean);
    load_values(static_cast<const T*>(call.quats) + 4 * g, quat);
    load_values(static_cast<const T*>(call.scales) + 3 * g, scale);
    colors = static_cast<const T*>(call.colors) + g * width;
    for (int c = 0; c < 3; ++c) color[c] = c < width ? to_float(colors[c]) : 0.f;
  }

  // Whether every number is. 0 times a finite number is 0; times infinity or NaN it is NaN.
  __device__ bool finite() const {
    float zero = 0 * opacity;
    for (float value : mean) zero += 0 * value;
    for (float value : quat) zero += 0 * value;
    for (float value : scale) zero += 0 * value;
    for (float value : color) zero += 0 * value;
#pragma unroll 8
    for (int c = 3; c < width; ++c) zero += 0 * to_float(colors[c]);
    return zero == 0;
  }
};

// The splat of a Gaussian; one without headroom when the camera does not see it.
template <class T>
__device__ Splat splat_of(const edge4d_gaussian_rasterize& call, const View& view, const Stored<T>& stored,
                          const float (&axes)[3][3]) {
  Splat splat = {};
  splat.log_opacity = -1e30f;
  const float(&mean)[3] = stored.mean;
  const auto row = [&](int i) {
    return view.rotation[3 * i] * mean[0] + view.rotation[3 * i + 1] * mean[1] + view.rotation[3 * i + 2] * mean[2] +
           view.translation[i];
  };
  const double x = row(0), y = row(1), z = row(2);
  if (!(z >= double(call.near) && z <= double(call.far))) return splat;
  const double inverse_z = 1 / z;
  const double u = view.focal[0] * (x * inverse_z) + view.principal[0];
  const double v = view.focal[1] * (y * inverse_z) + view.principal[1];
  const float slope_x = fminf(fmaxf(float(x * inverse_z), view.slope_min[0]), view.slope_max[0]);
  const float slope_y = fminf(fmaxf(float(y * inverse_z), view.slope_min[1]), view.slope_max[1]);
  Covariance sigma = project_covariance(view, axes, stored.scale, slope_x, slope_y, float(inverse_z));

  const float eps = call.eps2d, sharp = sigma.det;
  sigma.det += eps * (sigma.xx + sigma.yy) + eps * eps;
  sigma.xx += eps;
  sigma.yy += eps;
  float opacity = stored.opacity;
  if (call.antialiased)
    opacity *= sqrtf(fmaxf(call.compensation_floor * call.compensation_floor, sharp / sigma.det));
  if (!(sigma.det > 0 && opacity >= 1.f / 255)) return splat;
  const float log_opacity = log2f(opacity), headroom = fmaxf(log_opacity + LOG2_255, 0.f);
  const float deviations = fminf(3.33f, sqrtf(2 / LOG2_E * headroom));
  const double radius_x = ceilf(deviations * sqrtf(sigma.xx)), radius_y = ceilf(deviations * sqrtf(sigma.yy));
  if (!(u + radius_x > 0 && u - radius_x < call.width && v + radius_y > 0 && v - radius_y < call.height)) return splat;

  splat.cell_x = int16_t(fmin(fmax(floor(u), -32768.), 32767.));
  splat.cell_y = int16_t(fmin(fmax(floor(v), -32768.), 32767.));
  splat.offset_x = float(u - splat.cell_x);
  splat.offset_y = float(v - splat.cell_y);
  splat.slope = sigma.xy / sigma.yy;
  splat.steep_x = sqrtf(0.5f * LOG2_E * (sigma.yy / sigma.det));
  splat.steep_y = sqrtf(0.5f * LOG2_E / sigma.yy);
  splat.log_opacity = fmaxf(log_opacity, -LOG2_255);
  splat.depth = float(z);
  return splat;
}

// The sum of the values of the lanes before this one, and of all.
__device__ uint32_t sum_before(uint32_t value, uint32_t& all) {
  const int lane = int(threadIdx.x) % 32;
  uint32_t sum = value;
  for (int stride = 1; stride < 32; stride *= 2) {
    const uint32_t other = __shfl_up_sync(~0u, sum, stride);
    if (lane >= stride) sum += other;
  }
  all = __shfl_sync(~0u, sum, 31);
  return sum - value;
}

// Finds a warp's pairs. They wait in a queue, so that all lanes have work when they are written.
struct PairFinder {
  static constexpr int QUEUE = 32 * FEW, AHEAD = 4;  // AHEAD: atomic additions that a lane waits for together
  const Tiles& tiles;
  uint32_t* const queue;  // tile << 5 | lane
  const Splat& splat;
  const TileBox box;
  const int lane;
  uint32_t queued;

  __device__ PairFinder(const Tiles& tiles, uint32_t* queue, const Splat& splat)
      : tiles(tiles), queue(queue), splat(splat), box(tile_box(splat, tiles)), lane(int(threadIdx.x) % 32) {}

  // How many there are.
  __device__ unsigned long long count() {
    uint32_t met = box.count() <= FEW ? tiles_met(splat, box) : 0;
    for (uint32_t at = sum_before(__popc(met), queued); met; met &= met - 1) {
      const int i = __ffs(int(met)) - 1, columns = box.right - box.left;
      queue[at++] = uint32_t((box.top + i / columns) * tiles.columns + box.left + i % columns) << 5 | uint32_t(lane);
    }
    unsigned long long all = queued;
    for_large_boxes(splat, box, tiles, [&](int, int, uint32_t met) { all += __popc(met); });
    return all;
  }

  // Calls write(there, at, lane of the splat, tile, rank), by all lanes together: for each pair, or for nothing.
  template <class Write>
  __device__ void write(unsigned long long begin, uint32_t* counts, const Write& write) {
    const uint32_t before = (1u << lane) - 1;
    const auto empty_queue = [&] {
      __syncwarp();
      for (uint32_t first = 0; first < queued; first += 32 * AHEAD) write_some(first, begin, counts, write);
      __syncwarp();
      begin += queued;
      queued = 0;
    };
    for_large_boxes(splat, box, tiles, [&](int source, int tile, uint32_t met) {
      if (queued + 32 > QUEUE) empty_queue();
      if (met >> lane & 1) queue[queued + __popc(met & before)] = uint32_t(tile) << 5 | uint32_t(source);
      queued += __popc(met);
    });
    empty_queue();
  }

  template <class Write>
  __device__ void write_some(uint32_t first, unsigned long long begin, uint32_t* counts, const Write& write) const {
    const uint32_t before = (1u << lane) - 1;
    uint32_t found[AHEAD], peers[AHEAD], rank[AHEAD] = {};
#pragma unroll
    for (int k = 0; k < AHEAD; ++k) {
      const uint32_t at = first + 32 * k + lane;
      if (at - lane >= queued) continue;
      found[k] = at < queued ? queue[at] : ~0u;
      // Neighbours are often in the same tile, and one addition does for all of them.
      peers[k] = __match_any_sync(~0u, at < queued ? found[k] >> 5 : ~0u);
      if (at < queued && !(peers[k] & before))
        rank[k] = atomicAdd(counts + size_t(found[k] >> 5) * SPREAD, uint32_t(__popc(peers[k])));
    }
#pragma unroll
    for (int k = 0; k < AHEAD; ++k) {
      const uint32_t at = first + 32 * k + lane;
      if (at - lane >= queued) continue;
      const uint32_t base = __shfl_sync(~0u, rank[k], __ffs(int(peers[k])) - 1);
      write(at < queued, begin + at, int(found[k] % 32), found[k] >> 5, base + __popc(peers[k] & before));
    }
  }
};

// Adds a block to its image's tally. Each warp gets the place of its pairs among the image's.
__device__ unsigned long long add_to_tally(Tally& tally, unsigned long long pairs, bool visible, bool nonfinite) {
  constexpr int WARPS = PROJECT_THREADS / 32;
  __shared__ unsigned long long places[WARPS];
  if (threadIdx.x % 32 == 0) places[threadIdx.x / 32] = pairs;
  const int all_visible = __syncthreads_count(visible), all_nonfinite = __syncthreads_count(nonfinite);
  if (threadIdx.x == 0) {
    unsigned long long sum = 0;
    for (unsigned long long count : places) sum += count;
    unsigned long long place = sum ? atomicAdd(&tally.pairs, sum) : 0;
    for (unsigned long long& count : places) {
      const unsigned long long next = place + count;
      count = place;
      place = next;
    }
    if (all_visible) atomicAdd(&tally.visible, all_visible);
    if (all_nonfinite) atomicAdd(&tally.nonfinite, all_nonfinite);
  }
  __syncthreads();
  return places[threadIdx.x / 32];
}

// Blocks that project the same Gaussians for one camera after the other run side by side, and find them in the cache.
template <class T>
__global__ void __launch_bounds__(PROJECT_THREADS, 4)
    project(const edge4d_gaussian_rasterize call, const Buffers work, const Tiles tiles) {
  __shared__ View view;
  __shared__ uint32_t queues[PROJECT_THREADS / 32][PairFinder::QUEUE];
  const unsigned cameras = unsigned(call.cameras), block = blockIdx.x / cameras;
  const int64_t batch = blockIdx.y, image = batch * cameras + blockIdx.x % cameras;
  const int i = int(block * PROJECT_THREADS + threadIdx.x);
  const bool there = i < call.gaussians;
  const int64_t g = batch * call.gaussians + (there ? i : 0);
  const Stored<T> stored(call, g);  // arrives while the view is made
  if (threadIdx.x == 0) read_view(call, image, view);
  __syncthreads();

  bool finite = true;
  Splat splat = {};
  splat.log_opacity = -1e30f;
  if (there) {
    float axes[3][3];
    finite = stored.finite() && axes_from_quat(stored.quat, axes);
    if (finite) splat = splat_of(call, view, stored, axes);
    const int64_t at = image * call.gaussians + i;
    const bool seen = splat.headroom() >= 0;
    if (seen) store_splat(work.splats, size_t(at), splat);
    if (seen && call.sh_degree >= 0)
      work.colors[at] = color_from_sh(static_cast<const T*>(call.colors) + g * 3 * call.coefficients,
                                      stored.mean[0] - view.centre[0], stored.mean[1] - view.centre[1],
                                      stored.mean[2] - view.centre[2], call.sh_degree);
  }

  PairFinder pairs(tiles, queues[threadIdx.x / 32], splat);
  const unsigned long long begin =
      add_to_tally(work.tallies[image], pairs.count(), splat.headroom() >= 0, !finite);
  Pair* const found = work.found + image * call.max_pairs;
  const uint32_t first = block * PROJECT_THREADS + threadIdx.x / 32 * 32;
  pairs.write(begin, work.counts + image * tiles.count() * SPREAD,
              [&](bool there, unsigned long long at, int lane, uint32_t tile, uint32_t rank) {
                const float depth = __shfl_sync(~0u, splat.depth, lane);
                if (there && at < (unsigned long long)(call.max_pairs))
                  store_pair(found + at, {uint64_t(__float_as_uint(depth)) << 32 | (first + lane), tile, rank});
              });
}

// ---- scan -----------------------------------------------------------------------------------------------------------

// A place for each lane that is there, from its value's own counter.
__device__ int take_place(int* next, int value, bool there) {
  const int lane = int(threadIdx.x) % 32;
  const uint32_t peers = __match_any_sync(~0u, there ? value : -1), before = peers & ((1u << lane) - 1);
  const int first = there && !before ? atomicAdd(next + value, __popc(peers)) : 0;
  return __shfl_sync(~0u, first, __ffs(int(peers)) - 1) + __popc(before);
}

__global__ void __launch_bounds__(SCAN_THREADS)
    scan(const edge4d_gaussian_rasterize call, const Buffers work, const int tiles) {
  __shared__ int places[33];  // by number of bits of a tile's count, the most first
  __shared__ uint32_t sums[2][SCAN_THREADS / 32];
  const int64_t image = blockIdx.x;
  const uint32_t* const counts = work.counts + image * tiles * SPREAD;
  uint32_t* const tile_begin = work.tile_begin + image * (tiles + 1);
  const int thread = int(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const Tally tally = work.tallies[image];
  const bool overflow = tally.pairs > (unsigned long long)(call.max_pairs);

  if (thread < 33) places[thread] = 0;
  __syncthreads();
  const auto count_of = [&](int tile) { return tile < tiles && !overflow ? counts[size_t(tile) * SPREAD] : 0; };
  uint32_t running = 0, next = count_of(thread);
  for (int first = 0, turn = 0; first < tiles; first += SCAN_THREADS, turn ^= 1) {
    const int tile = first + thread;
    const uint32_t count = next;
    next = count_of(tile + SCAN_THREADS);  // arrives while these are summed up
    take_place(places, __clz(int(count)), tile < tiles);
    uint32_t in_warp, in_block;
    const uint32_t before = sum_before(count, in_warp);
    if (lane == 0) sums[turn][warp] = in_warp;
    __syncthreads();  // a turn's sums are read before the next but one is written: that lies behind another barrier
    const uint32_t warps_before = __shfl_sync(~0u, sum_before(sums[turn][lane], in_block), warp);
    if (tile < tiles) tile_begin[tile] = running + warps_before + before;
    running += in_block;
  }
  __syncthreads();
  if (warp == 0) {
    uint32_t all;
    places[lane] = int(sum_before(uint32_t(places[lane]), all));
    if (lane == 0) places[32] = int(all);
  }
  if (thread == 0) {
    int32_t* const stats = call.stats + image * STATS;
    stats[0] = tally.visible;
    stats[1] = tally.nonfinite;
    stats[2] = int32_t(min(tally.pairs, (unsigned long long)(INT32_MAX)));
    stats[3] = call.max_pairs;
    stats[4] = overflow;
    tile_begin[tiles] = running;
  }
  __syncthreads();
  for (int first = 0; first < tiles; first += SCAN_THREADS) {
    const int tile = first + thread;
    const int place = take_place(places, __clz(int(count_of(tile))), tile < tiles);
    if (tile < tiles) work.order[image * tiles + place] = uint32_t(tile);
  }
}

// ---- fill -----------------------------------------------------------------------------------------------------------

constexpr int FILL_THREADS = 256, FILL_BLOCKS = 2048;

__global__ void __launch_bounds__(FILL_THREADS)
    fill(const edge4d_gaussian_rasterize call, const Buffers work, const int tiles) {
  const int64_t image = blockIdx.y;
  const uint32_t* const tile_begin = work.tile_begin + image * (tiles + 1);
  const Pair* const found = work.found + image * call.max_pairs;
  uint64_t* const pairs = work.pairs + image * call.max_pairs;
  const uint32_t count = tile_begin[tiles];
  for (uint32_t at = blockIdx.x * FILL_THREADS + threadIdx.x; at < count; at += gridDim.x * FILL_THREADS) {
    const Pair pair = load_pair(found + at);
    pairs[tile_begin[pair.tile] + pair.rank] = pair.entry;
  }
}

// ---- sort -----------------------------------------------------------------------------------------------------------

// Lists of fewer entries are sorted by small blocks, many at a time; the others by large ones.
constexpr int LONG_LIST = 1024;
constexpr int SHORT_THREADS = 128, LONG_THREADS = 512, LONG_BLOCKS = 528;

template <int THREADS>
union SortMemory {
  static constexpr int MAX_ITEMS = 8, CHUNK = MAX_ITEMS * THREADS;
  uint64_t entries[CHUNK];
  uint32_t keys[CHUNK];
  struct {
    uint64_t first[THREADS], last[THREADS];
  } ends;
  uint32_t range[2];  // least and greatest depth, as bits
};

// Short numbers that sort like the entries, nearly: as many leading bits of the depth, counted from the chunk's least
// one, as the entry's place in the chunk leaves room for.
template <int THREADS, int ITEMS>
__device__ void short_keys(const uint64_t* entries, int count, SortMemory<THREADS>& shared, uint32_t (&keys)[ITEMS]) {
  const int thread = int(threadIdx.x), first = thread / 32 * 32 * ITEMS + thread % 32;
  uint32_t least = ~0u, greatest = 0;
  for (int k = 0; k < ITEMS; ++k) {
    const int at = first + 32 * k;
    keys[k] = at < count ? uint32_t(entries[at] >> 32) : ~0u;
    least = min(least, keys[k]);
    greatest = max(greatest, at < count ? keys[k] : 0u);
  }
  if (thread < 2) shared.range[thread] = thread ? 0 : ~0u;
  __syncthreads();
  least = __reduce_min_sync(~0u, least), greatest = __reduce_max_sync(~0u, greatest);
  if (thread % 32 == 0) atomicMin(&shared.range[0], least), atomicMax(&shared.range[1], greatest);
  __syncthreads();
  least = shared.range[0], greatest = shared.range[1];
  __syncthreads();
  constexpr int CAPACITY = THREADS * ITEMS;
  const int shift = max(0, 32 - __clz(int((greatest - least) | 1)) - __clz(CAPACITY - 1));
  for (int k = 0; k < ITEMS; ++k) {
    const int at = first + 32 * k;
    if (at < count) keys[k] = ((keys[k] - least) >> shift) * CAPACITY + uint32_t(at);
  }
}

// Whether a few exchanges of neighbours bring nearly sorted items, as `sort_in_block` leaves them, into order.
template <int THREADS, int ITEMS>
__device__ bool settle(uint64_t (&items)[ITEMS], SortMemory<THREADS>& shared) {
  constexpr int ROUNDS = 6;
  const int thread = int(threadIdx.x);
  for (int round = 0; round < ROUNDS; ++round) {
    bool moved = false;
    const auto order = [&](uint64_t& lower, uint64_t& upper) {
      if (lower <= upper) return;
      const uint64_t kept = lower;
      lower = upper, upper = kept;
      moved = true;
    };
    for (int k = 0; k + 1 < ITEMS; ++k) order(items[k], items[k + 1]);
    shared.ends.first[thread] = items[0], shared.ends.last[thread] = items[ITEMS - 1];
    __syncthreads();
    if (thread + 1 < THREADS) {
      uint64_t next = shared.ends.first[thread + 1];
      order(items[ITEMS - 1], next);
    }
    if (thread > 0) {
      uint64_t previous = shared.ends.last[thread - 1];
      order(previous, items[0]);
    }
    if (!__syncthreads_or(moved)) return true;
  }
  return false;
}

// Sorts up to THREADS * ITEMS entries in place. Sorting halves of their length takes less than half the time, and
// leaves little to do; where many depths are equal, it does not.
template <int ITEMS, int THREADS>
__device__ void sort_block(uint64_t* entries, int count, SortMemory<THREADS>& shared) {
  const int first = int(threadIdx.x) * ITEMS, filled = (count + 32 * ITEMS - 1) / (32 * ITEMS) * 32;
  uint64_t items[ITEMS];
  bool sorted = false;
  if constexpr (ITEMS > 1) {
    uint32_t keys[ITEMS];
    short_keys(entries, count, shared, keys);
    sort_in_block<THREADS>(keys, filled, shared.keys);
    for (int k = 0; k < ITEMS; ++k)
      items[k] = first + k < count ? entries[keys[k] % (THREADS * ITEMS)] : UINT64_MAX;
    __syncthreads();
    sorted = settle(items, shared);
  } else {
    items[0] = first < count ? entries[first] : UINT64_MAX;
  }
  if (!sorted) sort_in_block<THREADS>(items, filled, shared.entries);
  for (int k = 0; k < ITEMS; ++k)
    if (first + k < count) entries[first + k] = items[k];
}

template <int THREADS>
__device__ void sort_chunk(uint64_t* entries, int count, SortMemory<THREADS>& shared) {
  if (count <= THREADS) {
    sort_block<1>(entries, count, shared);
  } else if (count <= 2 * THREADS) {
    sort_block<2>(entries, count, shared);
  } else if (count <= 4 * THREADS) {
    sort_block<4>(entries, count, shared);
  } else {
    sort_block<8>(entries, count, shared);
  }
}

// How many of the first `diagonal` entries of two merged lists come from the first.
__device__ int64_t merge_path(const uint64_t* a, int64_t a_count, const uint64_t* b, int64_t b_count,
                              int64_t diagonal) {
  int64_t low = max(int64_t(0), diagonal - b_count), high = min(diagonal, a_count);
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (a[middle] < b[diagonal - 1 - middle]) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// Merges neighbouring sorted runs of `run` entries from one array to another.
__device__ void merge_runs(const uint64_t* from, uint64_t* to, int64_t count, int64_t run) {
  constexpr int64_t EACH = 32;
  for (int64_t start = threadIdx.x * EACH; start < count; start += LONG_THREADS * EACH) {
    const int64_t pair = start / (2 * run) * (2 * run);
    const uint64_t *a = from + pair, *b = from + min(pair + run, count);
    const int64_t a_count = min(run, count - pair), b_count = min(run, max(int64_t(0), count - pair - run));
    int64_t i = merge_path(a, a_count, b, b_count, start - pair), j = start - pair - i;
    for (int64_t k = start; k < min(start + EACH, count); ++k)
      to[k] = j >= b_count || (i < a_count && a[i] < b[j]) ? a[i++] : b[j++];
  }
}

// A list of any length: chunks that fit into shared memory, then merged.
__device__ void sort_list(uint64_t* entries, uint64_t* spare, int64_t count, SortMemory<LONG_THREADS>& shared) {
  constexpr int64_t CHUNK = SortMemory<LONG_THREADS>::CHUNK;
  for (int64_t first = 0; first < count; first += CHUNK) {
    __syncthreads();
    sort_chunk(entries + first, int(min(count - first, CHUNK)), shared);
  }
  uint64_t *from = entries, *to = spare;
  for (int64_t run = CHUNK; run < count; run *= 2) {
    __syncthreads();
    merge_runs(from, to, count, run);
    uint64_t* const merged = to;
    to = from;
    from = merged;
  }
  __syncthreads();
  if (from == entries) return;
  for (int64_t k = threadIdx.x; k < count; k += LONG_THREADS) entries[k] = from[k];
}

// The tiles with long lists are the first in order.
__global__ void __launch_bounds__(LONG_THREADS, 2)
    sort_long(const edge4d_gaussian_rasterize call, const Buffers work, const int tiles) {
  __shared__ SortMemory<LONG_THREADS> shared;
  const int64_t image = blockIdx.y;
  for (int place = int(blockIdx.x); place < tiles; place += int(gridDim.x)) {
    const uint32_t* const bounds = work.tile_begin + image * (tiles + 1) + work.order[image * tiles + place];
    const uint32_t begin = bounds[0], count = bounds[1] - begin;
    if (count < LONG_LIST) return;
    sort_list(work.pairs + image * call.max_pairs + begin, work.spare + image * call.max_pairs + begin, count, shared);
  }
}

__global__ void __launch_bounds__(SHORT_THREADS, 8)
    sort_short(const edge4d_gaussian_rasterize call, const Buffers work, const int tiles) {
  __shared__ SortMemory<SHORT_THREADS> shared;
  static_assert(SortMemory<SHORT_THREADS>::CHUNK >= LONG_LIST, "short lists fit");
  const int64_t image = blockIdx.y;
  const uint32_t* const bounds = work.tile_begin + image * (tiles + 1) + work.order[image * tiles + blockIdx.x];
  const uint32_t begin = bounds[0], count = bounds[1] - begin;
  if (count < 2 || count >= LONG_LIST) return;
  sort_chunk(work.pairs + image * call.max_pairs + begin, int(count), shared);
}

// ---- blend ----------------------------------------------------------------------------------------------------------

__device__ float exp2_fast(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

constexpr int BLEND_THREADS = 128;
constexpr int BOX_WIDTH = 8, BOX_HEIGHT = 4;  // pixels that share a list of splats
constexpr int STEP = 4;  // splats whose alphas are computed side by side, before they are blended

// A splat as a tile sees it. Stores of 48 bytes each lie in different banks.
struct __align__(16) Record {
  float4 u;  // along_x, along_y, shift_u, steep_y
  float4 v;  // shift_v, log_opacity, the first two words of its colour
  float2 w;  // the third word, depth
};

// The splats that a tile looks at together, one for each thread of a block, and which of them each box sees: places of
// their records, in bytes.
struct Batch {
  static constexpr int NOTHING = BLEND_THREADS, MOST_STEPS = 2;  // NOTHING: one more, which nobody sees
  Record records[BLEND_THREADS + 1];
  alignas(16) uint32_t seen[TILE / BOX_WIDTH * (TILE / BOX_HEIGHT)][BLEND_THREADS + MOST_STEPS * STEP];

  __device__ const Record& at(uint32_t place) const {
    return *reinterpret_cast<const Record*>(reinterpret_cast<const char*>(records) + place);
  }
};

// A splat as a thread sees it: at its pixels, which lie side by side.
template <int PIXELS>
struct Seen {
  float log_alphas[PIXELS], words[3], depth;
};

// What a thread has gathered at its pixels.
template <int CHANNELS_, bool DEPTH, int PIXELS_>
struct Exact {
  static constexpr int CHANNELS = CHANNELS_, PIXELS = PIXELS_, STEPS = 1;
  float colors[PIXELS][CHANNELS], depths[PIXELS];
  float left[PIXELS];           // transmittance of what was blended
  float transmittance[PIXELS];  // of all splats so far; at TRANSMITTANCE_MIN or below it, the pixel is done

  __device__ static void pack(const float (&color)[CHANNELS], float (&words)[3]) {
    for (int c = 0; c < CHANNELS; ++c) words[c] = color[c];
  }

  __device__ static float log_opacity(const Splat& splat, float) { return splat.log_opacity; }

  __device__ void start(int p, bool there) {
    left[p] = 1;
    transmittance[p] = there ? 1 : 0;
  }

  // Each condition becomes a predicate, and the rest one instruction a line. A weight of 0 in place of the conditions,
  // or a flag for pixels that are done, takes more.
  __device__ void add(const Seen<PIXELS>& splat, float alpha_max) {
#pragma unroll
    for (int p = 0; p < PIXELS; ++p) {
      const bool unseen = splat.log_alphas[p] < -LOG2_255;
      const float weight = transmittance[p] * fminf(exp2_fast(splat.log_alphas[p]), alpha_max);
      transmittance[p] = unseen ? transmittance[p] : transmittance[p] - weight;
      if (!(unseen | (transmittance[p] <= TRANSMITTANCE_MIN))) {
        for (int c = 0; c < CHANNELS; ++c) colors[p][c] = fmaf(weight, splat.words[c], colors[p][c]);
        if (DEPTH) depths[p] = fmaf(weight, splat.depth, depths[p]);
        left[p] = transmittance[p];
      }
    }
  }

  __device__ void settle() {}

  __device__ bool done() const {
    bool all = true;
    for (float t : transmittance) all = all && t <= TRANSMITTANCE_MIN;
    return all;
  }
};

// The same for two pixels at once, where float16 is enough: STEPS are blended in it, and settled in float32. What they
// cover is added up from 0, where float16 is finest; in their transmittance faint splats would be lost.
template <bool DEPTH>
struct Fast {
  static constexpr int CHANNELS = 3, PIXELS = 2, STEPS = 2;
  float colors[2][CHANNELS], depths[2];
  float left[2];  // transmittance
  __half2 covered, sums[CHANNELS];
  float deep[2];

  __device__ static float pack(float low, float high) {
    constexpr float LARGEST = 65504;  // of float16
    const __half2 both = __floats2half2_rn(fminf(fmaxf(low, -LARGEST), LARGEST), fminf(fmaxf(high, -LARGEST), LARGEST));
    return reinterpret_cast<const float&>(both);
  }

  __device__ static void pack(const float (&color)[CHANNELS], float (&words)[3]) {
    words[0] = pack(color[0], color[1]);
    words[1] = pack(color[2], color[2]);
  }

  // Opacities are limited instead of alphas.
  __device__ static float log_opacity(const Splat& splat, float alpha_max) {
    return fminf(splat.log_opacity, log2f(alpha_max));
  }

  __device__ void start(int p, bool there) { left[p] = there ? 1 : 0; }

  __device__ void add(const Seen<2>& splat, float) {
    const __half2 alpha = __floats2half2_rn(exp2_fast(splat.log_alphas[0]), exp2_fast(splat.log_alphas[1]));
    const __half2 seen = __hmul2(alpha, __hge2(alpha, __float2half2_rn(1.f / 255)));  // times 1 or 0
    const __half2 weight = __hfma2(__hneg2(covered), seen, seen);
    covered = __hadd2(covered, weight);
    const __half2 first = reinterpret_cast<const __half2&>(splat.words[0]);
    const __half2 last = reinterpret_cast<const __half2&>(splat.words[1]);
    const __half2 color[3] = {__low2half2(first), __high2half2(first), last};
    for (int c = 0; c < CHANNELS; ++c) sums[c] = __hfma2(weight, color[c], sums[c]);
    if (!DEPTH) return;
    deep[0] = fmaf(__low2float(weight), splat.depth, deep[0]);
    deep[1] = fmaf(__high2float(weight), splat.depth, deep[1]);
  }

  __device__ void settle() {
    for (int c = 0; c < CHANNELS; ++c) {
      colors[0][c] = fmaf(left[0], __low2float(sums[c]), colors[0][c]);
      colors[1][c] = fmaf(left[1], __high2float(sums[c]), colors[1][c]);
      sums[c] = {};
    }
    for (int p = 0; DEPTH && p < 2; ++p) {
      depths[p] = fmaf(left[p], deep[p], depths[p]);
      deep[p] = 0;
    }
    left[0] = fmaf(-left[0], __low2float(covered), left[0]);
    left[1] = fmaf(-left[1], __high2float(covered), left[1]);
    covered = {};
  }

  __device__ bool done() const { return fmaxf(left[0], left[1]) <= TRANSMITTANCE_MIN; }
};

template <class Gathered>
__device__ Record record_of(const Quadric& q, const Splat& splat, const float (&color)[Gathered::CHANNELS],
                            float alpha_max) {
  float words[3] = {};
  Gathered::pack(color, words);
  return {{q.along_x, q.along_y, q.shift_u, q.steep_y},
          {q.shift_v, Gathered::log_opacity(splat, alpha_max), words[0], words[1]},
          {words[2], splat.depth}};
}

// Blends STEP splats, whose places in the batch are `which`, at the pixels from (x, y) on.
template <class Gathered>
__device__ void blend_step(const Batch& batch, const uint32_t (&which)[STEP], float x, float y, float alpha_max,
                           Gathered& gathered) {
  Seen<Gathered::PIXELS> splats[STEP];
#pragma unroll
  for (int k = 0; k < STEP; ++k) {
    const Record& record = batch.at(which[k]);
    const float4 u_part = record.u, v_part = record.v;
    const float v = fmaf(u_part.w, y, v_part.x), peak = fmaf(-v, v, v_part.y);
    float u = fmaf(u_part.x, x, fmaf(u_part.y, y, u_part.z));
    splats[k] = {{}, {v_part.z, v_part.w, record.w.x}, record.w.y};
#pragma unroll
    for (int p = 0; p < Gathered::PIXELS; ++p, u += u_part.x) splats[k].log_alphas[p] = fmaf(-u, u, peak);
  }
#pragma unroll
  for (const Seen<Gathered::PIXELS>& splat : splats) gathered.add(splat, alpha_max);
}

// Lists for each of this warp's BOXES the splats of the batch that meet it, in order; the boxes lie side by side from
// (left, top) on. All lists are filled up with NOTHING to the longest one's length, which is returned, and to whole
// `steps`.
template <int BOXES>
__device__ int list_seen(Batch& batch, int count, float2 middle, float2 half, int steps) {
  const int lane = int(threadIdx.x) % 32, first = int(threadIdx.x) / 32 * BOXES;
  int listed[BOXES] = {};
#pragma unroll
  for (int group = 0; group < BLEND_THREADS; group += 32) {
    const int j = group + lane;
    const float4 u = batch.records[j].u, v = batch.records[j].v;
#pragma unroll
    for (int box = 0; box < BOXES; ++box) {
      const float2 there = {middle.x + float(box * BOX_WIDTH), middle.y};
      const bool seen = j < count && meets({u.x, u.y, u.z, u.w, v.x}, v.y + LOG2_255, there, half);
      const uint32_t all = __ballot_sync(~0u, seen);
      if (seen) batch.seen[first + box][listed[box] + __popc(all & ((1u << lane) - 1))] = uint32_t(j * sizeof(Record));
      listed[box] += __popc(all);
    }
  }
  int most = listed[0];
  for (int count : listed) most = max(most, count);
  for (int box = 0; box < BOXES; ++box) {
#pragma unroll 1
    for (int k = lane; k < most - listed[box] + steps * STEP - 1; k += 32)
      batch.seen[first + box][listed[box] + k] = batch.NOTHING * sizeof(Record);
  }
  __syncwarp();
  return most;
}

// Channels [first, first + CHANNELS) of a Gaussian in an image.
template <int CHANNELS>
__device__ void read_color(const edge4d_gaussian_rasterize& call, const Buffers& work, unsigned image, uint32_t i,
                           int first, float (&color)[CHANNELS]) {
  if (call.sh_degree >= 0) {
    const float4 found = work.colors[int64_t(image) * call.gaussians + i];
    const float channels[3] = {found.x, found.y, found.z};
    for (int c = 0; c < CHANNELS; ++c) color[c] = channels[c];
  } else {
    const int64_t at = (int64_t(image / unsigned(call.cameras)) * call.gaussians + i) * call.channels + first;
    for (int c = 0; c < CHANNELS; ++c) color[c] = stored_value(call.colors, at + c, call.dtype);
  }
}

// Channels [first, first + CHANNELS) of one pixel; alpha and depth with the first ones.
template <int CHANNELS>
__device__ void write_pixel(const edge4d_gaussian_rasterize& call, int64_t at, int first, float left, float depth,
                            const float (&color)[CHANNELS]) {
  const int plane_dtype = call.out_dtype == EDGE4D_UINT8 ? EDGE4D_FLOAT32 : call.out_dtype;
  const float alpha = 1 - left;
  if (first == 0 && call.outputs & EDGE4D_ALPHA) put(call.alpha, at, alpha, plane_dtype);
  if (first == 0 && call.outputs & EDGE4D_DEPTH) put(call.depth, at, depth / fmaxf(alpha, 1e-10f), plane_dtype);
  if (!(call.outputs & EDGE4D_IMAGE)) return;
  for (int c = 0; c < CHANNELS; ++c)
    put(call.image, at * call.channels + first + c, fmaf(left, call.background[first + c], color[c]), call.out_dtype);
}

// A block draws ROWS rows of a tile, a warp PIXELS boxes side by side, a thread PIXELS pixels of a box.
template <class Gathered>
__global__ void __launch_bounds__(BLEND_THREADS)
    blend(const edge4d_gaussian_rasterize call, const Buffers work, const Tiles tiles, const int first_channel) {
  constexpr int PIXELS = Gathered::PIXELS, CHANNELS = Gathered::CHANNELS;
  constexpr int ROWS = BLEND_THREADS * PIXELS / TILE, PARTS = TILE / ROWS;
  constexpr int BOX_LANES = 32 / PIXELS, ROW_LANES = BOX_WIDTH / PIXELS;
  constexpr int WARP_WIDTH = PIXELS * BOX_WIDTH, WARPS_ACROSS = TILE / WARP_WIDTH;
  __shared__ Batch batch;
  const int64_t image = blockIdx.y;
  const int tile = int(work.order[image * tiles.count() + blockIdx.x / PARTS]);
  const uint32_t begin = work.tile_begin[image * (tiles.count() + 1) + tile];
  const uint32_t end = work.tile_begin[image * (tiles.count() + 1) + tile + 1];
  const int column = tile % tiles.columns * TILE, row = tile / tiles.columns * TILE;

  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  const int left = warp % WARPS_ACROSS * WARP_WIDTH;
  const int top = int(blockIdx.x % PARTS) * ROWS + warp / WARPS_ACROSS * BOX_HEIGHT;
  const int x = left + lane / BOX_LANES * BOX_WIDTH + lane % ROW_LANES * PIXELS, y = top + lane % BOX_LANES / ROW_LANES;
  const float2 half = {0.5f * (BOX_WIDTH - 1), 0.5f * (BOX_HEIGHT - 1)}, middle = {left + half.x, top + half.y};

  Gathered gathered = {};
  for (int p = 0; p < PIXELS; ++p) gathered.start(p, column + x + p < call.width && row + y < call.height);

  const uint64_t* const pairs = work.pairs + image * call.max_pairs;
  const Splat* const splats = work.splats + image * call.gaussians;
  const auto index_at = [&](uint32_t at) { return at < end ? uint32_t(pairs[at]) : 0; };
  uint32_t next = index_at(begin + threadIdx.x);
  Splat splat;
  float color[CHANNELS];
  const auto fetch = [&](uint32_t at) {  // and the number of the splat to be fetched next, or that would wait for it
    if (at >= end) return;
    splat = load_splat(splats, next);
    read_color(call, work, blockIdx.y, next, first_channel, color);
    next = index_at(at + BLEND_THREADS);
  };

  // Places of a batch that is not full are read, not used.
  for (int j = int(threadIdx.x); j <= batch.NOTHING; j += BLEND_THREADS)
    batch.records[j] = {{}, {0, -1e30f, 0, 0}, {}};
  bool warp_done = __all_sync(~0u, gathered.done());
  fetch(begin + threadIdx.x);
  for (uint32_t base = begin; base < end; base += BLEND_THREADS) {
    if (__syncthreads_and(warp_done)) break;  // also: the batch before has been read by all
    if (base + threadIdx.x < end) {
      const Quadric q = quadric_about(splat, float(column) + 0.5f, float(row) + 0.5f);
      batch.records[threadIdx.x] = record_of<Gathered>(q, splat, color, call.alpha_max);
    }
    __syncthreads();
    fetch(base + BLEND_THREADS + threadIdx.x);  // arrives while this batch is blended
    if (warp_done) continue;
    const int count = int(min(end - base, uint32_t(BLEND_THREADS)));
    const int listed = list_seen<PIXELS>(batch, count, middle, half, Gathered::STEPS);
    for (int k = 0; k < listed; k += Gathered::STEPS * STEP) {
#pragma unroll
      for (int step = 0; step < Gathered::STEPS; ++step) {
        const uint4 found = *reinterpret_cast<const uint4*>(&batch.seen[threadIdx.x / BOX_LANES][k + step * STEP]);
        blend_step(batch, {found.x, found.y, found.z, found.w}, float(x), float(y), call.alpha_max, gathered);
      }
      gathered.settle();
      if (__all_sync(~0u, gathered.done())) break;
    }
    warp_done = __all_sync(~0u, gathered.done());
  }

  for (int p = 0; p < PIXELS; ++p) {
    if (column + x + p >= call.width || row + y >= call.height) continue;
    const int64_t at = (image * call.height + row + y) * call.width + column + x + p;
    write_pixel(call, at, first_channel, gathered.left[p], gathered.depths[p], gathered.colors[p]);
  }
}

// ---- launch ---------------------------------------------------------------------------------------------------------

void check(const edge4d_gaussian_rasterize& call) {
  constexpr Require require{"GaussianRasterize"};
  check_attributes(call);
  require(int64_t(call.batch) * call.cameras <= 65535, "more than 65,535 images in one call");
  require(int64_t(call.width) * call.height <= INT32_MAX, "the image has 2^31 pixels or more");
  require(call.max_pairs > 0, "on the GPU max_pairs must be positive");
}

// Where tiles are few, more warps keep more of the GPU busy; where they are many, what a thread's pixels share counts.
constexpr int64_t FEW_TILES = 1500;

template <class Gathered>
void launch_blend(const edge4d_gaussian_rasterize& call, const Buffers& work, int first, cudaStream_t stream) {
  const Tiles tiles(call.width, call.height);
  const unsigned parts = TILE * TILE / (BLEND_THREADS * Gathered::PIXELS);
  const dim3 grid(unsigned(tiles.count()) * parts, unsigned(call.batch * call.cameras));
  blend<Gathered><<<grid, BLEND_THREADS, 0, stream>>>(call, work, tiles, first);
}

template <int CHANNELS, bool DEPTH>
void blend_channels(const edge4d_gaussian_rasterize& call, const Buffers& work, int first, cudaStream_t stream) {
  const int64_t images = int64_t(call.batch) * call.cameras;
  if (images * Tiles(call.width, call.height).count() <= FEW_TILES) {
    launch_blend<Exact<CHANNELS, DEPTH, 1>>(call, work, first, stream);
  } else if (CHANNELS == 3 && call.fast) {
    launch_blend<Fast<DEPTH>>(call, work, first, stream);
  } else {
    launch_blend<Exact<CHANNELS, DEPTH, 2>>(call, work, first, stream);
  }
}

template <int CHANNELS>
void blend_all(const edge4d_gaussian_rasterize& call, const Buffers& work, int first, cudaStream_t stream) {
  const bool depth = first == 0 && call.outputs & EDGE4D_DEPTH;
  (depth ? blend_channels<CHANNELS, true> : blend_channels<CHANNELS, false>)(call, work, first, stream);
}

template <class T>
void launch(const edge4d_gaussian_rasterize& call, const Buffers& work, cudaStream_t stream) {
  const Tiles tiles(call.width, call.height);
  const unsigned images = unsigned(call.batch * call.cameras);
  const int64_t blocks = (int64_t(call.gaussians) + PROJECT_THREADS - 1) / PROJECT_THREADS;
  const dim3 gaussians(unsigned(blocks * call.cameras), unsigned(call.batch));
  const dim3 all_tiles(unsigned(tiles.count()), images);
  check_cuda(cudaMemsetAsync(work.tallies, 0, work.cleared_bytes, stream));
  if (call.gaussians) project<T><<<gaussians, PROJECT_THREADS, 0, stream>>>(call, work, tiles);
  scan<<<images, SCAN_THREADS, 0, stream>>>(call, work, tiles.count());
  if (call.gaussians) {
    const dim3 fill_blocks(unsigned(std::min((call.max_pairs - 1) / FILL_THREADS + 1, FILL_BLOCKS)), images);
    fill<<<fill_blocks, FILL_THREADS, 0, stream>>>(call, work, tiles.count());
    const dim3 long_blocks(unsigned(std::min(tiles.count(), LONG_BLOCKS)), images);
    sort_long<<<long_blocks, LONG_THREADS, 0, stream>>>(call, work, tiles.count());
    sort_short<<<all_tiles, SHORT_THREADS, 0, stream>>>(call, work, tiles.count());
  }
  if (call.channels == 3) {
    blend_all<3>(call, work, 0, stream);
  } else {
    for (int channel = 0; channel < call.channels; ++channel) blend_all<1>(call, work, channel, stream);
  }
  check_cuda(cudaGetLastError());
}

}  // namespace
}  // namespace edge4d

uint64_t edge4d_cuda_gaussian_rasterize_workspace(const edge4d_gaussian_rasterize* call) {
  edge4d::Workspace workspace(nullptr);
  edge4d::buffers_in(workspace, *call);
  return workspace.bytes();
}

int32_t edge4d_cuda_gaussian_rasterize(const edge4d_gaussian_rasterize* call, void* memory, uint64_t memory_bytes,
                                       void* stream) {
  using namespace edge4d;
  return status_of([&] {
    if (!call) refuse("GaussianRasterize: no parameters.");
    check(*call);
    if (call->batch == 0 || call->cameras == 0) return;
    check_tensors(*call);
    Workspace workspace(memory);
    const Buffers work = buffers_in(workspace, *call);
    check_workspace("GaussianRasterize", memory, memory_bytes, workspace.bytes());
    if (call->dtype == EDGE4D_FLOAT16) {
      launch<__half>(*call, work, static_cast<cudaStream_t>(stream));
    } else {
      launch<float>(*call, work, static_cast<cudaStream_t>(stream));
    }
  });
}
