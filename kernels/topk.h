// The best candidates of each query while rows stream past: an unordered list with room to spare, and a threshold below
// which nothing can be among the best. Since the order is total (larger score, then smaller row), the result depends on
// the set of candidates alone, not on the order in which threads offer them.
#pragma once
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <utility>
#include <vector>

#include "buffer.h"
#include "isa.h"

namespace stcli {

// Larger key: larger score, then smaller row. A negative zero counts as zero.
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

// Sorts keys, largest first, by the bytes of the score that differ at all, and then the few runs of equal scores.
// 140 keys: 1.0 us, std::sort 2.8 us (2 cores of AMD EPYC Zen 4).
inline void sort_keys(std::vector<uint64_t>& keys, std::vector<uint64_t>& spare) {
  const size_t count = keys.size();
  if (count < 2) return;
  uint64_t all = keys[0], any = keys[0];
  for (uint64_t key : keys) all &= key, any |= key;
  spare.resize(count);
  for (int shift = 32; shift < 64; shift += 8) {
    if (((all ^ any) >> shift & 0xff) == 0) continue;
    std::array<uint32_t, 257> places{};
    for (uint64_t key : keys) ++places[256 - (key >> shift & 0xff)];
    for (int byte = 1; byte < 257; ++byte) places[byte] += places[byte - 1];
    for (uint64_t key : keys) spare[places[255 - (key >> shift & 0xff)]++] = key;
    keys.swap(spare);
  }
  for (size_t begin = 0, end; begin < count; begin = end) {
    for (end = begin + 1; end < count && keys[end] >> 32 == keys[begin] >> 32;) ++end;
    if (end - begin > 1) std::sort(keys.begin() + begin, keys.begin() + end, std::greater<uint64_t>());
  }
}

STCLI_INLINE int32_t count_reaching_body(const float* scores, int32_t count, float threshold) {
  int32_t reached = 0;
  for (int32_t i = 0; i < count; ++i) reached += scores[i] >= threshold;
  return reached;
}

STCLI_INLINE void range_body(const float* scores, int32_t count, float& low, float& high) {
  float lows[16], highs[16];  // lanes, since the compiler may not reorder a plain minimum
  for (int j = 0; j < 16; ++j) lows[j] = highs[j] = scores[0];
  for (int32_t i = 0; i + 16 <= count; i += 16)
    for (int j = 0; j < 16; ++j) {
      lows[j] = scores[i + j] < lows[j] ? scores[i + j] : lows[j];
      highs[j] = scores[i + j] > highs[j] ? scores[i + j] : highs[j];
    }
  low = *std::min_element(lows, lows + 16);
  high = *std::max_element(highs, highs + 16);
  for (int32_t i = count / 16 * 16; i < count; ++i) low = std::min(low, scores[i]), high = std::max(high, scores[i]);
}

#if STCLI_X86
STCLI_AVX512 inline int32_t count_reaching_avx512(const float* scores, int32_t count, float threshold) {
  return count_reaching_body(scores, count, threshold);
}

STCLI_AVX512 inline void range_avx512(const float* scores, int32_t count, float& low, float& high) {
  range_body(scores, count, low, high);
}

// Both write whole registers, up to 15 entries past the end.
STCLI_AVX512 inline int32_t keep_reaching_avx512(float* scores, uint32_t* rows, int32_t count, float threshold) {
  int32_t kept = 0;
  for (int32_t i = 0; i < count; i += 16) {
    const __m512 score = _mm512_loadu_ps(scores + i);
    const __m512i row = _mm512_loadu_si512(rows + i);
    __mmask16 mask = _mm512_cmp_ps_mask(score, _mm512_set1_ps(threshold), _CMP_GE_OQ);
    if (count - i < 16) mask &= (1 << (count - i)) - 1;
    // To a register first: a compressing store is microcode on Zen 4.
    _mm512_storeu_ps(scores + kept, _mm512_maskz_compress_ps(mask, score));
    _mm512_storeu_si512(rows + kept, _mm512_maskz_compress_epi32(mask, row));
    kept += __builtin_popcount(mask);
  }
  return kept;
}

STCLI_AVX512 inline int32_t append_avx512(float* scores, uint32_t* rows, int32_t count, uint64_t mask,
                                          const float* new_scores, const uint32_t* new_rows) {
  for (int i = 0; mask >> i; i += 16) {
    const __mmask16 part = static_cast<__mmask16>(mask >> i);
    if (part) {
      _mm512_storeu_ps(scores + count, _mm512_maskz_compress_ps(part, _mm512_loadu_ps(new_scores + i)));
      _mm512_storeu_si512(rows + count, _mm512_maskz_compress_epi32(part, _mm512_loadu_si512(new_rows + i)));
      count += __builtin_popcount(part);
    }
    if (i == 48) break;
  }
  return count;
}
#endif

class BestLists {
 public:
  static constexpr int32_t MAX_OFFER = 64;
  // Room beyond what shrinking keeps. 96 / 160 / 320: 24.1 / 24.0 / 26.9 us a query (search_clusters, 64 of 4,096
  // clusters, 1M x 128, k0 = 132, CPU time on 2 cores of AMD EPYC Zen 4).
  static constexpr int64_t MIN_SPARE = 160;

