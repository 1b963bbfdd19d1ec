// IEEE half precision without compiler support for it, in integer arithmetic that compilers turn into SIMD.
#pragma once

#include <cstdint>
#include <cstring>

namespace edge4d {

static inline float float_from_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

static inline uint32_t bits_from_float(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

static inline float float_from_half(uint16_t half) {
  // Exponent and fraction land in float's fields with a bias that is 112 short; the product mends it, also subnormals.
  const uint32_t magnitude = uint32_t(half & 0x7fff) << 13;
  const float scaled = float_from_bits(magnitude) * 0x1p112f;
  const uint32_t infinite = magnitude >= 0x0f800000u ? 0x7f800000u : 0;  // infinity or NaN: all exponent bits
  return float_from_bits(bits_from_float(scaled) | infinite | uint32_t(half & 0x8000) << 16);
}

// Rounds to nearest, ties to even; too large becomes infinity.
static inline uint16_t half_from_float(float value) {
  const uint32_t bits = bits_from_float(value), magnitude = bits & 0x7fffffffu;
  const uint32_t sign = bits >> 16 & 0x8000;
  // Below 2^-14 the sum with 0.5 rounds at half's subnormal step and leaves the fraction in the low bits.
  const uint32_t subnormal = bits_from_float(float_from_bits(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t normal = (magnitude - 0x38000000u + 0xfff + (magnitude >> 13 & 1)) >> 13;
  const uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
  const uint32_t special = magnitude > 0x7f800000u ? 0x7e00 : 0x7c00;
  return uint16_t(sign | (magnitude >= 0x477ff000u ? special : finite));
}

}  // namespace edge4d
