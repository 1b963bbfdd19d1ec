// What launchers of CUDA operators share on the host: their checks, and how they lay out their memory.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <string>

#include "status.hpp"

namespace edge4d {

inline void check_cuda(cudaError_t error) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // or the next call would find this one's error
  throw Failure{EDGE4D_CUDA_ERROR, cudaGetErrorString(error)};
}

inline void check_workspace(const char* name, const void* workspace, uint64_t bytes, uint64_t needed) {
  if (bytes < needed)
    refuse(std::string(name) + ": the workspace has " + std::to_string(bytes) + " bytes; it needs " +
           std::to_string(needed) + ".");
  if (needed && (!workspace || reinterpret_cast<uintptr_t>(workspace) % 256))
    refuse(std::string(name) + ": the workspace is null or not aligned to 256 bytes.");
}

// Arrays one after the other in a call's workspace, each aligned to 256 bytes. Over no memory it only counts.
class Workspace {
 public:
  explicit Workspace(void* memory) : begin_(reinterpret_cast<uintptr_t>(memory)), end_(begin_) {}

  template <class T>
  T* take(size_t count) {
    T* const array = reinterpret_cast<T*>(end_);
    end_ += (count * sizeof(T) + 255) / 256 * 256;
    return array;
  }
  uint64_t bytes() const { return end_ - begin_; }

 private:
  uintptr_t begin_, end_;
};

}  // namespace edge4d
