// Some queries as seen from the centroid of a cluster, and which of its tiles they need: the loops over queries of prune.h.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "buffer.h"
#include "int8_tile.h"
#include "isa.h"

namespace stcli {

// What bounds the rows of a tile.
struct SeenTile {
  float along_low, along_high, across, error, norm;
};

// The dot of the directions of a query and of the centroid is dot of the codes * factor / root of the query's square; the
// same for their tails. The last four bound the rows of the cluster.
struct SeenCluster {
  float factor, tail_factor, tail_low, tail_high, error, norm;
};

// Some queries, and where they lie as seen from one centroid: parts of their directions along its own, lengths of what is
// left of these (1 at most), the same for their tails, and what they need. `needed` are scores over lengths. The others are
// in units of the query's scale: the dot of the head plus tail * tails() of the row must reach the head limit, the dot of
// all dims the limit.
struct QueryView {
  std::vector<uint32_t> queries;
  std::vector<float> inverse_scales, lengths, inverse_lengths, inverse_roots, tail_lengths, tail_roots,
      inverse_tail_roots, norms, errors, along, across, tail_along, tail_across, needed, head_limits,
      tails, limits, bounds;
  std::vector<int32_t> head_offsets;     // dot_offset
  float most_norm, most_error;           // of a query over its length
  int64_t first_cluster;                 // of those of which the dots are known: of all dims, and of the tail
  std::vector<int32_t> dots, tail_dots;  // [TILE_QUERIES, stride]
  std::vector<int8_t> rows;
  Buffer tiles{0}, heads{0};  // the codes of the queries, packed; int8 [queries, head]
  size_t room = 0;            // queries for which these have room

