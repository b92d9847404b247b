// Upper bounds of scores from the geometry of clusters, so that an exact search skips most tiles.
//
// Let u be the direction of a cluster's centroid. A row x splits into its part along u and the rest, and so does a
// query q; by Cauchy-Schwarz q.x <= (q.u)(x.u) + |q - (q.u)u| |x - (x.u)u|. A tile of up to 64 rows keeps the range of
// the first factor of x and the maximum of the second. Best when the rows of a cluster are sorted by their distance from
// the centroid: of 1M rows of Corpus R / H a query then keeps 43 / 18 %, in any order 61 / 36 %.
//
// The same holds for the last dims alone, the tail. So the dot of the first dims, the head, plus such a bound of the rest
// leaves out most of what is kept before it is multiplied to the end; here each row has its own second factor. Heads of
// 32 / 48 / 64 of 128 dims leave 24 / 16 / 9 % on R, 3.8 / 2.3 / 1.5 % on H; 48 / 64: 361 / 352 us a query on R, 191 /
// 197 on H (k = 100, CPU time of the exact search on 2 cores of AMD EPYC Zen 4).
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

namespace stcli {

class Prune {
 public:
  explicit Prune(const SearchArguments& all)
      : all_(all),
        isa_(current_isa()),
        head_(static_cast<int>(all.dim) / 2 / 16 * 16),
        first_tiles_(all.num_clusters + 1),
        factors_(all.num_clusters),
        tail_factors_(all.num_clusters),
        lengths_(all.num_queries),
        tail_lengths_(all.num_queries),
        tails_(all.num_rows) {
    for (int64_t cluster = 0; cluster < all.num_clusters; ++cluster)
      first_tiles_[cluster + 1] = first_tiles_[cluster] + (size(cluster) + TILE_ROWS - 1) / TILE_ROWS;
    tiles_.resize(first_tiles_.back());
    for (int64_t query = 0; query < all.num_queries; ++query) {
      const Squares squares = this->squares(all.query_codes + query * all.dim);
      lengths_[query] = root(squares.whole) * all.query_scales[query];
      tail_lengths_[query] = root(squares.tail) * all.query_scales[query];
    }
    parallel_for(all.num_clusters, static_cast<int>(all.num_threads), [&](int64_t cluster, int) { measure(cluster); });
  }

  int64_t begin(int64_t cluster) const { return all_.offsets[cluster]; }
  int64_t size(int64_t cluster) const { return all_.offsets[cluster + 1] - all_.offsets[cluster]; }

  // Dims of the head; 0: too few to be worth it.
  int head() const { return head_; }
  // The second factor of each row's tail.
  const float* tails() const { return tails_.data(); }

  // Some queries, and where they lie as seen from one centroid: parts along its direction, and lengths of the rest, of
  // all dims and of the tail; `tails` are the latter in units of the query's scale.
  struct View {
    std::vector<uint32_t> queries;
    std::vector<float> scales, inverse_scales, lengths, inverse_lengths, tail_lengths, inverse_tail_lengths, norms,
        errors, along, across, tail_along, tails, bounds, limits, head_limits;
    int64_t first_cluster;                 // of those of which the dots are known: of all dims, and of the tail
    std::vector<int32_t> dots, tail_dots;  // [TILE_QUERIES, stride]
    std::vector<int8_t> rows;
    Buffer tiles{0};
    size_t room = 0;  // queries for which the tiles have room

    size_t stride() const { return (queries.size() + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS; }
  };

