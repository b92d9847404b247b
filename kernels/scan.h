// Scores blocks of rows for lists of queries and keeps each query's best: the inner part of search_clusters,
// search_requests, search_rows and choose_probes.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "arguments.h"
#include "buffer.h"
#include "candidates.h"
#include "int8_dot.h"
#include "int8_tile.h"
#include "isa.h"
#include "list_bits.h"
#include "prune.h"
#include "topk.h"

namespace stcli {

class Scan {
 public:
  // Scans for the queries first … first + count - 1, which are numbered from 0 here. `together` consecutive ones, with
  // the same filter, are a request: they share a list, in which a row has the best of its scores.
  Scan(const SearchArguments& arguments, int64_t first, int64_t count, int64_t block_rows, int64_t together = 1)
      : all_(arguments),
        first_(first / together),
        count_(count / together),
        together_(together),
        dim_(static_cast<int>(arguments.dim)),
        isa_(current_isa()),
        best_(isa_, count / together, arguments.k0),
        active_(count),
        seen_(count),
        listed_(block_rows + TILE_ROWS),
        tile_(tile_bytes(dim_)) {
    if (arguments.excluded_rows)
      best_.exclude(arguments.excluded_rows, arguments.excluded_begins + first_, arguments.excluded_ends + first_);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t query = first + i;
      const int8_t* codes = all_.query_codes + query * dim_;
      const int64_t filter = all_.words ? all_.filter_of_query[query] : -1;
      active_[i] = {codes,
                    filter < 0 ? nullptr : all_.words + filter * all_.num_words,
                    static_cast<uint32_t>(i),
                    static_cast<uint32_t>(i / together),
                    dot_offset(isa_, codes, dim_),
                    all_.query_scales[query],
                    1 / all_.query_scales[query],
                    all_.query_norms ? all_.query_norms[query] : 0.0f,
                    all_.query_norms ? all_.query_errors[query] : 0.0f};
    }
  }

  // Where the words of some queries on a cluster begin among all_.span_words, -1 for queries that have none, and the word
  // of the first row of the cluster.
  struct Spans {
    const int64_t* starts;
    int64_t first_word;
  };

  // Offers the rows begin … end - 1, at most block_rows, to the queries. `prune` may leave out tiles; then the rows are
  // whole tiles of clusters, the first of which is `first_cluster`.
  void block(int64_t begin, int64_t end, const uint32_t* queries, int64_t count, const Prune* prune = nullptr,
             int64_t first_cluster = 0, const Spans* spans = nullptr) {
    if (!count) return;
    dense_.clear();
    Prefetch next(all_.codes + end * dim_, std::min(all_.num_rows - end, end - begin) * dim_, count);
    for (int64_t i = 0, same; i < count; i += same) {
      const ActiveQuery query = at(queries, i, spans);
      for (same = 0; i + same < count && active_[queries[i + same]].list == query.list; ++same) {
        if (i + same + 2 * AHEAD < count) __builtin_prefetch(&active_[queries[i + same + 2 * AHEAD]]);
        if (i + same + AHEAD < count) prefetch(at(queries, i + same + AHEAD, spans), begin, end);
      }
      const int64_t rows = query.words ? count_bits(isa_, query.words, begin, end) : end - begin;
      for (int64_t j = 0; j < same; ++j) seen_[active_[queries[i + j]].number] += rows;
      if (rows * LISTED_SHARE >= end - begin) {
        for (int64_t j = 0; j < same; ++j) dense_.push_back(at(queries, i + j, spans));
      } else if (rows) {
        next.step();
        list_bits(isa_, query.words, begin, end, listed_.data());
        scan_listed(queries + i, same, rows);
      }
    }
    if (dense_.empty()) return;
    if (prune)
      scan_pruned(*prune, first_cluster, begin, end);
    else
      scan_tiles(begin, end);
  }

  // Starts each list with thresholds[list * stride].
  void start_thresholds(const float* thresholds, int64_t stride) {
    for (int64_t list = 0; list < count_; ++list) best_.start_threshold(list, thresholds[(first_ + list) * stride]);
  }

  // Adds what another scan for the same queries found.
  void add_all(const Scan& other) {
    for (int64_t list = 0; list < count_; ++list) best_.add_all(list, other.best_);
  }

  // Writes the results.
  void finish() {
    std::vector<uint64_t> keys, spare;
    for (int64_t list = 0; list < count_; ++list) {
      const int64_t place = (first_ + list) * all_.k0;
      best_.finish(list, keys, spare, all_.found_rows + place, all_.found_scores ? all_.found_scores + place : nullptr);
    }
  }