  size_t stride() const { return (queries.size() + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS; }
};

// A smaller inverse only makes bounds looser.
inline float inverse(float number) { return number > 0 ? std::min(1 / number, 1e30f) : 0.0f; }

// The square of what is left of a unit vector without a part of it, plus (2e-3)^2: much more than float32 loses in the few
// operations here and in the scores.
STCLI_INLINE float rest(float part) {
  const float left = 1 - part * part;
  return (left > 0 ? left : 0.0f) + 4e-6f;
}

STCLI_INLINE void split_body(const int32_t* dots, float factor, size_t count, const float* inverse_roots,
                             float* along, float* across) {
#pragma GCC ivdep
  for (size_t i = 0; i < count; ++i) {
    along[i] = static_cast<float>(dots[i]) * factor * inverse_roots[i];
    across[i] = rest(along[i]);
  }
}

STCLI_INLINE void need_body(const SeenCluster& seen, const float* thresholds, QueryView& view) {
  const float *norms = view.norms.data(), *errors = view.errors.data(), *inverse_scales = view.inverse_scales.data();
  const float *lengths = view.lengths.data(), *inverse_lengths = view.inverse_lengths.data();
  const float *tail_along = view.tail_along.data(), *tail_across = view.tail_across.data();
  const float *tail_lengths = view.tail_lengths.data(), *tail_roots = view.tail_roots.data();
  float *needed = view.needed.data(), *head_limits = view.head_limits.data();
  float *tails = view.tails.data(), *limits = view.limits.data();
  const size_t count = view.queries.size();
#pragma GCC ivdep
  for (size_t i = 0; i < count; ++i) {
    const float slack = norms[i] * seen.error + errors[i] * seen.norm;
    const float threshold = thresholds[i] - slack, magnitude = std::fabs(thresholds[i]) + slack;
    const float along = tail_along[i] * tail_lengths[i];
    const float low = along * seen.tail_low, high = along * seen.tail_high;
    needed[i] = dot_limit(thresholds[i], 0, inverse_lengths[i]);
    head_limits[i] =
        dot_limit(threshold - (low > high ? low : high), magnitude + 4 * lengths[i] * seen.norm, inverse_scales[i]);
    tails[i] = tail_across[i] * tail_roots[i];
    limits[i] = dot_limit(threshold, magnitude, inverse_scales[i]);
  }
}

STCLI_INLINE void bound_body(const SeenTile& tile, float slack, QueryView& view) {
  const float *along = view.along.data(), *across = view.across.data();
  float* bounds = view.bounds.data();
  const size_t count = view.queries.size();
#pragma GCC ivdep
  for (size_t i = 0; i < count; ++i) {
    const float low = along[i] * tile.along_low, high = along[i] * tile.along_high;
    bounds[i] = (low > high ? low : high) + across[i] * tile.across + slack;
  }
}

#if STCLI_X86
STCLI_AVX2 inline void split_avx2(const int32_t* dots, float factor, size_t count, const float* inverse_roots,
                                  float* along, float* across) {
  split_body(dots, factor, count, inverse_roots, along, across);
}

STCLI_AVX2 inline void need_avx2(const SeenCluster& seen, const float* thresholds, QueryView& view) {
  need_body(seen, thresholds, view);
}

STCLI_AVX2 inline void bound_avx2(const SeenTile& tile, float slack, QueryView& view) { bound_body(tile, slack, view); }

STCLI_AVX512 inline int64_t pick_avx512(const SeenTile& tile, float slack, const QueryView& view, uint32_t* picked) {
  const float *along = view.along.data(), *across = view.across.data(), *needed = view.needed.data();
  const __m512 low = _mm512_set1_ps(tile.along_low), high = _mm512_set1_ps(tile.along_high);
  const __m512 rest = _mm512_set1_ps(tile.across), more = _mm512_set1_ps(slack);
  const size_t count = view.queries.size();
  __m512i places = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  int64_t kept = 0;
  for (size_t i = 0; i < count; i += 16) {
    const __mmask16 inside = count - i < 16 ? (1 << (count - i)) - 1 : 0xffff;
    const __m512 part = _mm512_maskz_loadu_ps(inside, along + i);
    const __m512 most = _mm512_max_ps(_mm512_mul_ps(part, low), _mm512_mul_ps(part, high));
    const __m512 bound = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(inside, across + i), rest, _mm512_add_ps(most, more));
    const __mmask16 mask =
        _mm512_mask_cmp_ps_mask(inside, bound, _mm512_maskz_loadu_ps(inside, needed + i), _CMP_NLT_UQ);
    _mm512_storeu_si512(picked + kept, _mm512_maskz_compress_epi32(mask, places));
    kept += __builtin_popcount(mask);
    places = _mm512_add_epi32(places, _mm512_set1_epi32(16));
  }
  return kept;
}
#endif

inline void square_roots(float* numbers, size_t count) {
  size_t i = 0;
#if STCLI_X86
  for (; i + 4 <= count; i += 4) _mm_storeu_ps(numbers + i, _mm_sqrt_ps(_mm_loadu_ps(numbers + i)));
#endif
  for (; i < count; ++i) numbers[i] = std::sqrt(numbers[i]);
}

// From dots with a direction: parts of the queries' directions along it, and lengths of what is left.
inline void split(Isa isa, const int32_t* dots, float factor, const std::vector<float>& inverse_roots,
                  std::vector<float>& along, std::vector<float>& across) {
  const size_t count = inverse_roots.size();
#if STCLI_X86
  if (isa != PORTABLE)
    split_avx2(dots, factor, count, inverse_roots.data(), along.data(), across.data());
  else
#endif
    split_body(dots, factor, count, inverse_roots.data(), along.data(), across.data());
  square_roots(across.data(), count);
}

// Fills what queries need that look for these scores.
inline void find_needs(Isa isa, const SeenCluster& seen, const float* thresholds, QueryView& view) {
#if STCLI_X86
  if (isa != PORTABLE) return need_avx2(seen, thresholds, view);
#endif
  need_body(seen, thresholds, view);
}

// Lists those i of the view whose bound for a tile reaches what they need; returns how many. `picked` has room for 16 more.
inline int64_t pick(Isa isa, const SeenTile& tile, QueryView& view, uint32_t* picked) {
  const float slack = view.most_norm * tile.error + view.most_error * tile.norm;
#if STCLI_X86
  if (isa == AVX512) return pick_avx512(tile, slack, view, picked);
  if (isa == AVX2)
    bound_avx2(tile, slack, view);
  else
#endif
    bound_body(tile, slack, view);
  int64_t kept = 0;
  for (size_t i = 0; i < view.queries.size(); ++i) {
    picked[kept] = static_cast<uint32_t>(i);
    kept += !(view.bounds[i] < view.needed[i]);
  }
  return kept;
}

}  // namespace stcli
