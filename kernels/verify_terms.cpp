// verify_terms: whether the terms of each candidate truly satisfy the filter of its query.
//   in   values i32 [X]  offsets i64 [N+1]  lows, highs i32 [I]  leaf_offsets i64 [L+1]
//        ops i32 [T]  op_offsets i64 [F+1]  rows i64 [B,M]  filter_of_query i64 [B]
//   out  verified u8 [B,M], 0 or 1
//   map  1,024 candidates at a time, spread over the threads
//   limits  the caller has checked programs, rows and filters (verify_terms.py)
//   cost filters of 3 terms, rows of 19: 24 ns a candidate on one Zen 4 core, 50 ns when the rows lie anywhere in 76 MB
#include <algorithm>
#include <cstdint>
#include <new>
#include <vector>

#include "isa.h"
#include "parallel.h"

namespace stcli {
namespace {

constexpr int64_t kChunk = 1024;
// Random rows of 76 MB: 8 ahead 20 M candidates/s on one core, 4: 18.5, 16: 11.
constexpr int64_t kAhead = 8;
// Items with more terms are searched by halving.
constexpr int64_t kScanTerms = 64;
// Leaves with as few intervals are looked up one by one, however few terms the item has.
constexpr int64_t kFewIntervals = 4;

// As in stcli/types.py.
enum Op : int32_t { kOpAnd = -1, kOpOr = -2, kOpNot = -3 };

struct Terms {
  const int32_t* values;
  const int64_t* offsets;
  int64_t num_values;
};

struct TermPrograms {
  const int32_t *lows, *highs;
  const int64_t* leaf_offsets;
  const int32_t* ops;
  const int64_t* op_offsets;
};

#if STCLI_X86
namespace avx512 {
#define STCLI_TARGET STCLI_AVX512
#define STCLI_MASKED_VECTORS 1
#include "verify_terms_chunk.h"
#undef STCLI_MASKED_VECTORS
#undef STCLI_TARGET
}  // namespace avx512
namespace avx2 {
#define STCLI_TARGET STCLI_AVX2
#include "verify_terms_chunk.h"
#undef STCLI_TARGET
}  // namespace avx2
#endif
namespace portable {
#define STCLI_TARGET
#include "verify_terms_chunk.h"
#undef STCLI_TARGET
}  // namespace portable

// Largest stack that one of the programs needs.
int64_t deepest_stack(const int32_t* ops, const int64_t* op_offsets, int64_t num_filters) {
  int64_t most = 1;
  for (int64_t f = 0; f < num_filters; ++f) {
    int64_t depth = 0;
    for (int64_t i = op_offsets[f]; i < op_offsets[f + 1]; ++i) {
      depth += ops[i] >= 0 ? 1 : ops[i] == kOpNot ? 0 : -1;
      most = std::max(most, depth);
    }
  }
  return most;
}

}  // namespace
}  // namespace stcli

// Returns 0, or 1 if memory ran out.
extern "C" int stcli_verify_terms(const int32_t* values, const int64_t* offsets, int64_t num_values,
                                  const int32_t* lows, const int32_t* highs, const int64_t* leaf_offsets,
                                  const int32_t* ops, const int64_t* op_offsets, int64_t num_filters,
                                  const int64_t* rows, const int64_t* filter_of_query, int64_t num_queries,
                                  int64_t num_slots, uint8_t* verified, int64_t num_threads) try {
  using namespace stcli;
  const Terms terms{values, offsets, num_values};
  const TermPrograms programs{lows, highs, leaf_offsets, ops, op_offsets};
  auto verify_chunk = portable::verify_chunk;
#if STCLI_X86
  if (current_isa() == AVX2) verify_chunk = avx2::verify_chunk;
  if (current_isa() == AVX512) verify_chunk = avx512::verify_chunk;
#endif
  const std::vector<uint8_t> stack(static_cast<size_t>(deepest_stack(ops, op_offsets, num_filters)));
  std::vector<std::vector<uint8_t>> stacks(static_cast<size_t>(num_threads), stack);
  const int64_t count = num_queries * num_slots;
  parallel_for((count + kChunk - 1) / kChunk, static_cast<int>(num_threads), [&](int64_t chunk, int thread) {
    verify_chunk(terms, programs, rows, filter_of_query, num_slots, chunk * kChunk,
                 std::min(count, (chunk + 1) * kChunk), stacks[static_cast<size_t>(thread)].data(), verified);
  });
  return 0;
} catch (const std::bad_alloc&) {
  return 1;
}
