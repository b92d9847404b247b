"""The record of a run: its time budget, its rows, and the files that are written again after each of them."""

from __future__ import annotations

import html
import json
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from stcli.storage.atomic import partial_path

Result = TypeVar("Result")


@dataclass
class Record:
    """What was measured so far; on disk after every row, so that whatever ends the process costs no more than one.

    Attributes:
        folder: where report.json and report.html go.
        device: that runs.
        seconds: the time budget.
        start: of the budget, as `time.perf_counter` counts.
        machine: what it ran on.
        rows: measurements, each with `stage` and `name`.
        skipped: what was left out, and why.
        running: what runs now; in the files, what ran when the process ended, if it did not end by itself.
        failed: whether something was left out that should not have been.
        broken: why the device can no longer be used; empty while it can.
    """

    folder: Path
    device: torch.device
    seconds: float
    start: float = field(default_factory=time.perf_counter)
    machine: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    running: str = ""
    failed: bool = False
    broken: str = ""

    def left(self) -> float:
        """Seconds left of the budget, at least 0."""
        return max(self.seconds - (time.perf_counter() - self.start), 0)

    def add(self, stage: str, name: str, **values: Any) -> None:
        """Add a measurement and print it."""
        self.rows.append({"stage": stage, "name": name, **values})
        print(f"{stage:>10}  {name:<58} {show(values)}", flush=True)
        self.write()

    def fail(self, text: str) -> None:
        """Write down what should have run, and did not."""
        self.skipped.append(text)
        self.failed = True
        self.write()

    def attempt(self, name: str, work: Callable[[], Result], needs: float = 10) -> Result | None:
        """What `work` gives; None where the device is broken, fewer than `needs` seconds are left, or it fails.

        Whatever fails in it, for want of memory perhaps, is written down and costs nothing else.
        """
        if self.broken or self.left() < needs:
            self.skipped.append(f"{name}: {self.broken or f'{self.left():.0f} s left, it needs {needs:.0f}'}")
            self.write()
            return None
        before, self.running = self.running, name
        self.write()
        try:
            return work()
        except Exception as error:
            self.fail(f"{name}: failed with {error!r}"[:500])
            traceback.print_exc()
            return None
        finally:
            self._release(name)
            self.running = before
            self.write()

    def _release(self, name: str) -> None:
        """Give memory back. After an illegal access in a kernel not even that can be done, nor anything else."""
        if self.device.type != "cuda" or self.broken:
            return
        try:
            wait(self.device)
            torch.cuda.empty_cache()
        except Exception as error:
            self.broken = f"the device cannot be used since '{name}'"
            self.fail(f"{name}: left the device unusable: {error!r}"[:500])

    def write(self) -> None:
        """Write both files as they stand; each is whole at any time."""
        self.folder.mkdir(parents=True, exist_ok=True)
        data = {
            "machine": self.machine,
            "seconds": round(time.perf_counter() - self.start, 1),
            "running": self.running,
            "rows": self.rows,
            "skipped": self.skipped,
        }
        for name, text in (
            ("report.json", json.dumps(data, indent=1, default=str) + "\n"),
            ("report.html", page(data)),
        ):
            partial = partial_path(self.folder / name)
            partial.write_text(text, encoding="utf-8")
            partial.replace(self.folder / name)


def seconds_of(device: torch.device, work: Callable[[], Any], *, repeat: int = 5, most: float = 5.0) -> float:
    """Median seconds of `work` after one warm-up; fewer repetitions if they would take more than `most` seconds."""
    work()
    wait(device)
    begin = time.perf_counter()
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        work()
        wait(device)
        times.append(time.perf_counter() - start)
        if time.perf_counter() - begin > most:
            break
    return sorted(times)[len(times) // 2]


def wait(device: torch.device) -> None:
    """Wait for all work of the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def show(values: dict[str, Any]) -> str:
    """`ms=1.23 bytes=4096`."""
    return "  ".join(
        f"{key}={value:,.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in values.items()
    )


def page(data: dict[str, Any]) -> str:
    """One self-contained page."""
    parts = [
        "<!doctype html><meta charset=utf-8><title>stcli on a GPU</title><style>body{font:14px sans-serif;margin:2em}"
        "table{border-collapse:collapse;margin-bottom:2em}td,th{padding:2px 10px;border-bottom:1px solid #ccc;"
        "text-align:right}td:first-child,th:first-child{text-align:left}</style><h1>stcli on a GPU</h1>",
        _table([{"what": key, "value": value} for key, value in data["machine"].items()]),
    ]
    if data["running"]:
        parts.append(f"<p>Not finished: when this was written, it ran <b>{html.escape(data['running'])}</b>.")
    for stage in dict.fromkeys(row["stage"] for row in data["rows"]):
        rows = [
            {key: value for key, value in row.items() if key != "stage"}
            for row in data["rows"]
            if row["stage"] == stage
        ]
        parts += [f"<h2>{html.escape(stage)}</h2>", _table(rows)]
    if data["skipped"]:
        parts.append(
            "<h2>left out</h2><ul>" + "".join(f"<li>{html.escape(text)}" for text in data["skipped"]) + "</ul>"
        )
    return "".join(parts)


def _table(rows: list[dict[str, Any]]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    head = "".join(f"<th>{html.escape(column)}" for column in columns)
    lines = []
    for row in rows:
        cells = []
        for column in columns:
            value = row.get(column, "")
            cells.append(f"<td>{html.escape(f'{value:,.4g}' if isinstance(value, float) else str(value))}")
        lines.append("<tr>" + "".join(cells))
    return f"<table><tr>{head}{''.join(lines)}</table>"
