"""What a filter tree means, asked of DuckDB: a translation to SQL in two-valued logic over sets.

SQL differs from our language where it meets null (three-valued logic) and lists (no "some value is"), so each leaf
becomes an expression that is never null: a scalar comparison inside `coalesce(…, false)`, for a list the number of its
values that satisfy the comparison. Numbers are compared exactly: DuckDB would cast an integer to a double, so a literal
of the other type is first replaced by a bound of the column's own type.
"""

import datetime
import math
from collections.abc import Sequence

import duckdb
import numpy as np
import pyarrow as pa

from stcli.filters.tree import And, Between, Compare, Constant, Flag, In, IsNull, Node, Not, Or

VALUE = "_some_value"
ROW = "_row"


def eligible(table: pa.Table, tree: Node | None) -> np.ndarray:
    """Which rows of `table` satisfy the filter: bool [rows].

    Columns may be strings, integers, floats, booleans, dates, timestamps or lists of them; others are left out.

    Raises:
        TypeError: a value of the tree cannot be compared with its column.
        KeyError: an unknown column.
    """
    return eligible_many(table, [tree])[0]


def eligible_many(table: pa.Table, trees: Sequence[Node | None]) -> np.ndarray:
    """As `eligible` for several filters, one query each over one registered table: bool [filters, rows]."""
    plain, columns = _plain_table(table)
    masks = np.zeros((len(trees), table.num_rows), bool)
    with duckdb.connect() as connection:
        connection.execute("SET threads = 1")
        connection.register("items", plain)
        for mask, tree in zip(masks, trees, strict=True):
            query = f"SELECT {to_sql(tree, columns)} AS eligible FROM items ORDER BY {ROW}"
            mask[:] = connection.execute(query).fetchnumpy()["eligible"]
    return masks


class Column:
    """Where a feature is found in SQL, the kind of its values, and whether it is a list of them."""

    def __init__(self, name: str, kind: str, is_list: bool) -> None:
        self.name, self.kind, self.is_list = name, kind, is_list


def to_sql(tree: Node | None, columns: dict[str, Column]) -> str:
    """An SQL expression that is true or false for every row, never null."""
    if tree is None:
        return "true"
    if isinstance(tree, Constant):
        return str(tree.value).lower()
    if isinstance(tree, Not):
        return f"(NOT {to_sql(tree.child, columns)})"
    if isinstance(tree, And | Or):
        word, none = (" AND ", "true") if isinstance(tree, And) else (" OR ", "false")
        return "(" + (word.join(to_sql(child, columns) for child in tree.children) or none) + ")"
    column = columns[tree.feature]
    if isinstance(tree, IsNull):
        return f"(NOT {_some(column, 'true')})"
    return _some(column, _condition(tree, column.kind))


def _some(column: Column, condition: str) -> str:
    """Some value of the column satisfies `condition` on `VALUE`; nulls and NaN are no values."""
    real = f"{VALUE} IS NOT NULL" + (f" AND NOT isnan({VALUE})" if column.kind == "float" else "")
    if column.is_list:
        return f"coalesce(len([{VALUE} for {VALUE} in {column.name} if {real} AND {condition}]) > 0, false)"
    return f"coalesce({real} AND {condition}, false)".replace(VALUE, column.name)


def _condition(leaf: Node, kind: str) -> str:
    if isinstance(leaf, Flag):
        return _comparison(kind, "=", True)
    if isinstance(leaf, Compare):
        return _comparison(kind, leaf.op, leaf.value)
    if isinstance(leaf, Between):
        return f"({_comparison(kind, '>=', leaf.low)} AND {_comparison(kind, '<=', leaf.high)})"
    assert isinstance(leaf, In)
    return "(" + (" OR ".join(_comparison(kind, "=", value) for value in leaf.values) or "false") + ")"


