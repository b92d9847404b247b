"""verify_terms against an oracle that looks at one candidate at a time."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stcli.errors import TensorError
from stcli.ops.verify_terms import verify_terms
from stcli.types import OP_AND, OP_NOT
from tests import oracles_filter
from tests.ops import filter_cases
from tests.ops.filter_cases import (
    deep_ops,
    make_term_program,
    postings,
    random_items,
    random_ops,
)


def random_intervals(rng, num_terms, count):
    """Up to `count` ascending, disjoint intervals; touching ones and empty leaves come too."""
    cuts = sorted(rng.sample(range(num_terms + 1), min(2 * count, (num_terms + 1) // 2 * 2)))
    return [(low, high) for low, high in zip(cuts[::2], cuts[1::2], strict=True)]


def random_case(rng, num_items, num_terms, num_queries, num_slots, longest=6):
    items = random_items(rng, num_items, num_terms, longest)
    leaves = [random_intervals(rng, num_terms, rng.choice((0, 1, 1, 1, 2, 5))) for _ in range(8)]
    leaves += [[(term, term + 1)] for term in range(0, num_terms, 7)] + [[(0, num_terms)], [(-(2**31), 2**31 - 1)]]
    program = make_term_program(leaves, [random_ops(rng, len(leaves), rng.randint(1, 8)) for _ in range(9)])
    rows = torch.tensor([rng.randrange(-1, num_items) for _ in range(num_slots * num_queries)], dtype=torch.int64)
    filters = torch.tensor([rng.randrange(-1, 9) for _ in range(num_queries)], dtype=torch.int64)
    return items, program, rows.reshape(num_queries, num_slots), filters


def compare(items, program, rows, filters, form):
    verified = verify_terms(postings(items), program, rows, filters, backend=form)
    assert verified.dtype == torch.bool
    assert verified.tolist() == oracles_filter.verify_terms(items, program, rows, filters).tolist()


def test_worked_example(form):
    program = make_term_program([[(2, 3)], [(4, 9)]], [[0, 1, OP_NOT, OP_AND]])
    compare([[2, 5], [3], [2]], program, torch.tensor([[0, 1, 2, -1]]), torch.tensor([0]), form)


@pytest.mark.parametrize("how", filter_cases.DAMAGED_OFFSETS)
def test_damaged_lines_are_empty(form, how):
    terms, items = filter_cases.damaged_postings(how)
    program, rows = make_term_program([[(0, 9)]], [[0], [0, OP_NOT]]), torch.arange(len(items)).repeat(2, 1)
    found = verify_terms(terms, program, rows, torch.arange(2), backend=form)
    assert found.tolist() == oracles_filter.verify_terms(items, program, rows, torch.arange(2)).tolist()


@pytest.mark.parametrize("seed", range(6))
def test_random_programs(form, seed):
    rng = random.Random(seed)
    compare(*random_case(rng, 50, 60, 40, 11, longest=(6, 6, 6, 20, 40, 0)[seed]), form)


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 65, 5000])
def test_row_lengths(form, length):
    """Rows that end at, before and after the width of a vector, beside one that has the missing term."""
    items = [[3], [2 * i for i in range(length)], [3], [2 * i + 1 for i in range(length)]]
    bounds = [(t, t + 1) for t in (0, 1, 2, 3, 2 * length - 2, 2 * length - 1, 2 * length)]
    program = make_term_program([[bound] for bound in bounds], [[leaf] for leaf in range(len(bounds))])
    rows = torch.arange(4).repeat(len(bounds), 1)
    compare(items, program, rows, torch.arange(len(bounds)), form)


def test_deep_programs_and_long_lists_of_values(form):
    rng = random.Random(2)
    items = random_items(rng, 40, 3000, longest=30)
    leaves = [[(t, t + 1) for t in range(0, 3000, 3)], [(t, t + 2) for t in range(1, 3000, 5)], [], [(7, 9), (9, 11)]]
    programs = [[leaf] for leaf in range(4)] + [deep_ops(rng, 4, 30), deep_ops(rng, 4, 70)]
    rows = torch.arange(40).repeat(len(programs), 1)
    compare(items, make_term_program(leaves, programs), rows, torch.arange(len(programs)), form)


@pytest.mark.parametrize(("num_queries", "num_slots"), [(0, 5), (3, 0), (0, 0), (1, 1)])
def test_empty_shapes(form, num_queries, num_slots):
    compare(*random_case(random.Random(4), 5, 9, num_queries, num_slots), form)


def test_no_items_and_no_filters(form):
    program = make_term_program([], [])
    compare([], program, torch.full((2, 3), -1), torch.full((2,), -1), form)
    compare([[0], []], program, torch.tensor([[0, 1, -1]]), torch.tensor([-1]), form)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 30), st.integers(0, 40), st.integers(0, 6))
def test_property_equals_oracle(seed, num_items, num_terms, num_queries):
    case = random_case(random.Random(seed), num_items, num_terms, num_queries, 5)
    for form in ("torch", "auto"):
        compare(*case, form)


@pytest.mark.parametrize(
    ("rows", "filters", "message"),
    [
        ([[2]], [0], "rows: -1 … 1 expected"),
        ([[-2]], [0], "rows"),
        ([[0]], [1], "filter_of_query: -1 … 0 expected"),
        ([[0]], [0, 0], "filter_of_query.*B=1"),
    ],
)
def test_wrong_candidates_are_refused(rows, filters, message):
    program = make_term_program([[(0, 1)]], [[0]])
    with pytest.raises(TensorError, match=message):
        verify_terms(postings([[0], []]), program, torch.tensor(rows), torch.tensor(filters))


def test_wrong_programs_are_refused():
    with pytest.raises(TensorError, match="program 0 has op 1"):
        verify_terms(postings([[0]]), make_term_program([[(0, 1)]], [[1]]), torch.tensor([[0]]), torch.tensor([0]))
