// Exact int32 dot products of int8 codes, two ways:
//   tile_dots  four queries with a tile of up to 64 rows, repacked once so that a register holds one step of 16 rows
//   row_dots   one query with listed rows, read where they lie
// Codes are in -127 … 127 and a row has `dim` of them, a multiple of 32. Worst case 2^31 / (255 * 127): dim < 66,000.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "isa.h"

namespace stcli {

constexpr int TILE_ROWS = 64;
// 4 x 4 accumulators: 437 of 468 GOPS that a core can do; 6 x 4 makes g++ 12 spill, 205 (2 cores of AMD EPYC Zen 4).
constexpr int TILE_QUERIES = 4;

// Bytes of a packed tile; AVX2 needs 16 bits a code.
inline int64_t tile_bytes(int dim) { return int64_t{2} * TILE_ROWS * dim; }

// The queries of one call of tile_dots, the last repeated if there are fewer.
struct TileQueries {
  const int8_t* codes[TILE_QUERIES];
  int32_t offsets[TILE_QUERIES];  // see dot_offset
  float limits[TILE_QUERIES];
};

// A limit for float(dot) * row scale that every row with (dot * query scale) * row scale >= threshold reaches; lower by
// much more than float32 loses on numbers of this magnitude. Where products could under- or overflow there is no limit.
STCLI_INLINE float dot_limit(float threshold, float magnitude, float inverse_scale) {
  const float limit = (threshold - 1e-5f * magnitude) * inverse_scale;
  return limit > -1e30f && std::fabs(threshold) > 1e-30f ? limit : -INFINITY;
}

inline int32_t portable_dot(const int8_t* left, const int8_t* right, int dim) {
  int32_t sum = 0;
  for (int d = 0; d < dim; ++d) sum += static_cast<int32_t>(left[d]) * right[d];
  return sum;
}

// What to add to a raw dot of this query. vpdpbusd multiplies unsigned with signed bytes, so rows go in as code + 128.
inline int32_t dot_offset(Isa isa, const int8_t* query, int dim) {
  if (isa != AVX512) return 0;
  int32_t sum = 0;
  for (int d = 0; d < dim; ++d) sum += query[d];
  return -128 * sum;
}

#if STCLI_X86

// Layout: for each 4 codes, for each 16 rows, 64 bytes = 16 rows x 4 codes.
STCLI_AVX512 inline void pack_tile_avx512(const int8_t* rows, int count, int dim, uint8_t* tile) {
  const int groups = (count + 15) / 16;
  const __m512i flip = _mm512_set1_epi8(static_cast<char>(0x80));
  for (int group = 0; group < groups; ++group)
    for (int d = 0; d < dim; d += 16) {
      // Lane i of quarters[j] has 16 codes of row 4 i + j; a transpose within lanes puts 4 codes of all rows together.
      __m512i quarters[4];
      for (int j = 0; j < 4; ++j) {
        __m128i lanes[4];
        for (int i = 0; i < 4; ++i) {
          const int row = group * 16 + 4 * i + j;
          lanes[i] = row < count ? _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows + int64_t{row} * dim + d))
                                 : _mm_setzero_si128();
        }
        __m512i quarter = _mm512_castsi128_si512(lanes[0]);
        quarter = _mm512_inserti32x4(quarter, lanes[1], 1);
        quarter = _mm512_inserti32x4(quarter, lanes[2], 2);
        quarter = _mm512_inserti32x4(quarter, lanes[3], 3);
        quarters[j] = _mm512_xor_si512(quarter, flip);
      }
      const __m512i low01 = _mm512_unpacklo_epi32(quarters[0], quarters[1]);
      const __m512i high01 = _mm512_unpackhi_epi32(quarters[0], quarters[1]);
      const __m512i low23 = _mm512_unpacklo_epi32(quarters[2], quarters[3]);
      const __m512i high23 = _mm512_unpackhi_epi32(quarters[2], quarters[3]);
      uint8_t* out = tile + (int64_t{d / 4} * groups + group) * 64;
      const int64_t step = int64_t{groups} * 64;
      _mm512_store_si512(out, _mm512_unpacklo_epi64(low01, low23));
      _mm512_store_si512(out + step, _mm512_unpackhi_epi64(low01, low23));
      _mm512_store_si512(out + 2 * step, _mm512_unpacklo_epi64(high01, high23));
      _mm512_store_si512(out + 3 * step, _mm512_unpackhi_epi64(high01, high23));
    }
}

