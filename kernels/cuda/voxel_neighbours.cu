// VoxelNeighbours on the GPU: a grid of indices with a border of empty cells, then a thread for each voxel and offset
// looks into it. Of several voxels in a cell the last counts, whichever thread comes first.
#include "checks.hpp"
#include "edge4d.h"
#include "launch.cuh"

namespace edge4d {
namespace {

constexpr int THREADS = 256;

__device__ bool inside(int3 cell, int resolution) {
  return unsigned(cell.x) < unsigned(resolution) && unsigned(cell.y) < unsigned(resolution) &&
         unsigned(cell.z) < unsigned(resolution);
}

// Behind the border.
__device__ size_t place_of(int3 cell, int resolution) {
  const size_t side = size_t(resolution) + 2;
  return (size_t(cell.x + 1) * side + size_t(cell.y + 1)) * side + size_t(cell.z + 1);
}

__device__ int3 cell_at(const int32_t* coords, size_t voxel) {
  return {coords[3 * voxel], coords[3 * voxel + 1], coords[3 * voxel + 2]};
}

__global__ void enter(const __grid_constant__ edge4d_voxel_neighbours call, int32_t* grid) {
  const unsigned voxel = blockIdx.x * THREADS + threadIdx.x;
  if (voxel >= unsigned(call.voxel_count)) return;
  const int3 cell = cell_at(call.coords, voxel);
  if (inside(cell, call.resolution)) atomicMax(grid + place_of(cell, call.resolution), int32_t(voxel));
}

__global__ void look_around(const __grid_constant__ edge4d_voxel_neighbours call, const int32_t* grid) {
  const size_t at = size_t(blockIdx.x) * THREADS + threadIdx.x, voxel = at / 27;
  if (voxel >= size_t(call.voxel_count)) return;
  const int offset = int(at % 27);
  const int3 cell = cell_at(call.coords, voxel);
  const int3 near = {cell.x + offset / 9 - 1, cell.y + offset / 3 % 3 - 1, cell.z + offset % 3 - 1};
  call.neighbours[at] = inside(cell, call.resolution) ? grid[place_of(near, call.resolution)] : -1;
}

// ---- host -----------------------------------------------------------------------------------------------------------

void check_sizes(const edge4d_voxel_neighbours* call) {
  Require{"VoxelNeighbours"}(call, "the parameter struct is of another version");
  check_attributes(*call);
}

int32_t* grid_in(Workspace& workspace, int resolution, size_t& cells) {
  const size_t side = size_t(resolution) + 2;
  cells = side * side * side;
  return workspace.take<int32_t>(cells);
}

void run(const edge4d_voxel_neighbours* call, void* memory, uint64_t bytes, cudaStream_t stream) {
  check_sizes(call);
  if (call->voxel_count == 0) return;
  check_tensors(*call);
  Workspace workspace(memory);
  size_t cells = 0;
  int32_t* const grid = grid_in(workspace, call->resolution, cells);
  check_workspace("VoxelNeighbours", memory, bytes, workspace.bytes());
  check_cuda(cudaMemsetAsync(grid, 0xff, cells * sizeof *grid, stream));  // -1
  const size_t count = size_t(call->voxel_count);
  enter<<<unsigned((count - 1) / THREADS + 1), THREADS, 0, stream>>>(*call, grid);
  look_around<<<unsigned((27 * count - 1) / THREADS + 1), THREADS, 0, stream>>>(*call, grid);
  check_cuda(cudaGetLastError());
}

}  // namespace
}  // namespace edge4d

uint64_t edge4d_cuda_voxel_neighbours_workspace(const edge4d_voxel_neighbours* call) {
  using namespace edge4d;
  uint64_t bytes = 0;
  status_of([&] {
    check_sizes(call);
    Workspace workspace(nullptr);
    size_t cells = 0;
    grid_in(workspace, call->resolution, cells);
    bytes = workspace.bytes();
  });
  return bytes;
}

int32_t edge4d_cuda_voxel_neighbours(const edge4d_voxel_neighbours* call, void* workspace, uint64_t workspace_bytes,
                                     void* stream) {
  using namespace edge4d;
  return status_of([&] { run(call, workspace, workspace_bytes, static_cast<cudaStream_t>(stream)); });
}
