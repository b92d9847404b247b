"""From Arrow columns to arrays; the oracle is what Python's own objects say."""

from __future__ import annotations

import datetime
import decimal
import math

import numpy as np
import pyarrow as pa
import pytest

from stcli.errors import InputError
from stcli.storage.columns import (
    BadRows,
    embedding_type,
    feature_kind,
    id_type,
    read_embeddings,
    read_feature,
    read_ids,
    row_norms,
    unit_rows,
    usual_length,
)

# ---- ids ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint16(), pa.int32(), pa.int64(), pa.uint32(), pa.uint64()])
@pytest.mark.parametrize("encoded", [False, True])
def test_integer_ids(kind, encoded):
    column = pa.array([5, 0, 127], kind)
    column = column.dictionary_encode() if encoded else column
    bad = BadRows.none(3)
    found = read_ids(column, bad)
    assert id_type(column.type, "x").name == "int64"
    assert found.type == pa.int64()
    assert found.to_pylist() == [5, 0, 127]
    assert not bad.reasons


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
@pytest.mark.parametrize("encoded", [False, True])
def test_string_ids(kind, encoded):
    column = pa.array(["b", "", "ä"], kind)
    column = column.dictionary_encode() if encoded else column
    found = read_ids(column, BadRows.none(3))
    assert id_type(column.type, "x").is_string
    assert found.type == pa.large_string()
    assert found.to_pylist() == ["b", "", "ä"]


def test_null_ids_are_bad():
    for column in (pa.array([1, None, 3]), pa.array(["a", None, "b"]), pa.array(["a", None, "b"]).dictionary_encode()):
        bad = BadRows.none(3)
        assert len(read_ids(column, bad)) == 3
        assert bad.bad.tolist() == [False, True, False]
        assert bad.reasons == {1: "column 'id' is null"}


def test_ids_beyond_int64_are_bad():
    bad = BadRows.none(4)
    found = read_ids(pa.array([2**63 - 1, 2**63, None, 2**64 - 1], pa.uint64()), bad)
    assert found.to_pylist() == [2**63 - 1, 0, 0, 0]
    above = "column 'id' is above 2^63 - 1"
    assert bad.reasons == {1: above, 2: "column 'id' is null", 3: above}


@pytest.mark.parametrize("kind", [pa.float64(), pa.binary(), pa.bool_(), pa.list_(pa.int64()), pa.date32()])
def test_other_types_are_no_ids(kind):
    with pytest.raises(InputError, match=r"items: column 'id' is .*; ids must be an integer or a string column"):
        id_type(kind, "items: column 'id'")


def test_the_first_reason_of_a_row_stays():
    bad = BadRows.none(2)
    bad.mark(np.array([False, True]), "first")
    bad.mark(np.array([True, True]), ["a", "b"])
    assert bad.reasons == {0: "a", 1: "first"}


# ---- embeddings -----------------------------------------------------------------------------------------------

FLOATS = [pa.float16(), pa.float32(), pa.float64()]
LISTS = {"list": pa.list_, "large_list": pa.large_list, "fixed": lambda kind: pa.list_(kind, 3)}


def vectors_of(rows, kind, shape):
    """A column of lists; numpy's float16 is what pyarrow takes for its own."""
    convert = np.float16 if kind == pa.float16() else float
    rows = [None if row is None else [None if x is None else convert(x) for x in row] for row in rows]
    return pa.array(rows, LISTS[shape](kind))


@pytest.mark.parametrize("kind", FLOATS, ids=str)
@pytest.mark.parametrize("shape", LISTS)
def test_embeddings_of_every_type(kind, shape):
    rows = [[1.5, -2.0, 0.25], [0.0, 0.0, 0.0], [1e-3, 3.0, -4.0]]
    column = vectors_of(rows, kind, shape)
    dtype, dim = embedding_type(column.type, "x")
    assert dim == (3 if shape == "fixed" else None)
    assert dtype == (np.float16 if kind == pa.float16() else np.float32)
    bad = BadRows.none(3)
    found = read_embeddings(column, 3, dtype, bad)
    assert found.dtype == dtype
    assert found.tolist() == np.array(rows).astype(dtype).tolist()
    assert not bad.reasons


@pytest.mark.parametrize("kind", FLOATS, ids=str)
@pytest.mark.parametrize("shape", LISTS)
def test_embeddings_of_a_slice(kind, shape):
    rows = [[float(i), float(i + 1), -1.0] for i in range(10)]
    column = vectors_of(rows, kind, shape).slice(4, 3)
    dtype, _ = embedding_type(column.type, "x")
    assert read_embeddings(column, 3, dtype, BadRows.none(3)).tolist() == rows[4:7]


