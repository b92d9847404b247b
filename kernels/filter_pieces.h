// Filters on a few words: the masks of leaves are made when a filter first asks for them.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "bloom_hash.h"
#include "buffer.h"
#include "filter_programs.h"

namespace stcli {

class Pieces {
 public:
  Pieces(const Matrix& matrix, const Batch& batch)
      : matrix_(matrix),
        batch_(batch),
        kernels_(current_kernels()),
        masks_(static_cast<int64_t>(batch.leaves.size()) * kBlockWords * 8),
        stack_((batch.stack_masks + 1) * kBlockWords * 8),
        made_for_(batch.leaves.size()) {}

  // Begins with the words `places` [count], ascending, at most kBlockWords of them.
  void start(const int64_t* places, int64_t count) {
    places_ = places;
    count_ = count;
    stride_ = (count + 7) / 8 * 8;
    ++piece_;
  }

  // The words of a filter, good until the next call.
  const uint64_t* run(int64_t filter) {
    const Step *begin = batch_.begin(filter), *end = batch_.end(filter);
    for (const Step* step = begin; step != end; ++step) {
      const bool reads = step->kind != kNot && step->kind != kPopAnd && step->kind != kPopOr;
      if (!reads || made_for_[step->leaf] == piece_) continue;
      made_for_[step->leaf] = piece_;
      evaluate(batch_.leaves[step->leaf], masks_.as<uint64_t>() + step->leaf * stride_);
    }
    if (count_ == kBlockWords)
      kernels_.run_program(begin, end, masks_.as<uint64_t>(), stack_.as<uint64_t>(), result_);
    else
      kernels_.run_piece(begin, end, masks_.as<uint64_t>(), stride_, count_, stack_.as<uint64_t>(), result_);
    if (places_[count_ - 1] == matrix_.num_words() - 1 && matrix_.num_items % 64)
      result_[count_ - 1] &= (uint64_t{1} << matrix_.num_items % 64) - 1;
    return result_;
  }

 private:
  void evaluate(const Leaf& leaf, uint64_t* mask) {
    const uint64_t* own = matrix_.own + leaf.a * matrix_.num_words();
    const bool less = leaf.kind == kLeafLess;
    if (leaf.kind == kLeafBloom) {
      evaluate_bloom(static_cast<uint64_t>(leaf.a), mask);
    } else if (leaf.kind == kLeafOwn) {
      for (int64_t i = 0; i < count_; ++i) mask[i] = own[places_[i]];
      __builtin_prefetch(own + places_[count_ - 1] + 8);
    } else if ((less || leaf.kind == kLeafEqual) && leaf.c >> leaf.b == 0) {
      codes_.resize(static_cast<size_t>(leaf.b * count_));
      for (int64_t bit = 0; bit < leaf.b; ++bit)
        for (int64_t i = 0; i < count_; ++i) codes_[bit * count_ + i] = own[bit * matrix_.num_words() + places_[i]];
      uint64_t other[kBlockWords];
      kernels_.compare_codes(codes_.data(), count_, leaf.b, leaf.c, count_, less ? mask : other, less ? other : mask);
    } else {  // also where no code of so many bits reaches c, or c is negative
      std::fill_n(mask, count_, leaf.kind == kLeafAll || (less && leaf.c > 0) ? ~uint64_t{0} : 0);
    }
  }

  void evaluate_bloom(uint64_t term, uint64_t* mask) const {
    for (int64_t begin = 0, end; begin < count_; begin = end) {  // the places of one block
      const int64_t block = places_[begin] / kBlockWords, first_row = matrix_.bloom_offsets[block];
      const int64_t width = matrix_.bloom_offsets[block + 1] - first_row;
      for (end = begin; end < count_ && places_[end] / kBlockWords == block; ++end) mask[end] = width ? ~uint64_t{0} : 0;
      uint64_t state = BloomHash(term, static_cast<uint64_t>(block)).state;
      for (int64_t hash = 0; width && hash < matrix_.num_hashes; ++hash) {
        const uint64_t* row = matrix_.bloom + (first_row + next_bloom_row(state, width)) * kBlockWords;
        for (int64_t i = begin; i < end; ++i) mask[i] &= row[places_[i] % kBlockWords];
      }
    }
  }

  const Matrix& matrix_;
  const Batch& batch_;
  const Kernels kernels_;
  Buffer masks_, stack_;
  std::vector<int64_t> made_for_;  // the last piece that the mask of each leaf was made for
  std::vector<uint64_t> codes_;
  const int64_t* places_ = nullptr;
  int64_t count_ = 0, stride_ = 0, piece_ = 0;
  uint64_t result_[kBlockWords];
};

}  // namespace stcli
