"""Runs a kernel that reads one number too many; started by `test_sanitized.py`."""

import torch

from tests.emulation.emulate import run

TEXT = """
extern "C" __global__ void copy(const long long* in, long long* out, long long count) {
  for (long long i = threadIdx.x; i <= count; i += 32) out[i % count] = in[i];
}
"""

if __name__ == "__main__":
    run(TEXT, "copy", block=(32,), args=[torch.arange(40), torch.zeros(40, dtype=torch.int64), 40])
