// select_keys: keeps the best k of the keys that each query has gathered, with a few more, and raises its threshold.
// sort_keys: writes the best k of what was kept in descending order, as rows and scores.
//   in   keys i64 [B,capacity], the first counts[b] of a line are filled (kernels/keys.cuh); all different
//        counts i64 [B], may exceed capacity: then keys were lost; kept i64 [B], how many were kept the last time
//        most >= k: more than k are kept, up to most, where they lie so near the k-th that one pass tells no better
//        thresholds i64 [B], above which keys were gathered: EMPTY_KEY for all, NO_KEY for a query that takes no part
//   out  select_keys, in place:
//          nothing new (counts == kept)  redo = NO_KEY
//          counts <= capacity            the best k ... most in front, in any order; counts = kept = their number;
//                                        thresholds is raised to just below one of them; redo = NO_KEY. All that there
//                                        are, and thresholds as before, where they are fewer than k
//          counts > capacity             the keys kept before are left alone, counts = kept, and redo is just below one
//                                        of the best k ... most of those at hand: the round is repeated with redo as
//                                        threshold, and misses nothing, since at least k keys are above it. With
//                                        capacity > most each repetition has a higher threshold
//          counts < k above a threshold  the threshold was a guess, and too high: counts = kept = 0, thresholds = redo =
//                                        spare, and spare = EMPTY_KEY
//        sort_keys, of at most `most` keys a query: rows i64 [B,k], scores f32 [B,k], larger score first, then smaller
//        row; -1 and -inf at the end
//   map  one block a query, grid x is B; 32 ... 1,024 threads, a power of two. Keys are counted in buckets of equal
//        width between the smallest and the largest, four buckets a thread
//   shared  select_keys: 16 bytes a thread and 2 * most; sort_keys: 16 bytes a thread and 8 * most
//   limits  1 <= k <= most <= 65,535 (and what the shared memory holds), most < capacity < 2^31
//   cost select_keys: reads counts[b] keys three times, once for their ends, once to count them and once to close the
//        gaps (8 bytes each; the second and third time from the second-level cache: 264 blocks of 20,000 keys are 42
//        MB). Once more for every further count, which is made where more than most - k keys share the bucket of the
//        k-th. Nothing but three reads for a query without new keys
//        sort_keys: reads its keys three times, moves them to their buckets in shared memory, and finds the place of
//        each by a look at the others of its bucket: some 10 of 13,000 with scores from the tail of a normal
//        distribution. A bucket of more than LARGE_BUCKET, as ties make it, is sorted by a bitonic network instead:
//        s log2(s) (log2(s) + 1) / 4 exchanges for s keys, 860,160 for 16,384
//   examples/gpu_bench/selection_cost.py counts this, round by round
#include "keys.cuh"
#include "shared_memory.cuh"
#include "types.cuh"

constexpr u32 LOADS = 4;  // keys of a thread on their way from memory at once
constexpr u32 BUCKETS_A_THREAD = 4;
constexpr u32 LARGE_BUCKET = 256;  // keys, from which on a look at all others costs as much as to sort them
constexpr u32 MOST_LARGE_BUCKETS = 65536 / LARGE_BUCKET;

// Calls `see` with each key and its place. For the whole block.
template <class See>
__device__ __forceinline__ void for_each(const i64* keys, u32 count, See see) {
  for (u32 first = threadIdx.x; first < count; first += LOADS * blockDim.x) {
    i64 some[LOADS];
#pragma unroll
    for (u32 i = 0; i < LOADS; ++i) some[i] = keys[min(first + i * blockDim.x, count - 1)];
#pragma unroll
    for (u32 i = 0; i < LOADS; ++i) {
      if (first + i * blockDim.x < count) see(some[i], first + i * blockDim.x);
    }
  }
}

// Some keys between two, cut into as many buckets of equal width as fit; the best keys are in bucket 0.
struct Span {
  i64 low, high;
  u32 shift;

