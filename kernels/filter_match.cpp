// filter_match: words of the admitted items of each filter.
//   in   own i64 [R,W]  bloom i64 [H,64]  bloom_offsets i64 [blocks+1]  leaves i64 [L,4]  ops i32 [T]  op_offsets i64 [F+1]
//   out  words i64 [F,W], bits >= num_items zero
//   map  one block of 4096 items at a time: first the masks of all leaves to a scratch of L * 512 bytes, then each program
//        over whole masks. Blocks are spread over the threads.
//   limits  the caller has checked the program (stack_programs.py) and the leaves; W = ceil(num_items / 64)
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "bloom_hash.h"
#include "filter_isa.h"
#include "parallel.h"

namespace stcli {
namespace {

constexpr int kBlockWords = 64;
constexpr int kTileWords = 16;
constexpr int kHashBatch = 256;
constexpr int kAhead = 4;

enum LeafKind : int64_t { kAll, kNone, kOwn, kBloom, kLess, kEqual };
enum Op : int32_t { kOpAnd = -1, kOpOr = -2, kOpNot = -3 };

// A program as steps that take the top of the stack together with the next leaf, so that most masks never reach the stack.
enum StepKind : int32_t { kLoad, kPush, kAnd, kAndNot, kOr, kOrNot, kNot, kPopAnd, kPopOr };
struct Step {
  StepKind kind;
  int32_t leaf;
};

void append_steps(const int32_t* op, const int32_t* end, std::vector<Step>& steps) {
  bool empty = true;
  while (op != end) {
    if (*op < 0) {
      steps.push_back({*op == kOpNot ? kNot : *op == kOpAnd ? kPopAnd : kPopOr, 0});
      ++op;
      continue;
    }
    const int32_t leaf = *op++;
    const int32_t* next = op;
    bool negated = false;
    for (; next != end && *next == kOpNot; ++next) negated = !negated;
    if (!empty && next != end && (*next == kOpAnd || *next == kOpOr)) {
      steps.push_back({*next == kOpAnd ? (negated ? kAndNot : kAnd) : (negated ? kOrNot : kOr), leaf});
    } else {
      steps.push_back({empty ? kLoad : kPush, leaf});
      if (negated) steps.push_back({kNot, 0});
      --next;
    }
    op = next + 1;
    empty = false;
  }
}

#if defined(__x86_64__)
namespace avx512 {
#define STCLI_TARGET STCLI_AVX512
#define STCLI_VECTOR_BYTES 64
#include "filter_match_block.h"
#undef STCLI_TARGET
#undef STCLI_VECTOR_BYTES
}  // namespace avx512
namespace avx2 {
#define STCLI_TARGET STCLI_AVX2
#define STCLI_VECTOR_BYTES 32
#include "filter_match_block.h"
#undef STCLI_TARGET
#undef STCLI_VECTOR_BYTES
}  // namespace avx2
#endif
namespace portable {
#define STCLI_TARGET
#define STCLI_VECTOR_BYTES 16
#include "filter_match_block.h"
#undef STCLI_TARGET
#undef STCLI_VECTOR_BYTES
}  // namespace portable

struct Kernels {
  decltype(&portable::hash_terms) hash_terms;
  decltype(&portable::cut_tiles) cut_tiles;
  decltype(&portable::and_rows) and_rows;
  decltype(&portable::compare_codes) compare_codes;
  decltype(&portable::run_program) run_program;
};

Kernels kernels() {
#if defined(__x86_64__)
  if (filter_isa() == kAvx512) return {avx512::hash_terms, avx512::cut_tiles, avx512::and_rows, avx512::compare_codes, avx512::run_program};
  if (filter_isa() == kAvx2) return {avx2::hash_terms, avx2::cut_tiles, avx2::and_rows, avx2::compare_codes, avx2::run_program};
#endif
  return {portable::hash_terms, portable::cut_tiles, portable::and_rows, portable::compare_codes, portable::run_program};
}

struct Matrix {
  const uint64_t* own;
  int64_t num_words;
  const uint64_t* bloom;
  const int64_t* bloom_offsets;
  int num_hashes;
  int64_t num_items;
  int64_t max_width;
};

struct Leaf {
  int64_t kind, a, b, c;
};

struct FreeDelete {
  void operator()(void* memory) const { std::free(memory); }
};

// Words on a cache line of their own; contents undefined.
struct Words {
  std::unique_ptr<uint64_t, FreeDelete> memory;
  explicit Words(int64_t count)
      : memory(static_cast<uint64_t*>(std::aligned_alloc(64, static_cast<size_t>((count + 8) / 8 * 64)))) {
    if (!memory) throw std::bad_alloc();
  }
  operator uint64_t*() const { return memory.get(); }
};

struct Batch {
  std::vector<Leaf> leaves;
  std::vector<int32_t> bloom_leaves;  // those of kind kBloom, and their terms
  std::vector<uint64_t> bloom_terms;
  std::vector<Step> steps;
  std::vector<int64_t> step_offsets;
  int max_depth;
};

// What one thread needs to evaluate a block.
class Worker {
 public:
  Worker(const Matrix& matrix, const Batch& batch)
      : matrix_(matrix),
        batch_(batch),
        kernels_(kernels()),
        masks_(static_cast<int64_t>(batch.leaves.size()) * kBlockWords),
        stack_(static_cast<int64_t>(batch.max_depth) * kBlockWords),
        spare_(kBlockWords),
        tiles_(matrix.max_width * kBlockWords),
        rows_(batch.bloom_leaves.size() * static_cast<size_t>(matrix.num_hashes)) {}

