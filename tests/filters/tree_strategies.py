"""Hypothesis strategies for filter trees, and for small tables with filters that fit them."""

import datetime
import math

import pyarrow as pa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from stcli.filters.tree import OPERATORS, And, Between, Compare, Constant, Flag, In, IsNull, Node, Not, Or

FIXED = settings(derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
"""The same examples in every run."""

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
PLAIN_NAMES = ("a", "x_1", "user.age", "top-10", "naïve", "名前", "हिन्दी", "2fa", "date", "timestamp")
QUOTED_NAMES = ("", "two words", 'say "hi"', "it's", "2024", "1e5", "a.", "-b", "$c", "x\ny", "≤", "\ufeffa")
RESERVED_NAMES = ("and", "OR", "NOT", "in", "between", "is", "null", "true", "FALSE")
NAMES = st.sampled_from(PLAIN_NAMES + QUOTED_NAMES + RESERVED_NAMES)
INTEGERS = st.integers(-(10**40), 10**40) | st.sampled_from([2**53 + 1, -(2**53) - 1, 2**63, -(2**63) - 1, 10**599])
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.one_of(TEXT, INTEGERS, FLOATS, st.booleans(), st.dates(), st.datetimes())


def combined(leaves: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
    """Trees over the given leaves, with AND and OR of at least two children."""
    return st.recursive(
        leaves | st.builds(Constant, st.booleans()),
        lambda inner: st.one_of(
            st.builds(Not, inner),
            st.builds(And, st.lists(inner, min_size=2, max_size=4)),
            st.builds(Or, st.lists(inner, min_size=2, max_size=4)),
        ),
        max_leaves=12,
    )


def leaves_of(
    names: st.SearchStrategy[str], values: st.SearchStrategy, *, flags: bool = True
) -> st.SearchStrategy[Node]:
    """Every kind of leaf on the features and values given."""
    kinds = [
        st.builds(Compare, names, st.sampled_from(OPERATORS), values),
        st.builds(In, names, st.lists(values, max_size=4)),
        st.builds(Between, names, values, values),
        st.builds(IsNull, names),
    ]
    return st.one_of(kinds + [st.builds(Flag, names)] * flags)


TREES = combined(leaves_of(NAMES, VALUES))
"""Any tree that a text can express; its columns and types are arbitrary."""

_DAYS = [datetime.date(1, 1, 1), datetime.date(1969, 12, 31), datetime.date(2024, 2, 29), datetime.date(9999, 12, 31)]
_TIMES = [
    datetime.datetime(1969, 12, 31, 23, 59, 59, 999_999),
    datetime.datetime(2024, 2, 29),
    datetime.datetime(2024, 2, 29, 0, 0, 0, 1),
]
_STRINGS = [
    "",
    "a",
    "A",
    "ab",
    "it's",
    "''",
    '"',
    "naïve",
    "名前",
    "\U0001f600",
    "\uffff",
    "a\0b",
    "line\nbreak",
    "NULL",
    "%",
]
_INTEGERS = [0, 1, -1, 7, -7, 2**53, 2**53 + 1, -(2**53) - 1, 2**63 - 1, -(2**63)]
_FLOATS = [0.0, -0.0, 0.1, -2.5, 7.0, 2.0**53, 2.0**53 + 2, 2.0**63, -(2.0**63), 5e-324, 1.7e308]

KINDS: dict[str, tuple[pa.DataType, list, list]] = {
    "string": (pa.string(), _STRINGS, _STRINGS),
    "integer": (pa.int64(), _INTEGERS, [*_INTEGERS, *_FLOATS, 2**63, -(2**63) - 1, 10**400, -(10**400), 0.5, -7.5]),
    "float": (
        pa.float64(),
        [*_FLOATS, math.inf, -math.inf, math.nan],
        [*_INTEGERS, *_FLOATS, 10**400, -(10**400), 2**53 + 3, 2**63 + 1],
    ),
    "boolean": (pa.bool_(), [True, False], [True, False]),
    "date": (pa.date32(), _DAYS, [*_DAYS, datetime.date(2024, 1, 1), *(day.isoformat() for day in _DAYS)]),
    "timestamp": (
        pa.timestamp("us"),
        _TIMES,
        [*_TIMES, *_DAYS, *(time.isoformat(" ") for time in _TIMES), "2024-02-29"],
    ),
}
"""Kind of a feature -> its Arrow type, values for items and values for filters: the edges of each, and a few others."""


@st.composite
def tables_and_trees(draw: st.DrawFn, num_trees: int = 5, max_rows: int = 12) -> tuple[pa.Table, list[Node]]:
    """A table with a scalar and a list column of some kinds, and filters over it.

    Columns are named `<kind>` and `<kind>s`; items have nulls, empty lists, nulls inside lists and repeated values.
    """
    kinds = draw(st.lists(st.sampled_from(list(KINDS)), min_size=1, max_size=3, unique=True))
    num_rows = draw(st.integers(0, max_rows))
    columns, leaves = {}, []
    for kind in kinds:
        dtype, *pools = KINDS[kind]
        cells, literals = (
            st.sampled_from(pool) | TEXT if kind == "string" else st.sampled_from(pool) for pool in pools
        )
        scalar = st.none() | cells
        for name, cell, arrow in ((kind, scalar, dtype), (kind + "s", st.lists(scalar, max_size=4), pa.list_(dtype))):
            content = draw(st.lists(st.none() | cell, min_size=num_rows, max_size=num_rows))
            columns[name] = pa.array(content, arrow)
            leaves.append(leaves_of(st.just(name), literals, flags=kind == "boolean"))
    trees = combined(st.one_of(leaves))
    return pa.table(columns), draw(st.lists(trees, min_size=num_trees, max_size=num_trees))
