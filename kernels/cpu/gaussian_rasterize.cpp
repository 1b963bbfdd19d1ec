// GaussianRasterize on the CPU: project → bin into tiles → sort each tile by depth → blend, one image after the other.
//
// Project: every Gaussian becomes a Splat (loops.hpp), in parallel over chunks of Gaussians. What the camera does not
//   see leaves no trace: a chunk's splats lie densely, in the Gaussians' order. Each chunk counts its splats per tile.
// Bin: from the counts, every (tile, chunk) knows where its entries go; the chunks write in parallel, without locks.
//   An entry is depth << 32 | place: as a number it sorts by depth, then by index.
// Blend: threads take tiles one by one, sort the tile's entries and blend them, SIMD across the pixels of a row.
//
// No result depends on the number of threads. Memory: 64 bytes per splat, 8 per entry, and never more than
// GROUP_ENTRIES entries at once (or one tile's): beyond, the tiles are done group by group.
//
// Measured on the scene of tests/benchmarks/rasterize_cpu.py (229,376 Gaussians, 448x256) with one thread of an AMD
// EPYC with AVX-512: milliseconds per frame before and after each change. The whole is now 41, of which blending takes
// 24, projection 7, binning 6, sorting 2.
//   won   a whole row of a tile in one vector, without a loop                   48.1 -> 43.5
//   won   rows that are done looked up every 16 splats, not counted per pixel   54.0 -> 48.1
//   won   no branch around vectors that no splat's alpha reaches                59.0 -> 56.5
//   won   planes aligned to cache lines, and not a power of two apart           56.5 -> 54.5
//   won   integer floors: floorf is a call where SSE4.1 is not given            43.3 -> 40.8
//   lost  vectors that start at the splat, not at a multiple of their length: 2 % on AVX2, nothing elsewhere
// Other instruction sets, one thread: AVX2 46, baseline SSE2 73.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "checks.hpp"
#include "edge4d.h"
#include "half.hpp"
#include "loops.hpp"
#include "parallel.hpp"
#include "status.hpp"

