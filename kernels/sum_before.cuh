// Sums over the threads of a block.
#pragma once

#include "types.cuh"

// The sum of what the threads before this one bring; `all` becomes that of all threads. For a whole block of 32 ... 1,024
// threads. Two calls need a barrier between them.
template <class Number>
__device__ Number sum_before(Number own, Number& all) {
  static __shared__ Number of_warps[32];
  const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  Number sum = own;
  for (u32 by = 1; by < 32; by *= 2) {
    const Number other = __shfl_up_sync(~0u, sum, by);
    if (lane >= by) sum += other;
  }
  if (lane == 31) of_warps[warp] = sum;
  __syncthreads();
  sum -= own;
  all = 0;
  for (u32 i = 0; i < blockDim.x / 32; ++i) {
    if (i < warp) sum += of_warps[i];
    all += of_warps[i];
  }
  return sum;
}
