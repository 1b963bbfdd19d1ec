// SubmanifoldConvolution on the CPU: for each of the 27 offsets a matrix product over the voxels that have a neighbour
// there. A thread takes a block of voxels, gathers their neighbours' features densely, and adds to the block's sums.
// The weights are laid out in panels once per block: that costs a copy for some hundred multiplications.
#include <vector>

#include "checks.hpp"
#include "edge4d.h"
#include "matrices.hpp"
#include "parallel.hpp"
#include "status.hpp"
#include "stored.hpp"

namespace edge4d {
namespace {

constexpr size_t VOXELS = 256;  // of a block; their sums stay in the second-level cache for some hundred outputs
constexpr size_t DEPTH = 128;   // inputs at a time: a panel of weights takes 16 KB, and stays in the first-level cache

struct Sizes {
  size_t voxels, inputs, outputs, padded;
  explicit Sizes(const edge4d_submanifold_convolution& call)
      : voxels(size_t(call.voxel_count)),
        inputs(size_t(call.inputs)),
        outputs(size_t(call.outputs)),
        padded(round_up(outputs, PANEL)) {}
};

// A thread's memory.
struct Block {
  std::vector<float> sums;      // [VOXELS, padded]
  std::vector<float> gathered;  // [rows, depth]
  std::vector<float> panel;     // [depth, PANEL]
  size_t count = 0;             // voxels of the block that have a neighbour at the offset
  size_t rows[VOXELS] = {};     // which these are
  size_t from[VOXELS] = {};     // and their neighbours

  explicit Block(const Sizes& sizes)
      : sums(VOXELS * sizes.padded), gathered(VOXELS * DEPTH), panel(DEPTH * PANEL) {}
};

void find_rows(const edge4d_submanifold_convolution& call, size_t first, size_t last, size_t offset, Block& block) {
  block.count = 0;
  for (size_t i = first; i < last; ++i) {
    const int32_t neighbour = call.neighbours[27 * i + offset];
    if (neighbour < 0 || neighbour >= call.voxel_count) continue;
    block.rows[block.count] = i - first;
    block.from[block.count++] = size_t(neighbour);
  }
}

// weight[offset, from .. from + depth, at .. at + PANEL), zeros beyond the last output
void fill_panel(const edge4d_submanifold_convolution& call, const Sizes& sizes, size_t offset, size_t from,
                size_t depth, size_t at, float* panel) {
  const size_t width = std::min<size_t>(PANEL, sizes.outputs - at);
  std::fill_n(panel, depth * PANEL, 0.f);
  for (size_t c = 0; c < depth; ++c)
    read_floats(call.weight, call.dtype, (offset * sizes.inputs + from + c) * sizes.outputs + at, width,
                panel + c * PANEL);
}

void add_products(const edge4d_submanifold_convolution& call, const Sizes& sizes, size_t offset, size_t from,
                  Block& block) {
  const size_t depth = std::min(DEPTH, sizes.inputs - from);
  for (size_t i = 0; i < block.count; ++i)
    read_floats(call.features, call.dtype, block.from[i] * sizes.inputs + from, depth,
                block.gathered.data() + i * depth);
  for (size_t at = 0; at < sizes.outputs; at += PANEL) {
    fill_panel(call, sizes, offset, from, depth, at, block.panel.data());
    multiply_add(block.gathered.data(), block.count, depth, block.panel.data(),
                 [&](size_t i) { return block.sums.data() + block.rows[i] * sizes.padded + at; });
  }
}

void convolve(const edge4d_submanifold_convolution& call, const Sizes& sizes, size_t first, Block& block) {
  const size_t last = std::min(sizes.voxels, first + VOXELS);
  for (size_t i = 0; i < last - first; ++i)
    read_floats(call.bias, call.dtype, 0, sizes.outputs, block.sums.data() + i * sizes.padded);
  for (size_t offset = 0; offset < 27; ++offset) {
    find_rows(call, first, last, offset, block);
    if (block.count == 0) continue;
    for (size_t from = 0; from < sizes.inputs; from += DEPTH) add_products(call, sizes, offset, from, block);
  }
  for (size_t i = first; i < last; ++i)
    write_floats(call.convolved, call.dtype, i * sizes.outputs, sizes.outputs,
                 block.sums.data() + (i - first) * sizes.padded);
}

}  // namespace
}  // namespace edge4d

int32_t edge4d_cpu_submanifold_convolution(const edge4d_submanifold_convolution* call, int32_t threads) {
  using namespace edge4d;
  return status_of([&] {
    if (!call) refuse("SubmanifoldConvolution: no parameters.");
    check_attributes(*call);
    if (call->voxel_count == 0) return;
    check_tensors(*call);
    const Sizes sizes(*call);
    const size_t items = (sizes.voxels + VOXELS - 1) / VOXELS;
    const int workers = thread_count(threads, items);
    std::vector<Block> blocks(size_t(workers), Block{sizes});
    parallel_for(workers, items, [&](size_t item, int worker) {
      convolve(*call, sizes, item * VOXELS, blocks[size_t(worker)]);
    });
  });
}
