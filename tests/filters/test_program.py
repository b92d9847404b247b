"""From the filters of a batch to programs: what is written once, what is kept between batches, what is refused."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
import torch

from stcli.errors import FilterError
from stcli.filters import program
from stcli.filters.parse import parse
from stcli.filters.program import Planner
from stcli.filters.tree import MAX_DEPTH, And, Compare, Constant, In, Not, Or
from stcli.types import LEAF_ALL, LEAF_EQUAL, LEAF_LESS, LEAF_OWN, OP_AND, OP_NOT, OP_OR
from tests.filters.indexed import Indexed, Sizes, index_table
from tests.oracles_tree import eligible_rows

ITEMS = pa.table({"year": [5, 7, 7, 9, None], "tags": [["a", "b"], ["a"], [], ["c", "a"], None]})


@pytest.fixture
def items() -> Indexed:
    return index_table(ITEMS, Sizes(own_rows=1))  # of 'a', which three items have


def lines(batch_program) -> list[list[int]]:
    ops, offsets = batch_program.ops.tolist(), batch_program.op_offsets.tolist()
    return [ops[start:end] for start, end in pairwise(offsets)]


def test_by_hand(items):
    """Rows: 0 tags has a value, 1 tag a, 2 year has a value, 3 and 4 the bits of its rank code (5, 7, 9: 1, 2, 3)."""
    batch = items.batch(["tags = 'a' AND NOT year = 7", "year < 9", "NOT tags = 'a' OR year = 7"])
    assert batch.program.leaves.tolist() == [[LEAF_OWN, 1, 0, 0], [LEAF_EQUAL, 3, 2, 2], [LEAF_LESS, 3, 2, 3],
                                             [LEAF_LESS, 3, 2, 1]]  # fmt: skip
    assert lines(batch.program) == [
        [0, 1, OP_NOT, OP_AND],
        [2, 3, OP_NOT, OP_AND],
        [0, OP_NOT, 1, OP_OR],
    ]
    assert batch.program.max_depth == 2
    assert batch.program.exact.tolist() == [True, True, True]
    terms = batch.terms
    intervals = list(zip(terms.lows.tolist(), terms.highs.tolist(), strict=True))
    assert intervals == [(0, 1), (4, 5), (3, 5)]  # tags a, b, c are terms 0 … 2, years 3 … 5
    assert terms.leaf_offsets.tolist() == [0, 1, 2, 3]
    assert lines(terms) == [[0, 1, OP_NOT, OP_AND], [2], [0, OP_NOT, 1, OP_OR]]


def test_each_distinct_filter_and_leaf_is_written_once(items):
    texts = ["tags = 'b'", None, "year = 5 OR tags = 'b'", "tags = 'b'", "", "  ", "tags = 'b'"]
    batch = items.planner.batch(texts)
    assert batch.filter_of_query.tolist() == [0, -1, 1, 0, -1, -1, 0]
    assert batch.num_filters == 2
    assert len(batch.program.leaves) == 2
    assert len(batch.terms.leaf_offsets) - 1 == 2


def test_texts_and_trees_mean_the_same(items):
    text = "NOT (year BETWEEN 5 AND 7 OR tags IN ('b', 'c'))"
    batch = items.batch([text, parse(text)])
    assert torch.equal(*batch.program.ops.reshape(2, -1))
    assert np.array_equal(*items.admitted(batch))


def test_no_filter_at_all(items):
    batch = items.planner.batch([None, ""])
    assert (batch.program, batch.terms, batch.num_filters) == (None, None, 0)
    assert items.planner.batch([]).filter_of_query.tolist() == []


@pytest.mark.parametrize(
    "tree",
    [
        Constant(True), Constant(False), Not(Constant(True)), And(()), Or(()), Not(And(())), And((Or(()),)),
        And((Compare("year", "=", 7), Or(()))), Or((Compare("year", "=", 7), And(()))), Or((Compare("year", "=", 7),)),
        Not(Not(Not(Compare("year", "=", 7)))), In("year", ()), Not(In("year", ())),
    ],
    ids=str,
)  # fmt: skip
def test_constants_and_empty_nodes(items, tree):
    items.check([tree], np.array([eligible_rows(ITEMS.to_pylist(), tree)]))


def test_a_filter_that_admits_everything_is_one_leaf(items):
    batch = items.batch(["TRUE OR year = 5", "NOT tags = 'b'"])
    assert batch.program.leaves.tolist() == [[LEAF_ALL, 0, 0, 0]]
    assert batch.program.exact.tolist() == [True, False]


def test_as_deep_and_as_wide_as_a_filter_may_be(items):
    deep = "(" * MAX_DEPTH + "year = 5" + ")" * MAX_DEPTH
    nots = "NOT (" * (MAX_DEPTH // 2) + "year = 5" + ")" * (MAX_DEPTH // 2)
    wide = "year IN (" + ", ".join(map(str, range(9000))) + ")"
    stack = "tags = 'a' OR (" * (MAX_DEPTH - 1) + "year = 5" + ")" * (MAX_DEPTH - 1)
    rows = ITEMS.to_pylist()
    filters = [deep, nots, wide, stack, " OR ".join(f"year = {number}" for number in range(3000))]
    items.check(filters, np.array([eligible_rows(rows, parse(text)) for text in filters]))
    with pytest.raises(FilterError, match="deeper"):
        items.planner.plan(Not(Not(Not(parse("NOT (year < 5 AND " * 16 + "TRUE" + ")" * 16)))))


def test_plans_are_kept_up_to_a_limit(items, monkeypatch):
    monkeypatch.setattr(program, "CACHE_SIZE", 2)
    planner = Planner(items.vocabulary, items.layout)
    first = planner.plan("year = 5")
    assert planner.plan("year = 5") is first
    planner.plan("year = 7")
    assert planner.plan("year = 5") is first  # used last
    planner.plan("year = 9")  # puts out year = 7
    assert planner.plan("year = 5") is first
    many = [f"year = {number % 7}" for number in range(30)]
    batch = planner.batch(many)
    assert batch.num_filters >= 7
    exact = items.admitted(batch)
    assert exact.tolist() == [eligible_rows(ITEMS.to_pylist(), parse(text)) for text in many]


def test_check_names_the_queries_that_failed(items):
    failed = items.planner.check(["year = 5", "yer = 5", None, "year = ", "yer = 5"])
    assert sorted(failed) == [1, 3, 4]
    assert "did you mean 'year'" in str(failed[1])
    assert failed[1] is failed[4]
    assert str(failed[3]).splitlines()[-1].rstrip().endswith("^")
    with pytest.raises(FilterError, match="'yer'"):
        items.planner.batch(["year = 5", "yer = 5"])


def test_unknown_values_are_counted_a_query(items):
    texts = ["tags = 'x' OR tags IN ('y', 'a')", "tags = 'a'", None, "tags = 'x' OR tags IN ('y', 'a')"]
    assert items.planner.unknown_values(texts) == 4
    assert items.planner.first_unknown(["tags = 'a'", *texts]) == ("tags", "x")
    assert items.planner.first_unknown(["tags = 'a'", None]) is None


def test_moved_to_another_device_keeps_its_shapes(items):
    batch = items.batch(["tags = 'a'", "year > 5"])
    assert batch.to(torch.device("cpu")) is batch
    moved = batch.to(torch.device("meta"))
    assert (
        moved.program.leaves.device.type == moved.terms.lows.device.type == moved.filter_of_query.device.type == "meta"
    )
    assert moved.program.max_depth == batch.program.max_depth


@pytest.mark.parametrize(("most", "counts"), [(1, [2, 1, 2, 1, 3, 2]), (2, [5, 4, 2]), (3, [6, 5]), (4, [11])])
def test_a_batch_splits_into_what_its_runs_of_queries_would_give(items, most, counts):
    texts = [None, "tags = 'b'", "year = 5 OR tags = 'b'", "tags = 'b'", "", "NOT tags = 'a'", "year < 9", None,
             "year < 9", "tags = 'b'", None]  # fmt: skip
    parts = list(items.planner.batch(texts).split(most))
    assert [count for count, _ in parts] == counts
    for start, (count, part) in zip(np.cumsum([0, *counts]), parts, strict=False):
        alone = items.batch(texts[start : start + count])
        assert part.num_filters == alone.num_filters == len(part.program.op_offsets) - 1 <= most
        assert len(part.program.leaves) == len(alone.program.leaves)
        assert ((part.filter_of_query < 0) == (alone.filter_of_query < 0)).all()
        filtered = part.filter_of_query.numpy() >= 0
        assert (items.admitted(part) == items.admitted(alone))[filtered].all()
        assert (items.exact(part) == items.exact(alone))[filtered].all()
        assert (items.verified(part) == items.verified(alone)).all()


def test_a_batch_without_filters_is_not_split(items):
    ((count, part),) = items.planner.batch([None] * 5).split(0)
    assert (count, part.num_filters, part.program) == (5, 0, None)
