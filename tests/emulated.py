"""A launcher that runs the real kernels, as they are, on the host emulation of the device."""

from __future__ import annotations

from pathlib import Path

from tests.emulation.emulate import run


class Emulated:
    """Runs each launch of the CUDA forms on the emulation, in a thread order drawn by `seed`."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def launch(self, source: Path, kernel: str, grid, threads: int, shared_bytes: int, arguments) -> None:
        self.seed += 1
        run(source, kernel, grid=grid, block=(threads,), shared=shared_bytes, args=arguments, seed=self.seed)