  BestLists(Isa isa, int64_t num_queries, int64_t k0)
      : isa_(isa),
        k0_(static_cast<int32_t>(k0)),
        kept_(static_cast<int32_t>(k0 + k0 / 8 + 8)),
        full_(full(k0)),
        stride_(bytes(k0) / 4),
        heads_(num_queries),
        lists_(num_queries * bytes(k0)) {}

  // Keeps the rows begins[query] … ends[query] - 1 of `rows`, in any order, out of the lists of each query.
  void exclude(const int64_t* rows, const int64_t* begins, const int64_t* ends) {
    excluded_ = rows;
    begins_ = begins;
    ends_ = ends;
  }

  static int64_t bytes(int64_t k0) { return 8 * (full(k0) + MAX_OFFER + 16); }

  float threshold(int64_t query) const { return heads_[query].threshold; }

  // Nothing below `threshold` will be among the best.
  void start_threshold(int64_t query, float threshold) { heads_[query].threshold = threshold; }

  // Adds the candidates (scores[i], rows[i]) of the bits i of `mask`.
  void add(int64_t query, uint64_t mask, const float* scores, const uint32_t* rows) {
    Head& head = heads_[query];
    const List list = this->list(query);
    int32_t count = head.count;
#if STCLI_X86
    if (isa_ == AVX512) {
      count = append_avx512(list.scores, list.rows, count, mask, scores, rows);
    } else
#endif
      for (; mask; mask &= mask - 1) {
        const int i = __builtin_ctzll(mask);
        list.scores[count] = scores[i];
        list.rows[count++] = rows[i];
      }
    head.count = count;
    if (count > full_) shrink(query);
  }

  // Adds what another thread found for the same query.
  void add_all(int64_t query, const BestLists& other) {
    const List list = other.list(query);
    for (int32_t i = 0; i < other.heads_[query].count; i += MAX_OFFER) {
      const int32_t left = other.heads_[query].count - i;
      add(query, left < MAX_OFFER ? (uint64_t{1} << left) - 1 : ~uint64_t{0}, list.scores + i, list.rows + i);
    }
  }

  // Writes the best k0, best first; empty slots get row -1 and score -inf. `scores` may be null.
  void finish(int64_t query, std::vector<uint64_t>& keys, std::vector<uint64_t>& spare, int64_t* rows, float* scores) {
    shrink(query);
    const Head& head = heads_[query];
    const List list = this->list(query);
    keys.resize(head.count);
    for (int32_t i = 0; i < head.count; ++i) keys[i] = make_key(list.scores[i], list.rows[i]);
    sort_keys(keys, spare);
    for (int32_t i = 0; i < k0_; ++i) {
      rows[i] = i < head.count ? static_cast<int64_t>(key_row(keys[i])) : -1;
      if (scores) scores[i] = i < head.count ? key_score(keys[i]) : -std::numeric_limits<float>::infinity();
    }
  }

 private:
  struct Head {
    float threshold = -std::numeric_limits<float>::infinity();
    int32_t count = 0;
  };

  struct List {
    float* scores;
    uint32_t* rows;
  };

  // Entries at which a list is shrunk.
  static int64_t full(int64_t k0) { return k0 + k0 / 8 + 8 + std::max<int64_t>(k0 / 2, MIN_SPARE); }

