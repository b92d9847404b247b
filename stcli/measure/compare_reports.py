"""Two benchmark reports side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stcli.errors import InputError
from stcli.measure.report import read_report
from stcli.measure.verdict import BUSY_CORES

SETTINGS = ("filter_column", "sample", "seed", "target_recall", "batch_size", "items", "truth")
"""Options of a report that decide, beside k, what was measured."""

SAME, LESS, MORE = "within noise", "down", "up"


def compare_reports(
    before: Path, after: Path, min_recall: float | None, max_slowdown: float | None
) -> tuple[dict[str, Any], list[str]]:
    """Settings by name: recall and throughput, each with whether it changed beyond noise.

    Recall changed if the two means differ by more than the root of the summed squares of their 95 % half-intervals;
    throughput if no run of one report is within the range of the other's runs.

    Returns:
        Part of the summary, and which thresholds are missed.

    Raises:
        InputError: they have no setting in common.
    """
    first, second = read_report(before), read_report(after)
    theirs = {run["name"]: run for run in second["runs"]}
    pairs = [(run, theirs[run["name"]]) for run in first["runs"] if run["name"] in theirs]
    if not pairs:
        names = ", ".join(run["name"] for run in first["runs"])
        raise InputError(f"{after}: has none of the settings of {before} ({names}); nothing to compare")
    recall = {old["name"]: recall_change(old["recall"], new["recall"]) for old, new in pairs}
    speed = {old["name"]: speed_change(old["queries_per_s"], new["queries_per_s"]) for old, new in pairs}
    told = {
        "recall": recall,
        "queries_per_s": speed,
        "latency_ms": _latency(first, second),
        "memory_bytes": _plain(first["memory_bytes"], second["memory_bytes"]),
        "index_bytes": _plain(first["index_bytes"], second["index_bytes"]),
        "failed_checks": {
            name: ", ".join(check["detail"] for check in report["checks"] if not check["ok"]) or "none"
            for name, report in (("before", first), ("after", second))
        },
        "warnings": _differences(first, second),
    }
    missed = []
    planned = second["runs"][0]["recall"]["mean"]
    if min_recall is not None and planned is not None and planned < min_recall:
        missed.append(f"{after}: planned recall is {planned:.4f}, below --min-recall {min_recall:g}")
    change = next(iter(speed.values()))
    lost = 1 - change["after"] / change["before"]
    if max_slowdown is not None and lost > max_slowdown and change["change"] == LESS:
        missed.append(f"{after}: planned throughput is down by {lost:.1%}, beyond --max-slowdown {max_slowdown:g}")
    return told, missed


def recall_change(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Two recalls as `mean_recall` gives them."""
    told = {"before": old["mean"], "after": new["mean"]}
    if any(part[name] is None for part in (old, new) for name in ("mean", "low", "high")):
        return told | {"change": "not defined"}
    noise = math.hypot(*((part["high"] - part["low"]) / 2 for part in (old, new)))
    difference = new["mean"] - old["mean"]
    return told | {"change": SAME if abs(difference) <= noise else MORE if difference > 0 else LESS}


def speed_change(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Two throughputs as `spread` gives them."""
    change = MORE if new["low"] > old["high"] else LESS if new["high"] < old["low"] else SAME
    return {"before": old["median"], "after": new["median"], "change": change}


def _latency(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    theirs = {line["batch_size"]: line["ms"]["p50"] for line in second["latency"]}
    return {
        f"p50 of batches of {line['batch_size']}": {"before": line["ms"]["p50"], "after": theirs[line["batch_size"]]}
        for line in first["latency"]
        if line["batch_size"] in theirs
    }


def _plain(old: Mapping[str, int], new: Mapping[str, int]) -> dict[str, Any]:
    """Counts that have no noise, those that changed."""
    return {name: {"before": old[name], "after": new[name]} for name in old if name in new and old[name] != new[name]}


def _settings(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """One line with the options that the two were measured with, where they differ; nothing if they are the same."""
    sides = [("--k", first["k"], second["k"])]
    sides += [(f"--{name.replace('_', '-')}", first["options"][name], second["options"][name]) for name in SETTINGS]
    named = [f"{name} ({_or_none(old)} and {_or_none(new)})" for name, old, new in sides if old != new]
    return [f"the settings differ, so the numbers may not compare: {', '.join(named)}"] if named else []


def _or_none(value: Any) -> str:
    return "none" if value is None else str(value)


def _differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """What else differs, and so may explain a change or forbid the comparison."""
    sides: Sequence[tuple[str, Any, Any]] = [
        ("artifact", first["artifact"]["fingerprint"][:12], second["artifact"]["fingerprint"][:12]),
        ("query table", first["queries"]["files"], second["queries"]["files"]),
        ("truth", first["truth"]["over"], second["truth"]["over"]),
        ("processor", first["machine"]["cpu"], second["machine"]["cpu"]),
        ("threads", first["machine"]["threads"], second["machine"]["threads"]),
        ("device", first["machine"]["device"], second["machine"]["device"]),
    ]
    told = _settings(first, second)
    for name, old, new in sides:
        if old != new:
            told.append(f"{name} differs" + (f": {old} and {new}" if isinstance(old, str | int) else ""))
    for name, report in (("before", first), ("after", second)):
        busy = report["load"]["other_cores"]
        if busy is None or busy > BUSY_CORES:
            told.append(f"the machine was busy {name} ({'unknown' if busy is None else f'{busy:.2f} cores'})")
    return told
