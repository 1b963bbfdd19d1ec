// VoxelNeighbours on the CPU: a grid of indices with a border of empty cells, and 27 looks into it for each voxel.
#include <vector>

#include "checks.hpp"
#include "edge4d.h"
#include "parallel.hpp"
#include "status.hpp"

namespace edge4d {
namespace {

constexpr size_t BATCH = 4096;  // voxels that a thread takes at a time

struct Grid {
  int32_t resolution;
  size_t side;
  std::vector<int32_t> voxels;  // -1: empty

  explicit Grid(int32_t cells)
      : resolution(cells), side(size_t(cells) + 2), voxels(side * side * side, -1) {}
  bool holds(const int32_t* xyz) const {
    bool inside = true;
    for (int axis = 0; axis < 3; ++axis) inside &= xyz[axis] >= 0 && xyz[axis] < resolution;
    return inside;
  }
  // Of the cell at x - 1, y - 1, z - 1: the first that is near.
  size_t corner(const int32_t* xyz) const {
    return (size_t(xyz[0]) * side + size_t(xyz[1])) * side + size_t(xyz[2]);
  }
};

void look_around(const Grid& grid, const int32_t* xyz, int32_t* near) {
  const bool exists = grid.holds(xyz);
  const int32_t* const corner = exists ? grid.voxels.data() + grid.corner(xyz) : nullptr;
  for (size_t i = 0; i < 27; ++i)
    near[i] = exists ? corner[(i / 9 * grid.side + i / 3 % 3) * grid.side + i % 3] : -1;
}

}  // namespace
}  // namespace edge4d

int32_t edge4d_cpu_voxel_neighbours(const edge4d_voxel_neighbours* call, int32_t threads) {
  using namespace edge4d;
  return status_of([&] {
    if (!call) refuse("VoxelNeighbours: no parameters.");
    check_attributes(*call);
    if (call->voxel_count == 0) return;
    check_tensors(*call);
    const size_t count = size_t(call->voxel_count);
    Grid grid(call->resolution);
    const size_t itself = (grid.side + 1) * grid.side + 1;  // from the corner
    for (size_t i = 0; i < count; ++i)
      if (grid.holds(call->coords + 3 * i)) grid.voxels[grid.corner(call->coords + 3 * i) + itself] = int32_t(i);
    const size_t batches = (count + BATCH - 1) / BATCH;
    parallel_for(thread_count(threads, batches), batches, [&](size_t batch, int) {
      for (size_t i = batch * BATCH; i < std::min(count, (batch + 1) * BATCH); ++i)
        look_around(grid, call->coords + 3 * i, call->neighbours + 27 * i);
    });
  });
}
