// rescore: float32 dots of queries with the packed embeddings of their candidates, in the order of
// stcli/ops/rescore.py: bit-equal to the CPU in any batch.
//   in   queries f32 [B,D]  values f16 or f32 [N,D]  exponents i8 [N] or null  rows i64 [B,M], -1 in empty slots
//   out  scores f32 [B,M], -inf in empty slots
//   map  16 lanes a candidate, lane j the dimensions j, j + 16, ...; a block of 256 threads has 16 candidates, grid x
//        is ceil(B M / 16)
//   limits  B M < 2^35; any D
//   cost a gather of D * (2 or 4) + 9 bytes a candidate from memory, the queries from the first-level cache; the eight
//        loads of an unrolled step are on their way together (one 32-byte sector each for float16)
#include "half.cuh"
#include "types.cuh"

__device__ __forceinline__ float to_float(u16 half) { return half_to_float(half); }
__device__ __forceinline__ float to_float(float number) { return number; }

// 2^exponent, also where it is subnormal.
__device__ __forceinline__ float power_of_two(i32 exponent) {
  return __int_as_float(exponent >= -126 ? (exponent + 127) << 23 : 1 << (exponent + 149));
}

// What lane j sums. Products and sums are rounded one by one: a fused multiply-add would differ from the CPU.
template <class Value>
__device__ __forceinline__ float lane_sum(const float* query, const Value* values, i64 dim, u32 lane, float power) {
  float sum = 0.0f;
#pragma unroll 8
  for (i64 d = lane; d < dim; d += 16) {
    sum = __fadd_rn(sum, __fmul_rn(__fmul_rn(to_float(values[d]), power), query[d]));
  }
  return sum;
}

extern "C" __global__ void __launch_bounds__(256)
    rescore(const float* queries, const void* values, i64 is_half, const i8* exponents, const i64* rows,
            i64 num_queries, i64 num_slots, i64 dim, float* scores) {
  const i64 slot = static_cast<i64>(blockIdx.x) * 16 + threadIdx.x / 16;
  const u32 lane = threadIdx.x % 16;
  const bool inside = slot < num_queries * num_slots;
  const i64 row = inside ? rows[slot] : -1;
  float sum = 0.0f;
  if (row >= 0) {
    const float* query = queries + slot / num_slots * dim;
    // A product with 2^0 changes nothing.
    const float power = exponents ? power_of_two(exponents[row]) : 1.0f;
    sum = is_half ? lane_sum(query, static_cast<const u16*>(values) + row * dim, dim, lane, power)
                  : lane_sum(query, static_cast<const float*>(values) + row * dim, dim, lane, power);
  }
  for (i32 other = 8; other; other /= 2) sum = __fadd_rn(sum, __shfl_down_sync(~0u, sum, other, 16));
  if (inside && lane == 0) scores[slot] = row >= 0 ? sum : __int_as_float(0xFF800000);
}
