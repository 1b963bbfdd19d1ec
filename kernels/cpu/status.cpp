#include "status.hpp"

namespace edge4d {

namespace {
thread_local char last_error[512] = "";
}

int32_t fail(edge4d_status status, const char* message) noexcept {
  size_t i = 0;
  for (; message[i] && i + 1 < sizeof last_error; ++i) last_error[i] = message[i];
  last_error[i] = 0;
  return status;
}

}  // namespace edge4d

int32_t edge4d_abi_version(void) { return EDGE4D_ABI_VERSION; }

const char* edge4d_last_error(void) { return edge4d::last_error; }
