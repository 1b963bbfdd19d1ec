// What every launcher of a CUDA operator checks on the host.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <string>

#include "status.hpp"

namespace edge4d {

inline void check_cuda(cudaError_t error) {
  if (error != cudaSuccess) throw Failure{EDGE4D_CUDA_ERROR, cudaGetErrorString(error)};
}

inline void check_workspace(const char* name, const void* workspace, uint64_t bytes, uint64_t needed) {
  if (bytes < needed)
    refuse(std::string(name) + ": the workspace has " + std::to_string(bytes) + " bytes; it needs " +
           std::to_string(needed) + ".");
  if (needed && (!workspace || reinterpret_cast<uintptr_t>(workspace) % 256))
    refuse(std::string(name) + ": the workspace is null or not aligned to 256 bytes.");
}

}  // namespace edge4d
