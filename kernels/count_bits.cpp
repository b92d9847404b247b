// count_bits: set bits of each line of words.
//   in   words i64 [F,W]
//   out  counts i64 [F]
//   cost 8 bytes read a word: memory speed on two cores
#include <algorithm>
#include <cstdint>
#include <new>

#include "isa.h"
#include "parallel.h"

namespace {

// Short lines are counted together: taking a chunk costs as much as counting some hundred bytes.
constexpr int64_t CHUNK_WORDS = 4096;

template <int UNROLL>
STCLI_INLINE int64_t count(const uint64_t* words, int64_t num_words) {
  int64_t sums[UNROLL] = {};
  int64_t i = 0;
  for (; i + UNROLL <= num_words; i += UNROLL)
    for (int lane = 0; lane < UNROLL; ++lane) sums[lane] += __builtin_popcountll(words[i + lane]);
  for (; i < num_words; ++i) sums[0] += __builtin_popcountll(words[i]);
  int64_t total = 0;
  for (int lane = 0; lane < UNROLL; ++lane) total += sums[lane];
  return total;
}

int64_t count_portable(const uint64_t* words, int64_t num_words) { return count<1>(words, num_words); }

#if STCLI_X86
STCLI_AVX2 int64_t count_popcnt(const uint64_t* words, int64_t num_words) { return count<4>(words, num_words); }
#endif

}  // namespace

extern "C" int stcli_count_bits(const int64_t* words, int64_t num_lines, int64_t num_words, int64_t num_threads,
                                int64_t* counts) try {
  auto function = count_portable;
#if STCLI_X86
  if (stcli::current_isa() != stcli::PORTABLE) function = count_popcnt;
#endif
  const int64_t lines = std::max<int64_t>(CHUNK_WORDS / std::max<int64_t>(num_words, 1), 1);
  stcli::parallel_for((num_lines + lines - 1) / lines, static_cast<int>(num_threads), [&](int64_t chunk, int) {
    for (int64_t line = chunk * lines; line < std::min((chunk + 1) * lines, num_lines); ++line)
      counts[line] = function(reinterpret_cast<const uint64_t*>(words) + line * num_words, num_words);
  });
  return 0;
} catch (const std::bad_alloc&) {
  return 1;
}
