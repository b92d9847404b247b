// Filters as programs over the bit matrix: what filter_match and filter_probes share.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "bloom_hash.h"
#include "isa.h"

namespace stcli {

constexpr int64_t kBlockWords = 64;
// Words of a tile, on which Bloom rows are joined: all rows of a tile fit the first-level cache (172 rows: 22 KiB).
// Leaves on one core: 8 words 14.1 ms, 16 12.1, 32 11.8, 64 18.1; wider blocks (lower rates) favour the smaller ones.
constexpr int64_t kTileWords = 16;
constexpr int64_t kHashBatch = 256;

// As in stcli/types.py.
enum LeafKind : int64_t { kLeafAll, kLeafNone, kLeafOwn, kLeafBloom, kLeafLess, kLeafEqual };
enum Op : int32_t { kOpAnd = -1, kOpOr = -2, kOpNot = -3 };

struct Leaf {
  int64_t kind, a, b, c;
};

// A program as steps that join the top of the stack with the next leaf, so that few masks ever lie on the stack. To
// stop an AND at an empty mask was measured and gained nothing.
enum StepKind : int32_t { kLoad, kPush, kAnd, kAndNot, kOr, kOrNot, kNot, kPopAnd, kPopOr };
struct Step {
  StepKind kind;
  int32_t leaf;
};

// Appends the steps of one program; returns how many masks its stack holds below the top.
inline int64_t append_steps(const int32_t* op, const int32_t* end, std::vector<Step>& steps) {
  int64_t depth = -1, deepest = 0;
  while (op != end) {
    const int32_t leaf = *op++;
    if (leaf < 0) {
      steps.push_back({leaf == kOpNot ? kNot : leaf == kOpAnd ? kPopAnd : kPopOr, 0});
      depth -= leaf != kOpNot;
      continue;
    }
    bool negated = false;
    for (; op != end && *op == kOpNot; ++op) negated = !negated;
    if (depth >= 0 && op != end && *op < 0) {
      steps.push_back({*op == kOpAnd ? (negated ? kAndNot : kAnd) : (negated ? kOrNot : kOr), leaf});
      ++op;
    } else {
      steps.push_back({depth < 0 ? kLoad : kPush, leaf});
      if (negated) steps.push_back({kNot, 0});
      deepest = std::max(deepest, ++depth);
    }
  }
  return deepest;
}

#if STCLI_X86
namespace avx512 {
#define STCLI_TARGET STCLI_AVX512
#define STCLI_VECTOR_WORDS 8
#include "filter_programs_isa.h"
#undef STCLI_TARGET
#undef STCLI_VECTOR_WORDS
}  // namespace avx512
namespace avx2 {
#define STCLI_TARGET STCLI_AVX2
#define STCLI_VECTOR_WORDS 4
#include "filter_programs_isa.h"
#undef STCLI_TARGET
#undef STCLI_VECTOR_WORDS
}  // namespace avx2
#endif
namespace portable {
#define STCLI_TARGET
#define STCLI_VECTOR_WORDS 2
#include "filter_programs_isa.h"
#undef STCLI_TARGET
#undef STCLI_VECTOR_WORDS
}  // namespace portable

struct Kernels {
  decltype(&portable::hash_terms) hash_terms;
  decltype(&portable::cut_tiles) cut_tiles;
  decltype(&portable::and_rows) and_rows;
  decltype(&portable::and_whole_rows) and_whole_rows;
  decltype(&portable::compare_codes) compare_codes;
  decltype(&portable::run_program) run_program;
  decltype(&portable::run_piece) run_piece;
};

#define STCLI_KERNELS(isa) \
  {isa::hash_terms, isa::cut_tiles, isa::and_rows, isa::and_whole_rows, isa::compare_codes, isa::run_program, \
   isa::run_piece}
inline Kernels current_kernels() {
#if STCLI_X86
  if (current_isa() == AVX512) return STCLI_KERNELS(avx512);
  if (current_isa() == AVX2) return STCLI_KERNELS(avx2);
#endif
  return STCLI_KERNELS(portable);
}
#undef STCLI_KERNELS

struct Matrix {
  const uint64_t* own;
  const uint64_t* bloom;
  const int64_t* bloom_offsets;
  int64_t num_hashes, num_items;

  int64_t num_words() const { return (num_items + 63) / 64; }
  int64_t num_blocks() const { return (num_words() + kBlockWords - 1) / kBlockWords; }
  int64_t widest() const {
    int64_t most = 0;
    for (int64_t b = 0; b < num_blocks(); ++b) most = std::max(most, bloom_offsets[b + 1] - bloom_offsets[b]);
    return most;
  }
};

// The leaves and programs of a batch of filters.
struct Batch {
  Batch(const int64_t* lines, int64_t num_leaves, const int32_t* ops, const int64_t* op_offsets, int64_t num_filters) {
    for (int64_t i = 0; i < num_leaves; ++i) {
      const int64_t* line = lines + 4 * i;
      leaves.push_back({line[0], line[1], line[2], line[3]});
      if (line[0] != kLeafBloom) continue;
      bloom_leaves.push_back(i);
      bloom_terms.push_back(static_cast<uint64_t>(line[1]));
    }
    for (int64_t f = 0; f < num_filters; ++f) {
      stack_masks = std::max(stack_masks, append_steps(ops + op_offsets[f], ops + op_offsets[f + 1], steps));
      step_offsets.push_back(static_cast<int64_t>(steps.size()));
    }
  }

  int64_t num_filters() const { return static_cast<int64_t>(step_offsets.size()) - 1; }
  const Step* begin(int64_t filter) const { return steps.data() + step_offsets[filter]; }
  const Step* end(int64_t filter) const { return steps.data() + step_offsets[filter + 1]; }

  std::vector<Leaf> leaves;
  std::vector<int64_t> bloom_leaves;  // those of kind kLeafBloom, and their terms
  std::vector<uint64_t> bloom_terms;
  std::vector<Step> steps;
  std::vector<int64_t> step_offsets{0};
  int64_t stack_masks = 0;  // below the top
};

}  // namespace stcli
