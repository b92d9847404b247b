"""The emulation itself: what a GPU computes comes out, and what a GPU does not allow is found."""

import pytest
import torch

from tests.emulation.emulate import COMPILER, WHY_MISSING, EmulationError, kernels_in, run

pytestmark = pytest.mark.skipif(COMPILER is None, reason=WHY_MISSING)

SEEDS = range(5)

REVERSE = """
#include "shared_memory.cuh"
extern "C" __global__ void reverse(const long long* in, long long* out, long long count) {
  long long* tile = reinterpret_cast<long long*>(shared_memory);
  for (long long first = 0; first < count; first += blockDim.x) {
    tile[threadIdx.x] = in[first + threadIdx.x];
    __syncthreads();
    out[first + threadIdx.x] = tile[blockDim.x - 1 - threadIdx.x];
    __syncthreads();
  }
}
"""


def reverse(text, seed, shared=64 * 8):
    numbers, out = torch.arange(256), torch.zeros(256, dtype=torch.int64)
    run(text, "reverse", block=(64,), shared=shared, args=[numbers, out, 256], seed=seed)
    return torch.equal(out, numbers.view(4, 64).flip(1).flatten())


@pytest.mark.parametrize("seed", SEEDS)
def test_barriers_order_the_threads(seed):
    assert reverse(REVERSE, seed)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_missing_barrier_shows(which, seed):
    parts = REVERSE.split("__syncthreads();")
    kept = ["__syncthreads();"] * 2
    kept[which] = ""
    assert not reverse(parts[0] + kept[0] + parts[1] + kept[1] + parts[2], seed)


def test_a_write_past_shared_memory_is_found():
    with pytest.raises(EmulationError, match="wrote past the 504 bytes of shared memory"):
        reverse(REVERSE, 0, shared=63 * 8)


BROKEN = {
    "missed": (
        64,
        "if (t < 50) __syncthreads();",
        r"block \(0, 0, 0\): deadlock, 50 threads at a barrier.*14 finished",
    ),
    "mixed": (64, "if (t < 50) {\n __syncthreads();\n} else {\n __syncthreads();\n}", "barriers at lines"),
    "divided": (
        64,
        "if (t & 1) {\n __syncwarp();\n} else {\n out[t] = __shfl_sync(~0u, 1, 0);\n}",
        "lanes .* wait for each other",
    ),
    "finished": (
        64,
        "if (t == 7) return; out[t] = __any_sync(~0u, t == 3);",
        "names lane 7, which has finished|deadlock",
    ),
    "beyond": (20, "out[t] = __any_sync(~0u, t == 3);", "lanes that the block does not have"),
    "absent": (32, "if (t < 16) out[t] = __shfl_sync(0xFFFFu, 1, 20);", "reads lane 20, which is not in its mask"),
}
"""Kernels that break a rule: threads, what they do, and how the error names it."""


@pytest.mark.parametrize("name", BROKEN)
def test_broken_rules_are_named(name):
    text = "\n".join(
        f'extern "C" __global__ void {kernel}(int* out) {{ const unsigned t = threadIdx.x; {body} out[t] = 1; }}'
        for kernel, (_, body, _) in BROKEN.items()
    )
    threads, _, match = BROKEN[name]
    with pytest.raises(EmulationError, match=match):
        run(text, name, block=(threads,), args=[torch.zeros(64, dtype=torch.int32)], seed=3)


