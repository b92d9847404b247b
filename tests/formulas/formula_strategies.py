"""Hypothesis strategies for formula trees, and an interpreter of trees written with numpy on single numbers."""

import math

import numpy as np
from hypothesis import strategies as st

from stcli.formulas.functions import FUNCTIONS, OPERATORS
from stcli.formulas.tree import Apply, Name, Node, Number, to_float32

F = np.float32
NUMBER_NAMES = (
    "task.like",
    "task.share",
    "item.price",
    "item.list price",
    'item.say "hi"',
    "item.名前",
    "query.hour",
    "ann_score",
)
BOOLEAN_NAMES = ("item.is_new", "query.logged_in", "item.and")
NAMES = {**dict.fromkeys(NUMBER_NAMES, "number"), **dict.fromkeys(BOOLEAN_NAMES, "boolean"), "item.country": "string"}

CONSTANTS = st.one_of(
    st.sampled_from([0.0, 1.0, 2.0, 0.5, 1e7, 16777217.0, 123456.789, 3.4e38, 1e-45, 1e-38]),
    st.floats(0, 2.0**127, width=32),
).map(lambda value: Number(to_float32(value)))
LEAVES = st.one_of(CONSTANTS, st.sampled_from(NUMBER_NAMES).map(Name))
EXACT = ("min", "max", "clip", "abs", "step", "coalesce", "if")
"""Functions that float32 rounds correctly; `is_null` is made where a boolean is wanted."""
ROUNDED = ("sqrt", "exp", "log", "log1p", "sigmoid", "logit")


@st.composite
def trees(draw: st.DrawFn, functions: tuple[str, ...] = (*EXACT, *ROUNDED), powers: bool = True) -> Node:
    """Trees that are numbers."""

    def number(depth: int) -> Node:
        if depth == 0 or draw(st.integers(0, 3)) == 0:
            return draw(LEAVES)
        name = draw(st.sampled_from([*"+-*/", "neg", *["^"] * powers, *functions]))
        takes = (OPERATORS.get(name) or FUNCTIONS[name]).takes
        takes += takes[-1:] * (draw(st.integers(0, 2)) if name in FUNCTIONS and FUNCTIONS[name].more else 0)
        return Apply(name, tuple(boolean(depth - 1) if kind == "boolean" else number(depth - 1) for kind in takes))

    def boolean(depth: int) -> Node:
        name = draw(st.sampled_from(["<", "<=", ">", ">=", "==", "!=", "is_null", "and", "or", "not", ""]))
        if depth == 0 or not name:
            return Name(draw(st.sampled_from(BOOLEAN_NAMES)))
        takes = (OPERATORS.get(name) or FUNCTIONS[name]).takes
        return Apply(name, tuple(boolean(depth - 1) if kind == "boolean" else number(depth - 1) for kind in takes))

    return number(5)


def interpret(node: Node, values: dict, functions: dict) -> np.float32 | bool:
    """The value of a tree, one node at a time.

    Args:
        node: the tree; small, since this recurses.
        values: a float32 or a bool for each name.
        functions: for `ROUNDED` and "^", what to compute them with.
    """
    if isinstance(node, Number):
        return F(node.value)
    if isinstance(node, Name):
        return values[node.name]
    x = [interpret(argument, values, functions) for argument in node.arguments]
    with np.errstate(all="ignore"):
        match node.operation:
            case "+":
                return F(x[0] + x[1])
            case "-":
                return F(x[0] - x[1])
            case "*":
                return F(x[0] * x[1])
            case "/":
                return F(np.divide(x[0], x[1]))
            case "neg":
                return F(-x[0])
            case "abs":
                return F(math.copysign(x[0], 1.0))
            case "<":
                return bool(x[0] < x[1])
            case "<=":
                return bool(x[0] <= x[1])
            case ">":
                return bool(x[0] > x[1])
            case ">=":
                return bool(x[0] >= x[1])
            case "==":
                return bool(x[0] == x[1])
            case "!=":
                return not bool(x[0] == x[1])
            case "and":
                return x[0] and x[1]
            case "or":
                return x[0] or x[1]
            case "not":
                return not x[0]
            case "is_null":
                return math.isnan(x[0])
            case "if":
                return x[1] if x[0] else x[2]
            case "step":
                return F(1) if x[0] >= 0 else F(0)
            case "coalesce":
                return next((value for value in x if not math.isnan(value)), x[-1])
            case "min" | "max":
                return _extreme(x, node.operation)
            case "clip":
                return _extreme([_extreme(x[:2], "max"), x[2]], "min")
    return functions[node.operation](*x)


def _extreme(values: list, which: str) -> np.float32:
    if any(map(math.isnan, values)):
        return F(math.nan)
    return min(values) if which == "min" else max(values)
