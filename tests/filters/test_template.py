import datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stcli.errors import FilterError
from stcli.filters.lexicon import Placeholder
from stcli.filters.parse import parse
from stcli.filters.template import Template
from stcli.filters.tree import (
    MAX_DEPTH,
    MAX_TERMS,
    OPERATORS,
    And,
    Between,
    Compare,
    Constant,
    In,
    Node,
    Not,
    Or,
    to_text,
)
from tests.filters.tree_strategies import FIXED, NAMES, VALUES

TEXT = "lang IN $langs AND price <= $budget AND NOT tag IN $blocked"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            {"langs": ["de", "en"], "budget": 20, "blocked": ["x"]},
            "lang IN ('de', 'en') AND price <= 20 AND NOT tag IN ('x')",
        ),
        ({"langs": "de", "budget": 0.5, "blocked": ("x",)}, "lang IN ('de') AND price <= 0.5 AND NOT tag IN ('x')"),
        ({"langs": None, "budget": 20, "blocked": ["x"]}, "price <= 20 AND NOT tag IN ('x')"),
        ({"langs": None, "budget": 20, "blocked": None}, "price <= 20"),
        ({"langs": None, "budget": None, "blocked": None}, ""),
        ({"langs": [], "budget": 20, "blocked": []}, "lang IN () AND price <= 20 AND NOT tag IN ()"),
        ({"langs": [None, "de", None], "budget": None, "blocked": [None]}, "lang IN ('de') AND NOT tag IN ()"),
        (
            {"langs": np.array(["de"]), "budget": np.float32(2), "blocked": np.array([1])},
            "lang IN ('de') AND price <= 2.0 AND NOT tag IN (1)",
        ),
        (
            {"langs": [True], "budget": datetime.date(2024, 2, 29), "blocked": None, "other": object()},
            "lang IN (TRUE) AND price <= DATE '2024-02-29'",
        ),
    ],
)
def test_bind_gives_the_tree_of_the_text_with_values(values: dict, expected: str) -> None:
    template = Template(TEXT)
    assert template.placeholders == ("langs", "budget", "blocked")
    assert template.bind(values) == parse(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a = $null", ""),
        ("NOT NOT a = $null", ""),
        ("a = 1 OR b = $null", "a = 1"),
        ("(a = $null OR b != $null) AND c = 1", "c = 1"),
        ("NOT (a = $null AND (b = 1 OR c < $null))", "NOT b = 1"),
        ("x AND (a = $null OR (b IN $null AND TRUE))", "x AND TRUE"),
        # the smallest comparison is the whole IN and the whole BETWEEN
        ("a BETWEEN $null AND 5", ""),
        ("a NOT BETWEEN 1 AND $null OR c", "c"),
        ("a IN (1, $null, 3) OR c", "c"),
        ("a IN (1, $one, 3)", "a IN (1, 7, 3)"),
        ("a BETWEEN $one AND $one", "a BETWEEN 7 AND 7"),
        ('"a b" = $"two words"', "\"a b\" = 'it''s'"),
        ("in IN $one", "in IN (7)"),
        ("not NOT IN $one", "not NOT IN (7)"),
        ("between BETWEEN $one AND 9", "between BETWEEN 7 AND 9"),
        ("a = 1", "a = 1"),
        ("", ""),
    ],
)
def test_null_drops_the_smallest_comparison(text: str, expected: str) -> None:
    assert Template(text).bind({"null": None, "one": 7, "two words": "it's"}) == parse(expected)


def test_clauses_tell_where_placeholders_stand() -> None:
    template = Template("x AND (NOT a = $p OR b BETWEEN $q AND $p) AND c IN (1, $r) AND d IN $s")
    assert [(clause.path, [p.name for p in clause.placeholders]) for clause in template.clauses] == [
        ((1, 0, 0), ["p"]),
        ((1, 1), ["q", "p"]),
        ((2,), ["r"]),
        ((3,), ["s"]),
    ]
    for clause in template.clauses:
        node = template.tree
        for number in clause.path:
            node = node.child if isinstance(node, Not) else node.children[number]  # type: ignore[union-attr]
        assert node is clause.leaf
    assert template.placeholders == ("p", "q", "r", "s")
    assert Template("").clauses == ()


