// search_rows: every admitted row, whatever its cluster. With many queries the nearest clusters are searched first, unless
// the caller has floors; the worst score found there lets the search of all rows leave out most tiles (prune.h).
//   in   arguments (arguments.h)
//   out  rows i64 [B, k0]   scores f32 [B, k0]; returns 0, or 1 if memory ran out
#include <algorithm>
#include <vector>

#include "prune.h"
#include "scan_all.h"
#include "scan_probes.h"

namespace stcli {
namespace {

// Fewer queries do not pay for measuring all rows, which takes as long as searching them for some ten queries.
constexpr int64_t MIN_QUERIES = 64;

// One cluster of so many is searched first. 64 / 256 / 16: 477 / 481 / 546 us a query on Corpus R, 437 / 478 / 382 on
// Corpus H (1M x 128, 4,096 clusters, k0 = 132, CPU time on AMD EPYC Zen 4); without pruning 705 / 792.
constexpr int64_t SEED_SHARE = 64;

// Clusters with rows: those of a shard that has a run of rows of an index are few of all.
int64_t filled_clusters(const SearchArguments& all) {
  int64_t filled = 0;
  for (int64_t cluster = 0; cluster < all.num_clusters; ++cluster)
    filled += all.offsets[cluster] < all.offsets[cluster + 1];
  return filled;
}

bool has_filter(const SearchArguments& all, int64_t query) { return all.words && all.filter_of_query[query] >= 0; }

// Leaves in found_scores a line for each query whose last entry its k0-th best score reaches.
void search_nearest(const SearchArguments& all) {
  const int64_t num_seeds = (all.num_clusters + SEED_SHARE - 1) / SEED_SHARE;
  std::vector<int64_t> seeds(all.num_queries * num_seeds);
  choose_clusters(all, nullptr, num_seeds, seeds.data());
  // A filter leaves too few rows there.
  for (int64_t query = 0; query < all.num_queries; ++query)
    if (has_filter(all, query)) std::fill_n(seeds.data() + query * num_seeds, num_seeds, -1);
  scan_probes(all, seeds.data(), num_seeds);
}

}  // namespace
}  // namespace stcli

extern "C" int stcli_search_rows(const stcli::SearchArguments* arguments) try {
  using namespace stcli;
  const SearchArguments& all = *arguments;
  int64_t bounded = 0;  // queries with a good threshold from the start
  for (int64_t query = 0; query < all.num_queries; ++query) bounded += all.floors || !has_filter(all, query);
  // Clusters smaller than a tile do not pay either.
  if (bounded < MIN_QUERIES || all.num_rows < filled_clusters(all) * TILE_ROWS) {
    scan_all(all, nullptr);
    return 0;
  }
  if (!all.floors) search_nearest(all);
  const Prune prune(all);
  scan_all(all, &prune);
  return 0;
} catch (const std::bad_alloc&) {
  return 1;
}
