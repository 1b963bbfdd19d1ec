// WindowAttention on the CPU: a thread takes one head of one window. It lays the window's keys and values out in
// panels, then takes some queries at a time: scores, their exponentials, the sum of values that they weigh.
#include <cmath>
#include <cstring>
#include <vector>

#include "checks.hpp"
#include "edge4d.h"
#include "matrices.hpp"
#include "parallel.hpp"
#include "status.hpp"
#include "stored.hpp"

namespace edge4d {
namespace {

constexpr size_t QUERIES = 8 * MATRIX_ROWS;  // at a time: few enough that their scores stay in the cache

// A thread's memory for windows of up to `length` members and heads of D channels, padded to whole panels.
struct Head {
  std::vector<float> keys;      // [panels of members][D, PANEL]
  std::vector<float> values;    // [panels of channels][L, PANEL]
  std::vector<float> queries;   // [QUERIES, D]
  std::vector<float> scores;    // [QUERIES, L padded]
  std::vector<float> weights;   // [QUERIES, L] densely
  std::vector<float> attended;  // [QUERIES, D padded]
  std::vector<float> row;       // [D]

  Head(size_t length, size_t channels)
      : keys(round_up(length, PANEL) * channels),
        values(length * round_up(channels, PANEL)),
        queries(QUERIES * channels),
        scores(QUERIES * round_up(length, PANEL)),
        weights(QUERIES * length),
        attended(QUERIES * round_up(channels, PANEL)),
        row(channels) {}
};

struct Window {
  const int32_t* members;
  size_t length;
};

Window window_at(const edge4d_window_attention& call, size_t index) {
  const int32_t* const members = call.windows + index * size_t(call.longest);
  size_t length = 0;
  while (length < size_t(call.longest) && members[length] >= 0 && members[length] < call.row_count) ++length;
  return {members, length};
}

enum Part { QUERY, KEY, VALUE };

void read_part(const edge4d_window_attention& call, int32_t member, size_t head, Part part, float* to) {
  const size_t heads = size_t(call.heads), channels = size_t(call.channels);
  read_floats(call.qkv, call.dtype, ((size_t(member) * 3 + part) * heads + head) * channels, channels, to);
}

void lay_out(const edge4d_window_attention& call, const Window& window, size_t head, Head& memory) {
  const size_t channels = size_t(call.channels), length = window.length;
  std::fill(memory.keys.begin(), memory.keys.end(), 0.f);
  std::fill(memory.values.begin(), memory.values.end(), 0.f);
  for (size_t i = 0; i < length; ++i) {
    read_part(call, window.members[i], head, KEY, memory.row.data());
    float* const key = memory.keys.data() + i / PANEL * PANEL * channels + i % PANEL;
    for (size_t c = 0; c < channels; ++c) key[c * PANEL] = memory.row[c];
    read_part(call, window.members[i], head, VALUE, memory.row.data());
    for (size_t c = 0; c < channels; c += PANEL)
      std::copy_n(memory.row.data() + c, std::min<size_t>(PANEL, channels - c),
                  memory.values.data() + (c / PANEL * length + i) * PANEL);
  }
}

// Attention of `count` queries, from the window's `first` on.
void attend(const edge4d_window_attention& call, const Window& window, size_t head, size_t first, size_t count,
            Head& memory) {
  const size_t channels = size_t(call.channels), length = window.length;
  const size_t padded_length = round_up(length, PANEL), padded_channels = round_up(channels, PANEL);
  // Exponentials are powers of two here.
  const float scale = float(1.4426950408889634 / std::sqrt(double(channels)));
  for (size_t i = 0; i < count; ++i) {
    float* const query = memory.queries.data() + i * channels;
    read_part(call, window.members[first + i], head, QUERY, query);
    for (size_t c = 0; c < channels; ++c) query[c] *= scale;
  }
  std::fill_n(memory.scores.data(), count * padded_length, 0.f);
  for (size_t at = 0; at < length; at += PANEL)
    multiply_add(memory.queries.data(), count, channels, memory.keys.data() + at * channels,
                 [&](size_t i) { return memory.scores.data() + i * padded_length + at; });
  float sums[QUERIES];
  for (size_t i = 0; i < count; ++i) {
    sums[i] = loops().exponentials(memory.scores.data() + i * padded_length, length);
    std::copy_n(memory.scores.data() + i * padded_length, length, memory.weights.data() + i * length);
  }
  std::fill_n(memory.attended.data(), count * padded_channels, 0.f);
  for (size_t at = 0; at < channels; at += PANEL)
    multiply_add(memory.weights.data(), count, length, memory.values.data() + at * length,
                 [&](size_t i) { return memory.attended.data() + i * padded_channels + at; });
  for (size_t i = 0; i < count; ++i) {
    float* const result = memory.attended.data() + i * padded_channels;
    for (size_t c = 0; c < channels; ++c) result[c] /= sums[i];
    const size_t member = size_t(window.members[first + i]);
    write_floats(call.attended, call.dtype, (member * size_t(call.heads) + head) * channels, channels, result);
  }
}

}  // namespace
}  // namespace edge4d

int32_t edge4d_cpu_window_attention(const edge4d_window_attention* call, int32_t threads) {
  using namespace edge4d;
  return status_of([&] {
    if (!call) refuse("WindowAttention: no parameters.");
    check_attributes(*call);
    if (call->row_count == 0) return;
    check_tensors(*call);
    const size_t heads = size_t(call->heads), channels = size_t(call->channels);
    // Whoever is in no window keeps these zeros.
    memset(call->attended, 0, size_t(call->row_count) * heads * channels * bytes_of(call->dtype));
    size_t longest = 0;
    for (size_t i = 0; i < size_t(call->window_count); ++i) longest = std::max(longest, window_at(*call, i).length);
    if (longest == 0) return;
    const size_t items = size_t(call->window_count) * heads;
    const int workers = thread_count(threads, items);
    std::vector<Head> memory(size_t(workers), Head(longest, channels));
    parallel_for(workers, items, [&](size_t item, int worker) {
      const Window window = window_at(*call, item / heads);
      Head& own = memory[size_t(worker)];
      if (window.length) lay_out(*call, window, item % heads, own);
      for (size_t first = 0; first < window.length; first += QUERIES)
        attend(*call, window, item % heads, first, std::min(QUERIES, window.length - first), own);
    });
  });
}
