// Copies from global to shared memory that go on while the threads compute. Needs sm_80.
#pragma once

#include "types.cuh"

// Copies 16 bytes, both addresses multiples of 16; writes zeros and reads nothing where `wanted` is false.
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool wanted) {
#ifdef STCLI_EMULATION
  emulation::copy_async(shared, global, 16, wanted ? 16 : 0);
#else
  const u32 address = static_cast<u32>(__cvta_generic_to_shared(shared));
  const u32 given = wanted ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global), "r"(given) : "memory");
#endif
}

// Closes a group of copies of this thread; groups end in order.
__device__ __forceinline__ void copy_commit() {
#ifdef STCLI_EMULATION
  emulation::copy_commit();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most `NEWEST` groups of this thread are still on their way. Other threads see the data after a
// barrier.
template <int NEWEST>
__device__ __forceinline__ void copy_wait() {
#ifdef STCLI_EMULATION
  emulation::copy_wait(NEWEST);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(NEWEST) : "memory");
#endif
}
