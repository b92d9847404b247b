"""Where terms stand: every own row is used once, frequent terms come first, and the budget is kept."""

from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pytest

from stcli.errors import InputError
from stcli.filters.layout import Layout, plan_layout
from stcli.filters.vocabulary import Vocabulary
from tests.filters.indexed import Sizes, index_table, random_sizes
from tests.filters.random_tables import random_table


def rows_in_use(layout: Layout) -> list[int]:
    plan = layout.plan
    rows = [row for row in plan.own_row.tolist() if row >= 0] + plan.presence[:, 0].tolist()
    for first, bits, *_ in plan.slices.tolist():
        rows += range(first, first + bits)
    return sorted(rows)


@pytest.mark.parametrize("seed", range(20))
def test_every_row_and_every_term_has_one_place(seed):
    rng = random.Random(seed)
    indexed = index_table(random_table(rng, 200, most_columns=8), random_sizes(rng))
    layout, plan = indexed.layout, indexed.layout.plan
    assert rows_in_use(layout) == list(range(plan.num_own))
    for feature in indexed.vocabulary.features:
        terms = slice(feature.first_term, feature.end_term)
        own, bloom = plan.own_row[terms] >= 0, plan.bloom[terms]
        assert not (own & bloom).any()
        place = layout.features[feature.name]
        if feature.multi:
            assert (own | bloom).all()
        else:
            assert not bloom.any()
            assert place.slices is not None or feature.num_terms <= 1 or own.all()
        if place.slices is not None:
            assert (place.slices[0] != place.slices[1]) == feature.multi
            assert all(2**bits > feature.num_terms for _, bits in place.slices)


def test_by_hand():
    """40 items: a scalar of 4 values, a list of numbers and one of texts, each of them rare, and a constant."""
    table = pa.table(
        {
            "a": [f"{number % 4}" for number in range(40)],
            "b": [[number, number + 100] for number in range(40)],
            "c": [[f"{number}", f"{number + 100}"] for number in range(40)],
            "d": ["same"] * 40,
        }
    )
    layout = index_table(table, Sizes(own_rows=0)).layout
    assert layout.features["a"].slices == ((1, 3), (1, 3))  # row 0 is its presence; codes 0 … 4
    assert layout.features["b"].presence_row == 4
    assert layout.features["b"].slices == ((5, 7), (12, 7))  # codes 0 … 80
    assert (layout.features["c"].presence_row, layout.features["c"].slices) == (19, None)
    assert (layout.features["d"].presence_row, layout.features["d"].slices) == (20, None)
    assert layout.plan.num_own == 21
    assert layout.plan.bloom.sum() == 160


def skewed(num_items: int = 3000) -> pa.Table:
    """Two tags an item: `t0` has half of the items, `t1` a quarter, and so on; and one that nobody shares."""
    rng = np.random.default_rng(1)
    first = np.minimum(rng.geometric(0.5, num_items) - 1, 11)
    return pa.table({"tags": [[f"t{tag}", f"only {item}"] for item, tag in enumerate(first.tolist())]})


def own_counts(vocabulary: Vocabulary, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    own = layout.plan.own_row.numpy() >= 0
    return vocabulary.counts[own], vocabulary.counts[~own]


@pytest.mark.parametrize("limit", [0, 1, 3, 12])
def test_the_most_frequent_terms_get_the_own_rows(limit):
    indexed = index_table(skewed(), Sizes(own_rows=limit))
    own, others = own_counts(indexed.vocabulary, indexed.layout)
    assert len(own) <= limit
    assert others.max() <= min(own, default=3000)


def test_more_room_gives_more_own_rows_and_never_more_than_it():
    before = -1
    vocabulary = index_table(skewed()).vocabulary
    for filter_bytes in (3, 4, 6, 48):
        own, _ = own_counts(vocabulary, plan_layout(vocabulary, 3000, bloom_fpr=0.001, filter_bytes=filter_bytes))
        assert len(own) >= before
        before = len(own)
        matrix = index_table(skewed(), Sizes(filter_bytes=filter_bytes)).matrix
        used = 8 * (matrix.own.numel() + matrix.bloom.numel() * 3000 / 4096) / 3000  # the only block is not full
        assert used <= 1.2 * filter_bytes
    assert before >= 8


def test_a_term_of_one_item_in_thousands_gets_no_own_row():
    own, _ = own_counts(*(lambda indexed: (indexed.vocabulary, indexed.layout))(index_table(skewed())))
    assert own.min() > 1


def test_a_budget_that_holds_nothing():
    vocabulary = index_table(pa.table({f"x{number}": [1, 2, 3] * 40 for number in range(10)})).vocabulary
    with pytest.raises(InputError, match=r"--filter-bytes 1: .*at least 4 bytes an item"):
        plan_layout(vocabulary, 120, bloom_fpr=0.001, filter_bytes=1)


@pytest.mark.parametrize("rate", [0, 1, -0.5, 2, float("nan")])
def test_a_rate_must_be_a_share(rate):
    vocabulary = index_table(skewed(10)).vocabulary
    with pytest.raises(InputError, match=r"--bloom-fpr"):
        plan_layout(vocabulary, 10, bloom_fpr=rate)


def test_the_plan_depends_on_counts_alone():
    rng = random.Random(4)
    table = random_table(rng, 300)
    shuffled = table.take(pa.array(rng.sample(range(300), 300)))
    first, second = index_table(table).layout, index_table(shuffled).layout
    assert first.features == second.features
    assert first.plan.own_row.tolist() == second.plan.own_row.tolist()
