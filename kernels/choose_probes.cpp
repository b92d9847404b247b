// choose_probes: the search with centroids for rows, no filter, and no use for the scores. What the bounds of a search are
// made of, norm of the query * error of the row, serves for length of the query * reach of the cluster.
//   in   queries i8 [B, dim], f32 [B]   centroids i8 [C, dim], f32 [C]   reaches f32 [C]
//   out  probes i64 [B, P], P <= C; returns 0, or 1 if memory ran out
#include <cmath>
#include <new>
#include <vector>

#include "scan_all.h"

extern "C" int stcli_choose_probes(const int8_t* query_codes, const float* query_scales, const int8_t* centroid_codes,
                                   const float* centroid_scales, const float* reaches, int64_t num_queries,
                                   int64_t num_clusters, int64_t dim, int64_t num_probes, int64_t num_threads,
                                   int64_t* probes) try {
  using namespace stcli;
  std::vector<float> lengths(num_queries);
  const std::vector<float> zeros(num_queries);
  const Isa isa = current_isa();
  for (int64_t query = 0; query < num_queries; ++query) {
    const int8_t* codes = query_codes + query * dim;
    const uint32_t itself[] = {0};
    int32_t squares[4];
    row_dots(isa, codes, dot_offset(isa, codes, static_cast<int>(dim)), codes, itself, 1, static_cast<int>(dim),
             squares);
    lengths[query] = std::sqrt(static_cast<float>(squares[0])) * query_scales[query];
  }
  SearchArguments all{};
  all.num_queries = num_queries;
  all.dim = dim;
  all.query_codes = query_codes;
  all.query_scales = query_scales;
  all.query_norms = lengths.data();
  all.query_errors = zeros.data();
  all.num_clusters = num_clusters;
  all.centroid_codes = centroid_codes;
  all.centroid_scales = centroid_scales;
  all.num_threads = num_threads;
  choose_clusters(all, reaches, num_probes, probes);
  return 0;
} catch (const std::bad_alloc&) {
  return 1;
}
