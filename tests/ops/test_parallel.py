"""The one place with threads in the native library."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from stcli.ops.cuda import kernel_folder

KERNELS = kernel_folder()

PROGRAM = """
#include <cstdio>
#include <new>
#include "parallel.h"
int main() {
  for (int threads : {1, 2, 5})
    for (int64_t bad : {0, 3, 99}) try {
        stcli::parallel_for(100, threads, [&](int64_t chunk, int) { if (chunk == bad) throw std::bad_alloc(); });
        return 1;
      } catch (const std::bad_alloc&) {
        std::puts("caught");
      }
}
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_what_a_thread_throws_reaches_the_caller(tmp_path):
    source = tmp_path / "main.cpp"
    source.write_text(PROGRAM)
    command = ["g++", "-std=c++17", "-pthread", f"-I{KERNELS}", str(source), "-o", str(tmp_path / "main")]
    subprocess.run(command, check=True)
    ran = subprocess.run([tmp_path / "main"], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["caught"] * 9
