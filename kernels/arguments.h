// The arguments of a search; stcli/ops/scan_native.py has the same fields in the same order.
#pragma once
#include <cstdint>

namespace stcli {

// B queries, N rows, C clusters.
struct SearchArguments {
  int64_t num_queries, num_rows, dim;
  const int8_t* query_codes;  // [B, dim]
  const float* query_scales;  // [B]
  const float* query_norms;   // [B], or null: rank by scores, not by upper bounds
  const float* query_errors;  // [B]
  const int8_t* codes;        // [N, dim]
  const float* scales;        // [N]
  const float* errors;        // [N]
  const float* norms;         // [N]
  int64_t num_clusters;
  const int64_t* offsets;        // [C + 1], or null: rows without clusters
  const int8_t* centroid_codes;  // [C, dim]
  const float* centroid_scales;  // [C]
  const uint64_t* words;         // [F, num_words], or null
  int64_t num_words;
  const int64_t* filter_of_query;  // [B], -1: none
  const uint64_t* span_words;      // words of queries without a line in `words` on the clusters that they probe, or null
  const int64_t* span_starts;      // [B, P], where those of a cluster begin, -1: every row; or null
  const int64_t* excluded_rows;    // of query b: excluded_begins[b] … excluded_ends[b] - 1, in any order; or null
  const int64_t* excluded_begins;
  const int64_t* excluded_ends;
  const float* floors;  // [B], candidates below are left out; or null
  int64_t k0;
  int64_t* found_rows;  // [B, k0]
  float* found_scores;  // [B, k0], or null
  int64_t num_threads;
};

}  // namespace stcli