@pytest.mark.parametrize("seed", SEEDS)
def test_collectives_of_a_warp(seed):
    text = """
    extern "C" __global__ void collect(const int* in, int* out) {
      const int t = static_cast<int>(threadIdx.x), x = in[t];
      int* line = out + t * 10;
      line[0] = __shfl_sync(~0u, x, 5);
      line[1] = __shfl_xor_sync(~0u, x, 3);
      line[2] = __shfl_up_sync(~0u, x, 4, 16);
      line[3] = __shfl_down_sync(~0u, x, 4, 16);
      line[4] = static_cast<int>(__ballot_sync(~0u, x & 1));
      line[5] = __any_sync(~0u, x == in[31]) + 2 * __all_sync(~0u, x >= 0);
      line[6] = static_cast<int>(__match_any_sync(~0u, x));
      line[7] = __reduce_max_sync(~0u, x);
      line[8] = __reduce_add_sync(t % 32 < 9 ? 0x1FFu : ~0x1FFu, x);
      line[9] = __syncthreads_count(x & 1);
    }
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 20, (64,), generator=generator, dtype=torch.int32)
    out = torch.zeros(64, 10, dtype=torch.int32)
    run(text, "collect", block=(64,), args=[x, out], seed=seed)
    for t in range(64):
        warp, lane = x[t // 32 * 32 :][:32].tolist(), t % 32
        half = lane // 16 * 16
        bits = sum((value & 1) << i for i, value in enumerate(warp))
        same = sum((value == warp[lane]) << i for i, value in enumerate(warp))
        assert out[t, :4].tolist() == [
            warp[5],
            warp[lane ^ 3],
            warp[lane - 4] if lane - 4 >= half else warp[lane],
            warp[lane + 4] if lane + 4 < half + 16 else warp[lane],
        ]
        assert [int(value) & 0xFFFFFFFF for value in out[t, [4, 6]]] == [bits, same]
        assert out[t, 5] == (x[31] in warp) + 2
        assert out[t, 7:].tolist() == [max(warp), sum(warp[:9] if lane < 9 else warp[9:]), int((x & 1).sum())]


@pytest.mark.parametrize("seed", SEEDS)
def test_atomics_come_in_many_orders_and_lose_nothing(seed):
    text = """
    extern "C" __global__ void append(long long* out, long long* count) {
      out[atomicAdd(count, 1LL)] = blockIdx.x * blockDim.x + threadIdx.x;
    }
    """
    out, count = torch.full((96,), -1), torch.zeros(1, dtype=torch.int64)
    run(text, "append", grid=(3,), block=(32,), args=[out, count], seed=seed)
    assert int(count) == 96
    assert out.sort().values.tolist() == list(range(96))
    assert out.tolist() != list(range(96))


MULTIPLY = """
#include "copy_async.cuh"
#include "mma.cuh"
#include "shared_memory.cuh"
extern "C" __global__ void multiply(const i8* a, const i8* b, int* d) {
  const unsigned lane = threadIdx.x;
  for (unsigned i = lane; i < 48; i += 32) {
    copy_async(shared_memory + 16 * i, i < 32 ? a + 16 * i : b + 16 * (i - 32), i != 5);
  }
  copy_commit();
  copy_wait<0>();
  __syncwarp();
  u32 left[4], right[4];
  load_matrix(left, shared_memory + lane % 16 * 32 + lane / 16 * 16);
  load_matrix(right, shared_memory + 512 + lane % 8 * 32 + lane / 8 % 2 * 16);
  const u32 columns[2] = {right[0], right[1]};
  int sum[4] = {1, 1, 1, 1};
  mma_s8(sum, left, columns);
  for (unsigned i = 0; i < 4; ++i) d[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sum[i];
}
"""


@pytest.mark.parametrize("seed", SEEDS)
def test_copies_and_matrix_fragments(seed):
    a, b, d = multiply_case(seed)
    run(MULTIPLY, "multiply", block=(32,), shared=768, args=[a, b, d], seed=seed)
    a[2, 16:] = 0  # copy 5 wanted nothing
    assert torch.equal(d, (a.long() @ b.long().t() + 1).int())


def multiply_case(seed):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randint(-128, 128, (16, 32), generator=generator, dtype=torch.int8)
    b = torch.randint(-128, 128, (8, 32), generator=generator, dtype=torch.int8)
    return a, b, torch.zeros(16, 8, dtype=torch.int32)


def test_a_copy_that_is_not_awaited_shows():
    a, b, d = multiply_case(1)
    late = MULTIPLY.replace("copy_wait<0>();", "").rstrip("}\n") + "\n  copy_wait<0>();\n}\n"
    run(late, "multiply", block=(32,), shared=768, args=[a, b, d])
    a[2, 16:] = 0
    assert not torch.equal(d, (a.long() @ b.long().t() + 1).int())


@pytest.mark.parametrize("gone", ["copy_commit();", "copy_wait<0>();"])
def test_a_copy_that_outlives_its_thread(gone):
    with pytest.raises(EmulationError, match=r"ends before [1-9] of its asynchronous copies"):
        run(MULTIPLY.replace(gone, ""), "multiply", block=(32,), shared=768, args=list(multiply_case(1)))


def test_the_shape_of_a_kernel_is_checked():
    with pytest.raises(EmulationError, match="wrong number of arguments"):
        run(REVERSE, "reverse", block=(64,), args=[None])
    with pytest.raises(EmulationError, match="no such kernel"):
        run(REVERSE, "forward", block=(64,), args=[])
    with pytest.raises(EmulationError, match="1 to 1,024 threads"):
        run(REVERSE, "reverse", block=(2048,), args=[None, None, 0])
    with pytest.raises(AssertionError, match="a kernel takes pointers, long long and float"):
        run('extern "C" __global__ void narrow(int n) { (void)n; }', "narrow", block=(1,), args=[1])
    assert kernels_in(REVERSE) == ["reverse"]
