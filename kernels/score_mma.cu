// score_mma, score_mma_narrow, score_mma_bounds, score_mma_narrow_bounds: score tiles of queries x rows on the int8
// tensor cores and keep what beats the thresholds; no other score is written.
//   in   as score_dp4a.cu; the _bounds kernels read norms and errors, the others ignore them. A tile has at most
//        TILE_QUERIES pairs, for the narrow kernels NARROW_QUERIES, and any number of rows, row_step apart
//   out  as score_dp4a.cu
//   map  one block of 256 threads a tile. The query codes stay in shared memory; row codes stream through four stages
//        of 128 rows x 64 bytes, by asynchronous copies. score_mma: 2 x 4 warps of 64 rows x 32 queries each.
//        score_mma_narrow, for the few queries that probe one cluster: 8 x 1 warps of 16 rows x 32 queries.
//        Rows are the 16 side of a fragment, queries the 8 side. Lines in shared memory are padded by 16 bytes, so that
//        the eight addresses of an ldmatrix fall into different banks (an odd number of 16 bytes a line).
//        Epilogue: scores against the thresholds in registers, with the same float32 operations as on the CPU. What
//        passes, hardly any once the thresholds stand, is listed in shared memory; a lane an entry looks up the filter
//        bit and the excluded rows, and appends with one atomic for the entries of a query
//   shared  queries of a tile * (Dp + 48) + 49,152 bytes
//   limits  Dp % 32 == 0; codes aligned to 16 bytes; the shared memory of the device: on sm_80 (166,912 bytes) Dp <=
//        864 for score_mma and 3,616 for score_mma_narrow; a query comes once in a tile; less than 2^31 rows in a tile
//   cost a block reads its rows once, Dp + 4 bytes (12 more with bounds) a row, from the second-level cache where
//        neighbouring blocks have the same rows: at Dp = 128 and 128 queries 16 KiB for 2 M multiply-adds. 16 rows x 8
//        queries take Dp / 32 mma of 4,096 multiply-adds and an epilogue of 16 instructions a warp (convert, two
//        products, compare, for 4 pairs a lane): at Dp = 128 about 4 clocks of an H100's multiprocessor each, by its
//        data sheet, so two blocks a multiprocessor are wanted, that one may multiply while the other compares. A
//        filter saves no arithmetic here: where it admits few rows, score_dp4a reads less
//   The sizes below come from this arithmetic; no GPU has measured them yet.
#include "copy_async.cuh"
#include "mma.cuh"
#include "score.cuh"
#include "shared_memory.cuh"

constexpr u32 TILE_QUERIES = 128, NARROW_QUERIES = 32;
constexpr u32 THREADS = 256;
constexpr u32 TILE_ROWS = 128;
constexpr u32 STAGES = 4;
constexpr u32 STAGE_DIM = 64;               // bytes of each row in a stage
constexpr u32 STAGE_LINE = STAGE_DIM + 16;  // and with padding

// What the epilogue knows of a query of the tile; 32 bytes.
struct __align__(16) TileQuery {
  float scale, norm, error, least;  // least: the smallest score that can pass
  i64 number;
  const u64* line;  // what it may see, or null
};

// A pair whose score is not below the threshold: its dot product, query place << 8 | row place in the tile.
struct __align__(8) Hit {
  i32 dot;
  u32 place;
};
constexpr u32 NO_HIT = ~0u;
constexpr u32 LIST_HITS = 128;  // of a warp, listed at a time

// ROW_WARPS x QUERY_WARPS warps, each of ROW_PIECES * 16 rows x QUERY_PIECES * 8 queries; upper bounds or scores.
template <bool BOUNDS, u32 ROW_WARPS, u32 QUERY_WARPS, u32 ROW_PIECES, u32 QUERY_PIECES>
struct Tile {
  static_assert(ROW_WARPS * ROW_PIECES * 16 == TILE_ROWS && ROW_WARPS * QUERY_WARPS * 32 == THREADS, "whole tiles");
  static_assert(QUERY_PIECES % 2 == 0, "ldmatrix reads two pieces of queries at once");
  static constexpr u32 QUERIES = QUERY_WARPS * QUERY_PIECES * 8;
  static constexpr u32 HALVES = 2 * ROW_PIECES;  // rows of a lane; row l / 4 of each half piece

