// mma_peak: the most int8 products a second, from registers alone: the ceiling that the score kernels are held against.
//   out  sums i32 [blocks * threads], so that nothing is optimized away
//   map  eight independent accumulators a warp; steps * 8 * 16 * 8 * 32 multiply-adds a warp
extern "C" __global__ void __launch_bounds__(256) mma_peak(int* sums, long long steps) {
  int a[4], b[2], c[8][4];
  for (int i = 0; i < 4; ++i) a[i] = threadIdx.x * 0x01010101 + i;
  for (int i = 0; i < 2; ++i) b[i] = threadIdx.x + 0x01020304 * i;
  for (int n = 0; n < 8; ++n)
    for (int i = 0; i < 4; ++i) c[n][i] = n + i;
  for (long long step = 0; step < steps; ++step) {
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      asm volatile(
          "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
          : "+r"(c[n][0]), "+r"(c[n][1]), "+r"(c[n][2]), "+r"(c[n][3])
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    }
  }
  int sum = 0;
  for (int n = 0; n < 8; ++n)
    for (int i = 0; i < 4; ++i) sum += c[n][i];
  sums[blockIdx.x * 256 + threadIdx.x] = sum;
}
