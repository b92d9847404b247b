"""How much memory a run takes: limits for Arrow, and the peak while it runs.

The limit is on anonymous and shared memory; pages of mapped files belong to the system, which takes
them back when it needs them. The peak resident size, mapped pages included, is reported beside it.
"""

from __future__ import annotations

import threading
from pathlib import Path

import pyarrow as pa

from stcli.config import available_memory, parse_bytes
from stcli.errors import InputError

DEFAULT_SHARE = 0.8
LEAST_BYTES = 256 * 10**6
INTERVAL_S = 0.02


def memory_limit(given: str | int | None) -> int:
    """The limit in bytes: as given, or 80 % of what is free.

    Raises:
        InputError: less than 256 MB.
    """
    limit = parse_bytes(given) if given is not None else int(DEFAULT_SHARE * available_memory())
    if limit < LEAST_BYTES:
        raise InputError(f"--memory-limit {given}: expected at least 256MB")
    return limit


def limit_arrow(given: str | int | None) -> int:
    """Check the limit and make Arrow return freed memory at once; the limit in bytes."""
    limit = memory_limit(given)
    pa.default_memory_pool().release_unused()
    return limit


class MemoryWatch:
    """Samples this process's memory in the background while a block runs."""

    def __init__(self) -> None:
        self.peak_private = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.peak_private = max(self.peak_private, private_bytes())

    def _sample(self) -> None:
        while not self._stop.wait(INTERVAL_S):
            self.peak_private = max(self.peak_private, private_bytes())

    def summary(self) -> dict[str, int]:
        """Peaks in bytes: anonymous and shared memory, and the whole resident set."""
        return {"peak_private": self.peak_private, "peak_resident": _status("VmHWM")}


def private_bytes() -> int:
    """Anonymous and shared memory of this process now."""
    return _status("RssAnon") + _status("RssShmem")


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    return 0
