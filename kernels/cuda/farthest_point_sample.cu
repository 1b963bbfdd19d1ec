// FarthestPointSample on the GPU in one launch: every step needs the one before, so the whole grid stays and agrees on
// a point again and again. What a step costs is how long that agreement takes.
//
// Points, and how far each is from those taken, stay in registers. In a step a thread looks in float32 whether the
// point just taken is the nearest one to any of its own, which happens to few; a block finds its farthest point, writes
// it into its slot, and reads all blocks' slots. The slots are the barrier too: what they hold carries the step's
// number.
#include <algorithm>
#include <climits>

#include "checks.hpp"
#include "edge4d.h"
#include "launch.cuh"
#include "points.cuh"

namespace edge4d {
namespace {

constexpr int THREADS = 256, WARPS = THREADS / WARP;
constexpr int MAX_BLOCKS = THREADS;    // a thread reads a slot
constexpr unsigned NOBODY = UINT_MAX;  // the index of no point

// A point, and the squared distance to the nearest one taken: the bits of a float64, which sort as it does.
struct Candidate {
  uint64_t distance;
  unsigned index;
  Point point;
};

// ---- agreement ------------------------------------------------------------------------------------------------------

// What is written and read at once, whole: nobody ever sees half of it.
struct alignas(16) Word {
  uint64_t low, high;
};

__device__ Word load(const Word* from) {
  Word word;
  asm volatile("{ .reg .b128 word; ld.relaxed.gpu.global.b128 word, [%2]; mov.b128 {%0, %1}, word; }"
               : "=l"(word.low), "=l"(word.high)
               : "l"(__cvta_generic_to_global(from))
               : "memory");
  return word;
}

__device__ void store(Word* to, Word word) {
  asm volatile("{ .reg .b128 word; mov.b128 word, {%1, %2}; st.relaxed.gpu.global.b128 [%0], word; }"
               :
               : "l"(__cvta_generic_to_global(to)), "l"(word.low), "l"(word.high)
               : "memory");
}

// Where a block shows its candidate. Both words carry the step, so neither needs the other, nor any order between them:
//   distance | step, index        y, x | step, z        (64 | 32, 32 bits each)
struct Slot {
  Word words[2];
};

__device__ uint64_t packed(uint32_t high, uint32_t low) { return uint64_t(high) << 32 | low; }

__device__ void show(Slot& slot, const Candidate& candidate, unsigned step) {
  const Point p = candidate.point;
  store(&slot.words[0], {candidate.distance, packed(step, candidate.index)});
  store(&slot.words[1], {packed(__float_as_uint(p.y), __float_as_uint(p.x)), packed(step, __float_as_uint(p.z))});
}

// Waits until the slot's block shows its candidate of this step.
__device__ Candidate look(const Slot& slot, unsigned step) {
  Word first, second;
  do {
    first = load(&slot.words[0]);
    second = load(&slot.words[1]);
  } while (uint32_t(first.high >> 32) != step || uint32_t(second.high >> 32) != step);
  const auto number = [](uint64_t bits) { return __uint_as_float(uint32_t(bits)); };
  return {first.low, uint32_t(first.high), {number(second.low), number(second.low >> 32), number(second.high)}};
}

// The index of a warp's farthest candidate, of equal ones the lowest.
__device__ unsigned farthest_in_warp(uint64_t distance, unsigned index) {
  const uint32_t high = uint32_t(distance >> 32), low = uint32_t(distance);
  const bool leads = high == __reduce_max_sync(ALL_LANES, high);
  const uint32_t greatest = __reduce_max_sync(ALL_LANES, leads ? low : 0);
  return __reduce_min_sync(ALL_LANES, leads && low == greatest ? index : NOBODY);
}

// ---- points ---------------------------------------------------------------------------------------------------------

// A thread's points, i * threads + thread: the first P in registers, those beyond in memory.
template <int P>
struct Share {
  Point points[P];
  uint64_t distances[P];  // to the nearest point taken, as in Candidate
  float limits[P];        // a new point that is farther than this in float32 changes nothing
};

constexpr uint64_t INFINITE = 0x7ff0000000000000ull;  // the bits of a float64

template <int P>
__device__ Share<P> share_of(const float* points, unsigned count, unsigned threads, unsigned thread) {
  Share<P> share;
#pragma unroll
  for (int i = 0; i < P; ++i) {
    const unsigned index = i * threads + thread;
    const bool exists = index < count;
    share.points[i] = exists ? point_at(points, index) : Point{0, 0, 0};
    share.distances[i] = exists ? INFINITE : 0;  // where there is no point, its index is too high to be taken
    share.limits[i] = exists ? INFINITY : -1;
  }
  return share;
}

// Whether `taken` is nearer to the point than all that were taken before; `distance` is updated.
__device__ bool lowered(Point point, Point taken, uint64_t& distance) {
  const uint64_t other = __double_as_longlong(exact_squared_distance(point, taken));
  if (other >= distance) return false;
  distance = other;
  return true;
}

__device__ float limit_of(uint64_t distance) { return above(float(__longlong_as_double(distance))); }

// Lowers the distances to `taken`. Returns whether any changed; then `farthest` is found anew.
template <int P>
__device__ bool update(Share<P>& share, Point taken, unsigned threads, unsigned thread, Candidate& farthest) {
  bool near = false;
#pragma unroll
  for (int i = 0; i < P; ++i) near |= squared_distance(share.points[i], taken) <= share.limits[i];
  if (!near) return false;
#pragma unroll
  for (int i = 0; i < P; ++i) {
    if (squared_distance(share.points[i], taken) <= share.limits[i] &&
        lowered(share.points[i], taken, share.distances[i]))
      share.limits[i] = limit_of(share.distances[i]);
  }
  farthest = {share.distances[0], thread, share.points[0]};
#pragma unroll
  for (int i = 1; i < P; ++i)
    if (share.distances[i] > farthest.distance) farthest = {share.distances[i], i * threads + thread, share.points[i]};
  return true;
}

// The same for the points from `first` on, every `threads`, whose distances lie in memory.
__device__ void update_rest(const float* points, uint64_t* distances, size_t first, unsigned count, unsigned threads,
                            Point taken, Candidate& farthest) {
  for (size_t i = first; i < count; i += threads) {
    const Point point = point_at(points, i);
    uint64_t distance = distances[i];
    const bool near = squared_distance(point, taken) <= limit_of(distance);
    if (near && lowered(point, taken, distance)) distances[i] = distance;
    if (distance > farthest.distance) farthest = {distance, unsigned(i), point};
  }
}

// ---- the kernel -----------------------------------------------------------------------------------------------------

// `slots` [2, blocks] hold zeros; steps take turns between the two rows. Nobody writes a row before all have read what
// was in it: a block shows its candidate of the step between only then.
template <int P>
__global__ void __launch_bounds__(THREADS, 1)
    sample(const float* points, unsigned point_count, unsigned count, int* indices, Slot* slots, uint64_t* distances) {
  __shared__ Candidate of_warps[WARPS], of_grid[WARPS];
  const unsigned blocks = gridDim.x, threads = blocks * THREADS, thread = blockIdx.x * THREADS + threadIdx.x;
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  const int readers = (blocks + WARP - 1) / WARP;  // warps that read slots

  Share<P> share = share_of<P>(points, point_count, threads, thread);
  const size_t rest = size_t(P) * threads + thread;
  for (size_t i = rest; i < point_count; i += threads) distances[i] = INFINITE;
  Candidate farthest = {0, thread, {0, 0, 0}};
  Candidate taken = {0, 0, point_at(points, 0)};
  if (thread == 0) indices[0] = 0;

  for (unsigned step = 1; step < count; ++step) {
    bool changed = update(share, taken.point, threads, thread, farthest) || step == 1;
    Candidate own = farthest;
    if (rest < point_count) {
      update_rest(points, distances, rest, point_count, threads, taken.point, own);
      changed = true;
    }
    if (__any_sync(ALL_LANES, changed)) {
      const unsigned index = farthest_in_warp(own.distance, own.index);
      if (own.index == index) of_warps[warp] = own;
    }
    __syncthreads();

    Slot* const row = slots + (step & 1) * blocks;
    if (warp == 0) {
      const Candidate candidate = of_warps[lane % WARPS];
      const unsigned index = farthest_in_warp(candidate.distance, candidate.index);
      if (lane < WARPS && candidate.index == index) show(row[blockIdx.x], candidate, step);
    }
    if (warp < readers) {
      Candidate candidate = {0, NOBODY, {0, 0, 0}};
      if (threadIdx.x < blocks) candidate = look(row[threadIdx.x], step);
      const unsigned index = farthest_in_warp(candidate.distance, candidate.index);
      if (candidate.index == index) of_grid[warp] = candidate;
    }
    __syncthreads();

    const Candidate candidate = of_grid[min(lane, readers - 1)];
    const unsigned index = farthest_in_warp(candidate.distance, candidate.index);
    taken = of_grid[__ffs(__ballot_sync(ALL_LANES, candidate.index == index)) - 1];
    if (thread == 0) indices[step] = int(taken.index);
  }
}

// ---- host -----------------------------------------------------------------------------------------------------------

using Kernel = void (*)(const float*, unsigned, unsigned, int*, Slot*, uint64_t*);

struct Launch {
  Kernel kernel;
  unsigned blocks;  // one per multiprocessor at most, so that they run at the same time
};

// The fewest points per thread with which all fit into registers: few blocks agree faster, but have more to look at.
Launch launch_for(unsigned points) {
  struct Variant {
    Kernel kernel;
    unsigned points;
  };
  constexpr Variant variants[] = {{sample<1>, 1}, {sample<2>, 2},   {sample<4>, 4},
                                  {sample<8>, 8}, {sample<16>, 16}, {sample<32>, 32}};
  int device = 0, multiprocessors = 0;
  check_cuda(cudaGetDevice(&device));
  check_cuda(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
  const unsigned most = unsigned(std::min(multiprocessors, MAX_BLOCKS));
  for (const Variant& variant : variants) {
    const unsigned blocks = (points - 1) / (THREADS * variant.points) + 1;
    if (blocks <= most) return {variant.kernel, blocks};
  }
  return {sample<32>, most};
}

void check_sizes(const edge4d_farthest_point_sample* call) {
  Require{"FarthestPointSample"}(call, "the parameter struct is of another version");
  check_attributes(*call);
}

struct Memory {
  Slot* slots;          // [2, MAX_BLOCKS]
  uint64_t* distances;  // [N], of points that find no register
};

constexpr size_t SLOTS = 2 * MAX_BLOCKS;

Memory memory_in(Workspace& workspace, int point_count) {
  Slot* const slots = workspace.take<Slot>(SLOTS);
  return {slots, workspace.take<uint64_t>(size_t(point_count))};
}

void run(const edge4d_farthest_point_sample* call, void* memory, uint64_t bytes, cudaStream_t stream) {
  check_sizes(call);
  check_tensors(*call);
  Workspace workspace(memory);
  Memory place = memory_in(workspace, call->point_count);
  check_workspace("FarthestPointSample", memory, bytes, workspace.bytes());
  unsigned point_count = unsigned(call->point_count), count = unsigned(call->count);
  const Launch launch = launch_for(point_count);
  check_cuda(cudaMemsetAsync(place.slots, 0, SLOTS * sizeof(Slot), stream));
  edge4d_farthest_point_sample tensors = *call;
  void* arguments[] = {&tensors.points, &point_count, &count, &tensors.indices, &place.slots, &place.distances};
  // Cooperative: the driver starts all blocks at once, or refuses. Else some might wait for ever for one that cannot
  // start.
  cudaLaunchCooperativeKernel(launch.kernel, launch.blocks, THREADS, arguments, 0, stream);
  check_cuda(cudaGetLastError());
}

}  // namespace
}  // namespace edge4d

uint64_t edge4d_cuda_farthest_point_sample_workspace(const edge4d_farthest_point_sample* call) {
  using namespace edge4d;
  uint64_t bytes = 0;
  status_of([&] {
    check_sizes(call);
    Workspace workspace(nullptr);
    memory_in(workspace, call->point_count);
    bytes = workspace.bytes();
  });
  return bytes;
}

int32_t edge4d_cuda_farthest_point_sample(const edge4d_farthest_point_sample* call, void* workspace,
                                          uint64_t workspace_bytes, void* stream) {
  using namespace edge4d;
  return status_of([&] { run(call, workspace, workspace_bytes, static_cast<cudaStream_t>(stream)); });
}
