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

Inverted invert(const int64_t* probes, int64_t num_queries, int64_t num_probes, int64_t num_clusters) {
  Inverted lists{std::vector<int64_t>(num_clusters + 2), {}};
  const int64_t slots = num_queries * num_probes;
  for (int64_t slot = 0; slot < slots; ++slot) ++lists.starts[probes[slot] + 2 > 0 ? probes[slot] + 2 : 0];
  lists.starts[1] = 0;  // the unused slots
  for (int64_t cluster = 2; cluster < num_clusters + 2; ++cluster) lists.starts[cluster] += lists.starts[cluster - 1];
  lists.queries.resize(lists.starts[num_clusters + 1]);
  for (int64_t query = 0; query < num_queries; ++query)
    for (int64_t slot = query * num_probes; slot < (query + 1) * num_probes; ++slot)
      if (probes[slot] >= 0) lists.queries[lists.starts[probes[slot] + 1]++] = static_cast<uint32_t>(query);
  return lists;  // each start has moved to where the next list begins
}

}  // namespace

extern "C" void stcli_search_clusters(const SearchArguments* arguments, const int64_t* offsets, int64_t num_clusters,
                                      const int64_t* probes, int64_t num_probes) {
  struct Task {
    int64_t cluster, begin, end;
  };
  const int threads = static_cast<int>(std::max<int64_t>(1, arguments->num_threads));
  auto scratches = stcli::make_scratches(*arguments, BLOCK);
  static const int64_t LIM = getenv("LIM") ? atoi(getenv("LIM")) : 256;
  const int64_t at_once = std::max<int64_t>(1, (LIM << 20) / stcli::BestLists::bytes(arguments->k0));
  const int64_t batches = (arguments->num_queries + at_once - 1) / at_once;
  for (int64_t batch = 0; batch < batches; ++batch) {
    const int64_t first = arguments->num_queries * batch / batches;
    const int64_t count = arguments->num_queries * (batch + 1) / batches - first;
    const Inverted lists = invert(probes + first * num_probes, count, num_probes, num_clusters);
    std::vector<Task> tasks;
    for (int64_t cluster = 0; cluster < num_clusters; ++cluster)
      if (lists.starts[cluster] < lists.starts[cluster + 1])
        for (int64_t row = offsets[cluster]; row < offsets[cluster + 1]; row += BLOCK)
          tasks.push_back({cluster, row, std::min(row + BLOCK, offsets[cluster + 1])});
    Scan scan(*arguments, first, count, threads > 1);
    stcli::parallel_for(static_cast<int64_t>(tasks.size()), threads, [&](int64_t i, int thread) {
      const Task& task = tasks[i];
      const int64_t start = lists.starts[task.cluster];
      scan.block(task.begin, task.end, lists.queries.data() + start, lists.starts[task.cluster + 1] - start, *scratches[thread]);
    });
    stcli::parallel_for((count + 63) / 64, threads, [&](int64_t i, int) { scan.finish(i * 64, std::min(count, i * 64 + 64)); });
  }
}
