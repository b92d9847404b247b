// float16 to float32 without cuda_fp16.h, which NVRTC may not find.
#pragma once

#include "types.cuh"

__device__ __forceinline__ float half_to_float(u16 bits) {
#ifdef STCLI_EMULATION
  const u32 sign = static_cast<u32>(bits & 0x8000) << 16, exponent = bits >> 10 & 31, fraction = bits & 1023;
  if (exponent == 31) return __uint_as_float(sign | 0x7F800000 | fraction << 13);
  if (exponent) return __uint_as_float(sign | (exponent + 112) << 23 | fraction << 13);
  const float tiny = static_cast<float>(fraction) * 5.9604644775390625e-8f;  // 2^-24
  return __uint_as_float(sign | __float_as_uint(tiny));
#else
  float number;
  asm("cvt.f32.f16 %0, %1;" : "=f"(number) : "h"(bits));
  return number;
#endif
}
