"""Ranks of literals among the values of a feature, exactly, for every kind."""

from __future__ import annotations

import datetime
import math
import random

import numpy as np
import pyarrow as pa
import pytest

from stcli.errors import InputError
from stcli.filters.vocabulary import Feature, Strings
from tests.filters.indexed import index_table
from tests.filters.random_tables import random_table
from tests.filters.tree_strategies import KINDS
from tests.oracles_tree import compare, values_of


def feature_of(column: pa.Array) -> Feature:
    return index_table(pa.table({"x": column})).vocabulary.by_name["x"]


@pytest.mark.parametrize("kind", KINDS)
def test_rank_counts_the_smaller_values(kind):
    dtype, values, literals = KINDS[kind]
    feature = feature_of(pa.array(values, dtype))
    stored = set(values_of(pa.array(values, dtype).to_pylist()))
    for literal in literals:
        key = feature.key(literal)
        assert feature.rank(key) == sum(compare(value, literal) < 0 for value in stored), literal
        assert feature.rank(key, after=True) == sum(compare(value, literal) <= 0 for value in stored), literal


@pytest.mark.parametrize("seed", range(3))
def test_rank_of_random_numbers_across_types(seed):
    rng = random.Random(seed)
    numbers = [rng.randint(-(2**62), 2**62) >> rng.randint(0, 62) for _ in range(200)]
    integers, floats = feature_of(pa.array(numbers)), feature_of(pa.array([number / 7 for number in numbers]))
    for literal in [*numbers, *(float(number) for number in numbers), *(number + 1 for number in numbers)]:
        for feature in (integers, floats):
            smaller = sum(feature.values[place].item() < literal for place in range(feature.num_terms))
            assert feature.rank(literal) == smaller
            assert (feature.rank(literal, after=True) > smaller) == (literal in feature.values.tolist())


def test_equal_literals_of_two_types_are_not_confused():
    """The found ranks are kept by literal, and 1 == 1.0 == True in Python."""
    feature = feature_of(pa.array([2**53, 2**53 + 1]))
    assert feature.rank(float(2**53), after=True) == 1
    assert feature.rank(2**53, after=True) == 1
    assert feature.rank(2**53 + 1) == 1
    with pytest.raises(InputError, match="is integer"):
        feature.key(True)


def test_values_stand_in_order_and_once():
    columns = {
        "string": pa.array(["b", "a", "é", "a", None, "Z", "\U0001f600", "\uffff"]),
        "float": pa.array([0.0, -0.0, math.nan, math.inf, -math.inf, None, 0.5]),
        "boolean": pa.array([True, None, True]),
        "date": pa.array([datetime.date(2024, 2, 29), datetime.date(1, 1, 1)]),
        "timestamp": pa.array([0, -1, None, 10**6], pa.timestamp("us", "Asia/Tokyo")),
        "integers": pa.array([[3, 1], [None, 2**62], [], None, [1, 1]]),
    }
    shown = {name: feature_of(column) for name, column in columns.items()}
    assert {name: [feature.value(rank) for rank in range(feature.num_terms)] for name, feature in shown.items()} == {
        "string": ["Z", "a", "b", "é", "\uffff", "\U0001f600"],  # by UTF-8 bytes
        "float": [-math.inf, 0.0, 0.5, math.inf],  # NaN is no value, the zeros are one
        "boolean": [True],
        "date": ["0001-01-01", "2024-02-29"],
        "timestamp": ["1969-12-31 23:59:59.999999", "1970-01-01 00:00:00", "1970-01-01 00:00:01"],
        "integers": [1, 3, 2**62],
    }
    assert {name: feature.multi for name, feature in shown.items()} == {
        name: name == "integers" for name in columns
    }  # fmt: skip


def test_a_list_column_with_at_most_one_value_is_not_multi():
    assert not feature_of(pa.array([[1], [], None, [2, None]])).multi


@pytest.mark.parametrize("seed", range(5))
def test_counts_and_intervals(seed):
    rng = random.Random(seed)
    table = random_table(rng, 80)
    vocabulary = index_table(table, batch_rows=rng.choice([None, 9])).vocabulary
    assert [feature.name for feature in vocabulary.features] == sorted(table.column_names)
    end = 0
    for number, feature in enumerate(vocabulary.features):
        assert feature.first_term == end
        end = feature.end_term
        items = [{repr(value + 0 if value == 0 else value) for value in values_of(cell)}
                 for cell in table[feature.name].to_pylist()]  # fmt: skip
        assert vocabulary.present[number] == sum(map(bool, items))
        assert vocabulary.counts[feature.first_term : end].sum() == sum(map(len, items))
    assert end == vocabulary.num_terms


def test_describe_names_feature_and_value():
    table = pa.table({"name": ["b", "a"], "year": [7, 5]})
    vocabulary = index_table(table).vocabulary
    assert [vocabulary.describe(term) for term in range(5)] == [
        "name = 'a'", "name = 'b'", "year = 5", "year = 7", "term 4",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "bad", "hint"),
    [
        ("integer", ["1", True, datetime.date(2024, 1, 1)], "a number"),
        ("float", ["0.5", False], "a number"),
        ("string", [1, 1.0, True, datetime.date(2024, 1, 1)], "text in single quotes"),
        ("boolean", [1, 0.0, "true"], "TRUE or FALSE"),
        ("date", [20240101, "2024-1-1", "2024-02-30", "20240101", datetime.datetime(2024, 1, 1)], "YYYY-MM-DD"),
        ("timestamp", [0, "noon", "2024-01-01 25:00:00"], "HH:MM:SS"),
    ],
)
def test_a_literal_of_another_type(kind, bad, hint):
    dtype, values, _ = KINDS[kind]
    feature = feature_of(pa.array(values, dtype))
    for literal in bad:
        with pytest.raises(InputError, match=f"'x' is {kind}.*{hint}"):
            feature.key(literal)


def test_strings_read_only_what_is_asked_for():
    strings = Strings(np.frombuffer("aßc".encode(), np.uint8), np.array([0, 1, 1, 4]))
    assert list(strings) == [b"a", b"", "ßc".encode()]
    assert len(strings) == 3
