"""Which device the work runs on, and how many threads it may use."""

from __future__ import annotations

from pathlib import Path

import torch

from stcli.errors import DeviceError
from stcli.ops import cuda, native


def choose_device(name: str) -> torch.device:
    """`auto` is the first GPU if torch can use one, else the CPU.

    Raises:
        DeviceError: the device is unknown, or torch cannot use it here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f"--device {name!r}: expected auto, cpu, cuda or cuda:<number>") from error
    if device.type not in ("cpu", "cuda"):
        raise DeviceError(f"--device {name!r}: expected auto, cpu, cuda or cuda:<number>")
    if device.type == "cuda" and not torch.cuda.is_available():
        why = _why_unusable()
        raise DeviceError(f"--device {name}: {why}; use --device cpu, or install a CUDA build of torch and a driver")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(f"--device {name}: this machine has {torch.cuda.device_count()} GPU(s), numbered from 0")
    return device


def choose_devices(name: str) -> tuple[torch.device, ...]:
    """The devices that the parts of a run are spread over: every GPU for `cuda:all`, else the one that is named.

    Raises:
        DeviceError: as `choose_device`.
    """
    if name != "cuda:all":
        return (choose_device(name),)
    choose_device("cuda")
    return tuple(torch.device("cuda", number) for number in range(torch.cuda.device_count()))


def free_bytes(device: torch.device) -> int:
    """Memory of a GPU that is free now."""
    return int(torch.cuda.mem_get_info(device)[0])


def why_no_gpu(name: str, device: torch.device) -> str | None:
    """Why `auto` fell back to the CPU, in words; None where it did not, or was not asked."""
    if name != "auto" or device.type == "cuda":
        return None
    return _why_unusable()


def device_warnings(name: str, device: torch.device) -> list[str]:
    """What will surprise its owner: a GPU that is there and not used, or one that runs without our kernels."""
    why = why_no_gpu(name, device)
    if why is not None and _driver_is_there():
        return [f"a GPU is there, but the CPU is used: {why}"]
    missing = cuda.why_not(device) if device.type == "cuda" else None
    return [] if missing is None else [f"{device}: torch's own operations run in place of the kernels: {missing}"]


def _why_unusable() -> str:
    return "torch was built without CUDA" if torch.version.cuda is None else "torch finds no usable GPU"


def _driver_is_there() -> bool:
    return Path("/proc/driver/nvidia/version").exists()


def limit_threads(threads: int | None) -> None:
    """Set the threads of the native operations (None: all cores)."""
    native.set_num_threads(threads)


def describe_device(device: torch.device, name: str | None = None) -> str:
    """`cpu (native, 2 threads)` or the name of the GPU; after `auto` as `name`, also why it is no GPU."""
    if device.type == "cuda":
        why = cuda.why_not(device)
        return f"{device} ({torch.cuda.get_device_name(device)}, {'kernels' if why is None else f'torch forms: {why}'})"
    form = "native" if native.library() is not None else f"torch, {native.why_missing()}"
    why = why_no_gpu(name or "cpu", device)
    return f"cpu ({form}, {native.num_threads()} threads{'' if why is None else f'; no GPU: {why}'})"
