// The best candidates of each query while rows stream past: an unordered list with room to spare and a threshold below
// which nothing can be among the best. Since the order is total (larger score, then smaller row), the result depends on
// the set of candidates alone, not on the order in which threads offer them.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <vector>

namespace stcli {

// Largest key first is the order of the search. A negative zero counts as zero.
inline uint64_t make_key(float score, uint32_t row) {
  score += 0.0f;
  uint32_t bits;
  std::memcpy(&bits, &score, 4);
  bits ^= bits >> 31 ? 0xffffffffu : 0x80000000u;
  return static_cast<uint64_t>(bits) << 32 | (0xffffffffu - row);
}

inline float key_score(uint64_t key) {
  uint32_t bits = static_cast<uint32_t>(key >> 32);
  bits ^= bits >> 31 ? 0x80000000u : 0xffffffffu;
  float score;
  std::memcpy(&score, &bits, 4);
  return score;
}

inline uint32_t key_row(uint64_t key) { return 0xffffffffu - static_cast<uint32_t>(key); }

class BestLists {
 public:
  static constexpr int MAX_OFFER = 64;

  BestLists(int64_t num_queries, int64_t k0)
      : k0_(k0),
        spare_(k0 / 8 + 8),
        capacity_(capacity(k0)),
        heads_(new Head[num_queries]),
        scores_(new float[num_queries * capacity_]),
        rows_(new uint32_t[num_queries * capacity_]) {}

  static int64_t bytes(int64_t k0) { return capacity(k0) * 8; }

  float threshold(int64_t query) const { return heads_[query].threshold.load(std::memory_order_relaxed); }

  // Adds up to MAX_OFFER candidates: score(i) and row(i) of the bits i of `mask`.
  template <class Score>
  void add(int64_t query, uint64_t mask, const uint32_t* rows, const Score& score) {
    Head& head = heads_[query];
    while (head.locked.exchange(true, std::memory_order_acquire)) {
    }
    if (head.count + MAX_OFFER > capacity_) shrink(query);
    float* scores_out = &scores_[query * capacity_];
    uint32_t* rows_out = &rows_[query * capacity_];
    int64_t count = head.count;
    for (; mask; mask &= mask - 1) {
      const int i = __builtin_ctzll(mask);
      scores_out[count] = score(i);
      rows_out[count++] = rows[i];
    }
    head.count = count;
    head.locked.store(false, std::memory_order_release);
  }

  // Writes the best k0, best first; empty slots get row -1 and score -inf. `scores` may be null.
  void finish(int64_t query, std::vector<uint64_t>& keys, int64_t* rows, float* scores) {
    shrink(query);
    const int64_t count = heads_[query].count;
    keys.resize(count);
    for (int64_t i = 0; i < count; ++i) keys[i] = make_key(scores_[query * capacity_ + i], rows_[query * capacity_ + i]);
    std::sort(keys.begin(), keys.end(), std::greater<uint64_t>());
    for (int64_t i = 0; i < k0_; ++i) {
      rows[i] = i < count ? static_cast<int64_t>(key_row(keys[i])) : -1;
      if (scores) scores[i] = i < count ? key_score(keys[i]) : -std::numeric_limits<float>::infinity();
    }
  }

 private:
  struct Head {
    std::atomic<float> threshold{-std::numeric_limits<float>::infinity()};
    std::atomic<bool> locked{false};
    int64_t count = 0;
  };

  static int64_t capacity(int64_t k0) { return k0 + k0 / 8 + 8 + MAX_OFFER + std::max<int64_t>(k0 / 2, 320); }

  // Drops candidates below a threshold that at least k0 reach; at most k0 + spare_ stay.
  void shrink(int64_t query) {
    Head& head = heads_[query];
    if (head.count <= k0_ + spare_) return;
    float* scores = &scores_[query * capacity_];
    uint32_t* rows = &rows_[query * capacity_];
    float low = scores[0], high = scores[0];
    for (int64_t i = 1; i < head.count; ++i) {
      low = scores[i] < low ? scores[i] : low;
      high = scores[i] > high ? scores[i] : high;
    }
    // Halving the interval of scores is some eight passes without a branch to mispredict, where nth_element has many.
    int64_t reached = head.count;
    while (reached > k0_ + spare_) {
      const float middle = 0.5f * low + 0.5f * high;
      if (!(middle > low && middle < high)) return shrink_ties(query);
      int64_t above = 0;
      for (int64_t i = 0; i < head.count; ++i) above += scores[i] >= middle;
      if (above >= k0_) {
        low = middle;
        reached = above;
      } else {
        high = middle;
      }
    }
    int64_t kept = 0;
    for (int64_t i = 0; i < head.count; ++i) {
      const float score = scores[i];
      const uint32_t row = rows[i];
      scores[kept] = score;
      rows[kept] = row;
      kept += score >= low;
    }
    head.count = kept;
    head.threshold.store(low, std::memory_order_relaxed);
  }

  // The exact cut at k0, for lists with many equal scores.
  void shrink_ties(int64_t query) {
    Head& head = heads_[query];
    std::vector<uint64_t> keys(head.count);
    float* scores = &scores_[query * capacity_];
    uint32_t* rows = &rows_[query * capacity_];
    for (int64_t i = 0; i < head.count; ++i) keys[i] = make_key(scores[i], rows[i]);
    std::nth_element(keys.begin(), keys.begin() + (k0_ - 1), keys.end(), std::greater<uint64_t>());
    for (int64_t i = 0; i < k0_; ++i) {
      scores[i] = key_score(keys[i]);
      rows[i] = key_row(keys[i]);
    }
    head.count = k0_;
    head.threshold.store(key_score(keys[k0_ - 1]), std::memory_order_relaxed);
  }

  const int64_t k0_, spare_, capacity_;
  std::unique_ptr<Head[]> heads_;
  std::unique_ptr<float[]> scores_;
  std::unique_ptr<uint32_t[]> rows_;
};

}  // namespace stcli
