// Scores blocks of rows for lists of queries and keeps each query's best: the inner part of search_clusters,
// search_rows and choose_probes.
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
#include "isa.h"
#include "list_bits.h"
#include "prune.h"
#include "topk.h"

namespace stcli {

class Scan {
 public:
  // Scans for the queries first … first + count - 1, which are numbered from 0 here.
  Scan(const SearchArguments& arguments, int64_t first, int64_t count, int64_t block_rows)
      : all_(arguments),
        first_(first),
        count_(count),
        dim_(static_cast<int>(arguments.dim)),
        isa_(current_isa()),
        best_(isa_, count, arguments.k0),
        active_(count),
        listed_(block_rows + TILE_ROWS),
        tile_(tile_bytes(dim_)) {
    if (arguments.excluded_rows)
      best_.exclude(arguments.excluded_rows, arguments.excluded_begins + first, arguments.excluded_ends + first);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t query = first + i;
      const int8_t* codes = all_.query_codes + query * dim_;
      const int64_t filter = all_.words ? all_.filter_of_query[query] : -1;
      active_[i] = {codes,
                    filter < 0 ? nullptr : all_.words + filter * all_.num_words,
                    static_cast<uint32_t>(i),
                    dot_offset(isa_, codes, dim_),
                    all_.query_scales[query],
                    1 / all_.query_scales[query],
                    all_.query_norms ? all_.query_norms[query] : 0.0f,
                    all_.query_norms ? all_.query_errors[query] : 0.0f};
    }
  }

  // Offers the rows begin … end - 1, at most block_rows, to the queries. `prune` may leave out tiles; then the rows are
  // whole tiles of clusters, the first of which is `first_cluster`.
  void block(int64_t begin, int64_t end, const uint32_t* queries, int64_t count, const Prune* prune = nullptr,
             int64_t first_cluster = 0) {
    if (!count) return;
    dense_.clear();
    Prefetch next(all_.codes + end * dim_, std::min(all_.num_rows - end, end - begin) * dim_, count);
    for (int64_t i = 0; i < count; ++i) {
      if (i + 2 * AHEAD < count) __builtin_prefetch(&active_[queries[i + 2 * AHEAD]]);
      if (i + AHEAD < count) prefetch(active_[queries[i + AHEAD]], begin, end);
      const ActiveQuery& query = active_[queries[i]];
      const int64_t rows = query.words ? count_bits(isa_, query.words, begin, end) : end - begin;
      if (rows * LISTED_SHARE >= end - begin) {
        dense_.push_back(query);
      } else if (rows) {
        next.step();
        list_bits(isa_, query.words, begin, end, listed_.data());
        scan_listed(query, rows);
      }
    }
    if (dense_.empty()) return;
    if (prune)
      scan_pruned(*prune, first_cluster, begin, end);
    else
      scan_tiles(begin, end);
  }

  // Starts each query with thresholds[query * stride].
  void start_thresholds(const float* thresholds, int64_t stride) {
    for (int64_t i = 0; i < count_; ++i) best_.start_threshold(i, thresholds[(first_ + i) * stride]);
  }

  // Adds what another scan for the same queries found.
  void add_all(const Scan& other) {
    for (int64_t query = 0; query < count_; ++query) best_.add_all(query, other.best_);
  }

  // Writes the results.
  void finish() {
    std::vector<uint64_t> keys, spare;
    for (int64_t query = 0; query < count_; ++query) {
      const int64_t place = (first_ + query) * all_.k0;
      best_.finish(query, keys, spare, all_.found_rows + place,
                   all_.found_scores ? all_.found_scores + place : nullptr);
    }
  }

 private:
  // Queries whose memory is fetched before their turn.
  static constexpr int64_t AHEAD = 4;
  // A block with fewer than one admitted row in so many is read row by row, else in whole tiles. 3 / 5 / 8: 267 / 253 /
  // 297 us a query at 6 % admitted, 764 / 727 / 741 at 25 % (search_rows, 1M x 128, 2 cores of AMD EPYC Zen 4).
  static constexpr int64_t LISTED_SHARE = 5;
  // Queries from which on packing a tile pays: packing takes 250 ns, four queries with a packed tile 147 ns, one query
  // with an unpacked one 106 ns (D = 128, AMD EPYC Zen 4). For 4 / 6 / 10 a search differs by less than the noise.
  static constexpr int64_t MIN_PACKED = 6;

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

  void scan_listed(const ActiveQuery& query, int64_t count) {
    for (int64_t start = 0; start < count; start += TILE_ROWS) {
      const int part = static_cast<int>(std::min<int64_t>(TILE_ROWS, count - start));
      std::copy_n(listed_.data() + start, part, candidates_.rows);
      fill_factors(part);
      row_dots(isa_, query.codes, query.offset, all_.codes, candidates_.rows, part, dim_, candidates_.dots);
      offer(query, candidates_.dots, part, nullptr);
    }
  }

