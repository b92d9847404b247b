// search_requests: the rows of the probed clusters for requests of several queries, see stcli/ops/search_requests.py.
//   in   arguments (arguments.h), their queries those of one request after another, words and excluded rows equal or
//        given once for a request   probes i64 [B T, P], -1 for an unused slot   together: T
//   out  rows i64 [B, k0]   scores f32 [B, k0]   seen i64 [B T]; returns 0, or 1 if memory ran out
#include "scan_probes.h"

extern "C" int stcli_search_requests(const stcli::SearchArguments* arguments, const int64_t* probes, int64_t num_probes,
                                     int64_t together, int64_t* seen) try {
  stcli::scan_probes(*arguments, probes, num_probes, together, seen);
  return 0;
} catch (const std::bad_alloc&) {
  return 1;
}
