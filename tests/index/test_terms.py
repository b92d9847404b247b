"""Terms collected from a stream of batches; the oracle sorts Python objects."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from stcli.filters.ragged import places
from stcli.filters.vocabulary import Strings
from stcli.index import terms as module
from stcli.index.terms import TermCollector
from stcli.storage.columns import feature_kind, read_feature
from tests.index_tools import feature_values, mixed_columns


def collect(columns, folder, batch_rows, pending=None, monkeypatch=None):
    if pending is not None:
        monkeypatch.setattr(module, "PENDING_VALUES", pending)
    kinds = {name: feature_kind(column.type, name) for name, column in columns.items()}
    collector = TermCollector({name: kind for name, (kind, _) in kinds.items()}, folder)
    rows = len(next(iter(columns.values())))
    for start in range(0, rows, batch_rows):
        collector.add(
            {
                name: read_feature(column.slice(start, batch_rows), *kinds[name], name)
                for name, column in columns.items()
            },
            min(batch_rows, rows - start),
        )
    return collector, collector.finish()


def check(collected, columns, rows):
    """Everything against plain Python."""
    expected = {name: [feature_values(value) for value in column.to_pylist()] for name, column in columns.items()}
    term_of, first = {}, 0
    assert [feature.name for feature in collected.features] == sorted(columns)
    for feature in collected.features:
        values = sorted({value for line in expected[feature.name] for value in line})
        assert list(feature.values) == values
        assert isinstance(feature.values, Strings) == (feature.kind == "string")
        assert (feature.first_term, feature.num_terms) == (first, len(values))
        assert feature.multi >= any(len(line) > 1 for line in expected[feature.name])
        term_of[feature.name] = {value: first + rank for rank, value in enumerate(values)}
        first += len(values)
    flat, counts = collected.of_rows(np.array(rows, np.int64))
    assert flat.dtype == np.int32
    start = 0
    for row, count in zip(rows, counts.tolist(), strict=True):
        line = sorted(term_of[name][value] for name in columns for value in expected[name][row])
        assert flat[start : start + count].tolist() == line
        start += count
    assert start == len(flat)


@pytest.mark.parametrize("batch_rows", [1, 17, 1000])
@pytest.mark.parametrize("pending", [1, 50, None])
def test_terms_of_mixed_features(tmp_path, monkeypatch, batch_rows, pending):
    columns = mixed_columns(120, seed=batch_rows)
    collector, collected = collect(columns, tmp_path, batch_rows, pending, monkeypatch)
    rows = np.random.default_rng(0).permutation(120).tolist()
    check(collected, columns, rows)
    check(collected, columns, [5, 5, 0])
    dropped = sum(
        one is None or one != one
        for column in columns.values()
        for value in column.to_pylist()
        if isinstance(value, list)
        for one in value
    )
    assert collector.dropped == dropped


def test_features_without_any_value(tmp_path):
    columns = {"a": pa.array([None, None], pa.string()), "b": pa.array([[], None], pa.list_(pa.int64()))}
    _, collected = collect(columns, tmp_path, 10)
    check(collected, columns, [0, 1])
    assert [feature.num_terms for feature in collected.features] == [0, 0]
    assert not any(feature.multi for feature in collected.features)


def test_no_features_at_all(tmp_path):
    collector = TermCollector({}, tmp_path)
    collector.add({}, 3)
    collector.add({}, 2)
    collected = collector.finish()
    assert collected.features == ()
    assert collected.of_rows(np.array([0, 4]))[1].tolist() == [0, 0]


def test_a_scalar_feature_is_not_multi_and_a_list_of_one_value_neither(tmp_path):
    columns = {
        "list": pa.array([["x"], ["y"], []]),
        "lists": pa.array([["x", "y"], ["y"], []]),
        "scalar": pa.array(["x", "y", None]),
    }
    _, collected = collect(columns, tmp_path, 2)
    assert [feature.multi for feature in collected.features] == [False, True, False]


def test_many_distinct_values_over_many_batches(tmp_path, monkeypatch):
    rng = np.random.default_rng(1)
    columns = {
        "id": pa.array([f"v{n}" for n in rng.integers(0, 3000, 5000)]),
        "n": pa.array(rng.integers(0, 10**9, 5000)),
    }
    _, collected = collect(columns, tmp_path, 333, 500, monkeypatch)
    check(collected, columns, list(range(0, 5000, 7)))


def test_places():
    assert places(np.array([5, 0, 9]), np.array([2, 0, 3])).tolist() == [5, 6, 9, 10, 11]
    assert places(np.zeros(0, np.int64), np.zeros(0, np.int64)).tolist() == []
