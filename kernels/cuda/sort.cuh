// Sorting numbers that a block of threads holds in registers: a bitonic network. Neighbours in a thread are compared
// where they are, neighbours in a warp through shuffles, and only the longest strides go through shared memory. No
// address depends on the numbers, so there are no bank conflicts, and every comparison overlaps with others.
#pragma once

#include <cstdint>

namespace edge4d {

// Sorts each thread's own keys upwards. Two sorted runs of SIZE / 2 become one: first each number is compared with its
// mirror image, so that both runs may be sorted upwards, then at strides of SIZE / 4, SIZE / 8, ..., 1.
template <int SIZE, class Key, int ITEMS>
__device__ inline void sort_in_thread(Key (&keys)[ITEMS]) {
  const auto compare = [&](int i, int j) {
    const Key lesser = min(keys[i], keys[j]), greater = max(keys[i], keys[j]);
    keys[i] = lesser, keys[j] = greater;
  };
  if constexpr (SIZE <= ITEMS) {
#pragma unroll
    for (int i = 0; i < ITEMS; ++i)
      if (i < (i ^ (SIZE - 1))) compare(i, i ^ (SIZE - 1));
#pragma unroll
    for (int stride = SIZE / 4; stride > 0; stride /= 2)
#pragma unroll
      for (int i = 0; i < ITEMS; ++i)
        if (!(i & stride)) compare(i, i | stride);
    sort_in_thread<2 * SIZE>(keys);
  }
}

// Sorts THREADS * ITEMS keys; thread t then holds numbers t ITEMS ... t ITEMS + ITEMS - 1 of the order. `shared` has room
// for all of them.
template <int THREADS, class Key, int ITEMS>
__device__ inline void sort_in_block(Key (&keys)[ITEMS], Key* shared) {
  const int thread = int(threadIdx.x);
  // Keeps the lesser or the greater one of keys[i] and what the thread at `mask` holds in the same or the mirrored place.
  const auto exchange = [&](int mask, bool mirrored, bool lower) {
    Key others[ITEMS];
    if (mask < 32) {
#pragma unroll
      for (int i = 0; i < ITEMS; ++i) others[i] = __shfl_xor_sync(~0u, keys[i], mask);
    } else {
      __syncthreads();
#pragma unroll
      for (int i = 0; i < ITEMS; ++i) shared[i * THREADS + thread] = keys[i];
      __syncthreads();
#pragma unroll
      for (int i = 0; i < ITEMS; ++i) others[i] = shared[i * THREADS + (thread ^ mask)];
    }
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
      const Key other = mirrored ? others[ITEMS - 1 - i] : others[i];
      keys[i] = lower ? min(keys[i], other) : max(keys[i], other);
    }
  };
  sort_in_thread<2>(keys);
  for (int size = 2; size <= THREADS; size *= 2) {  // as above, with runs of `size` threads
    exchange(size - 1, true, !(thread & size / 2));
    for (int stride = size / 4; stride > 0; stride /= 2) exchange(stride, false, !(thread & stride));
#pragma unroll
    for (int stride = ITEMS / 2; stride > 0; stride /= 2)
#pragma unroll
      for (int i = 0; i < ITEMS; ++i) {
        if (i & stride) continue;
        const Key lesser = min(keys[i], keys[i | stride]), greater = max(keys[i], keys[i | stride]);
        keys[i] = lesser, keys[i | stride] = greater;
      }
  }
}

}  // namespace edge4d
