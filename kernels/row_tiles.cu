// cut_rows: cuts all rows for every query into tiles for the score kernels.
//   in   num_dense i64 [1] or null: of B queries so many come first, and then those that read only the rows that they
//        admit; null where there are none of these
//        listed 0 or 1: tiles of the first or of the others
//        span: rows of a tile
//   out  tiles i64 [T,4]  first pair, end pair, first row, end row; those of the same rows are side by side. As many as
//        all queries would need: those that are not needed have no pairs
//   map  one thread a tile
//   limits  T = ceil(N / span) * ceil(B / tile_queries) < 2^31 * threads of a block
//   cost 32 bytes written a tile
#include "types.cuh"

extern "C" __global__ void __launch_bounds__(256)
    cut_rows(i64 num_queries, i64 tile_queries, i64 num_rows, i64 span, const i64* num_dense, i64 listed, i64* tiles,
             i64 num_tiles) {
  const i64 tile = static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (tile >= num_tiles) return;
  const i64 of_same_rows = (num_queries + tile_queries - 1) / tile_queries;
  const i64 begin = listed ? *num_dense : 0, end = num_dense && !listed ? *num_dense : num_queries;
  const i64 pair = min(begin + tile % of_same_rows * tile_queries, end), row = tile / of_same_rows * span;
  i64* line = tiles + 4 * tile;
  line[0] = pair;
  line[1] = min(pair + tile_queries, end);
  line[2] = row;
  line[3] = min(row + span, num_rows);
}