@pytest.mark.parametrize(
    ("text", "values", "words", "position"),
    [
        ("a = $budgte", {"budget": 1}, r"\$budgte: no column 'budgte' to bind; did you mean 'budget'", 4),
        ("a = $x", {"x": [1]}, r"\$x: a list stands for one value; write: feature IN \$x", 4),
        ("a IN (1, $x)", {"x": [1]}, "a list stands for one value", 9),
        ("a IN $x", {"x": [1, b"y"]}, r"\$x: feature 'a': a bytes is not a value", 5),
        ("a IN $x", {"x": b"y"}, "a bytes is not a value", 5),
        ("a = 1 OR b < $x", {"x": float("nan")}, r"\$x: feature 'b': nan is not a value", 13),
    ],
)
def test_values_that_cannot_be_bound_are_refused(text: str, values: dict, words: str, position: int) -> None:
    with pytest.raises(FilterError, match=words) as caught:
        Template(text).bind(values)
    assert (caught.value.text, caught.value.position) == (text, position)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a = $", r"found '\$'"),
        ("$a = 1", r"expected a condition, found '\$a'"),
        ("a $b 1", "expected an operator"),
        ("a IN $b $c", r"expected AND, OR or the end, found '\$c'"),
        ("a = DATE $b", "expected a value after '=', found 'DATE'"),
        ("a = $ b", r"found '\$'"),
    ],
)
def test_placeholders_stand_only_for_values(text: str, words: str) -> None:
    with pytest.raises(FilterError, match=words):
        Template(text)


def test_limits_hold_after_binding() -> None:
    template = Template("a IN $x OR b IN $x")
    assert template.bind({"x": range(MAX_TERMS // 2)}) is not None
    with pytest.raises(FilterError, match="more than 20,000 values"):
        template.bind({"x": range(MAX_TERMS // 2 + 1)})
    with pytest.raises(FilterError, match="nest deeper"):
        Template("(" * (MAX_DEPTH + 1) + "a = $x" + ")" * (MAX_DEPTH + 1))


PLACES = st.builds(Placeholder, NAMES)
LEAVES = st.one_of(
    st.builds(Compare, NAMES, st.sampled_from(OPERATORS), VALUES | PLACES),
    st.builds(Between, NAMES, VALUES | PLACES, VALUES | PLACES),
    st.builds(In, NAMES, st.lists(VALUES | PLACES, max_size=3)),
    st.builds(In, NAMES, st.tuples(st.builds(Placeholder, NAMES, st.just(True)))),
    st.builds(Constant, st.booleans()),
)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(Not, inner),
        st.builds(And, st.lists(inner, min_size=2, max_size=3)),
        st.builds(Or, st.lists(inner, min_size=2, max_size=3)),
    ),
    max_leaves=8,
)


class Row(dict):
    """One query: every column has some value, chosen by its name."""

    def __init__(self, choices: list) -> None:
        super().__init__()
        self.choices = choices

    def __contains__(self, name: object) -> bool:
        return True

    def __getitem__(self, name: str) -> object:
        return self.choices[sum(name.encode()) % len(self.choices)]


@settings(FIXED, max_examples=300)
@given(TREES, st.lists(st.none() | VALUES, min_size=1, max_size=6))
def test_binding_equals_writing_the_values_into_the_text(tree: Node, choices: list) -> None:
    """A template's text with values in the places of placeholders parses to what `bind` gives."""
    template = Template(to_text(tree))
    assert template.tree == tree
    row = Row(choices)
    written = replaced(tree, row)
    assert template.bind(row) == (None if written is None else parse(to_text(written)))


def replaced(node: Node, row: Row) -> Node | None:
    """Straight from the words of the contract; AND and OR of one child print as that child."""
    if isinstance(node, Not):
        child = replaced(node.child, row)
        return child and Not(child)
    if isinstance(node, And | Or):
        children = [child for child in (replaced(child, row) for child in node.children) if child]
        return type(node)(tuple(children)) if children else None
    if isinstance(node, Constant):
        return node
    if isinstance(node, Compare):
        operands = [node.value]
    elif isinstance(node, Between):
        operands = [node.low, node.high]
    else:
        assert isinstance(node, In)
        operands = list(node.values)
    values = [row[operand.name] if isinstance(operand, Placeholder) else operand for operand in operands]
    if any(value is None for value in values):
        return None
    if isinstance(node, Compare):
        return Compare(node.feature, node.op, values[0])
    return Between(node.feature, *values) if isinstance(node, Between) else In(node.feature, values)
