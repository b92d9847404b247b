// verify_terms: whether the terms of each candidate truly satisfy the filter of its query.
//   in   values i32 [X]  offsets i64 [N+1]  lows, highs i32 [I]  leaf_offsets i64 [L+1]  ops i32 [T]  op_offsets i64 [F+1]
//        rows i64 [B,M]  filter_of_query i64 [B]
//   out  verified u8 [B,M], 0 or 1
//   map  1024 candidates at a time, spread over the threads
//   limits  the caller has checked programs, rows and filters (verify_terms.py)
#include <algorithm>
#include <cstdint>
#include <new>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "filter_isa.h"
#include "parallel.h"

namespace stcli {
namespace {

constexpr int64_t kChunk = 1024;
constexpr int64_t kAhead = 8;
constexpr int64_t kScanTerms = 64;
constexpr int64_t kFewIntervals = 4;

enum Op : int32_t { kOpAnd = -1, kOpOr = -2, kOpNot = -3 };

struct Terms {
  const int32_t* values;
  const int64_t* offsets;
};

struct TermPrograms {
  const int32_t *lows, *highs;
  const int64_t* leaf_offsets;
  const int32_t* ops;
  const int64_t* op_offsets;
};

#if defined(__x86_64__)
namespace avx512 {
#define STCLI_TARGET STCLI_AVX512
#define STCLI_MASKED
#include "verify_terms_chunk.h"
#undef STCLI_MASKED
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

// Largest stack that a program needs.
int64_t deepest(const int32_t* ops, int64_t num_ops) {
  int64_t depth = 0, most = 1;
  for (int64_t i = 0; i < num_ops; ++i) {
    depth += ops[i] >= 0 ? 1 : ops[i] == kOpNot ? 0 : -1;
    most = std::max(most, depth);
  }
  return most;
}

}  // namespace
}  // namespace stcli

// Returns 0, or 1 if memory ran out.
extern "C" int stcli_verify_terms(const int32_t* values, const int64_t* offsets, const int32_t* lows, const int32_t* highs,
                                  const int64_t* leaf_offsets, const int32_t* ops, const int64_t* op_offsets,
                                  int64_t num_filters, const int64_t* rows, const int64_t* filter_of_query,
                                  int64_t num_queries, int64_t num_slots, uint8_t* verified, int num_threads) try {
  using namespace stcli;
  const Terms terms{values, offsets};
  const TermPrograms programs{lows, highs, leaf_offsets, ops, op_offsets};
  auto verify_chunk = portable::verify_chunk;
#if defined(__x86_64__)
  if (filter_isa() == kAvx2) verify_chunk = avx2::verify_chunk;
  if (filter_isa() == kAvx512) verify_chunk = avx512::verify_chunk;
#endif
  int64_t depth = 1;
  for (int64_t f = 0; f < num_filters; ++f) depth = std::max(depth, deepest(ops + op_offsets[f], op_offsets[f + 1] - op_offsets[f]));
  std::vector<std::vector<uint8_t>> stacks(static_cast<size_t>(num_threads), std::vector<uint8_t>(static_cast<size_t>(depth)));
  const int64_t count = num_queries * num_slots;
  parallel_for((count + kChunk - 1) / kChunk, num_threads, [&](int64_t chunk, int thread) {
    verify_chunk(terms, programs, rows, filter_of_query, num_slots, chunk * kChunk, std::min(count, (chunk + 1) * kChunk),
                 stacks[static_cast<size_t>(thread)].data(), verified);
  });
  return 0;
} catch (const std::bad_alloc&) {
  return 1;
}
