"""The last order of the candidates, against Python's sort."""

import pytest
import torch

from tests.emulation.emulate import COMPILER, WHY_MISSING
from tests.kernels import launches

pytestmark = pytest.mark.skipif(COMPILER is None, reason=WHY_MISSING)

STYLES = ["random", "one_score", "few_scores", "far_apart"]


def some_candidates(seed: int, num_slots: int, style: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows of which some are missing, scores and ranks; the third of four lines is empty."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.stack([torch.randperm(2 * num_slots, generator=generator)[:num_slots] for _ in range(4)])
    rows[torch.rand(rows.shape, generator=generator) < torch.tensor([0.0, 0.3, 1.0, 0.9])[:, None]] = -1
    scores = torch.randn(rows.shape, generator=generator)
    if style == "one_score":
        scores.fill_(-0.0)
    elif style == "few_scores":
        scores = scores.round()
    elif style == "far_apart":
        far = torch.tensor([1e-30, 1.0, 8e37])  # a difference of two may be infinite
        scores *= far.repeat(num_slots)[:num_slots]
    scores[rows < 0] = torch.nan  # which nobody reads
    ranks = torch.randperm(2 * num_slots, generator=generator)
    return rows, scores, ranks if seed % 2 else 2**32 - 2 - ranks


def expect(rows: list[int], scores: list[float], ranks: torch.Tensor, k: int) -> tuple[list[int], list[float]]:
    """The best k of a line, in order."""
    filled = [(-score, int(ranks[row]), row) for row, score in zip(rows, scores, strict=True) if row >= 0]
    best = sorted(filled)[:k]
    empty = k - len(best)
    return [row for *_, row in best] + [-1] * empty, [-score for score, *_ in best] + [-torch.inf] * empty


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(("num_slots", "k", "threads"), [(1, 1, 32), (132, 100, 64), (700, 900, 64), (1500, 1000, 256)])
def test_equals_a_sort(num_slots, k, threads, style):
    for seed in range(2):
        rows, scores, ranks = some_candidates(seed, num_slots, style)
        found = launches.take_best(rows, scores, ranks, k, threads, seed)
        for line in range(4):
            expected = expect(rows[line].tolist(), scores[line].tolist(), ranks, k)
            assert (found.rows[line].tolist(), found.scores[line].tolist()) == expected


@pytest.mark.slow
def test_thirteen_thousand():
    rows, scores, ranks = some_candidates(1, 13_000, "few_scores")
    found = launches.take_best(rows, scores, ranks, 10_000, 1024)
    for line in range(4):
        expected = expect(rows[line].tolist(), scores[line].tolist(), ranks, 10_000)
        assert (found.rows[line].tolist(), found.scores[line].tolist()) == expected
