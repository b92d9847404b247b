// search_clusters: the rows of the probed clusters.
//   in   arguments (arguments.h)   probes i64 [B, P], -1 for an unused slot
//   out  rows i64 [B, k0]   scores f32 [B, k0]
#include "scan_probes.h"

extern "C" void stcli_search_clusters(const stcli::SearchArguments* arguments, const int64_t* probes,
                                      int64_t num_probes) {
  stcli::scan_probes(*arguments, probes, num_probes);
}
