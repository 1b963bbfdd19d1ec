// A scene's Gaussians at a time, one Gaussian at a time: the formulas of runtime/motion.py and runtime/gaussians.py.
//
// Raw terms, then the activations, then activated terms, each in the order of the call. Angles and polynomials in time
// are float64, as in NumPy: t may be minutes, and 100 rad in float32 are off by 4e-6, at 10 m by 40 um. Only Gaussians
// of moving groups pay for that. All else is float32. What is not finite stays so: the rasterizer skips it.
#pragma once

#include <cfloat>
#include <cstdint>
#include <cuda_fp16.h>

#include "edge4d.h"

namespace edge4d {

struct Gaussian {
  float mean[3], quat[4], scale[3], opacity;
};

// Where a Delta's samples stand at a time: those at `before` and `after`, and how far between them.
struct Between {
  int before, after;
  float weight;
};

// The latest sample that is not after t, and the next one if the term interpolates; before the first and after the last
// sample that one holds. `times` increase.
__device__ inline Between samples_at(const edge4d_motion_term& term, double t) {
  int low = 0, high = term.samples;  // the first sample after t is in low..high
  while (low < high) {
    const int middle = (low + high) / 2;
    if (term.times[middle] <= t) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  const int i = low - 1;
  if (i < 0 || low == term.samples || !term.linear_interpolation) return {max(i, 0), max(i, 0), 0.0f};
  const double start = term.times[i];
  return {i, low, static_cast<float>((t - start) / (term.times[low] - start))};
}

// The row of Gaussian i in a Delta's data, -1 if the term leaves it alone.
__device__ inline int row_of(const edge4d_motion_term& term, int i) {
  const int row = term.row_of ? term.row_of[i] : i;
  return row >= 0 && row < term.rows ? row : -1;
}

__device__ inline float stored(const edge4d_motion_term& term, int sample, int row, int channel) {
  const int64_t at = (static_cast<int64_t>(sample) * term.rows + row) * term.channels + channel;
  return term.dtype == EDGE4D_FLOAT16 ? __half2float(static_cast<const __half*>(term.data)[at])
                                      : static_cast<const float*>(term.data)[at];
}

__device__ inline float difference(const edge4d_motion_term& term, const Between& at, int row, int channel) {
  const float before = stored(term, at.before, row, channel);
  if (at.before == at.after) return before;
  return before + at.weight * (stored(term, at.after, row, channel) - before);
}

// ---- quaternions, wxyz ----------------------------------------------------------------------------------------------

// To length one; one of length zero stays zero.
__device__ inline void normalize(float (&q)[4]) {
  const float length = sqrtf(q[0] * q[0] + q[1] * q[1] + q[2] * q[2] + q[3] * q[3]);
  const float scale = 1.0f / (length < FLT_MIN ? FLT_MIN : length);  // NaN stays NaN
  for (float& part : q) part *= scale;
}

__device__ inline void multiply(const float (&a)[4], const float (&b)[4], float (&product)[4]) {
  product[0] = a[0] * b[0] - a[1] * b[1] - a[2] * b[2] - a[3] * b[3];
  product[1] = a[0] * b[1] + a[1] * b[0] + a[2] * b[3] - a[3] * b[2];
  product[2] = a[0] * b[2] - a[1] * b[3] + a[2] * b[0] + a[3] * b[1];
  product[3] = a[0] * b[3] + a[1] * b[2] - a[2] * b[1] + a[3] * b[0];
}

// The unit quaternion that turns by |theta| radians about theta.
__device__ inline void quat_from_rotvec(const double (&theta)[3], double (&q)[4]) {
  constexpr double one_over_pi = 0.31830988618379067154;
  const double angle = sqrt(theta[0] * theta[0] + theta[1] * theta[1] + theta[2] * theta[2]);
  double sine, cosine;
  sincospi(0.5 * one_over_pi * angle, &sine, &cosine);  // unlike sincos it needs no stack for large angles
  const double along = angle > 0.0 ? sine / angle : 0.5;
  q[0] = cosine;
  for (int k = 0; k < 3; ++k) q[k + 1] = along * theta[k];
}

// ---- terms ----------------------------------------------------------------------------------------------------------

// sum_i coefficients[i] t^(i+1), by Horner's rule.
__device__ inline void polynomial(const float* coefficients, int terms, double t, double (&sum)[3]) {
  for (double& part : sum) part = 0.0;
  for (int i = terms - 1; i >= 0; --i) {
    for (int k = 0; k < 3; ++k) sum[k] = (sum[k] + static_cast<double>(coefficients[3 * i + k])) * t;
  }
}

__device__ inline void apply_poly(const edge4d_motion_term& term, int group, double t, Gaussian& g) {
  if (group <= 0 || group >= term.groups || t == 0.0) return;
  double theta[3], shift[3], turn[4];
  polynomial(term.angular + static_cast<int64_t>(group) * term.angular_terms * 3, term.angular_terms, t, theta);
  polynomial(term.linear + static_cast<int64_t>(group) * term.linear_terms * 3, term.linear_terms, t, shift);
  quat_from_rotvec(theta, turn);
  const double w = turn[0], x = turn[1], y = turn[2], z = turn[3];
  const double rotation[3][3] = {{1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)},
                                 {2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)},
                                 {2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)}};
  const float* centre = term.centres + 3 * group;
  float arm[3], product[4];
  for (int k = 0; k < 3; ++k) arm[k] = g.mean[k] - centre[k];
  for (int k = 0; k < 3; ++k) {
    g.mean[k] = static_cast<float>(rotation[k][0]) * arm[0] + static_cast<float>(rotation[k][1]) * arm[1] +
                static_cast<float>(rotation[k][2]) * arm[2] + static_cast<float>(centre[k] + shift[k]);
  }
  const float left[4] = {static_cast<float>(w), static_cast<float>(x), static_cast<float>(y), static_cast<float>(z)};
  multiply(left, g.quat, product);
  for (int k = 0; k < 4; ++k) g.quat[k] = product[k];
}

