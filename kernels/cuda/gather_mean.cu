// GatherMean on the GPU: a thread for each channel of each mean. Neighbouring threads read neighbouring channels of the
// same rows.
#include "checks.hpp"
#include "edge4d.h"
#include "launch.cuh"
#include "values.cuh"

namespace edge4d {
namespace {

constexpr int THREADS = 256;

template <class T>
__global__ void average(const __grid_constant__ edge4d_gather_mean call) {
  const size_t at = size_t(blockIdx.x) * THREADS + threadIdx.x, channels = size_t(call.channels);
  const size_t mean = at / channels, channel = at % channels;
  if (mean >= size_t(call.mean_count)) return;
  const T* const features = static_cast<const T*>(call.features) + channel;
  const int32_t* const rows = call.table + mean * size_t(call.most_rows);
  float sum = 0;
  int count = 0;
  for (int i = 0; i < call.most_rows; ++i) {
    const int32_t row = rows[i];
    if (unsigned(row) >= unsigned(call.row_count)) continue;
    sum += to_float(features[size_t(row) * channels]);
    ++count;
  }
  put(call.means, int64_t(at), sum / fmaxf(float(count) + float(call.zeros), 1.f), call.dtype);
}

void check_sizes(const edge4d_gather_mean* call) {
  constexpr Require require{"GatherMean"};
  require(call, "the parameter struct is of another version");
  check_attributes(*call);
  require((int64_t(call->mean_count) * call->channels - 1) / THREADS < INT32_MAX, "there are too many means");
}

void run(const edge4d_gather_mean* call, cudaStream_t stream) {
  check_sizes(call);
  if (call->mean_count == 0) return;
  check_tensors(*call);
  const size_t numbers = size_t(call->mean_count) * size_t(call->channels);
  const unsigned blocks = unsigned((numbers - 1) / THREADS + 1);
  const auto kernel = call->dtype == EDGE4D_FLOAT16 ? average<__half> : average<float>;
  kernel<<<blocks, THREADS, 0, stream>>>(*call);
  check_cuda(cudaGetLastError());
}

}  // namespace
}  // namespace edge4d

uint64_t edge4d_cuda_gather_mean_workspace(const edge4d_gather_mean*) { return 0; }

int32_t edge4d_cuda_gather_mean(const edge4d_gather_mean* call, void*, uint64_t, void* stream) {
  using namespace edge4d;
  return status_of([&] { run(call, static_cast<cudaStream_t>(stream)); });
}
