// merge_lists: the lists of one request joined, each row once with its best score, through a hash table of slots.
//   in   rows i64 [B,L], -1 in empty slots   scores f32 [B,L], no NaN   least: lists that a row must stand in
//   out  out_rows i64 [B,L]   out_scores f32 [B,L]: a row in the slot where it comes first, -1 and -inf elsewhere
//   cost one or two random accesses a slot to a table of 8 to 16 L bytes a thread
#include <cstdint>
#include <limits>
#include <new>
#include <vector>

#include "parallel.h"

extern "C" int stcli_merge_lists(const int64_t* rows, const float* scores, int64_t num_lines, int64_t length,
                                 int64_t least, int64_t num_threads, int64_t* out_rows, float* out_scores) try {
  int64_t size = 2;
  while (size < 2 * length) size *= 2;
  const uint64_t mask = static_cast<uint64_t>(size - 1);
  const int threads = static_cast<int>(std::max<int64_t>(std::min(num_threads, num_lines), 1));
  std::vector<std::vector<int32_t>> tables(threads), counts(threads);
  for (int thread = 0; thread < threads; ++thread) {
    tables[thread].resize(size);
    counts[thread].resize(length);
  }
  stcli::parallel_for(num_lines, threads, [&](int64_t line, int thread) {
    std::vector<int32_t>& table = tables[thread];
    std::vector<int32_t>& count = counts[thread];
    std::fill(table.begin(), table.end(), -1);
    const int64_t* row = rows + line * length;
    const float* score = scores + line * length;
    int64_t* out_row = out_rows + line * length;
    float* out_score = out_scores + line * length;
    for (int64_t slot = 0; slot < length; ++slot) {
      out_row[slot] = -1;
      out_score[slot] = -std::numeric_limits<float>::infinity();
      if (row[slot] < 0) continue;
      uint64_t place = (static_cast<uint64_t>(row[slot]) * 0x9E3779B97F4A7C15ull) >> 32 & mask;
      while (table[place] >= 0 && out_row[table[place]] != row[slot]) place = (place + 1) & mask;
      const float value = score[slot] + 0.0f;  // a negative zero counts as zero
      const int32_t first = table[place];
      if (first < 0) {
        table[place] = static_cast<int32_t>(slot);
        count[slot] = 1;
        out_row[slot] = row[slot];
        out_score[slot] = value;
      } else {
        ++count[first];
        if (value > out_score[first]) out_score[first] = value;
      }
    }
    if (least <= 1) return;
    for (int64_t slot = 0; slot < length; ++slot) {
      if (out_row[slot] < 0 || count[slot] >= least) continue;
      out_row[slot] = -1;
      out_score[slot] = -std::numeric_limits<float>::infinity();
    }
  });
  return 0;
} catch (const std::bad_alloc&) {
  return 1;
}
