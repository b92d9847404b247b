"""Loads the C++ library of the CPU operations, if it was built, and holds its thread count.

The library is an optional extension with a plain C interface (`kernels/*.cpp`), called through
ctypes, so that the interpreter lock is released during a call. Without it every operation runs in
its torch form.
"""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path

import torch

_num_threads: int | None = None


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    folder = Path(__file__).resolve().parent.parent
    if os.environ.get("STCLI_NO_NATIVE") == "1":
        return None, "STCLI_NO_NATIVE=1 is set"
    for path in sorted(folder.glob("_native*.so")):
        try:
            return ctypes.CDLL(str(path)), ""
        except OSError as error:
            return None, str(error)
    return None, f"no _native*.so in {folder}"


def library() -> ctypes.CDLL | None:
    """The loaded library, or None."""
    return _load()[0]


def why_missing() -> str:
    """Why `library()` is None, in words."""
    return _load()[1]


def num_threads() -> int:
    """Threads that a native call uses; all cores that this process may run on unless set."""
    return _num_threads if _num_threads is not None else len(os.sched_getaffinity(0))


def set_num_threads(count: int | None) -> None:
    """Set the threads of native calls; None means all cores. Results never depend on it."""
    global _num_threads
    _num_threads = count


def pointer(tensor: torch.Tensor | None) -> ctypes.c_void_p:
    """The address of a contiguous CPU tensor (or null), for a native call."""
    if tensor is None:
        return ctypes.c_void_p(None)
    assert tensor.is_contiguous()
    assert tensor.device.type == "cpu"
    return ctypes.c_void_p(tensor.data_ptr())


def call(function: str, *arguments: torch.Tensor | int | float | None) -> None:
    """Call a function that returns 0, or 1 where memory ran out.

    Args:
        function: its name in the library.
        arguments: CPU tensors go as addresses (a copy's if not contiguous), None as a null one,
            whole numbers as int64, others as double.

    Raises:
        MemoryError: memory ran out.
    """
    kept = [item.contiguous() if isinstance(item, torch.Tensor) else item for item in arguments]
    passed = [
        pointer(item)
        if item is None or isinstance(item, torch.Tensor)
        else ctypes.c_double(item)
        if isinstance(item, float)
        else ctypes.c_int64(item)
        for item in kept
    ]
    if getattr(library(), function)(*passed):
        raise MemoryError(f"{function}: out of memory")
