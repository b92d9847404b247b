"""What a filter tree means, in plain Python: one item at a time, one value at a time.

Written from the description of the language alone; shares no code with `stcli/filters` but the node classes.
"""

import datetime
import functools

from stcli.filters.tree import And, Between, Compare, Constant, Flag, In, IsNull, Node, Not, Or

SIGNS = {"=": (0,), "<": (-1,), "<=": (-1, 0), ">": (1,), ">=": (0, 1)}
"""Signs of `value - literal` that each operator wants."""


def eligible_rows(rows: list[dict], tree: Node | None) -> list[bool]:
    """Whether each item satisfies the filter.

    Args:
        rows: items as `pyarrow.Table.to_pylist` gives them: column -> value, list of values or None.
        tree: the filter, or None for no filter.

    Raises:
        TypeError: a value of the tree cannot be compared with a value of the column.
        KeyError: an unknown column.
    """
    return [tree is None or holds(row, tree) for row in rows]


def holds(row: dict, node: Node) -> bool:
    if isinstance(node, And):
        return not any(not holds(row, child) for child in node.children)
    if isinstance(node, Or):
        return any(holds(row, child) for child in node.children)
    if isinstance(node, Not):
        return not holds(row, node.child)
    if isinstance(node, Constant):
        return node.value
    values = values_of(row[node.feature])
    if isinstance(node, IsNull):
        return len(values) == 0
    for value in values:
        if isinstance(node, Flag):
            found = compare(value, True) == 0
        elif isinstance(node, In):
            found = any(compare(value, other) == 0 for other in node.values)
        elif isinstance(node, Between):
            found = compare(value, node.low) >= 0 and compare(value, node.high) <= 0
        else:
            assert isinstance(node, Compare)
            found = compare(value, node.value) in SIGNS[node.op]
        if found:
            return True
    return False


def values_of(cell: object) -> list:
    """The values that an item has of a feature: nulls and NaN are none."""
    cells = cell if isinstance(cell, list) else [cell]
    return [value for value in cells if value is not None and value == value]


def compare(value: object, literal: object) -> int:
    """Sign of `value - literal`: -1, 0 or 1; numbers exactly, strings by UTF-8 bytes, times in UTC."""
    if isinstance(value, bool) and isinstance(literal, bool):
        left, right = int(value), int(literal)
    elif isinstance(value, str) and isinstance(literal, str):
        left, right = value.encode(), literal.encode()
    elif isinstance(value, datetime.datetime):
        left, right = microseconds(value), microseconds(literal)
    elif isinstance(value, datetime.date):
        left, right = days(value), days(literal)
    elif is_number(value) and is_number(literal):
        left, right = value, literal  # Python compares int with float exactly
    else:
        raise TypeError(f"{value!r} cannot be compared with {literal!r}")
    return (left > right) - (left < right)


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@functools.lru_cache(10_000)
def days(day: object) -> int:
    if isinstance(day, str):
        try:
            day = datetime.datetime.strptime(day, "%Y-%m-%d").date()
        except ValueError as error:
            raise TypeError(f"{day!r} is no date") from error
    if not isinstance(day, datetime.date) or isinstance(day, datetime.datetime):
        raise TypeError(f"{day!r} is no date")
    return day.toordinal()


@functools.lru_cache(10_000)
def microseconds(moment: object) -> int:
    """Microseconds since the year 1 in UTC; a day is its midnight, a time without an offset is UTC."""
    if isinstance(moment, str):
        try:
            moment = datetime.datetime.fromisoformat(moment)
        except ValueError as error:
            raise TypeError(f"{moment!r} is no timestamp") from error
    if isinstance(moment, datetime.datetime):
        whole = days(moment.date()) * 86400 + moment.hour * 3600 + moment.minute * 60 + moment.second
        offset = moment.utcoffset() or datetime.timedelta()
        return whole * 10**6 + moment.microsecond - offset // datetime.timedelta(microseconds=1)
    return days(moment) * 86400 * 10**6
