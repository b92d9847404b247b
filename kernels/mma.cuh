// Int8 tensor cores: one warp multiplies a 16x32 piece with a 32x8 piece. Needs sm_80.
#pragma once

#include "types.cuh"

// d += a * b: `a` 16x32 int8 by rows, `b` 32x8 int8 by columns, `d` 16x8 int32, spread over the lanes as the PTX manual
// says of mma.m16n8k32: lane l holds of d rows l / 4 and l / 4 + 8 (d[0..1], d[2..3]), columns 2 (l % 4) and the next.
__device__ __forceinline__ void mma_s8(i32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
#ifdef STCLI_EMULATION
  emulation::mma_m16n8k32_s8(__LINE__, d, a, b);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// Reads four matrices of 8 rows x 16 bytes from shared memory; lane 8 i + r gives the address of row r of matrix i, a
// multiple of 16. Lane l gets bytes 4 (l % 4) ... + 3 of row l / 4 of each matrix: what mma_s8 wants.
__device__ __forceinline__ void load_matrix(u32 (&to)[4], const void* row) {
#ifdef STCLI_EMULATION
  emulation::load_matrix_x4(__LINE__, to, row);
#else
  const u32 address = static_cast<u32>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(address)
               : "memory");
#endif
}
