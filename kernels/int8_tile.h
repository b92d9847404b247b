// Exact int32 dot products of a block of queries with a tile of rows of int8 codes, repacked once so that a register holds
// one step of 16 rows: of four queries with up to 64 rows, or of eight with up to 32. A row has `dim` codes, a multiple of
// 32.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "int8_dot.h"
#include "isa.h"

namespace stcli {

constexpr int TILE_ROWS = 64;
// 4 x 4 accumulators: 437 of 468 GOPS that a core can do; 6 x 4 makes g++ 12 spill, 205 (2 cores of AMD EPYC Zen 4).
constexpr int TILE_QUERIES = 4;
// Rows of a tile for blocks of that many queries, and the stride of their dots: the accumulators are as many.
template <int QUERIES>
constexpr int ROWS_FOR = TILE_QUERIES * TILE_ROWS / QUERIES;

// Bytes of a packed tile; AVX2 needs 16 bits a code.
inline int64_t tile_bytes(int dim) { return int64_t{2} * TILE_ROWS * dim; }

// The queries of one call of tile_dots, the last repeated if there are fewer.
template <int QUERIES>
struct TileQueries {
  const int8_t* codes[QUERIES];
  int32_t offsets[QUERIES];  // see dot_offset
  float limits[QUERIES];
  float tails[QUERIES];  // for tile_heads
};

// The rows of a packed tile, and the dims begin … end - 1 of theirs, multiples of 4, that are multiplied.
struct TileRows {
  const uint8_t* tile;
  int count, dim, begin, end;
  const float* scales;  // as many entries as a tile may have rows, 0 past `count`
  const float* tails;   // as many, for tile_heads
};

// A limit for float(dot) * row scale that every row with (dot * query scale) * row scale >= threshold reaches; lower by
// much more than float32 loses on numbers of this magnitude. Where products could under- or overflow there is no limit.
STCLI_INLINE float dot_limit(float threshold, float magnitude, float inverse_scale) {
  const float limit = (threshold - 1e-5f * magnitude) * inverse_scale;
  return (limit > -1e30f) & (std::fabs(threshold) > 1e-30f) ? limit : -INFINITY;  // & for the vectorizer
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
  // Not _mm512_dpbusd_epi32, for which g++ 12 moves every sum to another register and back.
#pragma GCC unroll 4
  for (int group = 0; group < GROUPS; ++group)
    asm("vpdpbusd %2, %1, %0" : "+v"(sums[group]) : "v"(rows[group]), "v"(four));
}

template <int QUERIES, int GROUPS>
using TileSums = __m512i[QUERIES][GROUPS];

// Adds the products of the dims of the tile.
template <int QUERIES, int GROUPS>
STCLI_AVX512 STCLI_INLINE void multiply_avx512(const TileRows& tile, const TileQueries<QUERIES>& queries,
                                               TileSums<QUERIES, GROUPS>& sums) {
  const uint8_t* codes = tile.tile;
  const int64_t end = tile.end;
  for (int64_t d = tile.begin; d < end; d += 4) {
    __m512i rows[GROUPS];
#pragma GCC unroll 4
    for (int group = 0; group < GROUPS; ++group) rows[group] = _mm512_load_si512(codes + d * 16 * GROUPS + group * 64);
#pragma GCC unroll 8
    for (int query = 0; query < QUERIES; ++query) tile_step_avx512(sums[query], rows, queries.codes[query] + d);
  }
}

template <int QUERIES, int GROUPS>
STCLI_AVX512 inline unsigned tile_dots_avx512(const TileRows& tile, const TileQueries<QUERIES>& queries,
                                              int32_t* dots) {
  constexpr int STRIDE = ROWS_FOR<QUERIES>;
  TileSums<QUERIES, GROUPS> sums;
#pragma GCC unroll 8
  for (int query = 0; query < QUERIES; ++query)
#pragma GCC unroll 4
    for (int group = 0; group < GROUPS; ++group) {
      sums[query][group] = _mm512_set1_epi32(queries.offsets[query]);
      if (tile.begin)
        sums[query][group] =
            _mm512_add_epi32(sums[query][group], _mm512_load_si512(dots + query * STRIDE + group * 16));
    }
  multiply_avx512<QUERIES, GROUPS>(tile, queries, sums);
  unsigned found = 0;
#pragma GCC unroll 8
  for (int query = 0; query < QUERIES; ++query) {
    __m512 largest = _mm512_set1_ps(-INFINITY);
#pragma GCC unroll 4
    for (int group = 0; group < GROUPS; ++group)
      largest = _mm512_max_ps(
          largest, _mm512_mul_ps(_mm512_cvtepi32_ps(sums[query][group]), _mm512_load_ps(tile.scales + group * 16)));
    if (_mm512_cmp_ps_mask(largest, _mm512_set1_ps(queries.limits[query]), _CMP_GE_OQ)) {
      found |= 1u << query;
#pragma GCC unroll 4
      for (int group = 0; group < GROUPS; ++group)
        _mm512_store_si512(dots + query * STRIDE + group * 16, sums[query][group]);
    }
  }
  return found;
}

// Without branches: which queries are found is hard to predict.
template <int QUERIES, int GROUPS>
STCLI_AVX512 inline unsigned tile_heads_avx512(const TileRows& tile, const TileQueries<QUERIES>& queries,
                                               int32_t* dots) {
  TileSums<QUERIES, GROUPS> sums;
#pragma GCC unroll 8
  for (int query = 0; query < QUERIES; ++query)
#pragma GCC unroll 4
    for (int group = 0; group < GROUPS; ++group) sums[query][group] = _mm512_set1_epi32(queries.offsets[query]);
  multiply_avx512<QUERIES, GROUPS>(tile, queries, sums);
  __m512 scales[GROUPS], tails[GROUPS];
#pragma GCC unroll 4
  for (int group = 0; group < GROUPS; ++group) {
    scales[group] = _mm512_load_ps(tile.scales + group * 16);
    tails[group] = _mm512_load_ps(tile.tails + group * 16);
  }
  unsigned found = 0;
#pragma GCC unroll 8
  for (int query = 0; query < QUERIES; ++query) {
    const __m512 tail = _mm512_set1_ps(queries.tails[query]);
    __m512 largest = _mm512_set1_ps(-INFINITY);
#pragma GCC unroll 4
    for (int group = 0; group < GROUPS; ++group) {
      _mm512_store_si512(dots + group * 16, sums[query][group]);
      const __m512 score = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[query][group]), scales[group]);
      largest = _mm512_max_ps(largest, _mm512_fmadd_ps(tail, tails[group], score));
    }
    const unsigned hit =
        _mm512_cmp_ps_mask(largest, _mm512_set1_ps(queries.limits[query]), _CMP_GE_OQ) != 0;
    found |= hit << query;
    dots += hit * ROWS_FOR<QUERIES>;
  }
  return found;
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

