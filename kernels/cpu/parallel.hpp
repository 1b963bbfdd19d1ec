// Threads for the length of one call: nothing outlives it, so forks, embedding and concurrent calls need no care.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <system_error>
#include <thread>
#include <vector>

namespace edge4d {

// Number of threads for `asked` (0: every core that the process may use), at most one per item.
inline int thread_count(int asked, size_t items) {
  size_t cores = asked > 0 ? size_t(asked) : std::max(1u, std::thread::hardware_concurrency());
  return int(std::max<size_t>(1, std::min(cores, items)));
}

// Calls work(item, worker) for every item in [0, items); worker in [0, threads) tells whose scratch memory to use.
// Items are handed out one by one, so uneven ones balance. `work` must not throw. When the system refuses a thread, the
// others do its share.
template <class Work>
void parallel_for(int threads, size_t items, const Work& work) {
  std::atomic<size_t> next{0};
  const auto run = [&](int worker) {
    for (size_t item; (item = next.fetch_add(1, std::memory_order_relaxed)) < items;) work(item, worker);
  };
  std::vector<std::thread> others;
  others.reserve(size_t(threads - 1));
  try {
    for (int worker = 1; worker < threads; ++worker) others.emplace_back(run, worker);
  } catch (const std::system_error&) {
  }
  run(0);
  for (std::thread& other : others) other.join();
}

}  // namespace edge4d
