"""Which implementation of an operation runs.

`torch` runs on any device and is the definition; `native` is the C++ library for the CPU, `cuda` the kernels for a GPU;
`auto` takes native for CPU tensors and cuda for tensors on a GPU when they are there, and torch otherwise.
"""

from __future__ import annotations

import torch

from stcli.errors import DeviceError
from stcli.ops import cuda, native

BACKENDS = ("auto", "torch", "native", "cuda")


def resolve(backend: str, tensor: torch.Tensor, *, kernel: bool = False) -> str:
    """Name the implementation for tensors like `tensor`: "torch", "native" or "cuda".

    Args:
        backend: one of BACKENDS.
        tensor: on the device of the operation.
        kernel: the operation has a CUDA form of its own; without one, `cuda` means torch on the GPU.

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
    if backend == "cuda":
        why = cuda.why_not(tensor.device)
        if why is not None:
            raise DeviceError(f"backend 'cuda' cannot run: {why}; or use --backend auto")
        return "cuda" if kernel else "torch"
    if backend == "auto" and kernel and tensor.device.type == "cuda" and cuda.runs_on(tensor.device):
        return "cuda"
    if backend == "auto" and on_cpu and native.library() is not None:
        return "native"
    return "torch"


def reads_values(form: str, tensor: torch.Tensor) -> bool:
    """Whether an operation may check values: on a GPU it may not, since the host would have to wait.

    Kernels follow values without asking. Arrays of an artifact are checked before a GPU has them
    (`stcli/storage/steering.py`); programs, probes and rows are within range as the operations before make them. Who
    calls an operation on a GPU with other values has to check them first.

    Args:
        form: from `resolve`.
        tensor: on the device of the operation.
    """
    return form != "cuda" or tensor.device.type == "cpu"
