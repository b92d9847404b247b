// count_probes, cut_tiles, place_probes, one after the other: bring the queries that probe the same cluster together, and
// cut them into tiles for the score kernels.
//   in   probes i64 [B,P], each below C, -1 in unused slots  offsets i64 [C+1]
//        starts i64 [B,P] or null: the first word of a pair's span, negative where it has none
//        counts i32 [C], zero at first
//   out  count_probes   counts[c], how many pairs probe cluster c, and places i32 [B,P], each pair's number among these
//        cut_tiles      begins i32 [C], the first pair of each cluster, and tiles i64 [T,4] of at most `tile_queries`
//                       pairs of a cluster: first pair, end pair, first row, end row. Lines that are not needed are zero
//        place_probes   queries i64 [B*P], the query of each pair, those of a cluster in any order; what is behind the
//                       used ones is left  lines i64 [B*P], where there are starts: the word at which row 0 of the pair
//                       would have its bit (kernels/score.cuh)
//   map  count_probes and place_probes: one thread a pair. cut_tiles: one block of 32 ... 1,024 threads, a power of two,
//        each with some clusters side by side
//   limits  B*P < 2^31; T >= B*P / tile_queries + min(C, B*P), the most tiles that there can be
//   cost 8 bytes read and 4 written a pair, then 12 read and 8 (16) written, and a word of counts each time, from the
//        second-level cache; 24 bytes a cluster and 32 a tile, which one block reads and writes
#include "keys.cuh"
#include "sum_before.cuh"
#include "types.cuh"

extern "C" __global__ void __launch_bounds__(256)
    count_probes(const i64* probes, i64 num_pairs, i32* counts, i32* places) {
  const i64 pair = static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (pair < num_pairs && probes[pair] >= 0) places[pair] = atomicAdd(counts + probes[pair], 1);
}

extern "C" __global__ void __launch_bounds__(1024)
    cut_tiles(const i32* counts, const i64* offsets, i64 num_clusters, i64 tile_queries, i32* begins, i64* tiles,
              i64 num_tiles) {
  static __shared__ u32 used;
  const u32 most = static_cast<u32>(tile_queries);
  const i64 each = (num_clusters + blockDim.x - 1) / blockDim.x;
  const i64 first_cluster = min(each * threadIdx.x, num_clusters), end_cluster = min(first_cluster + each, num_clusters);
  u32 begin = 0, tile = 0;
  for (i64 cluster = first_cluster; cluster < end_cluster; ++cluster) {
    begin += counts[cluster];
    tile += (counts[cluster] + most - 1) / most;
  }
  begin = sum_before(begin);
  __syncthreads();
  tile = sum_before(tile);
  for (i64 cluster = first_cluster; cluster < end_cluster; ++cluster) {
    begins[cluster] = static_cast<i32>(begin);
    for (const u32 end = begin + counts[cluster]; begin < end; begin = min(begin + most, end), ++tile) {
      i64* line = tiles + 4 * static_cast<i64>(tile);
      line[0] = begin;
      line[1] = min(begin + most, end);
      line[2] = offsets[cluster];
      line[3] = offsets[cluster + 1];
    }
  }
  if (threadIdx.x == blockDim.x - 1) used = tile;
  __syncthreads();
  for (i64 i = 4 * static_cast<i64>(used) + threadIdx.x; i < 4 * num_tiles; i += blockDim.x) tiles[i] = 0;
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
