// Numbers of the filter programs, as in stcli/types.py, and places in the Bloom rows.
#pragma once

#include "types.cuh"

enum LeafKind : i64 { LEAF_ALL, LEAF_NONE, LEAF_OWN, LEAF_BLOOM, LEAF_LESS, LEAF_EQUAL };
constexpr i32 OP_AND = -1, OP_OR = -2, OP_NOT = -3;

constexpr i64 BLOCK_WORDS = 64;  // of the bit matrix: 4,096 rows

// Place of the next Bloom row of a term among `width`; stcli/ops/bloom_hash.py.
struct BloomHash {
  u64 state;

  __device__ BloomHash(u64 term, u64 block) {
    u64 x = (term + 1) * 0x9E3779B97F4A7C15ull + block;
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ x >> 27) * 0x94D049BB133111EBull;
    state = x ^ x >> 31;
  }

  __device__ i64 next(i64 width) {
    const u64 row = (state >> 32) * static_cast<u64>(width) >> 32;
    state *= 0xD1342543DE82EF95ull;
    return static_cast<i64>(row);
  }
};
