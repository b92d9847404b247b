// Upper bounds of scores from the geometry of clusters, so that an exact search skips most tiles.
//
// Let u be the direction of a cluster's centroid. A row x splits into its part along u and the rest, and so does a
// query q; by Cauchy-Schwarz q.x <= (q.u)(x.u) + |q - (q.u)u| |x - (x.u)u|. A tile of up to 32 rows keeps the range of
// the first factor of x and the maximum of the second. Best when the rows of a cluster are sorted by their distance from
// the centroid: of 1M rows of Corpus R / H a query then keeps 35 / 11 %, in tiles of 64 rows 39 / 16 %; in any order 53 /
// 26 % and 57 / 32 % (a simulation of 50 queries with their final thresholds). Beside tiles of 64 rows, and blocks of
// four queries, a search of Corpus R costs the same and one of H some 6 % less.
//
// The same holds for the last dims alone, the tail. So the dot of the first dims, the head, plus such a bound of the rest
// leaves out most of what is kept before it is multiplied to the end; here each row has its own second factor. Heads of
// 32 / 48 / 64 of 128 dims leave 24 / 16 / 9 % on R, 3.8 / 2.3 / 1.5 % on H in tiles of 64 rows, 64 dims in tiles of 32
// rows 8 and 0.9 %. With tiles of 64 rows 48 / 64: 361 / 352 us a query on R, 191 / 197 on H (k = 100, CPU time of the
// exact search on 2 cores of AMD EPYC Zen 4).
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "arguments.h"
#include "buffer.h"
#include "int8_dot.h"
#include "int8_tile.h"
#include "parallel.h"
#include "prune_view.h"

namespace stcli {

class Prune {
 public:
  // Queries of a block and rows of a tile.
  static constexpr int QUERIES = 8, ROWS = ROWS_FOR<QUERIES>;

  explicit Prune(const SearchArguments& all)
      : all_(all),
        isa_(current_isa()),
        head_(static_cast<int>(all.dim) / 2 / 16 * 16),
        first_tiles_(all.num_clusters + 1),
        clusters_(all.num_clusters),
        roots_(all.num_queries),
        tails_(all.num_rows) {
    for (int64_t cluster = 0; cluster < all.num_clusters; ++cluster)
      first_tiles_[cluster + 1] = first_tiles_[cluster] + (size(cluster) + ROWS - 1) / ROWS;
    tiles_.resize(first_tiles_.back());
    for (int64_t query = 0; query < all.num_queries; ++query) {
      const Squares squares = this->squares(all.query_codes + query * all.dim);
      roots_[query] = {root(squares.whole), root(squares.tail)};
    }
    parallel_for(all.num_clusters, static_cast<int>(all.num_threads), [&](int64_t cluster, int) { measure(cluster); });
  }

  int64_t begin(int64_t cluster) const { return all_.offsets[cluster]; }
  int64_t size(int64_t cluster) const { return all_.offsets[cluster + 1] - all_.offsets[cluster]; }

  // Dims of the head.
  int head() const { return head_; }
  // The second factor of each row's tail.
  const float* tails() const { return tails_.data(); }

  // Starts a view of the listed queries; nothing is to be done where it has these already.
  void start(const std::vector<uint32_t>& queries, QueryView& view) const {
    if (view.queries == queries) return;
    view.queries = queries;
    const size_t count = view.queries.size();
    for (auto* column : {&view.inverse_scales, &view.lengths, &view.inverse_lengths, &view.inverse_roots,
                         &view.tail_lengths, &view.tail_roots, &view.inverse_tail_roots, &view.norms, &view.errors,
                         &view.along, &view.across, &view.tail_along, &view.tail_across, &view.needed,
                         &view.head_limits, &view.tails, &view.limits, &view.bounds})
      column->resize(count);
    view.head_offsets.resize(count);
    view.dots.resize(TILE_QUERIES * view.stride());
    view.tail_dots.resize(TILE_QUERIES * view.stride());
    view.first_cluster = -TILE_QUERIES;
    view.most_norm = view.most_error = 0;
    pack(view);
    for (size_t i = 0; i < count; ++i) {
      const uint32_t query = view.queries[i];
      const int8_t* codes = all_.query_codes + query * all_.dim;
      std::copy_n(codes, head_, view.heads.as<int8_t>() + i * head_);
      view.head_offsets[i] = dot_offset(isa_, codes, head_);
      const Roots roots = roots_[query];
      const float scale = all_.query_scales[query];
      view.inverse_scales[i] = 1 / scale;
      view.lengths[i] = roots.whole * scale;
      view.inverse_lengths[i] = inverse(view.lengths[i]);
      view.inverse_roots[i] = inverse(roots.whole);
      view.tail_lengths[i] = roots.tail * scale;
      view.tail_roots[i] = roots.tail;
      view.inverse_tail_roots[i] = inverse(roots.tail);
      view.norms[i] = all_.query_norms ? all_.query_norms[query] : 0.0f;
      view.errors[i] = all_.query_norms ? all_.query_errors[query] : 0.0f;
      view.most_norm = std::max(view.most_norm, view.norms[i] * view.inverse_lengths[i]);
      view.most_error = std::max(view.most_error, view.errors[i] * view.inverse_lengths[i]);
    }
  }

