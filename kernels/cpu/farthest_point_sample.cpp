// FarthestPointSample on the CPU. Each step depends on the one before: the points are split over threads once, and
// every step ends at a barrier where all threads read each other's farthest point and agree on the next.
#include <condition_variable>
#include <limits>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "checks.hpp"
#include "edge4d.h"
#include "loops.hpp"
#include "parallel.hpp"
#include "status.hpp"

namespace edge4d {
namespace {

constexpr size_t SHARE_MIN = 16384;  // points; less than this takes less time than a barrier

class Barrier {
 public:
  void set_members(int members) {
    const std::lock_guard<std::mutex> lock(mutex_);
    members_ = members;
  }
  void wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    const unsigned round = round_;
    if (++waiting_ == members_) {
      waiting_ = 0;
      ++round_;
      changed_.notify_all();
    } else {
      changed_.wait(lock, [&] { return round != round_; });
    }
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int members_ = std::numeric_limits<int>::max(), waiting_ = 0;
  unsigned round_ = 0;
};

struct Farthest {
  double distance;
  size_t index;
};

}  // namespace
}  // namespace edge4d

int32_t edge4d_cpu_farthest_point_sample(const edge4d_farthest_point_sample* call, int32_t threads) {
  using namespace edge4d;
  return status_of([&] {
    if (!call) refuse("FarthestPointSample: no parameters.");
    check_attributes(*call);
    check_tensors(*call);
    const size_t points = size_t(call->point_count);
    const size_t shares = size_t(thread_count(threads, std::max<size_t>(1, points / SHARE_MIN)));
    std::vector<double> distances(points, std::numeric_limits<double>::infinity());
    // Two sets of answers: a quick thread writes the next step's while a slow one still reads this step's.
    std::vector<Farthest> answers(2 * shares);
    size_t members = 1;  // threads that really started; each takes every members-th share
    Barrier barrier;

    const auto work = [&](size_t member) {
      if (member) barrier.wait();  // until `members` is known
      size_t taken = 0;
      for (int step = 0;; ++step) {
        if (member == 0) call->indices[step] = int32_t(taken);
        if (step + 1 == call->count) return;
        Farthest* found = answers.data() + size_t(step & 1) * shares;
        for (size_t share = member; share < shares; share += members) {
          const size_t first = points * share / shares, last = points * (share + 1) / shares;
          const size_t index = loops().farthest(call->points, call->points + 3 * taken, first, last, distances.data());
          found[share] = {distances[index], index};
        }
        if (members > 1) barrier.wait();
        taken = found[0].index;
        double distance = found[0].distance;
        for (size_t share = 1; share < shares; ++share) {
          if (found[share].distance > distance) distance = found[share].distance, taken = found[share].index;
        }
      }
    };

    std::vector<std::thread> others;
    others.reserve(shares);
    try {
      while (others.size() + 1 < shares) others.emplace_back(work, others.size() + 1);
    } catch (const std::system_error&) {
    }
    members = others.size() + 1;
    barrier.set_members(int(members));
    if (members > 1) barrier.wait();
    work(0);
    for (std::thread& other : others) other.join();
  });
}
