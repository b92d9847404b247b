// Scores blocks of rows for lists of queries and keeps each query's best: the inner part of search_clusters,
// search_rows and choose_probes.
#pragma once
#include <cstdint>
#include <memory>
#include <numeric>
#include <vector>

#include "buffer.h"
#include "int8_dot.h"
#include "isa.h"
#include "parallel.h"
#include "topk.h"

namespace stcli {

// The arguments of a search; stcli/ops/scan_native.py has the same fields in the same order. B queries, N rows.
struct SearchArguments {
  int64_t num_queries, num_rows, dim;
  const int8_t* query_codes;       // [B, dim]
  const float* query_scales;       // [B]
  const float* query_norms;        // [B], or null: rank by scores, not by upper bounds
  const float* query_errors;       // [B]
  const int8_t* codes;             // [N, dim]
  const float* scales;             // [N]
  const float* errors;             // [N]
  const float* norms;              // [N]
  const uint64_t* words;           // [F, num_words], or null
  int64_t num_words;
  const int64_t* filter_of_query;  // [B], -1: none
  const int64_t* excluded_rows;    // line b of excluded_offsets [B + 1] is ascending; or null
  const int64_t* excluded_offsets;
  int64_t k0;
  int64_t* found_rows;             // [B, k0]
  float* found_scores;             // [B, k0], or null
  int64_t num_threads;
};

// A query as the inner loops need it.
struct ActiveQuery {
  const int8_t* codes;
  const uint64_t* words;  // of its filter, or null
  uint32_t number;
  int32_t offset;  // of its dots
  float scale, norm, error;
};

// Up to 64 candidates, and what is known of their rows.
struct Candidates64 {
  alignas(64) int32_t dots[TILE_QUERIES * TILE_ROWS];
  alignas(64) float scales[TILE_ROWS];
  alignas(64) float errors[TILE_ROWS];
  alignas(64) float norms[TILE_ROWS];
  alignas(64) uint32_t rows[TILE_ROWS];
  alignas(64) float scores[TILE_ROWS];
};

// What one thread needs while it scans blocks of rows.
struct Scratch {
  Scratch(int64_t dim, int64_t block_rows) : listed(block_rows + TILE_ROWS), tile(tile_bytes(static_cast<int>(dim))) {}

  Candidates64 candidates;
  std::vector<uint32_t> listed;
  std::vector<ActiveQuery> dense;
  Buffer tile;
};

template <bool BOUNDS>
STCLI_INLINE void score_body(const ActiveQuery& query, const int32_t* dots, int count, Candidates64& all) {
  for (int i = 0; i < count; ++i) {
    const float score = (static_cast<float>(dots[i]) * query.scale) * all.scales[i];
    all.scores[i] = BOUNDS ? score + (query.norm * all.errors[i] + query.error * all.norms[i]) : score;
  }
}

#if STCLI_X86
template <bool BOUNDS>
STCLI_AVX512 uint64_t reaching_avx512(const ActiveQuery& query, const int32_t* dots, float threshold, int count, Candidates64& all) {
  const __m512 scale = _mm512_set1_ps(query.scale), limit = _mm512_set1_ps(threshold);
  const __m512 norm = _mm512_set1_ps(query.norm), error = _mm512_set1_ps(query.error);
  uint64_t mask = 0;
  for (int i = 0; i < count; i += 16) {
    __m512 score = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_load_si512(dots + i)), scale);
    score = _mm512_mul_ps(score, _mm512_load_ps(all.scales + i));
    if (BOUNDS)
      score = _mm512_add_ps(score, _mm512_add_ps(_mm512_mul_ps(norm, _mm512_load_ps(all.errors + i)),
                                                 _mm512_mul_ps(error, _mm512_load_ps(all.norms + i))));
    _mm512_store_ps(all.scores + i, score);
    mask |= static_cast<uint64_t>(_mm512_cmp_ps_mask(score, limit, _CMP_GE_OQ)) << i;
  }
  return mask;
}

template <bool BOUNDS>
STCLI_AVX2 uint64_t reaching_avx2(const ActiveQuery& query, const int32_t* dots, float threshold, int count, Candidates64& all) {
  score_body<BOUNDS>(query, dots, count, all);
  uint64_t mask = 0;
  for (int i = 0; i < count; i += 8) {
    const __m256 hit = _mm256_cmp_ps(_mm256_load_ps(all.scores + i), _mm256_set1_ps(threshold), _CMP_GE_OQ);
    mask |= static_cast<uint64_t>(static_cast<uint32_t>(_mm256_movemask_ps(hit))) << i;
  }
  return mask;
}
#endif

