// SubmanifoldConvolution on the GPU: one matrix product with 27 C summands, whose left matrix is gathered as it goes.
//
// A block makes ROWS voxels x COLUMNS outputs. For each of the 27 offsets at which one of its voxels has a neighbour,
// it brings DEPTH inputs of those neighbours (zeros where there is none) and of the weights at a time to shared memory,
// and while the next ones are on their way adds their product to sums in registers: half precision on the tensor cores,
// single precision without (their TF32 would lose digits). Sums are float32 in both, and always in the same order.
#include <cuda_pipeline.h>
#include <mma.h>

#include "checks.hpp"
#include "edge4d.h"
#include "launch.cuh"
#include "values.cuh"

namespace edge4d {
namespace {

constexpr int THREADS = 256, WARP = 32;
constexpr int ROWS = 128, COLUMNS = 64;
constexpr int NOBODY = -1;
constexpr unsigned ALL_LANES = ~0u;

// How a block multiplies what lies in shared memory: a [ROWS, DEPTH], b [DEPTH, COLUMNS], each row 16 bytes longer
// where threads that read below each other would meet in a bank.
template <class T>
struct Product;

// A thread sums up every 16th row, from its own on, and 4 columns.
template <>
struct Product<float> {
  static constexpr int DEPTH = 16, A_PITCH = DEPTH + 4, B_PITCH = COLUMNS;
  static constexpr int SIDE = 16, OWN_ROWS = ROWS / SIDE, OWN_COLUMNS = COLUMNS / SIDE;
  float sums[OWN_ROWS][OWN_COLUMNS] = {};

  __device__ void add(const float* a, const float* b) {
    const int row = threadIdx.x / SIDE, column = threadIdx.x % SIDE * OWN_COLUMNS;
#pragma unroll
    for (int k = 0; k < DEPTH; ++k) {
      const float4 weights = *reinterpret_cast<const float4*>(b + k * B_PITCH + column);
#pragma unroll
      for (int i = 0; i < OWN_ROWS; ++i) {
        const float value = a[(row + i * SIDE) * A_PITCH + k];
        sums[i][0] = fmaf(value, weights.x, sums[i][0]);
        sums[i][1] = fmaf(value, weights.y, sums[i][1]);
        sums[i][2] = fmaf(value, weights.z, sums[i][2]);
        sums[i][3] = fmaf(value, weights.w, sums[i][3]);
      }
    }
  }

  // Calls put(row, column, sum) for all of the block's sums.
  template <class Put>
  __device__ void each(float*, const Put& put) const {
    const int row = threadIdx.x / SIDE, column = threadIdx.x % SIDE * OWN_COLUMNS;
#pragma unroll
    for (int i = 0; i < OWN_ROWS; ++i)
#pragma unroll
      for (int j = 0; j < OWN_COLUMNS; ++j) put(row + i * SIDE, column + j, sums[i][j]);
  }
};

// A warp sums up 32 x 32: 2 x 2 tiles of the tensor cores.
template <>
struct Product<__half> {
  static constexpr int DEPTH = 32, A_PITCH = DEPTH + 8, B_PITCH = COLUMNS + 8;
  static constexpr int TILE = 16, OWN = 2, ACROSS = COLUMNS / (OWN * TILE);  // warps side by side
  nvcuda::wmma::fragment<nvcuda::wmma::accumulator, TILE, TILE, TILE, float> sums[OWN][OWN];

  __device__ Product() {
    for (auto& row : sums)
      for (auto& tile : row) nvcuda::wmma::fill_fragment(tile, 0.f);
  }

  __device__ static int first_row() { return threadIdx.x / WARP / ACROSS * OWN * TILE; }
  __device__ static int first_column() { return threadIdx.x / WARP % ACROSS * OWN * TILE; }

  __device__ void add(const __half* a, const __half* b) {
    using namespace nvcuda::wmma;
#pragma unroll
    for (int k = 0; k < DEPTH; k += TILE) {
      fragment<matrix_a, TILE, TILE, TILE, __half, row_major> left[OWN];
      fragment<matrix_b, TILE, TILE, TILE, __half, row_major> right[OWN];
#pragma unroll
      for (int i = 0; i < OWN; ++i) {
        load_matrix_sync(left[i], a + (first_row() + i * TILE) * A_PITCH + k, A_PITCH);
        load_matrix_sync(right[i], b + k * B_PITCH + first_column() + i * TILE, B_PITCH);
      }
#pragma unroll
      for (int i = 0; i < OWN; ++i)
#pragma unroll
        for (int j = 0; j < OWN; ++j) mma_sync(sums[i][j], left[i], right[j], sums[i][j]);
    }
  }

