// Scores blocks of rows for lists of queries and keeps each query's best: the inner part of search_clusters,
// search_rows and choose_probes.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <vector>

#include "int8_dot.h"
#include "isa.h"
#include "parallel.h"
#include "topk.h"

namespace stcli {

// The arguments of a search; stcli/ops/scan.py fills the same fields in the same order. B queries, N rows.
struct SearchArguments {
  int64_t num_queries, num_rows, dim;
  const int8_t* query_codes;    // [B, dim]
  const float* query_scales;    // [B]
  const float* query_norms;     // [B], or null: rank by scores, not by upper bounds
  const float* query_errors;    // [B]
  const int8_t* codes;          // [N, dim]
  const float* scales;          // [N]
  const float* errors;          // [N]
  const float* norms;           // [N]
  const uint64_t* words;        // [F, num_words], or null
  int64_t num_words;
  const int64_t* filter_of_query;   // [B], -1: none
  const int64_t* excluded_rows;     // ragged with excluded_offsets [B + 1], or null
  const int64_t* excluded_offsets;
  int64_t k0;
  int64_t* found_rows;   // [B, k0]
  float* found_scores;   // [B, k0], or null
  int64_t num_threads;
};

// What one thread needs while it scans.
class Scratch {
 public:
  Scratch(int dim, int64_t block_rows) : listed(block_rows + TILE_ROWS), tile_(allocate(tile_bytes(dim))) {}

  uint8_t* tile() { return tile_.get(); }

  // A tile's or a chunk's 64 candidates: their rows, and the factors of their scores.
  alignas(64) int32_t dots[TILE_QUERIES * TILE_ROWS];
  alignas(64) float scales[TILE_ROWS], errors[TILE_ROWS], norms[TILE_ROWS];
  alignas(64) uint32_t rows[TILE_ROWS];
  std::vector<uint32_t> listed, dense;

 private:
  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  static uint8_t* allocate(int64_t bytes) { return static_cast<uint8_t*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64)); }
  std::unique_ptr<uint8_t, Free> tile_;
};

// One query as the score needs it.
struct QueryFactors {
  float scale, norm, error, threshold;
  bool bounds;

  float score(int32_t dot, float row_scale, float row_error, float row_norm) const {
    const float score = (static_cast<float>(dot) * scale) * row_scale;
    return bounds ? score + (norm * row_error + error * row_norm) : score;
  }
};

#if STCLI_X86
STCLI_AVX512 inline uint64_t hits_avx512(const QueryFactors& query, const int32_t* dots, int count, const Scratch& tile) {
  const __m512 scale = _mm512_set1_ps(query.scale), threshold = _mm512_set1_ps(query.threshold);
  uint64_t mask = 0;
  for (int i = 0; i < count; i += 16) {
    __m512 score = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_load_si512(dots + i)), scale);
    score = _mm512_mul_ps(score, _mm512_load_ps(tile.scales + i));
    if (query.bounds)
      score = _mm512_add_ps(score, _mm512_add_ps(_mm512_mul_ps(_mm512_set1_ps(query.norm), _mm512_load_ps(tile.errors + i)),
                                                 _mm512_mul_ps(_mm512_set1_ps(query.error), _mm512_load_ps(tile.norms + i))));
    mask |= static_cast<uint64_t>(_mm512_cmp_ps_mask(score, threshold, _CMP_GE_OQ)) << i;
  }
  return mask;
}

