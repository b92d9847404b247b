// Exact int32 dot products of one vector of int8 codes with listed rows, read where they lie; int8_tile.h has those of
// several queries with many rows. Codes are in -127 … 127; worst case 2^31 / (255 * 127): fewer than 66,000 dims.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "isa.h"

namespace stcli {

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

// Sums over the 16 lanes of four registers.
STCLI_AVX512 STCLI_INLINE __m128i fold_avx512(__m512i a, __m512i b, __m512i c, __m512i d) {
  const __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
  const __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
  const __m512i all = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
  const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
  return _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}

STCLI_AVX512 inline void row_dots_avx512(const int8_t* query, int32_t offset, const int8_t* codes, const uint32_t* rows,
                                         int count, int dim, int64_t stride, int32_t* dots) {
  const __m512i flip = _mm512_set1_epi8(static_cast<char>(0x80));
  const int whole = dim / 64 * 64;
  const __mmask16 rest = static_cast<__mmask16>((1 << (dim - whole) / 4) - 1);
  for (int i = 0; i < count; i += 4) {
    const int8_t* row[4];
    for (int j = 0; j < 4; ++j) row[j] = codes + int64_t{rows[i + j < count ? i + j : i]} * stride;
    __m512i sums[4] = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512()};
    for (int d = 0; d < whole; d += 64) {
      const __m512i part = _mm512_loadu_si512(query + d);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j)
        sums[j] = _mm512_dpbusd_epi32(sums[j], _mm512_xor_si512(_mm512_loadu_si512(row[j] + d), flip), part);
    }
    if (whole < dim) {  // what is left of the query is followed by zeros, so that those of the rows are ignored
      const __m512i part = _mm512_maskz_loadu_epi32(rest, query + whole);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j)
        sums[j] =
            _mm512_dpbusd_epi32(sums[j], _mm512_xor_si512(_mm512_maskz_loadu_epi32(rest, row[j] + whole), flip), part);
    }
    const __m128i four = _mm_add_epi32(fold_avx512(sums[0], sums[1], sums[2], sums[3]), _mm_set1_epi32(offset));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(dots + i), four);
  }
}

STCLI_AVX2 inline void row_dots_avx2(const int8_t* query, const int8_t* codes, const uint32_t* rows, int count, int dim,
                                     int64_t stride, int32_t* dots) {
  for (int i = 0; i < count; ++i) {
    const int8_t* row = codes + int64_t{rows[i]} * stride;
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

STCLI_AVX2 inline int32_t square_avx2(const int8_t* codes, int dim) {
  __m256i sum = _mm256_setzero_si256();
  for (int d = 0; d < dim; d += 16) {
    const __m256i part = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + d)));
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(part, part));
  }
  __m128i four = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
  four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
}

#endif  // STCLI_X86

// The dot of codes with themselves; `dim` is a multiple of 16.
inline int32_t square(Isa isa, const int8_t* codes, int dim) {
#if STCLI_X86
  if (isa != PORTABLE) return square_avx2(codes, dim);
#endif
  return portable_dot(codes, codes, dim);
}

// dots[i] of one query and codes row rows[i], where the rows have `stride` codes and the first `dim` of them, a multiple
// of 16, are multiplied; may write up to three entries past `count`.
inline void row_dots(Isa isa, const int8_t* query, int32_t offset, const int8_t* codes, const uint32_t* rows, int count,
                     int dim, int64_t stride, int32_t* dots) {
#if STCLI_X86
  if (isa == AVX512) return row_dots_avx512(query, offset, codes, rows, count, dim, stride, dots);
  if (isa == AVX2) return row_dots_avx2(query, codes, rows, count, dim, stride, dots);
#endif
  for (int i = 0; i < count; ++i) dots[i] = portable_dot(query, codes + int64_t{rows[i]} * stride, dim);
}

inline void row_dots(Isa isa, const int8_t* query, int32_t offset, const int8_t* codes, const uint32_t* rows, int count,
                     int dim, int32_t* dots) {
  row_dots(isa, query, offset, codes, rows, count, dim, dim, dots);
}

}  // namespace stcli
