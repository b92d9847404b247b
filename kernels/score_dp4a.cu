// score_dp4a: scores the admitted rows of tiles, query by query; for small batches and for filters that admit few rows.
//   in   query_codes i8 [B,Dp]  query_scales f32 [B]  codes i8 [N,Dp]  scales f32 [N]
//        query_norms, query_errors f32 [B] and errors, norms f32 [N], or null: upper bounds instead of scores
//        words u64 [F,W] or null  filter_of_query i64 [B], -1 for none
//        span_words u64 [S] or null  span_lines i64 [pairs]  for queries without a line of words: row r of the tile is
//        bit r % 64 of span_words[span_lines[p] + r / 64]; NO_SPAN (keys.cuh) where every row is admitted
//        excluded_rows i64 [E] or null, those of query b at excluded_begins[b] ... excluded_ends[b] - 1, ascending
//        queries i64 [pairs] or null (pair p is query p)
//        tiles i64 [num_tiles,4]  first pair, end pair, first row, end row; at most TILE_QUERIES pairs, any rows, of
//        which those count that row_step divides
//        thresholds i64 [B]  only keys above are kept
//   out  keys i64 [B,capacity]  appended at counts i64 [B]; counts goes on beyond capacity, keys does not
//   map  one block a tile, one warp a query. A warp lists the rows that it wants of the next 1,024 by their filter
//        bits, then each lane takes one row of the list after the other
//   shared  8 * Dp + 16,384 bytes
//   limits  Dp % 32 == 0, codes aligned to 16 bytes; a query comes once in a tile; 1 <= row_step < 2^32; 64-bit row
//        arithmetic
//   cost for each query 1 bit a row of the tile, and Dp + 4 bytes (12 more with bounds) and Dp / 4 operations for each
//        row that its filter admits: nothing is shared between queries but the caches
#include "score.cuh"
#include "shared_memory.cuh"

constexpr u32 TILE_QUERIES = 8;
constexpr u32 LIST_ROWS = 1024;  // 32 rows a lane; 2 bytes each in the list

// Dot product of a row in memory with a query in shared memory.
__device__ __forceinline__ i32 dot_row(const i8* row, const i8* query, i64 dim) {
  const int4 *left = reinterpret_cast<const int4*>(row), *right = reinterpret_cast<const int4*>(query);
  i32 dot = 0;
#pragma unroll 2  // 64 bytes of a row on their way
  for (i64 i = 0; i < dim / 16; i += 2) {
    const int4 a = left[i], b = right[i], c = left[i + 1], d = right[i + 1];
    dot = __dp4a(a.x, b.x, dot);
    dot = __dp4a(a.y, b.y, dot);
    dot = __dp4a(a.z, b.z, dot);
    dot = __dp4a(a.w, b.w, dot);
    dot = __dp4a(c.x, d.x, dot);
    dot = __dp4a(c.y, d.y, dot);
    dot = __dp4a(c.z, d.z, dot);
    dot = __dp4a(c.w, d.w, dot);
  }
  return dot;
}

extern "C" __global__ void __launch_bounds__(256, 3) score_dp4a(SCORE_PARAMETERS) {
  const Score all = SCORE_ARGUMENTS;
  const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const i64* tile = all.tiles + 4 * static_cast<i64>(blockIdx.x);
  const i64 pair = tile[0] + warp, first_row = all.first_of(tile[2]), end_row = tile[3];
  if (pair >= tile[1] || first_row >= end_row) return;  // no barrier of the block follows
  const i64 query = all.query_of(pair), threshold = all.thresholds[query];
  if (threshold == NO_KEY) return;

  i8* query_code = reinterpret_cast<i8*>(shared_memory) + warp * all.dim;
  u16* list = reinterpret_cast<u16*>(shared_memory + TILE_QUERIES * all.dim) + warp * LIST_ROWS;
  const int4* from = reinterpret_cast<const int4*>(all.query_codes + query * all.dim);
  for (i64 i = lane; i < all.dim / 16; i += 32) reinterpret_cast<int4*>(query_code)[i] = from[i];

  const float query_scale = all.query_scales[query];
  const float query_norm = all.query_norms ? all.query_norms[query] : 0.0f;
  const float query_error = all.query_norms ? all.query_errors[query] : 0.0f;
  // Little-endian: half words in the order of the rows.
  const u32* admitted = reinterpret_cast<const u32*>(all.line_of(pair, query));
  i64* found = all.keys + query * all.capacity;

  const bool every_row = all.row_step == 1;
  for (i64 base = every_row ? first_row / 32 * 32 : first_row; base < end_row; base = all.row_at(base, LIST_ROWS)) {
    const i64 start = all.row_at(base, 32 * lane);  // of the rows of this lane
    u32 bits = 0;
    if (every_row) {
      bits = start >= end_row ? 0 : !admitted ? ~0u : admitted[start / 32];
      if (start < first_row) bits = start + 32 <= first_row ? 0 : bits & ~0u << (first_row - start);
      if (start < end_row && end_row < start + 32) bits &= (1u << (end_row - start)) - 1;
    } else {
      for (u32 i = 0; i < 32 && all.row_at(start, i) < end_row; ++i) {
        const i64 row = all.row_at(start, i);
        bits |= (admitted ? admitted[row / 32] >> row % 32 & 1 : 1) << i;
      }
    }
    const u32 mine = static_cast<u32>(__popc(bits));
    u32 place = mine;  // the end of this lane's part of the list
    for (u32 by = 1; by < 32; by *= 2) {
      const u32 other = __shfl_up_sync(~0u, place, by);
      if (lane >= by) place += other;
    }
    const u32 num_listed = __shfl_sync(~0u, place, 31);
    __syncwarp();  // the last list has been read; the query's code is there
    for (place -= mine; bits; bits &= bits - 1) {
      list[place++] = static_cast<u16>(32 * lane + static_cast<u32>(__ffs(static_cast<i32>(bits))) - 1);
    }
    __syncwarp();
    for (u32 first = 0; first < num_listed; first += 32) {
      i64 key = EMPTY_KEY;
      bool keep = false;
      if (first + lane < num_listed) {
        const i64 row = all.row_at(base, list[first + lane]);
        float score =
            plain_score(dot_row(all.codes + row * all.dim, query_code, all.dim), query_scale, all.scales[row]);
        if (all.query_norms) score = upper_bound(score, query_norm, all.errors[row], query_error, all.norms[row]);
        key = make_key(score, row);
        keep = key > threshold && !all.is_excluded(query, row);
      }
      const u32 kept = __ballot_sync(~0u, keep);
      if (!kept) continue;
      i64 slot = 0;
      if (lane == 0) {
        slot = static_cast<i64>(atomicAdd(reinterpret_cast<u64*>(all.counts + query), static_cast<u64>(__popc(kept))));
      }
      slot = __shfl_sync(~0u, slot, 0) + __popc(kept & ((1u << lane) - 1));
      if (keep && slot < all.capacity) found[slot] = key;
    }
  }
}
