// cap_groups: the best candidates of each request with at most so many of a group.
//   in   rows i64 [B, M] best first, -1 empty   groups i32 [G, N], -1 none   limits i64 [G]   k
//   out  places i64 [B, K] in rows, ascending, -1 behind the last
//   cost one random read of 4 bytes a candidate and kind of group, and one of a counter in a table of 4 k slots
#include <algorithm>
#include <cstdint>
#include <new>
#include <vector>

#include "parallel.h"

namespace {

constexpr int64_t kRequests = 16;  // of a chunk

struct Slot {
  int32_t group;
  int32_t taken;
};

inline uint64_t first_slot(int32_t group, uint64_t mask) {
  const uint64_t x = static_cast<uint64_t>(static_cast<uint32_t>(group)) * 0x9E3779B97F4A7C15ull;
  return (x ^ (x >> 32)) & mask;
}

}  // namespace

extern "C" int stcli_cap_groups(const int64_t* rows, int64_t count, int64_t slots, const int32_t* groups,
                                int64_t kinds, int64_t num_items, const int64_t* limits, int64_t k, int64_t* places,
                                int64_t num_threads) try {
  uint64_t size = 4;  // more than half of a table stays empty: only groups of taken items are in it
  while (size < 2 * static_cast<uint64_t>(std::min(k, slots)) + 2) size *= 2;
  const uint64_t mask = size - 1;
  const int64_t chunks = (count + kRequests - 1) / kRequests;
  const int threads = static_cast<int>(std::max<int64_t>(1, std::min(num_threads, chunks)));
  std::vector<Slot> tables(static_cast<size_t>(threads) * kinds * size);
  std::vector<Slot*> founds(static_cast<size_t>(threads) * kinds);
  stcli::parallel_for(chunks, threads, [&](int64_t chunk, int thread) {
    Slot* table = tables.data() + static_cast<size_t>(thread) * kinds * size;
    Slot** found = founds.data() + static_cast<size_t>(thread) * kinds;
    const int64_t end = std::min(count, (chunk + 1) * kRequests);
    for (int64_t request = chunk * kRequests; request < end; ++request) {
      for (uint64_t i = 0; i < kinds * size; ++i) table[i] = {-1, 0};
      const int64_t* line = rows + request * slots;
      int64_t* out = places + request * k;
      int64_t taken = 0;
      for (int64_t slot = 0; slot < slots && taken < k; ++slot) {
        const int64_t row = line[slot];
        if (row < 0) continue;
        bool full = false;
        for (int64_t kind = 0; kind < kinds && !full; ++kind) {
          found[kind] = nullptr;
          const int32_t group = groups[kind * num_items + row];
          if (group < 0) continue;
          Slot* own = table + kind * size;
          uint64_t at = first_slot(group, mask);
          while (own[at].group >= 0 && own[at].group != group) at = (at + 1) & mask;
          found[kind] = own + at;
          full = own[at].taken >= limits[kind];  // an empty slot has none taken
        }
        if (full) continue;
        for (int64_t kind = 0; kind < kinds; ++kind) {
          if (found[kind] == nullptr) continue;
          found[kind]->group = groups[kind * num_items + row];
          ++found[kind]->taken;
        }
        out[taken++] = slot;
      }
      std::fill(out + taken, out + k, int64_t{-1});
    }
  });
  return 0;
} catch (const std::bad_alloc&) {
  return 1;
}
