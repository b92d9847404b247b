"""The checks that a report opens with, and what they say in one sentence: a wrong result shows at a glance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stcli.measure.matched import EXACT
from stcli.measure.measurements import ORIGINAL, PACKED, Measurements, asked_of
from stcli.measure.metrics import Quality, mean_recall

BUSY_CORES = 0.3
"""Cores kept busy by other processes above which timings are to be distrusted."""

HALF_ROUNDING = 2.0**-11
"""Relative rounding of a number stored as float16."""


def checks(
    found: Measurements,
    body: Mapping[str, Any],
    quality: Mapping[str, Sequence[Quality]],
    tolerance: Mapping[str, np.ndarray],
) -> list[dict[str, Any]]:
    """What must hold whatever the speed, so that a wrong result shows at a glance."""
    runs, planned = body["runs"], body["runs"][0]
    target = found.config.target_recall
    made = []

    def check(name: str, holds: bool, detail: str, about: str = "results") -> None:
        made.append({"name": name, "ok": bool(holds), "detail": detail, "about": about})

    ineligible = sum(run["ineligible"] for run in runs)
    check("Every result satisfies its filter", ineligible == 0, f"{ineligible:,} results do not satisfy their filter")
    hidden = found.hidden
    check("The filter hides nothing", hidden == 0, f"the bit matrix hides a true best item from {hidden:,} queries")
    incomplete = sum(run["incomplete"] for run in runs)
    check("Nobody gets too few", incomplete == 0, f"{incomplete:,} queries got fewer than min(k, eligible) results")
    repeated = sum(run["repeated"] for run in runs)
    check("No item comes twice", repeated == 0, f"{repeated:,} results stand in their list already")
    differs = sum(run["differs"] for run in runs)
    check("Repetitions agree", differs == 0, f"{differs:,} repetitions gave other rows")
    if found.model.embeddings is not None:
        share = _true_scores(found, tolerance)
        check(
            "Scores belong to their items", share > 0.999, f"{share:.2%} of the scores are those of the item returned"
        )
        exact = mean_recall(next(iter(quality.values()))[-1].recall)["mean"]
        holds = exact is None or exact > 0.9999
        check("Exact search is exact", holds, f"exact search has recall {_share(exact)} over the {PACKED}")
    others = _exact_others(found.against)
    if others:
        least = min(others)
        detail = f"another library's exact search has recall {least:.4f} by this truth"
        check("Others' exact search agrees with the truth", least >= EXACT, detail)
    mean, short = planned["recall"]["mean"], show_short(planned, target)
    check(
        "Recall reaches the target",
        reaches(planned, target),
        f"recall {_share(mean)} for a target of {target:g}" + (f", below it in band {short}" if short else ""),
        "recall",
    )
    busy = body["load"]["other_cores"]
    check(
        "The machine was quiet",
        busy is not None and busy <= BUSY_CORES,
        "the system does not tell how busy it was" if busy is None else f"other processes kept {busy:.2f} cores busy",
        "timing",
    )
    return made


def reaches(run: Mapping[str, Any], target: float) -> bool:
    """The mean recall reaches the target, and no band of the pass rate is below it beyond the noise of its sample."""
    mean = run["recall"]["mean"]
    return (mean is None or mean >= target) and all(band["high"] >= target for band in short_bands(run, target))


def short_bands(run: Mapping[str, Any], target: float) -> list[Mapping[str, Any]]:
    """The bands whose mean recall is below the target."""
    return [band for band in run["bands"] if band["mean"] is not None and band["mean"] < target]


def show_short(run: Mapping[str, Any], target: float) -> str:
    """The short bands in words, each with its recall and whether noise may explain it; empty if there are none."""
    return ", ".join(
        f"{band['band']} ({band['mean']:.4f}"
        + (f", within the noise of {band['queries']:,} queries)" if band["high"] >= target else ")")
        for band in short_bands(run, target)
    )


def _exact_others(against: Mapping[str, Any] | None) -> list[float]:
    """Recall of the exact settings of the others: an independent look at the truth and at the filters."""
    if against is None:
        return []
    contenders = [entry for workload in against["workloads"] for entry in workload["contenders"][1:]]
    settings = [setting for entry in contenders for setting in entry["settings"] if setting["name"] == "exact"]
    return [setting["recall"]["mean"] for setting in settings if setting["recall"]["mean"] is not None]


def verdict(body: Mapping[str, Any]) -> dict[str, str]:
    """What the report says first, in one sentence: `level` is wrong, poor, unsure or good, and `text`."""
    failed: dict[str, list[str]] = {about: [] for about in ("results", "recall", "timing")}
    for each in body["checks"]:
        if not each["ok"]:
            failed[each["about"]].append(each["detail"])
    planned = body["runs"][0]
    speed = f"{planned['queries_per_s']['median']:,.0f} queries/s"
    if failed["results"]:
        return {"level": "wrong", "text": f"Do not trust these results: {'; '.join(failed['results'])}."}
    if failed["recall"]:
        text = f"Too few of the right items are found: {'; '.join(failed['recall'])}."
        return {"level": "poor", "text": text}
    right = f"Results are right: recall@{body['k']} {_share(planned['recall']['mean'])} at {speed}"
    if failed["timing"]:
        return {"level": "unsure", "text": f"{right}, but distrust the timings: {failed['timing'][0]}."}
    return {"level": "good", "text": f"{right}, measured on a quiet machine."}


def _true_scores(found: Measurements, tolerance: Mapping[str, np.ndarray]) -> float:
    """Share of the eligible results of the exact setting whose score is the true score of the item returned."""
    name, truth = list(found.truths.items())[-1]
    number = len(found.arms) - 1
    results = found.arms[number].found
    true_scores = asked_of(found, truth, number)
    given = (results.rows.numpy() >= 0) & (true_scores > -np.inf)
    if not given.any():
        return 1.0
    allowed = tolerance[name][:, None]
    if name == ORIGINAL and found.model.manifest["embedding_dtype"] == "float16":
        lengths = np.linalg.norm(found.model.normalized(found.sample.vectors).numpy(), axis=1)
        allowed = allowed + HALF_ROUNDING * (lengths * truth.norms.max(1, initial=0))[:, None]
    with np.errstate(invalid="ignore"):
        right = np.abs(results.score_matrix.numpy() - true_scores) <= allowed
    return float(right[given].mean())


def _share(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.4f}"
