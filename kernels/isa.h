// Which instructions the kernels use, chosen when the program runs: the library is built for the plainest CPU of its
// architecture, and only functions marked with a target below may use more.
#pragma once
#include <atomic>

#if defined(__x86_64__)
#include <immintrin.h>
#define STCLI_X86 1
#define STCLI_AVX2 __attribute__((target("avx2,f16c,popcnt")))
#define STCLI_AVX512 __attribute__((target("avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,popcnt")))
#endif
#define STCLI_INLINE inline __attribute__((always_inline))

namespace stcli {

enum Isa { PORTABLE = 0, AVX2 = 1, AVX512 = 2 };

inline Isa best_isa() {
#if STCLI_X86
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c") && __builtin_cpu_supports("popcnt"))
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                   __builtin_cpu_supports("avx512vnni")
               ? AVX512
               : AVX2;
#endif
  return PORTABLE;
}

// Set by stcli_force_isa for tests; best_isa() and everything below it are allowed.
inline std::atomic<int> allowed_isa{AVX512};

inline Isa current_isa() {
  static const Isa best = best_isa();
  const int allowed = allowed_isa.load(std::memory_order_relaxed);
  return allowed < best ? static_cast<Isa>(allowed) : best;
}

}  // namespace stcli