def _comparison(kind: str, op: str, literal: object) -> str:
    if kind == "null":  # a column without any value has no type either
        return "false"
    number = isinstance(literal, int | float) and not isinstance(literal, bool)
    if kind == "integer" and number:
        return _integer_comparison(op, literal)
    if kind == "float" and number:
        return _float_comparison(op, literal)
    if kind == "string" and isinstance(literal, str):
        return f"{VALUE} {op} {_string(literal)}"
    if kind == "boolean" and isinstance(literal, bool):
        return f"{VALUE} {op} {str(literal).lower()}"
    if kind in ("date", "timestamp"):
        return f"{VALUE} {op} {_moment(kind, literal)}"
    raise TypeError(f"{literal!r} cannot be compared with a {kind} column")


def _integer_comparison(op: str, literal: float) -> str:
    """An int64 against any number: against the next integer on the side that the operator looks at."""
    whole = literal == int(literal)
    if op == "=":
        return f"{VALUE} = {int(literal)}" if whole and -(2**63) <= literal < 2**63 else "false"
    bound = math.floor(literal) if op in ("<=", ">") else math.ceil(literal)
    if not -(2**63) <= bound < 2**63:
        return str((bound > 0) == (op[0] == "<")).lower()
    return f"{VALUE} {op} CAST({bound} AS BIGINT)"


def _float_comparison(op: str, literal: float) -> str:
    """A double against any number: an integer between two doubles is replaced by the upper one."""
    try:
        nearest = float(literal)
    except OverflowError:
        nearest = math.inf if literal > 0 else -math.inf
    if nearest == literal:
        return f"{VALUE} {op} CAST('{nearest!r}' AS DOUBLE)"
    if op == "=":
        return "false"
    upper = nearest if nearest > literal else math.nextafter(nearest, math.inf)
    return f"{VALUE} {'<' if op[0] == '<' else '>='} CAST('{upper!r}' AS DOUBLE)"


def _moment(kind: str, literal: object) -> str:
    wanted = datetime.date if kind == "date" else datetime.datetime
    try:
        moment = wanted.fromisoformat(literal) if isinstance(literal, str) else literal
    except ValueError as error:
        raise TypeError(f"{literal!r} cannot be compared with a {kind} column") from error
    is_day = isinstance(moment, datetime.date) and not isinstance(moment, datetime.datetime)
    if not (is_day or (kind == "timestamp" and isinstance(moment, datetime.datetime))):
        raise TypeError(f"{literal!r} cannot be compared with a {kind} column")
    if not is_day and moment.tzinfo is not None:
        moment = moment.astimezone(datetime.UTC).replace(tzinfo=None)
    return f"CAST('{moment.isoformat()}' AS {kind})"


def _string(text: str) -> str:
    """An SQL string; DuckDB reads a query only up to a zero character."""
    return " || chr(0) || ".join("'" + part.replace("'", "''") + "'" for part in text.split("\0"))


def _plain_table(table: pa.Table) -> tuple[pa.Table, dict[str, Column]]:
    """The table with one type for each kind, and column names that differ in more than case."""
    arrays, columns = {ROW: pa.array(np.arange(table.num_rows))}, {}
    for name in table.column_names:
        array = table[name]
        is_list = pa.types.is_list(array.type) or pa.types.is_large_list(array.type)
        is_list = is_list or pa.types.is_fixed_size_list(array.type)
        found = _kind(array.type.value_type if is_list else array.type)
        if found is not None:
            kind, plain = found
            column = columns[name] = Column(f"c{len(columns)}", kind, is_list)
            arrays[column.name] = array.cast(pa.list_(plain) if is_list else plain)
    return pa.table(arrays), columns


def _kind(dtype: pa.DataType) -> tuple[str, pa.DataType] | None:
    types = pa.types
    if types.is_dictionary(dtype):
        dtype = dtype.value_type
    if types.is_string(dtype) or types.is_large_string(dtype):
        return "string", pa.string()
    if types.is_integer(dtype):
        return "integer", pa.int64()
    if types.is_floating(dtype):
        return "float", pa.float64()
    if types.is_boolean(dtype):
        return "boolean", pa.bool_()
    if types.is_date(dtype):
        return "date", pa.date32()
    if types.is_timestamp(dtype):
        return "timestamp", pa.timestamp("us")
    return ("null", pa.string()) if types.is_null(dtype) else None
