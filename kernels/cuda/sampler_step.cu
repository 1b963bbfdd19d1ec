// A step of a sampler on the GPU: a thread for each number. The step's own numbers are read from GPU memory, so that a
// recorded loop can be given others.
#include "edge4d.h"
#include "launch.cuh"

namespace edge4d {
namespace {

constexpr int THREADS = 256;

struct Step {
  float model_time, alpha, sigma, keep, current, previous;
};

__global__ void __launch_bounds__(THREADS) advance(const __grid_constant__ edge4d_sampler_step call) {
  const int64_t at = int64_t(blockIdx.x) * THREADS + threadIdx.x;
  if (at >= call.count) return;
  const Step step = *reinterpret_cast<const Step*>(call.step);
  const float x = call.x[at], before = call.data[at];
  const float data = step.alpha * x - step.sigma * call.velocity[at];
  call.x[at] = step.keep * x + step.current * data + step.previous * before;
  call.data[at] = data;
}

void require(bool holds, const char* what) {
  if (!holds) refuse(std::string("sampler_step: ") + what + ".");
}

void run(const edge4d_sampler_step* call, cudaStream_t stream) {
  require(call && call->size == sizeof *call, "the parameter struct is of another version");
  require(call->count >= 0, "the count is negative");
  if (call->count == 0) return;
  require(call->step && call->velocity && call->x && call->data, "a pointer is null");
  const int64_t blocks = (call->count - 1) / THREADS + 1;
  require(blocks <= INT32_MAX, "there are too many numbers");  // gridDim.x ends there
  advance<<<unsigned(blocks), THREADS, 0, stream>>>(*call);
  check_cuda(cudaGetLastError());
}

}  // namespace
}  // namespace edge4d

int32_t edge4d_cuda_sampler_step(const edge4d_sampler_step* call, void* stream) {
  return edge4d::status_of([&] { edge4d::run(call, static_cast<cudaStream_t>(stream)); });
}
