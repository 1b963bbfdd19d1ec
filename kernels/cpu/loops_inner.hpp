// The hot loops; see loops.hpp. Included by loops_*.cpp, each compiled for one instruction set.
// Nothing with external linkage is used here: an inline function of the standard library compiled for AVX-512 could
// become everybody's copy, and crash on machines without.
#include "half.hpp"
#include "loops.hpp"
#include "simd.hpp"

namespace edge4d {
namespace {

// ---- project --------------------------------------------------------------------------------------------------------
//
// Plain loops over short arrays in float64, one array per quantity: the compiler turns each into SIMD. float64 costs
// little here (a Gaussian is projected once, but blended dozens of times) and buys the order of depths and the places
// of edges exactly as the twin has them.

constexpr double LOG2_E = 1.4426950408889634, LOG2_255_EXACT = 7.9943534368588578;
constexpr float TRANSMITTANCE_MIN = 1e-4f;
constexpr int BLOCK = 64;  // Gaussians at a time; a block's arrays fit the first-level cache
typedef double Column[BLOCK];

inline double smaller(double a, double b) { return a < b ? a : b; }
inline double larger(double a, double b) { return a > b ? a : b; }

// Converted to float32 if need be; `converted` has room for `count`.
inline const float* floats_at(const void* values, int dtype, size_t first, size_t count, float* converted) {
  if (dtype == EDGE4D_FLOAT32) return static_cast<const float*>(values) + first;
  const uint16_t* halves = static_cast<const uint16_t*>(values) + first;
  for (size_t i = 0; i < count; ++i) converted[i] = float_from_half(halves[i]);
  return converted;
}

// Whether values[first .. first + count) are all finite: no exponent has all its bits set.
inline bool all_finite(const void* values, int dtype, size_t first, size_t count) {
  uint32_t bad = 0;
  if (dtype == EDGE4D_FLOAT32) {
    const float* floats = static_cast<const float*>(values) + first;
    for (size_t i = 0; i < count; ++i) bad |= (bits_from_float(floats[i]) & 0x7f800000u) == 0x7f800000u;
  } else {
    const uint16_t* halves = static_cast<const uint16_t*>(values) + first;
    for (size_t i = 0; i < count; ++i) bad |= (halves[i] & 0x7c00) == 0x7c00;
  }
  return !bad;
}

// ln(x) for positive normal x, to 1e-12: x = 2^e m with m in [sqrt(1/2), sqrt(2)), then the series of atanh.
inline double natural_log(float x) {
  const uint32_t bits = bits_from_float(x) - 0x3f3504f3u;  // sqrt(1/2)
  const int32_t exponent = int32_t(bits) >> 23;
  const double m = double(float_from_bits((bits & 0x7fffffu) + 0x3f3504f3u));
  const double s = (m - 1) / (m + 1), t = s * s;
  const double series = 1 + t * (1. / 3 + t * (1. / 5 + t * (1. / 7 + t * (1. / 9 + t * (1. / 11 + t / 13)))));
  return 2 * s * series + 0.69314718055994531 * exponent;
}

// Colour of spherical harmonics [K][3] along a direction: basis and signs of 3D Gaussian splatting.
inline void color_from_sh(const float* coefficients, double x, double y, double z, int degree, float* color) {
  const double scale = 1 / __builtin_sqrt(x * x + y * y + z * z);
  x *= scale, y *= scale, z *= scale;
  const double xx = x * x, yy = y * y, zz = z * z;
  const double basis[16] = {
      0.28209479177387814,
      -0.48860251190291992 * y,
      0.48860251190291992 * z,
      -0.48860251190291992 * x,
      1.0925484305920792 * x * y,
      -1.0925484305920792 * y * z,
      0.31539156525252005 * (2 * zz - xx - yy),
      -1.0925484305920792 * x * z,
      0.54627421529603959 * (xx - yy),
      -0.59004358992664352 * y * (3 * xx - yy),
      2.8906114426405538 * x * y * z,
      -0.45704579946446572 * y * (4 * zz - xx - yy),
      0.37317633259011541 * z * (2 * zz - 3 * xx - 3 * yy),
      -0.45704579946446572 * x * (4 * zz - xx - yy),
      1.4453057213202769 * z * (xx - yy),
      -0.59004358992664352 * x * (xx - 3 * yy),
  };
  const int count = (degree + 1) * (degree + 1);
  for (int c = 0; c < 3; ++c) {
    double sum = 0.5;
    for (int k = 0; k < count; ++k) sum += basis[k] * double(coefficients[3 * k + c]);
    color[c] = float(larger(sum, 0));
  }
}

// Whether everything that Gaussian g of the whole batch brings is finite.
inline bool finite(const edge4d_gaussian_rasterize& call, size_t g) {
  const size_t width = size_t(call.coefficients ? call.coefficients * 3 : call.channels);
  return all_finite(call.means, call.dtype, g * 3, 3) && all_finite(call.quats, call.dtype, g * 4, 4) &&
         all_finite(call.scales, call.dtype, g * 3, 3) && all_finite(call.opacities, call.dtype, g, 1) &&
         all_finite(call.colors, call.dtype, g * width, width);
}

inline void write_colors(const View& view, size_t g, const float* mean, float* out) {
  const edge4d_gaussian_rasterize& call = *view.call;
  if (call.sh_degree < 0) {
    const size_t width = size_t(call.channels);
    if (call.dtype == EDGE4D_FLOAT32) {
      memcpy(out, static_cast<const float*>(call.colors) + g * width, width * sizeof(float));
    } else {
      floats_at(call.colors, call.dtype, g * width, width, out);
    }
    return;
  }
  float converted[16 * 3];
  const size_t used = size_t((call.sh_degree + 1) * (call.sh_degree + 1)) * 3;
  const float* sh = floats_at(call.colors, call.dtype, g * size_t(call.coefficients) * 3, used, converted);
  color_from_sh(sh, mean[0] - view.centre[0], mean[1] - view.centre[1], mean[2] - view.centre[2], call.sh_degree, out);
}

size_t project_block(const View& view, size_t first, int n, float* splats, int64_t& nonfinite) {
  const edge4d_gaussian_rasterize& call = *view.call;
  const size_t start = view.batch * size_t(call.gaussians) + first;

  float converted[BLOCK * 11];
  const float* means = floats_at(call.means, call.dtype, start * 3, size_t(n) * 3, converted);
  const float* quats = floats_at(call.quats, call.dtype, start * 4, size_t(n) * 4, converted + BLOCK * 3);
  const float* scales = floats_at(call.scales, call.dtype, start * 3, size_t(n) * 3, converted + BLOCK * 7);
  const float* opacities = floats_at(call.opacities, call.dtype, start, size_t(n), converted + BLOCK * 10);

  Column u, v, z;  // pixel centre of the mean, depth
  for (int i = 0; i < n; ++i) {
    const double X = means[3 * i], Y = means[3 * i + 1], Z = means[3 * i + 2];
    const double (&R)[3][3] = view.rotation;
    u[i] = R[0][0] * X + R[0][1] * Y + R[0][2] * Z + view.translation[0];
    v[i] = R[1][0] * X + R[1][1] * Y + R[1][2] * Z + view.translation[1];
    z[i] = R[2][0] * X + R[2][1] * Y + R[2][2] * Z + view.translation[2];
  }

  // The two rows of Jacobian * view rotation * axes: covariance = rows * rows^T.
  Column xx, xy, yy, det_sharp;
  bool has_direction[BLOCK];
  for (int i = 0; i < n; ++i) {
    double w = quats[4 * i], x = quats[4 * i + 1], y = quats[4 * i + 2], q = quats[4 * i + 3];
    const double norm2 = w * w + x * x + y * y + q * q;  // float32 squared: cannot overflow or vanish in float64
    const double two = 2 / norm2;
    const double axes[3][3] = {
        {1 - two * (y * y + q * q), two * (x * y - w * q), two * (x * q + w * y)},
        {two * (x * y + w * q), 1 - two * (x * x + q * q), two * (y * q - w * x)},
        {two * (x * q - w * y), two * (y * q + w * x), 1 - two * (x * x + y * y)},
    };
    const double inverse_z = 1 / z[i];
    const double slope_x = smaller(larger(u[i] * inverse_z, view.slope_min[0]), view.slope_max[0]);
    const double slope_y = smaller(larger(v[i] * inverse_z, view.slope_min[1]), view.slope_max[1]);
    double a[3], b[3];
    for (int j = 0; j < 3; ++j) {
      const double (&R)[3][3] = view.rotation;
      const double depth = R[2][0] * axes[0][j] + R[2][1] * axes[1][j] + R[2][2] * axes[2][j];
      const double right = R[0][0] * axes[0][j] + R[0][1] * axes[1][j] + R[0][2] * axes[2][j];
      const double down = R[1][0] * axes[0][j] + R[1][1] * axes[1][j] + R[1][2] * axes[2][j];
      const double size = scales[3 * i + j] * inverse_z;
      a[j] = view.focal[0] * size * (right - slope_x * depth);
      b[j] = view.focal[1] * size * (down - slope_y * depth);
    }
    // |a x b|^2 is the determinant without its cancellation.
    const double cross[3] = {a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]};
    det_sharp[i] = cross[0] * cross[0] + cross[1] * cross[1] + cross[2] * cross[2];
    xx[i] = a[0] * a[0] + a[1] * a[1] + a[2] * a[2];
    xy[i] = a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
    yy[i] = b[0] * b[0] + b[1] * b[1] + b[2] * b[2];
    u[i] = view.focal[0] * (u[i] * inverse_z) + view.principal[0];
    v[i] = view.focal[1] * (v[i] * inverse_z) + view.principal[1];
    has_direction[i] = norm2 > 0;
  }

