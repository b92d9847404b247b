"""The vocabulary: every (feature, value) of the index as a term id, sorted by feature and value.

A feature is an interval of term ids, and within it numbers and dates stand by value and strings by
UTF-8 bytes. So `=`, `IN`, `<`, `BETWEEN` and `IS NULL` all become intervals of term ids.
"""

from __future__ import annotations

import datetime
import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np

from stcli.errors import InputError
from stcli.filters.lexicon import read_date, read_timestamp

EPOCH = datetime.date(1970, 1, 1)
NUMERIC_KINDS = ("integer", "float")
TIME_KINDS = ("date", "timestamp")

MAX_SPANS = 1 << 20
"""Literals of a feature whose place among its values is remembered."""


class Strings(Sequence[bytes]):
    """Byte strings as one buffer and offsets; reading one touches only its own bytes.

    Attributes:
        data: uint8 [bytes].
        offsets: int64 [count + 1].
    """

    def __init__(self, data: np.ndarray, offsets: np.ndarray) -> None:
        self.data, self.offsets = data, offsets

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: Any) -> Any:
        return self.data[self.offsets[index] : self.offsets[index + 1]].tobytes()

    def __iter__(self) -> Iterator[bytes]:
        return (self[index] for index in range(len(self)))


@dataclass(frozen=True)
class Feature:
    """One feature of the index.

    Attributes:
        name: its column.
        kind: string, integer, float, boolean, date or timestamp.
        first_term: id of its smallest value's term.
        num_terms: distinct values.
        multi: some item has more than one value.
        values: the values, ascending: int64 or float64 [num_terms], or `Strings`. Booleans are 0
            and 1, dates days and timestamps microseconds since 1970.
    """

    name: str
    kind: str
    first_term: int
    num_terms: int
    multi: bool
    values: np.ndarray | Strings
    _spans: dict[Any, tuple[int, int]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def end_term(self) -> int:
        """One past the id of its largest value's term."""
        return self.first_term + self.num_terms

    @property
    def ordered(self) -> bool:
        """Comparisons with `<` are by number or time."""
        return self.kind in NUMERIC_KINDS or self.kind in TIME_KINDS

    def rank(self, key: Any, after: bool = False) -> int:
        """How many values are smaller than `key` (with `after`: smaller or equal); exact for any number."""
        first = self._first_not_below(key)
        return first + (after and self._is_at(first, key))

    def span(self, literal: Any) -> tuple[int, int]:
        """The values equal to a literal, as ranks `first … end - 1`: at most one, and where it would stand if none.

        Raises:
            InputError: as `key`.
        """
        known = literal if isinstance(literal, str) else (type(literal), literal)  # 1, 1.0 and True are equal
        found = self._spans.get(known)
        if found is None:
            key = self.key(literal)
            first = self._first_not_below(key)
            found = first, first + self._is_at(first, key)
            if len(self._spans) < MAX_SPANS:
                self._spans[known] = found
        return found

    def text_spans(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The `span` of many strings, int64 [2, n], and which of them have none since they raise, bool [n]."""
        spans: list[Any] = list(map(self._spans.get, texts))
        refused = np.zeros(len(texts), bool)
        if None in spans:  # in most batches all were met before
            for place, text in enumerate(texts):
                try:
                    spans[place] = self.span(text)
                except InputError:
                    spans[place], refused[place] = (0, 0), True
        pairs = np.fromiter(chain.from_iterable(spans), np.int64, 2 * len(spans)).reshape(-1, 2)
        return np.ascontiguousarray(pairs.T), refused

    def _first_not_below(self, key: Any) -> int:
        values = self.values
        if isinstance(values, Strings):
            return bisect_left(values, key)
        if values.dtype == np.int64:
            key = math.ceil(key)
            if not -(2**63) <= key < 2**63:
                return len(values) if key > 0 else 0
        elif isinstance(key, int) and abs(key) > 2**53:
            return bisect_left(_PythonNumbers(values), key)  # as a float it would be rounded
        return int(values.searchsorted(key))

    def _is_at(self, rank: int, key: Any) -> bool:
        if rank == self.num_terms:
            return False
        return bool((self.values[rank] if isinstance(self.values, Strings) else self.values.item(rank)) == key)

    def key(self, literal: Any) -> Any:
        """A literal of a filter as this feature's values are kept.

        Raises:
            InputError: the literal has another type than the feature.
        """
        converted = _CONVERT[self.kind](literal)
        if converted is None:
            raise InputError(
                f"feature {self.name!r} is {self.kind}, so {literal!r} cannot be compared with it; "
                f"write {_WRITE[self.kind]}"
            )
        return converted

    def value(self, rank: int) -> Any:
        """The value at `rank` as a Python object."""
        raw = self.values[rank]
        if isinstance(raw, bytes):
            return raw.decode("utf-8", "replace")
        return _SHOW[self.kind](raw)


class _PythonNumbers(Sequence[Any]):
    """Numbers as Python objects, so that int against float compares exactly."""

    def __init__(self, values: np.ndarray) -> None:
        self._values = values

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, index: Any) -> Any:
        return self._values[index].item()


def _number(literal: Any) -> Any:
    return literal if isinstance(literal, int | float) and not isinstance(literal, bool) else None


def _string(literal: Any) -> Any:
    return literal.encode() if isinstance(literal, str) else None


def _boolean(literal: Any) -> Any:
    return int(literal) if isinstance(literal, bool) else None


def _date(literal: Any) -> Any:
    literal = read_date(literal) if isinstance(literal, str) else literal
    if isinstance(literal, datetime.datetime) or not isinstance(literal, datetime.date):
        return None
    return (literal - EPOCH).days


def _timestamp(literal: Any) -> Any:
    literal = read_timestamp(literal) if isinstance(literal, str) else literal
    if isinstance(literal, datetime.datetime):
        return (literal - datetime.datetime(1970, 1, 1)) // datetime.timedelta(microseconds=1)
    if isinstance(literal, datetime.date):
        return (literal - EPOCH).days * 86_400_000_000
    return None


_CONVERT = {
    "string": _string,
    "integer": _number,
    "float": _number,
    "boolean": _boolean,
    "date": _date,
    "timestamp": _timestamp,
}
_WRITE = {
    "string": "a text in single quotes",
    "integer": "a number",
    "float": "a number",
    "boolean": "TRUE or FALSE",
    "date": "'YYYY-MM-DD'",
    "timestamp": "'YYYY-MM-DD HH:MM:SS'",
}
_SHOW: dict[str, Callable[[Any], Any]] = {
    "integer": int,
    "float": float,
    "boolean": bool,
    "date": lambda days: (EPOCH + datetime.timedelta(days=int(days))).isoformat(),
    "timestamp": lambda us: (datetime.datetime(1970, 1, 1) + datetime.timedelta(microseconds=int(us))).isoformat(" "),
}


@dataclass(frozen=True)
class Vocabulary:
    """All features and the number of items of each term.

    Attributes:
        features: sorted by name; their term intervals follow one another.
        counts: int64 [V], items that have the term.
        present: int64 [features], items that have any value of the feature.
    """

    features: tuple[Feature, ...]
    counts: np.ndarray
    present: np.ndarray
    by_name: dict[str, Feature] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_name", {feature.name: feature for feature in self.features})

    @property
    def num_terms(self) -> int:
        """V."""
        return len(self.counts)

    def describe(self, term: int) -> str:
        """`feature = value` of a term id, for people."""
        for feature in self.features:
            if feature.first_term <= term < feature.end_term:
                return f"{feature.name} = {feature.value(term - feature.first_term)!r}"
        return f"term {term}"