// The quaternion that a Delta adds or multiplies by; between samples along the shorter of the two ways.
__device__ inline void turn_of(const edge4d_motion_term& term, const Between& at, int row, float (&turn)[4]) {
  const int first = term.quats_at;
  for (int k = 0; k < 4; ++k) turn[k] = stored(term, at.before, row, first + k);
  if (at.before == at.after) return;
  float after[4], along = 0.0f;
  for (int k = 0; k < 4; ++k) {
    after[k] = stored(term, at.after, row, first + k);
    along += turn[k] * after[k];
  }
  const float sign = term.rotation != EDGE4D_ADD && along < 0.0f ? -1.0f : 1.0f;  // q and -q are one rotation
  for (int k = 0; k < 4; ++k) turn[k] += at.weight * (sign * after[k] - turn[k]);
}

__device__ inline void rotate(const edge4d_motion_term& term, const Between& at, int row, float (&quat)[4]) {
  float turn[4], product[4];
  turn_of(term, at, row, turn);
  if (term.rotation == EDGE4D_ADD) {
    for (int k = 0; k < 4; ++k) product[k] = quat[k] + turn[k];
  } else if (term.rotation == EDGE4D_MUL_LEFT) {
    multiply(turn, quat, product);
  } else {
    multiply(quat, turn, product);
  }
  if (!term.raw) normalize(product);
  for (int k = 0; k < 4; ++k) quat[k] = product[k];
}

__device__ inline void apply_delta(const edge4d_motion_term& term, int row, double t, Gaussian& g) {
  if (row < 0) return;
  const Between at = samples_at(term, t);
  if (term.means_at >= 0) {
    for (int k = 0; k < 3; ++k) g.mean[k] += difference(term, at, row, term.means_at + k);
  }
  if (term.quats_at >= 0) rotate(term, at, row, g.quat);
  if (term.scales_at >= 0) {
    for (int k = 0; k < 3; ++k) {
      g.scale[k] += difference(term, at, row, term.scales_at + k);
      if (!term.raw && g.scale[k] < 0.0f) g.scale[k] = 0.0f;
    }
  }
  if (term.opacities_at >= 0) {
    g.opacity += difference(term, at, row, term.opacities_at);
    if (!term.raw) g.opacity = g.opacity < 0.0f ? 0.0f : g.opacity > 1.0f ? 1.0f : g.opacity;
  }
}

// The terms of one domain.
__device__ inline void apply_terms(const edge4d_move_gaussians& call, bool raw, int i, double t, Gaussian& g) {
  for (int k = 0; k < call.term_count; ++k) {
    const edge4d_motion_term& term = call.terms[k];
    if ((term.kind == EDGE4D_DELTA && term.raw) != raw) continue;
    if (term.kind == EDGE4D_POLY) {
      apply_poly(term, call.groups ? call.groups[i] : 0, t, g);
    } else {
      apply_delta(term, row_of(term, i), t, g);
    }
  }
}

__device__ inline void activate(const edge4d_move_gaussians& call, Gaussian& g) {
  for (int k = 0; k < 4; ++k) g.quat[k] += call.quat_bias[k];
  normalize(g.quat);
  if (call.scale_activation != EDGE4D_IDENTITY) {
    for (float& scale : g.scale) {
      const float biased = scale + call.scale_bias;
      // softplus as log(1 + exp(x)) = max(x, 0) + log1p(exp(-|x|)), which cannot overflow; fmaxf would lose a NaN
      scale = call.scale_activation == EDGE4D_EXP
                  ? expf(biased)
                  : hypotf((biased < 0.0f ? 0.0f : biased) + log1pf(expf(-fabsf(biased))), call.scale_floor);
    }
  }
  // The logistic function by tanh, which saturates where exp would overflow.
  if (call.opacity_activation != EDGE4D_IDENTITY) {
    g.opacity = 0.5f * (1.0f + tanhf(0.5f * (g.opacity + call.opacity_bias)));
  }
}

// Gaussian i at t seconds, from its stored values in g. Its colour is `moved_color`'s: it may be 48 numbers.
__device__ inline void move(const edge4d_move_gaussians& call, int i, double t, Gaussian& g) {
  apply_terms(call, true, i, t, g);
  activate(call, g);
  apply_terms(call, false, i, t, g);
}

// One number of Gaussian i's colour at t seconds: of RGB, or of the constant coefficient, which come first.
__device__ inline float moved_color(const edge4d_move_gaussians& call, int i, int number, double t, float color) {
  for (int k = 0; k < call.term_count && number < 3; ++k) {
    const edge4d_motion_term& term = call.terms[k];
    if (term.kind != EDGE4D_DELTA || term.colors_at < 0) continue;
    const int row = row_of(term, i);
    if (row >= 0) color += difference(term, samples_at(term, t), row, term.colors_at + number);
  }
  return color;
}

}  // namespace edge4d