  const Score& all;
  const u32 lane, row_warp, query_warp;
  const u32 dim, query_line;  // bytes of a code, and of a query in shared memory
  u8 *stages, *query_codes;
  TileQuery* tile_queries;
  Hit* list;
  i32 sums[ROW_PIECES][QUERY_PIECES][4];

  __device__ Tile(const Score& score)
      : all(score),
        lane(threadIdx.x % 32),
        row_warp(threadIdx.x / 32 / QUERY_WARPS),
        query_warp(threadIdx.x / 32 % QUERY_WARPS),
        dim(static_cast<u32>(score.dim)),
        query_line(dim + 16),
        stages(shared_memory),
        query_codes(shared_memory + STAGES * TILE_ROWS * STAGE_LINE),
        tile_queries(reinterpret_cast<TileQuery*>(query_codes + QUERIES * query_line)),
        list(reinterpret_cast<Hit*>(tile_queries + QUERIES) + threadIdx.x / 32 * LIST_HITS) {}

  __device__ void run() {
    const i64* tile = all.tiles + 4 * static_cast<i64>(blockIdx.x);
    const i64 first_pair = tile[0], first_row = all.first_of(tile[2]), end_row = tile[3];
    const u32 num_queries = static_cast<u32>(tile[1] - first_pair);
    if (tile[1] <= first_pair || first_row >= end_row) return;
    if (!__syncthreads_or(load_queries(first_pair, num_queries))) return;  // all have what they want
    copy_queries(first_pair, num_queries);  // not before, as no copy may outlive its thread

    const i8* codes = all.codes + first_row * all.dim;
    const u32 num_rows = all.num_rows(first_row, end_row);
    u32 load_row = 0, load_dim = 0;  // of the next stage to be filled
    u32 row = 0, first_dim = 0;      // of the stage that is multiplied
    for (u32 stage = 0; stage < STAGES - 1; ++stage) load_stage(stage, codes, num_rows, load_row, load_dim);
    clear();
    for (u32 stage = 0; row < num_rows; stage = (stage + 1) % STAGES) {
      copy_wait<STAGES - 2>();
      __syncthreads();  // this stage is there for all, and the last one is free
      load_stage((stage + STAGES - 1) % STAGES, codes, num_rows, load_row, load_dim);
      multiply(stage, first_dim);
      first_dim += STAGE_DIM;
      if (first_dim >= dim) {
        keep_best(all.row_at(first_row, row), min(num_rows - row, TILE_ROWS));
        clear();
        first_dim = 0;
        row += TILE_ROWS;
      }
    }
  }

 private:
  // Writes what the epilogue knows of the queries; tells whether this thread's still wants rows.
  __device__ bool load_queries(i64 first_pair, u32 num_queries) {
    bool wants = false;
    if (threadIdx.x < QUERIES) {
      TileQuery query{0.0f, 0.0f, 0.0f, threshold_score(NO_KEY), -1, nullptr};
      if (threadIdx.x < num_queries) {
        query.number = all.query_of(first_pair + threadIdx.x);
        const i64 threshold = all.thresholds[query.number];
        wants = threshold != NO_KEY;
        query.scale = all.query_scales[query.number];
        query.norm = BOUNDS ? all.query_norms[query.number] : 0.0f;
        query.error = BOUNDS ? all.query_errors[query.number] : 0.0f;
        query.least = threshold_score(threshold);
        query.line = all.line_of(first_pair + threadIdx.x, query.number);
        if (!wants) query.number = -1;
      }
      tile_queries[threadIdx.x] = query;
    }
    return wants;
  }

  // Starts the copies of the query codes.
  __device__ void copy_queries(i64 first_pair, u32 num_queries) {
    const u32 pieces = dim / 16;
    for (u32 i = threadIdx.x; i < QUERIES * pieces; i += THREADS) {
      const u32 place = i / pieces, piece = i % pieces;
      const bool inside = place < num_queries;
      const i64 query = all.query_of(first_pair + (inside ? place : 0));
      copy_async(query_codes + place * query_line + 16 * piece, all.query_codes + query * all.dim + 16 * piece, inside);
    }
  }

