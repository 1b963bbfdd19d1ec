#include "loops_inner.hpp"

namespace edge4d {

extern const Loops loops_baseline;
const Loops loops_baseline = {"baseline", project, blend, nearest, farthest, multiply_add, exponentials};

}  // namespace edge4d
