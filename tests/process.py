"""`python -m stcli` as a process of its own, from any folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import stcli

PYTHONPATH = str(Path(stcli.__file__).parent.parent)
"""So that a checkout which is not installed is found, too."""


def start(*words: object, python: tuple[object, ...] = (), cwd: Path | None = None) -> subprocess.Popen[str]:
    """Start a command with both streams caught; `python` may have a program (-c) to run instead of `-m stcli`."""
    program = () if "-c" in python else ("-m", "stcli")
    command = [sys.executable, *map(str, (*python, *program, *words))]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": PYTHONPATH},
        cwd=cwd,
    )


def finish(*words: object, python: tuple[str, ...] = (), cwd: Path | None = None) -> tuple[int, str, str]:
    """Run a command to its end: (exit code, stdout, stderr)."""
    running = start(*words, python=python, cwd=cwd)
    out, err = running.communicate()
    return running.returncode, out, err