template <int GROUPS>
STCLI_AVX512 STCLI_INLINE void tile_step_avx512(__m512i (&sums)[GROUPS], const __m512i (&rows)[GROUPS],
                                                const int8_t* query) {
  int32_t codes;
  std::memcpy(&codes, query, 4);
  const __m512i four = _mm512_set1_epi32(codes);
#pragma GCC unroll 4
  for (int group = 0; group < GROUPS; ++group) sums[group] = _mm512_dpbusd_epi32(sums[group], rows[group], four);
}

template <int GROUPS>
STCLI_AVX512 inline unsigned tile_dots_avx512(const uint8_t* tile, int dim, const TileQueries& queries,
                                              const float* scales, int32_t* dots) {
  __m512i sums[TILE_QUERIES][GROUPS];
#pragma GCC unroll 4
  for (int query = 0; query < TILE_QUERIES; ++query)
#pragma GCC unroll 4
    for (int group = 0; group < GROUPS; ++group) sums[query][group] = _mm512_set1_epi32(queries.offsets[query]);
  for (int64_t d = 0; d < dim; d += 4) {
    __m512i rows[GROUPS];
#pragma GCC unroll 4
    for (int group = 0; group < GROUPS; ++group) rows[group] = _mm512_load_si512(tile + d * 16 * GROUPS + group * 64);
    tile_step_avx512(sums[0], rows, queries.codes[0] + d);
    tile_step_avx512(sums[1], rows, queries.codes[1] + d);
    tile_step_avx512(sums[2], rows, queries.codes[2] + d);
    tile_step_avx512(sums[3], rows, queries.codes[3] + d);
  }
  unsigned found = 0;
#pragma GCC unroll 4
  for (int query = 0; query < TILE_QUERIES; ++query) {
    __m512 largest = _mm512_set1_ps(-INFINITY);
#pragma GCC unroll 4
    for (int group = 0; group < GROUPS; ++group)
      largest = _mm512_max_ps(
          largest, _mm512_mul_ps(_mm512_cvtepi32_ps(sums[query][group]), _mm512_load_ps(scales + group * 16)));
    if (_mm512_cmp_ps_mask(largest, _mm512_set1_ps(queries.limits[query]), _CMP_GE_OQ)) {
      found |= 1u << query;
#pragma GCC unroll 4
      for (int group = 0; group < GROUPS; ++group)
        _mm512_store_si512(dots + query * TILE_ROWS + group * 16, sums[query][group]);
    }
  }
  return found;
}

// Sums over the 16 lanes of four registers.
STCLI_AVX512 STCLI_INLINE __m128i fold_avx512(__m512i a, __m512i b, __m512i c, __m512i d) {
  const __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
  const __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
  const __m512i all = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
  const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
  return _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}

STCLI_AVX512 inline void row_dots_avx512(const int8_t* query, int32_t offset, const int8_t* codes, const uint32_t* rows,
                                         int count, int dim, int32_t* dots) {
  const __m512i flip = _mm512_set1_epi8(static_cast<char>(0x80));
  const int whole = dim / 64 * 64;
  for (int i = 0; i < count; i += 4) {
    const int8_t* row[4];
    for (int j = 0; j < 4; ++j) row[j] = codes + int64_t{rows[i + j < count ? i + j : i]} * dim;
    __m512i sums[4] = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512()};
    for (int d = 0; d < whole; d += 64) {
      const __m512i part = _mm512_loadu_si512(query + d);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j)
        sums[j] = _mm512_dpbusd_epi32(sums[j], _mm512_xor_si512(_mm512_loadu_si512(row[j] + d), flip), part);
    }
    if (whole < dim) {  // the last 32; the upper half of the query is zero, so that of the rows is ignored
      const __m512i part = _mm512_maskz_loadu_epi32(0xff, query + whole);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j)
        sums[j] =
            _mm512_dpbusd_epi32(sums[j], _mm512_xor_si512(_mm512_maskz_loadu_epi32(0xff, row[j] + whole), flip), part);
    }
    const __m128i four = _mm_add_epi32(fold_avx512(sums[0], sums[1], sums[2], sums[3]), _mm_set1_epi32(offset));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(dots + i), four);
  }
}