STCLI_AVX2 inline uint64_t hits_avx2(const QueryFactors& query, const int32_t* dots, int count, const Scratch& tile) {
  const __m256 scale = _mm256_set1_ps(query.scale), threshold = _mm256_set1_ps(query.threshold);
  uint64_t mask = 0;
  for (int i = 0; i < count; i += 8) {
    const __m256i part = _mm256_load_si256(reinterpret_cast<const __m256i*>(dots + i));
    __m256 score = _mm256_mul_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(part), scale), _mm256_load_ps(tile.scales + i));
    if (query.bounds)
      score = _mm256_add_ps(score, _mm256_add_ps(_mm256_mul_ps(_mm256_set1_ps(query.norm), _mm256_load_ps(tile.errors + i)),
                                                 _mm256_mul_ps(_mm256_set1_ps(query.error), _mm256_load_ps(tile.norms + i))));
    const int hits = _mm256_movemask_ps(_mm256_cmp_ps(score, threshold, _CMP_GE_OQ));
    mask |= static_cast<uint64_t>(static_cast<uint32_t>(hits)) << i;
  }
  return mask;
}
#endif

// Bit i: candidate i of the tile reaches the query's threshold.
inline uint64_t hits(Isa isa, const QueryFactors& query, const int32_t* dots, int count, const Scratch& tile) {
  uint64_t mask = 0;
#if STCLI_X86
  if (isa == AVX512) {
    mask = hits_avx512(query, dots, count, tile);
  } else if (isa == AVX2) {
    mask = hits_avx2(query, dots, count, tile);
  } else
#endif
    for (int i = 0; i < count; ++i)
      mask |= static_cast<uint64_t>(query.score(dots[i], tile.scales[i], tile.errors[i], tile.norms[i]) >=
                                    query.threshold)
              << i;
  return count < 64 ? mask & ((uint64_t{1} << count) - 1) : mask;
}

class Scan {
 public:
  // Scans for the queries first … first + count - 1, which are numbered from 0 here.
  Scan(const SearchArguments& arguments, int64_t first, int64_t count)
      : all_(arguments),
        first_(first),
        count_(count),
        dim_(static_cast<int>(arguments.dim)),
        isa_(current_isa()),
        best_(count, arguments.k0),
        offsets_(count) {
    for (int64_t query = 0; query < count; ++query) offsets_[query] = dot_offset(isa_, codes(query), dim_);
  }

  // Offers the rows begin … end - 1 (no more than the scratch was made for) to the queries.
  void block(int64_t begin, int64_t end, const uint32_t* queries, int64_t count, Scratch& scratch) {
    scratch.dense.clear();
    for (int64_t i = 0; i < count; ++i) {
      if (i + PREFETCH < count) prefetch_words(queries[i + PREFETCH], begin);
      const uint64_t* words = filter(queries[i]);
      if (words) {
        const int64_t listed = list_admitted(words, begin, end, (end - begin) * LISTED_SHARE, scratch.listed.data());
        if (listed >= 0) {
          scan_listed(queries[i], listed, scratch);
          continue;
        }
      }
      scratch.dense.push_back(queries[i]);
    }
    if (static_cast<int>(scratch.dense.size()) < MIN_DENSE) {
      for (uint32_t query : scratch.dense) {
        std::iota(scratch.listed.begin(), scratch.listed.begin() + (end - begin), static_cast<uint32_t>(begin));
        scan_listed(query, end - begin, scratch, filter(query));
      }
      return;
    }
    for (int64_t row = begin; row < end; row += TILE_ROWS)
      scan_tile(row, static_cast<int>(std::min<int64_t>(TILE_ROWS, end - row)), scratch);
  }

  void finish() {
    constexpr int64_t CHUNK = 64;
    parallel_for((count_ + CHUNK - 1) / CHUNK, static_cast<int>(all_.num_threads), [&](int64_t chunk, int) {
      std::vector<uint64_t> keys;
      for (int64_t query = chunk * CHUNK; query < std::min(count_, (chunk + 1) * CHUNK); ++query) {
        const int64_t place = (first_ + query) * all_.k0;
        best_.finish(query, keys, all_.found_rows + place, all_.found_scores ? all_.found_scores + place : nullptr);
      }
    });
  }

 private:
  static constexpr int PREFETCH = 4;
  static constexpr int MIN_DENSE = 4;
  static constexpr double LISTED_SHARE = 0.4;

