"""bloom_positions against the hash in Python's integers; its C++ twin is met in the tests of both operations."""

from __future__ import annotations

import random

import torch

from stcli.ops.bloom_hash import bloom_positions
from tests import oracles_filter


def test_equals_python_integers():
    rng = random.Random(0)
    cases = [(0, 0, 1, 1), (2**31 - 1, 2**31 - 1, 2**31 - 1, 40), (5, 3, 0, 4)]
    cases += [(rng.randrange(2**31), rng.randrange(2**20), rng.randint(1, 2**31 - 1), 7) for _ in range(300)]
    for term, block, width, num_hashes in cases:
        rows = bloom_positions(torch.tensor([term]), torch.tensor([block]), torch.tensor([width]), num_hashes)
        assert rows.tolist() == [oracles_filter.bloom_rows(term, block, width, num_hashes) or [0] * num_hashes]


def test_terms_and_blocks_broadcast():
    rows = bloom_positions(torch.arange(5)[:, None], torch.arange(3), torch.tensor([9, 70, 1000]), 4)
    expected = [[oracles_filter.bloom_rows(t, b, width, 4) for b, width in enumerate((9, 70, 1000))] for t in range(5)]
    assert rows.tolist() == expected


def test_rows_are_spread_evenly():
    """Chi-square of 70,000 rows over 100 places: 99 degrees of freedom, so below 160 but for one time in 10,000."""
    terms = torch.arange(10000)
    rows = bloom_positions(terms, torch.zeros_like(terms), torch.full_like(terms, 100), 7)
    counts = torch.bincount(rows.flatten(), minlength=100).double()
    assert float(((counts - 700) ** 2 / 700).sum()) < 160