  void run(int64_t block, uint64_t* out) {
    const int64_t first = block * kBlockWords;
    const int64_t words = std::min<int64_t>(kBlockWords, matrix_.num_words - first);
    bloom_leaves(block);
    for (size_t i = 0; i < batch_.leaves.size(); ++i) other_leaf(i, first, words);
    const int64_t num_filters = static_cast<int64_t>(batch_.step_offsets.size()) - 1;
    const bool whole = (block + 1) * kBlockWords * 64 <= matrix_.num_items;
    for (int64_t f = 0; f < num_filters; ++f) {
      const Step* steps = batch_.steps.data();
      uint64_t* line = out + f * matrix_.num_words + first;
      if (f + kAhead < num_filters) {
        const char* ahead = reinterpret_cast<const char*>(line + kAhead * matrix_.num_words);
        for (int i = 0; i < 9; ++i) __builtin_prefetch(ahead + 64 * i, 1);
      }
      uint64_t* result = whole ? line : spare_;
      kernels_.run_program(steps + batch_.step_offsets[f], steps + batch_.step_offsets[f + 1], masks_, stack_, result);
      if (whole) continue;
      if (matrix_.num_items % 64) result[words - 1] &= (uint64_t{1} << matrix_.num_items % 64) - 1;
      std::copy_n(result, words, line);
    }
  }

 private:
  void bloom_leaves(int64_t block) {
    const int64_t first_row = matrix_.bloom_offsets[block], width = matrix_.bloom_offsets[block + 1] - first_row;
    const int64_t num_terms = static_cast<int64_t>(batch_.bloom_terms.size());
    if (width == 0) {
      for (const int32_t leaf : batch_.bloom_leaves) std::fill_n(masks_ + int64_t{leaf} * kBlockWords, kBlockWords, 0);
      return;
    }
    kernels_.hash_terms(batch_.bloom_terms.data(), num_terms, static_cast<uint64_t>(block), width, matrix_.num_hashes,
                        rows_.data());
    kernels_.cut_tiles(matrix_.bloom + first_row * kBlockWords, width, tiles_);
    for (int tile = 0; tile < kBlockWords / kTileWords; ++tile) {
      kernels_.and_rows(tiles_ + tile * width * kTileWords, rows_.data(), batch_.bloom_leaves.data(), num_terms,
                        matrix_.num_hashes, masks_ + tile * kTileWords);
    }
  }

