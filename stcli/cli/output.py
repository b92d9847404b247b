"""What the commands print: summaries on stdout, progress and warnings on stderr; and what they log."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stcli.cli.json_log import is_on_stderr, open_log
from stcli.errors import InputError
from stcli.events import tell, warn

HIDDEN = {"calibration": ("artifact", "k", "seed")}
"""Parts of a summary that only `--json` shows."""

NAMED_BY_DATA = ("columns", "features", "arrays", "tasks", "reads", "value_models", "unknown_values", "bytes")
"""Groups whose names are those of columns, arrays and files, printed as they are."""

RECORDED = ("counts", "items_per_s", "queries_per_s", "memory_bytes", "retries", "timings_s")
"""Parts of a summary that the last line of a log has."""


PROGRESS_INTERVAL_S = 1.0
"""Between two lines of a log about the same stage; the last one is always there."""


class Output:
    """Prints and logs for one command, as its options ask.

    Raises:
        InputError: `log_json` or `metrics` cannot be written.
    """

    def __init__(
        self, as_json: bool, quiet: bool, no_progress: bool, log_json: str | None = None, metrics: str | None = None
    ) -> None:
        self.as_json, self.quiet = as_json, quiet
        self.metrics = None if metrics is None else Path(metrics)
        if self.metrics is not None and (self.metrics.is_dir() or not self.metrics.absolute().parent.is_dir()):
            raise InputError(f"--metrics {metrics}: cannot be written; expected a file in a folder that is there")
        if log_json is not None:
            open_log(log_json)
        self._bars = not (quiet or no_progress or is_on_stderr()) and sys.stderr.isatty()
        self._told: tuple[str, float] = ("", 0.0)
        self._bar: Any = None
        self._stage = ""

    def progress(self, stage: str, done: int, total: int, unit: str) -> None:
        """One bar a stage, with rate and time left; nothing unless stderr is a terminal. And a line of the log."""
        now = time.monotonic()
        if done >= total or self._told[0] != stage or now - self._told[1] >= PROGRESS_INTERVAL_S:
            self._told = (stage, now)
            tell("progress", stage=stage, done=done, total=total, unit=unit)
        if not self._bars:
            return
        if stage != self._stage:
            from tqdm import tqdm

            self.close()
            self._stage = stage
            self._bar = tqdm(
                total=total, desc=f"{stage:>10}", unit=f" {unit}", unit_scale=True, dynamic_ncols=True, file=sys.stderr
            )
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """End the bar that is shown."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def warn(self, text: str) -> None:
        """One warning on stderr."""
        warn("warning", message=text)
        if not (self.quiet or is_on_stderr()):
            print(f"stcli: warning: {text}", file=sys.stderr)

    def summary(self, summary: Mapping[str, Any]) -> None:
        """The summary of a command: one JSON object, or a short table."""
        self.close()
        for text in summary.get("warnings", []):
            self.warn(text)
        tell("done", **{name: summary[name] for name in ("command", *RECORDED) if name in summary})
        if self.metrics is not None:
            self.metrics.write_text(json.dumps(summary, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
        if self.as_json:
            print(json.dumps(summary, ensure_ascii=False, default=str))
        elif not self.quiet:
            print_table(str(summary["command"]), rows_of(summary))


def rows_of(summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """A summary as (group, name, value) lines; the group is named on its first line only."""
    rows = []
    for key, value in summary.items():
        if key in ("command", "version", "options", "warnings") or value is None or value == {}:
            continue
        group = key.replace("_", " ")
        if not isinstance(value, Mapping) or "before" in value:
            rows.append((group, "", show(key, value, key)))
            continue
        for name, item in (_by_band(value) if key == "calibration" else value).items():
            if item is not None and name not in HIDDEN.get(key, ()):
                shown = name if key in NAMED_BY_DATA else name.replace("_", " ")
                rows.append((group, shown, show(name, item, key)))
                group = ""
    return rows


def _by_band(calibration: Mapping[str, Any]) -> dict[str, Any]:
    """The lists of a calibration, which have an entry for each band of the pass rate, as a line for each band."""
    from stcli.model.planner import BANDS

    told: dict[str, Any] = {name: item for name, item in calibration.items() if not isinstance(item, list)}
    for band, name in enumerate(BANDS):
        queries, probes, recall, least = (
            show(key, calibration[key][band], "") for key in ("queries", "probes", "recall", "lower_bound")
        )
        told[name] = f"{queries} queries, {probes} probes"
        if calibration["recall"][band] is not None:
            told[name] += f", recall {recall} ({least} or more)"
    return told


def show(name: str, value: Any, group: str) -> str:
    """A number with thousands separators, bytes with a unit, seconds with `s`; anything else as text."""
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, Mapping) and {"before", "after"} <= set(value):
        change = f", {value['change']}" if "change" in value else ""
        return f"{show(name, value['before'], group)} → {show(name, value['after'], group)}{change}"
    if isinstance(value, int) and ("bytes" in group or name.endswith("bytes")):
        return show_bytes(value)
    if isinstance(value, int | float) and group == "timings_s":
        return f"{value:,.2f} s"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, list | tuple):
        return " / ".join(show(name, item, group) for item in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key.replace('_', ' ')} {show(key, item, group)}" for key, item in value.items())
    text = str(value)
    return text[:16] if name == "fingerprint" else text


def show_bytes(count: int) -> str:
    """1.5 GB, 12.0 MB, 3 KB or 17 B."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"


def print_table(title: str, rows: list[tuple[str, str, str]]) -> None:
    """A table of groups, names and values on stdout."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE, show_header=False, pad_edge=False
    )
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(highlight=False, markup=False).print(table)