  const int8_t* codes(int64_t query) const { return all_.query_codes + (first_ + query) * all_.dim; }

  // The words of the query's filter, or null for none.
  const uint64_t* filter(int64_t query) const {
    if (!all_.words) return nullptr;
    const int64_t number = all_.filter_of_query[first_ + query];
    return number < 0 ? nullptr : all_.words + number * all_.num_words;
  }

  void prefetch_words(int64_t query, int64_t begin) const {
    if (const uint64_t* words = filter(query)) __builtin_prefetch(words + begin / 64);
  }

  QueryFactors factors(int64_t query) const {
    const bool bounds = all_.query_norms != nullptr;
    return {all_.query_scales[first_ + query], bounds ? all_.query_norms[first_ + query] : 0.0f,
            bounds ? all_.query_errors[first_ + query] : 0.0f, best_.threshold(query), bounds};
  }

  // Lists the admitted rows of begin … end - 1; -1 if they are more than `limit`.
  static int64_t list_admitted(const uint64_t* words, int64_t begin, int64_t end, double limit, uint32_t* rows) {
    int64_t count = 0;
    for (int64_t word = begin / 64; word * 64 < end; ++word) {
      uint64_t bits = words[word];
      if (word * 64 < begin) bits &= ~uint64_t{0} << (begin % 64);
      if (word * 64 + 64 > end) bits &= ~uint64_t{0} >> (64 - end % 64);
      for (; bits; bits &= bits - 1) rows[count++] = static_cast<uint32_t>(word * 64 + __builtin_ctzll(bits));
      if (count > limit) return -1;
    }
    return count;
  }

  uint64_t admitted(const uint64_t* words, int64_t row) const {
    const int64_t word = row / 64, shift = row % 64;
    const uint64_t bits = words[word] >> shift;
    return shift && word + 1 < all_.num_words ? bits | words[word + 1] << (64 - shift) : bits;
  }

  void fill_factors(Scratch& scratch, int count) const {
    for (int i = 0; i < count; ++i) scratch.scales[i] = all_.scales[scratch.rows[i]];
    if (all_.query_norms)
      for (int i = 0; i < count; ++i) {
        scratch.errors[i] = all_.errors[scratch.rows[i]];
        scratch.norms[i] = all_.norms[scratch.rows[i]];
      }
  }

  void scan_listed(uint32_t query, int64_t count, Scratch& scratch, const uint64_t* words = nullptr) {
    for (int64_t start = 0; start < count; start += TILE_ROWS) {
      const int part = static_cast<int>(std::min<int64_t>(TILE_ROWS, count - start));
      std::copy_n(scratch.listed.data() + start, part, scratch.rows);
      fill_factors(scratch, part);
      row_dots(isa_, codes(query), offsets_[query], all_.codes, scratch.rows, part, dim_, scratch.dots);
      offer(query, scratch.dots, part, words, scratch);
    }
  }

  void scan_tile(int64_t row, int count, Scratch& scratch) {
    pack_tile(isa_, all_.codes + row * all_.dim, count, dim_, scratch.tile());
    for (int i = 0; i < count; ++i) scratch.rows[i] = static_cast<uint32_t>(row + i);
    fill_factors(scratch, count);
    const int64_t size = static_cast<int64_t>(scratch.dense.size());
    for (int64_t i = 0; i < size; i += TILE_QUERIES) {
      const int8_t* queries[TILE_QUERIES];
      int32_t offsets[TILE_QUERIES];
      for (int j = 0; j < TILE_QUERIES; ++j) {
        const uint32_t query = scratch.dense[std::min(i + j, size - 1)];
        queries[j] = codes(query);
        offsets[j] = offsets_[query];
      }
      tile_dots(isa_, scratch.tile(), count, dim_, queries, offsets, scratch.dots);
      for (int j = 0; j < TILE_QUERIES && i + j < size; ++j) {
        const uint32_t query = scratch.dense[i + j];
        offer(query, scratch.dots + j * TILE_ROWS, count, filter(query), scratch);
      }
    }
  }

