"""Trees built in Python: simplified, plain, and mistakes explained."""

import pickle
from datetime import UTC, date, datetime, timedelta, timezone

import numpy as np
import pytest

from stcli.errors import FilterError
from stcli.filters.parse import parse
from stcli.filters.tree import (
    MAX_TERMS,
    And,
    Between,
    Compare,
    Constant,
    Flag,
    In,
    Node,
    Not,
    Or,
    all_of,
    any_of,
    check,
    to_text,
)

A, B, C = Compare("a", "=", 1), Compare("b", "=", 2), Compare("c", "=", 3)


def test_trees_are_pleasant_to_build() -> None:
    tree = (Compare("lang", "=", "de") | In("country", ["AT", "CH"])) & ~Compare("price", ">", 20) & Flag("new")
    assert str(tree) == "(lang = 'de' OR country IN ('AT', 'CH')) AND NOT price > 20 AND new"
    assert parse(str(tree)) == tree
    assert repr(Compare("a", "<", 1)) == "Compare(feature='a', op='<', value=1)"
    assert And([A, B]) == And((A, B))
    assert pickle.loads(pickle.dumps(tree)) == tree


def test_all_of_and_any_of_simplify() -> None:
    assert (all_of([]), any_of([])) == (Constant(True), Constant(False))
    assert (all_of([A]), any_of(iter([A]))) == (A, A)
    assert (all_of([A, B]), any_of([A, B])) == (And((A, B)), Or((A, B)))
    assert to_text(And((Or((A,)), Or(())))) == "a = 1 AND FALSE"
    assert to_text(Not(And((Or((A,)),)))) == "a != 1"


@pytest.mark.parametrize(
    ("given", "value"),
    [
        (np.int64(-5), -5),
        (np.float32(0.1), float(np.float32(0.1))),
        (np.float64(0.5), 0.5),
        (np.bool_(True), True),
        (np.str_("x"), "x"),
        (np.datetime64("2024-02-29"), date(2024, 2, 29)),
        (np.datetime64("2024-02-29T01:00:00", "s"), datetime(2024, 2, 29, 1)),
        (datetime(2024, 2, 29, 1, tzinfo=timezone(timedelta(hours=2))), datetime(2024, 2, 28, 23)),
        (datetime(2024, 2, 29, tzinfo=UTC), datetime(2024, 2, 29)),
        (1 - 10**600, 1 - 10**600),
        ("名前", "名前"),
    ],
)
def test_values_from_python_become_plain(given: object, value: object) -> None:
    leaf = Compare("a", "<", given)  # type: ignore[arg-type]
    assert (leaf.value, type(leaf.value)) == (value, type(value))
    assert In("a", np.array([1, 2])).values == (1, 2)  # type: ignore[arg-type]
    assert parse(to_text(leaf)) == leaf


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (None, "nothing equals null; use IsNull"),
        (float("nan"), "nan is not a value"),
        (float("-inf"), "-inf is not a value"),
        (10**600, "more than 600 digits"),
        (-(10**600), "more than 600 digits"),
        ("\ud800", "surrogate"),
        (b"x", "a bytes is not a value"),
        ([1], "a list is not a value"),
        (np.datetime64("2024-02-29T00:00:00", "ns"), "finer than microseconds"),
        (datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=2))), "outside the years"),
    ],
)
def test_values_that_no_feature_has_are_refused(given: object, words: str) -> None:
    for build in (
        lambda: Compare("price", "=", given),  # type: ignore[arg-type]
        lambda: In("price", [1, given]),  # type: ignore[arg-type]
        lambda: Between("price", 1, given),  # type: ignore[arg-type]
    ):
        with pytest.raises(FilterError, match=f"feature 'price': .*{words}"):
            build()


def test_mistakes_in_python_trees_are_explained() -> None:
    with pytest.raises(FilterError, match="'!=' is no operator; use one of = < <= > >=, and Not for !="):
        Compare("a", "!=", 1)
    with pytest.raises(FilterError, match="IN needs a list, got the string 'abc'"):
        In("a", "abc")  # type: ignore[arg-type]
    deep: Node = A
    for _ in range(100_000):
        deep = Not(deep)
    with pytest.raises(FilterError, match="nest deeper"):
        check(deep)
    shared: Node = A
    for _ in range(30):  # 2 ** 30 leaves in thirty objects
        shared = And((shared, shared))
    with pytest.raises(FilterError, match="more than 20,000 values"):
        check(shared)
    with pytest.raises(FilterError, match="more than 20,000 values"):
        to_text(In("a", range(MAX_TERMS + 1)))  # type: ignore[arg-type]