  // Admitted rows of the blocks so far for each query, those that are kept out of the lists among them.
  const std::vector<int64_t>& seen() const { return seen_; }

 private:
  // Queries whose memory is fetched before their turn.
  static constexpr int64_t AHEAD = 4;
  // A block with fewer than one admitted row in so many is read row by row, else in whole tiles. 3 / 5 / 8: 267 / 253 /
  // 297 us a query at 6 % admitted, 764 / 727 / 741 at 25 % (search_rows, 1M x 128, 2 cores of AMD EPYC Zen 4).
  static constexpr int64_t LISTED_SHARE = 5;
  // Queries from which on packing a tile pays: packing takes 250 ns, four queries with a packed tile 147 ns, one query
  // with an unpacked one 106 ns (D = 128, AMD EPYC Zen 4). For 4 / 6 / 10 a search differs by less than the noise.
  static constexpr int64_t MIN_PACKED = 6;
  // Queries whose heads were not enough, before their tails are multiplied: 8 kB of dots.
  static constexpr int MOST_WAITING = 64;

  // Fetches memory that will be read next, a part at each of `steps` steps.
  struct Prefetch {
    Prefetch(const int8_t* begin, int64_t bytes, int64_t steps)
        : place(begin), end(begin + bytes), stride(64 * (bytes / (64 * steps) + 1)) {}
    void step() {
      for (const int8_t* until = std::min(place + stride, end); place < until; place += 64)
        __builtin_prefetch(place, 0, 2);
    }
    const int8_t *place, *end;
    const int64_t stride;
  };

  // Query i of a list, with the words that hold for it here.
  ActiveQuery at(const uint32_t* queries, int64_t i, const Spans* spans) const {
    ActiveQuery query = active_[queries[i]];
    if (spans && !query.words && spans->starts[i] >= 0)
      query.words = all_.span_words + (spans->starts[i] - spans->first_word);
    return query;
  }

  void prefetch(const ActiveQuery& query, int64_t begin, int64_t end) const {
    if (query.words)
      for (int64_t word = begin / 64; word * 64 < end; word += 8) __builtin_prefetch(query.words + word);
    for (int d = 0; d < dim_; d += 64) __builtin_prefetch(query.codes + d);
  }

  // The 64 bits from `row` on.
  uint64_t admitted(const uint64_t* words, int64_t row) const {
    const int64_t word = row / 64, shift = row % 64;
    const uint64_t bits = words[word] >> shift;
    return shift && word + 1 < all_.num_words ? bits | words[word + 1] << (64 - shift) : bits;
  }

  void fill_factors(int count) {
    for (int i = 0; i < count; ++i) candidates_.scales[i] = all_.scales[candidates_.rows[i]];
    std::fill(candidates_.scales + count, candidates_.scales + TILE_ROWS, 0.0f);
    if (!all_.query_norms) return;
    for (int i = 0; i < count; ++i) {
      candidates_.errors[i] = all_.errors[candidates_.rows[i]];
      candidates_.norms[i] = all_.norms[candidates_.rows[i]];
    }
  }

  // Offers the first `count` listed rows to the `same` queries of a request.
  void scan_listed(const uint32_t* queries, int64_t same, int64_t count) {
    for (int64_t start = 0; start < count; start += TILE_ROWS) {
      const int part = static_cast<int>(std::min<int64_t>(TILE_ROWS, count - start));
      std::copy_n(listed_.data() + start, part, candidates_.rows);
      fill_factors(part);
      for (int64_t i = 0; i < same; ++i) {
        const ActiveQuery& query = active_[queries[i]];
        row_dots(isa_, query.codes, query.offset, all_.codes, candidates_.rows, part, dim_, candidates_.dots);
        offer(query, candidates_.dots, part, nullptr);
      }
      add_joined();
    }
  }

  void scan_tiles(int64_t begin, int64_t end) {
    picked_.resize(dense_.size());
    std::iota(picked_.begin(), picked_.end(), 0u);
    for (int64_t row = begin; row < end; row += TILE_ROWS) scan_tile(row, std::min<int64_t>(TILE_ROWS, end - row));
  }

  void scan_pruned(const Prune& prune, int64_t cluster, int64_t begin, int64_t end) {
    const size_t count = dense_.size();
    numbers_.resize(count);
    for (size_t i = 0; i < count; ++i) numbers_[i] = static_cast<uint32_t>(first_ * together_ + dense_[i].number);
    prune.start(numbers_, view_);
    thresholds_.resize(count);
    picked_.resize(count + 16);
    for (; cluster < all_.num_clusters && prune.begin(cluster) < end; ++cluster) {
      if (!prune.size(cluster)) continue;
      for (size_t i = 0; i < count; ++i) thresholds_[i] = best_.threshold(dense_[i].list);
      prune.look(cluster, thresholds_.data(), view_);
      const int64_t stop = std::min(end, prune.begin(cluster) + prune.size(cluster));
      for (int64_t row = std::max(begin, prune.begin(cluster)); row < stop; row += Prune::ROWS)
        scan_picked(prune, prune.select(cluster, row, view_, picked_.data()), row,
                    std::min<int64_t>(Prune::ROWS, stop - row));
    }
  }

