"""Every eligible item is admitted, no other where the plan is exact, and verification finds just the eligible ones."""

from __future__ import annotations

import datetime
import random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings

from stcli.errors import FilterError
from stcli.filters.bounds import Unknown, resolve
from stcli.filters.parse import parse
from stcli.filters.tree import And, Between, Compare, In, IsNull, Node, Not
from tests.filters import duckdb_oracle
from tests.filters.indexed import Sizes, index_table, random_sizes
from tests.filters.random_tables import abs_finite, random_table, random_tree
from tests.filters.tree_strategies import FIXED, KINDS, tables_and_trees
from tests.oracles_tree import eligible_rows

SMALL = Sizes(bloom_fpr=0.5, own_rows=1, hashes=2)
"""Few own rows and a Bloom part that is wrong about half of the items."""


def truth(table: pa.Table, trees: list[Node]) -> np.ndarray:
    rows = table.to_pylist()
    return np.array([eligible_rows(rows, tree) for tree in trees]).reshape(len(trees), len(rows))


def check_random_table(seed: int, num_filters: int) -> None:
    rng = random.Random(seed)
    table = random_table(rng, rng.choice([1, 2, 30, 65, 130]))
    trees = [random_tree(rng, table) for _ in range(num_filters)]
    index_table(table, random_sizes(rng), batch_rows=rng.choice([None, 7])).check(trees, truth(table, trees))


@pytest.mark.parametrize("seed", range(40))
def test_random_filters(seed):
    check_random_table(seed, 50)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1000, 1100))
def test_100_000_random_filters(seed):
    for table in range(5):
        check_random_table(seed * 100 + table, 200)


@settings(FIXED, max_examples=40)
@given(tables_and_trees())
def test_the_edges_of_each_kind(case):
    table, trees = case
    if table.num_rows:  # build-index refuses an empty table
        index_table(table, SMALL).check(trees, truth(table, trees))


@pytest.mark.parametrize("seed", range(6))
def test_tables_of_several_blocks_against_duckdb(seed):
    rng = random.Random(seed)
    table = random_table(rng, rng.choice([4095, 4096, 4097, 9000]), most_columns=6)
    trees = [random_tree(rng, table) for _ in range(40)]
    index_table(table, random_sizes(rng), batch_rows=2000).check(trees, duckdb_oracle.eligible_many(table, trees))


def test_one_item_with_5000_values_widens_nothing_else():
    rng = random.Random(1)
    lists = [[rng.randrange(100_000) for _ in range(rng.randint(0, 4))] for _ in range(4500)]
    lists[17] = list(range(0, 100_000, 20))
    table = pa.table({"tags": pa.array([[f"tag {v}" for v in values] for values in lists]), "numbers": lists})
    values = [lists[17][0], lists[17][-1], lists[3000][0] if lists[3000] else 5, 7, 99_999]
    trees: list[Node] = [Compare("tags", "=", f"tag {value}") for value in values]
    trees += [Compare("numbers", "=", value) for value in values]
    trees += [Not(tree) for tree in trees]
    trees += [
        Between("numbers", 10, 10_000),
        In("numbers", range(0, 100_000, 97)),
        Not(In("tags", ("tag 20", "tag 7"))),
    ]
    indexed = index_table(table)
    indexed.check(trees, duckdb_oracle.eligible_many(table, trees))
    heights = indexed.matrix.bloom_offsets.diff()
    assert heights[0] < 2 * heights[1] + 100  # the second block holds no outlier


def check_many_values(num_items: int) -> None:
    """Two different values an item, so one feature has twice as many terms as there are items."""
    values = np.random.default_rng(5).permutation(2 * num_items) * 3 - num_items
    texts = pa.array([f"wört '{value}'" for value in values.tolist()])
    pairs = np.arange(0, 2 * num_items + 1, 2, dtype=np.int32)
    table = pa.table(
        {
            "number": values[:num_items],
            "text": texts[:num_items],
            "numbers": pa.ListArray.from_arrays(pairs, pa.array(values)),
            "texts": pa.ListArray.from_arrays(pairs, texts),
        }
    )
    some = int(values[7])
    trees: list[Node] = []
    for number, text in (("number", "text"), ("numbers", "texts")):
        trees += [
            Compare(number, "=", some),
            Compare(number, "=", some + 1),
            Between(number, -50, 100),
            Between(number, -50, 100_000),
            Compare(number, "<", 0.5),
            Not(Compare(text, "=", f"wört '{some}'")),
            In(text, tuple(f"wört '{value}'" for value in range(-100, 100))),
            In(text, tuple(f"wört '{value}'" for value in range(-450, 450, 2))),
            Compare(text, ">=", "wört '5"),
        ]
    indexed = index_table(table)
    assert indexed.vocabulary.by_name["texts"].num_terms == 2 * num_items
    indexed.check(trees, duckdb_oracle.eligible_many(table, trees))