  // Starts the copies of the next chunk of rows, or closes an empty group when there is none; goes to the next chunk.
  __device__ __forceinline__ void load_stage(u32 stage, const i8* codes, u32 num_rows, u32& row, u32& first_dim) {
    if (row < num_rows) {
      u8* to = stages + stage * TILE_ROWS * STAGE_LINE;
#pragma unroll
      for (u32 i = threadIdx.x; i < TILE_ROWS * (STAGE_DIM / 16); i += THREADS) {
        const u32 line = i / (STAGE_DIM / 16), part = i % (STAGE_DIM / 16), d = first_dim + 16 * part;
        const bool inside = row + line < num_rows && d < dim;
        const i64 place = inside ? all.row_at(0, row + line) * dim + d : 0;
        copy_async(to + line * STAGE_LINE + 16 * part, codes + place, inside);
      }
      first_dim += STAGE_DIM;
      if (first_dim >= dim) {
        first_dim = 0;
        row += TILE_ROWS;
      }
    }
    copy_commit();
  }

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (u32 r = 0; r < ROW_PIECES; ++r) {
#pragma unroll
      for (u32 q = 0; q < QUERY_PIECES; ++q) sums[r][q][0] = sums[r][q][1] = sums[r][q][2] = sums[r][q][3] = 0;
    }
  }

  // Adds the products of a stage, whose first dimension is `first_dim`.
  __device__ __forceinline__ void multiply(u32 stage, u32 first_dim) {
    const u8* rows =
        stages + (stage * TILE_ROWS + row_warp * ROW_PIECES * 16 + lane % 16) * STAGE_LINE + lane / 16 * 16;
    const u8* columns = query_codes + (query_warp * QUERY_PIECES * 8 + lane % 8 + lane / 16 * 8) * query_line +
                        first_dim + lane / 8 % 2 * 16;
#pragma unroll
    for (u32 d = 0; d < STAGE_DIM; d += 32) {
      if (first_dim + d >= dim) break;
      u32 left[ROW_PIECES][4];
#pragma unroll
      for (u32 r = 0; r < ROW_PIECES; ++r) load_matrix(left[r], rows + r * 16 * STAGE_LINE + d);
#pragma unroll
      for (u32 q = 0; q < QUERY_PIECES; q += 2) {
        u32 right[4];
        load_matrix(right, columns + q * 8 * query_line + d);
        const u32 one[2] = {right[0], right[1]}, two[2] = {right[2], right[3]};
#pragma unroll
        for (u32 r = 0; r < ROW_PIECES; ++r) {
          mma_s8(sums[r][q], left[r], one);
          mma_s8(sums[r][q + 1], left[r], two);
        }
      }
    }
  }

  // Appends the keys of up to 128 rows that are above the thresholds of their queries.
  __device__ __forceinline__ void keep_best(i64 row, u32 num_rows) {
    float row_scales[HALVES];
    u32 inside = 0;  // which halves are rows of the tile
#pragma unroll
    for (u32 half = 0; half < HALVES; ++half) {
      const bool is_row = row_of(half) < num_rows;
      inside |= static_cast<u32>(is_row) << half;
      row_scales[half] = is_row ? all.scales[all.row_at(row, row_of(half))] : 0.0f;
    }
    u64 hits = 0;  // bit HALVES * column + half
#pragma unroll
    for (u32 column = 0; column < 2 * QUERY_PIECES; ++column) {
      const TileQuery& query = tile_queries[query_of(column)];
      u64 mine = 0;
#pragma unroll
      for (u32 half = 0; half < HALVES; ++half) {
        float score = plain_score(sum_of(half, column), query.scale, row_scales[half]);
        if (BOUNDS) {
          const i64 place = all.row_at(row, inside >> half & 1 ? row_of(half) : 0);
          score = upper_bound(score, query.norm, all.errors[place], query.error, all.norms[place]);
        }
        mine |= static_cast<u64>(score >= query.least) << half;
      }
      hits |= (mine & inside) << HALVES * column;
    }
    if (__any_sync(~0u, hits != 0)) append(row, hits);
  }

  // Place in the tile of a lane's row.
  __device__ __forceinline__ u32 row_of(u32 half) const { return row_warp * ROW_PIECES * 16 + half * 8 + lane / 4; }

  __device__ __forceinline__ i32 sum_of(u32 half, u32 column) const {
    return sums[half / 2][column / 2][half % 2 * 2 + column % 2];
  }

  // Place in the tile of the query of a lane's column.
  __device__ __forceinline__ u32 query_of(u32 column) const {
    return query_warp * QUERY_PIECES * 8 + column / 2 * 8 + lane % 4 * 2 + column % 2;
  }

  // Lists the hits of the warp in shared memory, some at a time, and lets each lane check one: so the rare part of the
  // work is short code, and no registers of the common part are held for it.
  __device__ __forceinline__ void append(i64 row, u64 hits) {
    u32 end = static_cast<u32>(__popcll(hits));
    const u32 mine = end;
#pragma unroll
    for (u32 by = 1; by < 32; by *= 2) {
      const u32 other = __shfl_up_sync(~0u, end, by);
      if (lane >= by) end += other;
    }
    const u32 num_hits = __shfl_sync(~0u, end, 31);
    for (u32 first = 0; first < num_hits; first += LIST_HITS) {
      u32 place = end - mine - first;  // of a hit that was listed before: a number below zero, so a large one
#pragma unroll
      for (u32 column = 0; column < 2 * QUERY_PIECES; ++column) {
#pragma unroll
        for (u32 half = 0; half < HALVES; ++half) {
          if (!(hits >> (HALVES * column + half) & 1)) continue;
          if (place < LIST_HITS) list[place] = {sum_of(half, column), query_of(column) << 8 | row_of(half)};
          ++place;
        }
      }
      __syncwarp();
      for (u32 i = lane; i - lane < min(num_hits - first, LIST_HITS); i += 32) {
        check(i < num_hits - first ? list[i] : Hit{0, NO_HIT}, row);
      }
      __syncwarp();
    }
  }

  // Appends the key of one hit a lane, if it is above the threshold and the query may see the row.
  __device__ __forceinline__ void check(Hit hit, i64 row) const {
    i64 key = EMPTY_KEY;
    i32 number = -1;  // the query, where the key is kept
    if (hit.place != NO_HIT) {
      const TileQuery& query = tile_queries[hit.place >> 8];
      const i64 mine = all.row_at(row, hit.place & 255);
      float score = plain_score(hit.dot, query.scale, all.scales[mine]);
      if (BOUNDS) score = upper_bound(score, query.norm, all.errors[mine], query.error, all.norms[mine]);
      key = make_key(score, mine);
      if (query.number >= 0 && key > all.thresholds[query.number] && is_admitted(query.line, mine) &&
          !all.is_excluded(query.number, mine)) {
        number = static_cast<i32>(query.number);
      }
    }
    const u32 same = __match_any_sync(~0u, number);  // one atomic for all keys of a query
    const i32 leader = __ffs(static_cast<i32>(same)) - 1;
    i64 slot = 0;
    if (number >= 0 && static_cast<i32>(lane) == leader) {
      slot = static_cast<i64>(atomicAdd(reinterpret_cast<u64*>(all.counts + number), static_cast<u64>(__popc(same))));
    }
    slot = __shfl_sync(~0u, slot, leader) + __popc(same & ((1u << lane) - 1));
    if (number >= 0 && slot < all.capacity) all.keys[number * all.capacity + slot] = key;
  }
};