  // Starts a view of the queries listed in view.queries.
  void start(View& view) const {
    const size_t count = view.queries.size();
    for (auto* column : {&view.scales, &view.inverse_scales, &view.lengths, &view.inverse_lengths, &view.tail_lengths,
                         &view.inverse_tail_lengths, &view.norms, &view.errors, &view.along, &view.across,
                         &view.tail_along, &view.tails, &view.bounds, &view.limits, &view.head_limits})
      column->resize(count);
    view.dots.resize(TILE_QUERIES * view.stride());
    view.tail_dots.resize(TILE_QUERIES * view.stride());
    view.first_cluster = -TILE_QUERIES;
    pack(view);
    for (size_t i = 0; i < count; ++i) {
      const uint32_t query = view.queries[i];
      view.scales[i] = all_.query_scales[query];
      view.inverse_scales[i] = 1 / view.scales[i];
      view.lengths[i] = lengths_[query];
      view.inverse_lengths[i] = inverse(lengths_[query]);
      view.tail_lengths[i] = tail_lengths_[query];
      view.inverse_tail_lengths[i] = inverse(tail_lengths_[query]);
      view.norms[i] = all_.query_norms ? all_.query_norms[query] : 0.0f;
      view.errors[i] = all_.query_norms ? all_.query_errors[query] : 0.0f;
    }
  }

  // Turns a view to another centroid.
  void look(int64_t cluster, View& view) const {
    const size_t count = view.queries.size();
    if (cluster < view.first_cluster || cluster >= view.first_cluster + TILE_QUERIES) multiply(cluster, view);
    const int32_t* dots = view.dots.data() + (cluster - view.first_cluster) * view.stride();
    const int32_t* tail_dots = view.tail_dots.data() + (cluster - view.first_cluster) * view.stride();
    const float factor = factors_[cluster], tail_factor = tail_factors_[cluster];
    split(isa_, dots, factor, count, view.scales, view.lengths, view.inverse_lengths, view.along, view.across);
    split(isa_, tail_dots, tail_factor, count, view.scales, view.tail_lengths, view.inverse_tail_lengths,
          view.tail_along, view.tails);
    for (size_t i = 0; i < count; ++i) view.tails[i] = std::min(MOST_TAIL, view.tails[i] * view.inverse_scales[i]);
  }

  // Lists those i of the view whose bound for the tile of `row` reaches thresholds[i], and leaves in view.limits what
  // dot_limit makes of the thresholds in this tile, in view.head_limits for the dots of the head plus view.tails *
  // tails(). `picked` has room for 16 more. Returns how many.
  int64_t select(int64_t cluster, int64_t row, const float* thresholds, View& view, uint32_t* picked) const {
    const Tile tile = tiles_[first_tiles_[cluster] + (row - begin(cluster)) / TILE_ROWS];
    const size_t count = view.queries.size();
#if STCLI_X86
    if (isa_ == AVX512) {
      bound_avx512(tile, thresholds, view, count);
      return pick_avx512(view.bounds.data(), thresholds, count, picked);
    }
    if (isa_ == AVX2)
      bound_avx2(tile, thresholds, view, count);
    else
#endif
      bound_body(tile, thresholds, view, count);
    int64_t kept = 0;
    for (size_t i = 0; i < count; ++i) {
      picked[kept] = static_cast<uint32_t>(i);
      kept += !(view.bounds[i] < thresholds[i]);
    }
    return kept;
  }

 private:
  // (2e-3)^2, much more than float32 loses in the few operations here and in the scores.
  static constexpr float MARGIN = 4e-6f;
  // Of a query in units of its scale; a larger one bounds nothing, and its product could overflow.
  static constexpr float MOST_TAIL = 1e30f;

  struct Tile {
    float along_low, along_high, tail_low, tail_high, across, error, norm;
  };

  struct Squares {
    int32_t whole, tail;
  };

  struct Offsets {
    int32_t head, tail;
  };