@pytest.mark.parametrize("kind", FLOATS, ids=str)
@pytest.mark.parametrize("shape", LISTS)
def test_bad_embeddings_have_their_reason_and_others_stay(kind, shape):
    rows = [[1.0, 2.0, 3.0], None, [1.0, None, 3.0], [math.nan, 0.0, 0.0], [0.0, -math.inf, 0.0], [4.0, 5.0, 6.0]]
    if shape != "fixed":
        rows += [[], [1.0, 2.0], [1.0, 2.0, 3.0, 4.0]]
    column = vectors_of(rows, kind, shape)
    dtype, _ = embedding_type(column.type, "x")
    bad = BadRows.none(len(rows))
    found = read_embeddings(column, 3, dtype, bad)
    expected = {
        1: "column 'embedding' is null",
        2: "column 'embedding' holds a null",
        3: "column 'embedding' holds a NaN",
        4: "column 'embedding' holds an infinite value",
        6: "column 'embedding' has length 0 where 3 was expected",
        7: "column 'embedding' has length 2 where 3 was expected",
        8: "column 'embedding' has length 4 where 3 was expected",
    }
    assert bad.reasons == {row: reason for row, reason in expected.items() if row < len(rows)}
    assert sorted(np.flatnonzero(bad.bad)) == sorted(bad.reasons)
    for row, vector in enumerate(rows):
        assert found[row].tolist() == ([0.0] * 3 if row in bad.reasons else vector)


def test_a_slice_of_fixed_lists_with_nulls():
    bad = BadRows.none(2)
    column = pa.array([None, [1.0, 2.0], None], pa.list_(pa.float32(), 2)).slice(1)
    assert read_embeddings(column, 2, np.dtype(np.float32), bad).tolist() == [[1.0, 2.0], [0.0, 0.0]]
    assert bad.reasons == {1: "column 'embedding' is null"}


def test_a_float64_too_large_for_float32_is_infinite():
    bad = BadRows.none(2)
    read_embeddings(pa.array([[1e39, 0.0], [1e38, 0.0]]), 2, np.dtype(np.float32), bad)
    assert bad.reasons == {0: "column 'embedding' holds an infinite value"}


@pytest.mark.parametrize("kind", [pa.float32(), pa.list_(pa.int32()), pa.string(), pa.list_(pa.list_(pa.float32()))])
def test_other_types_are_no_embeddings(kind):
    with pytest.raises(InputError, match=r"items: column 'e' is .*; an embedding must be a list of float16, float32"):
        embedding_type(kind, "items: column 'e'")


def test_the_usual_length_is_that_of_most_lists():
    assert usual_length(pa.array([None, [], [9.0], [1.0, 2.0], [1.0, 2.0]])) == 2
    assert usual_length(pa.array([None, []], pa.list_(pa.float32()))) is None


def test_norms_of_tiny_and_huge_rows():
    rows = np.array([[3e-30, 4e-30], [3e30, 4e30], [0, 0], [3, 4]], np.float32)
    np.testing.assert_allclose(row_norms(rows), [5e-30, 5e30, 0, 5], rtol=1e-6)
    np.testing.assert_allclose(unit_rows(rows), [[0.6, 0.8], [0.6, 0.8], [0, 0], [0.6, 0.8]], rtol=1e-6)
    assert unit_rows(rows).dtype == np.float32


# ---- features ---------------------------------------------------------------------------------------------------

DAY = datetime.date(1970, 1, 1)
MOMENT = datetime.datetime(1970, 1, 1)

