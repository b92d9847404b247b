// Which instruction set the filter kernels use: the best of this CPU, or one that a test forces.
#pragma once
#include <atomic>

namespace stcli {

enum FilterIsa : int { kPortable = 0, kAvx2 = 1, kAvx512 = 2 };

inline std::atomic<int> forced_filter_isa{-1};

inline bool has_filter_isa(int isa) {
#if defined(__x86_64__)
  if (isa == kAvx512) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  }
  if (isa == kAvx2) return __builtin_cpu_supports("avx2");
#endif
  return isa == kPortable;
}

inline FilterIsa filter_isa() {
  const int forced = forced_filter_isa.load(std::memory_order_relaxed);
  if (forced >= 0) return static_cast<FilterIsa>(forced);
  return has_filter_isa(kAvx512) ? kAvx512 : has_filter_isa(kAvx2) ? kAvx2 : kPortable;
}

}  // namespace stcli

#define STCLI_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,prefer-vector-width=512")))
#define STCLI_AVX2 __attribute__((target("avx2")))
