// Runs CUDA C++ kernels on the CPU, one block after the other, so that their results can be tested without a GPU.
//
// Each CUDA thread of a block is a fiber. A fiber runs until it waits for others (a barrier of the block, a collective
// of its warp) or now and then at an atomic; which fiber goes on is drawn from the seed, in half of the blocks so that a
// warp runs ahead of the others. So a barrier that is missing lets some thread read what no other has written yet, or
// what another has written since, and the result is wrong for many seeds.
//
// What is checked: barriers and collectives that not all threads reach, lanes that disagree about a collective,
// misaligned fragments, threads that end before their asynchronous copies, writes past the dynamic shared memory (and,
// under AddressSanitizer, any access out of bounds).
// Shared memory starts as 0xCD in each block. An asynchronous copy happens when it is issued or when it is waited for,
// as the seed decides.
// What is not modelled: blocks that run at the same time, the memory model between blocks, bank conflicts, time.
//
// A kernel text needs nothing for it but two habits: `static __shared__` for fixed arrays, in kernels that are no
// templates, and `shared_memory` (kernels/shared_memory.cuh) for the dynamic array. PTX stands behind functions that
// have a second body under STCLI_EMULATION (kernels/mma.cuh, kernels/copy_async.cuh).
//
// This is what a kernel text is compiled with; what runs it is cuda_emulation.cpp, compiled once for all of them. It
// includes little, since each of some thirty texts in the tests pays for it.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include <type_traits>
#include <utility>

#define STCLI_EMULATION 1
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __shared__ __attribute__((section("emulated_shared")))

struct uint3 {
  unsigned x, y, z;
};
using dim3 = uint3;
struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

extern uint3 threadIdx, blockIdx, blockDim, gridDim;
constexpr int warpSize = 32;

constexpr size_t EMULATED_SHARED_BYTES = 232448;  // what a block may ask for on sm_90
extern __shared__ unsigned char shared_memory[EMULATED_SHARED_BYTES];

namespace emulation {

// ---- what the running of threads gives --------------------------------------------------------------------------

// Runs all blocks in an order drawn from the seed; returns what went wrong, or null.
const char* launch(void (*kernel)(void**), void** arguments, const long long* shape, long long shared_bytes,
                   uint64_t seed);

// Ends the launch with a message, in which `number` may be named.
[[noreturn]] void fail(const char* format, int number = 0);

// Waits for all threads of the block: whether any of them voted (what = 0), all of them (1), how many (2).
int barrier(int line, int vote, int what);

enum Kind { SHUFFLE, VOTE, SYNC_WARP, MATCH, REDUCE, MMA, LOAD_MATRIX };

// Waits until every lane of the mask is at the same collective; the last one computes for all: `compute` is given what
// each lane brought, null for lanes out of the mask.
void collective(Kind kind, int line, unsigned mask, void* data, void (*compute)(void* const* lanes));

int lane_of_thread();

// Now and then another thread goes first, so that the order of atomics is not that of the threads.
void maybe_give_way();

// ---- collectives of a warp ----------------------------------------------------------------------------------------

// What the lanes brought; null for those out of the mask.
template <class Data>
struct Lanes {
  void* const* given;
  Data* operator[](int lane) const { return static_cast<Data*>(given[lane]); }
};

template <class T>
struct Exchange {
  T value, result;
  int source;
};

// `source` is the lane that is read; one out of the segment or of the mask reads its own value.
template <class T>
T shuffle(int line, unsigned mask, T value, int source) {
  Exchange<T> mine{value, value, source};
  collective(SHUFFLE, line, mask, &mine, [](void* const* given) {
    const Lanes<Exchange<T>> lanes{given};
    for (int l = 0; l < 32; ++l) {
      if (!lanes[l] || lanes[l]->source < 0) continue;
      if (!lanes[lanes[l]->source]) fail("a shuffle reads lane %d, which is not in its mask", lanes[l]->source);
      lanes[l]->result = lanes[lanes[l]->source]->value;
    }
  });
  return mine.result;
}
template <class T>
T shfl(int line, unsigned mask, T value, int source, int width = 32) {
  return shuffle(line, mask, value, lane_of_thread() / width * width + (source & (width - 1)));
}
template <class T>
T shfl_xor(int line, unsigned mask, T value, int bits, int width = 32) {
  const int source = lane_of_thread() ^ bits;
  return shuffle(line, mask, value, source / width == lane_of_thread() / width ? source : -1);
}
template <class T>
T shfl_up(int line, unsigned mask, T value, int by, int width = 32) {
  const int source = lane_of_thread() - by;
  return shuffle(line, mask, value, source >= lane_of_thread() / width * width ? source : -1);
}
template <class T>
T shfl_down(int line, unsigned mask, T value, int by, int width = 32) {
  const int source = lane_of_thread() + by;
  return shuffle(line, mask, value, source / width == lane_of_thread() / width ? source : -1);
}

unsigned ballot(int line, unsigned mask, int predicate);
void sync_warp(int line, unsigned mask = ~0u);
unsigned match_any(int line, unsigned mask, uint64_t value);

template <class T, class Join>
T reduce(int line, unsigned mask, T value, Join) {
  Exchange<T> mine{value, value, 0};
  collective(REDUCE, line, mask, &mine, [](void* const* given) {
    const Lanes<Exchange<T>> lanes{given};
    bool first = true;
    T all{};
    for (int l = 0; l < 32; ++l) {
      if (lanes[l]) all = first ? lanes[l]->value : Join::join(all, lanes[l]->value);
      first = first && !lanes[l];
    }
    for (int l = 0; l < 32; ++l) {
      if (lanes[l]) lanes[l]->result = all;
    }
  });
  return mine.result;
}
struct Add {
  template <class T>
  static T join(T a, T b) {
    return a + b;
  }
};
struct Max {
  template <class T>
  static T join(T a, T b) {
    return a < b ? b : a;
  }
};
struct Min {
  template <class T>
  static T join(T a, T b) {
    return b < a ? b : a;
  }
};
struct Or {
  template <class T>
  static T join(T a, T b) {
    return a | b;
  }
};

// ---- matrix fragments and asynchronous copies, in the layout of the PTX manual ------------------------------------

// d += a * b with a 16x32 by rows, b 32x8 by columns, both int8, d int32.
void mma_m16n8k32_s8(int line, int (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]);

// Four 8x8 matrices of 16-bit numbers; lanes 8 i ... 8 i + 7 give the rows of matrix i.
void load_matrix_x4(int line, unsigned (&to)[4], const void* from);

// Copies `given` bytes and fills up with zeros.
void copy_async(void* to, const void* from, size_t bytes, size_t given);
void copy_commit();
void copy_wait(size_t newest);

// ---- calling a kernel, and atomics --------------------------------------------------------------------------------

template <class... Arguments, size_t... Places>
void call(void (*kernel)(Arguments...), void** slots, std::index_sequence<Places...>) {
  static_assert(
      ((std::is_pointer_v<Arguments> || std::is_same_v<Arguments, long long> || std::is_same_v<Arguments, float>) &&
       ...),
      "a kernel takes pointers, long long and float");
  kernel(*static_cast<Arguments*>(slots[Places])...);
}
template <class... Arguments>
void call(void (*kernel)(Arguments...), void** slots) {
  call(kernel, slots, std::index_sequence_for<Arguments...>{});
}
template <class... Arguments>
constexpr int count_arguments(void (*)(Arguments...)) {
  return sizeof...(Arguments);
}

template <class T, class Change>
T atomic(T* address, Change change) {
  maybe_give_way();
  const T before = *address;
  *address = change(before);
  return before;
}

}  // namespace emulation

