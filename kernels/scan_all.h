// Every row for every query.
#pragma once
#include <algorithm>
#include <cstdint>
#include <memory>
#include <numeric>
#include <vector>

#include "arguments.h"
#include "parallel.h"
#include "prune.h"
#include "scan.h"

namespace stcli {

// Rows begin … end - 1; with clusters whole tiles of them, the first of `cluster`.
struct Block {
  int64_t begin, end, cluster;
};

inline std::vector<Block> make_blocks(const SearchArguments& all, bool by_cluster, int64_t block_rows) {
  std::vector<Block> blocks;
  if (!by_cluster) {
    for (int64_t row = 0; row < all.num_rows; row += block_rows)
      blocks.push_back({row, std::min(row + block_rows, all.num_rows), 0});
    return blocks;
  }
  for (int64_t cluster = 0, next; cluster < all.num_clusters; cluster = next) {
    const int64_t begin = all.offsets[cluster];
    for (next = cluster + 1; next < all.num_clusters && all.offsets[next + 1] - begin <= block_rows;) ++next;
    for (int64_t row = begin; row < all.offsets[next]; row += block_rows)
      blocks.push_back({row, std::min(row + block_rows, all.offsets[next]), cluster});
  }
  return blocks;
}

// With `prune` but no floors, found_scores has a line of scores of candidates for each query, the last of which its k0-th
// best score reaches.
inline void scan_all(const SearchArguments& all, const Prune* prune) {
  constexpr int64_t BLOCK_ROWS = 4096;   // 512 kB of codes at D = 128
  constexpr int64_t MOST_QUERIES = 1024;  // of a part, which packs every tile; 512: within 6 % (AMD EPYC Zen 4)
  const int threads = static_cast<int>(all.num_threads);
  const std::vector<Block> blocks = make_blocks(all, prune != nullptr, BLOCK_ROWS);
  // Tasks are parts of the queries times, if those are few, stripes of the blocks.
  const int64_t most = std::clamp<int64_t>((int64_t{8} << 20) / BestLists::bytes(all.k0), 16, MOST_QUERIES);
  int64_t parts = (all.num_queries + most - 1) / most;
  if (parts > 1) parts = (parts + threads - 1) / threads * threads;
  const int64_t num_blocks = static_cast<int64_t>(blocks.size());
  const int64_t stripes = parts >= threads ? 1 : std::clamp<int64_t>(num_blocks, 1, threads);
  std::vector<std::unique_ptr<Scan>> scans(parts * stripes);
  parallel_for(parts * stripes, threads, [&](int64_t task, int) {
    const int64_t part = task / stripes, stripe = task % stripes;
    const int64_t first = all.num_queries * part / parts, count = all.num_queries * (part + 1) / parts - first;
    auto scan = std::make_unique<Scan>(all, first, count, BLOCK_ROWS);
    if (all.floors)
      scan->start_thresholds(all.floors, 1);
    else if (prune)
      scan->start_thresholds(all.found_scores + all.k0 - 1, all.k0);
    std::vector<uint32_t> queries(count);
    std::iota(queries.begin(), queries.end(), 0u);
    for (int64_t i = num_blocks * stripe / stripes; i < num_blocks * (stripe + 1) / stripes; ++i)
      scan->block(blocks[i].begin, blocks[i].end, queries.data(), count, prune, blocks[i].cluster);
    if (stripes == 1)
      scan->finish();
    else
      scans[task] = std::move(scan);
  });
  if (stripes > 1)
    parallel_for(parts, threads, [&](int64_t part, int) {
      Scan& first = *scans[part * stripes];
      for (int64_t stripe = 1; stripe < stripes; ++stripe) first.add_all(*scans[part * stripes + stripe]);
      first.finish();
    });
}

// The best clusters of each query by the scores of their centroids, plus query norm * reach unless `reaches` [C] is null:
// chosen [B, count].
inline void choose_clusters(const SearchArguments& all, const float* reaches, int64_t count, int64_t* chosen) {
  SearchArguments centroids{};
  centroids.num_queries = all.num_queries;
  centroids.dim = all.dim;
  centroids.query_codes = all.query_codes;
  centroids.query_scales = all.query_scales;
  centroids.num_rows = all.num_clusters;
  centroids.codes = all.centroid_codes;
  centroids.scales = all.centroid_scales;
  if (reaches) {
    centroids.query_norms = all.query_norms;
    centroids.query_errors = all.query_errors;
    centroids.errors = centroids.norms = reaches;
  }
  centroids.k0 = count;
  centroids.found_rows = chosen;
  centroids.num_threads = all.num_threads;
  scan_all(centroids, nullptr);
}

}  // namespace stcli
