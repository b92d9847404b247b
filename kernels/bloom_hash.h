// Where a term stands on the Bloom rows of a block; stcli/ops/bloom_hash.py is the same in torch.
#pragma once
#include <cstdint>

namespace stcli {

// Gives the rows of a term one after another: the upper half of a 64-bit state that is multiplied on. Stepping by a fixed
// stride instead, `low + i * high`, puts all rows of an unlucky term on a few: 1.3 to 13 times the wanted rate.
struct BloomHash {
  uint64_t state;

  BloomHash(uint64_t term, uint64_t block) {
    uint64_t x = (term + 1) * 0x9E3779B97F4A7C15u + block;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    state = x ^ (x >> 31);
  }
};

// The next row among `width` rows, width < 2^31.
inline int64_t next_bloom_row(uint64_t& state, int64_t width) {
  const int64_t row = static_cast<int64_t>((state >> 32) * static_cast<uint64_t>(width) >> 32);
  state *= 0xD1342543DE82EF95u;
  return row;
}

}  // namespace stcli
