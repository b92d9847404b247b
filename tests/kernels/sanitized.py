"""Runs tests, then a kernel that reads one number too many; `test_sanitized.py` starts it under AddressSanitizer."""

import sys

import pytest
import torch

from tests.emulation.emulate import run

TOO_FAR = """
extern "C" __global__ void copy(const long long* in, long long* out, long long count) {
  for (long long i = threadIdx.x; i <= count; i += 32) out[i % count] = in[i];
}
"""

if __name__ == "__main__":
    print(f"pytest: exit code {int(pytest.main(sys.argv[1:]))}", flush=True)
    run(TOO_FAR, "copy", block=(32,), args=[torch.arange(40), torch.zeros(40, dtype=torch.int64), 40])
    print("nothing was found", flush=True)
