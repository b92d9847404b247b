"""Compiles a .cu file, as it is, for the CPU with `cuda_emulation.h`, and runs its kernels on CPU tensors."""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from stcli.ops.cuda import kernel_folder

HEADER = Path(__file__).with_name("cuda_emulation.h")
RUNNER = HEADER.with_suffix(".cpp")
KERNELS = kernel_folder()

COMPILER = shutil.which("g++") or shutil.which("c++")
WHY_MISSING = "no C++ compiler here, which the emulation needs"

_FLAGS = ["-std=gnu++17", "-fPIC", "-O2", "-fno-strict-aliasing", "-ffp-contract=off", "-fvisibility=hidden"]
_WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wno-unused-function", "-Wno-unknown-pragmas", "-Wno-attributes"]
_SANITIZE = ["-fsanitize=address", "-O1", "-g1", "-fno-omit-frame-pointer"]


class EmulationError(Exception):
    """A kernel did what a GPU does not allow: a deadlock, a divergent barrier, a write past its shared memory."""


def sanitizing() -> bool:
    """Whether this process was started to run kernels under AddressSanitizer (see `test_sanitized.py`)."""
    return os.environ.get("STCLI_EMULATION_SANITIZE") == "1"


def run(
    source: Path | str,
    kernel: str,
    *,
    grid: Sequence[int] = (1,),
    block: Sequence[int],
    args: Sequence[torch.Tensor | int | float | None],
    shared: int = 0,
    seed: int = 0,
) -> None:
    """Run one kernel over a grid.

    Args:
        source: a .cu file, or its text; `#include "..."` finds the headers of kernels/.
        kernel: the name of its `extern "C" __global__` function.
        grid, block: sizes, x first; missing ones are 1.
        args: contiguous CPU tensors go as pointers, whole numbers as long long, others as float, None as null.
        shared: bytes of dynamic shared memory.
        seed: draws the order of blocks and threads.

    Raises:
        EmulationError: saying which rule the kernel broke, and where.
    """
    library = load(source.read_text(encoding="utf-8") if isinstance(source, Path) else source)
    slots: list[ctypes.c_void_p | ctypes.c_longlong | ctypes.c_float] = []
    for argument in args:
        if argument is None:
            slots.append(ctypes.c_void_p(None))
        elif isinstance(argument, torch.Tensor):
            assert argument.is_contiguous()
            assert argument.device.type == "cpu"
            slots.append(ctypes.c_void_p(argument.data_ptr() or None))
        else:
            slots.append(ctypes.c_float(argument) if isinstance(argument, float) else ctypes.c_longlong(argument))
    shape = [*grid, *(1,) * (3 - len(grid)), *block, *(1,) * (3 - len(block))]
    problem = library.emulation_launch(
        kernel.encode(),
        (ctypes.c_longlong * 6)(*shape),
        ctypes.c_longlong(shared),
        (ctypes.c_void_p * len(slots))(*(ctypes.addressof(slot) for slot in slots)),
        ctypes.c_int(len(slots)),
        ctypes.c_uint64(seed),
    )
    if problem:
        raise EmulationError(f"{kernel}: {problem.decode()}")


def kernels_in(text: str) -> list[str]:
    """Names of the kernels of a source text."""
    return re.findall(r'extern "C" __global__ void\s*(?:__launch_bounds__\([^)]*\)\s*)?(\w+)\(', text)


@functools.cache
def load(text: str) -> ctypes.CDLL:
    """Compile a kernel text, or find what was made of it before."""
    names = kernels_in(text)
    assert names, 'no `extern "C" __global__ void name(` in the text'
    table = "".join(
        f'  if (strcmp(which, "{name}") == 0) {{\n'
        f'    if (count != emulation::count_arguments({name})) return "wrong number of arguments";\n'
        f"    const auto kernel = [](void** slots) {{ emulation::call({name}, slots); }};\n"
        f"    return emulation::launch(kernel, slots, shape, shared, seed);\n  }}\n"
        for name in names
    )
    whole = (
        f'#include "{HEADER}"\n#line 1 "kernel.cu"\n{text}\n'
        'extern "C" __attribute__((visibility("default"))) const char* emulation_launch(const char* which, '
        "const long long* shape, long long shared, void** slots, int count, uint64_t seed) {\n"
        f'{table}  return "no such kernel";\n}}\n'
    )
    command = [str(COMPILER), *_FLAGS, *_WARNINGS, *(_SANITIZE if sanitizing() else []), f"-I{KERNELS}"]
    runner = _made([*command, "-c"], RUNNER.read_text(encoding="utf-8"), f"-I{HEADER.parent}")
    library = ctypes.CDLL(str(_made([*command, "-shared"], whole, str(runner))))
    library.emulation_launch.restype = ctypes.c_char_p
    return library


def _made(command: list[str], text: str, *more: str) -> Path:
    """What a command makes of a C++ text: kept between runs, in a folder of the user, by a hash of all that goes in.

    A lock lets one of several processes of a test run compile it while the others wait.
    """
    headers = [HEADER, *sorted(KERNELS.glob("*.cuh"))]
    everything = "\0".join([*command, text, *more, *(path.read_text(encoding="utf-8") for path in headers)])
    folder = Path(tempfile.gettempdir()) / f"stcli-emulation-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / hashlib.sha256(everything.encode()).hexdigest()[:24]
    with Path(f"{path}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():
            return path
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            unit = Path(scratch) / "unit.cpp"
            unit.write_text(text, encoding="utf-8")
            done = subprocess.run(
                [*command, str(unit), *more, "-o", f"{scratch}/made"], capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise AssertionError(f"the kernel does not compile for the emulation:\n{done.stderr}")
            Path(scratch, "made").replace(path)
    return path