  List list(int64_t query) const {
    float* scores = lists_.as<float>() + query * stride_;
    return {scores, reinterpret_cast<uint32_t*>(scores + stride_ / 2)};
  }

  int32_t count_reaching(const List& list, int32_t count, float threshold) const {
#if STCLI_X86
    if (isa_ == AVX512) return count_reaching_avx512(list.scores, count, threshold);
#endif
    return count_reaching_body(list.scores, count, threshold);
  }

  // Drops what is excluded from a list, when it is shrunk: one pass over the query's excluded rows for all candidates,
  // so that they need no order. 1.2 us for 500 rows and 290 candidates, three times a query (AMD EPYC Zen 4).
  void drop_excluded(int64_t query, Head& head, const List& list) {
    const int64_t *begin = excluded_ + begins_[query], *end = excluded_ + ends_[query];
    if (begin == end || !head.count) return;
    // A hash table of the candidates: the last one in each slot, and the one before each.
    size_t slots = 1024;
    while (slots < 8 * static_cast<size_t>(head.count)) slots *= 2;
    const size_t mask = slots - 1;
    last_.assign(slots, -1);
    before_.resize(head.count);
    for (int32_t i = 0; i < head.count; ++i) before_[i] = std::exchange(last_[list.rows[i] & mask], i);
    for (const int64_t* row = begin; row != end; ++row)
      for (int32_t i = last_[*row & mask]; i >= 0; i = before_[i])
        if (list.rows[i] == *row) list.scores[i] = std::numeric_limits<float>::quiet_NaN();
    head.count = keep_reaching(list, head.count, -std::numeric_limits<float>::infinity());
  }

  // Drops candidates below a threshold that at least k0 reach; at most kept_ stay.
  void shrink(int64_t query) {
    Head& head = heads_[query];
    const List list = this->list(query);
    if (excluded_) drop_excluded(query, head, list);
    if (head.count <= kept_) return;
    float low, high;
#if STCLI_X86
    if (isa_ == AVX512) {
      range_avx512(list.scores, head.count, low, high);
    } else
#endif
      range_body(list.scores, head.count, low, high);
    // Halving the range of scores takes some eight passes that mispredict nothing, unlike nth_element.
    for (int32_t reached = head.count; reached > kept_;) {
      const float middle = 0.5f * low + 0.5f * high;
      if (!(middle > low && middle < high)) return shrink_ties(head, list);
      const int32_t above = count_reaching(list, head.count, middle);
      if (above >= k0_) {
        low = middle;
        reached = above;
      } else {
        high = middle;
      }
    }
    head.count = keep_reaching(list, head.count, low);
    head.threshold = low;
  }

  int32_t keep_reaching(const List& list, int32_t count, float threshold) const {
#if STCLI_X86
    if (isa_ == AVX512) return keep_reaching_avx512(list.scores, list.rows, count, threshold);
#endif
    int32_t kept = 0;
    for (int32_t i = 0; i < count; ++i) {
      const float score = list.scores[i];
      list.scores[kept] = score;
      list.rows[kept] = list.rows[i];
      kept += score >= threshold;
    }
    return kept;
  }

  // The exact cut at k0, for lists with many equal scores.
  void shrink_ties(Head& head, const List& list) {
    std::vector<uint64_t> keys(head.count);
    for (int32_t i = 0; i < head.count; ++i) keys[i] = make_key(list.scores[i], list.rows[i]);
    std::nth_element(keys.begin(), keys.begin() + (k0_ - 1), keys.end(), std::greater<uint64_t>());
    for (int32_t i = 0; i < k0_; ++i) {
      list.scores[i] = key_score(keys[i]);
      list.rows[i] = key_row(keys[i]);
    }
    head.count = k0_;
    head.threshold = key_score(keys[k0_ - 1]);
  }

  const Isa isa_;
  const int32_t k0_, kept_, full_;
  const int64_t stride_;
  const int64_t *excluded_ = nullptr, *begins_ = nullptr, *ends_ = nullptr;
  std::vector<int32_t> last_, before_;
  std::vector<Head> heads_;
  Buffer lists_;
};

}  // namespace stcli