// Scores the candidates; bit i of the result: candidate i reaches the threshold. Bits past `count` are unspecified.
template <bool BOUNDS>
inline uint64_t reaching(Isa isa, const ActiveQuery& query, const int32_t* dots, float threshold, int count, Candidates64& all) {
#if STCLI_X86
  if (isa == AVX512) return reaching_avx512<BOUNDS>(query, dots, threshold, count, all);
  if (isa == AVX2) return reaching_avx2<BOUNDS>(query, dots, threshold, count, all);
#endif
  score_body<BOUNDS>(query, dots, count, all);
  uint64_t mask = 0;
  for (int i = 0; i < count; ++i) mask |= static_cast<uint64_t>(all.scores[i] >= threshold) << i;
  return mask;
}

class Scan {
 public:
  // Scans for the queries first … first + count - 1, which are numbered from 0 here. `shared`: by several threads.
  Scan(const SearchArguments& arguments, int64_t first, int64_t count, bool shared)
      : all_(arguments),
        first_(first),
        count_(count),
        dim_(static_cast<int>(arguments.dim)),
        isa_(current_isa()),
        best_(isa_, count, arguments.k0, shared),
        active_(count) {
    for (int64_t i = 0; i < count; ++i) {
      const int64_t query = first + i;
      const int8_t* codes = all_.query_codes + query * dim_;
      const int64_t filter = all_.words ? all_.filter_of_query[query] : -1;
      active_[i] = {codes,
                    filter < 0 ? nullptr : all_.words + filter * all_.num_words,
                    static_cast<uint32_t>(i),
                    dot_offset(isa_, codes, dim_),
                    all_.query_scales[query],
                    all_.query_norms ? all_.query_norms[query] : 0.0f,
                    all_.query_norms ? all_.query_errors[query] : 0.0f};
    }
  }

  // Offers the rows begin … end - 1, no more than the scratch was made for, to the queries.
  void block(int64_t begin, int64_t end, const uint32_t* queries, int64_t count, Scratch& scratch) {
    scratch.dense.clear();
    for (int64_t i = 0; i < count; ++i) {
      if (i + PREFETCH < count)
        if (const uint64_t* words = active_[queries[i + PREFETCH]].words) __builtin_prefetch(words + begin / 64);
      const ActiveQuery& query = active_[queries[i]];
      if (query.words) {
        const int64_t listed = list_admitted(query.words, begin, end, scratch.listed.data());
        if (listed >= 0) {
          scan_listed(query, listed, scratch);
          continue;
        }
      }
      scratch.dense.push_back(query);
    }
    if (static_cast<int>(scratch.dense.size()) < MIN_DENSE) {
      std::iota(scratch.listed.begin(), scratch.listed.begin() + (end - begin), static_cast<uint32_t>(begin));
      for (const ActiveQuery& query : scratch.dense) scan_listed(query, end - begin, scratch, query.words);
      return;
    }
    for (int64_t row = begin; row < end; row += TILE_ROWS)
      scan_tile(row, static_cast<int>(std::min<int64_t>(TILE_ROWS, end - row)), scratch);
  }

  void finish(int64_t begin, int64_t end) {
    std::vector<uint64_t> keys, spare;
    for (int64_t query = begin; query < end; ++query) {
      const int64_t place = (first_ + query) * all_.k0;
      best_.finish(query, keys, spare, all_.found_rows + place, all_.found_scores ? all_.found_scores + place : nullptr);
    }
  }

 private:
  static constexpr int PREFETCH = 4;
  static constexpr int MIN_DENSE = 4;

