"""Joining the lists of a request, against plain dictionaries."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stcli.errors import TensorError
from stcli.ops import native
from stcli.ops.merge_lists import merge_lists

BACKENDS = ["torch", pytest.param("native", marks=pytest.mark.skipif(native.library() is None, reason="not built"))]
INF = float("inf")


def flat(lists: np.ndarray) -> np.ndarray:
    return lists.reshape(len(lists), lists.shape[1] * lists.shape[2])


def oracle(rows: np.ndarray, scores: np.ndarray, least: int) -> tuple[list, list]:
    """A dictionary for each request, written list by list."""
    all_rows, all_scores = [], []
    for line_rows, line_scores in zip(flat(rows), flat(scores), strict=True):
        first, best, count = {}, {}, {}
        for slot, (row, score) in enumerate(zip(line_rows.tolist(), line_scores.tolist(), strict=True)):
            if row >= 0:
                first.setdefault(row, slot)
                best[row] = max(best.get(row, -INF), score)
                count[row] = count.get(row, 0) + 1
        out_rows, out_scores = [-1] * line_rows.size, [-INF] * line_rows.size
        for row, slot in first.items():
            if count[row] >= least:
                out_rows[slot], out_scores[slot] = row, best[row]
        all_rows.append(out_rows)
        all_scores.append(out_scores)
    return all_rows, all_scores


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_example(backend):
    rows, scores = torch.tensor([[[7, 5], [5, 3]]]), torch.tensor([[[0.9, 0.2], [0.6, 0.1]]])
    found = merge_lists(rows, scores, backend=backend)
    assert found.rows.tolist() == [[7, 5, -1, 3]]
    torch.testing.assert_close(found.scores, torch.tensor([[0.9, 0.6, -INF, 0.1]]))
    found = merge_lists(rows, scores, everywhere=True, backend=backend)
    assert found.rows.tolist() == [[-1, 5, -1, -1]]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize(("lists", "width", "spread"), [(1, 5, 20), (2, 1, 2), (3, 40, 60), (12, 33, 2**31), (4, 0, 9)])
def test_equals_dictionaries(backend, everywhere, lists, width, spread):
    rng = np.random.default_rng(lists * 100 + width)
    rows = np.full((9, lists, width), -1)
    for line in rows.reshape(9 * lists, width):
        filled = int(rng.integers(0, width + 1))
        line[:filled] = rng.choice(max(spread, width), filled, replace=False) if spread < 1e6 else rng.integers(
            spread - 50, spread, 50)[:filled] + np.arange(filled) * 100  # fmt: skip
    scores = np.where(rows >= 0, rng.integers(-3, 3, rows.shape) / 2.0, -INF).astype(np.float32)
    scores[scores == 0] = -0.0
    found = merge_lists(torch.from_numpy(rows), torch.from_numpy(scores), everywhere=everywhere, backend=backend)
    expected_rows, expected_scores = oracle(rows, scores, lists if everywhere else 1)
    assert found.rows.tolist() == expected_rows
    assert found.scores.tolist() == expected_scores
    assert not np.signbit(found.scores.numpy()[found.scores.numpy() == 0]).any()


def test_shapes_are_checked():
    rows = torch.zeros(2, 3, 4, dtype=torch.int64)
    with pytest.raises(TensorError, match="scores: float32"):
        merge_lists(rows, torch.zeros(2, 3, 5))
