"""build_bit_matrix against an oracle that sets bit after bit."""

from __future__ import annotations

import functools
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stcli.errors import TensorError
from stcli.ops.bloom_hash import bloom_rates
from stcli.ops.build_bit_matrix import build_bit_matrix
from tests import oracles_filter
from tests.ops.filter_cases import postings, random_items, random_plan


def compare(items, plan, matrix, expected=None):
    own, blocks = expected or oracles_filter.bit_matrix(items, plan)
    assert (matrix.num_items, matrix.num_hashes) == (len(items), plan.num_hashes)
    assert matrix.bloom_offsets.diff().tolist() == [len(bits) for bits in blocks]
    assert matrix.own.tolist() == oracles_filter.words_of(own).tolist()
    assert matrix.bloom.tolist() == [row for bits in blocks for row in oracles_filter.words_of(bits).tolist()]


def test_worked_example(form):
    plan = replace(
        random_plan(random.Random(0), 0, num_features=0),
        own_row=torch.tensor([0, -1], dtype=torch.int32),
        bloom=torch.tensor([False, False]),
        num_own=1,
    )
    matrix = build_bit_matrix(postings([[0], [0, 1], []]), plan, backend=form)
    assert matrix.own.tolist() == [[0b011]]
    assert matrix.bloom.shape == (0, 64)


@functools.cache
def edge_case(num_items):
    rng = random.Random(num_items)
    items, plan = random_items(rng, num_items, 40), random_plan(rng, 40)
    return items, plan, oracles_filter.bit_matrix(items, plan)


@pytest.mark.parametrize("num_items", [1, 63, 64, 65, 4095, 4096, 4097])
def test_edges_of_words_and_blocks(form, num_items):
    items, plan, expected = edge_case(num_items)
    compare(items, plan, build_bit_matrix(postings(items), plan, backend=form), expected)


@pytest.mark.parametrize("case", ["no_own_rows", "no_bloom_rows", "no_terms", "no_items", "fixed_width", "many_hashes"])
def test_plans(form, case):
    rng = random.Random(case)
    settings = {
        "no_own_rows": {"own_share": 0.0, "num_features": 0},
        "no_bloom_rows": {"bloom_share": 0.0},
        "fixed_width": {"fixed_width": 5},
        "many_hashes": {"num_hashes": 17, "bloom_fpr": 1e-5},
    }
    num_terms = 0 if case == "no_terms" else 30
    items = random_items(rng, 0 if case == "no_items" else 200, num_terms)
    plan = random_plan(rng, num_terms, **settings.get(case, {}))
    compare(items, plan, build_bit_matrix(postings(items), plan, backend=form))


def test_one_item_with_5000_terms_fills_its_column_and_widens_little(form):
    rng = random.Random(1)
    items = random_items(rng, 4200, 6000)
    items[4096:] = [[] for _ in items[4096:]]  # a block without Bloom terms has no Bloom rows
    plan = random_plan(rng, 6000, own_share=0.0, bloom_share=1.0, num_features=0, bloom_fpr=0.01)
    narrow = build_bit_matrix(postings(items), plan, backend=form)
    items[17] = list(range(5000))
    matrix = build_bit_matrix(postings(items), plan, backend=form)
    compare(items, plan, matrix)
    assert matrix.bloom_offsets[1] == matrix.bloom_offsets[2] < 2 * narrow.bloom_offsets[1]
    assert (matrix.bloom[:, 0] >> 17 & 1).all()


@pytest.mark.parametrize("bloom_fpr", [0.5, 0.05, 0.001])
def test_false_positive_rate_is_kept(form, bloom_fpr):
    """Items without a term that its rows admit: at most the share asked for, but for chance (5 sigma)."""
    rng = random.Random(7)
    items = [sorted(rng.sample(range(900), rng.randint(1, 9))) for _ in range(2 * 4096)]
    plan = random_plan(rng, 1000, own_share=0.0, bloom_share=1.0, num_features=0, bloom_fpr=bloom_fpr)
    matrix = build_bit_matrix(postings(items), plan, backend=form)
    wrong = 0
    for block in (0, 1):
        first, end = (int(x) for x in matrix.bloom_offsets[block : block + 2])
        for term in range(900, 1000):
            mask = torch.full((64,), -1)
            for row in oracles_filter.bloom_rows(term, block, end - first, 3):
                mask &= matrix.bloom[first + row]
            wrong += sum(int(word).bit_count() for word in (mask.numpy().view("uint64")))
    trials = 100 * 2 * 4096
    assert wrong / trials < bloom_fpr * 1.05 + 5 * (bloom_fpr / trials) ** 0.5


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 150), st.integers(0, 20), st.integers(1, 8))
def test_property_equals_oracle(seed, num_items, num_terms, num_hashes):
    rng = random.Random(seed)
    items = random_items(rng, num_items, num_terms)
    plan = random_plan(
        rng, num_terms, num_hashes=num_hashes, fixed_width=rng.choice((None, 1, 9)), own_share=rng.random()
    )
    for form in ("torch", "auto"):
        compare(items, plan, build_bit_matrix(postings(items), plan, backend=form))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"own_row": torch.tensor([9, -1], dtype=torch.int32)}, "plan.own_row.*-1 … 0.*-1 … 9"),
        ({"bloom": torch.tensor([True])}, "plan.bloom.*V=2"),
        ({"slices": torch.tensor([[0, 5, 0, 2, 0]])}, "plan.slices first_row"),
        ({"presence": torch.tensor([[0, 0, 3]])}, "first_term"),
        ({"bloom_fpr": 0.0}, "bloom_fpr"),
        ({"fixed_width": 0}, "fixed_width"),
    ],
)
def test_wrong_plans_are_refused(change, message):
    plan = replace(
        random_plan(random.Random(0), 0, num_features=0),
        own_row=torch.tensor([0, -1], dtype=torch.int32),
        bloom=torch.tensor([False, True]),
        num_own=1,
    )
    with pytest.raises(TensorError, match=message):
        build_bit_matrix(postings([[0], [0, 1]]), replace(plan, **change))


def test_a_term_outside_the_vocabulary_is_refused():
    plan = random_plan(random.Random(0), 2)
    with pytest.raises(TensorError, match=r"terms\.values: 0 … 1 expected"):
        build_bit_matrix(postings([[0], [2]]), plan)


@pytest.mark.parametrize(("width", "num_hashes"), [(1, 1), (3, 7), (7, 7), (23, 7), (40, 2), (150, 12)])
def test_rates_are_those_of_throwing_one_row_after_the_other(width, num_hashes):
    lengths = torch.tensor([[0, 1, 2], [3, 6, 40]])
    expected = [[oracles_filter.bloom_rate(t, width, num_hashes) for t in line] for line in lengths.tolist()]
    assert bloom_rates(lengths, width, num_hashes).numpy() == pytest.approx(np.array(expected), rel=1e-9, abs=1e-11)