  __device__ __forceinline__ void cut() {
    const u64 width = static_cast<u64>(high) - static_cast<u64>(low);
    const i32 bits = 64 - __clzll(static_cast<i64>(width)), own = 31 - __clz(static_cast<i32>(num_buckets()));
    shift = static_cast<u32>(max(bits - own, 0));
  }
  __device__ static __forceinline__ u32 num_buckets() { return BUCKETS_A_THREAD * blockDim.x; }
  __device__ __forceinline__ bool holds(i64 key) const { return low <= key && key <= high; }
  __device__ __forceinline__ u32 bucket_of(i64 key) const {
    return static_cast<u32>((static_cast<u64>(high) - static_cast<u64>(key)) >> shift);
  }
  // Becomes one of its buckets.
  __device__ __forceinline__ void narrow(u32 bucket) {
    const u64 near = static_cast<u64>(bucket) << shift, far = near + ((u64{1} << shift) - 1);
    const u64 width = static_cast<u64>(high) - static_cast<u64>(low);
    low = static_cast<i64>(static_cast<u64>(high) - min(far, width));
    high = static_cast<i64>(static_cast<u64>(high) - near);
  }
};

// From the smallest to the largest key. For the whole block.
__device__ Span span_of(const i64* keys, u32 count) {
  static __shared__ i64 lows[32], highs[32];
  i64 low = NO_KEY, high = EMPTY_KEY;
  for_each(keys, count, [&](i64 key, u32) {
    low = min(low, key);
    high = max(high, key);
  });
  for (i32 by = 16; by; by /= 2) {
    low = min(low, __shfl_xor_sync(~0u, low, by));
    high = max(high, __shfl_xor_sync(~0u, high, by));
  }
  if (threadIdx.x % 32 == 0) {
    lows[threadIdx.x / 32] = low;
    highs[threadIdx.x / 32] = high;
  }
  __syncthreads();
  for (u32 warp = 0; warp < blockDim.x / 32; ++warp) {
    low = min(low, lows[warp]);
    high = max(high, highs[warp]);
  }
  return {low, high, 0};
}

// Sets buckets[i] to the number of keys that lie in the buckets before i. For the whole block.
__device__ void count_before(const i64* keys, u32 count, const Span& span, u32* buckets) {
  static __shared__ u32 of_warps[32];
  for (u32 i = threadIdx.x; i < Span::num_buckets(); i += blockDim.x) buckets[i] = 0;
  __syncthreads();
  for_each(keys, count, [&](i64 key, u32) {
    if (span.holds(key)) atomicAdd(buckets + span.bucket_of(key), 1u);
  });
  __syncthreads();
  u32* mine = buckets + BUCKETS_A_THREAD * threadIdx.x;
  u32 own = 0;
  for (u32 i = 0; i < BUCKETS_A_THREAD; ++i) own += mine[i];
  const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  u32 before = own;
  for (u32 by = 1; by < 32; by *= 2) {
    const u32 other = __shfl_up_sync(~0u, before, by);
    if (lane >= by) before += other;
  }
  if (lane == 31) of_warps[warp] = before;
  __syncthreads();
  before -= own;
  for (u32 i = 0; i < warp; ++i) before += of_warps[i];
  for (u32 i = 0; i < BUCKETS_A_THREAD; ++i) {
    own = mine[i];
    mine[i] = before;
    before += own;
  }
  __syncthreads();
}