// Layout: for each 2 codes, for each 8 rows, 32 bytes = 8 rows x 2 codes of 16 bits.
STCLI_AVX2 inline void pack_tile_avx2(const int8_t* rows, int count, int dim, int16_t* tile) {
  for (int first = 0; first < (count + 15) / 16 * 16; first += 8)
    for (int d = 0; d < dim; d += 16) {
      __m256i row[8], pair[8], quad[8];  // a transpose of 8 x 8 pairs of codes
      for (int j = 0; j < 8; ++j) {
        const int8_t* place = rows + int64_t{first + j} * dim + d;
        row[j] = first + j < count ? _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(place)))
                                   : _mm256_setzero_si256();
      }
      for (int j = 0; j < 8; j += 2) {
        pair[j] = _mm256_unpacklo_epi32(row[j], row[j + 1]);
        pair[j + 1] = _mm256_unpackhi_epi32(row[j], row[j + 1]);
      }
      for (int j = 0; j < 8; j += 4)
        for (int i = 0; i < 2; ++i) {
          quad[j + 2 * i] = _mm256_unpacklo_epi64(pair[j + i], pair[j + i + 2]);
          quad[j + 2 * i + 1] = _mm256_unpackhi_epi64(pair[j + i], pair[j + i + 2]);
        }
      int16_t* out = tile + int64_t{d} * TILE_ROWS + 2 * first;
      for (int j = 0; j < 4; ++j) {
        _mm256_store_si256(reinterpret_cast<__m256i*>(out + 2 * j * TILE_ROWS),
                           _mm256_permute2x128_si256(quad[j], quad[j + 4], 0x20));
        _mm256_store_si256(reinterpret_cast<__m256i*>(out + 2 * (j + 4) * TILE_ROWS),
                           _mm256_permute2x128_si256(quad[j], quad[j + 4], 0x31));
      }
    }
}

STCLI_AVX2 STCLI_INLINE void tile_step_avx2(__m256i (&sums)[2], __m256i first, __m256i second, const int16_t* query) {
  int32_t codes;
  std::memcpy(&codes, query, 4);
  const __m256i two = _mm256_set1_epi32(codes);
  sums[0] = _mm256_add_epi32(sums[0], _mm256_madd_epi16(first, two));
  sums[1] = _mm256_add_epi32(sums[1], _mm256_madd_epi16(second, two));
}

STCLI_AVX2 inline unsigned tile_dots_avx2(const int16_t* tile, int count, int dim, const TileQueries& queries,
                                          const float* scales, int32_t* dots) {
  constexpr int SLICE = 512;
  alignas(32) int16_t wide[TILE_QUERIES][SLICE];
  __m256 largest[TILE_QUERIES];
  for (int query = 0; query < TILE_QUERIES; ++query) largest[query] = _mm256_set1_ps(-INFINITY);
  for (int begin = 0; begin < dim; begin += SLICE) {
    const int length = dim - begin < SLICE ? dim - begin : SLICE;
    for (int query = 0; query < TILE_QUERIES; ++query)
      for (int d = 0; d < length; ++d) wide[query][d] = queries.codes[query][begin + d];
    for (int row = 0; row < count; row += 16) {
      __m256i sums[TILE_QUERIES][2];
#pragma GCC unroll 4
      for (int query = 0; query < TILE_QUERIES; ++query) {
        const __m256i* known = reinterpret_cast<const __m256i*>(dots + query * TILE_ROWS + row);
        sums[query][0] = begin ? _mm256_load_si256(known) : _mm256_setzero_si256();
        sums[query][1] = begin ? _mm256_load_si256(known + 1) : _mm256_setzero_si256();
      }
      for (int d = 0; d < length; d += 2) {
        const int16_t* place = tile + int64_t{begin + d} * TILE_ROWS + 2 * row;
        const __m256i first = _mm256_load_si256(reinterpret_cast<const __m256i*>(place));
        const __m256i second = _mm256_load_si256(reinterpret_cast<const __m256i*>(place + 16));
        tile_step_avx2(sums[0], first, second, &wide[0][d]);
        tile_step_avx2(sums[1], first, second, &wide[1][d]);
        tile_step_avx2(sums[2], first, second, &wide[2][d]);
        tile_step_avx2(sums[3], first, second, &wide[3][d]);
      }
      const bool whole = begin + length == dim;
#pragma GCC unroll 4
      for (int query = 0; query < TILE_QUERIES; ++query)
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
          const int place = row + 8 * half;
          _mm256_store_si256(reinterpret_cast<__m256i*>(dots + query * TILE_ROWS + place), sums[query][half]);
          if (whole)
            largest[query] = _mm256_max_ps(
                largest[query], _mm256_mul_ps(_mm256_cvtepi32_ps(sums[query][half]), _mm256_load_ps(scales + place)));
        }
    }
  }
  unsigned found = 0;
  for (int query = 0; query < TILE_QUERIES; ++query) {
    const __m256 limit = _mm256_set1_ps(queries.limits[query]);
    found |= static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(largest[query], limit, _CMP_GE_OQ)) != 0) << query;
  }
  return found;
}

