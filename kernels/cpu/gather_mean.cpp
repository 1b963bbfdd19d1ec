// GatherMean on the CPU: means over threads, channels over SIMD lanes.
#include <vector>

#include "checks.hpp"
#include "edge4d.h"
#include "parallel.hpp"
#include "status.hpp"
#include "stored.hpp"

namespace edge4d {
namespace {

constexpr size_t BATCH = 64;  // means that a thread takes at a time

// `memory` has room for two rows.
void mean(const edge4d_gather_mean& call, size_t index, float* memory) {
  const size_t channels = size_t(call.channels), most = size_t(call.most_rows);
  float *const sums = memory, *const row = memory + channels;
  std::fill_n(sums, channels, 0.f);
  int64_t count = call.zeros;
  for (size_t i = 0; i < most; ++i) {
    const int32_t from = call.table[index * most + i];
    if (from < 0 || from >= call.row_count) continue;
    ++count;
    read_floats(call.features, call.dtype, size_t(from) * channels, channels, row);
    for (size_t c = 0; c < channels; ++c) sums[c] += row[c];
  }
  const float divisor = float(std::max<int64_t>(count, 1));
  for (size_t c = 0; c < channels; ++c) sums[c] /= divisor;
  write_floats(call.means, call.dtype, index * channels, channels, sums);
}

}  // namespace
}  // namespace edge4d

int32_t edge4d_cpu_gather_mean(const edge4d_gather_mean* call, int32_t threads) {
  using namespace edge4d;
  return status_of([&] {
    if (!call) refuse("GatherMean: no parameters.");
    check_attributes(*call);
    if (call->mean_count == 0) return;
    check_tensors(*call);
    const size_t count = size_t(call->mean_count), batches = (count + BATCH - 1) / BATCH;
    const int workers = thread_count(threads, batches);
    const size_t room = 2 * size_t(call->channels);
    std::vector<float> memory(size_t(workers) * room);
    parallel_for(workers, batches, [&](size_t batch, int worker) {
      for (size_t i = batch * BATCH; i < std::min(count, (batch + 1) * BATCH); ++i)
        mean(*call, i, memory.data() + size_t(worker) * room);
    });
  });
}
