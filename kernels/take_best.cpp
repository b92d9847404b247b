// take_best: the best k candidates of each line by score, equal scores by rank.
//   in   rows i64 [B, M], -1 empty   scores f32 [B, M]   ranks i64 [N]
//   out  rows i64 [B, k]   scores f32 [B, k]; empty slots -1 and -inf
#include <algorithm>
#include <cstdint>
#include <limits>
#include <new>
#include <vector>

#include "parallel.h"
#include "topk.h"

namespace stcli {
namespace {

// Ranks lie anywhere in memory, so they are looked up for equal scores alone; keys hold the slot instead.
void sort_equal_scores(std::vector<uint64_t>& keys, const int64_t* rows, const int64_t* ranks) {
  for (size_t begin = 0, end; begin < keys.size(); begin = end) {
    for (end = begin + 1; end < keys.size() && keys[end] >> 32 == keys[begin] >> 32;) ++end;
    if (end - begin > 1)
      std::sort(keys.begin() + begin, keys.begin() + end, [&](uint64_t left, uint64_t right) {
        return ranks[rows[key_row(left)]] < ranks[rows[key_row(right)]];
      });
  }
}

}  // namespace
}  // namespace stcli

// Returns 0, or 1 if memory ran out.
extern "C" int stcli_take_best(const int64_t* rows, const float* scores, const int64_t* ranks, int64_t num_queries,
                               int64_t num_slots, int64_t k, int64_t num_threads, int64_t* best_rows,
                               float* best_scores) try {
  using namespace stcli;
  constexpr int64_t CHUNK = 64;
  parallel_for((num_queries + CHUNK - 1) / CHUNK, static_cast<int>(num_threads), [&](int64_t chunk, int) {
    std::vector<uint64_t> keys, spare;
    for (int64_t query = chunk * CHUNK; query < std::min(num_queries, (chunk + 1) * CHUNK); ++query) {
      const int64_t* line = rows + query * num_slots;
      keys.clear();
      for (int64_t slot = 0; slot < num_slots; ++slot)
        if (line[slot] >= 0)
          keys.push_back(make_key(scores[query * num_slots + slot], static_cast<uint32_t>(slot)));
      sort_keys(keys, spare);
      sort_equal_scores(keys, line, ranks);
      const int64_t count = std::min<int64_t>(k, static_cast<int64_t>(keys.size()));
      for (int64_t i = 0; i < count; ++i) {
        best_rows[query * k + i] = line[key_row(keys[i])];
        best_scores[query * k + i] = key_score(keys[i]);
      }
      std::fill(best_rows + query * k + count, best_rows + (query + 1) * k, int64_t{-1});
      std::fill(best_scores + query * k + count, best_scores + (query + 1) * k,
                -std::numeric_limits<float>::infinity());
    }
  });
  return 0;
} catch (const std::bad_alloc&) {
  return 1;
}
