"""How good results are against the truth, and how to say it: recall, intervals, bands, percentiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from stcli.filters.exact import Truth
from stcli.model.planner import BANDS, bands_of

TWO_SIDED_95, ONE_SIDED_95 = 1.959964, 1.644854
"""Quantiles of the normal distribution."""


@dataclass(frozen=True)
class Quality:
    """What is right and wrong with the results of B queries.

    Attributes:
        recall: float64 [B], share of the true best min(k, eligible) that was found; NaN if no item is eligible.
        short: bool [B], fewer than k results.
        incomplete: bool [B], fewer than min(k, eligible) results, so some were missed that are there.
        ineligible: int64 [B], results that do not satisfy the filter.
        repeated: int64 [B], results that stand in the line already.
    """

    recall: np.ndarray
    short: np.ndarray
    incomplete: np.ndarray
    ineligible: np.ndarray
    repeated: np.ndarray


def tie_tolerance(truth: Truth, queries: np.ndarray) -> np.ndarray:
    """How far below the k-th true score a result's score may lie and still count as tied with it; float64 [B].

    Results are ranked by a float32 sum over 16 lanes. Its error is at most D / 16 + 6 roundings of 2^-24 each, times
    the lengths of query and item; two scores are compared, so twice that.

    Args:
        truth: of the queries.
        queries: float [B, D], as they were scored.
    """
    roundings = queries.shape[1] / 16 + 6
    lengths = np.linalg.norm(queries.astype(np.float64), axis=1) * truth.norms.max(1, initial=0)
    return 2 * roundings * 2.0**-24 * lengths


def judge(rows: np.ndarray, true_scores: np.ndarray, truth: Truth, tolerance: np.ndarray) -> Quality:
    """Compare results with the truth; a result that ties with the last true one counts as found.

    Args:
        rows: int64 [B, k], the results, -1 in empty slots.
        true_scores: float64 [B, k], their true scores, -inf where the item is not eligible.
        truth: the best min(k, eligible) of each query.
        tolerance: float64 [B], see `tie_tolerance`.
    """
    k = truth.rows.shape[1]
    given = rows >= 0
    repeated = given & _stands_before(rows)
    wanted = np.minimum(truth.eligible, k)
    last = truth.scores[np.arange(len(rows)), np.maximum(wanted - 1, 0)]
    found = given & ~repeated & (true_scores > -np.inf) & (true_scores >= (last - tolerance)[:, None])
    with np.errstate(invalid="ignore"):
        recall = np.where(wanted > 0, np.minimum(found.sum(1), wanted) / wanted, np.nan)
    counts = (given & ~repeated).sum(1)
    return Quality(
        recall=recall,
        short=counts < k,
        incomplete=counts < wanted,
        ineligible=(given & (true_scores == -np.inf)).sum(1),
        repeated=repeated.sum(1),
    )


def _stands_before(rows: np.ndarray) -> np.ndarray:
    """Whether the same row stands further left in the line; bool, the shape of rows."""
    order = np.argsort(rows, axis=1, kind="stable")
    ordered = np.take_along_axis(rows, order, 1)
    same = np.zeros(rows.shape, bool)
    same[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    result = np.zeros(rows.shape, bool)
    np.put_along_axis(result, order, same, 1)
    return result


def mean_recall(recall: np.ndarray) -> dict[str, Any]:
    """Mean of the defined values with its normal 95 % interval, and the mean of the worst tenth.

    Args:
        recall: float64 [B], NaN where nothing is eligible.

    Returns:
        `queries`, `mean`, `low` and `high` (two-sided 95 %), `lower_bound` (one-sided 95 %), `worst_tenth`; all but
        the first None without a defined value. With one value the interval is the value.
    """
    values = np.sort(recall[~np.isnan(recall)])
    if not len(values):
        return {"queries": 0, **dict.fromkeys(("mean", "low", "high", "lower_bound", "worst_tenth"))}
    mean = float(values.mean())
    error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
    return {
        "queries": len(values),
        "mean": mean,
        "low": max(mean - TWO_SIDED_95 * error, 0.0),
        "high": min(mean + TWO_SIDED_95 * error, 1.0),
        "lower_bound": max(mean - ONE_SIDED_95 * error, 0.0),
        "worst_tenth": float(values[: max(len(values) // 10, 1)].mean()),
    }


def band_numbers(eligible: np.ndarray, filtered: np.ndarray, num_items: int) -> np.ndarray:
    """Number in `BANDS` of each query, by its share of *eligible* items; int64 [B]."""
    return bands_of(torch.from_numpy(eligible), torch.from_numpy(filtered), num_items).numpy()


def recall_by_band(recall: np.ndarray, bands: np.ndarray) -> list[dict[str, Any]]:
    """`mean_recall` of the queries in each band, in the order of `BANDS`."""
    return [{"band": name, **mean_recall(recall[bands == number])} for number, name in enumerate(BANDS)]


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, smallest, largest and all values of some repetitions."""
    return {
        "median": float(np.median(values)),
        "low": float(min(values)),
        "high": float(max(values)),
        "runs": [float(value) for value in values],
    }


def percentiles(values: Sequence[float], points: Sequence[int] = (50, 95, 99)) -> dict[str, float]:
    """`p50`, `p95`, `p99` of at least one value, with linear interpolation."""
    return {f"p{point}": float(np.percentile(values, point)) for point in points}


def frontier(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Which points (recall, throughput) no other point beats in one coordinate and equals or beats in the other."""
    return [
        not any(
            other != point and other[0] >= point[0] and other[1] >= point[1]
            for place, other in enumerate(points)
            if place != number
        )
        for number, point in enumerate(points)
    ]


def number_or_none(value: float) -> float | None:
    """A number for JSON, which knows no NaN."""
    return None if np.isnan(value) else float(value)
