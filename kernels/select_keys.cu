// select_keys: keeps the best k of the keys that each query has gathered, and raises its threshold.
// sort_keys: writes what was kept in descending order, as rows and scores.
//   in   keys i64 [B,capacity], the first counts[b] of a line are filled (kernels/keys.cuh); all different
//        counts i64 [B], may exceed capacity: then keys were lost; kept i64 [B], how many were kept the last time
//   out  select_keys, in place:
//          nothing new (counts == kept)  redo = NO_KEY
//          counts <= capacity            the best min(counts, k) in front, in any order; counts = kept = their number;
//                                        thresholds = the k-th best key where there are k; redo = NO_KEY
//          counts > capacity             the keys kept before are left alone, counts = kept, and redo is just below the
//                                        k-th best key of those at hand: the round is repeated with redo as threshold,
//                                        and misses nothing, since the true k-th best key is not below that. With
//                                        capacity > 2 k each repetition has a higher threshold
//        sort_keys: rows i64 [B,k], scores f32 [B,k], larger score first, then smaller row; -1 and -inf at the end
//   map  one block a query, grid x is B. select_keys: 256 threads, 2 k bytes of shared memory. sort_keys: a power of
//        two of threads, 8 P bytes of shared memory, P the power of two that is >= k
//   limits  1 <= k <= 16,384, k <= capacity < 2^31
//   cost select_keys: radix selection, 8 bits a pass from the highest on, until the digit that holds the k-th key is
//        wanted whole: mostly four passes over counts[b] keys (8 bytes each, from the second-level cache), and one more
//        to close the gaps. Nothing but three reads for a query without new keys. sort_keys: a bitonic network of
//        P log2(P) (log2(P) + 1) / 4 exchanges in shared memory (k = 100: 1,792; k = 10,000: 860,160)
#include "keys.cuh"
#include "shared_memory.cuh"
#include "types.cuh"

// Where a key stands as an unsigned number.
__device__ __forceinline__ u64 rank(i64 key) {
  return static_cast<u64>(key) ^ u64 { 1 } << 63;
}

// Finds (prefix, shift) so that exactly k of the keys have rank >> shift >= prefix. Called by the whole block.
__device__ void find_best(const i64* keys, u32 count, u32 k, u32* histogram, u64& prefix, u32& shift) {
  static __shared__ u64 found_prefix;
  static __shared__ u32 found_wanted, found_whole;
  const u32 lane = threadIdx.x % 32;
  u32 wanted = k;  // how many of the keys with this prefix
  prefix = 0;
  shift = 64;
  for (bool whole = false; !whole;) {
    histogram[threadIdx.x] = 0;
    __syncthreads();
    for (u32 first = 0; first < count; first += 256) {
      const u32 i = first + threadIdx.x;
      const u64 place = i < count ? rank(keys[i]) : 0;
      const bool counted = i < count && (shift == 64 || place >> shift == prefix);
      // The keys of a query are much alike, so lanes with the same digit count together.
      const u32 digit = counted ? static_cast<u32>(place >> (shift - 8)) & 255 : 256;
      const u32 same = __match_any_sync(~0u, digit);
      if (counted && lane == static_cast<u32>(__ffs(static_cast<i32>(same))) - 1) {
        atomicAdd(histogram + digit, static_cast<u32>(__popc(same)));
      }
    }
    __syncthreads();
    if (threadIdx.x < 32) {  // the digit of the k-th key: lane l adds the digits 255 - 8 l and the seven below
      u32 mine = 0;
      for (u32 i = 0; i < 8; ++i) mine += histogram[255 - 8 * lane - i];
      u32 before = mine;
      for (u32 by = 1; by < 32; by *= 2) {
        const u32 other = __shfl_up_sync(~0u, before, by);
        if (lane >= by) before += other;
      }
      before -= mine;
      if (before < wanted && wanted <= before + mine) {
        u32 digit = 255 - 8 * lane;
        for (; before + histogram[digit] < wanted; --digit) before += histogram[digit];
        found_prefix = prefix << 8 | digit;
        found_wanted = wanted - before;
        found_whole = found_wanted == histogram[digit];
      }
    }
    __syncthreads();
    prefix = found_prefix;
    wanted = found_wanted;
    whole = found_whole;
    shift -= 8;
  }
}

