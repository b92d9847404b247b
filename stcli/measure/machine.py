"""The machine that a measurement ran on: hardware, versions, and how busy other processes kept it."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stcli import __version__
from stcli.config import available_memory
from stcli.model.device import describe_device

INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")
"""CPU flags that decide which form of the int8 product can run."""


def describe_machine(device: torch.device) -> dict[str, Any]:
    """CPU, cores, instruction sets, memory, system and what the search runs on."""
    info = _cpu_info()
    flags = set((info.get("flags") or info.get("Features") or "").split())
    return {
        "cpu": info.get("model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "instruction_sets": [name for name in INSTRUCTION_SETS if name in flags],
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "free_memory_bytes": available_memory(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "device": describe_device(device),
    }


def versions() -> dict[str, str]:
    """Versions of what takes part in a measurement."""
    found = {
        "stcli": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
    }
    return found | ({"cuda": torch.version.cuda} if torch.version.cuda else {})


def _cpu_info() -> dict[str, str]:
    """The first processor in /proc/cpuinfo."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


class LoadWatch:
    """How many cores were busy while a block ran: ours, and those of other processes.

    Other processes are what the system says was busy, less our own time; the system counts in steps of 10 ms, so a
    block should take some tenths of a second. NaN where the system does not tell.
    """

    def __enter__(self) -> LoadWatch:
        self._start, self._busy, self._own = time.perf_counter(), _busy_seconds(), _own_seconds()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._start
        own = _own_seconds() - self._own
        self.own_cores = own / max(self.seconds, 1e-9)
        self.other_cores = max(_busy_seconds() - self._busy - own, 0.0) / max(self.seconds, 1e-9)


def _own_seconds() -> float:
    spent = os.times()
    return spent.user + spent.system


def _busy_seconds() -> float:
    """CPU seconds that all processes of the machine have used since it started."""
    try:
        with Path("/proc/stat").open(encoding="utf-8") as file:
            fields = [int(value) for value in file.readline().split()[1:9]]
    except (OSError, ValueError):
        return float("nan")
    user, nice, system, _idle, _iowait, irq, softirq, steal = fields
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
