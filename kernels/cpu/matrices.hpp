// Matrix products in panels of PANEL columns, whose values the caller has laid out one row after the other.
#pragma once

#include "loops.hpp"

namespace edge4d {

constexpr size_t round_up(size_t value, size_t step) { return (value + step - 1) / step * step; }

// out(i)[0 .. PANEL) += row i of `a` times `panel` [depth, PANEL]. Every row's sums have their own order: they do not
// depend on how many rows there are.
template <class Out>
void multiply_add(const float* a, size_t rows, size_t depth, const float* panel, const Out& out) {
  float nowhere[PANEL] = {};
  for (size_t first = 0; first < rows; first += MATRIX_ROWS) {
    const float* from[MATRIX_ROWS];
    float* to[MATRIX_ROWS];
    for (size_t i = 0; i < MATRIX_ROWS; ++i) {
      const bool exists = first + i < rows;
      from[i] = a + (exists ? first + i : first) * depth;
      to[i] = exists ? out(first + i) : nowhere;
    }
    loops().multiply_add(from, panel, depth, to);
  }
}

}  // namespace edge4d
