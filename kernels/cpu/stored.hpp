// Tensors of float32 or float16, read into floats and written from them.
#pragma once

#include <cstddef>
#include <cstring>

#include "edge4d.h"
#include "half.hpp"

namespace edge4d {

inline void read_floats(const void* tensor, int32_t dtype, size_t at, size_t count, float* to) {
  if (dtype == EDGE4D_FLOAT32) {
    memcpy(to, static_cast<const float*>(tensor) + at, count * sizeof(float));
  } else {
    const uint16_t* from = static_cast<const uint16_t*>(tensor) + at;
    for (size_t i = 0; i < count; ++i) to[i] = float_from_half(from[i]);
  }
}

inline void write_floats(void* tensor, int32_t dtype, size_t at, size_t count, const float* from) {
  if (dtype == EDGE4D_FLOAT32) {
    memcpy(static_cast<float*>(tensor) + at, from, count * sizeof(float));
  } else {
    uint16_t* to = static_cast<uint16_t*>(tensor) + at;
    for (size_t i = 0; i < count; ++i) to[i] = half_from_float(from[i]);
  }
}

inline size_t bytes_of(int32_t dtype) { return dtype == EDGE4D_FLOAT32 ? 4 : 2; }

}  // namespace edge4d