  // Lists the admitted rows of begin … end - 1; -1 if they are so many that scoring all rows is cheaper.
  static int64_t list_admitted(const uint64_t* words, int64_t begin, int64_t end, uint32_t* rows) {
    const int64_t limit = (end - begin) * 2 / 5;
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

  // The 64 bits from `row` on.
  uint64_t admitted(const uint64_t* words, int64_t row) const {
    const int64_t word = row / 64, shift = row % 64;
    const uint64_t bits = words[word] >> shift;
    return shift && word + 1 < all_.num_words ? bits | words[word + 1] << (64 - shift) : bits;
  }

  void fill_factors(Candidates64& candidates, int count) const {
    for (int i = 0; i < count; ++i) candidates.scales[i] = all_.scales[candidates.rows[i]];
    if (!all_.query_norms) return;
    for (int i = 0; i < count; ++i) {
      candidates.errors[i] = all_.errors[candidates.rows[i]];
      candidates.norms[i] = all_.norms[candidates.rows[i]];
    }
  }

  void scan_listed(const ActiveQuery& query, int64_t count, Scratch& scratch, const uint64_t* words = nullptr) {
    Candidates64& candidates = scratch.candidates;
    for (int64_t start = 0; start < count; start += TILE_ROWS) {
      const int part = static_cast<int>(std::min<int64_t>(TILE_ROWS, count - start));
      std::copy_n(scratch.listed.data() + start, part, candidates.rows);
      fill_factors(candidates, part);
      row_dots(isa_, query.codes, query.offset, all_.codes, candidates.rows, part, dim_, candidates.dots);
      offer(query, candidates.dots, part, words, candidates);
    }
  }

  void scan_tile(int64_t row, int count, Scratch& scratch) {
    Candidates64& candidates = scratch.candidates;
    uint8_t* tile = scratch.tile.as<uint8_t>();
    pack_tile(isa_, all_.codes + row * dim_, count, dim_, tile);
    std::iota(candidates.rows, candidates.rows + count, static_cast<uint32_t>(row));
    fill_factors(candidates, count);
    const int64_t size = static_cast<int64_t>(scratch.dense.size());
    for (int64_t i = 0; i < size; i += TILE_QUERIES) {
      const int8_t* queries[TILE_QUERIES];
      int32_t offsets[TILE_QUERIES];
      for (int j = 0; j < TILE_QUERIES; ++j) {
        const ActiveQuery& query = scratch.dense[std::min(i + j, size - 1)];
        queries[j] = query.codes;
        offsets[j] = query.offset;
      }
      tile_dots(isa_, tile, count, dim_, queries, offsets, candidates.dots);
      for (int j = 0; j < TILE_QUERIES && i + j < size; ++j) {
        const ActiveQuery& query = scratch.dense[i + j];
        offer(query, candidates.dots + j * TILE_ROWS, count, query.words, candidates);
      }
    }
  }

  // Adds the candidates that reach the threshold, are admitted by `words` (from the first row on) and not excluded.
  void offer(const ActiveQuery& query, const int32_t* dots, int count, const uint64_t* words, Candidates64& candidates) {
    const float threshold = best_.threshold(query.number);
    uint64_t mask = all_.query_norms ? reaching<true>(isa_, query, dots, threshold, count, candidates)
                                     : reaching<false>(isa_, query, dots, threshold, count, candidates);
    if (count < TILE_ROWS) mask &= (uint64_t{1} << count) - 1;
    if (!mask) return;
    if (words) mask &= admitted(words, candidates.rows[0]);
    if (all_.excluded_rows) mask = without_excluded(query.number, mask, candidates.rows);
    if (mask) best_.add(query.number, mask, candidates.scores, candidates.rows);
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
  std::vector<ActiveQuery> active_;
};

inline std::vector<std::unique_ptr<Scratch>> make_scratches(const SearchArguments& arguments, int64_t block_rows) {
  std::vector<std::unique_ptr<Scratch>> scratches;
  for (int64_t thread = 0; thread < std::max<int64_t>(1, arguments.num_threads); ++thread)
    scratches.push_back(std::make_unique<Scratch>(arguments.dim, block_rows));
  return scratches;
}

// Every row against every query: tasks are parts of the queries times, if those are few, parts of the rows.
inline void scan_all_rows(const SearchArguments& arguments) {
  constexpr int64_t BLOCK = 4096;
  static const int64_t PART = getenv("PART") ? atoi(getenv("PART")) : 512;
  const int threads = static_cast<int>(std::max<int64_t>(1, arguments.num_threads));
  auto scratches = make_scratches(arguments, BLOCK);
  std::vector<uint32_t> queries(PART);
  std::iota(queries.begin(), queries.end(), 0u);
  const int64_t blocks = (arguments.num_rows + BLOCK - 1) / BLOCK;
  const int64_t parts = (arguments.num_queries + PART - 1) / PART;
  auto scan_blocks = [&](Scan& scan, int64_t count, int64_t begin, int64_t end, int thread) {
    for (int64_t block = begin; block < end; ++block)
      scan.block(block * BLOCK, std::min(arguments.num_rows, (block + 1) * BLOCK), queries.data(), count, *scratches[thread]);
  };
  if (parts >= 2 * threads) {
    parallel_for(parts, threads, [&](int64_t part, int thread) {
      const int64_t count = std::min(PART, arguments.num_queries - part * PART);
      Scan scan(arguments, part * PART, count, false);
      scan_blocks(scan, count, 0, blocks, thread);
      scan.finish(0, count);
    });
    return;
  }
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t count = std::min(PART, arguments.num_queries - part * PART);
    Scan scan(arguments, part * PART, count, threads > 1);
    parallel_for(blocks, threads, [&](int64_t block, int thread) { scan_blocks(scan, count, block, block + 1, thread); });
    parallel_for((count + 15) / 16, threads, [&](int64_t i, int) { scan.finish(i * 16, std::min(count, i * 16 + 16)); });
  }
}

}  // namespace stcli
