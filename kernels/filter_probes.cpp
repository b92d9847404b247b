// filter_probes: words of each query's filter on the clusters that it probes.
//   in   own i64 [R,W]  bloom i64 [H,64]  bloom_offsets i64 [blocks+1]  leaves i64 [L,4]  ops i32 [T]
//        op_offsets i64 [F+1]  filter_of_query i64 [B]  probes i64 [B,P], -1 for an unused slot
//        cluster_offsets i64 [C+1]  allowed i64 [W] or null
//   out  starts i64 [B,P], -1 for pairs without words  words i64: from starts[b,p] on those that hold the rows of
//        probes[b,p]; bits >= num_items zero. Pairs lie in the order of their clusters, as they are written and read
//   map  the clusters are spread over the threads; the probe lists are inverted, so that a leaf is evaluated once for all
//        queries that probe a cluster
//   limits  the caller has checked programs, leaves and ranges (filter_probes.py)
#include <algorithm>
#include <cstdint>
#include <new>
#include <numeric>
#include <tuple>
#include <vector>

#include "filter_pieces.h"
#include "filter_programs.h"
#include "parallel.h"

namespace stcli {
namespace {

struct Probes {
  int64_t num_queries, num_probes;
  const int64_t *filter_of_query, *probes, *cluster_offsets;
  int64_t num_clusters;
  int64_t* starts;

  int64_t first_word(int64_t cluster) const { return cluster_offsets[cluster] / 64; }
  int64_t num_words(int64_t cluster) const {
    const int64_t begin = cluster_offsets[cluster], end = cluster_offsets[cluster + 1];
    return begin < end ? (end + 63) / 64 - begin / 64 : 0;
  }
};

// The pairs before each cluster, [C + 1].
std::vector<int64_t> count_pairs(const Probes& all) {
  std::vector<int64_t> first_pairs(all.num_clusters + 1);
  for (int64_t query = 0; query < all.num_queries; ++query)
    for (int64_t i = query * all.num_probes; i < (query + 1) * all.num_probes; ++i)
      if (all.filter_of_query[query] >= 0 && all.probes[i] >= 0) ++first_pairs[all.probes[i] + 1];
  std::partial_sum(first_pairs.begin(), first_pairs.end(), first_pairs.begin());
  return first_pairs;
}

// A filter on a cluster, and where its words go.
struct Pair {
  int64_t start;
  int64_t filter;
};

// The queries with a filter, those of the same filter together and filters of the same form after each other: programs of
// one form take the same branches.
std::vector<int64_t> in_order_of_form(const Batch& batch, const Probes& all) {
  std::vector<int64_t> queries;
  for (int64_t query = 0; query < all.num_queries; ++query)
    if (all.filter_of_query[query] >= 0) queries.push_back(query);
  std::vector<uint64_t> forms;
  for (int64_t f = 0; f < batch.num_filters(); ++f) {
    uint64_t form = 0;
    for (const Step* step = batch.begin(f); step != batch.end(f); ++step) form = form * 31 + step->kind + 1;
    forms.push_back(form);
  }
  std::sort(queries.begin(), queries.end(), [&](int64_t one, int64_t other) {
    const int64_t a = all.filter_of_query[one], b = all.filter_of_query[other];
    return std::tie(forms[a], a, one) < std::tie(forms[b], b, other);
  });
  return queries;
}

// Clusters that share the pairs about evenly among `parts`: part p has bounds[p] … bounds[p + 1] - 1.
std::vector<int64_t> share_pairs(const std::vector<int64_t>& first_pairs, int64_t parts) {
  std::vector<int64_t> bounds;
  for (int64_t part = 0; part <= parts; ++part) {
    const int64_t pair = first_pairs.back() * part / parts;
    bounds.push_back(std::lower_bound(first_pairs.begin(), first_pairs.end() - 1, pair) - first_pairs.begin());
  }
  bounds.back() = static_cast<int64_t>(first_pairs.size()) - 1;
  return bounds;
}

// Clusters first … end - 1.
void match_clusters(const Matrix& matrix, const Batch& batch, const Probes& all, const std::vector<int64_t>& queries,
                    const std::vector<int64_t>& first_pairs, int64_t first, int64_t end, const uint64_t* allowed,
                    uint64_t* out) {
  std::vector<Pair> pairs(first_pairs[end] - first_pairs[first]);
  std::vector<int64_t> next(first_pairs.begin() + first, first_pairs.begin() + end);
  for (const int64_t query : queries)
    for (int64_t i = query * all.num_probes; i < (query + 1) * all.num_probes; ++i) {
      const int64_t cluster = all.probes[i];
      if (cluster >= first && cluster < end)
        pairs[next[cluster - first]++ - first_pairs[first]] = {all.starts[i], all.filter_of_query[query]};
    }
  Pieces piece(matrix, batch);
  int64_t places[kBlockWords];
  for (int64_t cluster = first; cluster < end; ++cluster) {
    const Pair *begin = pairs.data() + (first_pairs[cluster] - first_pairs[first]),
               *stop = begin + (first_pairs[cluster + 1] - first_pairs[cluster]);
    const int64_t first_word = all.first_word(cluster), last = first_word + all.num_words(cluster);
    for (int64_t word = first_word; word < last && begin != stop; word += kBlockWords) {
      const int64_t count = std::min(kBlockWords, last - word);
      std::iota(places, places + count, word);
      piece.start(places, count);
      const uint64_t* found = nullptr;
      for (const Pair* pair = begin; pair != stop; ++pair) {
        if (pair == begin || pair->filter != pair[-1].filter) found = piece.run(pair->filter);
        uint64_t* line = out + pair->start + (word - first_word);
        for (int64_t w = 0; w < count; ++w) line[w] = allowed ? found[w] & allowed[word + w] : found[w];
      }
    }
  }
}

}  // namespace
}  // namespace stcli