// ---- the names that kernels use -----------------------------------------------------------------------------------

#define __syncthreads() ((void)emulation::barrier(__LINE__, 0, 0))
#define __syncthreads_or(vote) emulation::barrier(__LINE__, vote, 0)
#define __syncthreads_and(vote) emulation::barrier(__LINE__, vote, 1)
#define __syncthreads_count(vote) emulation::barrier(__LINE__, vote, 2)
#define __syncwarp(...) emulation::sync_warp(__LINE__, ##__VA_ARGS__)
#define __shfl_sync(...) emulation::shfl(__LINE__, __VA_ARGS__)
#define __shfl_xor_sync(...) emulation::shfl_xor(__LINE__, __VA_ARGS__)
#define __shfl_up_sync(...) emulation::shfl_up(__LINE__, __VA_ARGS__)
#define __shfl_down_sync(...) emulation::shfl_down(__LINE__, __VA_ARGS__)
#define __ballot_sync(...) emulation::ballot(__LINE__, __VA_ARGS__)
#define __any_sync(...) (emulation::ballot(__LINE__, __VA_ARGS__) != 0)
#define __all_sync(mask, predicate) (emulation::ballot(__LINE__, mask, !(predicate)) == 0)
#define __match_any_sync(mask, value) emulation::match_any(__LINE__, mask, static_cast<uint64_t>(value))
#define __reduce_add_sync(mask, value) emulation::reduce(__LINE__, mask, value, emulation::Add())
#define __reduce_max_sync(mask, value) emulation::reduce(__LINE__, mask, value, emulation::Max())
#define __reduce_min_sync(mask, value) emulation::reduce(__LINE__, mask, value, emulation::Min())
#define __reduce_or_sync(mask, value) emulation::reduce(__LINE__, mask, value, emulation::Or())

template <class T>
T atomicAdd(T* address, T value) {
  return emulation::atomic(address, [=](T before) { return before + value; });
}
template <class T>
T atomicMax(T* address, T value) {
  return emulation::atomic(address, [=](T before) { return before < value ? value : before; });
}
template <class T>
T atomicOr(T* address, T value) {
  return emulation::atomic(address, [=](T before) { return before | value; });
}
template <class T>
T atomicExch(T* address, T value) {
  return emulation::atomic(address, [=](T) { return value; });
}
template <class T>
T atomicCAS(T* address, T compare, T value) {
  return emulation::atomic(address, [=](T before) { return before == compare ? value : before; });
}

template <class T>
T max(T a, T b) {
  return a < b ? b : a;
}
template <class T>
T min(T a, T b) {
  return b < a ? b : a;
}
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __ffsll(long long x) { return __builtin_ffsll(x); }
static inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
static inline int __clzll(long long x) { return x ? __builtin_clzll(static_cast<unsigned long long>(x)) : 64; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __int2float_rn(int x) { return static_cast<float>(x); }
template <class To, class From>
To emulated_cast(From x) {
  To y;
  memcpy(&y, &x, sizeof y);
  return y;
}
static inline int __float_as_int(float x) { return emulated_cast<int>(x); }
static inline float __int_as_float(int x) { return emulated_cast<float>(x); }
static inline unsigned __float_as_uint(float x) { return emulated_cast<unsigned>(x); }
static inline float __uint_as_float(unsigned x) { return emulated_cast<float>(x); }
template <class T>
T __ldg(const T* address) {
  return *address;
}
static inline int __dp4a(int a, int b, int sum) {
  for (int i = 0; i < 4; ++i) sum += static_cast<int8_t>(a >> (8 * i)) * static_cast<int8_t>(b >> (8 * i));
  return sum;
}