  // Adds those of the scratch's candidates that reach the threshold, are admitted by `words` and are not excluded.
  void offer(uint32_t query, const int32_t* dots, int count, const uint64_t* words, const Scratch& scratch) {
    const QueryFactors factors = this->factors(query);
    uint64_t mask = hits(isa_, factors, dots, count, scratch);
    if (!mask) return;
    if (words) mask &= admitted(words, scratch.rows[0]);
    if (all_.excluded_rows) mask = without_excluded(query, mask, scratch.rows);
    if (!mask) return;
    best_.add(query, mask, scratch.rows, [&](int i) {
      return factors.score(dots[i], scratch.scales[i], scratch.errors[i], scratch.norms[i]);
    });
  }

  uint64_t without_excluded(uint32_t query, uint64_t mask, const uint32_t* rows) const {
    const int64_t* begin = all_.excluded_rows + all_.excluded_offsets[first_ + query];
    const int64_t* end = all_.excluded_rows + all_.excluded_offsets[first_ + query + 1];
    if (begin == end) return mask;
    for (uint64_t left = mask; left; left &= left - 1) {
      const int i = __builtin_ctzll(left);
      if (std::binary_search(begin, end, static_cast<int64_t>(rows[i]))) mask &= ~(uint64_t{1} << i);
    }
    return mask;
  }

  const SearchArguments& all_;
  const int64_t first_, count_;
  const int dim_;
  const Isa isa_;
  BestLists best_;
  std::vector<int32_t> offsets_;
};

// Queries scanned at once, so that their lists stay below 256 MB.
inline int64_t queries_at_once(const SearchArguments& arguments) {
  return std::max<int64_t>(1, (int64_t{256} << 20) / BestLists::bytes(arguments.k0));
}

inline std::vector<std::unique_ptr<Scratch>> make_scratches(const SearchArguments& arguments, int64_t block_rows) {
  std::vector<std::unique_ptr<Scratch>> scratches;
  for (int64_t thread = 0; thread < std::max<int64_t>(1, arguments.num_threads); ++thread)
    scratches.push_back(std::make_unique<Scratch>(static_cast<int>(arguments.dim), block_rows));
  return scratches;
}

// Every row against every query: tasks are parts of the queries times, if those are few, parts of the rows.
inline void scan_all_rows(const SearchArguments& arguments) {
  constexpr int64_t BLOCK = 4096, PART = 512;
  auto scratches = make_scratches(arguments, BLOCK);
  const int64_t at_once = queries_at_once(arguments);
  for (int64_t first = 0; first < arguments.num_queries; first += at_once) {
    const int64_t count = std::min(at_once, arguments.num_queries - first);
    Scan scan(arguments, first, count);
    std::vector<uint32_t> queries(count);
    std::iota(queries.begin(), queries.end(), 0u);
    const int64_t blocks = (arguments.num_rows + BLOCK - 1) / BLOCK;
    const int64_t wanted = 4 * std::max<int64_t>(1, arguments.num_threads);
    const int64_t parts = (count + PART - 1) / PART;
    const int64_t stripes = std::max<int64_t>(1, std::min(blocks, (wanted + parts - 1) / parts));
    parallel_for(parts * stripes, static_cast<int>(arguments.num_threads), [&](int64_t task, int thread) {
      const int64_t begin = task % parts * PART, stripe = task / parts;
      for (int64_t block = blocks * stripe / stripes; block < blocks * (stripe + 1) / stripes; ++block)
        scan.block(block * BLOCK, std::min(arguments.num_rows, (block + 1) * BLOCK), queries.data() + begin,
                   std::min(PART, count - begin), *scratches[thread]);
    });
    scan.finish();
  }
}

}  // namespace stcli
