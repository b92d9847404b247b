// One i64 for a score and a row, as in stcli/ops/keys.py: the larger key has the larger score, then the smaller row.
#pragma once

#include "types.cuh"

// An empty slot, below the key of every finite score.
constexpr i64 EMPTY_KEY = -0x7FFFFFFFFFFFFFFFLL - 1;
// A threshold that no key passes.
constexpr i64 NO_KEY = 0x7FFFFFFFFFFFFFFFLL;
// In span_lines of the score kernels: no filter.
constexpr i64 NO_SPAN = EMPTY_KEY;

__device__ __forceinline__ i64 make_key(float score, i64 row) {
  const i32 bits = __float_as_int(__fadd_rn(score, 0.0f));  // a negative zero counts as zero
  const u32 ordered = static_cast<u32>(bits ^ ((bits >> 31) & 0x7FFFFFFF));
  return static_cast<i64>(static_cast<u64>(ordered) << 32 | (0xFFFFFFFFu - static_cast<u32>(row)));
}

__device__ __forceinline__ float key_score(i64 key) {
  if (key == EMPTY_KEY) return __int_as_float(0xFF800000);  // -inf
  const i32 ordered = static_cast<i32>(key >> 32);
  return __int_as_float(ordered ^ ((ordered >> 31) & 0x7FFFFFFF));
}

// -1 for an empty slot.
__device__ __forceinline__ i64 key_row(i64 key) {
  return key == EMPTY_KEY ? -1 : static_cast<i64>(0xFFFFFFFFu - static_cast<u32>(key));
}

// The smallest score that a key above the threshold may have; +inf where there is none.
__device__ __forceinline__ float threshold_score(i64 key) {
  return key == NO_KEY ? __int_as_float(0x7F800000) : key_score(key);
}
