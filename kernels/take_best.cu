// take_best: orders the candidates of each query by score, equal scores by rank, and cuts them at k.
//   in   rows i64 [B,M] below N, -1 for an empty slot, anywhere; no row twice in a line, as two would get one place
//        scores f32 [B,M], no NaN, not read in empty slots  ranks i64 [N], in 0 ... 2^32 - 2, all different
//   out  best_rows i64 [B,k], -1 at the end  best_scores f32 [B,k], -inf at the end, a negative zero as zero
//   map  one block a query, grid x is B; 32 ... 1,024 threads, a power of two. Keys of score and row are sorted in
//        buckets (kernels/buckets.cuh), and ranks are read where two keys of one bucket have the same score
//   shared  16 bytes a thread, 8 a slot
//   limits  N < 2^32, M <= 65,535, and what the shared memory holds; k < 2^31
//   cost for each slot 12 bytes read twice, the second time from the second-level cache; 12 bytes written for each of k
//        results; two ranks for each pair of equal scores
#include "buckets.cuh"
#include "shared_memory.cuh"

extern "C" __global__ void __launch_bounds__(1024, 2)
    take_best(const i64* all_rows, const float* all_scores, const i64* ranks, i64 num_slots, i64 k, i64* best_rows,
              float* best_scores) {
  const u32 count = static_cast<u32>(num_slots);
  i64* sorted = reinterpret_cast<i64*>(shared_memory);
  u32* ends = reinterpret_cast<u32*>(sorted + count);
  const i64 query = blockIdx.x;
  const i64* rows = all_rows + query * num_slots;
  const float* scores = all_scores + query * num_slots;
  const auto rank_of = [&](i64 key) { return static_cast<u32>(ranks[key_row(key)]); };  // half as many registers
  const u32 num_keys = sort_line(
      count, [&](u32 slot) { return rows[slot] < 0 ? EMPTY_KEY : make_key(scores[slot], rows[slot]); }, sorted, ends,
      [&](i64 one, i64 other) {
        if (one == other || one >> 32 != other >> 32) return one > other;
        const i64 apart = static_cast<i64>(rank_of(other)) - rank_of(one);
        return apart ? apart > 0 : one > other;  // a place of its own for each, were two ranks equal
      },
      [&](u32 place, i64 key) {
        if (place >= k) return;
        best_rows[query * k + place] = key_row(key);
        best_scores[query * k + place] = key_score(key);
      });
  for (i64 i = num_keys + threadIdx.x; i < k; i += blockDim.x) {
    best_rows[query * k + i] = key_row(EMPTY_KEY);
    best_scores[query * k + i] = key_score(EMPTY_KEY);
  }
}
