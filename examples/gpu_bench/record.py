"""The record of a run: its time budget, its rows, and the files that are written again after each stage."""

from __future__ import annotations

import html
import json
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch


@dataclass
class Record:
    """What was measured so far.

    Attributes:
        folder: where report.json and report.html go.
        device: that runs.
        seconds: the time budget.
        machine: what it ran on.
        rows: measurements, each with `stage` and `name`.
        skipped: what was left out, and why.
    """

    folder: Path
    device: torch.device
    seconds: float
    machine: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    start: float = field(default_factory=time.perf_counter)

    def left(self) -> float:
        """Seconds left of the budget."""
        return self.seconds - (time.perf_counter() - self.start)

    def add(self, stage: str, name: str, **values: Any) -> None:
        """Add a measurement and print it."""
        self.rows.append({"stage": stage, "name": name, **values})
        print(f"{stage:>10}  {name:<58} {show(values)}", flush=True)

    @contextmanager
    def guard(self, name: str) -> Iterator[None]:
        """What fails in here, for want of memory perhaps, is written down and costs nothing else."""
        try:
            yield
        except Exception as error:
            self.skipped.append(f"{name}: failed with {error!r}"[:500])
            traceback.print_exc()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @contextmanager
    def stage(self, name: str, needs: float) -> Iterator[Callable[[], bool]]:
        """A stage that is only worth starting with `needs` seconds left; whatever fails in it is written down.

        Yields a function that tells whether there is still time for one more measurement of the stage.
        """
        with self.guard(name):
            if self.left() < needs:
                self.skipped.append(f"{name}: {self.left():.0f} s left, it needs {needs:.0f}")
                yield lambda: False
            else:
                yield lambda: self.left() > needs / 4
        self.write()

    def write(self) -> None:
        """Write both files as they stand."""
        self.folder.mkdir(parents=True, exist_ok=True)
        data = {
            "machine": self.machine,
            "seconds": round(time.perf_counter() - self.start, 1),
            "rows": self.rows,
            "skipped": self.skipped,
        }
        (self.folder / "report.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        (self.folder / "report.html").write_text(page(data), encoding="utf-8")


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