namespace edge4d {
namespace {

constexpr size_t GROUP_ENTRIES = size_t(1) << 24;
constexpr size_t CHUNK_MIN = 4096;  // Gaussians; a smaller share is not worth a thread

struct Tiles {
  int columns, rows;
  Tiles(int width, int height) : columns((width + TILE - 1) / TILE), rows((height + TILE - 1) / TILE) {}
  size_t count() const { return size_t(columns) * size_t(rows); }
};

// Calls visit(first, last), inclusive, for every run of tiles side by side that meet the splat's ellipse alpha = 1/255.
// Per row of tiles the ellipse reaches farthest right at its rightmost point, or at the row's edge nearest to that.
template <class Visit>
void for_each_run(const Splat& splat, const Tiles& tiles, const Visit& visit) {
  constexpr float SLACK = 0.01f;  // pixels, for rounding
  const float mean_x = splat.cell_x + splat.offset_x - 0.5f, mean_y = splat.cell_y + splat.offset_y - 0.5f;
  const float reach_x = splat.extent_x + SLACK, reach_y = splat.extent_y + SLACK;
  // A tile holds pixel centres TILE t .. TILE t + TILE - 1, counted from the first one.
  const auto first_tile = [](float from, int count) {
    return clamped_floor((from - (TILE - 1)) * (1.f / TILE), -1, count - 1) + 1;
  };
  const auto last_tile = [](float to, int count) { return clamped_floor(to * (1.f / TILE), -1, count - 1); };
  const int row_first = first_tile(mean_y - reach_y, tiles.rows), row_last = last_tile(mean_y + reach_y, tiles.rows);
  const int column_first = first_tile(mean_x - reach_x, tiles.columns);
  const int column_last = last_tile(mean_x + reach_x, tiles.columns);
  const bool exact = row_first < row_last && column_first < column_last;
  for (int row = row_first; row <= row_last; ++row) {
    int first = column_first, last = column_last;
    if (exact) {
      const float top = float(row * TILE) - mean_y, bottom = top + (TILE - 1);
      const auto edge = [&](float tilt, float sign) {  // the ellipse's border in this row, farthest in x
        const float dy = std::min(std::max(tilt, top), bottom), v = splat.steep_y * dy;
        const float left = splat.log_opacity + LOG2_255 - v * v;
        return mean_x + splat.slope * dy + sign * (std::sqrt(std::max(left, 0.f)) / splat.steep_x + SLACK);
      };
      first = std::max(first, first_tile(edge(-splat.tilt_y, -1), tiles.columns));
      last = std::min(last, last_tile(edge(splat.tilt_y, 1), tiles.columns));
    }
    const size_t start = size_t(row) * size_t(tiles.columns);
    if (first <= last) visit(start + size_t(first), start + size_t(last));
  }
}

View view_of(const edge4d_gaussian_rasterize& call, size_t batch, size_t image) {
  View view = {};
  view.call = &call;
  view.batch = batch;
  const float* matrix = call.viewmats + image * 16;
  const float* K = call.Ks + image * 9;
  for (int i = 0; i < 3; ++i) {
    for (int j = 0; j < 3; ++j) {
      view.rotation[i][j] = matrix[4 * i + j];
      view.centre[j] -= double(matrix[4 * i + j]) * double(matrix[4 * i + 3]);
    }
    view.translation[i] = matrix[4 * i + 3];
  }
  const int size[2] = {call.width, call.height};
  for (int axis = 0; axis < 2; ++axis) {
    const double focal = K[4 * axis], centre = K[3 * axis + 2], margin = 0.3 * 0.5 * size[axis] / focal;
    view.focal[axis] = focal;
    view.principal[axis] = centre;
    view.slope_min[axis] = -(margin + centre / focal);
    view.slope_max[axis] = (size[axis] - centre) / focal + margin;
  }
  return view;
}

// Sorts by the high 32 bits; entries come in order of the low ones, which settle ties.
void sort_entries(uint64_t* entries, uint64_t* spare, size_t count) {
  if (count < 128) {
    std::sort(entries, entries + count);
    return;
  }
  uint64_t* const result = entries;
  uint32_t histograms[4][256] = {};
  for (size_t i = 0; i < count; ++i)
    for (int digit = 0; digit < 4; ++digit) ++histograms[digit][entries[i] >> (32 + 8 * digit) & 255];
  for (int digit = 0; digit < 4; ++digit) {
    uint32_t* places = histograms[digit];
    const int shift = 32 + 8 * digit;
    if (places[entries[0] >> shift & 255] == count) continue;  // all alike in this digit
    uint32_t running = 0;
    for (int value = 0; value < 256; ++value) {
      const uint32_t here = places[value];
      places[value] = running;
      running += here;
    }
    for (size_t i = 0; i < count; ++i) spare[places[entries[i] >> shift & 255]++] = entries[i];
    std::swap(entries, spare);
  }
  if (entries != result) memcpy(result, entries, count * sizeof *entries);
}

// ---- what leaves a tile ---------------------------------------------------------------------------------------------

void put(void* out, size_t at, float value, int dtype) {
  switch (dtype) {
    case EDGE4D_FLOAT32:
      static_cast<float*>(out)[at] = value;
      break;
    case EDGE4D_FLOAT16:
      static_cast<uint16_t*>(out)[at] = half_from_float(value);
      break;
    default:
      static_cast<uint8_t*>(out)[at] = uint8_t(std::min(std::max(value, 0.f), 1.f) * 255.f + 0.5f);
  }
}

// Writes a tile's pixels; `image` counts images before this one.
void write_tile(const edge4d_gaussian_rasterize& call, size_t image, int x, int y, const Planes& planes) {
  const int width = std::min(TILE, call.width - x), height = std::min(TILE, call.height - y);
  const int plane_dtype = call.out_dtype == EDGE4D_UINT8 ? EDGE4D_FLOAT32 : call.out_dtype;
  const size_t channels = size_t(call.channels);
  for (int row = 0; row < height; ++row) {
    const size_t at = (image * size_t(call.height) + size_t(y + row)) * size_t(call.width) + size_t(x);
    for (int column = 0; column < width; ++column) {
      const int pixel = row * TILE + column;
      const float left = std::fabs(planes.transmittance[pixel]), alpha = 1 - left;
      const size_t out = at + size_t(column);
      if (call.outputs & EDGE4D_ALPHA) put(call.alpha, out, alpha, plane_dtype);
      if (call.outputs & EDGE4D_DEPTH) put(call.depth, out, planes.depth[pixel] / std::max(alpha, 1e-10f), plane_dtype);
      if (!(call.outputs & EDGE4D_IMAGE)) continue;
      for (size_t c = 0; c < channels; ++c) {
        const float value = planes.color[c * PLANE + size_t(pixel)] + left * call.background[c];
        put(call.image, out * channels + c, value, call.out_dtype);
      }
    }
  }
}

// ---- memory --------------------------------------------------------------------------------------------------------

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};
// Uninitialised, and aligned to cache lines: vectors and splats never straddle two.
template <class T>
using Array = std::unique_ptr<T[], Free>;

template <class T>
Array<T> make_array(size_t count) {
  constexpr size_t LINE = 64;
  if (count > (SIZE_MAX - LINE) / sizeof(T)) throw std::bad_alloc();
  const size_t bytes = std::max<size_t>(LINE, (count * sizeof(T) + LINE - 1) / LINE * LINE);
  void* memory = std::aligned_alloc(LINE, bytes);
  if (!memory) throw std::bad_alloc();
  return Array<T>(static_cast<T*>(memory));
}

// ---- one image ------------------------------------------------------------------------------------------------------

// Memory of a call, used again for each of its images. Arrays are left uninitialised until they are written.
struct Memory {
  size_t chunks, chunk_size, stride;
  Array<float> splats;               // [N][stride]; a chunk's begin at chunk * chunk_size
  std::vector<size_t> visible;       // [chunks]
  std::vector<int64_t> nonfinite;    // [chunks]
  std::vector<uint32_t> counts;      // [chunks][tiles + 1], later the places of entries
  std::vector<size_t> tile_begin;    // [tiles + 1]
  std::vector<Array<float>> planes;  // [threads][2 + C][PLANE]