  // Turns a view to another centroid, for queries that need these scores.
  void look(int64_t cluster, const float* thresholds, QueryView& view) const {
    if (cluster < view.first_cluster || cluster >= view.first_cluster + TILE_QUERIES) multiply(cluster, view);
    const int32_t* dots = view.dots.data() + (cluster - view.first_cluster) * view.stride();
    const int32_t* tail_dots = view.tail_dots.data() + (cluster - view.first_cluster) * view.stride();
    const SeenCluster& seen = clusters_[cluster];
    split(isa_, dots, seen.factor, view.inverse_roots, view.along, view.across);
    split(isa_, tail_dots, seen.tail_factor, view.inverse_tail_roots, view.tail_along, view.tail_across);
    find_needs(isa_, seen, thresholds, view);
  }

  // Lists those i of the view whose bound for the tile of `row` reaches what they need. `picked` has room for 16 more.
  // Returns how many.
  int64_t select(int64_t cluster, int64_t row, QueryView& view, uint32_t* picked) const {
    return pick(isa_, tiles_[first_tiles_[cluster] + (row - begin(cluster)) / ROWS], view, picked);
  }

 private:
  struct Squares {
    int32_t whole, tail;
  };

  struct Roots {
    float whole, tail;
  };

  struct Offsets {
    int32_t head, tail;
  };

  int32_t tail_square(const int8_t* codes) const {
    return square(isa_, codes + head_, static_cast<int>(all_.dim) - head_);
  }

  Squares squares(const int8_t* codes) const {
    const int32_t tail = tail_square(codes);
    return {square(isa_, codes, head_) + tail, tail};
  }

  // Packs the queries of a view into tiles.
  void pack(QueryView& view) const {
    const size_t count = view.queries.size();
    const int dim = static_cast<int>(all_.dim);
    if (count > view.room) {
      view.room = view.stride();
      view.rows.resize(TILE_ROWS * dim);
      view.tiles = Buffer(static_cast<int64_t>(view.room) / TILE_ROWS * tile_bytes(dim));
      view.heads = Buffer(static_cast<int64_t>(view.room) * head_);
    }
    uint8_t* tile = view.tiles.as<uint8_t>();
    for (size_t i = 0; i < count; i += TILE_ROWS, tile += tile_bytes(dim)) {
      const size_t part = std::min<size_t>(TILE_ROWS, count - i);
      for (size_t j = 0; j < part; ++j)
        std::copy_n(all_.query_codes + view.queries[i + j] * all_.dim, dim, view.rows.data() + j * dim);
      pack_tile(isa_, view.rows.data(), static_cast<int>(part), dim, tile);
    }
  }

  // Multiplies the queries of a view with the centroids of a few clusters, from `cluster` on.
  void multiply(int64_t cluster, QueryView& view) const {
    alignas(64) static constexpr float scales[TILE_ROWS] = {};
    alignas(64) int32_t dots[TILE_QUERIES * TILE_ROWS];
    const int dim = static_cast<int>(all_.dim);
    TileQueries<TILE_QUERIES> heads, rests;
    for (int j = 0; j < TILE_QUERIES; ++j) {
      heads.codes[j] = all_.centroid_codes + std::min(cluster + j, all_.num_clusters - 1) * all_.dim;
      const Offsets offsets = this->offsets(heads.codes[j]);
      rests.codes[j] = heads.codes[j];
      heads.offsets[j] = offsets.head;
      rests.offsets[j] = offsets.tail;
      heads.limits[j] = rests.limits[j] = -INFINITY;  // all dots are wanted
    }
    const size_t count = view.queries.size(), stride = view.stride();
    const uint8_t* tile = view.tiles.as<uint8_t>();
    for (size_t i = 0; i < count; i += TILE_ROWS, tile += tile_bytes(dim)) {
      const int part = static_cast<int>(std::min<size_t>(TILE_ROWS, count - i));
      tile_dots(isa_, {tile, part, dim, 0, head_, scales, nullptr}, heads, dots);
      for (int j = 0; j < TILE_QUERIES; ++j)
        std::copy_n(dots + j * TILE_ROWS, part, view.tail_dots.data() + j * stride + i);
      tile_dots(isa_, {tile, part, dim, head_, dim, scales, nullptr}, rests, dots);
      for (int j = 0; j < TILE_QUERIES; ++j)
        for (int r = 0; r < part; ++r) {
          int32_t& tail = view.tail_dots[j * stride + i + r];
          view.dots[j * stride + i + r] = dots[j * TILE_ROWS + r];
          tail = dots[j * TILE_ROWS + r] - tail;
        }
    }
    view.first_cluster = cluster;
  }