template <bool TAILS, int QUERIES>
STCLI_AVX2 inline unsigned tile_dots_avx2(const TileRows& tile, const TileQueries<QUERIES>& queries, int32_t* dots) {
  constexpr int SLICE = 512, STRIDE = ROWS_FOR<QUERIES>;
  constexpr int AT_ONCE = 4;  // queries whose sums of 16 rows have registers
  alignas(32) int16_t wide[QUERIES][SLICE];
  const int16_t* codes = reinterpret_cast<const int16_t*>(tile.tile);
  __m256 largest[QUERIES];
  for (int query = 0; query < QUERIES; ++query) largest[query] = _mm256_set1_ps(-INFINITY);
  for (int begin = tile.begin; begin < tile.end; begin += SLICE) {
    const int length = tile.end - begin < SLICE ? tile.end - begin : SLICE;
    const bool whole = begin + length == tile.end;
    for (int query = 0; query < QUERIES; ++query)
      for (int d = 0; d < length; ++d) wide[query][d] = queries.codes[query][begin + d];
    for (int row = 0; row < tile.count; row += 16)
      for (int first = 0; first < QUERIES; first += AT_ONCE) {
        __m256i sums[AT_ONCE][2];
#pragma GCC unroll 4
        for (int j = 0; j < AT_ONCE; ++j) {
          const __m256i* known = reinterpret_cast<const __m256i*>(dots + (first + j) * STRIDE + row);
          sums[j][0] = begin ? _mm256_load_si256(known) : _mm256_setzero_si256();
          sums[j][1] = begin ? _mm256_load_si256(known + 1) : _mm256_setzero_si256();
        }
        for (int d = 0; d < length; d += 2) {
          const int16_t* place = codes + int64_t{begin + d} * TILE_ROWS + 2 * row;
          const __m256i low = _mm256_load_si256(reinterpret_cast<const __m256i*>(place));
          const __m256i high = _mm256_load_si256(reinterpret_cast<const __m256i*>(place + 16));
          tile_step_avx2(sums[0], low, high, &wide[first][d]);
          tile_step_avx2(sums[1], low, high, &wide[first + 1][d]);
          tile_step_avx2(sums[2], low, high, &wide[first + 2][d]);
          tile_step_avx2(sums[3], low, high, &wide[first + 3][d]);
        }
#pragma GCC unroll 4
        for (int j = 0; j < AT_ONCE; ++j)
#pragma GCC unroll 2
          for (int half = 0; half < 2; ++half) {
            const int query = first + j, place = row + 8 * half;
            _mm256_store_si256(reinterpret_cast<__m256i*>(dots + query * STRIDE + place), sums[j][half]);
            if (!whole) continue;
            __m256 score = _mm256_mul_ps(_mm256_cvtepi32_ps(sums[j][half]), _mm256_load_ps(tile.scales + place));
            if (TAILS)
              score = _mm256_add_ps(
                  score, _mm256_mul_ps(_mm256_set1_ps(queries.tails[query]), _mm256_load_ps(tile.tails + place)));
            largest[query] = _mm256_max_ps(largest[query], score);
          }
      }
  }
  unsigned found = 0;
  for (int query = 0; query < QUERIES; ++query) {
    const __m256 limit = _mm256_set1_ps(queries.limits[query]);
    found |= static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(largest[query], limit, _CMP_GE_OQ)) != 0) << query;
  }
  return found;
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