  static STCLI_INLINE void bound_body(const Tile& tile, const float* thresholds, View& view, size_t count) {
    const float *along = view.along.data(), *across = view.across.data();
    const float *norms = view.norms.data(), *errors = view.errors.data(), *inverse_scales = view.inverse_scales.data();
    const float *lengths = view.lengths.data(), *tail_along = view.tail_along.data();
    const float* tails = view.tails.data();
    float *bounds = view.bounds.data(), *limits = view.limits.data(), *head_limits = view.head_limits.data();
#pragma GCC ivdep
    for (size_t i = 0; i < count; ++i) {
      const float low = along[i] * tile.along_low, high = along[i] * tile.along_high;
      const float slack = norms[i] * tile.error + errors[i] * tile.norm;
      const float threshold = thresholds[i] - slack, magnitude = std::fabs(thresholds[i]) + slack;
      bounds[i] = (low > high ? low : high) + across[i] * tile.across + slack;
      limits[i] = dot_limit(threshold, magnitude, inverse_scales[i]);
      const float tail_low = tail_along[i] * tile.tail_low, tail_high = tail_along[i] * tile.tail_high;
      const float head_limit = dot_limit(threshold - (tail_low > tail_high ? tail_low : tail_high),
                                         magnitude + 4 * lengths[i] * tile.norm, inverse_scales[i]);
      head_limits[i] = tails[i] < MOST_TAIL ? head_limit : -INFINITY;
    }
  }

#if STCLI_X86
  STCLI_AVX2 static void bound_avx2(const Tile& tile, const float* thresholds, View& view, size_t count) {
    bound_body(tile, thresholds, view, count);
  }

  STCLI_AVX512 static void bound_avx512(const Tile& tile, const float* thresholds, View& view, size_t count) {
    bound_body(tile, thresholds, view, count);
  }

  STCLI_AVX512 static int64_t pick_avx512(const float* bounds, const float* thresholds, size_t count,
                                          uint32_t* picked) {
    const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    int64_t kept = 0;
    for (size_t i = 0; i < count; i += 16) {
      const __mmask16 inside = count - i < 16 ? (1 << (count - i)) - 1 : 0xffff;
      const __mmask16 mask = _mm512_mask_cmp_ps_mask(inside, _mm512_maskz_loadu_ps(inside, bounds + i),
                                                     _mm512_maskz_loadu_ps(inside, thresholds + i), _CMP_NLT_UQ);
      const __m512i places = _mm512_add_epi32(lanes, _mm512_set1_epi32(static_cast<int>(i)));
      _mm512_storeu_si512(picked + kept, _mm512_maskz_compress_epi32(mask, places));
      kept += __builtin_popcount(mask);
    }
    return kept;
  }
#endif

  static float inverse(float number) { return number > 0 ? 1 / number : 0.0f; }

  // The square of what is left of a unit vector without a part of it.
  static STCLI_INLINE float rest(float part) {
    const float left = 1 - part * part;
    return (left > 0 ? left : 0.0f) + MARGIN;
  }

  using Column = std::vector<float>;

  // From dots with a direction: parts along it, and lengths of what is left.
  static STCLI_INLINE void split_body(const int32_t* dots, float factor, size_t count, const float* scales,
                                      const float* inverse_lengths, float* along, float* across) {
#pragma GCC ivdep
    for (size_t i = 0; i < count; ++i) {
      along[i] = static_cast<float>(dots[i]) * scales[i] * factor;
      across[i] = rest(along[i] * inverse_lengths[i]);
    }
  }

#if STCLI_X86
  STCLI_AVX2 static void split_avx2(const int32_t* dots, float factor, size_t count, const float* scales,
                                    const float* inverse_lengths, float* along, float* across) {
    split_body(dots, factor, count, scales, inverse_lengths, along, across);
  }
#endif

  static void split(Isa isa, const int32_t* dots, float factor, size_t count, const Column& scales,
                    const Column& lengths, const Column& inverse_lengths, Column& along, Column& across) {
#if STCLI_X86
    if (isa != PORTABLE)
      split_avx2(dots, factor, count, scales.data(), inverse_lengths.data(), along.data(), across.data());
    else
#endif
      split_body(dots, factor, count, scales.data(), inverse_lengths.data(), along.data(), across.data());
    square_roots(across.data(), count);
    for (size_t i = 0; i < count; ++i) across[i] *= lengths[i];
  }

