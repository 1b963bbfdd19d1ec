// SIMD by the compilers' vector types: +, <, ?: and so on work lane by lane. Only what they lack is written per
// machine. Everything here has internal linkage: this header is compiled once per instruction set, and the linker must
// never swap one copy for another.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace edge4d {
namespace {

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64;
#elif defined(__AVX2__)
constexpr int VECTOR_BYTES = 32;
#else
constexpr int VECTOR_BYTES = 16;
#endif

constexpr int LANES = VECTOR_BYTES / 4;

typedef float vfloat __attribute__((vector_size(VECTOR_BYTES)));
typedef int32_t vint __attribute__((vector_size(VECTOR_BYTES)));
typedef uint32_t vuint __attribute__((vector_size(VECTOR_BYTES)));

template <class Vector, class Scalar>
inline Vector load(const Scalar* from) {
  Vector to;
  memcpy(&to, from, sizeof to);
  return to;
}

template <class Vector, class Scalar>
inline void store(Scalar* to, Vector from) {
  memcpy(to, &from, sizeof from);
}

inline vfloat broadcast(float value) { return value - vfloat{}; }  // x - 0 is x, which compilers know; x + 0 is not: -0

inline vfloat fma(vfloat a, vfloat b, vfloat c) {  // a b + c, rounded once where the machine can
#if defined(__AVX512F__)
  return vfloat(_mm512_fmadd_ps(__m512(a), __m512(b), __m512(c)));
#elif defined(__AVX2__)
  return vfloat(_mm256_fmadd_ps(__m256(a), __m256(b), __m256(c)));
#elif defined(__aarch64__)
  return vfloat(vfmaq_f32(float32x4_t(c), float32x4_t(a), float32x4_t(b)));
#else
  return a * b + c;
#endif
}

// One bit per lane of a comparison's result, the first lane lowest.
inline uint32_t bits(vint mask) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask(__m512i(mask));
#elif defined(__AVX2__)
  return uint32_t(_mm256_movemask_ps(__m256(mask)));
#elif defined(__x86_64__)
  return uint32_t(_mm_movemask_ps(__m128(mask)));
#else
  uint32_t result = 0;
  for (int lane = 0; lane < LANES; ++lane) result |= uint32_t(mask[lane] & 1) << lane;
  return result;
#endif
}

inline bool any(vint mask) {
#if defined(__aarch64__)
  return vmaxvq_u32(uint32x4_t(mask)) != 0;
#else
  return bits(mask) != 0;
#endif
}

// 2^x for -126 <= x <= 127 (beyond, any number or NaN), relative error below 2e-7: the nearest integer goes into the
// exponent, the rest (at most one half) into a polynomial fitted for the least greatest relative error.
inline vfloat exp2(vfloat x) {
  const float round = 12582912.f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  const vfloat shifted = x + round;
  const vfloat rest = x - (shifted - round);
  vfloat power = fma(rest, broadcast(1.32647271e-3f), broadcast(9.67151265e-3f));
  power = fma(rest, power, broadcast(5.55073374e-2f));
  power = fma(rest, power, broadcast(2.40222421e-1f));
  power = fma(rest, power, broadcast(6.93146978e-1f));
  power = fma(rest, power, broadcast(1.f));
  return vfloat(vuint(power) + (vuint(shifted) << 23));
}

}  // namespace
}  // namespace edge4d