template <bool TAILS, int QUERIES>
inline unsigned tile_dots_portable(const TileRows& tile, const TileQueries<QUERIES>& queries, int32_t* dots) {
  const int8_t* rows = reinterpret_cast<const int8_t*>(tile.tile);
  unsigned found = 0;
  for (int query = 0; query < QUERIES; ++query)
    for (int row = 0; row < tile.count; ++row) {
      int32_t& dot = dots[query * ROWS_FOR<QUERIES> + row];
      dot = (tile.begin ? dot : 0) + portable_dot(queries.codes[query] + tile.begin,
                                                  rows + int64_t{row} * tile.dim + tile.begin, tile.end - tile.begin);
      float score = static_cast<float>(dot) * tile.scales[row];
      if (TAILS) score += queries.tails[query] * tile.tails[row];
      found |= static_cast<unsigned>(score >= queries.limits[query]) << query;
    }
  return found;
}

// dots[q][r] for the queries and the rows of a tile, stride ROWS_FOR, aligned to 64 bytes; entries past the last row are
// unspecified. Where the dims do not begin at 0, what the dots hold is added. Returns the queries that have a row with
// float(dot) * scale >= limit as bits, or more; the dots of the others may be missing.
template <int QUERIES>
unsigned tile_dots(Isa isa, const TileRows& tile, const TileQueries<QUERIES>& queries, int32_t* dots) {
#if STCLI_X86
  if (isa == AVX512) {
    if constexpr (ROWS_FOR<QUERIES> > 32) {
      if (tile.count > 48) return tile_dots_avx512<QUERIES, 4>(tile, queries, dots);
      if (tile.count > 32) return tile_dots_avx512<QUERIES, 3>(tile, queries, dots);
    }
    if (tile.count > 16) return tile_dots_avx512<QUERIES, 2>(tile, queries, dots);
    return tile_dots_avx512<QUERIES, 1>(tile, queries, dots);
  }
  if (isa == AVX2) return tile_dots_avx2<false>(tile, queries, dots);
#endif
  return tile_dots_portable<false>(tile, queries, dots);
}

// The same for dims that are followed by others: returns the queries that have a row with float(dot) * scale + tail of the
// query * tail of the row >= limit, whose dots stand one after another; there is room for all.
template <int QUERIES>
unsigned tile_heads(Isa isa, const TileRows& tile, const TileQueries<QUERIES>& queries, int32_t* dots) {
#if STCLI_X86
  if (isa == AVX512) {
    if constexpr (ROWS_FOR<QUERIES> > 32) {
      if (tile.count > 48) return tile_heads_avx512<QUERIES, 4>(tile, queries, dots);
      if (tile.count > 32) return tile_heads_avx512<QUERIES, 3>(tile, queries, dots);
    }
    if (tile.count > 16) return tile_heads_avx512<QUERIES, 2>(tile, queries, dots);
    return tile_heads_avx512<QUERIES, 1>(tile, queries, dots);
  }
  const unsigned found =
      isa == AVX2 ? tile_dots_avx2<true>(tile, queries, dots) : tile_dots_portable<true>(tile, queries, dots);
#else
  const unsigned found = tile_dots_portable<true>(tile, queries, dots);
#endif
  constexpr int STRIDE = ROWS_FOR<QUERIES>;
  for (int query = 0, kept = 0; query < QUERIES; ++query)
    if (found >> query & 1) std::memmove(dots + kept++ * STRIDE, dots + query * STRIDE, 4 * STRIDE);
  return found;
}

}  // namespace stcli
