"""The two oracles of the filter language agree with each other, and with answers worked out by hand."""

import datetime

import pyarrow as pa
import pytest
from hypothesis import given, settings

from stcli.filters.parse import parse
from stcli.filters.tree import OPERATORS, Between, Compare, In, IsNull, Node
from tests.filters.duckdb_oracle import eligible, eligible_many
from tests.filters.tree_strategies import FIXED, KINDS, tables_and_trees
from tests.oracles_tree import eligible_rows

ITEMS = pa.table(
    {
        "language": ["de", None, "it's", "名前"],
        "tags": [["a", "b"], [], None, [None, "a", "a"]],
        "price": pa.array([1, 2**53 + 1, None, -5], pa.int64()),
        "sizes": pa.array([[1, 9], [5], [None], None], pa.list_(pa.int32())),
        "weight": [0.1, -0.0, float("nan"), None],
        "new": [True, False, None, True],
        "day": pa.array([datetime.date(2024, 2, 29), None, datetime.date(1969, 12, 31), datetime.date(2024, 3, 1)]),
        "seen": pa.array([datetime.datetime(2024, 2, 29, 1), None, None, None], pa.timestamp("ms", "Europe/Berlin")),
    }
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "1111"),
        ("language = 'it''s'", "0010"),
        ("language != 'de'", "0111"),  # also of the item without a language
        ("NOT (language = 'de' OR language IS NULL)", "0011"),
        ("language > 'it'", "0011"),
        ("tags = 'a'", "1001"),
        ("tags != 'b'", "0111"),
        ("tags IS NULL", "0110"),
        ("tags IN ()", "0000"),
        ("tags NOT IN ()", "1111"),
        ("price = 9007199254740993", "0100"),
        ("price = 9007199254740992.0", "0000"),
        ("price > 9007199254740992.0", "0100"),
        ("price < -4.5", "0001"),
        ("price <= 1e300", "1101"),
        ("sizes < 6 AND sizes > 6", "1000"),  # two values of one item
        ("sizes BETWEEN 2 AND 8", "0100"),  # one and the same value
        ("sizes BETWEEN 8 AND 2", "0000"),
        ("weight = 0", "0100"),
        ("weight IS NULL", "0011"),
        ("new", "1001"),
        ("NOT new", "0110"),
        ("new = FALSE", "0100"),
        ("day = '2024-02-29'", "1000"),
        ("day < DATE '2024-03-01'", "1010"),
        ("seen = TIMESTAMP '2024-02-29 02:00+01:00'", "1000"),
        ("seen > '2024-02-29'", "1000"),
        ("TRUE AND NOT FALSE", "1111"),
    ],
)
def test_answers_worked_out_by_hand(text: str, expected: str) -> None:
    tree = parse(text)
    answer = [letter == "1" for letter in expected]
    assert eligible_rows(ITEMS.to_pylist(), tree) == answer
    assert eligible(ITEMS, tree).tolist() == answer


@pytest.mark.parametrize("text", ["language = 1", "price = 'x'", "new = 1", "day = 'x'", "weight = TRUE", "language"])
def test_both_refuse_a_literal_of_the_wrong_type(text: str) -> None:
    tree = parse(text)
    with pytest.raises(TypeError, match=r"cannot be compared|is no date"):
        eligible_rows(ITEMS.to_pylist(), tree)
    with pytest.raises(TypeError, match="cannot be compared"):
        eligible(ITEMS, tree)


@pytest.mark.parametrize("kind", KINDS)
def test_oracles_agree_on_every_pair_of_values(kind: str) -> None:
    dtype, cells, literals = KINDS[kind]
    lists = [None, [], [None], *([a, None, b] for a in cells for b in cells[::3])]
    rows = len(lists)
    scalars = [None, *cells] * (rows // len(cells) + 1)
    table = pa.table({"one": pa.array(scalars[:rows], dtype), "many": pa.array(lists, pa.list_(dtype))})
    trees: list[Node] = []
    for name in table.column_names:
        trees += [Compare(name, op, literal) for op in OPERATORS for literal in literals]
        trees += [Between(name, low, high) for low in literals[::2] for high in literals[::3]]
        trees += [IsNull(name), In(name, literals[::2]), In(name, [])]
    items = table.to_pylist()
    assert eligible_many(table, trees).tolist() == [eligible_rows(items, tree) for tree in trees]


@settings(FIXED, max_examples=80)
@given(tables_and_trees())
def test_oracles_agree_on_random_tables(case: tuple) -> None:
    table, trees = case
    rows = table.to_pylist()
    assert eligible_many(table, trees).tolist() == [eligible_rows(rows, tree) for tree in trees]
