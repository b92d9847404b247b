// raise_thresholds: sets the threshold of each query by the keys that it has gathered from a sample, and drops these.
// select_keys: keeps the best k of the keys that each query has gathered, with some more.
// sort_keys: writes the best k of what was kept in descending order, as rows and scores.
//   in   keys i64 [B,capacity], the first counts[b] of a line are filled (kernels/keys.cuh); all different
//        counts i64 [B], may exceed capacity: then keys were lost
//        most >= k: so many may be kept; where there are more, no more than lie near the k-th and make no further pass
//        thresholds i64 [B], above which keys were gathered: EMPTY_KEY for all
//   out  raise_thresholds, in place: thresholds is raised to just below one of the best k ... most of the keys at hand,
//        and spare = the threshold before; with fewer than k keys thresholds stays, and spare = EMPTY_KEY. counts = 0
//        select_keys, in place; redo i64 [B] is the threshold for those that have to gather again, NO_KEY for others:
//          counts < k above a threshold  it was a guess, and too high: redo = thresholds = spare, spare = EMPTY_KEY and
//                                        counts = 0
//          counts > capacity             redo is just below one of the best k ... most of the keys at hand, so that at
//                                        least k are above it; counts = 0. With most < capacity a higher threshold
//          counts > most                 the best k ... most in front, in any order; counts = their number
//          else                          all stay
//        sort_keys, of at most `most` keys a query: rows i64 [B,k], scores f32 [B,k], larger score first, then smaller
//        row; -1 and -inf at the end
//   map  one block a query, grid x is B; 32 ... 1,024 threads, a power of two. Keys are counted in four buckets a
//        thread between the smallest and the largest (kernels/buckets.cuh)
//   shared  the first `room` keys of a line, 8 bytes each, and 16 bytes a thread; select_keys: 2 * most besides
//        sort_keys: 16 bytes a thread and 8 * most
//   limits  1 <= k <= most <= 65,535 (and what the shared memory holds), capacity < 2^31
//   cost select_keys: reads counts[b] keys three times, once for their ends, once to count them and once to close the
//        gaps (8 bytes each; the second and third time from shared memory, and from the second-level cache beyond
//        `room`). Once more for every further count, which is made where more than most - k keys share the bucket of
//        the k-th. Nothing but two words for a query that has no more than `most`
//        raise_thresholds: the same without the third time
//        sort_keys: reads its keys twice, the second time from the second-level cache, moves them to their buckets in
//        shared memory, and finds the place of each by a look at the others of its bucket. A bucket of more than
//        LARGE_BUCKET, as ties make it, is sorted by a bitonic network: s log2(s) (log2(s) + 1) / 4 exchanges for s
//        keys, 860,160 for 16,384
//   examples/gpu_bench/selection_cost.py counts this, round by round
#include "buckets.cuh"
#include "shared_memory.cuh"

// The keys of a query: once `find_bound` has read them, the first `room` are in shared memory too, at its begin.
struct Line {
  const i64* keys;
  u32 room;

  __device__ static __forceinline__ i64* near() { return reinterpret_cast<i64*>(shared_memory); }
  __device__ __forceinline__ i64 operator()(u32 place) const { return place < room ? near()[place] : keys[place]; }
  __device__ __forceinline__ u32* behind() const { return reinterpret_cast<u32*>(near() + room); }
};

// A bound that `wanted` ... `most` of the keys are not below, and how many are not. For the whole block.
__device__ i64 find_bound(const Line& line, u32 count, u32 wanted, u32 most, u32* buckets, u32& num_best) {
  static __shared__ u32 chosen, chosen_begin, chosen_end;
  Span span = span_of(
      count, [&](u32 place) { return line.keys[place]; },
      [&](i64 key, u32 place) {
        if (place < line.room) Line::near()[place] = key;
      });
  u32 above = 0;  // keys above the span
  for (u32 inside = count;;) {
    span.cut();
    count_before(count, line, span, buckets);
    for (u32 i = 0; i < BUCKETS_A_THREAD; ++i) {
      const u32 bucket = BUCKETS_A_THREAD * threadIdx.x + i;
      const u32 begin = buckets[bucket], end = bucket + 1 < num_buckets() ? buckets[bucket + 1] : inside;
      if (begin < wanted - above && wanted - above <= end) {
        chosen = bucket;
        chosen_begin = begin;
        chosen_end = end;
      }
    }
    __syncthreads();
    span.narrow(chosen);
    num_best = above + chosen_end;
    if (num_best <= most) return span.low;
    above += chosen_begin;
    inside = chosen_end - chosen_begin;
  }
}