  void scan_tiles(int64_t begin, int64_t end) {
    picked_.resize(dense_.size());
    std::iota(picked_.begin(), picked_.end(), 0u);
    for (int64_t row = begin; row < end; row += TILE_ROWS) scan_tile(row, std::min<int64_t>(TILE_ROWS, end - row));
  }

  void scan_pruned(const Prune& prune, int64_t cluster, int64_t begin, int64_t end) {
    view_.queries.resize(dense_.size());
    for (size_t i = 0; i < dense_.size(); ++i) view_.queries[i] = static_cast<uint32_t>(first_ + dense_[i].number);
    prune.start(view_);
    thresholds_.resize(dense_.size());
    for (; cluster < all_.num_clusters && prune.begin(cluster) < end; ++cluster) {
      if (!prune.size(cluster)) continue;
      prune.look(cluster, view_);
      for (size_t i = 0; i < dense_.size(); ++i) thresholds_[i] = best_.threshold(dense_[i].number);
      const int64_t stop = std::min(end, prune.begin(cluster) + prune.size(cluster));
      for (int64_t row = std::max(begin, prune.begin(cluster)); row < stop; row += TILE_ROWS) {
        prune.select(cluster, row, thresholds_.data(), view_, picked_);
        scan_tile(row, std::min<int64_t>(TILE_ROWS, stop - row), view_.limits.data());
      }
    }
  }

  // Offers up to TILE_ROWS rows to the picked ones of the dense queries; `limits` of all of these, if known.
  void scan_tile(int64_t row, int64_t rows, const float* limits = nullptr) {
    const int64_t size = static_cast<int64_t>(picked_.size());
    if (!size) return;
    const int count = static_cast<int>(rows);
    std::iota(candidates_.rows, candidates_.rows + count, static_cast<uint32_t>(row));
    fill_factors(count);
    if (all_.query_norms && !limits) {
      largest_error_ = *std::max_element(candidates_.errors, candidates_.errors + count);
      largest_norm_ = *std::max_element(candidates_.norms, candidates_.norms + count);
    }
    if (size < MIN_PACKED) {
      for (uint32_t place : picked_) {
        const ActiveQuery& query = dense_[place];
        row_dots(isa_, query.codes, query.offset, all_.codes, candidates_.rows, count, dim_, candidates_.dots);
        offer(query, candidates_.dots, count, query.words);
      }
      return;
    }
    uint8_t* tile = tile_.as<uint8_t>();
    pack_tile(isa_, all_.codes + row * dim_, count, dim_, tile);
    Prefetch next(all_.codes + (row + count) * dim_, std::min<int64_t>(TILE_ROWS, all_.num_rows - row - count) * dim_,
                  (size + TILE_QUERIES - 1) / TILE_QUERIES);
    for (int64_t i = 0; i < size; i += TILE_QUERIES) {
      TileQueries queries;
      for (int j = 0; j < TILE_QUERIES; ++j) {
        const uint32_t place = picked_[std::min(i + j, size - 1)];
        const ActiveQuery& query = dense_[place];
        queries.codes[j] = query.codes;
        queries.offsets[j] = query.offset;
        queries.limits[j] = limits ? limits[place] : limit(query);
      }
      next.step();
      unsigned found = tile_dots(isa_, tile, count, dim_, queries, candidates_.scales, candidates_.dots);
      if (size - i < TILE_QUERIES) found &= (1u << (size - i)) - 1;
      for (; found; found &= found - 1) {
        const int j = __builtin_ctz(found);
        const ActiveQuery& query = dense_[picked_[i + j]];
        offer(query, candidates_.dots + j * TILE_ROWS, count, query.words);
      }
    }
  }

  // No row of the tile with float(dot) * row scale below this reaches the query's threshold.
  float limit(const ActiveQuery& query) const {
    const float slack = query.norm * largest_error_ + query.error * largest_norm_;
    const float threshold = best_.threshold(query.number);
    return dot_limit(threshold - slack, std::fabs(threshold) + slack, query.inverse_scale);
  }

  // Adds the candidates that reach the threshold and are admitted by `words` (from the first row on).
  void offer(const ActiveQuery& query, const int32_t* dots, int count, const uint64_t* words) {
    const float threshold = best_.threshold(query.number);
    uint64_t mask = all_.query_norms ? reaching<true>(isa_, query, dots, threshold, count, candidates_)
                                     : reaching<false>(isa_, query, dots, threshold, count, candidates_);
    if (!mask) return;
    if (words) mask &= admitted(words, candidates_.rows[0]);
    if (mask) best_.add(query.number, mask, candidates_.scores, candidates_.rows);
  }

  const SearchArguments& all_;
  const int64_t first_, count_;
  const int dim_;
  const Isa isa_;
  BestLists best_;
  std::vector<ActiveQuery> active_, dense_;
  std::vector<uint32_t> listed_, picked_;  // rows; places in dense_
  std::vector<float> thresholds_;
  Prune::View view_;
  Buffer tile_;
  Candidates candidates_;
  float largest_error_ = 0, largest_norm_ = 0;  // of the tile
};

}  // namespace stcli