static_assert(Tile<false, 2, 4, 4, 4>::QUERIES == TILE_QUERIES, "of score_mma");
static_assert(Tile<false, 8, 1, 1, 4>::QUERIES == NARROW_QUERIES, "of score_mma_narrow");

// Kernels of their own for scores and for bounds: one kernel with both bodies keeps too many registers for two blocks
// on a multiprocessor.
extern "C" __global__ void __launch_bounds__(THREADS, 2) score_mma(SCORE_PARAMETERS) {
  const Score all = SCORE_ARGUMENTS;
  Tile<false, 2, 4, 4, 4>(all).run();
}

extern "C" __global__ void __launch_bounds__(THREADS, 2) score_mma_bounds(SCORE_PARAMETERS) {
  const Score all = SCORE_ARGUMENTS;
  Tile<true, 2, 4, 4, 4>(all).run();
}

extern "C" __global__ void __launch_bounds__(THREADS, 2) score_mma_narrow(SCORE_PARAMETERS) {
  const Score all = SCORE_ARGUMENTS;
  Tile<false, 8, 1, 1, 4>(all).run();
}

extern "C" __global__ void __launch_bounds__(THREADS, 2) score_mma_narrow_bounds(SCORE_PARAMETERS) {
  const Score all = SCORE_ARGUMENTS;
  Tile<true, 8, 1, 1, 4>(all).run();
}
