"""Filters as trees: what a text parses to, and what a Python caller builds.

    from stcli.filters.tree import Compare, In

    (Compare("language", "=", "de") | In("country", ["AT", "CH"])) & ~Compare("price", ">", 20)

Features are sets: a leaf holds for an item when *some* value of the feature satisfies it; `IsNull` when there is none.
Logic is two-valued. Trees are immutable and hashable and print as filter texts. Equality looks at
the types of values too: `1`, `1.0` and `True` are three. `position` is the character of the text where a leaf starts,
for messages; it does not count in comparisons.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from stcli.errors import FilterError
from stcli.filters.lexicon import Placeholder, Value, feature_text, to_value, value_text

MAX_DEPTH: Final = 32
"""Parentheses and NOTs around a condition. Every later step may recurse over a tree."""

MAX_TERMS: Final = 20_000
"""Values in one filter, where a condition without a value counts as one."""

OPERATORS: Final = ("=", "<", "<=", ">", ">=")


class Node:
    """Base of all nodes: `a & b`, `a | b`, `~a` combine them, `str(a)` is `to_text(a)`."""

    __slots__ = ()

    def __and__(self, other: Node) -> And:
        return And((*_parts(self, And), *_parts(other, And)))

    def __or__(self, other: Node) -> Or:
        return Or((*_parts(self, Or), *_parts(other, Or)))

    def __invert__(self) -> Not:
        return Not(self)

    def __str__(self) -> str:
        return to_text(self)


class _Leaf(Node):
    """A condition on one feature; equality looks at the types of values too, since `1 == True` in Python."""

    __slots__ = ()

    def _key(self) -> tuple[Any, ...]:
        raise NotImplementedError

    def __eq__(self, other: object) -> bool:
        return self is other or (type(self) is type(other) and self._key() == other._key())  # type: ignore[attr-defined]

    def __hash__(self) -> int:
        return hash(self._key())


@dataclass(frozen=True, slots=True, eq=False)
class Compare(_Leaf):
    """Some value of the feature is =, <, <=, > or >= `value`."""

    feature: str
    op: str
    value: Value | Placeholder
    position: int = field(default=0, repr=False)

    def __post_init__(self) -> None:
        if self.op not in OPERATORS:
            raise FilterError(f"filter: {self.op!r} is no operator; use one of {' '.join(OPERATORS)}, and Not for !=")
        value = to_value(self.feature, self.value)
        if value is not self.value:
            object.__setattr__(self, "value", value)

    def _key(self) -> tuple[Any, ...]:
        return (self.feature, self.op, type(self.value), self.value)


@dataclass(frozen=True, slots=True, eq=False)
class In(_Leaf):
    """Some value of the feature is one of `values`, any iterable but a string; none of an empty one."""

    feature: str
    values: tuple[Value | Placeholder, ...]
    position: int = field(default=0, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.values, str):
            raise FilterError(f"filter: feature {self.feature!r}: IN needs a list, got the string {self.values[:40]!r}")
        object.__setattr__(self, "values", tuple([to_value(self.feature, value) for value in self.values]))

    def _key(self) -> tuple[Any, ...]:
        return (self.feature, self.values, tuple(map(type, self.values)))


@dataclass(frozen=True, slots=True, eq=False)
class Between(_Leaf):
    """Some value of the feature is >= `low` and <= `high`: one and the same value."""

    feature: str
    low: Value | Placeholder
    high: Value | Placeholder
    position: int = field(default=0, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "low", to_value(self.feature, self.low))
        object.__setattr__(self, "high", to_value(self.feature, self.high))

    def _key(self) -> tuple[Any, ...]:
        return (self.feature, type(self.low), self.low, type(self.high), self.high)


@dataclass(frozen=True, slots=True)
class IsNull(Node):
    """The item has no value of the feature: null, an empty list, or a list of nulls."""

    feature: str
    position: int = field(default=0, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Flag(Node):
    """A boolean column by itself: some value of it is true."""

    feature: str
    position: int = field(default=0, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Constant(Node):
    """Every item, or none."""

    value: bool


@dataclass(frozen=True, slots=True)
class Not(Node):
    """The items for which `child` does not hold."""

    child: Node


@dataclass(frozen=True, slots=True)
class And(Node):
    """All children hold; true if there are none."""

    children: tuple[Node, ...]

    def __post_init__(self) -> None:
        if type(self.children) is not tuple:
            object.__setattr__(self, "children", tuple(self.children))


@dataclass(frozen=True, slots=True)
class Or(Node):
    """Some child holds; false if there are none."""

    children: tuple[Node, ...]

    def __post_init__(self) -> None:
        if type(self.children) is not tuple:
            object.__setattr__(self, "children", tuple(self.children))


def all_of(children: Iterable[Node]) -> Node:
    """AND of any number of trees: TRUE for none, the tree itself for one."""
    return _simple(And(tuple(children)))


def any_of(children: Iterable[Node]) -> Node:
    """OR of any number of trees: FALSE for none, the tree itself for one."""
    return _simple(Or(tuple(children)))


def check(tree: Node) -> None:
    """Refuse a tree that is deeper or larger than a text may be; what `parse` returns never is.

    Raises:
        FilterError: beyond `MAX_DEPTH` or `MAX_TERMS`.
    """
    terms, stack = 0, [(tree, 0)]
    while stack:
        node, depth = stack.pop()
        node = _simple(node)
        if depth > MAX_DEPTH:
            raise FilterError(f"filter: parentheses and NOT nest deeper than {MAX_DEPTH} levels; simplify it")
        if isinstance(node, And | Or):
            stack += [(child, depth + _enclosed(child, node)) for child in node.children]
        elif isinstance(node, Not):
            stack.append((node.child, depth + (not _has_negation(node.child)) + _enclosed(node.child, node)))
        else:
            terms += max(1, len(node.values)) if isinstance(node, In) else 1
        if terms > MAX_TERMS:
            raise FilterError(f"filter: more than {MAX_TERMS:,} values; long lists belong in an eligibility column")


def to_text(tree: Node) -> str:
    """Print the canonical text of a tree; `parse` makes an equal tree of it.

    Equal up to AND and OR with fewer than two children, which print as what they mean.

    Raises:
        FilterError: beyond `MAX_DEPTH` or `MAX_TERMS`.
    """
    check(tree)
    return _text(tree)


def _text(node: Node) -> str:
    node = _simple(node)
    match node:
        case And() | Or():
            word = " AND " if isinstance(node, And) else " OR "
            return word.join(_operand_text(child, node) for child in node.children)
        case Not(child) if _has_negation(child):
            return _leaf_text(_simple(child), negated=True)
        case Not(child):
            return "NOT " + _operand_text(child, node)
        case Constant(value):
            return "TRUE" if value else "FALSE"
        case _:
            return _leaf_text(node, negated=False)


def _operand_text(child: Node, parent: Node) -> str:
    return f"({_text(child)})" if _enclosed(child, parent) else _text(child)


def _leaf_text(leaf: Node, *, negated: bool) -> str:
    negation = "NOT " if negated else ""
    match leaf:
        case Compare(feature, op, value):
            return f"{feature_text(feature)} {'!=' if negated else op} {value_text(value)}"
        case In(feature, (Placeholder(many=True) as whole,)):
            return f"{feature_text(feature)} {negation}IN {value_text(whole)}"
        case In(feature, values):
            return f"{feature_text(feature)} {negation}IN ({', '.join(map(value_text, values))})"
        case Between(feature, low, high):
            return f"{feature_text(feature)} {negation}BETWEEN {value_text(low)} AND {value_text(high)}"
        case IsNull(feature):
            return f"{feature_text(feature)} IS {negation}NULL"
        case Flag(feature):
            return feature_text(feature)
    raise TypeError(f"{type(leaf).__name__} is not a node of a filter tree")


def _has_negation(child: Node) -> bool:
    """Whether NOT `child` has a form of its own: !=, NOT IN, NOT BETWEEN, IS NOT NULL."""
    child = _simple(child)
    return isinstance(child, In | Between | IsNull) or (isinstance(child, Compare) and child.op == "=")


def _enclosed(child: Node, parent: Node) -> bool:
    """Whether `child` stands in parentheses under `parent`: AND binds closer than OR, NOT closer than both."""
    child = _simple(child)
    return isinstance(child, Or) or (isinstance(child, And) and not isinstance(parent, Or))


def _simple(node: Node) -> Node:
    """What an AND or OR with fewer than two children stands for; any other node as it is."""
    while isinstance(node, And | Or) and len(node.children) < 2:
        node = node.children[0] if node.children else Constant(isinstance(node, And))
    return node


def _parts(node: Node, kind: type[And] | type[Or]) -> tuple[Node, ...]:
    return node.children if isinstance(node, kind) else (node,)
