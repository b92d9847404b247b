// count_probes, begin_clusters, cut_tiles, place_probes, one after the other: bring the queries that probe the same cluster
// together, and cut them into tiles for the score kernels.
//   in   probes i64 [B,P], each below C, -1 in unused slots  offsets i64 [C+1]
//        starts i64 [B,P] or null: the first word of a pair's span, negative where it has none
//        counts i32 [C], zero at first
//   out  count_probes    counts[c], how many pairs probe cluster c, and places i32 [B,P], each pair's number among these
//        begin_clusters  begins i32 [C], the first pair of each cluster, and first_tiles i32 [C+1], its first tile
//        cut_tiles       tiles i64 [T,4] of at most `tile_queries` pairs of a cluster: first pair, end pair, first row,
//                        end row. Lines that are not needed are zero
//        place_probes    queries i64 [B*P], the query of each pair, those of a cluster in any order; what is behind the
//                        used ones is left  lines i64 [B*P], where there are starts: the word at which row 0 of the
//                        pair would have its bit, NO_SPAN without a span (kernels/keys.cuh)
//   map  count_probes and place_probes: one thread a pair. begin_clusters: one block of 32 ... 1,024 threads, a power of
//        two, with four clusters a thread at a time. cut_tiles: one thread a cluster, and a line that is not needed
//   limits  B*P < 2^31; T >= B*P / tile_queries + min(C, B*P), the most tiles that there can be. All rows of a cluster are
//        in one tile, so that one block reads them for each `tile_queries` of the queries
//   cost 8 bytes read and 4 written a pair, then 12 (28) read and 8 (16) written, and a word of counts each time, from the
//        second-level cache; 16 bytes a cluster, then 28, and 32 a tile
#include "keys.cuh"
#include "sum_before.cuh"
#include "types.cuh"

constexpr u32 CLUSTERS_A_THREAD = 4;

extern "C" __global__ void __launch_bounds__(256)
    count_probes(const i64* probes, i64 num_pairs, i32* counts, i32* places) {
  const i64 pair = static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (pair < num_pairs && probes[pair] >= 0) places[pair] = atomicAdd(counts + probes[pair], 1);
}

extern "C" __global__ void __launch_bounds__(1024)
    begin_clusters(const i32* counts, i64 num_clusters, i64 tile_queries, i32* begins, i32* first_tiles) {
  const u32 most = static_cast<u32>(tile_queries);
  u64 before = 0;  // pairs of the clusters that have been seen, and in the lower half their tiles
  for (i64 chunk = 0; chunk < num_clusters; chunk += CLUSTERS_A_THREAD * blockDim.x) {
    const i64 first = chunk + CLUSTERS_A_THREAD * threadIdx.x;
    u64 own[CLUSTERS_A_THREAD], sum = 0, all;
#pragma unroll
    for (u32 i = 0; i < CLUSTERS_A_THREAD; ++i) {
      const u32 count = first + i < num_clusters ? counts[first + i] : 0;
      own[i] = static_cast<u64>(count) << 32 | (count + most - 1) / most;
      sum += own[i];
    }
    u64 begin = before + sum_before(sum, all);
#pragma unroll
    for (u32 i = 0; i < CLUSTERS_A_THREAD; ++i) {
      if (first + i >= num_clusters) break;
      begins[first + i] = static_cast<i32>(begin >> 32);
      first_tiles[first + i] = static_cast<i32>(begin);
      begin += own[i];
    }
    before += all;
    __syncthreads();  // the next sum needs the same shared memory
  }
  if (threadIdx.x == 0) first_tiles[num_clusters] = static_cast<i32>(before);
}

extern "C" __global__ void __launch_bounds__(256)
    cut_tiles(const i32* counts, const i64* offsets, i64 num_clusters, i64 tile_queries, const i32* begins,
              const i32* first_tiles, i64* tiles, i64 num_tiles) {
  const i64 number = static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x;  // of a cluster, and of a tile
  if (number < num_clusters) {
    const i64 begin = begins[number], end = begin + counts[number];
    i64* line = tiles + 4 * static_cast<i64>(first_tiles[number]);
    for (i64 pair = begin; pair < end; pair += tile_queries, line += 4) {
      line[0] = pair;
      line[1] = min(pair + tile_queries, end);
      line[2] = offsets[number];
      line[3] = offsets[number + 1];
    }
  }
  if (number >= first_tiles[num_clusters] && number < num_tiles) {
    for (i64 i = 0; i < 4; ++i) tiles[4 * number + i] = 0;
  }
}

extern "C" __global__ void __launch_bounds__(256)
    place_probes(const i64* probes, i64 num_pairs, i64 num_probes, const i64* offsets, const i64* starts,
                 const i32* begins, const i32* places, i64* queries, i64* lines) {
  const i64 pair = static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (pair >= num_pairs || probes[pair] < 0) return;
  const i64 place = begins[probes[pair]] + places[pair];
  queries[place] = pair / num_probes;
  if (starts) lines[place] = starts[pair] < 0 ? NO_SPAN : starts[pair] - offsets[probes[pair]] / 64;
}
