// choose_probes: the search with centroids for rows, no filter, and no use for the scores.
//   in   queries i8 [B, dim], f32 [B]   centroids i8 [C, dim], f32 [C]
//   out  probes i64 [B, P], P <= C
#include "scan_all.h"

extern "C" void stcli_choose_probes(const int8_t* query_codes, const float* query_scales, const int8_t* centroid_codes,
                                    const float* centroid_scales, int64_t num_queries, int64_t num_clusters,
                                    int64_t dim, int64_t num_probes, int64_t num_threads, int64_t* probes) {
  stcli::SearchArguments all{};
  all.num_queries = num_queries;
  all.dim = dim;
  all.query_codes = query_codes;
  all.query_scales = query_scales;
  all.num_clusters = num_clusters;
  all.centroid_codes = centroid_codes;
  all.centroid_scales = centroid_scales;
  all.num_threads = num_threads;
  stcli::choose_clusters(all, num_probes, probes);
}
