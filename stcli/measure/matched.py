"""Comparing speeds at equal recall: the fastest setting that reaches it, and a value read between two settings."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

MEAN, EVERY_BAND = "mean", "every band"
"""What has to reach a recall: the mean over the queries, or the mean of each band of the pass rate."""

EXACT_NAME = "exact"
"""The setting of a contender that searches exactly, if it has one."""

EXACT = 0.999
"""Mean recall that counts as exact; float32 sums in another order swap a few items that all but tie."""


ROUGH = 1.25
"""Speeds of single runs that differ by less may change places."""


def reached(setting: Mapping[str, Any], criterion: str) -> float:
    """The recall of a setting by a criterion."""
    bands = [band["mean"] for band in setting["bands"] if band["queries"]]
    mean = setting["recall"]["mean"] or 0.0
    return min([mean, *bands]) if criterion == EVERY_BAND else mean


def fastest(settings: Sequence[Mapping[str, Any]], target: float, criterion: str) -> Mapping[str, Any] | None:
    """The fastest setting that reaches a recall."""
    good = [setting for setting in settings if reached(setting, criterion) >= target]
    return max(good, key=lambda setting: setting["queries_per_s"]["median"], default=None)


def interpolated(settings: Sequence[Mapping[str, Any]], target: float, criterion: str) -> float | None:
    """Queries a second at exactly this recall: a straight line, in the logarithm of the speed, between two settings.

    None if it lies outside the settings measured. Of several pairs, the faster.
    """
    points = [(reached(step, criterion), step["queries_per_s"]["median"]) for step in settings if step["step"]]
    found = []
    for (low, fast), (high, slow) in itertools.pairwise(points):
        if low < target <= high:
            share = (target - low) / (high - low)
            found.append(math.exp((1 - share) * math.log(fast) + share * math.log(slow)))
    return max(found, default=None)


def decisive(recalls: Sequence[float], speeds: Sequence[float], target: float) -> set[int]:
    """Numbers of the settings that may be the fastest to reach a recall, by a first rough speed of each."""
    good = [number for number, recall in enumerate(recalls) if recall >= target]
    least = max((speeds[number] for number in good), default=0.0) / ROUGH
    return {number for number in good if speeds[number] >= least}


def ratios(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, float] | None:
    """How many times faster ours is, turn by turn: each pair ran moments apart. A single run is set beside all."""
    mine, other = (setting["queries_per_s"]["runs"] for setting in (ours, theirs))
    once = min(len(mine), len(other)) == 1
    pairs = itertools.product(mine, other) if once else zip(mine, other, strict=False)
    values = sorted(first / second for first, second in pairs)
    if not values:
        return None
    middle = len(values) // 2
    median = values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) / 2
    return {"median": median, "low": values[0], "high": values[-1]}


def match(contenders: Sequence[Mapping[str, Any]], targets: Sequence[float], criteria: Sequence[str]) -> list[Any]:
    """Every contender at every target: `target`, `criterion` and `lines`; ours is the first contender.

    Exact search is compared among those that promise it: many clusters may reach 0.999 faster, and prove nothing.

    A line: `name`; `setting`, `recall`, `queries_per_s`, `queries`, `runs` and `ineligible` of the fastest setting that
    reaches it, or None; `interpolated`; `ratio`, how many times faster ours is.
    """
    tables = []
    for target in (*targets, EXACT):
        for criterion in criteria if target != EXACT else criteria[:1]:
            allowed = [_allowed(contender["settings"], target) for contender in contenders]
            best = [fastest(settings, target, criterion) for settings in allowed]
            lines = []
            for contender, settings, setting in zip(contenders, allowed, best, strict=True):
                if not settings:
                    continue
                line: dict[str, Any] = dict.fromkeys(
                    ("setting", "recall", "queries_per_s", "queries", "runs", "ineligible", "ratio")
                )
                line["name"] = contender["name"]
                line["interpolated"] = interpolated(settings, target, criterion)
                if setting is not None:
                    line |= {
                        "setting": setting["name"],
                        "recall": reached(setting, criterion),
                        "queries_per_s": setting["queries_per_s"]["median"],
                        "queries": setting["queries"],
                        "runs": len(setting["queries_per_s"]["runs"]),
                        "ineligible": setting["ineligible"],
                    }
                    if best[0] is not None and contender is not contenders[0]:
                        line["ratio"] = ratios(best[0], setting)
                lines.append(line)
            tables.append({"target": target, "criterion": criterion, "lines": lines})
    return tables


def _allowed(settings: Sequence[Mapping[str, Any]], target: float) -> list[Mapping[str, Any]]:
    return [setting for setting in settings if target != EXACT or setting["name"] == EXACT_NAME]
