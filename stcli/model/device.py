"""Which device the work runs on, and how many threads it may use."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from stcli.errors import DeviceError
from stcli.ops import cuda, native

ALL_GPUS = "cuda:all"
ONE = "auto, cpu, cuda or cuda:<number>"


def choose_device(name: str, expected: str = ONE) -> torch.device:
    """`auto` is the first GPU if torch can use one, else the CPU.

    Args:
        name: of the device.
        expected: what may be named, for the message.

    Raises:
        DeviceError: the device is unknown, or torch cannot use it here.
    """
    if name == ALL_GPUS:
        raise DeviceError(f"--device {name}: only retrieve works on several GPUs; expected {ONE}")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        return torch.device(name)
    # Torch has more kinds of devices, and takes the number of a GPU modulo 256.
    if not re.fullmatch(r"cuda(:[0-9]+)?", name, re.ASCII):
        raise DeviceError(f"--device {name!r}: is unknown; expected {expected}")
    count = _count_gpus(name)
    number = int(name[5:] or 0)
    if number >= count:
        known = "cuda:0" if count == 1 else f"cuda:0 … cuda:{count - 1}"
        raise DeviceError(f"--device {name}: is not on this machine; expected {known}, auto or cpu")
    return torch.device("cuda", number) if ":" in name else torch.device("cuda")


def choose_devices(name: str) -> tuple[torch.device, ...]:
    """The devices that the parts of a run are spread over: every GPU for `cuda:all`, else the one that is named.

    Raises:
        DeviceError: as `choose_device`.
    """
    if name != ALL_GPUS:
        return (choose_device(name, f"{ONE.replace(' or', ',')} or {ALL_GPUS}"),)
    return tuple(torch.device("cuda", number) for number in range(_count_gpus(name)))


def _count_gpus(name: str) -> int:
    """How many GPUs torch can use, at least one for a device so named.

    Raises:
        DeviceError: there is none.
    """
    if not torch.cuda.is_available():
        why = _why_unusable()
        raise DeviceError(f"--device {name}: {why}; use --device cpu, or install a CUDA build of torch and a driver")
    return torch.cuda.device_count()


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