SCALARS = {
    "string": (pa.string(), ["b", "", "ä"], lambda v: v.encode()),
    "large_string": (pa.large_string(), ["b", "", "ä"], lambda v: v.encode()),
    "int8": (pa.int8(), [-128, 127, 0], int),
    "int64": (pa.int64(), [-(2**63), 2**63 - 1, 0], int),
    "uint64": (pa.uint64(), [0, 2**63 - 1, 7], int),
    "float16": (pa.float16(), [np.float16(0.5), np.float16(-2), np.float16(0)], float),
    "float32": (pa.float32(), [0.5, -2.0, 0.0], float),
    "float64": (pa.float64(), [0.1, math.inf, -0.0], float),
    "decimal": (pa.decimal128(9, 2), [decimal.Decimal("1.25"), decimal.Decimal("-3"), decimal.Decimal(0)], float),
    "boolean": (pa.bool_(), [True, False, True], int),
    "date32": (pa.date32(), [DAY, datetime.date(1969, 12, 31), datetime.date(2024, 2, 29)], lambda v: (v - DAY).days),
    "date64": (pa.date64(), [DAY, datetime.date(1969, 12, 31), datetime.date(2024, 2, 29)], lambda v: (v - DAY).days),
    **{
        f"timestamp[{unit}]": (
            pa.timestamp(unit),
            [MOMENT, datetime.datetime(1969, 12, 31, 23, 59, 59), datetime.datetime(2024, 2, 29, 12)],
            lambda v: (v - MOMENT) // datetime.timedelta(microseconds=1),
        )
        for unit in ("s", "ms", "us", "ns")
    },
}


def check_feature(column: pa.Array, rows: list[list], dropped: int) -> None:
    kind, is_list = feature_kind(column.type, "x")
    found = read_feature(column, kind, is_list, "x")
    values, start = found.values.to_pylist(), 0
    assert found.values.null_count == 0
    assert found.lengths.dtype == np.int64
    assert found.lengths.tolist() == [len(row) for row in rows]
    for row in rows:
        assert values[start : start + len(row)] == row
        start += len(row)
    assert start == len(values)
    assert found.dropped == dropped


NOT_ENCODED = ("float16", "decimal")  # pyarrow makes no dictionary of these


@pytest.mark.parametrize(
    ("name", "encoded"),
    [(name, False) for name in SCALARS] + [(name, True) for name in SCALARS if name not in NOT_ENCODED],
)
def test_scalar_features(name, encoded):
    kind, values, stored = SCALARS[name]
    column = pa.array([values[0], None, values[1], values[2], values[1], None], kind)
    column = column.dictionary_encode() if encoded else column
    expected = [[stored(values[0])], [], [stored(values[1])], [stored(values[2])], [stored(values[1])], []]
    check_feature(column, expected, 0)
    check_feature(column.slice(2, 3), expected[2:5], 0)


@pytest.mark.parametrize("name", SCALARS)
@pytest.mark.parametrize("shape", ["list", "large_list", "fixed"])
def test_list_features(name, shape):
    kind, (a, b, c), stored = SCALARS[name]
    rows = [[a, b], None, [b, b], [None, c]] if shape == "fixed" else [[a, b, c], [], None, [None], [b, b, None], [c]]
    nested = {"list": pa.list_, "large_list": pa.large_list, "fixed": lambda value: pa.list_(value, 2)}[shape]
    column = pa.array(rows, nested(kind))
    expected = [[stored(value) for value in row or [] if value is not None] for row in rows]
    nulls = [sum(value is None for value in row or []) for row in rows]
    check_feature(column, expected, sum(nulls))
    check_feature(column.slice(1, 3), expected[1:4], sum(nulls[1:4]))


def test_lists_of_encoded_strings():
    values = pa.array(["x", "y", None, "x"]).dictionary_encode()
    column = pa.ListArray.from_arrays(pa.array([0, 2, 2, 4]), values)
    check_feature(column, [[b"x", b"y"], [], [b"x"]], 1)


def test_nan_is_no_value_and_both_zeros_are_one():
    column = pa.array([math.nan, -0.0, 0.0, 1.0])
    found = read_feature(column, "float", False, "x")
    assert found.lengths.tolist() == [0, 1, 1, 1]
    assert [math.copysign(1, value) for value in found.values.to_pylist()] == [1.0, 1.0, 1.0]
    nested = read_feature(pa.array([[math.nan, 1.0], [math.nan]]), "float", True, "x")
    assert nested.lengths.tolist() == [1, 0]
    assert nested.dropped == 2


def test_integers_above_int64_are_refused():
    with pytest.raises(InputError, match=r"items: column 'n' holds an integer above 2\^63 - 1"):
        read_feature(pa.array([1, 2**63], pa.uint64()), "integer", False, "items: column 'n'")


@pytest.mark.parametrize(
    "kind", [pa.binary(), pa.struct([("a", pa.int64())]), pa.list_(pa.list_(pa.string())), pa.null(), pa.time32("s")]
)
def test_other_types_are_no_features(kind):
    with pytest.raises(InputError, match=r"items: column 'f' is .*; a feature must be a string, integer, float"):
        feature_kind(kind, "items: column 'f'")