  // Starts on a tile: what is known of its rows.
  void start_tile(int64_t row, int count) {
    std::iota(candidates_.rows, candidates_.rows + count, static_cast<uint32_t>(row));
    fill_factors(count);
  }

  void pack(int64_t row, int count) { pack_tile(isa_, all_.codes + row * dim_, count, dim_, tile_.as<uint8_t>()); }

  // Offers the rows of a tile to so few queries that it is not packed.
  void scan_unpacked(const uint32_t* places, int64_t size, int count) {
    for (int64_t i = 0; i < size; ++i) {
      const ActiveQuery& query = dense_[places[i]];
      row_dots(isa_, query.codes, query.offset, all_.codes, candidates_.rows, count, dim_, candidates_.dots);
      offer(query, candidates_.dots, count, query.words);
    }
    add_joined();
  }

  // A block of queries of which set(block, j, place) tells what stands at the given places, the last repeated.
  template <int QUERIES, typename Set>
  static TileQueries<QUERIES> block_of(const uint32_t* places, int64_t size, Set set) {
    TileQueries<QUERIES> block;
    for (int j = 0; j < QUERIES; ++j) set(block, j, places[std::min<int64_t>(j, size - 1)]);
    return block;
  }

  // Offers up to TILE_ROWS rows to all dense queries.
  void scan_tile(int64_t row, int count) {
    const int64_t size = static_cast<int64_t>(dense_.size());
    start_tile(row, count);
    if (size < MIN_PACKED) return scan_unpacked(picked_.data(), size, count);
    if (all_.query_norms) {
      largest_error_ = *std::max_element(candidates_.errors, candidates_.errors + count);
      largest_norm_ = *std::max_element(candidates_.norms, candidates_.norms + count);
    }
    pack(row, count);
    Prefetch next(all_.codes + (row + count) * dim_, std::min<int64_t>(TILE_ROWS, all_.num_rows - row - count) * dim_,
                  (size + TILE_QUERIES - 1) / TILE_QUERIES);
    const TileRows tile{tile_.as<uint8_t>(), count, dim_, 0, dim_, candidates_.scales, nullptr};
    for (int64_t i = 0; i < size; i += TILE_QUERIES) {
      const auto queries = block_of<TILE_QUERIES>(picked_.data() + i, size - i, [&](auto& block, int j, uint32_t place) {
        block.codes[j] = dense_[place].codes;
        block.offsets[j] = dense_[place].offset;
        block.limits[j] = limit(dense_[place]);
      });
      next.step();
      offer_found<TILE_QUERIES>(tile_dots(isa_, tile, queries, candidates_.dots), picked_.data() + i, size - i,
                                candidates_.dots, count);
    }
    add_joined();
  }

  // Offers up to Prune::ROWS rows to the first `size` picked queries, which are as view_ says: the heads first, and what
  // these do not rule out waits until it fills blocks.
  void scan_picked(const Prune& prune, int64_t size, int64_t row, int count) {
    constexpr int QUERIES = Prune::QUERIES, ROWS = Prune::ROWS;
    if (!size) return;
    start_tile(row, count);
    if (size < MIN_PACKED) return scan_unpacked(picked_.data(), size, count);
    pack(row, count);
    Prefetch next(all_.codes + (row + count) * dim_, std::min<int64_t>(ROWS, all_.num_rows - row - count) * dim_,
                  (size + QUERIES - 1) / QUERIES);
    std::copy_n(prune.tails() + row, count, candidates_.tails);
    std::fill(candidates_.tails + count, candidates_.tails + ROWS, 0.0f);
    const TileRows heads{tile_.as<uint8_t>(), count, dim_, 0, prune.head(), candidates_.scales, candidates_.tails};
    const TileRows tails{tile_.as<uint8_t>(), count, dim_, prune.head(), dim_, candidates_.scales, nullptr};
    int waiting = 0;
    for (int64_t i = 0; i < size; i += QUERIES) {
      const auto queries = block_of<QUERIES>(picked_.data() + i, size - i, [&](auto& block, int j, uint32_t place) {
        block.codes[j] = view_.heads.as<int8_t>() + int64_t{place} * prune.head();
        block.offsets[j] = view_.head_offsets[place];
        block.limits[j] = view_.head_limits[place];
        block.tails[j] = view_.tails[place];
      });
      next.step();
      const unsigned found = tile_heads(isa_, heads, queries, waiting_dots_ + waiting * ROWS);
      for (int j = 0; j < QUERIES && i + j < size; ++j) {
        waiting_[waiting] = picked_[i + j];
        waiting += found >> j & 1;
      }
      if (waiting <= MOST_WAITING - QUERIES) continue;
      // Whole blocks from the end, so that the rest need not move.
      for (; waiting >= QUERIES; waiting -= QUERIES) scan_waiting(tails, waiting - QUERIES, QUERIES);
    }
    for (int i = 0; i < waiting; i += QUERIES) scan_waiting(tails, i, std::min(QUERIES, waiting - i));
    add_joined();
  }