// A bound that `wanted` ... `most` of the keys are not below, and how many are not. For the whole block.
__device__ i64 find_bound(const i64* keys, u32 count, u32 wanted, u32 most, u32* buckets, u32& num_best) {
  static __shared__ u32 chosen, chosen_begin, chosen_end;
  Span span = span_of(keys, count);
  u32 above = 0;  // keys above the span
  for (u32 inside = count;;) {
    span.cut();
    count_before(keys, count, span, buckets);
    for (u32 i = 0; i < BUCKETS_A_THREAD; ++i) {
      const u32 bucket = BUCKETS_A_THREAD * threadIdx.x + i;
      const u32 begin = buckets[bucket], end = bucket + 1 < Span::num_buckets() ? buckets[bucket + 1] : inside;
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
    select_keys(i64* all_keys, i64* counts, i64* kept, i64 capacity, i64 k, i64 most, i64* thresholds, i64* spare,
                i64* redo) {
  static __shared__ u32 num_holes, num_moved;
  u32* buckets = reinterpret_cast<u32*>(shared_memory);
  u16* holes = reinterpret_cast<u16*>(buckets + Span::num_buckets());
  const i64 query = blockIdx.x, found = counts[query], before = kept[query], threshold = thresholds[query];
  const u32 thread = threadIdx.x, wanted = static_cast<u32>(k);
  if (found < k && threshold != EMPTY_KEY && threshold != NO_KEY) {
    if (thread == 0) {
      counts[query] = kept[query] = 0;
      thresholds[query] = redo[query] = spare[query];
      spare[query] = EMPTY_KEY;
    }
    return;
  }
  if (found == before) {
    if (thread == 0) redo[query] = NO_KEY;
    return;
  }
  i64* keys = all_keys + query * capacity;
  const bool overflow = found > capacity;
  const u32 count = static_cast<u32>(min(found, capacity));
  u32 num_best = count;
  i64 bound = EMPTY_KEY;
  if (thread == 0) num_holes = num_moved = 0;
  if (count >= wanted) bound = find_bound(keys, count, wanted, static_cast<u32>(most), buckets, num_best);
  if (thread == 0) {
    redo[query] = overflow ? bound - 1 : NO_KEY;
    counts[query] = overflow ? before : num_best;
    if (!overflow) {
      kept[query] = num_best;
      if (count >= wanted) thresholds[query] = bound - 1;
    }
  }
  if (overflow || num_best == count) return;
  for_each(keys, num_best, [&](i64 key, u32 place) {
    if (key < bound) holes[atomicAdd(&num_holes, 1u)] = static_cast<u16>(place);
  });
  __syncthreads();
  for_each(keys + num_best, count - num_best, [&](i64 key, u32) {
    if (key >= bound) keys[holes[atomicAdd(&num_moved, 1u)]] = key;
  });
}

// Sorts keys in shared memory, largest first: a network for a power of two of them, of which those beyond `count` would
// be smaller than all others and so never move. For the whole block.
__device__ void sort_large(i64* keys, u32 count) {
  for (u32 run = 2; run / 2 < count; run *= 2) {
    for (u32 by = run / 2; by; by /= 2) {
      for (u32 pair = threadIdx.x; pair / by * by < count; pair += blockDim.x) {
        const u32 i = pair / by * 2 * by + pair % by, other = by == run / 2 ? i ^ (run - 1) : i + by;
        if (other >= count || keys[i] >= keys[other]) continue;
        const i64 larger = keys[other];
        keys[other] = keys[i];
        keys[i] = larger;
      }
      __syncthreads();
    }
  }
}

extern "C" __global__ void __launch_bounds__(1024, 2)
    sort_keys(const i64* all_keys, const i64* counts, i64 capacity, i64 k, i64 most, i64* rows, float* scores) {
  static __shared__ u16 large[MOST_LARGE_BUCKETS];
  static __shared__ u32 num_large;
  i64* keys = reinterpret_cast<i64*>(shared_memory);
  u32* ends = reinterpret_cast<u32*>(keys + most);
  const i64 query = blockIdx.x;
  const i64* given = all_keys + query * capacity;
  const u32 count = static_cast<u32>(min(counts[query], most));
  if (threadIdx.x == 0) num_large = 0;
  Span span = span_of(given, count);
  span.cut();
  count_before(given, count, span, ends);
  for_each(given, count, [&](i64 key, u32) { keys[atomicAdd(ends + span.bucket_of(key), 1u)] = key; });
  __syncthreads();
  const auto begin_of = [&](u32 bucket) { return bucket ? ends[bucket - 1] : 0; };
  for (u32 bucket = threadIdx.x; bucket < Span::num_buckets(); bucket += blockDim.x) {
    if (ends[bucket] - begin_of(bucket) > LARGE_BUCKET) large[atomicAdd(&num_large, 1u)] = static_cast<u16>(bucket);
  }
  __syncthreads();
  for (u32 i = 0; i < num_large; ++i) sort_large(keys + begin_of(large[i]), ends[large[i]] - begin_of(large[i]));
  for (u32 i = threadIdx.x; i < count; i += blockDim.x) {
    const i64 key = keys[i];
    const u32 bucket = span.bucket_of(key), begin = begin_of(bucket), end = ends[bucket];
    u32 place = i;
    if (end - begin <= LARGE_BUCKET) {
      place = begin;
      for (u32 other = begin; other < end; ++other) place += keys[other] > key;
    }
    if (place >= k) continue;
    rows[query * k + place] = key_row(key);
    scores[query * k + place] = key_score(key);
  }
  for (i64 i = count + threadIdx.x; i < k; i += blockDim.x) {
    rows[query * k + i] = key_row(EMPTY_KEY);
    scores[query * k + i] = key_score(EMPTY_KEY);
  }
}
