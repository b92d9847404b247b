// search_clusters: the rows of the probed clusters.
//   in   arguments (arguments.h)   probes i64 [B, P], -1 for an unused slot
//   out  rows i64 [B, k0]   scores f32 [B, k0]; returns 0, or 1 if memory ran out
#include "scan_probes.h"

extern "C" int stcli_search_clusters(const stcli::SearchArguments* arguments, const int64_t* probes,
                                     int64_t num_probes) try {
  stcli::scan_probes(*arguments, probes, num_probes);
  return 0;
} catch (const std::bad_alloc&) {
  return 1;
}
