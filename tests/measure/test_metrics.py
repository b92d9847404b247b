import numpy as np
import pytest

from stcli.filters.exact import Truth
from stcli.measure.metrics import (
    band_numbers,
    frontier,
    judge,
    mean_recall,
    percentiles,
    recall_by_band,
    spread,
    tie_tolerance,
)
from stcli.model.planner import BANDS

INF = np.inf


def truth_of(scores, eligible):
    scores = np.asarray(scores, float)
    rows = np.where(np.isneginf(scores), -1, np.arange(scores.size).reshape(scores.shape))
    return Truth(rows, scores, np.where(np.isneginf(scores), 0, 1.0), np.asarray(eligible), np.zeros((len(scores), 0)))


def judge_one(rows, true_scores, scores, eligible, tolerance=0.0):
    quality = judge(np.array([rows]), np.array([true_scores]), truth_of([scores], [eligible]), np.array([tolerance]))
    return {name: getattr(quality, name)[0] for name in ("recall", "short", "incomplete", "ineligible", "repeated")}


def test_two_of_three_found():
    found = judge_one([7, 8, 9], [3.0, 1.0, 0.5], [3.0, 2.0, 1.0], 10)
    assert found == {
        "recall": pytest.approx(2 / 3),
        "short": False,
        "incomplete": False,
        "ineligible": 0,
        "repeated": 0,
    }


def test_a_tie_with_the_last_true_one_counts():
    # Items 7 and 8 score 1.0 like the third true item, whichever of them the truth names.
    assert judge_one([5, 7, 8], [3.0, 1.0, 1.0], [3.0, 1.0, 1.0], 10)["recall"] == 1
    assert judge_one([5, 7, 8], [3.0, 1.0, 0.99], [3.0, 2.0, 1.0], 10)["recall"] == pytest.approx(2 / 3)
    assert judge_one([5, 7, 8], [3.0, 1.0, 0.99], [3.0, 2.0, 1.0], 10, tolerance=0.02)["recall"] == 1


def test_fewer_eligible_than_k():
    found = judge_one([4, 2, -1], [3.0, 1.0, -INF], [3.0, 1.0, -INF], 2)
    assert (found["recall"], found["short"], found["incomplete"]) == (1, True, False)
    found = judge_one([4, -1, -1], [3.0, -INF, -INF], [3.0, 1.0, -INF], 2)
    assert (found["recall"], found["short"], found["incomplete"]) == (0.5, True, True)


def test_nothing_eligible_has_no_recall():
    found = judge_one([-1, -1], [-INF, -INF], [-INF, -INF], 0)
    assert np.isnan(found["recall"])
    assert (found["short"], found["incomplete"], found["ineligible"]) == (True, False, 0)


def test_ineligible_and_repeated_results_do_not_count():
    found = judge_one([4, 4, 6], [3.0, 3.0, -INF], [3.0, 2.0, 1.0], 10)
    assert found == {"recall": pytest.approx(1 / 3), "short": True, "incomplete": True, "ineligible": 1, "repeated": 1}


def test_tolerance_covers_float32_sums():
    """A float32 sum in 16 lanes never leaves the tolerance; it is no more than 1e-5 of the lengths."""
    rng = np.random.default_rng(5)
    for dim in (1, 16, 100, 768):
        queries, items = rng.normal(size=(50, dim)).astype(np.float32), rng.normal(size=(50, dim)).astype(np.float32)
        lanes = np.zeros((50, 16), np.float32)
        for place in range(dim):
            lanes[:, place % 16] += queries[:, place] * items[:, place]
        exact = (queries.astype(float) * items).sum(1)
        norms = np.linalg.norm(items.astype(float), axis=1)[:, None]
        truth = Truth(np.zeros((50, 1), int), exact[:, None], norms, np.ones(50, int), np.zeros((50, 0)))
        allowed = tie_tolerance(truth, queries)
        assert (np.abs(lanes.sum(1, dtype=np.float32) - exact) <= allowed / 2).all()
        assert (allowed <= 1e-5 * np.linalg.norm(queries, axis=1) * norms[:, 0]).all()


def test_mean_recall_by_hand():
    found = mean_recall(np.array([1.0, 0.5, np.nan, 0.0]))
    # Standard deviation 0.5, so the standard error is 0.5 / sqrt(3) = 0.288675.
    assert found == {
        "queries": 3,
        "mean": 0.5,
        "low": 0.0,
        "high": 1.0,
        "lower_bound": pytest.approx(0.5 - 1.644854 * 0.288675, abs=1e-6),
        "worst_tenth": 0.0,
    }
    wide = mean_recall(np.tile([0.9, 1.0], 200))
    assert wide["low"] == pytest.approx(0.95 - 1.959964 * 0.05006262 / 20, abs=1e-6)
    assert wide["high"] == pytest.approx(0.95 + 1.959964 * 0.05006262 / 20, abs=1e-6)
    assert wide["worst_tenth"] == pytest.approx(0.9)


def test_mean_recall_of_none_and_of_one():
    assert mean_recall(np.array([np.nan]))["mean"] is None
    assert mean_recall(np.array([0.7])) == {
        "queries": 1,
        **dict.fromkeys(("mean", "low", "high", "lower_bound", "worst_tenth"), 0.7),
    }


def test_bands_are_by_eligible_share():
    eligible = np.array([1000, 100, 99, 20, 19, 5, 4, 0])
    numbers = band_numbers(eligible, np.array([False] + [True] * 7), 1000)
    assert [BANDS[number] for number in numbers] == [
        "no filter", "> 10 %", "2-10 %", "2-10 %", "0.5-2 %", "0.5-2 %", "< 0.5 %", "< 0.5 %",
    ]  # fmt: skip
    lines = recall_by_band(np.array([1, 0.8, 0.6, 0.4, 0.2, 0.2, np.nan, np.nan]), numbers)
    assert [(line["band"], line["queries"], line["mean"]) for line in lines] == [
        ("no filter", 1, 1.0),
        ("> 10 %", 1, 0.8),
        ("2-10 %", 2, 0.5),
        ("0.5-2 %", 2, 0.2),
        ("< 0.5 %", 0, None),
    ]


def test_frontier():
    points = [(0.9, 100.0), (0.95, 100.0), (0.95, 50.0), (1.0, 10.0), (1.0, 10.0), (0.5, 99.0)]
    assert frontier(points) == [False, True, False, True, True, False]
    assert frontier([]) == []


def test_spread_and_percentiles():
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "low": 1.0, "high": 3.0, "runs": [3.0, 1.0, 2.0]}
    assert percentiles([float(value) for value in range(101)]) == {"p50": 50.0, "p95": 95.0, "p99": 99.0}
