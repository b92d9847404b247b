// What the forms of the score kernel share: the score of a pair, who may see a row, and where keys go.
#pragma once

#include "keys.cuh"
#include "types.cuh"

// The parameters of every score kernel, in this order.
#define SCORE_PARAMETERS                                                                                             \
  const i8 *query_codes, const float *query_scales, const float *query_norms, const float *query_errors,             \
      const i8 *codes, const float *scales, const float *errors, const float *norms, i64 dim, const u64 *words,      \
      i64 num_words, const i64 *filter_of_query, const u64 *span_words, const i64 *span_lines,                       \
      const i64 *excluded_rows, const i64 *excluded_begins, const i64 *excluded_ends, const i64 *queries,            \
      const i64 *tiles, i64 row_step, const i64 *thresholds, i64 *counts, i64 *keys, i64 capacity
#define SCORE_ARGUMENTS                                                                                    \
  {query_codes,     query_scales, query_norms,     query_errors, codes,      scales,        errors,          \
   norms,           dim,          words,           num_words,    filter_of_query, span_words, span_lines,    \
   excluded_rows,   excluded_begins, excluded_ends, queries,     tiles,      static_cast<u32>(row_step), \
   thresholds,      counts,       keys,            capacity}

struct Score {
  const i8* query_codes;
  const float *query_scales, *query_norms, *query_errors;
  const i8* codes;
  const float *scales, *errors, *norms;
  i64 dim;
  const u64* words;
  i64 num_words;
  const i64* filter_of_query;
  const u64* span_words;
  const i64 *span_lines, *excluded_rows, *excluded_begins, *excluded_ends, *queries, *tiles;
  u32 row_step;
  const i64* thresholds;
  i64 *counts, *keys, capacity;

  // The first row of a tile that the step divides: the tile's own first would make too many of small clusters. Then how
  // many there are, and the row at one of their places.
  __device__ __forceinline__ i64 first_of(i64 row) const { return (row + row_step - 1) / row_step * row_step; }
  __device__ __forceinline__ u32 num_rows(i64 first, i64 end) const {
    return static_cast<u32>((end - first + row_step - 1) / row_step);
  }
  __device__ __forceinline__ i64 row_at(i64 first, u32 place) const {
    return first + static_cast<i64>(static_cast<u64>(place) * row_step);
  }

  // The query of a pair.
  __device__ __forceinline__ i64 query_of(i64 pair) const { return queries ? queries[pair] : pair; }

  // What a pair may see: bit r % 64 of word r / 64 is row r, for the rows of its tile. Null for every row.
  __device__ __forceinline__ const u64* line_of(i64 pair, i64 query) const {
    const i64 filter = words ? filter_of_query[query] : -1;
    if (filter >= 0) return words + filter * num_words;
    return span_words && span_lines[pair] != NO_SPAN ? span_words + span_lines[pair] : nullptr;
  }

  __device__ __forceinline__ bool is_excluded(i64 query, i64 row) const {
    if (!excluded_rows) return false;
    i64 low = excluded_begins[query], high = excluded_ends[query];
    const i64 end = high;
    while (low < high) {
      const i64 middle = low + (high - low) / 2;
      if (excluded_rows[middle] < row) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low < end && excluded_rows[low] == row;
  }

};

__device__ __forceinline__ bool is_admitted(const u64* line, i64 row) {
  return !line || (line[row / 64] >> row % 64 & 1);
}

// The float32 operations are rounded one by one, as on the CPU.
__device__ __forceinline__ float plain_score(i32 dot, float query_scale, float row_scale) {
  return __fmul_rn(__fmul_rn(__int2float_rn(dot), query_scale), row_scale);
}

__device__ __forceinline__ float upper_bound(float score, float query_norm, float error, float query_error,
                                             float norm) {
  return __fadd_rn(score, __fadd_rn(__fmul_rn(query_norm, error), __fmul_rn(query_error, norm)));
}