STCLI_AVX2 inline void row_dots_avx2(const int8_t* query, const int8_t* codes, const uint32_t* rows, int count, int dim,
                                     int32_t* dots) {
  for (int i = 0; i < count; ++i) {
    const int8_t* row = codes + int64_t{rows[i]} * dim;
    __m256i sum = _mm256_setzero_si256();
    for (int d = 0; d < dim; d += 16) {
      const __m256i left = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(query + d)));
      const __m256i right = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(row + d)));
      sum = _mm256_add_epi32(sum, _mm256_madd_epi16(left, right));
    }
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1));
    dots[i] = _mm_cvtsi128_si32(four);
  }
}

#endif  // STCLI_X86

// Prepares `count` rows (at most TILE_ROWS), contiguous from `rows`, for tile_dots; `tile` is aligned to 64 bytes.
inline void pack_tile(Isa isa, const int8_t* rows, int count, int dim, uint8_t* tile) {
#if STCLI_X86
  if (isa == AVX512) return pack_tile_avx512(rows, count, dim, tile);
  if (isa == AVX2) return pack_tile_avx2(rows, count, dim, reinterpret_cast<int16_t*>(tile));
#endif
  std::memcpy(tile, rows, int64_t{count} * dim);
}

// dots[q][r] for the queries and the rows of a tile, stride TILE_ROWS, aligned to 64 bytes; entries past `count` are
// unspecified. Returns the queries that have a row with float(dot) * scale >= limit as bits, or more; the dots of the
// others may be missing. `scales` has TILE_ROWS entries, 0 past `count`.
inline unsigned tile_dots(Isa isa, const uint8_t* tile, int count, int dim, const TileQueries& queries,
                          const float* scales, int32_t* dots) {
#if STCLI_X86
  if (isa == AVX512) {
    if (count > 48) return tile_dots_avx512<4>(tile, dim, queries, scales, dots);
    if (count > 32) return tile_dots_avx512<3>(tile, dim, queries, scales, dots);
    if (count > 16) return tile_dots_avx512<2>(tile, dim, queries, scales, dots);
    return tile_dots_avx512<1>(tile, dim, queries, scales, dots);
  }
#endif
#if STCLI_X86
  if (isa == AVX2) return tile_dots_avx2(reinterpret_cast<const int16_t*>(tile), count, dim, queries, scales, dots);
#endif
  const int8_t* rows = reinterpret_cast<const int8_t*>(tile);
  for (int query = 0; query < TILE_QUERIES; ++query)
    for (int row = 0; row < count; ++row)
      dots[query * TILE_ROWS + row] = portable_dot(queries.codes[query], rows + int64_t{row} * dim, dim);
  return (1u << TILE_QUERIES) - 1;
}

// dots[i] of one query and codes row rows[i]; may write up to three entries past `count`.
inline void row_dots(Isa isa, const int8_t* query, int32_t offset, const int8_t* codes, const uint32_t* rows, int count,
                     int dim, int32_t* dots) {
#if STCLI_X86
  if (isa == AVX512) return row_dots_avx512(query, offset, codes, rows, count, dim, dots);
  if (isa == AVX2) return row_dots_avx2(query, codes, rows, count, dim, dots);
#endif
  for (int i = 0; i < count; ++i) dots[i] = portable_dot(query, codes + int64_t{rows[i]} * dim, dim);
}

}  // namespace stcli
