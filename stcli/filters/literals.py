"""The values that query columns give to a template: from Arrow to ranks among the values of a feature."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stcli.errors import InputError
from stcli.filters.lexicon import to_value
from stcli.filters.vocabulary import Feature, Strings
from stcli.storage.columns import feature_kind

FITTING = {
    "string": ("string",),
    "integer": ("integer", "float"),
    "float": ("integer", "float"),
    "boolean": ("boolean",),
    "date": ("date", "string"),
    "timestamp": ("timestamp", "date", "string"),
}
"""Kinds of columns whose values can be compared with a feature of some kind."""

_DAY = 86_400_000_000
_LAST_DAY = (2**63 - 1) // _DAY


@dataclass(frozen=True)
class Literals:
    """The values of a query column, those of one query after those of another.

    Attributes:
        kind: one of `FEATURE_KINDS`, or "null" if the column's type has no values.
        is_list: the column holds lists.
        values: int64, uint64 or float64 [n]: numbers, days, microseconds since 1970, 0 and 1, or numbers of `texts`.
        texts: the distinct strings.
        lengths: int64 [B], values of each query; nulls inside lists are none.
        null: bool [B], the query has a null, so that the clause is dropped.
    """

    kind: str
    is_list: bool
    values: np.ndarray
    texts: list[str]
    lengths: np.ndarray
    null: np.ndarray


def read_literals(column: pa.Array | pa.ChunkedArray, where: str) -> Literals:
    """Read the values of a query column.

    Raises:
        InputError: its type is none that a feature could have.
    """
    column = _decoded(column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column)
    null = column.is_null().to_numpy(zero_copy_only=False)
    values, lengths = column, (~null).astype(np.int64)
    is_list = any(test(column.type) for test in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list))
    if is_list:
        values = _decoded(column.flatten())
        counts = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
        lengths = np.where(null, 0, counts).astype(np.int64)
        if values.null_count:
            owners = np.repeat(np.arange(len(lengths)), lengths)
            present = values.is_valid().to_numpy(zero_copy_only=False)
            lengths = np.bincount(owners[present], minlength=len(lengths)).astype(np.int64)
    values = values.drop_null()
    if pa.types.is_null(values.type):
        return Literals("null", is_list, np.zeros(0, np.int64), [], lengths, null)
    kind, _ = feature_kind(values.type, where)
    numbers, texts = _numbers(
        values.dictionary_decode() if pa.types.is_dictionary(values.type) else values, kind, where
    )
    return Literals(kind, is_list, numbers, texts, lengths, null)


def _decoded(values: pa.Array) -> pa.Array:
    """Plain values: the dictionary of an encoded column may hold null, and values that do not occur."""
    return values.dictionary_decode() if pa.types.is_dictionary(values.type) else values


def _numbers(values: pa.Array, kind: str, where: str) -> tuple[np.ndarray, list[str]]:
    """Values without nulls as numbers, and what the numbers mean if the values are strings."""
    if kind == "string":
        encoded = values.dictionary_encode()
        try:
            return encoded.indices.to_numpy(), encoded.dictionary.to_pylist()
        except UnicodeDecodeError as error:
            raise InputError(f"{where} holds a string that is not UTF-8") from error
    if kind == "integer":
        return values.to_numpy().astype(np.uint64 if values.type == pa.uint64() else np.int64, copy=False), []
    if kind == "float":
        return values.cast(pa.float64()).to_numpy(), []
    if kind == "boolean":
        return values.cast(pa.int8()).to_numpy().astype(np.int64), []
    if kind == "date":
        return values.cast(pa.date32()).cast(pa.int32()).to_numpy().astype(np.int64), []
    # Items keep microseconds too, cut off in the same way.
    return values.cast(pa.timestamp("us", values.type.tz), safe=False).cast(pa.int64()).to_numpy(), []


@dataclass(frozen=True)
class Ranks:
    """Where literals stand among the values of a feature.

    Attributes:
        before, after: int64 [n], values that are smaller, and smaller or equal.
        refused: bool [n], a value that cannot be compared with the feature.
    """

    before: np.ndarray
    after: np.ndarray
    refused: np.ndarray


def find_ranks(literals: Literals, feature: Feature) -> Ranks:
    """Look up all values; those refused have any rank. The kinds fit, see `FITTING`."""
    values = literals.values
    if literals.kind in ("string", "null"):
        (before, after), refused = feature.text_spans(literals.texts)
        return Ranks(before[values], after[values], refused[values])
    assert not isinstance(feature.values, Strings)
    refused = ~np.isfinite(values)
    if refused.any():
        values = np.where(refused, 0.0, values)
    if literals.kind == "date" and feature.kind == "timestamp":
        values = values.clip(-_LAST_DAY, _LAST_DAY) * _DAY
    return Ranks(*_number_ranks(feature.values, values), refused)


def why_refused(literals: Literals, feature: Feature, place: int) -> str:
    """Why the value at `place` cannot be compared with the feature."""
    value = literals.values[place].item()
    try:
        feature.span(to_value(feature.name, literals.texts[value] if literals.kind == "string" else value))
    except InputError as error:
        return str(error).removeprefix("filter: ")
    raise AssertionError(f"{value!r} fits {feature.name}")


def _number_ranks(values: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Count the values (int64 or float64) below each x (int64, uint64 or float64), and those not above; exactly."""
    if values.dtype == np.float64 and x.dtype != np.float64:
        return _integers_among_floats(values, x)
    if values.dtype == np.int64 and x.dtype == np.uint64:
        above = x > np.uint64(2**63 - 1)
        before, after = _equal_types(values, np.where(above, 0, x).astype(np.int64))
        return np.where(above, len(values), before), np.where(above, len(values), after)
    if values.dtype == np.int64 and x.dtype == np.float64:
        whole = np.ceil(x)  # no integer lies between x and the next one above
        above, below = whole >= 2.0**63, whole < -(2.0**63)
        before, after = _equal_types(values, np.where(above | below, 0, whole).astype(np.int64))
        before = np.where(above, len(values), np.where(below, 0, before))
        return before, np.where((whole == x) & ~above & ~below, after, before)
    return _equal_types(values, x)


def _equal_types(values: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    before = values.searchsorted(x)
    if not len(values):
        return before, before
    return before, before + (values[np.minimum(before, len(values) - 1)] == x)


def _integers_among_floats(values: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The float nearest to x may differ from x, but no other float lies between the two."""
    nearest = x.astype(np.float64)
    top = 2.0**64 if x.dtype == np.uint64 else 2.0**63
    back = np.where(nearest < top, nearest, 0).astype(x.dtype)
    above = (nearest >= top) | (back > x)
    below = (nearest < top) & (back < x)
    left, right = _equal_types(values, nearest)
    return np.where(below, right, left), np.where(above, left, right)
