"""A worker for the tests of processes and actors, which start fast since this imports no torch."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from stcli.errors import InputError


class Scribe:
    """A worker that notes what it does; told to, it dies or fails at a number, once or always."""

    def __init__(self, job: dict) -> None:
        self.folder, self.dies, self.fails, self.always = (job[key] for key in ("folder", "dies", "fails", "always"))

    def __call__(self, number: int) -> None:
        if number == self.fails:
            raise InputError(f"piece {number} is wrong")
        mark = Path(self.folder, "died")
        if number == self.dies and (self.always or not mark.exists()):
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        Path(self.folder, f"{number}.{time.monotonic_ns()}").touch()


def scribe_job(folder: Path, dies: int | None = None, fails: int | None = None, always: bool = False) -> dict:
    return {"folder": str(folder), "dies": dies, "fails": fails, "always": always}


def written(folder: Path) -> set[int]:
    return {int(path.name.split(".")[0]) for path in folder.iterdir() if path.name != "died"}
