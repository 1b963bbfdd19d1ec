#include "loops.hpp"

#include <cstdlib>
#include <cstring>

namespace edge4d {

extern const Loops loops_baseline;
#if defined(__x86_64__)
extern const Loops loops_avx2;
extern const Loops loops_avx512;
#endif

namespace {

const Loops& best_loops() {
#if defined(__x86_64__)
  // EDGE4D_CPU_INSTRUCTIONS=avx2 or baseline holds back what the machine has, to test and compare.
  const char* wanted = getenv("EDGE4D_CPU_INSTRUCTIONS");
  const bool baseline = wanted && !strcmp(wanted, "baseline"), avx2 = wanted && !strcmp(wanted, "avx2");
  __builtin_cpu_init();
  if (baseline || !__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return loops_baseline;
  if (avx2 || !__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512dq") ||
      !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512bw"))
    return loops_avx2;
  return loops_avx512;
#else
  return loops_baseline;
#endif
}

}  // namespace

const Loops& loops() {
  static const Loops& best = best_loops();
  return best;
}

}  // namespace edge4d

const char* edge4d_cpu_instructions(void) { return edge4d::loops().instructions; }
