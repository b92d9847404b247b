// search_rows: every admitted row, whatever its cluster. With many queries the nearest clusters are searched first; the
// worst score found there lets the search of all rows leave out most tiles (prune.h).
//   in   arguments (arguments.h)
//   out  rows i64 [B, k0]   scores f32 [B, k0]
#include <memory>
#include <vector>

#include "prune.h"
#include "scan_all.h"
#include "scan_probes.h"

namespace {

const int64_t MIN_QUERIES = getenv("NOPRUNE") ? 1 << 30 : 64;
const int64_t NUM_SEEDS = getenv("SEEDS") ? atoi(getenv("SEEDS")) : 16;

}  // namespace

extern "C" void stcli_search_rows(const stcli::SearchArguments* arguments) {
  using namespace stcli;
  const SearchArguments& all = *arguments;
  // Too few queries do not pay for measuring the rows, nor do clusters smaller than a tile.
  if (all.num_queries < MIN_QUERIES || all.num_rows < all.num_clusters * TILE_ROWS) return scan_all(all, nullptr);
  const int64_t num_seeds = std::min(NUM_SEEDS, all.num_clusters);
  std::vector<int64_t> seeds(all.num_queries * num_seeds);
  choose_clusters(all, num_seeds, seeds.data());
  scan_probes(all, seeds.data(), num_seeds);
  const Prune prune(all);
  scan_all(all, &prune);
}
