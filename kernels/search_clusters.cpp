// search_clusters: the rows of the probed clusters. The probe lists are inverted, so that a cluster's rows are read and
// repacked once for all queries that probe it.
//   in   arguments (scan.h)   offsets i64 [C + 1]   probes i64 [B, P], -1 for an unused slot
#include "scan.h"

namespace {

using stcli::Scan;
using stcli::SearchArguments;

constexpr int64_t BLOCK = 1024;

// The queries of each cluster, ascending: queries[starts[c]] … queries[starts[c + 1] - 1].
struct Inverted {
  std::vector<int64_t> starts;
  std::vector<uint32_t> queries;
};

Inverted invert(const int64_t* probes, int64_t num_queries, int64_t num_probes, int64_t begin, int64_t end,
                int64_t num_clusters) {
  Inverted lists{std::vector<int64_t>(num_clusters + 2), {}};
  for (int64_t query = 0; query < num_queries; ++query)
    for (int64_t slot = begin; slot < end; ++slot) ++lists.starts[probes[query * num_probes + slot] + 2];
  lists.starts[1] = 0;  // cluster -1
  for (int64_t cluster = 2; cluster <= num_clusters + 1; ++cluster) lists.starts[cluster] += lists.starts[cluster - 1];
  lists.queries.resize(lists.starts[num_clusters + 1]);
  for (int64_t query = 0; query < num_queries; ++query)
    for (int64_t slot = begin; slot < end; ++slot) {
      const int64_t cluster = probes[query * num_probes + slot];
      if (cluster >= 0) lists.queries[lists.starts[cluster + 1]++] = static_cast<uint32_t>(query);
    }
  return lists;  // each start has moved to where the next list begins
}

void scan_clusters(const SearchArguments& arguments, Scan& scan, const Inverted& lists, const int64_t* offsets,
                   int64_t num_clusters, std::vector<std::unique_ptr<stcli::Scratch>>& scratches) {
  struct Task {
    int64_t cluster, begin, end;
  };
  std::vector<Task> tasks;
  for (int64_t cluster = 0; cluster < num_clusters; ++cluster)
    if (lists.starts[cluster] < lists.starts[cluster + 1])
      for (int64_t row = offsets[cluster]; row < offsets[cluster + 1]; row += BLOCK)
        tasks.push_back({cluster, row, std::min(row + BLOCK, offsets[cluster + 1])});
  stcli::parallel_for(static_cast<int64_t>(tasks.size()), static_cast<int>(arguments.num_threads), [&](int64_t i, int thread) {
    const Task& task = tasks[i];
    const int64_t start = lists.starts[task.cluster];
    scan.block(task.begin, task.end, lists.queries.data() + start, lists.starts[task.cluster + 1] - start, *scratches[thread]);
  });
}

}  // namespace

extern "C" void stcli_search_clusters(const SearchArguments* arguments, const int64_t* offsets, int64_t num_clusters,
                                      const int64_t* probes, int64_t num_probes) {
  auto scratches = stcli::make_scratches(*arguments, BLOCK);
  const int64_t at_once = stcli::queries_at_once(*arguments);
  static const int64_t SEED = getenv("SEED") ? atoi(getenv("SEED")) : 0;
  const int64_t seed = std::min<int64_t>(SEED, num_probes);
  for (int64_t first = 0; first < arguments->num_queries; first += at_once) {
    const int64_t count = std::min(at_once, arguments->num_queries - first);
    Scan scan(*arguments, first, count);
    for (int pass = 0; pass < 2; ++pass) {
      const Inverted lists = invert(probes + first * num_probes, count, num_probes, pass ? seed : 0, pass ? num_probes : seed, num_clusters);
      scan_clusters(*arguments, scan, lists, offsets, num_clusters, scratches);
    }
    scan.finish();
  }
}
