"""How column names and values are written in a filter text: their patterns, reading and printing.

A value in a tree is a `str`, `int`, `float`, `bool`, `date` or `datetime`. Floats are finite, datetimes are naive and
in UTC, so that values compare without further rules.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Final

from stcli.errors import FilterError

Value = str | int | float | bool | date | datetime

MAX_DIGITS: Final = 600
"""Digits of an integer. No column holds one beyond 309 (1.8e308); up to 640 Python reads and prints in any setting."""

RESERVED: Final = frozenset({"and", "or", "not", "in", "between", "is", "null", "true", "false"})
"""Words of the language; a column of that name needs double quotes where nothing follows that tells it is a column."""

# Written as what it is not (ASCII punctuation, spaces, typographic quotes, mathematical signs), because \w lacks the
# vowel signs of Indic scripts.
_LETTER = r"[^\x00-\x2f:-@\[-^`{-\xa0\s\u2000-\u200b\u200e-\u206f\u2200-\u22ff\ufeff]"
_END = rf"(?!{_LETTER}|[.\-]{_LETTER})"
WORD: Final = rf"{_LETTER}++(?:[.\-]{_LETTER}++)*+"
"""A bare name: letters, marks and digits of any script and `_`; inside also single `.` and `-`. Numbers go first."""
INTEGER: Final = rf"[+-]?[0-9]+(?!\.){_END}"
FLOAT: Final = rf"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?{_END}"
STRING: Final = r"'(?:[^']++|'')*+'"
QUOTED: Final = r'"(?:[^"]++|"")*+"'

_BARE = re.compile(rf"(?!(?:{INTEGER}|{FLOAT})\Z){WORD}")
_DATE = r"([0-9]{4})-([0-9]{2})-([0-9]{2})"
_TIME = r"([0-9]{2}):([0-9]{2})(?::([0-9]{2})(?:\.([0-9]{1,6}))?)?"
_ZONE = r"(Z|[+-][0-9]{2}:?[0-9]{2})"
_DATE_TEXT = re.compile(_DATE)
_TIMESTAMP_TEXT = re.compile(rf"{_DATE}(?:[ T]{_TIME} ?{_ZONE}?)?")


@dataclass(frozen=True, slots=True)
class Placeholder:
    """`$name` in a template: stands for one value or, with `many`, for all values of an IN."""

    name: str
    many: bool = False
    position: int = field(default=0, compare=False, repr=False)


FeatureValue = tuple[str, Value | Placeholder]
"""The name of a feature, and what a filter compares it with."""


def unquote(token: str) -> str:
    """The content of a quoted string or name: the quotes at both ends gone, doubled ones inside made single."""
    quote, inner = token[0], token[1:-1]
    return inner.replace(quote + quote, quote) if quote in inner else inner


def read_date(text: str) -> date | None:
    """The day that `YYYY-MM-DD` names, or None for any other text."""
    match = _DATE_TEXT.fullmatch(text)
    try:
        return date(*map(int, match.groups())) if match else None
    except ValueError:  # 30 February
        return None


def read_timestamp(text: str) -> datetime | None:
    """The time that `YYYY-MM-DD[ HH:MM[:SS[.ffffff]][Z|+HH:MM]]` names, naive and in UTC, or None for any other text.

    `T` may stand for the first space. Without an offset the time is UTC.
    """
    match = _TIMESTAMP_TEXT.fullmatch(text)
    if match is None:
        return None
    year, month, day, hour, minute, second, fraction, zone = match.groups()
    try:
        microsecond = int((fraction or "0").ljust(6, "0"))
        time = (int(hour or 0), int(minute or 0), int(second or 0), microsecond)
        moment = datetime(int(year), int(month), int(day), *time)
        if zone and zone != "Z":
            offset = timedelta(hours=int(zone[1:3]), minutes=int(zone[-2:]))
            moment = in_utc(moment.replace(tzinfo=timezone(-offset if zone[0] == "-" else offset)))
    except (ValueError, OverflowError):  # no such day, or beyond the years 1 to 9999 in UTC
        return None
    return moment


def in_utc(moment: datetime) -> datetime:
    """`moment` as a naive datetime in UTC; a naive one is taken to be that already."""
    return moment if moment.tzinfo is None else moment.astimezone(UTC).replace(tzinfo=None)


def to_value(feature: str, value: object) -> Value | Placeholder:
    """Make a value of a tree from what a caller gave, numpy scalars included.

    Raises:
        FilterError: null, NaN, infinite, too long, or of a type that no feature has.
    """
    kind = type(value)
    # The common ones first: each value of each tree passes here, an IN list may have thousands.
    if (kind is str and value.isascii()) or (kind is int and value.bit_length() < 64) or kind is Placeholder:  # type: ignore[attr-defined]
        return value  # type: ignore[return-value]
    where = f"filter: feature {feature!r}"
    if kind.__module__ == "numpy" and hasattr(value, "item"):
        value = value.item()
        if kind.__name__ in ("datetime64", "timedelta64") and not isinstance(value, date):
            raise FilterError(f"{where}: a numpy {kind.__name__} finer than microseconds; give a datetime")
    match value:
        case bool():
            return value
        case int():
            if abs(value) >= 10**MAX_DIGITS:
                raise FilterError(
                    f"{where}: an integer of more than {MAX_DIGITS} digits; no column holds such a number"
                )
            return int(value)
        case float():
            if not math.isfinite(value):
                raise FilterError(f"{where}: {value} is not a value to compare with; give a finite number")
            return float(value)
        case str():
            if any("\ud800" <= letter <= "\udfff" for letter in value):
                raise FilterError(f"{where}: {value[:40]!r} has half of a surrogate pair; give valid Unicode")
            return str(value)
        case datetime():
            try:
                return in_utc(datetime.combine(value.date(), value.timetz()))
            except OverflowError as error:
                raise FilterError(f"{where}: {value} lies outside the years 1 to 9999 in UTC") from error
        case date():
            return date(value.year, value.month, value.day)
        case None:
            raise FilterError(f"{where}: nothing equals null; use IsNull(feature) or Not(IsNull(feature))")
        case _:
            name = type(value).__name__
            raise FilterError(f"{where}: a {name} is not a value; give a str, int, float, bool, date or datetime")


def value_text(value: Value | Placeholder) -> str:
    """Write a value so that it reads back equal and of the same type."""
    match value:
        case bool():
            return "TRUE" if value else "FALSE"
        case str():
            return "'" + value.replace("'", "''") + "'"
        case datetime():
            return f"TIMESTAMP '{value.isoformat(sep=' ')}'"
        case date():
            return f"DATE '{value.isoformat()}'"
        case Placeholder():
            return "$" + feature_text(value.name)
        case _:
            return repr(value)


def feature_text(feature: str) -> str:
    """Write a column name: bare where that is a name by itself, else in double quotes."""
    if _BARE.fullmatch(feature) and feature.lower() not in RESERVED:
        return feature
    return '"' + feature.replace('"', '""') + '"'
