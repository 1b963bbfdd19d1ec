// Status codes out of C++ exceptions, and the text behind edge4d_last_error.
#pragma once

#include <cstdint>
#include <new>
#include <stdexcept>
#include <string>

#include "edge4d.h"

namespace edge4d {

struct Failure {
  edge4d_status status;
  std::string message;
};

[[noreturn]] inline void refuse(const std::string& message) { throw Failure{EDGE4D_INVALID, message}; }

int32_t fail(edge4d_status status, const char* message) noexcept;  // remembers the message for this thread

// Runs an operator and turns what it throws into a status: no exception may cross the C interface.
template <class Operator>
int32_t status_of(const Operator& run) noexcept {
  try {
    run();
    return EDGE4D_OK;
  } catch (const Failure& failure) {
    return fail(failure.status, failure.message.c_str());
  } catch (const std::bad_alloc&) {
    return fail(EDGE4D_OUT_OF_MEMORY, "Not enough memory.");
  } catch (const std::length_error&) {
    return fail(EDGE4D_OUT_OF_MEMORY, "Not enough memory.");
  }
}

}  // namespace edge4d
