// The rows of some clusters for each query. The probe lists are inverted, so that the rows of a cluster are read and
// repacked once for all queries of a part that probe it.
#pragma once
#include <algorithm>
#include <cstdint>

#include "arguments.h"
#include "invert.h"
#include "parallel.h"
#include "scan.h"

namespace stcli {

constexpr int64_t PROBE_BLOCK_ROWS = 1024;

// Lists of candidates of one part of the queries, for each thread.
constexpr int64_t PART_BYTES = int64_t{64} << 20;

// Nearest clusters searched before the others, for a good threshold. 0 / 1 / 2 / 4: 29.2 / 25.5 / 24.0 / 25.6 us a
// query (64 of 4,096 clusters, 1M x 128, k0 = 132, CPU time on 2 cores of AMD EPYC Zen 4).
constexpr int64_t NUM_SEEDS = 2;

inline void scan_inverted(const SearchArguments& all, const Inverted& lists, Scan& scan) {
  for (int64_t cluster = 0; cluster < all.num_clusters; ++cluster) {
    const int64_t begin = lists.starts[cluster], probing = lists.starts[cluster + 1] - begin;
    const Scan::Spans spans{lists.values.data() + begin, all.offsets[cluster] / 64};
    for (int64_t row = all.offsets[cluster]; probing && row < all.offsets[cluster + 1]; row += PROBE_BLOCK_ROWS)
      scan.block(row, std::min(row + PROBE_BLOCK_ROWS, all.offsets[cluster + 1]), lists.queries.data() + begin, probing,
                 nullptr, 0, all.span_starts ? &spans : nullptr);
  }
}

// `probes` [B, num_probes], nearest clusters first, -1 for an unused slot. `together` consecutive queries share a list;
// `seen` [B], unless null, gets the admitted rows in the clusters of each query.
inline void scan_probes(const SearchArguments& all, const int64_t* probes, int64_t num_probes, int64_t together = 1,
                        int64_t* seen = nullptr) {
  const int64_t threads = all.num_threads, lists = all.num_queries / together;
  const int64_t most = std::max<int64_t>(16, PART_BYTES / BestLists::bytes(all.k0));
  const int64_t rounds = ((lists + most - 1) / most + threads - 1) / threads;
  const int64_t parts = std::min(lists, rounds * threads);
  parallel_for(parts, static_cast<int>(threads), [&](int64_t part, int) {
    const int64_t first = lists * part / parts * together, count = lists * (part + 1) / parts * together - first;
    const int64_t* lines = probes + first * num_probes;
    const int64_t* spans = all.span_starts ? all.span_starts + first * num_probes : nullptr;
    Scan scan(all, first, count, PROBE_BLOCK_ROWS, together);
    // With filters the nearest clusters often hold too few admitted rows for a threshold; a list that is shared would
    // get the rows of a cluster twice.
    const int64_t seeds = all.words || spans || together > 1 ? 0 : std::min(NUM_SEEDS, num_probes);
    if (seeds) scan_inverted(all, invert(lines, count, num_probes, 0, seeds, all.num_clusters, spans), scan);
    scan_inverted(all, invert(lines, count, num_probes, seeds, num_probes, all.num_clusters, spans), scan);
    scan.finish();
    if (seen) std::copy(scan.seen().begin(), scan.seen().end(), seen + first);
  });
}

}  // namespace stcli
