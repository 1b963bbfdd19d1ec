// KnnInterpolate on the GPU: every call builds a search tree over its points, then a warp takes each query through it.
//
// A leaf is 32 neighbouring points and their box, a node 32 neighbouring leaves and theirs: a warp looks at 32 boxes or
// 32 points at once. Points are sorted along the widest axis and cut into slabs, slabs along the second widest and cut
// into nodes, and nodes into leaves along whatever is widest there. All cuts are at ranks, so clusters cost nothing: of
// 256 leaves a query looks at 4.1, 4.8 or 5.8 on average when points are uniform, normal or log-normal. (Leaves along a
// Hilbert curve: 5.4, 9.5 and 21.)
//
// What is found does not depend on the tree: the k nearest in the order of distance and index, which has no ties.
#include <climits>

#include "checks.hpp"
#include "edge4d.h"
#include "launch.cuh"
#include "points.cuh"

namespace edge4d {
namespace {

constexpr int LEAF = WARP, NODE = LEAF * WARP;  // points
constexpr int QUERIES = 8;                      // warps of a block, each with a query
constexpr int NOBODY = INT_MAX;                 // the index of what only fills a place

struct Tree {
  int nodes;
  int* axes;                     // [2] the widest and the second widest
  uint64_t* keys;                // [nodes * NODE] coordinate and index, each tile of NODE sorted
  int* order;                    // [M] indices of the points
  float4* points;                // [nodes * NODE] x, y, z and index; NOBODY at the end
  float4 *leaf_low, *leaf_high;  // [nodes * WARP] corners of boxes
  float4 *node_low, *node_high;  // [nodes]
};

// ---- boxes ----------------------------------------------------------------------------------------------------------

struct Box {
  Point low, high;
};

__device__ Box empty_box() { return {{INFINITY, INFINITY, INFINITY}, {-INFINITY, -INFINITY, -INFINITY}}; }

// Integers in the order of floats, so that one instruction finds a warp's least.
__device__ uint32_t ordered(float value) {
  const uint32_t bits = __float_as_uint(value);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}

__device__ float from_ordered(uint32_t value) {
  return __uint_as_float(value >> 31 ? value & 0x7fffffffu : ~value);
}

__device__ float least(float value) { return from_ordered(__reduce_min_sync(ALL_LANES, ordered(value))); }
__device__ float greatest(float value) { return from_ordered(__reduce_max_sync(ALL_LANES, ordered(value))); }

// The box around all lanes' boxes.
__device__ Box united(const Box& box) {
  return {{least(box.low.x), least(box.low.y), least(box.low.z)},
          {greatest(box.high.x), greatest(box.high.y), greatest(box.high.z)}};
}

__device__ float coordinate(Point point, int axis) { return axis == 0 ? point.x : axis == 1 ? point.y : point.z; }

__device__ int widest_axis(const Box& box) {
  const float x = box.high.x - box.low.x, y = box.high.y - box.low.y, z = box.high.z - box.low.z;
  return x >= y && x >= z ? 0 : y >= z ? 1 : 2;
}

// ---- tree -----------------------------------------------------------------------------------------------------------

__global__ void __launch_bounds__(NODE) choose_axes(const float* points, int count, int* axes) {
  __shared__ Box boxes[WARP];
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  Box box = empty_box();
  for (size_t i = threadIdx.x; i < size_t(count); i += NODE) {
    const Point p = point_at(points, i);
    box.low = {fminf(box.low.x, p.x), fminf(box.low.y, p.y), fminf(box.low.z, p.z)};
    box.high = {fmaxf(box.high.x, p.x), fmaxf(box.high.y, p.y), fmaxf(box.high.z, p.z)};
  }
  box = united(box);
  if (lane == 0) boxes[warp] = box;
  __syncthreads();
  if (warp > 0) return;
  box = united(boxes[lane]);
  if (lane > 0) return;
  const int widest = widest_axis(box);
  // Without the widest, the other two are compared.
  if (widest == 0) box.high.x = -INFINITY;
  if (widest == 1) box.high.y = -INFINITY;
  if (widest == 2) box.high.z = -INFINITY;
  axes[0] = widest;
  axes[1] = widest_axis(box);
}

// Sorts the keys of every `segment` threads (a power of two, 32 or more) of the block: Batcher's bitonic network.
template <class Key>
__device__ Key sorted_in_block(Key key, int segment, Key* shared) {
  const int thread = threadIdx.x;
  for (int size = 2; size <= segment; size *= 2) {
    for (int stride = size / 2; stride > 0; stride /= 2) {
      Key other;
      if (stride < WARP) {
        other = __shfl_xor_sync(ALL_LANES, key, stride);
      } else {
        __syncthreads();
        shared[thread] = key;
        __syncthreads();
        other = shared[thread ^ stride];
      }
      const bool ascending = size == segment || !(thread & size), first = !(thread & stride);
      if ((other < key) == (ascending == first)) key = other;
    }
  }
  return key;
}

// Sorts each tile of NODE points along axes[number]. Without an `order` they are in the caller's. Beyond the last point
// keys are larger than all others.
__global__ void __launch_bounds__(NODE)
    sort_tiles(const float* points, int count, const int* order, const int* axes, int number, uint64_t* keys) {
  __shared__ unsigned long long shared[NODE];
  const unsigned place = blockIdx.x * NODE + threadIdx.x;
  unsigned long long key = 0xffffffffull << 32 | place;
  if (place < unsigned(count)) {
    const unsigned index = order ? unsigned(order[place]) : place;
    key = static_cast<unsigned long long>(ordered(points[3 * size_t(index) + axes[number]])) << 32 | index;
  }
  keys[place] = sorted_in_block(key, NODE, shared);
}

// How many of a sorted tile's keys are smaller.
__device__ int rank_in_tile(const uint64_t* tile, uint64_t key) {
  int rank = 0;
#pragma unroll
  for (int step = NODE / 2; step > 0; step /= 2) rank += tile[rank + step - 1] < key ? step : 0;
  return rank + (tile[rank] < key);
}

// Merges every `segment` neighbouring tiles: a key's place is the number of smaller ones in its tile and the others.
__global__ void merge_tiles(const uint64_t* keys, int tiles, int segment, int count, int* order) {
  const unsigned at = blockIdx.x * blockDim.x + threadIdx.x;
  const int tile = at / NODE, first = tile / segment * segment, last = min(first + segment, tiles);
  const uint64_t key = keys[at];
  unsigned place = unsigned(first) * NODE + at % NODE;
#pragma unroll 4
  for (int other = first; other < last; ++other)
    place += other == tile ? 0 : rank_in_tile(keys + size_t(other) * NODE, key);
  if (place < unsigned(count)) order[place] = int(uint32_t(key));
}

// A sort key: the coordinate in 4 million steps of the box, the thread that holds the point below it.
__device__ uint32_t step_key(const Box& box, Point point, bool exists) {
  constexpr uint32_t STEPS = UINT32_MAX / NODE;  // the last one is behind all points
  const int axis = widest_axis(box);
  const float low = coordinate(box.low, axis), extent = coordinate(box.high, axis) - low;
  const float step = extent > 0 ? (coordinate(point, axis) - low) * (float(STEPS - 1) / extent) : 0;
  // The order of minimum and maximum turns a NaN into 0.
  return (exists ? uint32_t(fminf(fmaxf(step, 0), float(STEPS - 1))) : STEPS) * NODE + threadIdx.x;
}

// Cuts each node's points in 4, these in 4, and these in 2 leaves, each along its widest axis: as good as halving five
// times. A block is a node, a thread a point.
__global__ void __launch_bounds__(NODE) split_nodes(const float* points, int count, Tree tree) {
  __shared__ uint32_t keys[NODE];
  __shared__ float4 moved[NODE];
  __shared__ Box boxes[WARP];
  const int thread = threadIdx.x, warp = thread / WARP, lane = thread % WARP;
  const unsigned place = blockIdx.x * NODE + thread;

  float4 point = {NAN, NAN, NAN, __int_as_float(NOBODY)};
  if (place < unsigned(count)) {
    const int index = tree.nodes > 1 ? tree.order[place] : int(place);
    const Point p = point_at(points, index);
    point = {p.x, p.y, p.z, __int_as_float(index)};
  }
  const auto box_of_point = [&]() -> Box {
    const Point p = {point.x, point.y, point.z};
    return __float_as_int(point.w) == NOBODY ? empty_box() : Box{p, p};
  };

  for (int segment = NODE; segment > LEAF; segment /= 4) {
    const int warps = segment / WARP, first = warp / warps * warps;
    Box box = united(box_of_point());
    if (lane == 0) boxes[warp] = box;
    __syncthreads();
    box = united(lane < warps ? boxes[first + lane] : empty_box());
    const uint32_t key = step_key(box, {point.x, point.y, point.z}, __float_as_int(point.w) != NOBODY);
    const int from = sorted_in_block(key, segment, keys) % NODE;
    moved[thread] = point;
    __syncthreads();
    point = moved[from];
    __syncthreads();
  }

  tree.points[place] = point;
  Box box = united(box_of_point());
  if (lane == 0) {
    tree.leaf_low[place / LEAF] = {box.low.x, box.low.y, box.low.z, 0};
    tree.leaf_high[place / LEAF] = {box.high.x, box.high.y, box.high.z, 0};
    boxes[warp] = box;
  }
  __syncthreads();
  if (warp > 0) return;
  box = united(boxes[lane]);
  if (lane > 0) return;
  tree.node_low[blockIdx.x] = {box.low.x, box.low.y, box.low.z, 0};
  tree.node_high[blockIdx.x] = {box.high.x, box.high.y, box.high.z, 0};
}

// ---- neighbours -----------------------------------------------------------------------------------------------------

struct Neighbor {
  float distance;  // squared, in float32
  int index;
};

// A warp's search. The list of neighbours lies over the lanes, nearest first; the first k are those that are sought.
struct Search {
  const float* points;  // [M, 3] in the caller's order
  Point query;
  int k, lane;
  Neighbor nearest;  // this lane's
  Neighbor last;     // the k-th: what is farther is of no use
  bool begun;
};

__device__ Neighbor nobody() { return {INFINITY, NOBODY}; }

__device__ double exact_distance(const float* points, Point query, int index) {
  return index == NOBODY ? double(INFINITY) : exact_squared_distance(query, point_at(points, index));
}

__device__ bool exactly_nearer(const float* points, Point query, int a, int b) {
  const double distance_a = exact_distance(points, query, a), distance_b = exact_distance(points, query, b);
  return distance_a < distance_b || (distance_a == distance_b && a < b);
}

__device__ bool nearer(const Search& search, Neighbor a, Neighbor b) {
  const bool surely = above(a.distance) < b.distance, surely_not = above(b.distance) < a.distance;
  return surely || surely_not ? surely : exactly_nearer(search.points, search.query, a.index, b.index);
}

// The lanes' neighbours in the order of their float32 distances: a bitonic network again.
__device__ Neighbor sorted_in_warp(Neighbor mine, int lane) {
#pragma unroll
  for (int size = 2; size <= WARP; size *= 2) {
#pragma unroll
    for (int stride = size / 2; stride > 0; stride /= 2) {
      const Neighbor other = {__shfl_xor_sync(ALL_LANES, mine.distance, stride),
                              __shfl_xor_sync(ALL_LANES, mine.index, stride)};
      const bool keep_nearer = !(lane & size) == !(lane & stride);
      if (keep_nearer ? other.distance < mine.distance : mine.distance < other.distance) mine = other;
    }
  }
  return mine;
}

__device__ void insert(Search& search, Neighbor found) {
  const bool behind = nearer(search, found, search.nearest);
  const int place = __ffs(__ballot_sync(ALL_LANES, behind)) - 1;
  const Neighbor previous = {__shfl_up_sync(ALL_LANES, search.nearest.distance, 1),
                             __shfl_up_sync(ALL_LANES, search.nearest.index, 1)};
  if (behind) search.nearest = search.lane == place ? found : previous;
}

// Takes the first leaf's points into the list all at once, unless float32 cannot tell where the first k belong.
__device__ bool begin(Search& search, Neighbor mine) {
  mine = sorted_in_warp(mine, search.lane);
  const bool certain = above(mine.distance) < __shfl_down_sync(ALL_LANES, mine.distance, 1);
  if (!__all_sync(ALL_LANES, certain || search.lane >= search.k)) return false;
  search.nearest = mine;
  return true;
}

// Takes a leaf's points into the list. `point` is this lane's.
__device__ void visit_leaf(Search& search, float4 point) {
  const Neighbor mine = {squared_distance(search.query, {point.x, point.y, point.z}), __float_as_int(point.w)};
  const bool within = mine.distance <= above(search.last.distance);  // not if it is NaN: places without a point
  unsigned found;
  if (search.begun) {
    found = __ballot_sync(ALL_LANES, within && nearer(search, mine, search.last));
    if (!found) return;
  } else {
    search.begun = true;
    found = begin(search, within ? mine : nobody()) ? 0 : __ballot_sync(ALL_LANES, within);
  }
  for (; found; found &= found - 1) {
    const int from = __ffs(found) - 1;
    insert(search, {__shfl_sync(ALL_LANES, mine.distance, from), __shfl_sync(ALL_LANES, mine.index, from)});
  }
  search.last = {__shfl_sync(ALL_LANES, search.nearest.distance, search.k - 1),
                 __shfl_sync(ALL_LANES, search.nearest.index, search.k - 1)};
}

constexpr uint32_t SEEN = UINT32_MAX;  // above all distances

// The squared distance to a box, in bits that sort as it does.
__device__ uint32_t distance_to_box(Point query, float4 low, float4 high) {
  const float x = fmaxf(fmaxf(low.x - query.x, query.x - high.x), 0);
  const float y = fmaxf(fmaxf(low.y - query.y, query.y - high.y), 0);
  const float z = fmaxf(fmaxf(low.z - query.z, query.z - high.z), 0);
  return __float_as_uint(fmaf(x, x, fmaf(y, y, z * z)));
}

// The lane of the nearest box that was not taken yet, or -1 when none may hold one of the k nearest.
__device__ int take_nearest(const Search& search, uint32_t& distance) {
  const uint32_t least = __reduce_min_sync(ALL_LANES, distance);
  if (least > __float_as_uint(above(search.last.distance))) return -1;
  const int taken = __ffs(__ballot_sync(ALL_LANES, distance == least)) - 1;
  if (search.lane == taken) distance = SEEN;
  return taken;
}

__device__ void visit_node(Search& search, const Tree& tree, int node) {
  const int leaves = node * WARP;
  uint32_t distance =
      distance_to_box(search.query, tree.leaf_low[leaves + search.lane], tree.leaf_high[leaves + search.lane]);
  for (int taken; (taken = take_nearest(search, distance)) >= 0;)
    visit_leaf(search, tree.points[size_t(leaves + taken) * LEAF + search.lane]);
}

__device__ uint32_t distance_to_node(const Search& search, const Tree& tree, int node) {
  return node < tree.nodes ? distance_to_box(search.query, tree.node_low[node], tree.node_high[node]) : SEEN;
}

__device__ int nearest_node(const Search& search, const Tree& tree) {
  uint32_t distance = SEEN;
  int nearest = 0;
  for (int node = search.lane; node < tree.nodes; node += WARP) {
    const uint32_t other = distance_to_node(search, tree, node);
    if (other < distance) distance = other, nearest = node;
  }
  const unsigned holders = __ballot_sync(ALL_LANES, distance == __reduce_min_sync(ALL_LANES, distance));
  return __shfl_sync(ALL_LANES, nearest, __ffs(holders) - 1);
}

// The nearest node first: after it few others can hold anything near enough. Then all, 32 at a time.
__device__ void find_neighbours(Search& search, const Tree& tree) {
  const int first = nearest_node(search, tree);
  int begin = first;
  uint32_t distance = search.lane == 0 ? 0 : SEEN;
  for (int end = 0;; end += WARP) {
    for (int taken; (taken = take_nearest(search, distance)) >= 0;) visit_node(search, tree, begin + taken);
    if (end >= tree.nodes) return;
    begin = end;
    distance = begin + search.lane == first ? SEEN : distance_to_node(search, tree, begin + search.lane);
  }
}

// ---- interpolation --------------------------------------------------------------------------------------------------

template <class Real>
__device__ Real warp_sum(Real value) {
#pragma unroll
  for (int stride = WARP / 2; stride > 0; stride /= 2) value += __shfl_xor_sync(ALL_LANES, value, stride);
  return value;
}

template <class Real>
__device__ Real squared_radius(Real distance, bool sought, int k) {
  const Real radius = sqrt(warp_sum(sought ? distance : Real(0)) / Real(k)) + Real(1e-6);
  return radius * radius;
}

template <class Real>
__device__ float weight_of(Real distance, Real radius2, bool sought, const edge4d_knn_interpolate& call) {
  const bool inside = sought && (!call.radius_mask || distance <= radius2);
  const Real weight = inside ? exp(-Real(call.beta) * distance / radius2) : Real(0);
  return float(weight / (warp_sum(weight) + Real(1e-8)));
}

// Of this lane's neighbour; of a lane behind the k-th, 0.
__device__ float weight_of(const Search& search, const edge4d_knn_interpolate& call) {
  const float distance = search.nearest.distance;
  const bool sought = search.lane < search.k;
  const float radius2 = squared_radius(distance, sought, search.k);
  // Whether a neighbour is inside the radius hangs on a comparison. Both sides err by less than 2e-6.
  const bool certain = fabsf(distance - radius2) > 4e-6f * radius2;  // not if they overflow
  if (__all_sync(ALL_LANES, certain || !sought)) return weight_of(distance, radius2, sought, call);
  const double exact = sought ? exact_distance(search.points, search.query, search.nearest.index) : 0;
  return weight_of(exact, squared_radius(exact, sought, search.k), sought, call);
}

// Every lane sums up one number of one frame at a time.
__device__ void interpolate(const edge4d_knn_interpolate& call, int query, int lane, int index, float weight) {
  const int numbers = call.frames * call.channels;
  for (int first = 0; first < numbers; first += WARP) {
    const int frame = (first + lane) / call.channels, channel = (first + lane) % call.channels;
    const bool exists = frame < call.frames;
    const float* values = call.values + size_t(frame) * call.point_count * call.channels + channel;
    float sum = 0;
#pragma unroll 4
    for (int i = 0; i < call.k; ++i) {
      const size_t point = __shfl_sync(ALL_LANES, index, i);
      const float share = __shfl_sync(ALL_LANES, weight, i);
      if (exists) sum = fmaf(share, values[point * call.channels], sum);
    }
    if (exists) call.interpolated[(size_t(frame) * call.query_count + query) * call.channels + channel] = sum;
  }
}

__global__ void __launch_bounds__(QUERIES* WARP, 6)
    interpolate_queries(const __grid_constant__ edge4d_knn_interpolate call, const __grid_constant__ Tree tree) {
  const unsigned query = blockIdx.x * QUERIES + threadIdx.x / WARP;
  if (query >= unsigned(call.query_count)) return;
  const int lane = threadIdx.x % WARP;
  Search search = {call.points, point_at(call.queries, query), call.k, lane, nobody(), nobody(), false};
  find_neighbours(search, tree);
  const float weight = weight_of(search, call);
  // A query that is not finite has no neighbours; its values are NaN, and must come from somewhere.
  const int index = min(search.nearest.index, call.point_count - 1);
  if (lane < call.k) {
    call.indices[size_t(query) * call.k + lane] = index;
    call.weights[size_t(query) * call.k + lane] = weight;
  }
  interpolate(call, int(query), lane, index, weight);
}

// ---- host -----------------------------------------------------------------------------------------------------------

void check_sizes(const edge4d_knn_interpolate* call) {
  constexpr Require require{"KnnInterpolate"};
  require(call, "the parameter struct is of another version");
  check_attributes(*call);
  require(int64_t(call->frames) * call->channels <= INT_MAX - WARP, "there are too many frames and channels");
}

Tree tree_in(Workspace& workspace, int point_count) {
  Tree tree = {};
  tree.nodes = (point_count - 1) / NODE + 1;
  const size_t nodes = size_t(tree.nodes), leaves = nodes * WARP, places = nodes * NODE;
  tree.axes = workspace.take<int>(2);
  tree.keys = workspace.take<uint64_t>(places);
  tree.order = workspace.take<int>(places);
  tree.points = workspace.take<float4>(places);
  tree.leaf_low = workspace.take<float4>(leaves);
  tree.leaf_high = workspace.take<float4>(leaves);
  tree.node_low = workspace.take<float4>(nodes);
  tree.node_high = workspace.take<float4>(nodes);
  return tree;
}

void build(const Tree& tree, const float* points, int count, cudaStream_t stream) {
  if (tree.nodes > 1) {
    int slab = 1;  // nodes; as many as there are slabs, or a few less
    while ((slab + 1) * (slab + 1) <= tree.nodes) ++slab;
    constexpr int THREADS = 256;
    const unsigned tiles = unsigned(tree.nodes), blocks = tiles * (NODE / THREADS);
    choose_axes<<<1, NODE, 0, stream>>>(points, count, tree.axes);
    sort_tiles<<<tiles, NODE, 0, stream>>>(points, count, nullptr, tree.axes, 0, tree.keys);
    merge_tiles<<<blocks, THREADS, 0, stream>>>(tree.keys, tree.nodes, tree.nodes, count, tree.order);
    sort_tiles<<<tiles, NODE, 0, stream>>>(points, count, tree.order, tree.axes, 1, tree.keys);
    merge_tiles<<<blocks, THREADS, 0, stream>>>(tree.keys, tree.nodes, slab, count, tree.order);
  }
  split_nodes<<<tree.nodes, NODE, 0, stream>>>(points, count, tree);
}

void run(const edge4d_knn_interpolate* call, void* memory, uint64_t bytes, cudaStream_t stream) {
  check_sizes(call);
  if (call->query_count == 0) return;
  check_tensors(*call);
  Workspace workspace(memory);
  const Tree tree = tree_in(workspace, call->point_count);
  check_workspace("KnnInterpolate", memory, bytes, workspace.bytes());
  build(tree, call->points, call->point_count, stream);
  const unsigned blocks = (unsigned(call->query_count) - 1) / QUERIES + 1;
  interpolate_queries<<<blocks, QUERIES * WARP, 0, stream>>>(*call, tree);
  check_cuda(cudaGetLastError());
}

}  // namespace
}  // namespace edge4d

uint64_t edge4d_cuda_knn_interpolate_workspace(const edge4d_knn_interpolate* call) {
  using namespace edge4d;
  uint64_t bytes = 0;
  status_of([&] {
    check_sizes(call);
    Workspace workspace(nullptr);
    tree_in(workspace, call->point_count);
    bytes = workspace.bytes();
  });
  return bytes;
}

int32_t edge4d_cuda_knn_interpolate(const edge4d_knn_interpolate* call, void* workspace, uint64_t workspace_bytes,
                                    void* stream) {
  using namespace edge4d;
  return status_of([&] { run(call, workspace, workspace_bytes, static_cast<cudaStream_t>(stream)); });
}
