import math

import pytest
import torch

from stcli.errors import TensorError
from stcli.ops import cuda
from stcli.ops.scan_cuda import OWN_SHARED_BYTES
from stcli.ops.take_best import orders, shared_bytes, take_best


def by_hand(rows, scores, ranks, k):
    """Sort the (score, rank) pairs of each line."""
    lines = []
    for line, values in zip(rows.tolist(), scores.tolist(), strict=True):
        filled = [(-value, ranks[row].item(), row) for row, value in zip(line, values, strict=True) if row >= 0]
        best = sorted(filled)[:k]
        empty = k - len(best)
        lines.append(
            ([row for _, _, row in best] + [-1] * empty, [-value for value, _, _ in best] + [-math.inf] * empty)
        )
    return [rows for rows, _ in lines], [scores for _, scores in lines]


@pytest.mark.parametrize(
    ("queries", "slots", "k", "values"),
    [(1, 1, 1, 9), (70, 132, 100, 10**6), (9, 40, 40, 3), (5, 30, 64, 2), (130, 7, 3, 4), (2, 3000, 2500, 50)],
)
def test_equals_a_sort(queries, slots, k, values, form):
    generator = torch.Generator().manual_seed(slots)
    rows = torch.stack([torch.randperm(slots * 2, generator=generator)[:slots] for _ in range(queries)])
    rows[torch.rand(rows.shape, generator=generator) < 0.2] = -1
    scores = torch.randint(-values, values, rows.shape, generator=generator) / 8.0
    scores[rows < 0] = -torch.inf
    ranks = torch.randperm(slots * 2, generator=generator)
    found = take_best(rows, scores, ranks, k=k, backend=form)
    expected_rows, expected_scores = by_hand(rows, scores, ranks, k)
    assert found.rows.tolist() == expected_rows
    assert found.scores.tolist() == expected_scores


def test_equal_scores_and_zeros_of_both_signs_go_by_rank(form):
    rows, ranks = torch.tensor([[0, 1, 2, 3]]), torch.tensor([7, 2**32 - 2, 0, 3])
    found = take_best(rows, torch.tensor([[0.0, -0.0, 0.0, -0.0]]), ranks, k=3, backend=form)
    assert found.rows.tolist() == [[2, 3, 0]]
    assert [math.copysign(1, score) for score in found.scores[0].tolist()] == [1, 1, 1]


def test_infinite_scores_are_scores(form):
    rows, ranks = torch.tensor([[-1, 4, 2, 0]]), torch.arange(5)
    scores = torch.tensor([[9.0, -torch.inf, torch.inf, -torch.inf]])
    found = take_best(rows, scores, ranks, k=5, backend=form)
    assert found.rows.tolist() == [[2, 0, 4, -1, -1]]


def test_nothing(form):
    none = torch.zeros(0, dtype=torch.int64)
    assert take_best(torch.zeros(0, 3).long(), torch.zeros(0, 3), none, k=2, backend=form).rows.shape == (0, 2)
    found = take_best(torch.full((2, 3), -1), torch.full((2, 3), -torch.inf), none, k=2, backend=form)
    assert found.rows.tolist() == [[-1, -1]] * 2
    found = take_best(torch.zeros(1, 0).long(), torch.zeros(1, 0), none, k=2, backend=form)
    assert found.scores.tolist() == [[-torch.inf] * 2]


def test_bad_arguments_are_named():
    with pytest.raises(TensorError, match=r"rows: numbers in -1 … 2 expected, got 3 … 3"):
        take_best(torch.tensor([[3]]), torch.zeros(1, 1), torch.arange(3), k=1)
    with pytest.raises(TensorError, match=r"scores: float32 \[B, M\] expected with M=1 \(from rows\)"):
        take_best(torch.tensor([[0]]), torch.zeros(1, 2), torch.arange(3), k=1)


def test_the_kernel_keeps_to_the_shared_memory_of_a_block(monkeypatch):
    """A launch asks for less than a block has, by what the kernel has of its own."""
    device = torch.device("cpu")
    for most in (99 << 10, 163 << 10, 227 << 10):
        monkeypatch.setattr(cuda, "most_shared_bytes", lambda device, most=most: most)
        slots = max(number for number in range(30_000) if orders(number, device))
        assert most - 2 * OWN_SHARED_BYTES < shared_bytes(slots) <= most - 1156
    monkeypatch.setattr(cuda, "most_shared_bytes", lambda device: 1 << 30)
    assert orders(65_535, device)
    assert not orders(65_536, device)
