#include "loops_inner.hpp"

namespace edge4d {

extern const Loops loops_avx512;
const Loops loops_avx512 = {"avx512", project, blend, nearest, farthest, multiply_add, exponentials};

}  // namespace edge4d
