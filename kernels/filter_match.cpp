// filter_match: words of the admitted items of each filter.
//   in   own i64 [R,W]  bloom i64 [H,64]  bloom_offsets i64 [blocks+1]  leaves i64 [L,4]
//        ops i32 [T]  op_offsets i64 [F+1]
//        places i64 [S], ascending word numbers, or null for all
//   out  words i64 [F,W] or [F,S], bits >= num_items zero
//   map  blocks of 4096 items are spread over the threads; a block evaluates the masks of all leaves, 512 bytes each,
//        and then runs each program over whole masks
//   limits  the caller has checked programs and leaves (filter_match.py); W = ceil(num_items / 64)
//   cost 1 M items, 1,024 filters of 3-5 terms over 42 own and 1,286 Bloom leaves, 10 hashes, 172 rows a block, two
//        Zen 4 cores: 14 to 16 ms, half for the leaves and half for the programs
#include <algorithm>
#include <cstdint>
#include <new>
#include <vector>

#include "buffer.h"
#include "filter_pieces.h"
#include "filter_programs.h"
#include "parallel.h"

namespace stcli {
namespace {

// A line of the output is fetched this many filters before it is written: programs 12.1 ms on one core, without 18.5;
// non-temporal stores 19.2.
constexpr int64_t kAhead = 4;

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
    const int64_t num_filters = batch_.num_filters();
    const bool whole = (first + kBlockWords) * 64 <= matrix_.num_items;
    uint64_t spare[kBlockWords];
    for (int64_t f = 0; f < num_filters; ++f) {
      uint64_t* line = out + f * num_words + first;
      if (f + kAhead < num_filters) {
        for (int64_t w = 0; w < words; w += 8) __builtin_prefetch(line + kAhead * num_words + w, 1);
        __builtin_prefetch(line + kAhead * num_words + words - 1, 1);
      }
      kernels_.run_program(batch_.begin(f), batch_.end(f), masks_.as<uint64_t>(), stack_.as<uint64_t>(),
                           whole ? line : spare);
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

// Every word of every filter.
void match_all(const Matrix& matrix, const Batch& batch, uint64_t* out, int threads) {
  std::vector<Worker> workers;
  workers.reserve(static_cast<size_t>(threads));
  for (int t = 0; t < threads; ++t) workers.emplace_back(matrix, batch);
  parallel_for(matrix.num_blocks(), threads,
               [&](int64_t block, int thread) { workers[static_cast<size_t>(thread)].run(block, out); });
}

// The words `places` [count], ascending, of every filter.
void match_places(const Matrix& matrix, const Batch& batch, const int64_t* places, int64_t count, uint64_t* out,
                  int threads) {
  std::vector<Pieces> pieces;
  pieces.reserve(static_cast<size_t>(threads));
  for (int t = 0; t < threads; ++t) pieces.emplace_back(matrix, batch);
  parallel_for((count + kBlockWords - 1) / kBlockWords, threads, [&](int64_t part, int thread) {
    const int64_t first = part * kBlockWords, words = std::min(kBlockWords, count - first);
    Pieces& piece = pieces[static_cast<size_t>(thread)];
    piece.start(places + first, words);
    for (int64_t f = 0; f < batch.num_filters(); ++f) {
      uint64_t* line = out + f * count + first;
      for (int64_t w = 0; w < words && f + kAhead < batch.num_filters(); w += 8)
        __builtin_prefetch(line + kAhead * count + w, 1);
      std::copy_n(piece.run(f), words, line);
    }
  });
}

}  // namespace
}  // namespace stcli

// With `places` null all words; returns 0, or 1 if memory ran out.
extern "C" int stcli_filter_match(const uint64_t* own, const uint64_t* bloom, const int64_t* bloom_offsets,
                                  int64_t num_hashes, int64_t num_items, const int64_t* leaves, int64_t num_leaves,
                                  const int32_t* ops, const int64_t* op_offsets, int64_t num_filters,
                                  const int64_t* places, int64_t num_places, uint64_t* out, int64_t num_threads) try {
  using namespace stcli;
  const Matrix matrix{own, bloom, bloom_offsets, num_hashes, num_items};
  const Batch batch(leaves, num_leaves, ops, op_offsets, num_filters);
  if (places)
    match_places(matrix, batch, places, num_places, out, static_cast<int>(num_threads));
  else
    match_all(matrix, batch, out, static_cast<int>(num_threads));
  return 0;
} catch (const std::bad_alloc&) {
  return 1;
}