  void other_leaf(size_t index, int64_t first, int64_t words) {
    const Leaf& leaf = batch_.leaves[index];
    if (leaf.kind == kBloom) return;
    uint64_t* mask = masks_ + static_cast<int64_t>(index) * kBlockWords;
    const uint64_t* own = matrix_.own + leaf.a * matrix_.num_words + first;
    if (leaf.kind == kOwn) {
      std::copy_n(own, words, mask);
    } else if (leaf.kind == kLess || leaf.kind == kEqual) {
      const bool beyond = leaf.c >> leaf.b;  // no code of so many bits reaches c, or c is negative
      uint64_t *less = leaf.kind == kLess ? mask : spare_, *equal = leaf.kind == kLess ? spare_ : mask;
      if (beyond) {
        std::fill_n(mask, kBlockWords, leaf.kind == kLess && leaf.c > 0 ? ~uint64_t{0} : 0);
      } else {
        kernels_.compare_codes(own, matrix_.num_words, leaf.b, leaf.c, words, less, equal);
      }
    } else {
      std::fill_n(mask, kBlockWords, leaf.kind == kAll ? ~uint64_t{0} : 0);
    }
  }

  const Matrix& matrix_;
  const Batch& batch_;
  const Kernels kernels_;
  Words masks_, stack_, spare_, tiles_;
  std::vector<uint32_t> rows_;
};

}  // namespace
}  // namespace stcli

extern "C" int stcli_filter_force_isa(int isa) {
  if (isa >= 0 && !stcli::has_filter_isa(isa)) return 1;
  stcli::forced_filter_isa = isa;
  return 0;
}

// Returns 0, or 1 if memory ran out.
extern "C" int stcli_filter_match(const uint64_t* own, const uint64_t* bloom, const int64_t* bloom_offsets,
                                  int64_t num_hashes, int64_t num_items, const int64_t* leaves, int64_t num_leaves,
                                  const int32_t* ops, const int64_t* op_offsets, int64_t num_filters, int64_t max_depth,
                                  uint64_t* out, int num_threads) try {
  using namespace stcli;
  const int64_t num_blocks = (num_items + kBlockWords * 64 - 1) / (kBlockWords * 64);
  int64_t max_width = 0;
  for (int64_t b = 0; b < num_blocks; ++b) max_width = std::max(max_width, bloom_offsets[b + 1] - bloom_offsets[b]);
  const Matrix matrix{own, (num_items + 63) / 64, bloom, bloom_offsets, static_cast<int>(num_hashes), num_items, max_width};
  Batch batch;
  batch.max_depth = static_cast<int>(max_depth);
  batch.leaves.resize(static_cast<size_t>(num_leaves));
  std::copy_n(leaves, num_leaves * 4, &batch.leaves.data()->kind);
  for (int64_t i = 0; i < num_leaves; ++i) {
    if (batch.leaves[i].kind != kBloom) continue;
    batch.bloom_leaves.push_back(static_cast<int32_t>(i));
    batch.bloom_terms.push_back(static_cast<uint64_t>(batch.leaves[i].a));
  }
  batch.step_offsets.push_back(0);
  for (int64_t f = 0; f < num_filters; ++f) {
    append_steps(ops + op_offsets[f], ops + op_offsets[f + 1], batch.steps);
    batch.step_offsets.push_back(static_cast<int64_t>(batch.steps.size()));
  }
  std::vector<Worker> workers;
  workers.reserve(static_cast<size_t>(num_threads));
  for (int t = 0; t < num_threads; ++t) workers.emplace_back(matrix, batch);
  parallel_for(num_blocks, num_threads, [&](int64_t block, int thread) { workers[thread].run(block, out); });
  return 0;
} catch (const std::bad_alloc&) {
  return 1;
}
