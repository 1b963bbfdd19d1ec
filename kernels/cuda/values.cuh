// Tensors of float32 or float16, read as floats, and what is written of a float.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "edge4d.h"

namespace edge4d {

__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(__half value) { return __half2float(value); }

template <class T, int COUNT>
__device__ void load_values(const T* from, float (&to)[COUNT]) {
  for (int i = 0; i < COUNT; ++i) to[i] = to_float(from[i]);
}

// Four numbers that lie together in one access.
__device__ inline void load_values(const float* from, float (&to)[4]) {
  const float4 found = *reinterpret_cast<const float4*>(from);
  to[0] = found.x, to[1] = found.y, to[2] = found.z, to[3] = found.w;
}
__device__ inline void load_values(const __half* from, float (&to)[4]) {
  const uint2 found = *reinterpret_cast<const uint2*>(from);
  const float2 first = __half22float2(reinterpret_cast<const __half2&>(found.x));
  const float2 second = __half22float2(reinterpret_cast<const __half2&>(found.y));
  to[0] = first.x, to[1] = first.y, to[2] = second.x, to[3] = second.y;
}

__device__ inline float stored_value(const void* from, int64_t at, int dtype) {
  return dtype == EDGE4D_FLOAT16 ? to_float(static_cast<const __half*>(from)[at]) : static_cast<const float*>(from)[at];
}

// uint8 holds 0..1 as 0..255, rounded to nearest.
__device__ inline void put(void* out, int64_t at, float value, int dtype) {
  switch (dtype) {
    case EDGE4D_FLOAT32:
      static_cast<float*>(out)[at] = value;
      break;
    case EDGE4D_FLOAT16:
      static_cast<__half*>(out)[at] = __float2half_rn(value);
      break;
    default:
      static_cast<uint8_t*>(out)[at] = uint8_t(fminf(fmaxf(value, 0.f), 1.f) * 255.f + 0.5f);
  }
}

}  // namespace edge4d
