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

// Merges what each thread holds, when it is a bitonic sequence.
template <class Key, int ITEMS>
__device__ inline void merge_in_thread(Key (&keys)[ITEMS]) {
#pragma unroll
  for (int stride = ITEMS / 2; stride > 0; stride /= 2)
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
      if (i & stride) continue;
      const Key lesser = min(keys[i], keys[i | stride]), greater = max(keys[i], keys[i | stride]);
      keys[i] = lesser, keys[i | stride] = greater;
    }
}

// Keeps the lesser or the greater ones of a thread's keys and another's, which lie in the same or the mirrored order.
template <class Key, int ITEMS>
__device__ inline void keep(Key (&keys)[ITEMS], const Key (&others)[ITEMS], bool mirrored, bool lesser) {
#pragma unroll
  for (int i = 0; i < ITEMS; ++i) {
    const Key other = mirrored ? others[ITEMS - 1 - i] : others[i];
    keys[i] = lesser ? min(keys[i], other) : max(keys[i], other);
  }
}

template <class Key, int ITEMS>
__device__ inline void exchange_in_warp(Key (&keys)[ITEMS], int mask, bool mirrored, bool lesser) {
  Key others[ITEMS];
#pragma unroll
  for (int i = 0; i < ITEMS; ++i) others[i] = __shfl_xor_sync(~0u, keys[i], mask);
  keep(keys, others, mirrored, lesser);
}

// Merges at strides of `stride`, ..., 2, 1 threads, and then within them. Unrolled where `stride` is a constant.
template <class Key, int ITEMS>
__device__ inline void merge_in_warp(Key (&keys)[ITEMS], int stride) {
#pragma unroll
  for (; stride > 0; stride /= 2) exchange_in_warp(keys, stride, false, !(threadIdx.x & stride));
  merge_in_thread(keys);
}

// Sorts THREADS * ITEMS keys; thread t then holds numbers t ITEMS ... t ITEMS + ITEMS - 1 of the order. Threads from
// `filled` on, a multiple of 32, hold nothing but the greatest key there is: it stays where it is, and they only wait.
// `shared` has room for all keys.
template <int THREADS, class Key, int ITEMS>
__device__ inline void sort_in_block(Key (&keys)[ITEMS], int filled, Key* shared) {
  const int thread = int(threadIdx.x);
  const bool busy = __any_sync(~0u, thread < filled);
  const auto exchange = [&](int mask, bool mirrored) {
    __syncthreads();
#pragma unroll
    for (int i = 0; i < ITEMS; ++i)
      if (busy) shared[i * THREADS + thread] = keys[i];
    __syncthreads();
    const int partner = thread ^ mask;
    if (!busy || partner >= filled) return;
    Key others[ITEMS];
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) others[i] = shared[i * THREADS + partner];
    keep(keys, others, mirrored, thread < partner);
  };
  if (busy) {
    sort_in_thread<2>(keys);
#pragma unroll 1  // its code would be long, and most of the time is spent below
    for (int size = 2; size <= 32; size *= 2) {  // as above, with runs of `size` threads
      exchange_in_warp(keys, size - 1, true, !(thread & size / 2));
      merge_in_warp(keys, size / 4);
    }
  }
  for (int size = 64; size / 2 < filled; size *= 2) {
    exchange(size - 1, true);
    for (int stride = size / 4; stride >= 32; stride /= 2) exchange(stride, false);
    if (busy) merge_in_warp(keys, 16);
  }
}

}  // namespace edge4d
