// KnnInterpolate on the CPU: queries over threads, points over SIMD lanes. Every query looks at every point: with the
// 8192 points that the operator is made for, that takes a few microseconds, and needs no search structure.
#include <cmath>
#include <limits>
#include <memory>

#include "checks.hpp"
#include "edge4d.h"
#include "loops.hpp"
#include "parallel.hpp"
#include "status.hpp"

namespace edge4d {
namespace {

constexpr size_t PADDING = 16;  // points; a multiple of every vector's lanes
constexpr size_t BATCH = 64;    // queries that a thread takes at a time

void weights_from_distances(const edge4d_knn_interpolate& call, const double* distances, double* weights) {
  double mean = 0;
  for (int i = 0; i < call.k; ++i) mean += distances[i];
  const double radius = std::sqrt(mean / call.k) + 1e-6, radius2 = radius * radius;
  double sum = 1e-8;
  for (int i = 0; i < call.k; ++i) {
    const bool inside = !call.radius_mask || distances[i] <= radius2;
    weights[i] = inside ? std::exp(-double(call.beta) * distances[i] / radius2) : 0;
    sum += weights[i];
  }
  for (int i = 0; i < call.k; ++i) weights[i] /= sum;
}

void interpolate_query(const edge4d_knn_interpolate& call, size_t query, const float* const* xyz, size_t padded) {
  const size_t k = size_t(call.k), channels = size_t(call.channels);
  double distances[K_MAX], weights[K_MAX];
  int32_t* indices = call.indices + query * k;
  loops().nearest(call.queries + query * 3, xyz, padded, call.k, distances, indices);
  weights_from_distances(call, distances, weights);
  for (size_t i = 0; i < k; ++i) call.weights[query * k + i] = float(weights[i]);
  for (size_t frame = 0; frame < size_t(call.frames); ++frame) {
    const float* values = call.values + frame * size_t(call.point_count) * channels;
    float* out = call.interpolated + (frame * size_t(call.query_count) + query) * channels;
    for (size_t c = 0; c < channels; ++c) {
      double sum = 0;
      for (size_t i = 0; i < k; ++i) sum += weights[i] * double(values[size_t(indices[i]) * channels + c]);
      out[c] = float(sum);
    }
  }
}

}  // namespace
}  // namespace edge4d

int32_t edge4d_cpu_knn_interpolate(const edge4d_knn_interpolate* call, int32_t threads) {
  using namespace edge4d;
  return status_of([&] {
    if (!call) refuse("KnnInterpolate: no parameters.");
    check_attributes(*call);
    if (call->query_count) check_tensors(*call);
    const size_t points = size_t(call->point_count), queries = size_t(call->query_count);
    const size_t padded = (points + PADDING - 1) / PADDING * PADDING;
    const std::unique_ptr<float[]> memory(new float[3 * padded]);
    float* const xyz[3] = {memory.get(), memory.get() + padded, memory.get() + 2 * padded};
    for (size_t axis = 0; axis < 3; ++axis)
      for (size_t i = 0; i < padded; ++i)
        xyz[axis][i] = i < points ? call->points[3 * i + axis] : std::numeric_limits<float>::quiet_NaN();
    const size_t batches = (queries + BATCH - 1) / BATCH;
    parallel_for(thread_count(threads, batches), batches, [&](size_t batch, int) {
      for (size_t query = batch * BATCH; query < std::min(queries, (batch + 1) * BATCH); ++query)
        interpolate_query(*call, query, xyz, padded);
    });
  });
}