  Column det, log_visible, opacity, deviations;  // log_visible = ln(255 opacity)
  const double eps = call.eps2d, floor2 = double(call.compensation_floor) * double(call.compensation_floor);
  for (int i = 0; i < n; ++i) {
    det[i] = det_sharp[i] + eps * (xx[i] + yy[i]) + eps * eps;
    xx[i] += eps;
    yy[i] += eps;
    const double factor = call.antialiased ? __builtin_sqrt(larger(floor2, det_sharp[i] / det[i])) : 1;
    opacity[i] = opacities[i] * factor;
    log_visible[i] = natural_log(float(larger(255 * opacity[i], 1)));
    deviations[i] = smaller(3.33, __builtin_sqrt(2 * log_visible[i]));
  }

  const size_t stride = splat_stride(call.channels);
  size_t written = 0;
  for (int i = 0; i < n; ++i) {
    if (!has_direction[i] || !finite(call, start + size_t(i))) {
      ++nonfinite;
      continue;
    }
    const double radius_x = __builtin_ceil(deviations[i] * __builtin_sqrt(xx[i]));
    const double radius_y = __builtin_ceil(deviations[i] * __builtin_sqrt(yy[i]));
    const bool on_screen =
        u[i] + radius_x > 0 && u[i] - radius_x < call.width && v[i] + radius_y > 0 && v[i] - radius_y < call.height;
    const bool in_range = z[i] >= double(call.near) && z[i] <= double(call.far);
    if (!(in_range && det[i] > 0 && opacity[i] >= 1. / 255 && on_screen)) continue;

    Splat splat;
    const double cell_x = __builtin_floor(u[i]), cell_y = __builtin_floor(v[i]);
    splat.cell_x = float(cell_x), splat.offset_x = float(u[i] - double(splat.cell_x));
    splat.cell_y = float(cell_y), splat.offset_y = float(v[i] - double(splat.cell_y));
    splat.slope = float(xy[i] / yy[i]);
    splat.steep_x = float(__builtin_sqrt(0.5 * LOG2_E * yy[i] / det[i]));
    splat.steep_y = float(__builtin_sqrt(0.5 * LOG2_E / yy[i]));
    splat.log_opacity = float(LOG2_E * log_visible[i] - LOG2_255_EXACT);
    const double reach = __builtin_sqrt(2 * log_visible[i]);
    splat.extent_x = float(reach * __builtin_sqrt(xx[i]));
    splat.extent_y = float(reach * __builtin_sqrt(yy[i]));
    splat.tilt_y = float(reach * xy[i] / __builtin_sqrt(xx[i]));
    splat.depth = float(z[i]);

    float* out = splats + written++ * stride;
    memcpy(out, &splat, sizeof splat);
    write_colors(view, start + size_t(i), means + 3 * i, out + sizeof splat / sizeof(float));
  }
  return written;
}

size_t project(const View& view, size_t first, size_t last, float* splats, int64_t& nonfinite) {
  const size_t stride = splat_stride(view.call->channels);
  size_t written = 0;
  for (size_t i = first; i < last; i += BLOCK) {
    const int n = int(last - i < BLOCK ? last - i : BLOCK);
    written += project_block(view, i, n, splats + written * stride, nonfinite);
  }
  return written;
}

// ---- blend ----------------------------------------------------------------------------------------------------------

// First and one past the last of `count` pixels whose centres lie within `reach` of `centre`, both counted from the
// first pixel's centre. A hundredth of a pixel more, for rounding.
inline void span(float centre, float reach, int count, int& first, int& last) {
  first = clamped_floor(centre - reach - 0.01f, -1, count - 1) + 1;
  last = clamped_floor(centre + reach + 0.01f, -1, count - 1) + 1;
}

inline vfloat negative(vfloat x) { return vfloat(vint(x) | INT32_MIN); }  // -|x|

// One bit per row that has pixels that are not done.
inline uint32_t rows_alive(const float* transmittances, int height) {
  uint32_t alive = 0;
  for (int row = 0; row < height; ++row) {
    vint mask = {};
    for (int pixel = 0; pixel < TILE; pixel += LANES) mask |= load<vfloat>(transmittances + row * TILE + pixel) > 0;
    alive |= uint32_t(any(mask)) << row;
  }
  return alive;
}

template <int CHANNELS>  // 0: as many as `channels` says
void blend_channels(const float* splats, const uint64_t* order, size_t count, float x, float y, int width, int height,
                    int channels, float alpha_max, const Planes& planes) {
  if (CHANNELS) channels = CHANNELS;
  const size_t stride = splat_stride(channels);
  float* const transmittances = planes.transmittance;
  float* const depths = planes.depth;
  float* const colors = planes.color;
  uint32_t alive = (1u << height) - 1;
  float ramp_values[TILE];
  for (int i = 0; i < TILE; ++i) ramp_values[i] = float(i);

  for (size_t k = 0; k < count; ++k) {
    // Looked up now and then: counting in the innermost loop cost 10 % of the frame.
    if (k % 16 == 15 && !(alive = rows_alive(transmittances, height))) return;

    const float* record = splats + uint32_t(order[k]) * stride;
    if (k + 8 < count) __builtin_prefetch(splats + uint32_t(order[k + 8]) * stride);
    const Splat& splat = *reinterpret_cast<const Splat*>(record);
    const float* color = record + sizeof(Splat) / sizeof(float);
    // The mean, counted from the first pixel's centre.
    const float mean_x = (splat.cell_x - x - 0.5f) + splat.offset_x;
    const float mean_y = (splat.cell_y - y - 0.5f) + splat.offset_y;
    int first_row, last_row, first_pixel, last_pixel;
    span(mean_y, splat.extent_y, height, first_row, last_row);
    span(mean_x, splat.extent_x, width, first_pixel, last_pixel);
    first_pixel -= first_pixel % LANES;
    if (LANES == TILE) first_pixel = 0, last_pixel = TILE;  // known to the compiler: one vector, no loop

    for (int row = first_row; row < last_row; ++row) {
      if (!(alive >> row & 1)) continue;
      const float dy = ramp_values[row] - mean_y;
      const float centre_x = mean_x + splat.slope * dy;
      const float v = splat.steep_y * dy;
      const vfloat peak = broadcast(splat.log_opacity - v * v);
      for (int pixel = first_pixel; pixel < last_pixel; pixel += LANES) {
        const int at = row * TILE + pixel;
        const vfloat u = (load<vfloat>(ramp_values + pixel) - centre_x) * splat.steep_x;
        const vfloat log_alpha = fma(-u, u, peak);
        const vfloat before = load<vfloat>(transmittances + at);
        vfloat alpha = exp2(log_alpha);
        alpha = alpha < alpha_max ? alpha : broadcast(alpha_max);
        const vfloat after = fma(-before, alpha, before);
        const vint visible = log_alpha >= -LOG2_255;
        const vint enough = after > TRANSMITTANCE_MIN;
        const vint blended = visible & enough;
        const vfloat weight = blended ? before * alpha : vfloat{};
        // Without enough left, a pixel that was alive is done, and one that was done stays so.
        const vfloat spent = visible ? negative(before) : before;
        store(transmittances + at, blended ? after : spent);
        store(depths + at, fma(weight, broadcast(splat.depth), load<vfloat>(depths + at)));
        for (int c = 0; c < channels; ++c) {
          float* plane = colors + c * PLANE + at;
          store(plane, fma(weight, broadcast(color[c]), load<vfloat>(plane)));
        }
      }
    }
  }
}

void blend(const float* splats, const uint64_t* order, size_t count, float x, float y, int width, int height,
           int channels, float alpha_max, const Planes& planes) {
  // A tile at the image's edge: what lies outside is done from the start.
  for (int i = 0; i < TILE_PIXELS; ++i) planes.transmittance[i] = i % TILE < width ? 1.f : -1.f;
  for (int i = 0; i < TILE_PIXELS; ++i) planes.depth[i] = 0;
  for (int i = 0; i < PLANE * channels; ++i) planes.color[i] = 0;
  const auto run = channels == 3 ? blend_channels<3> : blend_channels<0>;
  run(splats, order, count, x, y, width, height, channels, alpha_max, planes);
}

// ---- points ---------------------------------------------------------------------------------------------------------

// In float64 and in the twin's order of operations (no fused ones): the same bits, so the same neighbours.
inline double squared_distance(double dx, double dy, double dz) { return (dx * dx + dy * dy) + dz * dz; }

void nearest(const float* query, const float* const* xyz, size_t padded, int k, double* distances, int32_t* indices) {
  for (int i = 0; i < k; ++i) distances[i] = __builtin_inf(), indices[i] = -1;
  // float32 finds who may be nearer than the worst so far: its error is at most 4 roundings, far below one part in a
  // million. float64 then decides. Padding is NaN, and never nearer.
  float limit = __builtin_inff();
  for (size_t first = 0; first < padded; first += LANES) {
    const vfloat dx = load<vfloat>(xyz[0] + first) - query[0];
    const vfloat dy = load<vfloat>(xyz[1] + first) - query[1];
    const vfloat dz = load<vfloat>(xyz[2] + first) - query[2];
    uint32_t candidates = bits(fma(dx, dx, fma(dy, dy, dz * dz)) <= limit);
    for (; candidates; candidates &= candidates - 1) {
      const size_t i = first + size_t(__builtin_ctz(candidates));
      const double distance =
          squared_distance(double(query[0]) - double(xyz[0][i]), double(query[1]) - double(xyz[1][i]),
                           double(query[2]) - double(xyz[2][i]));
      if (!(distance < distances[k - 1])) continue;
      int place = k - 1;
      for (; place > 0 && distances[place - 1] > distance; --place) {
        distances[place] = distances[place - 1];
        indices[place] = indices[place - 1];
      }
      distances[place] = distance;
      indices[place] = int32_t(i);
      limit = float(distances[k - 1]) * 1.000001f + 1e-37f;
    }
  }
}

size_t farthest(const float* points, const float* taken, size_t first, size_t last, double* distances) {
  const double tx = taken[0], ty = taken[1], tz = taken[2];
  double best = -1;
  size_t best_index = first;
  for (size_t i = first; i < last; i += BLOCK) {
    const int n = int(last - i < BLOCK ? last - i : BLOCK);
    Column updated;
    double greatest[8] = {-1, -1, -1, -1, -1, -1, -1, -1};
    for (int j = 0; j < n; ++j) {
      const float* point = points + 3 * (i + size_t(j));
      const double distance = squared_distance(double(point[0]) - tx, double(point[1]) - ty, double(point[2]) - tz);
      updated[j] = smaller(distance, distances[i + size_t(j)]);
      distances[i + size_t(j)] = updated[j];
    }
    for (int j = n; j < BLOCK; ++j) updated[j] = -1;
    for (int j = 0; j < BLOCK; j += 8)
      for (int lane = 0; lane < 8; ++lane) greatest[lane] = larger(updated[j + lane], greatest[lane]);
    for (int lane = 1; lane < 8; ++lane) greatest[0] = larger(greatest[lane], greatest[0]);
    if (!(greatest[0] > best)) continue;
    best = greatest[0];
    for (int j = n; j-- > 0;) best_index = updated[j] == best ? i + size_t(j) : best_index;
  }
  return best_index;
}

// ---- matrices -------------------------------------------------------------------------------------------------------

void multiply_add(const float* const* a, const float* panel, size_t depth, float* const* out) {
  for (int column = 0; column < PANEL; column += 2 * LANES) {
    vfloat left[MATRIX_ROWS], right[MATRIX_ROWS];
    for (int i = 0; i < MATRIX_ROWS; ++i) {
      left[i] = load<vfloat>(out[i] + column);
      right[i] = load<vfloat>(out[i] + column + LANES);
    }
    for (size_t k = 0; k < depth; ++k) {
      const vfloat b_left = load<vfloat>(panel + k * PANEL + column);
      const vfloat b_right = load<vfloat>(panel + k * PANEL + column + LANES);
      for (int i = 0; i < MATRIX_ROWS; ++i) {
        const vfloat factor = broadcast(a[i][k]);
        left[i] = fma(factor, b_left, left[i]);
        right[i] = fma(factor, b_right, right[i]);
      }
    }
    for (int i = 0; i < MATRIX_ROWS; ++i) {
      store(out[i] + column, left[i]);
      store(out[i] + column + LANES, right[i]);
    }
  }
}

float exponentials(float* scores, size_t count) {
  float greatest = scores[0];
  for (size_t i = 1; i < count; ++i) greatest = scores[i] > greatest ? scores[i] : greatest;
  for (size_t i = 0; i < count; i += LANES) {
    const vfloat below = load<vfloat>(scores + i) - greatest;
    // Beyond 2^-126 nothing is lost that a sum of at least 1 would show. The difference is 0, or NaN and stays so.
    store(scores + i, exp2(below < -126.f ? broadcast(-126.f) : below) + (below - below));
  }
  vfloat sums = {};
  for (size_t i = count; i % LANES; ++i) scores[i] = 0;
  for (size_t i = 0; i < count; i += LANES) sums += load<vfloat>(scores + i);
  float sum = 0;
  for (int lane = 0; lane < LANES; ++lane) sum += sums[lane];
  return sum;
}

}  // namespace
}  // namespace edge4d