extern "C" __global__ void __launch_bounds__(1024, 2)
    raise_thresholds(const i64* all_keys, i64* counts, i64 capacity, i64 k, i64 most, i64 room, i64* thresholds,
                     i64* spare) {
  const i64 query = blockIdx.x, found = counts[query], threshold = thresholds[query];
  const bool enough = found >= k;
  i64 bound = EMPTY_KEY;
  if (enough) {
    const Line line{all_keys + query * capacity, static_cast<u32>(room)};
    u32 num_best;
    bound = find_bound(line, static_cast<u32>(min(found, capacity)), static_cast<u32>(k), static_cast<u32>(most),
                       line.behind(), num_best);
  }
  if (threadIdx.x == 0) {
    counts[query] = 0;
    spare[query] = enough ? threshold : EMPTY_KEY;
    if (enough) thresholds[query] = bound - 1;
  }
}

extern "C" __global__ void __launch_bounds__(1024, 2)
    select_keys(i64* all_keys, i64* counts, i64 capacity, i64 k, i64 most, i64 room, i64* thresholds, i64* spare,
                i64* redo) {
  static __shared__ u32 num_holes, num_moved;
  const i64 query = blockIdx.x, found = counts[query], threshold = thresholds[query];
  const u32 thread = threadIdx.x, wanted = static_cast<u32>(k);
  const bool overflow = found > capacity, too_few = found < k && threshold != EMPTY_KEY;
  if (too_few || (found <= most && !overflow)) {
    if (thread == 0) redo[query] = too_few ? spare[query] : NO_KEY;
    if (thread == 0 && too_few) {
      thresholds[query] = spare[query];
      spare[query] = EMPTY_KEY;
      counts[query] = 0;
    }
    return;
  }
  i64* keys = all_keys + query * capacity;
  const Line line{keys, static_cast<u32>(room)};
  u32* buckets = line.behind();
  u16* holes = reinterpret_cast<u16*>(buckets + num_buckets());
  const u32 count = static_cast<u32>(min(found, capacity));
  u32 num_best;
  if (thread == 0) num_holes = num_moved = 0;
  const i64 bound = find_bound(line, count, wanted, static_cast<u32>(most), buckets, num_best);
  if (thread == 0) {
    redo[query] = overflow ? bound - 1 : NO_KEY;
    counts[query] = overflow ? 0 : num_best;
  }
  if (overflow || num_best == count) return;
  for_each(num_best, line, [&](i64 key, u32 place) {
    if (key < bound) holes[atomicAdd(&num_holes, 1u)] = static_cast<u16>(place);
  });
  __syncthreads();
  for_each(
      count - num_best, [&](u32 place) { return line(num_best + place); },
      [&](i64 key, u32) {
        if (key >= bound) keys[holes[atomicAdd(&num_moved, 1u)]] = key;
      });
}

extern "C" __global__ void __launch_bounds__(1024, 2)
    sort_keys(const i64* all_keys, const i64* counts, i64 capacity, i64 k, i64 most, i64* rows, float* scores) {
  i64* keys = reinterpret_cast<i64*>(shared_memory);
  u32* ends = reinterpret_cast<u32*>(keys + most);
  const i64 query = blockIdx.x;
  const u32 count = static_cast<u32>(min(counts[query], most));
  const i64* line = all_keys + query * capacity;
  sort_line(
      count, [&](u32 place) { return line[place]; }, keys, ends, [](i64 one, i64 other) { return one > other; },
      [&](u32 place, i64 key) {
        if (place >= k) return;
        rows[query * k + place] = key_row(key);
        scores[query * k + place] = key_score(key);
      });
  for (i64 i = count + threadIdx.x; i < k; i += blockDim.x) {
    rows[query * k + i] = key_row(EMPTY_KEY);
    scores[query * k + i] = key_score(EMPTY_KEY);
  }
}
