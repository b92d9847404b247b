// The scores of up to 64 candidates of one query, and which of them reach its threshold.
#pragma once
#include <cstdint>

#include "int8_tile.h"
#include "isa.h"

namespace stcli {

// A query as the inner loops need it.
struct ActiveQuery {
  const int8_t* codes;
  const uint64_t* words;  // of its filter, or null
  uint32_t number, list;  // its own, and that of the list that it shares with the other queries of its request
  int32_t offset;         // of its dots
  float scale, inverse_scale, norm, error;
};

// Dots of up to four queries with up to 64 rows, what is known of the rows, and the scores of one query.
struct Candidates {
  alignas(64) int32_t dots[TILE_QUERIES * TILE_ROWS];
  alignas(64) uint32_t rows[TILE_ROWS];
  alignas(64) float scales[TILE_ROWS];
  alignas(64) float errors[TILE_ROWS];
  alignas(64) float norms[TILE_ROWS];
  alignas(64) float tails[TILE_ROWS];
  alignas(64) float scores[TILE_ROWS];
};

template <bool BOUNDS>
STCLI_INLINE void score_body(const ActiveQuery& query, const int32_t* dots, int count, Candidates& all) {
  for (int i = 0; i < count; ++i) {
    const float score = (static_cast<float>(dots[i]) * query.scale) * all.scales[i];
    all.scores[i] = BOUNDS ? score + (query.norm * all.errors[i] + query.error * all.norms[i]) : score;
  }
}

#if STCLI_X86
template <bool BOUNDS>
STCLI_AVX512 uint64_t reaching_avx512(const ActiveQuery& query, const int32_t* dots, float threshold, int count,
                                      Candidates& all) {
  const __m512 scale = _mm512_set1_ps(query.scale), limit = _mm512_set1_ps(threshold);
  const __m512 norm = _mm512_set1_ps(query.norm), error = _mm512_set1_ps(query.error);
  uint64_t mask = 0;
  for (int i = 0; i < count; i += 16) {
    __m512 score = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_load_si512(dots + i)), scale);
    score = _mm512_mul_ps(score, _mm512_load_ps(all.scales + i));
    if (BOUNDS)
      score = _mm512_add_ps(score, _mm512_add_ps(_mm512_mul_ps(norm, _mm512_load_ps(all.errors + i)),
                                                 _mm512_mul_ps(error, _mm512_load_ps(all.norms + i))));
    _mm512_store_ps(all.scores + i, score);
    mask |= static_cast<uint64_t>(_mm512_cmp_ps_mask(score, limit, _CMP_GE_OQ)) << i;
  }
  return mask;
}

template <bool BOUNDS>
STCLI_AVX2 uint64_t reaching_avx2(const ActiveQuery& query, const int32_t* dots, float threshold, int count,
                                  Candidates& all) {
  score_body<BOUNDS>(query, dots, count, all);
  uint64_t mask = 0;
  for (int i = 0; i < count; i += 8) {
    const __m256 hit = _mm256_cmp_ps(_mm256_load_ps(all.scores + i), _mm256_set1_ps(threshold), _CMP_GE_OQ);
    mask |= static_cast<uint64_t>(static_cast<uint32_t>(_mm256_movemask_ps(hit))) << i;
  }
  return mask;
}
#endif

// Fills `scores`; bit i of the result: candidate i reaches the threshold.
template <bool BOUNDS>
inline uint64_t reaching(Isa isa, const ActiveQuery& query, const int32_t* dots, float threshold, int count,
                         Candidates& all) {
  uint64_t mask = 0;
#if STCLI_X86
  if (isa == AVX512) {
    mask = reaching_avx512<BOUNDS>(query, dots, threshold, count, all);
  } else if (isa == AVX2) {
    mask = reaching_avx2<BOUNDS>(query, dots, threshold, count, all);
  } else
#endif
  {
    score_body<BOUNDS>(query, dots, count, all);
    for (int i = 0; i < count; ++i) mask |= static_cast<uint64_t>(all.scores[i] >= threshold) << i;
  }
  return count < TILE_ROWS ? mask & ((uint64_t{1} << count) - 1) : mask;
}

}  // namespace stcli
