#include "loops_inner.hpp"

namespace edge4d {

extern const Loops loops_avx2;
const Loops loops_avx2 = {"avx2", project, blend, nearest, farthest, multiply_add, exponentials};

}  // namespace edge4d
