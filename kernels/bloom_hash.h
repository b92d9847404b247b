// Where a term stands on the Bloom rows of a block; stcli/ops/bloom_hash.py is the same in torch.
#pragma once
#include <cstdint>

namespace stcli {

struct BloomHash {
  uint32_t low, high;

  BloomHash(uint64_t term, uint64_t block) {
    uint64_t x = term * 0x9E3779B97F4A7C15u + block;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    x ^= x >> 31;
    low = static_cast<uint32_t>(x);
    high = static_cast<uint32_t>(x >> 32) | 1;
  }
};

// Row of hash i among `width` rows, width < 2^31.
inline int64_t bloom_row(uint32_t low, uint32_t high, uint32_t i, int64_t width) {
  return static_cast<int64_t>(static_cast<uint64_t>(low + i * high) * static_cast<uint64_t>(width) >> 32);
}

}  // namespace stcli