  static void square_roots(float* numbers, size_t count) {
    size_t i = 0;
#if STCLI_X86
    for (; i + 4 <= count; i += 4) _mm_storeu_ps(numbers + i, _mm_sqrt_ps(_mm_loadu_ps(numbers + i)));
#endif
    for (; i < count; ++i) numbers[i] = std::sqrt(numbers[i]);
  }

  int32_t tail_square(const int8_t* codes) const {
    return square(isa_, codes + head_, static_cast<int>(all_.dim) - head_);
  }

  Squares squares(const int8_t* codes) const {
    const int32_t tail = tail_square(codes);
    return {square(isa_, codes, head_) + tail, tail};
  }

  // Packs the queries of a view into tiles.
  void pack(View& view) const {
    const size_t count = view.queries.size();
    const int dim = static_cast<int>(all_.dim);
    if (count > view.room) {
      view.room = view.stride();
      view.rows.resize(TILE_ROWS * dim);
      view.tiles = Buffer(static_cast<int64_t>(view.room) / TILE_ROWS * tile_bytes(dim));
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
  void multiply(int64_t cluster, View& view) const {
    alignas(64) static constexpr float scales[TILE_ROWS] = {};
    alignas(64) int32_t dots[TILE_QUERIES * TILE_ROWS];
    const int dim = static_cast<int>(all_.dim);
    TileQueries heads, rests;
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
  static float inverse_root(int32_t square) { return square ? 1 / root(square) : 0.0f; }

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
    // The dot of a query with the direction: dot of the codes * query scale * factor.
    const Squares own = squares(centroid);
    factors_[cluster] = inverse_root(own.whole);
    tail_factors_[cluster] = inverse_root(own.tail);
    const Offsets offsets = this->offsets(centroid);
    uint32_t rows[TILE_ROWS];
    int32_t dots[TILE_ROWS + 4], tail_dots[TILE_ROWS + 4];
    for (int64_t row = begin(cluster); row < begin(cluster) + size(cluster); row += TILE_ROWS) {
      const int count = static_cast<int>(std::min<int64_t>(TILE_ROWS, begin(cluster) + size(cluster) - row));
      std::iota(rows, rows + count, static_cast<uint32_t>(row));
      split_dots(centroid, offsets, all_.codes, rows, count, dots, tail_dots);
      Tile tile{INFINITY, -INFINITY, INFINITY, -INFINITY, 0, 0, 0};
      for (int i = 0; i < count; ++i) {
        const float scale = all_.scales[rows[i]], norm = all_.norms[rows[i]];
        const float along = static_cast<float>(dots[i]) * scale * factors_[cluster];
        tile.along_low = std::min(tile.along_low, along);
        tile.along_high = std::max(tile.along_high, along);
        tile.across = std::max(tile.across, norm * std::sqrt(rest(along * inverse(norm))));
        tile.error = std::max(tile.error, all_.errors[rows[i]]);
        tile.norm = std::max(tile.norm, norm);
        const float tail_along = static_cast<float>(tail_dots[i]) * scale * tail_factors_[cluster];
        const float tail_norm = root(tail_square(all_.codes + rows[i] * all_.dim)) * scale;
        tile.tail_low = std::min(tile.tail_low, tail_along);
        tile.tail_high = std::max(tile.tail_high, tail_along);
        tails_[rows[i]] = tail_norm * (std::sqrt(rest(tail_along * inverse(tail_norm))) + 1e-3f);
      }
      tile.across += 1e-3f * tile.norm;
      tile.norm *= 1 + 1e-5f;
      tile.error *= 1 + 1e-5f;
      tiles_[first_tiles_[cluster] + (row - begin(cluster)) / TILE_ROWS] = tile;
    }
  }

  const SearchArguments& all_;
  const Isa isa_;
  const int head_;
  std::vector<int64_t> first_tiles_;
  std::vector<float> factors_, tail_factors_;  // of clusters
  std::vector<float> lengths_, tail_lengths_;  // of codes * scale of the queries
  std::vector<float> tails_;                   // of rows
  std::vector<Tile> tiles_;
};

}  // namespace stcli