def test_many_distinct_values():
    check_many_values(20_000)


@pytest.mark.slow
def test_a_million_distinct_values():
    check_many_values(500_000)


DAY, TIME = datetime.date, datetime.datetime
ITEMS = pa.table(
    {
        "name": ["it's", 'say "hi"', "名前", "", None, "naïve"],
        "big": pa.array([2**53, 2**53 + 1, -(2**63), 2**63 - 1, None, -5], pa.int64()),
        "weight": [2.0**53, -0.0, float("nan"), float("inf"), None, 0.5],
        "weights": [[1.5, float("nan")], [float("nan")], [None], [], None, [-0.0, 3.0]],
        "new": [True, False, None, True, False, None],
        "day": [DAY(1, 1, 1), DAY(1969, 12, 31), DAY(2024, 2, 29), DAY(9999, 12, 31), None, DAY(2024, 3, 1)],
        "seen": pa.array([TIME(1969, 12, 31, 23, 59, 59, 999_999), TIME(2024, 1, 1), None,
                          TIME(2024, 1, 1, 0, 0, 0, 1), TIME(2023, 12, 31, 23), None], pa.timestamp("us", "UTC")),
        "tags": [["a", "b", "a"], [], None, [None, "a"], [None], ["''"]],
    }
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("name = 'it''s'", [0]),
        ("name IN ('say \"hi\"', '名前')", [1, 2]),
        ("name = ''", [3]),
        ("name > 'n' AND name < 'nb'", [5]),
        ("name != '名前'", [0, 1, 3, 4, 5]),
        ("big = 9007199254740993", [1]),
        ("big = 9007199254740992.0", [0]),
        ("big > 9007199254740992.0", [1, 3]),
        ("big >= -9223372036854775808", [0, 1, 2, 3, 5]),
        ("big < -9223372036854775808", []),
        ("big <= 9223372036854775808", [0, 1, 2, 3, 5]),
        ("big BETWEEN -5.5 AND -4.5", [5]),
        ("weight = 9007199254740993", []),
        ("weight < 9007199254740993", [0, 1, 5]),
        ("weight = 0", [1]),
        ("weight > 1e308", [3]),
        ("weight IS NULL", [2, 4]),
        ("NOT weight >= 0", [2, 4]),
        ("weights IS NULL", [1, 2, 3, 4]),
        ("weights > 1 AND weights < 1", [5]),
        ("weights BETWEEN 1 AND 2", [0]),
        ("weights = 0", [5]),
        ("new", [0, 3]),
        ("NOT new", [1, 2, 4, 5]),
        ("new = FALSE", [1, 4]),
        ("day = '2024-02-29'", [2]),
        ("day < DATE '1970-01-01'", [0, 1]),
        ("day BETWEEN '2024-01-01' AND '9999-12-31'", [2, 3, 5]),
        ("seen = '2024-01-01'", [1]),
        ("seen > '2024-01-01'", [3]),
        ("seen = '2024-01-01 01:00:00+01:00'", [1]),
        ("seen < '1970-01-01'", [0]),
        ("tags = 'a'", [0, 3]),
        ("tags = ''''''", [5]),
        ("tags IS NULL", [1, 2, 4]),
        ("tags != 'a' AND tags IS NOT NULL", [5]),
        ("tags IN ()", []),
        ("NOT tags IN ()", [0, 1, 2, 3, 4, 5]),
        ("tags = 'unknown' OR FALSE", []),
        ("TRUE", [0, 1, 2, 3, 4, 5]),
    ],
)
@pytest.mark.parametrize("sizes", [Sizes(), SMALL, Sizes(own_rows=0)], ids=["default", "small", "no own rows"])
def test_by_hand(text, rows, sizes):
    tree = parse(text)
    expected = np.isin(np.arange(6), rows)
    assert eligible_rows(ITEMS.to_pylist(), tree) == expected.tolist()
    index_table(ITEMS, sizes).check([text, tree], np.stack([expected, expected]))


def is_exact(table: pa.Table, text: str, sizes: Sizes = SMALL) -> bool:
    indexed = index_table(table, sizes)
    return bool(indexed.exact(indexed.batch([text]))[0])


@pytest.mark.parametrize("text", ["x = 3", "x != 3", "x < 30", "NOT x BETWEEN 3 AND 9", "x IN (1, 5, 8)", "x IS NULL"])
def test_every_filter_on_a_scalar_is_exact(text):
    assert is_exact(pa.table({"x": [*range(40), None]}), text)


@pytest.mark.parametrize(
    ("text", "exact"),
    [
        ("x < 30", True),
        ("NOT x >= 30", True),
        ("x > 3 AND NOT x > 9", True),
        ("x IS NULL", True),
        ("x = 1000", True),  # occurs nowhere
        ("x = 3", False),
        ("x BETWEEN 3 AND 9", False),
        ("x != 3", False),
    ],
)
def test_one_sided_ranges_on_a_list_are_exact(text, exact):
    lists = [[value, value + 1] for value in range(40)] + [None]
    assert is_exact(pa.table({"x": lists}), text, Sizes(own_rows=0)) is exact


