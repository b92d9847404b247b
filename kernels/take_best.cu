// take_best: orders the candidates of each query by score, equal scores by rank, and cuts them at k.
//   in   rows i64 [B,M], -1 for an empty slot, anywhere; no row twice in a line, as two would get one place
//        scores f32 [B,M], no NaN, not read in empty slots  ranks i64 [N], in 0 ... 2^32 - 2, all different
//   out  best_rows i64 [B,k], -1 at the end  best_scores f32 [B,k], -inf at the end, a negative zero as zero
//   scratch  keys i64 [B,M]
//   map  one block a query, grid x is B; 32 ... 1,024 threads, a power of two; keys are made of scores and ranks, sorted
//        in buckets (kernels/buckets.cuh), and say by their slot which row it was
//   shared  16 bytes a thread, 10 a slot
//   limits  M <= 65,535, and what the shared memory holds; k < 2^31
//   cost for each slot 12 bytes read, its rank, 32 bytes wherever it lies, and 8 written; then its key three times, from
//        the second-level cache; 12 bytes written for each of k results, whose rows are read once more
#include "buckets.cuh"
#include "shared_memory.cuh"

extern "C" __global__ void __launch_bounds__(1024, 1)
    take_best(const i64* all_rows, const float* all_scores, const i64* ranks, i64 num_slots, i64 k, i64* all_keys,
              i64* best_rows, float* best_scores) {
  const u32 count = static_cast<u32>(num_slots);
  i64* sorted = reinterpret_cast<i64*>(shared_memory);
  u32* ends = reinterpret_cast<u32*>(sorted + count);
  u16* slots = reinterpret_cast<u16*>(ends + Span::num_buckets());
  const i64 query = blockIdx.x;
  const i64* rows = all_rows + query * num_slots;
  const float* scores = all_scores + query * num_slots;
  i64* keys = all_keys + query * num_slots;
  // The places of a thread in `for_each`, so that it reads only keys that it has written itself.
  for (u32 slot = threadIdx.x; slot < count; slot += blockDim.x) {
    keys[slot] = rows[slot] < 0 ? EMPTY_KEY : make_key(scores[slot], ranks[rows[slot]]);
  }
  const u32 num_keys = sort_line<true>(keys, count, sorted, ends, slots, [&](u32 place, i64 key, u32 slot) {
    if (place >= k) return;
    best_rows[query * k + place] = rows[slot];
    best_scores[query * k + place] = key_score(key);
  });
  for (i64 i = num_keys + threadIdx.x; i < k; i += blockDim.x) {
    best_rows[query * k + i] = key_row(EMPTY_KEY);
    best_scores[query * k + i] = key_score(EMPTY_KEY);
  }
}
