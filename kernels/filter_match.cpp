// filter_match: words of the admitted items of each filter.
//   in   own i64 [R,W]  bloom i64 [H,64]  bloom_offsets i64 [blocks+1]  leaves i64 [L,4]
//        ops i32 [T]  op_offsets i64 [F+1]
//   out  words i64 [F,W], bits >= num_items zero
//   map  blocks of 4096 items are spread over the threads; a block evaluates the masks of all leaves, 512 bytes each,
//        and then runs each program over whole masks
//   limits  the caller has checked programs and leaves (filter_match.py); W = ceil(num_items / 64)
//   cost 1 M items, 1,024 filters of 3-5 terms over 42 own and 1,286 Bloom leaves, 10 hashes, 172 rows a block, two
//        Zen 4 cores: 14 to 16 ms, half for the leaves and half for the programs
#include <algorithm>
#include <cstdint>
#include <new>
#include <vector>

#include "bloom_hash.h"
#include "buffer.h"
#include "isa.h"
#include "parallel.h"

namespace stcli {
namespace {

constexpr int64_t kBlockWords = 64;
// Words of a tile, on which Bloom rows are joined: all rows of a tile fit the first-level cache (172 rows: 22 KiB).
// Leaves on one core: 8 words 14.1 ms, 16 12.1, 32 11.8, 64 18.1; wider blocks (lower rates) favour the smaller ones.
constexpr int64_t kTileWords = 16;
constexpr int64_t kHashBatch = 256;
// A line of the output is fetched this many filters before it is written: programs 12.1 ms on one core, without 18.5;
// non-temporal stores 19.2.
constexpr int64_t kAhead = 4;

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
int64_t append_steps(const int32_t* op, const int32_t* end, std::vector<Step>& steps) {
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
#include "filter_match_block.h"
#undef STCLI_TARGET
#undef STCLI_VECTOR_WORDS
}  // namespace avx512
namespace avx2 {
#define STCLI_TARGET STCLI_AVX2
#define STCLI_VECTOR_WORDS 4
#include "filter_match_block.h"
#undef STCLI_TARGET
#undef STCLI_VECTOR_WORDS
}  // namespace avx2
#endif
namespace portable {
#define STCLI_TARGET
#define STCLI_VECTOR_WORDS 2
#include "filter_match_block.h"
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
};

#define STCLI_KERNELS(isa) \
  {isa::hash_terms, isa::cut_tiles, isa::and_rows, isa::and_whole_rows, isa::compare_codes, isa::run_program}
Kernels current_kernels() {
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

struct Batch {
  std::vector<Leaf> leaves;
  std::vector<int64_t> bloom_leaves;  // those of kind kLeafBloom, and their terms
  std::vector<uint64_t> bloom_terms;
  std::vector<Step> steps;
  std::vector<int64_t> step_offsets{0};
  int64_t stack_masks = 0;
};

// What one thread needs to evaluate a block.
class Worker {
 public:
  Worker(const Matrix& matrix, const Batch& batch)
      : matrix_(matrix),
        batch_(batch),
        kernels_(current_kernels()),
        masks_(static_cast<int64_t>(batch.leaves.size()) * kBlockWords * 8),
        stack_((batch.stack_masks + 1) * kBlockWords * 8),
        tiles_(matrix.widest() * kBlockWords * 8),
        rows_(batch.bloom_leaves.size() * static_cast<size_t>(matrix.num_hashes)) {}

  void run(int64_t block, uint64_t* out) {
    const int64_t first = block * kBlockWords, num_words = matrix_.num_words();
    const int64_t words = std::min(kBlockWords, num_words - first);
    evaluate_bloom_leaves(block);
    for (size_t i = 0; i < batch_.leaves.size(); ++i) {
      evaluate_leaf(batch_.leaves[i], first, words, masks_.as<uint64_t>() + static_cast<int64_t>(i) * kBlockWords);
    }
    const int64_t num_filters = static_cast<int64_t>(batch_.step_offsets.size()) - 1;
    const Step* steps = batch_.steps.data();
    const bool whole = (first + kBlockWords) * 64 <= matrix_.num_items;
    uint64_t spare[kBlockWords];
    for (int64_t f = 0; f < num_filters; ++f) {
      uint64_t* line = out + f * num_words + first;
      if (f + kAhead < num_filters) {
        for (int64_t w = 0; w < words; w += 8) __builtin_prefetch(line + kAhead * num_words + w, 1);
        __builtin_prefetch(line + kAhead * num_words + words - 1, 1);
      }
      kernels_.run_program(steps + batch_.step_offsets[f], steps + batch_.step_offsets[f + 1], masks_.as<uint64_t>(),
                           stack_.as<uint64_t>(), whole ? line : spare);
      if (whole) continue;
      if (matrix_.num_items % 64) spare[words - 1] &= (uint64_t{1} << matrix_.num_items % 64) - 1;
      std::copy_n(spare, words, line);
    }
  }

 private:
  void evaluate_bloom_leaves(int64_t block) {
    const int64_t first_row = matrix_.bloom_offsets[block], width = matrix_.bloom_offsets[block + 1] - first_row;
    const int64_t num_terms = static_cast<int64_t>(batch_.bloom_terms.size());
    uint64_t *masks = masks_.as<uint64_t>(), *tiles = tiles_.as<uint64_t>();
    if (width == 0) {
      for (const int64_t leaf : batch_.bloom_leaves) std::fill_n(masks + leaf * kBlockWords, kBlockWords, 0);
      return;
    }
    kernels_.hash_terms(batch_.bloom_terms.data(), num_terms, static_cast<uint64_t>(block), width, matrix_.num_hashes,
                        rows_.data());
    if (num_terms * matrix_.num_hashes < width) {  // cutting all rows into tiles would not pay
      kernels_.and_whole_rows(matrix_.bloom + first_row * kBlockWords, rows_.data(), batch_.bloom_leaves.data(),
                              num_terms, matrix_.num_hashes, masks);
      return;
    }
    kernels_.cut_tiles(matrix_.bloom + first_row * kBlockWords, width, tiles);
    for (int64_t word = 0; word < kBlockWords; word += kTileWords) {
      kernels_.and_rows(tiles + word * width, rows_.data(), batch_.bloom_leaves.data(), num_terms, matrix_.num_hashes,
                        masks + word);
    }
  }

  void evaluate_leaf(const Leaf& leaf, int64_t first, int64_t words, uint64_t* mask) const {
    const uint64_t* own = matrix_.own + leaf.a * matrix_.num_words() + first;
    const bool less = leaf.kind == kLeafLess;
    if (leaf.kind == kLeafBloom) return;
    if (leaf.kind == kLeafOwn) {
      std::copy_n(own, words, mask);
      for (int64_t word = 0; word < kBlockWords; word += 8) __builtin_prefetch(own + kBlockWords + word);  // next block
    } else if ((less || leaf.kind == kLeafEqual) && leaf.c >> leaf.b == 0) {
      uint64_t other[kBlockWords];
      kernels_.compare_codes(own, matrix_.num_words(), leaf.b, leaf.c, words, less ? mask : other, less ? other : mask);
    } else {  // also where no code of so many bits reaches c, or c is negative
      std::fill_n(mask, kBlockWords, leaf.kind == kLeafAll || (less && leaf.c > 0) ? ~uint64_t{0} : 0);
    }
  }

  const Matrix& matrix_;
  const Batch& batch_;
  const Kernels kernels_;
  Buffer masks_, stack_, tiles_;
  std::vector<uint32_t> rows_;
};

}  // namespace
}  // namespace stcli

// Returns 0, or 1 if memory ran out.
extern "C" int stcli_filter_match(const uint64_t* own, const uint64_t* bloom, const int64_t* bloom_offsets,
                                  int64_t num_hashes, int64_t num_items, const int64_t* leaves, int64_t num_leaves,
                                  const int32_t* ops, const int64_t* op_offsets, int64_t num_filters, uint64_t* out,
                                  int64_t num_threads) try {
  using namespace stcli;
  const Matrix matrix{own, bloom, bloom_offsets, num_hashes, num_items};
  Batch batch;
  for (int64_t i = 0; i < num_leaves; ++i) {
    const int64_t* line = leaves + 4 * i;
    batch.leaves.push_back({line[0], line[1], line[2], line[3]});
    if (line[0] != kLeafBloom) continue;
    batch.bloom_leaves.push_back(i);
    batch.bloom_terms.push_back(static_cast<uint64_t>(line[1]));
  }
  for (int64_t f = 0; f < num_filters; ++f) {
    const int64_t below = append_steps(ops + op_offsets[f], ops + op_offsets[f + 1], batch.steps);
    batch.stack_masks = std::max(batch.stack_masks, below);
    batch.step_offsets.push_back(static_cast<int64_t>(batch.steps.size()));
  }
  std::vector<Worker> workers;
  workers.reserve(static_cast<size_t>(num_threads));
  for (int64_t t = 0; t < num_threads; ++t) workers.emplace_back(matrix, batch);
  parallel_for(matrix.num_blocks(), static_cast<int>(num_threads),
               [&](int64_t block, int thread) { workers[static_cast<size_t>(thread)].run(block, out); });
  return 0;
} catch (const std::bad_alloc&) {
  return 1;
}
