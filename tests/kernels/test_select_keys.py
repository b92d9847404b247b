"""Selecting and sorting keys, against Python's sort."""

import pytest
import torch

from stcli.ops.keys import EMPTY_KEY, make_keys, split_keys
from stcli.types import Candidates
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


def expect(keys: list[int], k: int) -> Candidates:
    """The best k of a line, in order."""
    return split_keys(torch.tensor([(sorted(keys, reverse=True) + [EMPTY_KEY] * k)[:k]]))


@pytest.mark.parametrize("style", ["random", "one_score", "few_scores", "far_rows"])
@pytest.mark.parametrize(("k", "room"), [(1, 400), (7, 0), (100, 2500), (1000, 1200)])
def test_the_best_stay(style, k, room):
    generator = torch.Generator().manual_seed(k)
    found = [0, 1, k - 1, k, k + 1, 2 * k + 3, 2500]
    keys = torch.stack([some_keys(generator, count, 2500, style) for count in found])
    lines = [line[:count].tolist() for line, count in zip(keys, found, strict=True)]
    counts = torch.tensor(found)
    thresholds, spare, redo = torch.full((3, len(found)), EMPTY_KEY)
    launches.select(keys, counts, k, thresholds, spare, redo, seed=k, room=room)
    assert redo.tolist() == [NO_KEY] * len(found)
    sorted_ = launches.sort(keys, counts, k, seed=k)
    for b, line in enumerate(lines):
        count = int(counts[b])
        if len(line) <= launches.most_for(k):
            assert count == len(line)
        else:
            assert k <= count <= launches.most_for(k)
        assert thresholds[b] == EMPTY_KEY
        assert sorted(keys[b, :count].tolist()) == sorted(line)[len(line) - count :]
        best = expect(line, k)
        assert torch.equal(sorted_.rows[b], best.rows[0])
        assert torch.equal(sorted_.scores[b], best.scores[0])


def test_an_overflow_raises_the_bar():
    generator = torch.Generator().manual_seed(3)
    keys = torch.stack([some_keys(generator, 300, 300, "random") for _ in range(2)])
    before, counts = keys.clone(), torch.tensor([5000, 300])
    thresholds, spare, redo = torch.full((3, 2), EMPTY_KEY)
    launches.select(keys, counts, 40, thresholds, spare, redo)
    assert counts[0] == 0
    assert thresholds[0] == EMPTY_KEY
    assert 40 <= int((before[0] > redo[0]).sum()) <= launches.most_for(40)
    assert redo[1] == NO_KEY
    assert 40 <= counts[1] <= launches.most_for(40)


def test_a_threshold_that_was_too_high_is_taken_back():
    """Twice: then there is none, and fewer keys than are wanted are all that there are."""
    keys, counts = torch.zeros(4, 50, dtype=torch.int64), torch.tensor([0, 9, 0, 9])
    keys[:, :9] = torch.arange(9) + 1000
    thresholds, spare, redo = (
        torch.tensor([900, 900, EMPTY_KEY, EMPTY_KEY]),
        torch.arange(4) + 500,
        torch.zeros(4).long(),
    )
    launches.select(keys, counts, 10, thresholds, spare, redo)
    assert redo.tolist() == [500, 501, NO_KEY, NO_KEY]
    assert thresholds.tolist() == [500, 501, EMPTY_KEY, EMPTY_KEY]
    assert spare.tolist() == [EMPTY_KEY, EMPTY_KEY, 502, 503]
    assert counts.tolist() == [0, 0, 0, 9]
    launches.select(keys, counts, 10, thresholds, spare, redo)
    assert redo.tolist() == [EMPTY_KEY, EMPTY_KEY, NO_KEY, NO_KEY]
    launches.select(keys, counts, 10, thresholds, spare, redo)
    assert redo.tolist() == [NO_KEY] * 4
    assert counts.tolist() == [0, 0, 0, 9]


@pytest.mark.parametrize("room", [0, 150, 300])
def test_a_sample_gives_thresholds_alone(room):
    generator = torch.Generator().manual_seed(5)
    found = [0, 39, 40, 300, 5000]
    keys = torch.stack([some_keys(generator, min(count, 300), 300, "random") for count in found])
    before, counts = keys.clone(), torch.tensor(found)
    thresholds = torch.tensor([EMPTY_KEY, 77, 78, EMPTY_KEY, 79])
    spare = torch.full((5,), 7)
    launches.raise_thresholds(keys, counts, 40, thresholds, spare, seed=room, room=room)
    assert torch.equal(keys, before)
    assert counts.tolist() == [0] * 5
    assert spare.tolist() == [EMPTY_KEY, EMPTY_KEY, 78, EMPTY_KEY, 79]
    assert thresholds[:2].tolist() == [EMPTY_KEY, 77]
    for line, count, threshold in zip(keys, found, thresholds.tolist(), strict=True):
        if count >= 40:
            assert 40 <= int((line[:count] > threshold).sum()) <= launches.most_for(40)


@pytest.mark.parametrize("threads", [32, 256])
def test_keys_that_share_a_bucket_are_counted_again(threads):
    """One far above, one far below, and many side by side: 64 bits take as many counts as there are."""
    keys = torch.cat([torch.tensor([2**62, -(2**62)]), torch.arange(3000) * 3])[None].contiguous()
    line = keys[0].tolist()
    for k in (1, 2, 500, 2999):
        mine, counts = keys.clone(), torch.tensor([3002])
        thresholds, spare, redo = torch.full((3, 1), EMPTY_KEY)
        launches.select(mine, counts, k, thresholds, spare, redo, threads, seed=k)
        assert k <= int(counts) <= launches.most_for(k)
        assert torch.equal(launches.sort(mine, counts, k, threads).rows, expect(line, k).rows)


@pytest.mark.slow
@pytest.mark.parametrize("style", ["random", "few_scores"])
def test_ten_thousand(style):
    generator = torch.Generator().manual_seed(4)
    k, count = 10_000, 23_456
    keys = some_keys(generator, count, count, style)[None]
    line = keys[0].tolist()
    counts = torch.tensor([count])
    thresholds, spare, redo = torch.full((3, 1), EMPTY_KEY)
    launches.select(keys, counts, k, thresholds, spare, redo, threads=1024)
    assert k <= int(counts) <= launches.most_for(k)
    found = launches.sort(keys, counts, k, threads=1024)
    assert torch.equal(found.rows, expect(line, k).rows)
    assert torch.equal(found.scores, expect(line, k).scores)
