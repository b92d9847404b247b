// choose_probes: the search with centroids for rows, no filter, and no use for the scores.
//   in   queries i8 [B, dim], f32 [B]   centroids i8 [C, dim], f32 [C]
//   out  probes i64 [B, P], P <= C
#include "scan.h"

extern "C" void stcli_choose_probes(const int8_t* query_codes, const float* query_scales, const int8_t* centroid_codes,
                                    const float* centroid_scales, int64_t num_queries, int64_t num_clusters,
                                    int64_t dim, int64_t num_probes, int64_t num_threads, int64_t* probes) {
  stcli::SearchArguments arguments{};
  arguments.num_queries = num_queries;
  arguments.num_rows = num_clusters;
  arguments.dim = dim;
  arguments.query_codes = query_codes;
  arguments.query_scales = query_scales;
  arguments.codes = centroid_codes;
  arguments.scales = centroid_scales;
  arguments.k0 = num_probes;
  arguments.found_rows = probes;
  arguments.num_threads = num_threads;
  stcli::scan_all_rows(arguments);
}
