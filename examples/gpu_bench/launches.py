"""The kernels of an operation one by one: time, bytes and operations of each, and what these are of the ceilings."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gpu_bench.record import Record, wait
from stcli.ops import cuda

Cost = dict[str, float]
"""What is needed at least: `bytes` of memory, and int8 `ops`."""

SELECTING = "select_keys.cu"


@dataclass
class Timed:
    """A launcher that measures each launch on the device before it passes it on to the real one."""

    real: cuda.Launcher
    events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = field(default_factory=list)
    bytes: dict[str, list[torch.Tensor]] = field(default_factory=lambda: defaultdict(list))

    def launch(
        self,
        source: Path,
        kernel: str,
        grid: tuple[int, int, int],
        threads: int,
        shared_bytes: int,
        arguments: tuple[cuda.Argument, ...],
    ) -> None:
        """Launch between two events."""
        if source.name == SELECTING:
            self.bytes[kernel].append(bytes_of_selection(kernel, arguments))
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        self.real.launch(source, kernel, grid, threads, shared_bytes, arguments)
        end.record()
        self.events.append((kernel, start, end))

    def milliseconds(self) -> dict[str, float]:
        """Of each kernel in all."""
        found: dict[str, float] = defaultdict(float)
        for kernel, start, end in self.events:
            found[kernel] += start.elapsed_time(end)
        return dict(found)


def bytes_of_selection(kernel: str, arguments: tuple[cuda.Argument, ...]) -> torch.Tensor:
    """Bytes that a kernel of select_keys.cu has to move: each gathered key once, and all else that it is given.

    How many keys there are, is known to the device alone, and only before the launch. Further reads of the same keys
    come from the second-level cache.
    """
    keys, counts, *others = (item for item in arguments if isinstance(item, torch.Tensor))
    filled = counts.clamp(max=keys.shape[1])
    if kernel == "select_keys":  # a query is left alone with no more keys than may be sorted
        most = arguments[4]
        assert isinstance(most, int)
        filled = filled * (counts > most)
    return 8 * filled.sum() + sum(item.numel() * item.element_size() for item in others)


def measure_launches(
    record: Record, name: str, work: Callable[[], Any], costs: dict[str, Cost], ceilings: dict[str, float]
) -> None:
    """The kernels of an operation, each with its share of the time that all of them take; and of selecting in all.

    Args:
        record: takes the rows.
        name: of the operation.
        work: runs it.
        costs: by how the names of the kernels begin that share it.
        ceilings: of `measure_ceilings`.
    """
    timed = Timed(cuda.current_launcher())
    with cuda.launching_with(timed):
        work()
    wait(record.device)
    found = timed.milliseconds()
    in_all = sum(found.values()) or 1
    selecting = sum(found[kernel] for kernel in timed.bytes)
    if selecting:
        record.add("selection", name, ms=selecting, share=selecting / in_all)
    for kernel, ms in found.items():
        if kernel in timed.bytes:
            own = {"bytes": float(sum(timed.bytes[kernel]))}
        else:
            own = next((cost for begin, cost in costs.items() if kernel.startswith(begin)), {})
        record.add("kernels", f"{name}: {kernel}", ms=ms, share=ms / in_all, **shares(own, ms / 1e3, ceilings))


def shares(cost: Cost, seconds: float, ceilings: dict[str, float]) -> dict[str, float]:
    """Bytes and operations, and what they are of the measured ceilings."""
    found = dict(cost)
    for what, ceiling in (("bytes", "copy"), ("ops", "int8")):
        if what in cost and ceiling in ceilings:
            found[f"of_{ceiling}"] = cost[what] / seconds / ceilings[ceiling]
    return found