  // One tile of each warp at a time goes through `staging`, for only there it is known whose sums are where.
  template <class Put>
  __device__ void each(float* staging, const Put& put) const {
    float* const tile = staging + threadIdx.x / WARP * TILE * TILE;
#pragma unroll
    for (int i = 0; i < OWN; ++i) {
#pragma unroll
      for (int j = 0; j < OWN; ++j) {
        __syncwarp();
        nvcuda::wmma::store_matrix_sync(tile, sums[i][j], TILE, nvcuda::wmma::mem_row_major);
        __syncwarp();
        for (int at = threadIdx.x % WARP; at < TILE * TILE; at += WARP)
          put(first_row() + i * TILE + at / TILE, first_column() + j * TILE + at % TILE, tile[at]);
      }
    }
  }
};

template <class T>
struct Factors {
  alignas(32) T a[ROWS * Product<T>::A_PITCH];
  alignas(32) T b[Product<T>::DEPTH * Product<T>::B_PITCH];
};

template <class T>
struct Shared {
  int rows[27][ROWS + 1];  // of the features, NOBODY where a voxel has no neighbour; one more: other banks
  unsigned offsets;        // a bit for each at which one of the voxels has
  union {
    Factors<T> factors[2];                            // those that are multiplied, and the next
    alignas(32) float staging[THREADS / WARP * 256];  // tiles on their way out, when all is summed up
  };
};

template <class T>
constexpr int PIECE = int(16 / sizeof(T));  // elements that one access copies

// Starts to copy a piece to shared memory: its first `left` elements, zeros for others. `aligned`: it begins at 16
// bytes, and if it has any elements is whole.
template <class T>
__device__ void copy_piece(const T* from, int left, bool aligned, T* to) {
  if (aligned) {
    __pipeline_memcpy_async(to, from, 16, left > 0 ? 0 : 16);  // bytes, and how many of them are zeros instead
    return;
  }
#pragma unroll
  for (int i = 0; i < PIECE<T>; ++i) to[i] = i < left ? from[i] : T(0.f);
}

// The neighbours' features at [first, first + DEPTH).
template <class T>
__device__ void gather(const edge4d_submanifold_convolution& call, const int* rows, int first, T* a) {
  constexpr int PIECES = Product<T>::DEPTH / PIECE<T>;  // of a row
  const bool aligned = call.inputs % PIECE<T> == 0;
#pragma unroll
  for (int at = threadIdx.x; at < ROWS * PIECES; at += THREADS) {
    const int row = rows[at / PIECES], place = at % PIECES * PIECE<T>, input = first + place;
    const bool exists = row != NOBODY && input < call.inputs;
    const size_t from = exists ? size_t(row) * size_t(call.inputs) + size_t(input) : 0;
    copy_piece(static_cast<const T*>(call.features) + from, exists ? call.inputs - input : 0, aligned,
               a + at / PIECES * Product<T>::A_PITCH + place);
  }
}

template <class T>
__device__ void fetch_weights(const edge4d_submanifold_convolution& call, int offset, int first, int column, T* b) {
  constexpr int PIECES = COLUMNS / PIECE<T>;  // of a row
  const bool aligned = call.outputs % PIECE<T> == 0;
#pragma unroll
  for (int at = threadIdx.x; at < Product<T>::DEPTH * PIECES; at += THREADS) {
    const int input = first + at / PIECES, place = at % PIECES * PIECE<T>, output = column + place;
    const bool exists = input < call.inputs && output < call.outputs;
    const size_t row = size_t(offset) * size_t(call.inputs) + size_t(input);
    const size_t from = exists ? row * size_t(call.outputs) + size_t(output) : 0;
    copy_piece(static_cast<const T*>(call.weight) + from, exists ? call.outputs - output : 0, aligned,
               b + at / PIECES * Product<T>::B_PITCH + place);
  }
}

// One product after the other: all inputs of the lowest offset, then those of the next.
struct Step {
  unsigned offsets;  // a bit for each that is not done
  int first;         // input
  __device__ int offset() const { return __ffs(int(offsets)) - 1; }
  __device__ Step next(int depth, int inputs) const {
    return first + depth < inputs ? Step{offsets, first + depth} : Step{offsets & (offsets - 1), 0};
  }
};

// All neighbours of the block's voxels, which lie one after the other.
template <class T>
__device__ void find_rows(const edge4d_submanifold_convolution& call, size_t first_voxel, Shared<T>& shared) {
  if (threadIdx.x == 0) shared.offsets = 0;
  unsigned offsets = 0;
  for (int at = threadIdx.x; at < ROWS * 27; at += THREADS) {
    const size_t voxel = first_voxel + size_t(at / 27);
    const int row = voxel < size_t(call.voxel_count) ? call.neighbours[27 * first_voxel + size_t(at)] : NOBODY;
    const bool found = unsigned(row) < unsigned(call.voxel_count);
    shared.rows[at % 27][at / 27] = found ? row : NOBODY;
    offsets |= unsigned(found) << at % 27;
  }
  __syncthreads();
  offsets = __reduce_or_sync(ALL_LANES, offsets);
  if (threadIdx.x % WARP == 0) atomicOr(&shared.offsets, offsets);
  __syncthreads();
}

template <class T>
__global__ void __launch_bounds__(THREADS, 2) convolve(const __grid_constant__ edge4d_submanifold_convolution call) {
  __shared__ Shared<T> shared;
  const size_t first_voxel = size_t(blockIdx.x) * ROWS;
  const int first_output = int(blockIdx.y) * COLUMNS;
  const auto fetch = [&](Step step, Factors<T>& to) {
    gather(call, shared.rows[step.offset()], step.first, to.a);
    fetch_weights(call, step.offset(), step.first, first_output, to.b);
  };

  find_rows(call, first_voxel, shared);
  Product<T> product;
  Step step = {shared.offsets, 0};
  if (step.offsets) fetch(step, shared.factors[0]);
  __pipeline_commit();
  for (int at = 0; step.offsets; at ^= 1) {
    const Step next = step.next(Product<T>::DEPTH, call.inputs);
    if (next.offsets) fetch(next, shared.factors[at ^ 1]);
    __pipeline_commit();
    __pipeline_wait_prior(1);  // for all but the next
    __syncthreads();
    product.add(shared.factors[at].a, shared.factors[at].b);
    __syncthreads();  // before others fill it again
    step = next;
  }

  product.each(shared.staging, [&](int row, int column, float sum) {
    const size_t voxel = first_voxel + size_t(row);
    const int output = first_output + column;
    if (voxel >= size_t(call.voxel_count) || output >= call.outputs) return;
    const float bias = to_float(static_cast<const T*>(call.bias)[output]);
    put(call.convolved, int64_t(voxel * size_t(call.outputs)) + output, sum + bias, call.dtype);
  });
}

// ---- host -----------------------------------------------------------------------------------------------------------

void run(const edge4d_submanifold_convolution* call, cudaStream_t stream) {
  constexpr Require require{"SubmanifoldConvolution"};
  require(call, "the parameter struct is of another version");
  check_attributes(*call);
  if (call->voxel_count == 0) return;
  check_tensors(*call);
  const dim3 blocks(unsigned(call->voxel_count - 1) / ROWS + 1, unsigned(call->outputs - 1) / COLUMNS + 1);
  require(blocks.y <= 65535, "there are too many outputs");  // grid.y stops there
  const auto kernel = call->dtype == EDGE4D_FLOAT16 ? convolve<__half> : convolve<float>;
  kernel<<<blocks, THREADS, 0, stream>>>(*call);
  check_cuda(cudaGetLastError());
}

}  // namespace
}  // namespace edge4d

uint64_t edge4d_cuda_submanifold_convolution_workspace(const edge4d_submanifold_convolution*) { return 0; }

int32_t edge4d_cuda_submanifold_convolution(const edge4d_submanifold_convolution* call, void*, uint64_t, void* stream) {
  using namespace edge4d;
  return status_of([&] { run(call, static_cast<cudaStream_t>(stream)); });
}