  static float root(int32_t square) { return static_cast<float>(std::sqrt(static_cast<double>(square))); }

  Offsets offsets(const int8_t* codes) const {
    return {dot_offset(isa_, codes, head_), dot_offset(isa_, codes + head_, static_cast<int>(all_.dim) - head_)};
  }

  // Dots of some codes with listed rows of others: of all dims, and of the tail. Both may write three entries more.
  void split_dots(const int8_t* left, Offsets offsets, const int8_t* codes, const uint32_t* rows, int count,
                  int32_t* dots, int32_t* tail_dots) const {
    const int dim = static_cast<int>(all_.dim);
    row_dots(isa_, left, offsets.head, codes, rows, count, head_, dim, dots);
    row_dots(isa_, left + head_, offsets.tail, codes + head_, rows, count, dim - head_, dim, tail_dots);
    for (int i = 0; i < count; ++i) dots[i] += tail_dots[i];
  }

  void measure(int64_t cluster) {
    const int8_t* centroid = all_.centroid_codes + cluster * all_.dim;
    const Squares own = squares(centroid);
    SeenCluster& seen = clusters_[cluster];
    seen = {inverse(root(own.whole)), inverse(root(own.tail)), INFINITY, -INFINITY, 0, 0};
    const Offsets offsets = this->offsets(centroid);
    uint32_t rows[ROWS];
    int32_t dots[ROWS + 4], tail_dots[ROWS + 4];
    for (int64_t row = begin(cluster); row < begin(cluster) + size(cluster); row += ROWS) {
      const int count = static_cast<int>(std::min<int64_t>(ROWS, begin(cluster) + size(cluster) - row));
      std::iota(rows, rows + count, static_cast<uint32_t>(row));
      split_dots(centroid, offsets, all_.codes, rows, count, dots, tail_dots);
      SeenTile tile{INFINITY, -INFINITY, 0, 0, 0};
      for (int i = 0; i < count; ++i) {
        const float scale = all_.scales[rows[i]], norm = all_.norms[rows[i]];
        const float along = static_cast<float>(dots[i]) * scale * seen.factor;
        tile.along_low = std::min(tile.along_low, along);
        tile.along_high = std::max(tile.along_high, along);
        tile.across = std::max(tile.across, norm * std::sqrt(rest(along * inverse(norm))));
        tile.error = std::max(tile.error, all_.errors[rows[i]]);
        tile.norm = std::max(tile.norm, norm);
        const float tail_along = static_cast<float>(tail_dots[i]) * scale * seen.tail_factor;
        const float tail_norm = root(tail_square(all_.codes + rows[i] * all_.dim)) * scale;
        seen.tail_low = std::min(seen.tail_low, tail_along);
        seen.tail_high = std::max(seen.tail_high, tail_along);
        tails_[rows[i]] = tail_norm * (std::sqrt(rest(tail_along * inverse(tail_norm))) + 1e-3f);
      }
      tile.across += 1e-3f * tile.norm;
      tile.norm *= 1 + 1e-5f;
      tile.error *= 1 + 1e-5f;
      seen.norm = std::max(seen.norm, tile.norm);
      seen.error = std::max(seen.error, tile.error);
      tiles_[first_tiles_[cluster] + (row - begin(cluster)) / ROWS] = tile;
    }
  }

  const SearchArguments& all_;
  const Isa isa_;
  const int head_;
  std::vector<int64_t> first_tiles_;
  std::vector<SeenCluster> clusters_;
  std::vector<Roots> roots_;  // of the squares of the codes of the queries
  std::vector<float> tails_;  // of rows
  std::vector<SeenTile> tiles_;
};

}  // namespace stcli
