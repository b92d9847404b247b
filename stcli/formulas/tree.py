"""Formulas as trees: what a text parses to, and how a tree is printed.

Trees are immutable and at most `MAX_NODES` large. A chain `a + b + c` leans to the left and may be as deep as it is
long, so everything that walks a tree does so with a stack of its own, see `post_order`.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field
from typing import Final

from stcli.formulas.functions import ATOM, COMPARE, LEVELS, OPERATORS

MAX_NODES: Final = 512
"""Numbers, names, operators and functions of one formula."""

SCOPES: Final = ("task", "item", "query")
"""What a name may start with: `task.like`, `item.price`, `query.hour`."""

ALONE: Final = ("ann_score",)
"""Names without a scope."""

LETTER: Final = r"\w"
"""Of a word: letters and digits of any script, and `_`."""

_BARE = re.compile(rf"{LETTER}++")


@dataclass(frozen=True, slots=True)
class Number:
    """A constant, not negative: the float32 nearest to what was written."""

    value: float


@dataclass(frozen=True, slots=True)
class Name:
    """What is known of a candidate: `task.like`, `item.price`, `query.hour`; unquoted."""

    name: str
    position: int = field(default=0, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Apply:
    """An operator or a function of arguments, see `functions.OPERATORS` and `functions.FUNCTIONS`."""

    operation: str
    arguments: tuple[Node, ...]
    position: int = field(default=0, compare=False, repr=False)


Node = Number | Name | Apply


def to_float32(number: float) -> float:
    """The float32 nearest to a number.

    Raises:
        OverflowError: too large for one.
    """
    rounded: float = struct.unpack("f", struct.pack("f", number))[0]
    return rounded


def number_text(value: float) -> str:
    """The shortest text that reads back as the same float32."""
    for digits in range(1, 10):
        text = f"{value:.{digits}g}"
        if to_float32(float(text)) == value:
            break
    return repr(int(float(text))) if float(text).is_integer() and value < 1e7 else text.replace("e+", "e")


def name_text(name: str) -> str:
    """A name as it is written: the column in double quotes where it is no word."""
    scope, dot, column = name.partition(".")
    if not dot or _BARE.fullmatch(column):
        return name
    return f'{scope}."' + column.replace('"', '""') + '"'


def post_order(tree: Node) -> list[Node]:
    """All nodes, each one after its arguments, these from left to right."""
    found, stack = [], [tree]
    while stack:
        node = stack.pop()
        found.append(node)
        if isinstance(node, Apply):
            stack += node.arguments
    return found[::-1]


def to_text(tree: Node) -> str:
    """Print the canonical text of a tree; `parse_formula` makes an equal tree of it."""
    done: list[tuple[str, int]] = []  # text and level of the nodes whose parent is still to come
    for node in post_order(tree):
        if isinstance(node, Number):
            done.append((number_text(node.value), ATOM))
        elif isinstance(node, Name):
            done.append((name_text(node.name), ATOM))
        else:
            parts = done[-len(node.arguments) :]
            del done[-len(node.arguments) :]
            done.append(_apply_text(node.operation, parts))
    return done[0][0]


def _apply_text(operation: str, parts: list[tuple[str, int]]) -> tuple[str, int]:
    if operation not in OPERATORS:
        return f"{operation}({', '.join(text for text, _ in parts)})", ATOM
    level = LEVELS[operation]
    if len(parts) == 1:
        return ("not " if operation == "not" else "-") + _enclosed(parts[0], level), level
    if operation == "^":
        return f"{_enclosed(parts[0], ATOM)}^{_enclosed(parts[1], LEVELS['neg'])}", level
    left = _enclosed(parts[0], level + (level == COMPARE))  # a < b < c is no formula
    return f"{left} {operation} {_enclosed(parts[1], level + 1)}", level


def _enclosed(part: tuple[str, int], level: int) -> str:
    text, own = part
    return text if own >= level else f"({text})"
