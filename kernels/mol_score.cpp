// mol_score: Mixture-of-Logits scores of the candidates of each query, see stcli/ops/mol_score.py.
//   in   queries f32 [B, d, Pq'] (divided by tau, transposed)   query_gates f32 [B, L']
//        components f32, f16 or i8 [N, Px, d]   scales f32 [N, Px] or null   gates f32 or f16 [N, L] or null
//        first f32 [L, H'] or null   first_bias f32 [H']   second f32 [H, L']   second_bias f32 [L']   valid f32 [L']
//        rows i64 [B, M], -1 empty
//   out  scores f32 [B, M]
//   map  one query and 480 slots at a time, spread over the threads; within, tiles of 24 candidates
//   cost 8 x 4 components of 64 float16, 128 hidden units, 20,480 flops: 430 ns a candidate on one core with AVX-512
//        (rows anywhere in 60 MB; 46 % of the 102 GFLOPS of a matrix product there; 330 ns rows one after another),
//        int8 components 450 ns, 20 and 40 ns less than with the memory of a whole tile asked for at once
//   limits  sizes with ' are padded with zeros, Pq' to a multiple of 8, others to 16; L = Px * Pq; logit m * Pq + n
#include <cstdint>
#include <cstring>
#include <limits>
#include <new>

#include "buffer.h"
#include "half.h"
#include "isa.h"
#include "parallel.h"

namespace stcli {
namespace {

constexpr int64_t kTile = 24;
constexpr int64_t kChunk = 480;
constexpr int64_t kPad = 16, kPadQueries = 8;

enum Kind : int64_t { FLOAT32 = 0, FLOAT16 = 1, INT8 = 2 };

struct Arguments {
  const float *queries, *query_gates;
  const void* components;
  int64_t kind;
  const float* scales;
  const void* gates;
  int64_t half_gates;
  const float *first, *first_bias, *second, *second_bias, *valid;
  const int64_t* rows;
  int64_t num_queries, num_slots, query_components, item_components, dim, hidden;
  int64_t padded_queries, num_logits, padded_logits, padded_hidden;
  float* scores;
};

int64_t pad(int64_t size, int64_t step = kPad) { return (size + step - 1) / step * step; }

// What a thread writes between the steps of a tile.
struct Scratch {
  float *items, *dots, *logits, *hidden, *gates, *item_gates;

  static int64_t floats(const Arguments& a) {
    return kTile * (pad(a.item_components * a.dim) + a.item_components * a.padded_queries + 2 * a.padded_logits +
                    a.padded_hidden) +
           a.padded_logits;
  }
  Scratch(const Arguments& a, float* memory) {
    std::memset(memory, 0, floats(a) * 4);
    items = memory;
    dots = items + kTile * pad(a.item_components * a.dim);
    logits = dots + kTile * a.item_components * a.padded_queries;
    hidden = logits + kTile * a.padded_logits;
    gates = hidden + kTile * a.padded_hidden;
    item_gates = gates + kTile * a.padded_logits;
    for (int64_t l = 0; l < a.padded_logits; ++l) item_gates[l] = 1;
  }
};

// The rows of the next tile, -1 for an empty slot. They lie anywhere in memory, which is asked for a part of each at a
// time between the steps of this tile: a core has room for some 24 lines on their way.
struct Next {
  static constexpr int64_t PARTS = 3, LINE = 64;

  void fetch(const Arguments& a, int64_t place, int64_t part) const {
    if (place >= count || rows[place] < 0) return;
    const int64_t width = a.kind == FLOAT32 ? 4 : a.kind == FLOAT16 ? 2 : 1, row = rows[place];
    lines(a.components, row, a.item_components * a.dim * width, part);
    if (a.gates) lines(a.gates, row, a.num_logits * (a.half_gates ? 2 : 4), part);
    if (a.scales) lines(a.scales, row, a.item_components * 4, part);
  }

  const int64_t* rows;
  int64_t count;

 private:
  static void lines(const void* array, int64_t row, int64_t row_bytes, int64_t part) {
    const char* begin = static_cast<const char*>(array) + row * row_bytes;
    for (int64_t byte = part * LINE; byte < row_bytes; byte += PARTS * LINE) __builtin_prefetch(begin + byte);
    if (part == 0) __builtin_prefetch(begin + row_bytes - 1);
  }
};

template <int LANES>
struct Vectors {
  typedef float Float __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
  typedef int32_t Int __attribute__((vector_size(LANES * 4)));
};
typedef Vectors<4>::Float Float4;
typedef Vectors<8>::Float Float8;
typedef Vectors<16>::Float Float16;

#if STCLI_X86

namespace avx512 {
#define STCLI_TARGET __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,popcnt")))
#define WIDE 16
#define NARROW 8
#define SUMS 24
STCLI_TARGET STCLI_INLINE Float16 fused(Float16 a, Float16 b, Float16 c) { return _mm512_fmadd_ps(a, b, c); }
STCLI_TARGET STCLI_INLINE Float8 fused(Float8 a, Float8 b, Float8 c) { return _mm256_fmadd_ps(a, b, c); }
STCLI_TARGET STCLI_INLINE Float16 larger(Float16 a, Float16 b) { return _mm512_max_ps(a, b); }
STCLI_TARGET STCLI_INLINE Float16 smaller(Float16 a, Float16 b) { return _mm512_min_ps(a, b); }
STCLI_TARGET STCLI_INLINE void widen_halves(const uint16_t* from, int64_t count, float* to) {
  int64_t i = 0;
  for (; i + 16 <= count; i += 16)
    _mm512_storeu_ps(to + i, _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i))));
  for (; i < count; ++i) to[i] = half_to_float(from[i]);
}
#include "mol_score_tile.h"
#undef STCLI_TARGET
#undef WIDE
#undef NARROW
#undef SUMS
}  // namespace avx512

