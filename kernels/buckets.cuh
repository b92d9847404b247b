// Keys of one line in buckets, to select or to sort them; for a whole block of 32 ... 1,024 threads, a power of two. The
// best keys are in bucket 0, and there are four buckets a thread. Empty keys are passed over.
#pragma once

#include "keys.cuh"
#include "sum_before.cuh"
#include "types.cuh"

constexpr u32 LOADS = 3, LOADS_AGAIN = 2;  // keys of a thread on their way at once: from memory, and from nearer by
constexpr u32 BUCKETS_A_THREAD = 4;
constexpr u32 LARGE_BUCKET = 256;  // keys, from which on a look at all others costs as much as to sort them
constexpr u32 MOST_LARGE_BUCKETS = 65536 / LARGE_BUCKET;
constexpr float LARGEST_FLOAT = 3.402823466e38f;

// Calls `see` with each key and its place.
template <u32 AT_ONCE = LOADS_AGAIN, class Load, class See>
__device__ __forceinline__ void for_each(u32 count, Load load, See see) {
  for (u32 first = threadIdx.x; first < count; first += AT_ONCE * blockDim.x) {
    i64 some[AT_ONCE];
#pragma unroll
    for (u32 i = 0; i < AT_ONCE; ++i) some[i] = load(min(first + i * blockDim.x, count - 1));
#pragma unroll
    for (u32 i = 0; i < AT_ONCE; ++i) {
      if (first + i * blockDim.x < count) see(some[i], first + i * blockDim.x);
    }
  }
}

__device__ __forceinline__ u32 num_buckets() { return BUCKETS_A_THREAD * blockDim.x; }

// Some keys between two, cut into as many buckets of an equal number of keys that there could be; so any keys are told
// apart when one bucket is cut again and again.
struct Span {
  i64 low, high;
  u32 shift;

  __device__ __forceinline__ void cut() {
    const u64 width = static_cast<u64>(high) - static_cast<u64>(low);
    const i32 bits = 64 - __clzll(static_cast<i64>(width)), own = 31 - __clz(static_cast<i32>(num_buckets()));
    shift = static_cast<u32>(max(bits - own, 0));
  }
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

// The scores between two, cut into buckets of equal width: fewer share one than of a span, where each power of two has as
// many buckets as any other. Equal scores are in one bucket. Halves of scores, as a difference of scores may be infinite.
struct Scale {
  float best, buckets_apart;

  __device__ explicit Scale(const Span& span) : best(half(span.high)) {
    const float fit = static_cast<float>(num_buckets()) / (best - half(span.low));
    buckets_apart = 0 < fit && fit <= LARGEST_FLOAT ? fit : 0.0f;
  }
  __device__ static __forceinline__ float half(i64 key) { return 0.5f * key_score(key); }
  __device__ static __forceinline__ bool holds(i64 key) { return key != EMPTY_KEY; }
  __device__ __forceinline__ u32 bucket_of(i64 key) const {
    return min(static_cast<u32>((best - half(key)) * buckets_apart), num_buckets() - 1);
  }
};

// From the smallest to the largest key; low is above high where all are empty. `see` is called as by `for_each`.
template <class Load, class See>
__device__ Span span_of(u32 count, Load load, See see) {
  static __shared__ i64 lows[32], highs[32];
  i64 low = NO_KEY, high = EMPTY_KEY;
  for_each<LOADS>(count, load, [&](i64 key, u32 place) {
    see(key, place);
    low = min(low, key == EMPTY_KEY ? NO_KEY : key);
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

// Sets buckets[i] to the number of keys that lie in the buckets before i of a span or a scale.
template <class Load, class Cut>
__device__ void count_before(u32 count, Load load, const Cut& cut, u32* buckets) {
  for (u32 i = threadIdx.x; i < num_buckets(); i += blockDim.x) buckets[i] = 0;
  __syncthreads();
  for_each(count, load, [&](i64 key, u32) {
    if (cut.holds(key)) atomicAdd(buckets + cut.bucket_of(key), 1u);
  });
  __syncthreads();
  u32* mine = buckets + BUCKETS_A_THREAD * threadIdx.x;
  u32 own = 0;
  for (u32 i = 0; i < BUCKETS_A_THREAD; ++i) own += mine[i];
  u32 all, before = sum_before(own, all);
  for (u32 i = 0; i < BUCKETS_A_THREAD; ++i) {
    own = mine[i];
    mine[i] = before;
    before += own;
  }
  __syncthreads();
}

// Sorts keys in shared memory, the best first: a network for a power of two of them, of which those beyond `count`
// would be the last and so never move.
template <class Above>
__device__ void sort_large(i64* keys, u32 count, Above above) {
  for (u32 run = 2; run / 2 < count; run *= 2) {
    for (u32 by = run / 2; by; by /= 2) {
      for (u32 pair = threadIdx.x; pair / by * 2 * by < count; pair += blockDim.x) {
        const u32 i = pair / by * 2 * by + pair % by, other = by == run / 2 ? i ^ (run - 1) : i + by;
        if (other >= count || !above(keys[other], keys[i])) continue;
        const i64 better = keys[other];
        keys[other] = keys[i];
        keys[i] = better;
      }
      __syncthreads();
    }
  }
}

// Calls `see` with the place of each key in the order of `above`, and the key; gives their number. A larger score is
// above a smaller one; equal scores are ordered as `above` likes. `keys` has room for all in shared memory, `ends` for
// the buckets. The keys are loaded twice, and once more from `keys` itself; the place of one is found by a look at the
// others of its bucket, or, where these are many, by the network.
template <class Load, class Above, class See>
__device__ u32 sort_line(u32 count, Load load, i64* keys, u32* ends, Above above, See see) {
  static __shared__ u16 large[MOST_LARGE_BUCKETS];
  static __shared__ u32 num_large;
  if (threadIdx.x == 0) num_large = 0;
  const Scale scale(span_of(count, load, [&](i64 key, u32 place) { keys[place] = key; }));
  count_before(count, [&](u32 place) { return keys[place]; }, scale, ends);
  for_each(count, load, [&](i64 key, u32) {
    if (scale.holds(key)) keys[atomicAdd(ends + scale.bucket_of(key), 1u)] = key;
  });
  __syncthreads();
  const auto begin_of = [&](u32 bucket) { return bucket ? ends[bucket - 1] : 0; };
  for (u32 bucket = threadIdx.x; bucket < num_buckets(); bucket += blockDim.x) {
    if (ends[bucket] - begin_of(bucket) > LARGE_BUCKET) large[atomicAdd(&num_large, 1u)] = static_cast<u16>(bucket);
  }
  __syncthreads();
  for (u32 i = 0; i < num_large; ++i) {
    const u32 begin = begin_of(large[i]);
    sort_large(keys + begin, ends[large[i]] - begin, above);
  }
  const u32 num_keys = ends[num_buckets() - 1];
  for (u32 i = threadIdx.x; i < num_keys; i += blockDim.x) {
    const i64 key = keys[i];
    const u32 bucket = scale.bucket_of(key), begin = begin_of(bucket), end = ends[bucket];
    u32 place = i;
    if (end - begin <= LARGE_BUCKET) {
      place = begin;
      for (u32 other = begin; other < end; ++other) place += above(keys[other], key);
    }
    see(place, key);
  }
  return num_keys;
}