def test_frequent_terms_are_exact_under_not():
    table = pa.table({"x": [["often", str(value)] for value in range(40)]})
    assert is_exact(table, "x != 'often'")
    assert not is_exact(table, "x != '7'")


def test_a_negated_bloom_term_admits_everything():
    indexed = index_table(pa.table({"x": [[str(value), "y"] for value in range(100)]}), Sizes(own_rows=0))
    assert indexed.admitted(indexed.batch(["x != '7'"])).all()


def test_a_bloom_term_admits_little_more_than_it_should():
    """Asked for 0.001; 8 million pairs, so chance is far below the slack."""
    rng = random.Random(3)
    table = pa.table({"x": [[str(rng.randrange(4_000)) for _ in range(8)] for _ in range(5_000)]})
    indexed = index_table(table)
    batch = indexed.batch([Compare("x", "=", str(value)) for value in range(1000)])
    wrong = (indexed.admitted(batch) & ~indexed.verified(batch)).mean()
    assert 0 < wrong < 0.0015


def test_values_beyond_the_spelled_ones_are_bounded_by_presence():
    """An IN list of 300 Bloom terms reads the presence row, not 300 times 7 Bloom rows."""
    lists = [[str(value), str(value + 1)] for value in range(600)] + [None, []]
    indexed = index_table(pa.table({"x": lists}), Sizes(own_rows=0))
    batch = indexed.batch([In("x", [str(value) for value in range(0, 600, 2)])])
    assert len(batch.program.leaves) == 1
    assert indexed.admitted(batch).sum() == 600


@pytest.mark.parametrize("seed", range(5))
def test_the_papers_form_admits_the_complement_under_not(seed):
    """Without NOT it contains every eligible item; NOT is the complement, which loses the false positives."""
    rng = random.Random(seed)
    table = random_table(rng, 300)
    indexed = index_table(table, Sizes(paper=True, hashes=rng.choice([1, 5])))
    trees = [Compare(name, "=", value) for name in table.column_names for value in KINDS[name.removesuffix("s")][1]
             if value == value and abs_finite(value)]  # fmt: skip
    plain, eligible = indexed.batch(trees), truth(table, trees)
    admitted = indexed.admitted(plain)
    assert not (eligible & ~admitted).any()
    assert not indexed.exact(plain).any()
    assert np.array_equal(indexed.verified(plain), eligible)
    assert np.array_equal(indexed.admitted(indexed.batch([Not(tree) for tree in trees])), ~admitted)


RESOLVED = index_table(ITEMS).vocabulary


def test_resolve_merges_touching_intervals():
    names = RESOLVED.by_name["name"]
    leaf = resolve(In("name", ("it's", "naïve", "", "名前")), RESOLVED)
    first = names.first_term  # "", "it's", "naïve", 'say "hi"', "名前"
    assert leaf.intervals == ((first, first + 3), (first + 4, first + 5))


def test_resolve_counts_unknown_values():
    unknown = Unknown()
    resolve(parse("name IN ('x', 'it''s', 'y') OR big = 4 OR NOT big = -5 OR big < 4"), RESOLVED, "", unknown)
    assert unknown.values == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("big = 1 AND nme = 'x'", "no feature 'nme' in the index; did you mean 'name'"),
        ("big = 'x'", "feature 'big' is integer.*write a number"),
        ("big = TRUE", "is integer"),
        ("name = 3", "is string.*text in single quotes"),
        ("new = 1", "is boolean.*TRUE or FALSE"),
        ("name", "is string; only a boolean one is a condition by itself"),
        ("day = '2024-02-30'", "is date.*YYYY-MM-DD"),
        ("day = TIMESTAMP '2024-02-29 00:00:00'", "is date"),
        ("seen = 'yesterday'", "is timestamp.*HH:MM:SS"),
        ("tags IN ('a', 3)", "is string, so 3"),
        ("weight BETWEEN 1 AND 'x'", "is float"),
    ],
)
def test_what_does_not_fit_the_index_is_an_error_with_a_caret(text, message):
    with pytest.raises(FilterError, match=message) as caught:
        resolve(parse(text), RESOLVED, text)
    shown, caret = str(caught.value).splitlines()[1:]
    assert shown.strip() == text
    assert text[caret.index("^") - 2 :].startswith(str(caught.value.text[caught.value.position :]))


def test_a_tree_has_no_caret():
    with pytest.raises(FilterError, match="no feature 'x'") as caught:
        resolve(And((Not(Compare("x", "=", 1)), IsNull("name"))), RESOLVED)
    assert "^" not in str(caught.value)
