// Sums over the threads of a block.
#pragma once

#include "types.cuh"

// The sum of what the threads before this one bring; for a whole block of 32 ... 1,024 threads. Two calls need a barrier
// between them.
__device__ u32 sum_before(u32 own) {
  static __shared__ u32 of_warps[32];
  const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  u32 sum = own;
  for (u32 by = 1; by < 32; by *= 2) {
    const u32 other = __shfl_up_sync(~0u, sum, by);
    if (lane >= by) sum += other;
  }
  if (lane == 31) of_warps[warp] = sum;
  __syncthreads();
  sum -= own;
  for (u32 i = 0; i < warp; ++i) sum += of_warps[i];
  return sum;
}