  // Multiplies a block of those that wait to the end.
  void scan_waiting(const TileRows& tails, int first, int size) {
    const auto queries = block_of<Prune::QUERIES>(waiting_ + first, size, [&](auto& block, int j, uint32_t place) {
      block.codes[j] = dense_[place].codes;
      block.offsets[j] = dense_[place].offset - view_.head_offsets[place];
      block.limits[j] = view_.limits[place];
    });
    int32_t* dots = waiting_dots_ + first * Prune::ROWS;
    offer_found<Prune::QUERIES>(tile_dots(isa_, tails, queries, dots), waiting_ + first, size, dots, tails.count);
  }

  // Offers the rows of the tile to those of a block that `found` names.
  template <int QUERIES>
  void offer_found(unsigned found, const uint32_t* places, int64_t size, const int32_t* dots, int count) {
    if (size < QUERIES) found &= (1u << size) - 1;
    for (; found; found &= found - 1) {
      const int j = __builtin_ctz(found);
      const ActiveQuery& query = dense_[places[j]];
      offer(query, dots + j * ROWS_FOR<QUERIES>, count, query.words);
    }
  }

  // No row of the tile with float(dot) * row scale below this reaches the query's threshold.
  float limit(const ActiveQuery& query) const {
    const float slack = query.norm * largest_error_ + query.error * largest_norm_;
    const float threshold = best_.threshold(query.list);
    return dot_limit(threshold - slack, std::fabs(threshold) + slack, query.inverse_scale);
  }

  // Adds the candidates that reach the threshold and are admitted by `words` (from the first row on).
  void offer(const ActiveQuery& query, const int32_t* dots, int count, const uint64_t* words) {
    const float threshold = best_.threshold(query.list);
    uint64_t mask = all_.query_norms ? reaching<true>(isa_, query, dots, threshold, count, candidates_)
                                     : reaching<false>(isa_, query, dots, threshold, count, candidates_);
    if (!mask) return;
    if (words) mask &= admitted(words, candidates_.rows[0]);
    if (!mask) return;
    if (together_ == 1)
      best_.add(query.list, mask, candidates_.scores, candidates_.rows);
    else
      join(query.list, mask);
  }

  // Each row of a tile comes to a list once, with the best of the scores that the queries of the request have there.
  void join(uint32_t list, uint64_t mask) {
    if (joined_mask_ && joined_list_ != list) add_joined();
    if (joined_mask_)
      for (int i = 0; i < TILE_ROWS; ++i) joined_[i] = std::max(joined_[i], candidates_.scores[i]);
    else
      std::copy_n(candidates_.scores, TILE_ROWS, joined_);
    joined_list_ = list;
    joined_mask_ |= mask;
  }

  void add_joined() {
    if (joined_mask_) best_.add(joined_list_, joined_mask_, joined_, candidates_.rows);
    joined_mask_ = 0;
  }

  const SearchArguments& all_;
  const int64_t first_, count_, together_;  // of the lists; queries of a list
  const int dim_;
  const Isa isa_;
  BestLists best_;
  std::vector<ActiveQuery> active_, dense_;
  std::vector<int64_t> seen_;
  std::vector<uint32_t> listed_, picked_, numbers_;  // rows; places in dense_; queries of the view
  std::vector<float> thresholds_;
  QueryView view_;
  Buffer tile_;
  Candidates candidates_;
  float largest_error_ = 0, largest_norm_ = 0;  // of the tile
  alignas(64) float joined_[TILE_ROWS];         // scores of the rows of the tile for one list, if it has a mask
  uint64_t joined_mask_ = 0;
  uint32_t joined_list_ = 0;
  uint32_t waiting_[MOST_WAITING];              // places in dense_, with the dots of their heads
  alignas(64) int32_t waiting_dots_[MOST_WAITING * Prune::ROWS];
};

}  // namespace stcli