namespace avx2 {
#define STCLI_TARGET __attribute__((target("avx2,fma,f16c,popcnt")))
#define WIDE 8
#define NARROW 8
#define SUMS 12
STCLI_TARGET STCLI_INLINE Float8 fused(Float8 a, Float8 b, Float8 c) { return _mm256_fmadd_ps(a, b, c); }
STCLI_TARGET STCLI_INLINE Float8 larger(Float8 a, Float8 b) { return _mm256_max_ps(a, b); }
STCLI_TARGET STCLI_INLINE Float8 smaller(Float8 a, Float8 b) { return _mm256_min_ps(a, b); }
STCLI_TARGET STCLI_INLINE void widen_halves(const uint16_t* from, int64_t count, float* to) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8)
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))));
  for (; i < count; ++i) to[i] = half_to_float(from[i]);
}
#include "mol_score_tile.h"
#undef STCLI_TARGET
#undef WIDE
#undef NARROW
#undef SUMS
}  // namespace avx2

#endif

namespace portable {
#define STCLI_TARGET
#define WIDE 4
#define NARROW 4
#define SUMS 8
STCLI_INLINE Float4 fused(Float4 a, Float4 b, Float4 c) { return a * b + c; }
STCLI_INLINE Float4 larger(Float4 a, Float4 b) { return a > b ? a : b; }
STCLI_INLINE Float4 smaller(Float4 a, Float4 b) { return a < b ? a : b; }
STCLI_INLINE void widen_halves(const uint16_t* from, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = half_to_float(from[i]);
}
#include "mol_score_tile.h"
#undef STCLI_TARGET
#undef WIDE
#undef NARROW
#undef SUMS
}  // namespace portable

using ScoreTile = void (*)(const Arguments&, int64_t, const int64_t*, int64_t, const Next&, const Scratch&, float*);

ScoreTile choose_form() {
#if STCLI_X86
  const Isa isa = current_isa();
  if (isa != PORTABLE && __builtin_cpu_supports("fma")) return isa == AVX512 ? avx512::score_tile : avx2::score_tile;
#endif
  return portable::score_tile;
}

// The filled slots of a span, tile by tile.
void score_slots(ScoreTile form, const Arguments& a, int64_t query, int64_t begin, int64_t end,
                 const Scratch& scratch) {
  const int64_t* rows = a.rows + query * a.num_slots;
  float* scores = a.scores + query * a.num_slots;
  int64_t tile[kTile], slots[kTile], count = 0;
  float found[kTile];
  for (int64_t slot = begin; slot < end; ++slot) {
    scores[slot] = -std::numeric_limits<float>::infinity();
    if (rows[slot] >= 0) {
      slots[count] = slot;
      tile[count++] = rows[slot];
    }
    if (count == kTile || (slot + 1 == end && count > 0)) {
      const Next next{rows + slot + 1, std::min(kTile, end - slot - 1)};
      form(a, query, tile, count, next, scratch, found);
      for (int64_t i = 0; i < count; ++i) scores[slots[i]] = found[i];
      count = 0;
    }
  }
}

}  // namespace
}  // namespace stcli

extern "C" int stcli_mol_score(const float* queries, const float* query_gates, const void* components, int64_t kind,
                               const float* scales, const void* gates, int64_t half_gates, const float* first,
                               const float* first_bias, const float* second, const float* second_bias,
                               const float* valid, const int64_t* rows, int64_t num_queries, int64_t num_slots,
                               int64_t query_components, int64_t item_components, int64_t dim, int64_t hidden,
                               int64_t num_threads, float* scores) {
  using namespace stcli;
  const int64_t logits = query_components * item_components;
  const Arguments a{queries, query_gates, components,  kind,      scales,           gates,
                    half_gates, first,    first_bias,  second,    second_bias,      valid,
                    rows,    num_queries, num_slots,   query_components, item_components, dim,
                    hidden,  pad(query_components, kPadQueries),    logits,    pad(logits),      pad(hidden), scores};
  const int64_t chunks = (num_slots + kChunk - 1) / kChunk;
  const int threads = static_cast<int>(num_threads);
  const int64_t floats = pad(Scratch::floats(a));
  try {
    const Buffer memory(floats * 4 * threads);
    std::vector<Scratch> scratch;
    for (int thread = 0; thread < threads; ++thread) scratch.emplace_back(a, memory.as<float>() + thread * floats);
    const ScoreTile form = choose_form();
    parallel_for(num_queries * chunks, threads, [&](int64_t part, int thread) {
      const int64_t begin = part % chunks * kChunk;
      score_slots(form, a, part / chunks, begin, std::min(begin + kChunk, num_slots), scratch[thread]);
    });
  } catch (const std::bad_alloc&) {
    return 1;
  }
  return 0;
}
