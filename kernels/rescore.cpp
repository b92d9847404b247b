// rescore: float32 dots of queries with packed embeddings, summed in 16 lanes in the order that stcli/ops/rescore.py
// states. Products and sums are rounded one by one: built with -ffp-contract=off.
//   in   queries f32 [B, D]   values f16 or f32 [N, D]   exponents i8 [N] or null   rows i64 [B, M], -1 empty
//   out  scores f32 [B, M]; returns 0, or 1 if memory ran out
#include <array>
#include <cmath>
#include <limits>
#include <new>
#include <vector>

#include "half.h"
#include "isa.h"
#include "parallel.h"

namespace stcli {
namespace {

constexpr int64_t LANES = 16;

struct Arguments {
  const float* queries;
  const void* values;
  bool half;
  const int8_t* exponents;
  const int64_t* rows;
  int64_t dim, num_slots;
  float* scores;
};

float power_of_two(int8_t exponent) {
  static const std::array<float, 256> powers = [] {
    std::array<float, 256> table;
    for (int i = 0; i < 256; ++i) table[i] = std::ldexp(1.0f, i - 128);
    return table;
  }();
  return powers[exponent + 128];
}

// In all forms `query` is padded with zeros to whole lanes.
STCLI_INLINE float dot_portable(const float* query, const void* values, bool half, float power, int64_t dim) {
  float lanes[LANES] = {};
  for (int64_t d = 0; d < dim; d += LANES)
    for (int64_t j = 0; j < LANES && d + j < dim; ++j) {
      const float value =
          half ? half_to_float(static_cast<const uint16_t*>(values)[d + j]) : static_cast<const float*>(values)[d + j];
      lanes[j] += (value * power) * query[d + j];
    }
  for (int64_t width = LANES / 2; width > 0; width /= 2)
    for (int64_t j = 0; j < width; ++j) lanes[j] += lanes[j + width];
  return lanes[0];
}

#if STCLI_X86

STCLI_AVX2 STCLI_INLINE float fold8(__m256 eight) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}

template <bool HALF>
STCLI_AVX512 float dot_avx512(const float* query, const void* values, float power, int64_t dim) {
  const __m512 factor = _mm512_set1_ps(power);
  __m512 lanes = _mm512_setzero_ps();
  for (int64_t d = 0; d < dim; d += LANES) {
    const __mmask16 mask = dim - d < LANES ? (1 << (dim - d)) - 1 : 0xffff;
    const __m512 value = HALF
                             ? _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, static_cast<const uint16_t*>(values) + d))
                             : _mm512_maskz_loadu_ps(mask, static_cast<const float*>(values) + d);
    lanes = _mm512_add_ps(lanes, _mm512_mul_ps(_mm512_mul_ps(value, factor), _mm512_loadu_ps(query + d)));
  }
  return fold8(_mm256_add_ps(_mm512_castps512_ps256(lanes), _mm512_extractf32x8_ps(lanes, 1)));
}

template <bool HALF>
STCLI_AVX2 float dot_avx2(const float* query, const void* values, float power, int64_t dim) {
  constexpr int64_t SIZE = HALF ? 2 : 4;
  const __m256 factor = _mm256_set1_ps(power);
  __m256 low = _mm256_setzero_ps(), high = _mm256_setzero_ps();
  for (int64_t d = 0; d < dim; d += LANES) {
    const char* place = static_cast<const char*>(values) + d * SIZE;
    char last[LANES * SIZE] = {};
    if (dim - d < LANES) place = static_cast<const char*>(std::memcpy(last, place, (dim - d) * SIZE));
    __m256 first, second;
    if (HALF) {
      first = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(place)));
      second = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(place + 16)));
    } else {
      first = _mm256_loadu_ps(reinterpret_cast<const float*>(place));
      second = _mm256_loadu_ps(reinterpret_cast<const float*>(place + 32));
    }
    low = _mm256_add_ps(low, _mm256_mul_ps(_mm256_mul_ps(first, factor), _mm256_loadu_ps(query + d)));
    high = _mm256_add_ps(high, _mm256_mul_ps(_mm256_mul_ps(second, factor), _mm256_loadu_ps(query + d + 8)));
  }
  return fold8(_mm256_add_ps(low, high));
}

#endif

float dot(Isa isa, const float* query, const void* values, bool half, float power, int64_t dim) {
#if STCLI_X86
  if (isa == AVX512)
    return half ? dot_avx512<true>(query, values, power, dim) : dot_avx512<false>(query, values, power, dim);
  if (isa == AVX2) return half ? dot_avx2<true>(query, values, power, dim) : dot_avx2<false>(query, values, power, dim);
#endif
  return dot_portable(query, values, half, power, dim);
}

void rescore_query(Isa isa, const Arguments& a, int64_t query, float* padded) {
  constexpr int64_t AHEAD = 8;  // rows that are fetched before their turn; rows lie anywhere in memory
  std::copy_n(a.queries + query * a.dim, a.dim, padded);
  const int64_t* rows = a.rows + query * a.num_slots;
  float* scores = a.scores + query * a.num_slots;
  const int64_t row_bytes = a.dim * (a.half ? 2 : 4);
  const char* values = static_cast<const char*>(a.values);
  for (int64_t slot = 0; slot < a.num_slots; ++slot) {
    if (slot + AHEAD < a.num_slots && rows[slot + AHEAD] >= 0)
      for (int64_t byte = 0; byte < row_bytes; byte += 64)
        __builtin_prefetch(values + rows[slot + AHEAD] * row_bytes + byte);
    const int64_t row = rows[slot];
    const float power = row < 0 || !a.exponents ? 1.0f : power_of_two(a.exponents[row]);
    scores[slot] = row < 0 ? -std::numeric_limits<float>::infinity()
                           : dot(isa, padded, values + row * row_bytes, a.half, power, a.dim);
  }
}

}  // namespace
}  // namespace stcli

extern "C" int stcli_rescore(const float* queries, const void* values, int64_t half, const int8_t* exponents,
                             const int64_t* rows, int64_t num_queries, int64_t num_slots, int64_t dim,
                             int64_t num_threads, float* scores) try {
  constexpr int64_t CHUNK = 16;
  const stcli::Isa isa = stcli::current_isa();
  const stcli::Arguments arguments{queries, values, half != 0, exponents, rows, dim, num_slots, scores};
  stcli::parallel_for((num_queries + CHUNK - 1) / CHUNK, static_cast<int>(num_threads), [&](int64_t chunk, int) {
    std::vector<float> padded((dim + stcli::LANES - 1) / stcli::LANES * stcli::LANES);
    for (int64_t query = chunk * CHUNK; query < std::min(num_queries, (chunk + 1) * CHUNK); ++query)
      stcli::rescore_query(isa, arguments, query, padded.data());
  });
  return 0;
} catch (const std::bad_alloc&) {
  return 1;
}
