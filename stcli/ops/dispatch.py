"""Which implementation of an operation runs.

`torch` runs on any device and is the definition; `native` is the C++ library for the CPU; `auto` takes native for
CPU tensors when the library is there, and torch otherwise.
"""

from __future__ import annotations

import torch

from stcli.errors import DeviceError
from stcli.ops import native

BACKENDS = ("auto", "torch", "native")


def resolve(backend: str, tensor: torch.Tensor) -> str:
    """Name the implementation for tensors like `tensor`: "torch" or "native".

    Raises:
        DeviceError: the backend asked for cannot run here, or is unknown.
    """
    if backend not in BACKENDS:
        raise DeviceError(f"backend {backend!r} is unknown; choose one of {', '.join(BACKENDS)}")
    on_cpu = tensor.device.type == "cpu"
    if backend == "native":
        if not on_cpu:
            raise DeviceError(f"backend 'native' needs tensors on the CPU, got {tensor.device}; use --backend auto")
        if native.library() is None:
            raise DeviceError(
                f"backend 'native' is not built here ({native.why_missing()}); "
                "use --backend torch or reinstall with a C++ compiler"
            )
        return "native"
    if backend == "auto" and on_cpu and native.library() is not None:
        return "native"
    return "torch"
