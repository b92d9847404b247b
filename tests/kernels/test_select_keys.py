"""Selecting and sorting keys, against Python's sort."""

import pytest
import torch

from stcli.ops.keys import EMPTY_KEY, make_keys, split_keys
from tests.emulation.emulate import COMPILER, WHY_MISSING
from tests.kernels import launches
from tests.kernels.launches import NO_KEY

pytestmark = pytest.mark.skipif(COMPILER is None, reason=WHY_MISSING)


def some_keys(generator: torch.Generator, count: int, capacity: int, style: str) -> torch.Tensor:
    """Different keys, `count` of them, in no order."""
    rows = torch.randperm(max(4 * count, 1), generator=generator)[:count]
    scores = {
        "random": torch.randn(count, generator=generator) * 100,
        "one_score": torch.full((count,), -0.0),
        "few_scores": torch.randint(-2, 3, (count,), generator=generator).float(),
        "far_rows": torch.randn(count, generator=generator).round(),
    }[style]
    keys = torch.full((capacity,), 99, dtype=torch.int64)
    keys[:count] = make_keys(scores, rows if style != "far_rows" else 2**32 - 2 - rows)
    return keys


@pytest.mark.parametrize("style", ["random", "one_score", "few_scores", "far_rows"])
@pytest.mark.parametrize("k", [1, 7, 100, 1000])
def test_the_best_stay(style, k):
    generator = torch.Generator().manual_seed(k)
    found = [0, 1, k - 1, k, k + 1, 2 * k + 3, 2500]
    kept = [0, 0, 0, k, min(k, 3), k, 0]
    capacity = 2500
    keys = torch.stack([some_keys(generator, count, capacity, style) for count in found])
    before, counts, kept = keys.clone(), torch.tensor(found), torch.tensor(kept)
    thresholds, redo = torch.full((len(found),), 5), torch.full((len(found),), 6)
    launches.select(keys, counts, kept, k, thresholds, redo, seed=k)
    assert redo.tolist() == [NO_KEY] * len(found)
    for b, count in enumerate(found):
        best = sorted(before[b, :count].tolist(), reverse=True)[:k]
        assert counts[b] == len(best)
        assert sorted(keys[b, : len(best)].tolist(), reverse=True) == best
        if b == 3 or count == 0:  # nothing new
            assert thresholds[b] == 5
        else:
            assert kept[b] == len(best)
            assert thresholds[b] == (best[-1] if len(best) == k else 5)
    expected = split_keys(
        torch.stack(
            [
                torch.tensor((sorted(line[:n].tolist(), reverse=True) + [EMPTY_KEY] * k)[:k])
                for line, n in zip(before, found, strict=True)
            ]
        )
    )
    sorted_ = launches.sort(keys, counts, k, seed=k)
    assert torch.equal(sorted_.rows, expected.rows)
    assert torch.equal(sorted_.scores, expected.scores)


def test_an_overflow_keeps_what_was_and_raises_the_bar():
    generator = torch.Generator().manual_seed(3)
    keys = torch.stack([some_keys(generator, 300, 300, "random") for _ in range(2)])
    before, counts, kept = keys.clone(), torch.tensor([5000, 300]), torch.tensor([40, 40])
    thresholds, redo = torch.full((2,), EMPTY_KEY), torch.zeros(2, dtype=torch.int64)
    launches.select(keys, counts, kept, 40, thresholds, redo)
    best = before.sort(dim=1, descending=True).values[:, 39]
    assert torch.equal(keys[0, :40], before[0, :40])
    assert counts.tolist() == kept.tolist() == [40, 40]
    assert thresholds.tolist() == [EMPTY_KEY, int(best[1])]
    assert redo.tolist() == [int(best[0]) - 1, NO_KEY]


@pytest.mark.slow
def test_ten_thousand():
    generator = torch.Generator().manual_seed(4)
    k, count = 10_000, 23_456
    keys = some_keys(generator, count, count, "random")[None]
    best = keys[0].sort(descending=True).values[:k]
    counts, kept = torch.tensor([count]), torch.tensor([0])
    thresholds, redo = torch.full((2, 1), EMPTY_KEY)
    launches.select(keys, counts, kept, k, thresholds, redo)
    assert int(thresholds) == int(best[-1])
    found = launches.sort(keys, counts, k, threads=1024)
    assert torch.equal(found.rows, split_keys(best[None]).rows)
    assert torch.equal(found.scores, split_keys(best[None]).scores)