__device__ __forceinline__ bool is_best(i64 key, u64 prefix, u32 shift) { return rank(key) >> shift >= prefix; }

extern "C" __global__ void __launch_bounds__(256)
    select_keys(i64* all_keys, i64* counts, i64* kept, i64 capacity, i64 k, i64* thresholds, i64* redo) {
  static __shared__ u32 histogram[256];
  static __shared__ u32 num_holes, num_moved;
  static __shared__ i64 smallest[8];
  u16* holes = reinterpret_cast<u16*>(shared_memory);
  const i64 query = blockIdx.x, found = counts[query], before = kept[query];
  const u32 thread = threadIdx.x, wanted = static_cast<u32>(k);
  i64* keys = all_keys + query * capacity;
  const bool overflow = found > capacity;
  const u32 count = static_cast<u32>(overflow ? capacity : found), num_best = min(count, wanted);
  if (found == before) {
    if (thread == 0) redo[query] = NO_KEY;
    return;
  }
  u64 prefix = 0;
  u32 shift = 63;
  if (count > wanted) find_best(keys, count, wanted, histogram, prefix, shift);
  if (thread == 0) num_holes = num_moved = 0;
  __syncthreads();
  i64 lowest = NO_KEY;
  for (u32 i = thread; i < num_best; i += 256) {
    const i64 key = keys[i];
    if (is_best(key, prefix, shift)) {
      lowest = min(lowest, key);
    } else {
      holes[atomicAdd(&num_holes, 1u)] = static_cast<u16>(i);
    }
  }
  __syncthreads();
  for (u32 i = num_best + thread; i < count; i += 256) {
    const i64 key = keys[i];
    if (!is_best(key, prefix, shift)) continue;
    lowest = min(lowest, key);
    if (!overflow) keys[holes[atomicAdd(&num_moved, 1u)]] = key;
  }
  for (u32 by = 16; by; by /= 2) lowest = min(lowest, __shfl_xor_sync(~0u, lowest, by));
  if (thread % 32 == 0) smallest[thread / 32] = lowest;
  __syncthreads();
  if (thread == 0) {
    for (u32 warp = 1; warp < 8; ++warp) lowest = min(lowest, smallest[warp]);
    redo[query] = overflow ? lowest - 1 : NO_KEY;
    counts[query] = overflow ? before : num_best;
    if (!overflow) {
      kept[query] = num_best;
      if (num_best == wanted) thresholds[query] = lowest;
    }
  }
}

extern "C" __global__ void __launch_bounds__(1024)
    sort_keys(const i64* all_keys, const i64* counts, i64 capacity, i64 k, i64* rows, float* scores) {
  i64* keys = reinterpret_cast<i64*>(shared_memory);
  const i64 query = blockIdx.x;
  const u32 count = static_cast<u32>(min(counts[query], k));
  u32 size = 1;
  while (size < count) size *= 2;
  for (u32 i = threadIdx.x; i < size; i += blockDim.x) keys[i] = i < count ? all_keys[query * capacity + i] : EMPTY_KEY;
  for (u32 run = 2; run <= size; run *= 2) {
    for (u32 by = run / 2; by; by /= 2) {
      __syncthreads();
      for (u32 pair = threadIdx.x; pair < size / 2; pair += blockDim.x) {
        const u32 i = (pair & ~(by - 1)) * 2 + (pair & (by - 1)), other = i + by;
        const i64 left = keys[i], right = keys[other];
        if ((left < right) == ((i & run) == 0)) {
          keys[i] = right;
          keys[other] = left;
        }
      }
    }
  }
  __syncthreads();
  for (i64 i = threadIdx.x; i < k; i += blockDim.x) {
    const i64 key = i < count ? keys[i] : EMPTY_KEY;
    rows[query * k + i] = key_row(key);
    scores[query * k + i] = key_score(key);
  }
}
