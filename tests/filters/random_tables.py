"""Seeded random tables and filters over them, thousands a second; with the pools of values of `tree_strategies`."""

from __future__ import annotations

import random

import pyarrow as pa

from stcli.filters.tree import OPERATORS, And, Between, Compare, Constant, Flag, In, IsNull, Node, Not, Or
from tests.filters.tree_strategies import KINDS


def random_table(rng: random.Random, num_rows: int, *, most_columns: int = 5) -> pa.Table:
    """Scalar and list columns of random kinds with nulls, empty lists, nulls inside lists and repeated values.

    Columns are named `<kind>` or `<kind>s`. Half of the integer columns hold small numbers, many of them distinct.
    """
    names = rng.sample([name for kind in KINDS for name in (kind, kind + "s")], rng.randint(1, most_columns))
    columns = {}
    for name in sorted(names):
        kind, many = name.removesuffix("s"), name.endswith("s")
        dtype, pool, _ = KINDS[kind]
        if kind == "integer" and rng.random() < 0.5:
            pool = list(range(-50, rng.choice([0, 60, 5000])))
        pool = rng.sample(pool, rng.randint(1, len(pool)))
        nulls = rng.choice([0, 0.1, 0.6])
        longest = rng.choice([1, 2, 5])
        columns[name] = pa.array(
            [_cell(rng, pool, many, nulls, longest) for _ in range(num_rows)], pa.list_(dtype) if many else dtype
        )
    return pa.table(columns)


def _cell(rng: random.Random, pool: list, many: bool, nulls: float, longest: int) -> object:
    if rng.random() < nulls:
        return None
    if not many:
        return _skewed(rng, pool)
    return [None if rng.random() < nulls / 2 else _skewed(rng, pool) for _ in range(rng.randint(0, longest))]


def _skewed(rng: random.Random, pool: list) -> object:
    """The first values of the pool are met far more often than the last."""
    return pool[int(len(pool) * rng.random() ** 3)]


def random_tree(rng: random.Random, table: pa.Table, depth: int = 3) -> Node:
    """A filter over the columns of a table; literals are values of the column, its kind's edges, or near them."""
    if depth == 0 or rng.random() < 0.3:
        return _leaf(rng, table)
    shape = rng.random()
    if shape < 0.3:
        return Not(random_tree(rng, table, depth - 1))
    children = tuple(random_tree(rng, table, depth - 1) for _ in range(rng.randint(0 if shape > 0.97 else 1, 4)))
    return And(children) if rng.random() < 0.5 else Or(children)


def _leaf(rng: random.Random, table: pa.Table) -> Node:
    if rng.random() < 0.02:
        return Constant(rng.random() < 0.5)
    name = rng.choice(table.column_names)
    kind = name.removesuffix("s")

    def literal() -> object:
        if rng.random() < 0.5 and table.num_rows:
            cell = table[name][rng.randrange(table.num_rows)].as_py()
            found = [value for value in (cell if isinstance(cell, list) else [cell]) if value is not None]
            if found and (value := rng.choice(found)) == value and abs_finite(value):
                return value + rng.choice([0, 0, 1, -1, 0.5]) if kind == "integer" else value
        return rng.choice(KINDS[kind][2])

    shape = rng.random()
    if shape < 0.08:
        return IsNull(name)
    if shape < 0.12 and kind == "boolean":
        return Flag(name)
    if shape < 0.3:
        return In(name, tuple(literal() for _ in range(rng.randint(0, 6))))
    if shape < 0.5:
        return Between(name, literal(), literal())
    return Compare(name, "=" if shape < 0.7 else rng.choice(OPERATORS), literal())


def abs_finite(value: object) -> bool:
    """Not an infinite float; filters have no literal for it."""
    return not isinstance(value, float) or abs(value) != float("inf")