  Memory(const edge4d_gaussian_rasterize& call, const Tiles& tiles, int threads) {
    const size_t gaussians = size_t(call.gaussians);
    chunks = size_t(thread_count(threads, std::max<size_t>(1, gaussians / CHUNK_MIN)));
    chunk_size = (gaussians + chunks - 1) / chunks;
    stride = splat_stride(call.channels);
    splats = make_array<float>(gaussians * stride);
    visible.resize(chunks);
    nonfinite.resize(chunks);
    counts.resize(chunks * (tiles.count() + 1));
    tile_begin.resize(tiles.count() + 1);
    for (int i = 0; i < threads; ++i) planes.push_back(make_array<float>(size_t(2 + call.channels) * PLANE));
  }

  uint32_t* chunk_counts(size_t chunk) { return counts.data() + chunk * tile_begin.size(); }
  const float* chunk_splats(size_t chunk) const { return splats.get() + chunk * chunk_size * stride; }
};

void project(const View& view, const Tiles& tiles, Memory& memory, int threads) {
  const size_t gaussians = size_t(view.call->gaussians);
  std::fill(memory.counts.begin(), memory.counts.end(), 0);
  parallel_for(thread_count(threads, memory.chunks), memory.chunks, [&](size_t chunk, int) {
    constexpr size_t STEP = 256;  // Gaussians; their splats are counted while they are in the cache
    const size_t first = std::min(gaussians, chunk * memory.chunk_size);
    const size_t last = std::min(gaussians, first + memory.chunk_size);
    float* splats = memory.splats.get() + first * memory.stride;
    uint32_t* counts = memory.chunk_counts(chunk);
    size_t visible = 0;
    memory.nonfinite[chunk] = 0;
    for (size_t i = first; i < last; i += STEP) {
      const size_t before = visible;
      visible +=
          loops().project(view, i, std::min(last, i + STEP), splats + before * memory.stride, memory.nonfinite[chunk]);
      for (size_t s = before; s < visible; ++s)
        for_each_run(splat_at(splats, s, memory.stride), tiles,
                     [&](size_t from, size_t to) { ++counts[from], --counts[to + 1]; });
    }
    // So far the counts' differences, wrapping around below 0: a screen-wide run costs no more than a short one.
    for (size_t tile = 1; tile <= tiles.count(); ++tile) counts[tile] += counts[tile - 1];
    memory.visible[chunk] = visible;
  });
}

// Turns the counts into each tile's range of entries; returns how many there are.
size_t count_pairs(const Tiles& tiles, Memory& memory) {
  size_t pairs = 0;
  for (size_t tile = 0; tile < tiles.count(); ++tile) {
    memory.tile_begin[tile] = pairs;
    for (size_t chunk = 0; chunk < memory.chunks; ++chunk) pairs += memory.chunk_counts(chunk)[tile];
  }
  return memory.tile_begin[tiles.count()] = pairs;
}

// Writes the entries of tiles [first, last), each tile's in order of index.
void bin(const Tiles& tiles, size_t first, size_t last, Memory& memory, uint64_t* entries, int threads) {
  for (size_t tile = first; tile < last; ++tile) {
    size_t place = memory.tile_begin[tile] - memory.tile_begin[first];
    for (size_t chunk = 0; chunk < memory.chunks; ++chunk) {
      uint32_t& count = memory.chunk_counts(chunk)[tile];
      const uint32_t here = count;
      count = uint32_t(place);
      place += here;
    }
  }
  parallel_for(thread_count(threads, memory.chunks), memory.chunks, [&](size_t chunk, int) {
    const float* splats = memory.chunk_splats(chunk);
    uint32_t* places = memory.chunk_counts(chunk);
    for (size_t s = 0; s < memory.visible[chunk]; ++s) {
      const Splat& splat = splat_at(splats, s, memory.stride);
      const uint64_t entry = uint64_t(bits_from_float(splat.depth)) << 32 | (chunk * memory.chunk_size + s);
      for_each_run(splat, tiles, [&](size_t from, size_t to) {
        for (size_t tile = std::max(from, first); tile <= to && tile < last; ++tile) entries[places[tile]++] = entry;
      });
    }
  });
}

void blend(const edge4d_gaussian_rasterize& call, size_t image, const Tiles& tiles, Memory& memory, int threads) {
  for (size_t first = 0, last; first < tiles.count(); first = last) {
    last = first + 1;
    size_t longest = memory.tile_begin[last] - memory.tile_begin[first];
    while (last < tiles.count() && memory.tile_begin[last + 1] - memory.tile_begin[first] <= GROUP_ENTRIES) {
      longest = std::max(longest, memory.tile_begin[last + 1] - memory.tile_begin[last]);
      ++last;
    }
    const size_t count = memory.tile_begin[last] - memory.tile_begin[first];
    const Array<uint64_t> entries = make_array<uint64_t>(count + size_t(threads) * longest);
    bin(tiles, first, last, memory, entries.get(), threads);
    parallel_for(threads, last - first, [&](size_t item, int worker) {
      const size_t tile = first + item;
      uint64_t* order = entries.get() + memory.tile_begin[tile] - memory.tile_begin[first];
      const size_t length = memory.tile_begin[tile + 1] - memory.tile_begin[tile];
      sort_entries(order, entries.get() + count + size_t(worker) * longest, length);
      float* planes_memory = memory.planes[size_t(worker)].get();
      const Planes planes = {planes_memory, planes_memory + PLANE, planes_memory + 2 * PLANE};
      const int x = int(tile % size_t(tiles.columns)) * TILE, y = int(tile / size_t(tiles.columns)) * TILE;
      loops().blend(memory.splats.get(), order, length, float(x), float(y), std::min(TILE, call.width - x),
                    std::min(TILE, call.height - y), call.channels, call.alpha_max, planes);
      write_tile(call, image, x, y, planes);
    });
  }
}

void rasterize_image(const edge4d_gaussian_rasterize& call, size_t batch, size_t image, const Tiles& tiles,
                     Memory& memory, int threads) {
  project(view_of(call, batch, image), tiles, memory, threads);
  size_t pairs = count_pairs(tiles, memory);
  if (pairs > INT32_MAX)
    throw Failure{EDGE4D_TOO_MANY_PAIRS, "An image needs " + std::to_string(pairs) + " Gaussian-tile pairs; at most " +
                                             std::to_string(INT32_MAX) + " can be counted."};
  const bool overflow = call.max_pairs > 0 && pairs > size_t(call.max_pairs);
  size_t visible = 0;
  int64_t nonfinite = 0;
  for (size_t chunk = 0; chunk < memory.chunks; ++chunk) {
    visible += memory.visible[chunk];
    nonfinite += memory.nonfinite[chunk];
  }
  int32_t* stats = call.stats + image * 5;
  stats[0] = int32_t(visible);
  stats[1] = int32_t(nonfinite);
  stats[2] = int32_t(pairs);
  stats[3] = call.max_pairs > 0 ? call.max_pairs : int32_t(pairs);
  stats[4] = overflow;
  if (overflow) {  // the frame is not to be shown: the background alone
    std::fill(memory.tile_begin.begin(), memory.tile_begin.end(), 0);
    std::fill(memory.visible.begin(), memory.visible.end(), 0);
    std::fill(memory.counts.begin(), memory.counts.end(), 0);
  }
  blend(call, image, tiles, memory, threads);
}

void check(const edge4d_gaussian_rasterize& call) {
  check_attributes(call);
  Require{"GaussianRasterize"}(call.max_pairs >= 0, "max_pairs must not be negative");
  if (call.batch > 0 && call.cameras > 0) check_tensors(call);
}

}  // namespace
}  // namespace edge4d

int32_t edge4d_cpu_gaussian_rasterize(const edge4d_gaussian_rasterize* call, int32_t threads) {
  using namespace edge4d;
  return status_of([&] {
    if (!call) refuse("GaussianRasterize: no parameters.");
    check(*call);
    const Tiles tiles(call->width, call->height);
    const int workers = thread_count(threads, tiles.count());
    Memory memory(*call, tiles, workers);
    for (size_t image = 0; image < size_t(call->batch) * size_t(call->cameras); ++image)
      rasterize_image(*call, image / size_t(call->cameras), image, tiles, memory, workers);
  });
}
