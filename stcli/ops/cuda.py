"""Compiles and launches the CUDA kernels of the operations; the only file that imports CuPy.

The sources (`kernels/*.cu`) are compiled by NVRTC when they are first launched, and what comes out is kept on disk:
`cubins.py`, not CuPy, whose options would flush subnormal numbers to zero. A launch goes to torch's current stream with
raw pointers, so it takes its place among torch's own kernels.

What a kernel is given: a tensor as a pointer (None as null), a whole number as `long long`, a float as `float`.
The operations launch through `launch`, whoever stands behind it: tests put an emulation of the device there, so that
the arguments, grids and buffers of every operation are exercised without a GPU.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from stcli.errors import DeviceError
from stcli.ops.cubins import compiled

Argument = torch.Tensor | int | float | None

LEAST_CAPABILITY = (8, 0)
"""The int8 `mma.m16n8k32` of the score kernels."""

UNASKED_SHARED_BYTES = 40 << 10
"""More dynamic shared memory than this must be asked for: a block may have 48 KB with what its kernel declares."""

MOST_BLOCKS = 2**31 - 1


class Launcher(Protocol):
    """Runs one kernel of one source file over a grid of blocks."""

    def launch(
        self,
        source: Path,
        kernel: str,
        grid: tuple[int, int, int],
        threads: int,
        shared_bytes: int,
        arguments: tuple[Argument, ...],
    ) -> None:
        """Start the kernel; its tensors are on one device and contiguous."""


_stand_in: Launcher | None = None


@contextmanager
def launching_with(launcher: Launcher) -> Iterator[None]:
    """Let `launcher` run the kernels, for tensors on any device; for tests."""
    global _stand_in
    before, _stand_in = _stand_in, launcher
    try:
        yield
    finally:
        _stand_in = before


def runs_on(device: torch.device) -> bool:
    """Whether kernels can be launched for tensors on `device`."""
    return why_not(device) is None


def why_not(device: torch.device) -> str | None:
    """Why kernels cannot be launched for tensors on `device`, in words; None if they can."""
    if _stand_in is not None:
        return None
    if device.type != "cuda":
        return f"the tensors are on {device}"
    return _why_missing() or _too_old(device)


@functools.cache
def _why_missing() -> str | None:
    try:
        import cupy
    except ImportError as error:
        return f"CuPy cannot be imported ({error}); install stcli[gpu], or stcli[gpu13] for CUDA 13"
    library = f"libnvrtc.so.{cupy.cuda.driver.get_build_version() // 1000}"
    try:
        try:
            cupy.cuda.nvrtc.getVersion()
        except Exception:  # whatever the loader of the library raises
            _load_from_wheels(library)
            cupy.cuda.nvrtc.getVersion()
    except Exception as error:
        why = " ".join(str(error).split())
        return f"NVRTC ({library}), which compiles the kernels, cannot be loaded ({why}); install nvidia-cuda-nvrtc"
    return None


def _load_from_wheels(library: str) -> None:
    """Load a library from the folders `nvidia/*/lib` that pip's wheels have, if it is in one.

    CuPy 13 asks the system's loader for it by its bare name, and CuPy 14 does where it finds no such folder beside
    itself; the loader then gives what the process has loaded already.
    """
    package = importlib.util.find_spec("nvidia")
    for folder in (package.submodule_search_locations if package else None) or ():
        for path in sorted(Path(folder).glob(f"*/lib/{library}")):
            ctypes.CDLL(str(path))
            return


@functools.cache
def _too_old(device: torch.device) -> str | None:
    capability = torch.cuda.get_device_capability(device)
    if capability >= LEAST_CAPABILITY:
        return None
    return "the GPU has compute capability {}.{}, the kernels need {}.{}".format(*capability, *LEAST_CAPABILITY)


def most_shared_bytes(device: torch.device) -> int:
    """Dynamic shared memory that a block may have; that of compute capability 8.0 where nobody says."""
    if device.type != "cuda":
        return 163 << 10
    return int(getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", 163 << 10))


def launch(
    source: str,
    kernel: str,
    blocks: int | tuple[int, int, int],
    threads: int,
    *arguments: Argument,
    shared_bytes: int = 0,
) -> None:
    """Launch a kernel for every block of a grid; nothing happens if the grid is empty.

    Args:
        source: file in the folder of the kernels.
        kernel: name of an `extern "C"` function in it.
        blocks: of the grid, or its three dimensions.
        threads: of a block.
        arguments: in the kernel's order; tensors on one device, contiguous.
        shared_bytes: dynamic shared memory of a block.

    Raises:
        DeviceError: kernels cannot run here.
    """
    grid = (blocks, 1, 1) if isinstance(blocks, int) else blocks
    if 0 in grid:
        return
    if grid[0] > MOST_BLOCKS or max(grid[1:]) > 65_535:
        raise DeviceError(f"{kernel}: a grid of {grid} blocks is too large; search fewer queries at once")
    tensors = [item for item in arguments if isinstance(item, torch.Tensor)]
    for tensor in tensors:
        if not tensor.is_contiguous() or tensor.device != tensors[0].device:
            raise DeviceError(
                f"{kernel}: contiguous tensors on one device expected, got {tensor.stride()} on {tensor.device}"
            )
    current_launcher().launch(kernel_folder() / source, kernel, grid, threads, shared_bytes, arguments)


def current_launcher() -> Launcher:
    """What runs the kernels: CuPy, or what `launching_with` has put in its place.

    Raises:
        DeviceError: kernels cannot run here.
    """
    return _stand_in or real_launcher()


@functools.cache
def kernel_folder() -> Path:
    """Where the kernel sources are: installed, or beside the package in a checkout.

    Raises:
        DeviceError: neither is there.
    """
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "_kernels", package.parent / "kernels"):
        if folder.is_dir():
            return folder
    raise DeviceError(f"no kernel sources in {package / '_kernels'} or {package.parent / 'kernels'}; reinstall stcli")


def flat_source(path: Path) -> str:
    """A source with its `#include "…"` files in place of the lines, each once.

    One text, so that the cache on disk, where a kernel is found by its text, notices a changed header.
    """
    seen: set[Path] = set()

    def expand(file: Path) -> str:
        seen.add(file)
        lines = []
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            included = re.match(r'\s*#\s*include\s+"([^"]+)"', line)
            if included is None:
                if not re.match(r"\s*#\s*pragma\s+once", line):
                    lines.append(line)
                continue
            header = file.parent / included[1]
            if header not in seen:
                lines += [f'#line 1 "{header.name}"', expand(header), f'#line {number + 1} "{file.name}"']
        return "\n".join(lines)

    return f'#line 1 "{path.name}"\n{expand(path)}\n'


@functools.cache
def real_launcher() -> Launcher:
    """The launcher that goes through CuPy.

    Raises:
        DeviceError: CuPy or NVRTC is not there.
    """
    missing = _why_missing()
    if missing:
        raise DeviceError(f"backend 'cuda' cannot run: {missing}; or use --backend torch")
    import cupy

    return _CupyLauncher(cupy, {})


@dataclass
class _CupyLauncher:
    """Launches through CuPy.

    Attributes:
        cupy: the module.
        functions: compiled, by (device, source, kernel), with the dynamic shared memory that was asked for.
        lock: held by the thread that compiles, or asks for more: what was asked for last is what holds.
    """

    cupy: Any
    functions: dict[tuple[int, Path, str], tuple[Any, int]]
    lock: threading.Lock = field(default_factory=threading.Lock)

    def launch(
        self,
        source: Path,
        kernel: str,
        grid: tuple[int, int, int],
        threads: int,
        shared_bytes: int,
        arguments: tuple[Argument, ...],
    ) -> None:
        device = next(item.device for item in arguments if isinstance(item, torch.Tensor))
        index = device.index if device.index is not None else torch.cuda.current_device()
        with self.cupy.cuda.Device(index), self._current_stream(index):
            with self.lock:
                function = self._function(index, source, kernel, shared_bytes)
            function(grid, (threads, 1, 1), tuple(map(_passed, arguments)), shared_mem=shared_bytes)

    def _current_stream(self, index: int) -> Any:
        """Torch's current stream of a device, as CuPy wants it: version 14 warns of the class that 13 has for it."""
        pointer = torch.cuda.current_stream(index).cuda_stream
        if hasattr(self.cupy.cuda.Stream, "from_external"):
            return self.cupy.cuda.Stream.from_external(_StreamPointer(pointer))
        return self.cupy.cuda.ExternalStream(pointer, index)

    def _function(self, index: int, source: Path, kernel: str, shared_bytes: int) -> Any:
        key = (index, source, kernel)
        function, allowed = self.functions.get(key, (None, UNASKED_SHARED_BYTES))
        if function is None:
            capability = torch.cuda.get_device_capability(index)
            path = compiled(self.cupy.cuda.nvrtc, flat_source(source), source.name, capability)
            function = self.cupy.RawModule(path=str(path)).get_function(kernel)
        if shared_bytes > allowed:
            function.max_dynamic_shared_size_bytes = allowed = shared_bytes
        self.functions[key] = (function, allowed)
        return function


@dataclass(frozen=True)
class _StreamPointer:
    """A stream in the CUDA stream protocol, for versions of torch whose streams do not speak it."""

    pointer: int

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.pointer


def _passed(item: Argument) -> Any:
    if item is None:
        return np.uint64(0)
    if isinstance(item, torch.Tensor):
        return np.uint64(item.data_ptr())
    return np.float32(item) if isinstance(item, float) else np.int64(item)