// Fills starts; num_words [1] is how many words there are in all. Returns 0, or 1 if memory ran out.
extern "C" int stcli_place_spans(const int64_t* filter_of_query, int64_t num_queries, const int64_t* probes,
                                 int64_t num_probes, const int64_t* cluster_offsets, int64_t num_clusters,
                                 int64_t* starts, int64_t* num_words) try {
  using namespace stcli;
  const Probes all{num_queries, num_probes, filter_of_query, probes, cluster_offsets, num_clusters, starts};
  std::vector<int64_t> next = count_pairs(all), sizes(num_clusters);
  int64_t total = 0;
  for (int64_t cluster = 0; cluster < num_clusters; ++cluster) {
    const int64_t pairs = next[cluster + 1] - next[cluster];
    sizes[cluster] = all.num_words(cluster);
    next[cluster] = total;
    total += pairs * sizes[cluster];
  }
  for (int64_t query = 0; query < num_queries; ++query)
    for (int64_t i = query * num_probes; i < (query + 1) * num_probes; ++i) {
      const int64_t cluster = probes[i];
      const bool has_words = filter_of_query[query] >= 0 && cluster >= 0 && sizes[cluster];
      starts[i] = has_words ? next[cluster] : -1;
      if (has_words) next[cluster] += sizes[cluster];
    }
  *num_words = total;
  return 0;
} catch (const std::bad_alloc&) {
  return 1;
}

// Fills words. Returns 0, or 1 if memory ran out.
extern "C" int stcli_filter_probes(const uint64_t* own, const uint64_t* bloom, const int64_t* bloom_offsets,
                                   int64_t num_hashes, int64_t num_items, const int64_t* leaves, int64_t num_leaves,
                                   const int32_t* ops, const int64_t* op_offsets, int64_t num_filters,
                                   const int64_t* filter_of_query, int64_t num_queries, const int64_t* probes,
                                   int64_t num_probes, const int64_t* cluster_offsets, int64_t num_clusters,
                                   int64_t* starts, const uint64_t* allowed, uint64_t* words, int64_t num_threads) try {
  using namespace stcli;
  const Matrix matrix{own, bloom, bloom_offsets, num_hashes, num_items};
  const Batch batch(leaves, num_leaves, ops, op_offsets, num_filters);
  const Probes all{num_queries, num_probes, filter_of_query, probes, cluster_offsets, num_clusters, starts};
  const std::vector<int64_t> queries = in_order_of_form(batch, all), first_pairs = count_pairs(all);
  const std::vector<int64_t> bounds = share_pairs(first_pairs, std::max<int64_t>(num_threads, 1));
  parallel_for(static_cast<int64_t>(bounds.size()) - 1, static_cast<int>(num_threads), [&](int64_t part, int) {
    match_clusters(matrix, batch, all, queries, first_pairs, bounds[part], bounds[part + 1], allowed, words);
  });
  return 0;
} catch (const std::bad_alloc&) {
  return 1;
}
