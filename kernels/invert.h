// Probe lists turned around.
#pragma once
#include <cstdint>
#include <vector>

namespace stcli {

// The queries of each cluster, ascending: queries[starts[c]] … queries[starts[c + 1] - 1]; values[i] is what was said of
// the slot that query i came from.
struct Inverted {
  std::vector<int64_t> starts;
  std::vector<uint32_t> queries;
  std::vector<int64_t> values;
};

// Inverts the slots begin … end - 1 of the lines of probes [num_queries, num_probes]; -1 is an unused slot. `values`
// [num_queries, num_probes] may be null.
inline Inverted invert(const int64_t* probes, int64_t num_queries, int64_t num_probes, int64_t begin, int64_t end,
                       int64_t num_clusters, const int64_t* values) {
  Inverted lists{std::vector<int64_t>(num_clusters + 2), {}, {}};
  std::vector<int64_t>& starts = lists.starts;
  for (int64_t query = 0; query < num_queries; ++query)
    for (int64_t slot = begin; slot < end; ++slot) ++starts[probes[query * num_probes + slot] + 2];
  starts[1] = 0;  // the unused slots
  for (int64_t cluster = 2; cluster < num_clusters + 2; ++cluster) starts[cluster] += starts[cluster - 1];
  lists.queries.resize(starts[num_clusters + 1]);
  if (values) lists.values.resize(starts[num_clusters + 1]);
  for (int64_t query = 0; query < num_queries; ++query)
    for (int64_t slot = begin; slot < end; ++slot) {
      const int64_t cluster = probes[query * num_probes + slot];
      if (cluster < 0) continue;
      const int64_t place = starts[cluster + 1]++;
      lists.queries[place] = static_cast<uint32_t>(query);
      if (values) lists.values[place] = values[query * num_probes + slot];
    }
  return lists;  // each start has moved to where the next list begins
}

}  // namespace stcli
