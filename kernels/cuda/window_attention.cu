// WindowAttention on the GPU: a block takes some queries of one window and one head past all of the window's keys and
// values, KEYS at a time through shared memory. Nothing of the size of queries times keys is ever in memory: each query
// keeps its greatest score so far, and the sum of exponentials and of values below it (Milakov and Gimelshein 2018).
// Everything is float32 from the moment it is read.
//
// A warp takes OWN queries. For the scores a lane is a key, and the channels run; for the sums a lane is every 32nd
// channel, and the keys run. Scores change from one to the other through shared memory.
#include "checks.hpp"
#include "edge4d.h"
#include "launch.cuh"
#include "values.cuh"

namespace edge4d {
namespace {

constexpr int WARP = 32, WARPS = 8, THREADS = WARPS * WARP;
constexpr int KEYS = WARP;
constexpr unsigned ALL_LANES = ~0u;

__device__ float greatest_of(float value) {
  for (int step = WARP / 2; step > 0; step /= 2) value = fmaxf(value, __shfl_xor_sync(ALL_LANES, value, step));
  return value;
}

__device__ float sum_of(float value) {
  for (int step = WARP / 2; step > 0; step /= 2) value += __shfl_xor_sync(ALL_LANES, value, step);
  return value;
}

enum Part { QUERY, KEY, VALUE };

// The member of this block's window at a place; -1 behind its end.
__device__ int member_at(const edge4d_window_attention& call, int place) {
  const int32_t* const window = call.windows + size_t(blockIdx.x) * size_t(call.longest);
  const int member = place < call.longest ? window[place] : -1;
  return unsigned(member) < unsigned(call.row_count) ? member : -1;
}

// Rows of COUNT members to shared memory, times `scale`; zeros for nobody and beyond the last channel.
template <class T, int COUNT, int CHANNELS, int PITCH>
__device__ void fetch(const edge4d_window_attention& call, const int (&members)[COUNT], Part part, float scale,
                      float* to) {
  const int head = int(blockIdx.y);
#pragma unroll 4
  for (int at = threadIdx.x; at < COUNT * CHANNELS; at += THREADS) {
    const int member = members[at / CHANNELS], channel = at % CHANNELS;
    const bool exists = member >= 0 && channel < call.channels;
    const size_t row = (size_t(max(member, 0)) * 3 + part) * size_t(call.heads) + size_t(head);
    const T* const from = static_cast<const T*>(call.qkv) + row * size_t(call.channels) + channel;
    to[at / CHANNELS * PITCH + channel] = exists ? to_float(*from) * scale : 0.f;
  }
}

// CHANNELS: of a head, padded to a whole number of warps; OWN: queries of a warp.
template <class T, int CHANNELS, int OWN>
__global__ void __launch_bounds__(THREADS, 2)
    attend(const __grid_constant__ edge4d_window_attention call, float scale) {
  constexpr int QUERIES = WARPS * OWN, PITCH = CHANNELS + 4;  // rows below each other begin at different banks
  constexpr int OWN_CHANNELS = CHANNELS / WARP;
  __shared__ alignas(16) float queries[QUERIES * CHANNELS];
  __shared__ alignas(16) float others[KEYS * PITCH];  // keys, then values
  __shared__ alignas(16) float weights[QUERIES * KEYS];
  __shared__ int query_rows[QUERIES], key_rows[KEYS];
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  const int first_query = int(blockIdx.z) * QUERIES;
  if (member_at(call, first_query) < 0) return;  // most windows are shorter than the longest: all threads see it

  if (threadIdx.x < QUERIES) query_rows[threadIdx.x] = member_at(call, first_query + int(threadIdx.x));
  __syncthreads();
  fetch<T, QUERIES, CHANNELS, CHANNELS>(call, query_rows, QUERY, scale, queries);

  float sums[OWN][OWN_CHANNELS] = {}, greatest[OWN], total[OWN] = {};
  for (float& score : greatest) score = -INFINITY;
  for (int first_key = 0;; first_key += KEYS) {
    __syncthreads();  // the values of the keys before are done with
    if (threadIdx.x < KEYS) key_rows[lane] = member_at(call, first_key + lane);
    __syncthreads();
    if (key_rows[0] < 0) break;
    fetch<T, KEYS, CHANNELS, PITCH>(call, key_rows, KEY, 1.f, others);
    __syncthreads();

    float scores[OWN] = {};
#pragma unroll 4
    for (int channel = 0; channel < CHANNELS; channel += 4) {
      const float4 key = *reinterpret_cast<const float4*>(others + lane * PITCH + channel);
#pragma unroll
      for (int i = 0; i < OWN; ++i) {
        const float4 query = *reinterpret_cast<const float4*>(queries + (warp * OWN + i) * CHANNELS + channel);
        scores[i] = fmaf(query.x, key.x, fmaf(query.y, key.y, fmaf(query.z, key.z, fmaf(query.w, key.w, scores[i]))));
      }
    }
#pragma unroll
    for (int i = 0; i < OWN; ++i) {
      const float score = key_rows[lane] < 0 ? -INFINITY : scores[i];
      const float now = fmaxf(greatest[i], greatest_of(score));  // finite: the first key exists
      const float kept = exp2f(greatest[i] - now), weight = exp2f(score - now);
      greatest[i] = now;
      total[i] = total[i] * kept + sum_of(weight);
#pragma unroll
      for (int c = 0; c < OWN_CHANNELS; ++c) sums[i][c] *= kept;
      weights[(warp * OWN + i) * KEYS + lane] = weight;
    }
    __syncthreads();  // the keys are done with
    fetch<T, KEYS, CHANNELS, PITCH>(call, key_rows, VALUE, 1.f, others);
    __syncthreads();
#pragma unroll 4
    for (int key = 0; key < KEYS; ++key) {
#pragma unroll
      for (int c = 0; c < OWN_CHANNELS; ++c) {
        const float value = others[key * PITCH + c * WARP + lane];
#pragma unroll
        for (int i = 0; i < OWN; ++i) sums[i][c] = fmaf(weights[(warp * OWN + i) * KEYS + key], value, sums[i][c]);
      }
    }
  }

#pragma unroll
  for (int i = 0; i < OWN; ++i) {
    const int row = query_rows[warp * OWN + i];
#pragma unroll
    for (int c = 0; c < OWN_CHANNELS; ++c) {
      const int channel = c * WARP + lane;
      if (row < 0 || channel >= call.channels) continue;
      const size_t to = (size_t(row) * size_t(call.heads) + blockIdx.y) * size_t(call.channels) + size_t(channel);
      put(call.attended, int64_t(to), sums[i][c] / total[i], call.dtype);
    }
  }
}

// ---- host -----------------------------------------------------------------------------------------------------------

// Blocks are windows, heads, and QUERIES members of the longest window.
template <class T, int CHANNELS, int OWN>
void launch(const edge4d_window_attention& call, cudaStream_t stream) {
  constexpr Require require{"WindowAttention"};
  constexpr unsigned QUERIES = WARPS * OWN;
  const dim3 blocks(unsigned(call.window_count), unsigned(call.heads), (unsigned(call.longest) - 1) / QUERIES + 1);
  require(blocks.y <= 65535 && blocks.z <= 65535, "there are too many heads, or windows are too long");
  const float scale = float(1.4426950408889634 / sqrt(double(call.channels)));  // exponentials are powers of two
  attend<T, CHANNELS, OWN><<<blocks, THREADS, 0, stream>>>(call, scale);
}

template <class T>
void launch(const edge4d_window_attention& call, cudaStream_t stream) {
  if (call.channels <= 32) {
    launch<T, 32, 8>(call, stream);
  } else if (call.channels <= 64) {
    launch<T, 64, 8>(call, stream);
  } else {
    launch<T, HEAD_CHANNELS_MAX, 4>(call, stream);
  }
}

void run(const edge4d_window_attention* call, cudaStream_t stream) {
  Require{"WindowAttention"}(call, "the parameter struct is of another version");
  check_attributes(*call);
  if (call->row_count == 0) return;
  check_tensors(*call);
  const size_t numbers = size_t(call->row_count) * size_t(call->heads) * size_t(call->channels);
  const bool half = call->dtype == EDGE4D_FLOAT16;
  // Whoever is in no window keeps these zeros.
  check_cuda(cudaMemsetAsync(call->attended, 0, numbers * (half ? sizeof(__half) : sizeof(float)), stream));
  if (call->window_count == 0 || call->longest == 0) return;
  half ? launch<__half>(*call, stream) : launch<float>(*call, stream);
  check_cuda(cudaGetLastError());
}

}  // namespace
}  // namespace edge4d

uint64_t edge4d_cuda_window_attention_workspace(const edge4d_window_attention*) { return 0; }

int32_t edge4d_cuda_window_attention(const edge4d_window_attention* call, void*, uint64_t, void* stream) {
  using namespace edge4d;
  return status_of([&] { run(call, static_cast<cudaStream_t>(stream)); });
}
