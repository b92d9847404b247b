"""Interval leaves and their bounds: from a parsed tree to what the two kinds of rows can answer.

`resolve` turns literals into intervals of term ids. `Bounder` turns a resolved tree into a row
expression whose set contains every eligible item (the upper bound), or only eligible ones (the lower bound). NOT swaps
the two; where they agree the expression is exact.
"""

from __future__ import annotations

from dataclasses import dataclass

from stcli.errors import FilterError, InputError, nearest
from stcli.filters.layout import Layout
from stcli.filters.tree import And, Between, Compare, Constant, Flag, In, IsNull, Node, Not, Or, all_of, any_of
from stcli.filters.vocabulary import Feature, Vocabulary
from stcli.types import LEAF_ALL, LEAF_BLOOM, LEAF_EQUAL, LEAF_LESS, LEAF_NONE, LEAF_OWN, MatrixPlan

MAX_BLOOM_TERMS = 256
"""Bloom terms that an interval or IN list is spelled out to; beyond, its upper bound is "has a value"."""

Interval = tuple[int, int]


@dataclass(frozen=True)
class TermSet(Node):
    """A resolved leaf: the item has a term in one of the ascending, disjoint intervals."""

    feature: Feature
    intervals: tuple[Interval, ...]


Resolved = TermSet | Constant | Not | And | Or


@dataclass
class Unknown:
    """Counts literals that are no value of their feature; such a leaf matches nothing."""

    values: int = 0


def resolve(node: Node, vocabulary: Vocabulary, text: str = "", unknown: Unknown | None = None) -> Node:
    """Replace every comparison by the `TermSet` it asks for; AND, OR, NOT stay.

    Raises:
        FilterError: an unknown feature, or a literal of another type than the feature.
    """
    unknown = unknown if unknown is not None else Unknown()
    if isinstance(node, And | Or):
        children = [resolve(child, vocabulary, text, unknown) for child in node.children]
        return all_of(children) if isinstance(node, And) else any_of(children)
    if isinstance(node, Not):
        return Not(resolve(node.child, vocabulary, text, unknown))
    if isinstance(node, Constant):
        return node
    assert isinstance(node, Compare | In | Between | IsNull | Flag)
    feature = vocabulary.by_name.get(node.feature)
    if feature is None:
        known = [item.name for item in vocabulary.features]
        raise FilterError(
            f"filter: no feature {node.feature!r} in the index; {nearest(node.feature, known)}", text, node.position
        )
    try:
        return _leaf(node, feature, unknown)
    except InputError as error:
        raise FilterError(f"filter: {error}", text, node.position) from error


def _leaf(node: Node, feature: Feature, unknown: Unknown) -> Node:
    first = feature.first_term
    if isinstance(node, IsNull):
        whole = TermSet(feature, ((first, feature.end_term),)) if feature.num_terms else Constant(False)
        return Not(whole)
    if isinstance(node, Flag):
        node = Compare(node.feature, "=", True, node.position)
    if isinstance(node, Between):
        low, high = feature.key(node.low), feature.key(node.high)
        spans = [(feature.rank(low), feature.rank(high, after=True))]
    elif isinstance(node, In):
        spans = []
        for value in node.values:
            key = feature.key(value)
            spans.append((feature.rank(key), feature.rank(key, after=True)))
            unknown.values += spans[-1][0] == spans[-1][1]
    else:
        assert isinstance(node, Compare)
        key = feature.key(node.value)
        before, after = feature.rank(key), feature.rank(key, after=True)
        spans = [
            {
                "=": (before, after),
                "<": (0, before),
                "<=": (0, after),
                ">": (after, feature.num_terms),
                ">=": (before, feature.num_terms),
            }[node.op]
        ]
        unknown.values += node.op == "=" and before == after
    merged = _merge(sorted((first + low, first + high) for low, high in spans if low < high))
    return TermSet(feature, merged) if merged else Constant(False)


def _merge(spans: list[Interval]) -> tuple[Interval, ...]:
    merged: list[Interval] = []
    for low, high in spans:
        if merged and low <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return tuple(merged)


# Row expressions: ("leaf", kind, a, b, c), ("not", x), ("and", x, y, …), ("or", x, y, …).
Rows = tuple
ALL: Rows = ("leaf", LEAF_ALL, 0, 0, 0)
NONE: Rows = ("leaf", LEAF_NONE, 0, 0, 0)


class Bounder:
    """Row expressions of resolved trees over one bit matrix."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        plan: MatrixPlan = layout.plan
        self._own_row = plan.own_row.numpy()
        self._bloom = plan.bloom.numpy()

    def upper(self, node: Node) -> tuple[Rows, bool]:
        """An expression that holds for every eligible item, and whether it holds for no other."""
        expression = self._bound(node, True)
        return expression, expression == self._bound(node, False)

    def _bound(self, node: Node, upper: bool) -> Rows:
        if isinstance(node, Not):
            return negate(self._bound(node.child, not upper))
        if isinstance(node, And):
            return conjoin([self._bound(child, upper) for child in node.children])
        if isinstance(node, Or):
            return disjoin([self._bound(child, upper) for child in node.children])
        if isinstance(node, Constant):
            return ALL if node.value else NONE
        assert isinstance(node, TermSet)
        return self._term_set(node, upper)

    def _term_set(self, leaf: TermSet, upper: bool) -> Rows:
        feature = leaf.feature
        place = self._layout.features[feature.name]
        presence: Rows = ("leaf", LEAF_OWN, place.presence_row, 0, 0) if place.presence_row >= 0 else ALL
        if leaf.intervals == ((feature.first_term, feature.end_term),) and place.presence_row >= 0:
            return presence
        spelled = 0
        parts = []
        for low, high in leaf.intervals:
            single = high == low + 1
            if single and self._own_row[low] >= 0:
                parts.append(("leaf", LEAF_OWN, int(self._own_row[low]), 0, 0))
            elif place.slices is not None and not (single and feature.multi):
                parts.append(self._sliced(feature, place.slices, low, high, upper))
            elif high - low <= MAX_BLOOM_TERMS - spelled:
                spelled += high - low
                parts += [self._term(term, upper) for term in range(low, high)]
            elif upper:
                return presence
        return disjoin(parts)

    def _term(self, term: int, upper: bool) -> Rows:
        if self._own_row[term] >= 0:
            return ("leaf", LEAF_OWN, int(self._own_row[term]), 0, 0)
        return ("leaf", LEAF_BLOOM, term, 0, 0) if upper else NONE

    def _sliced(self, feature: Feature, slices: tuple[Interval, Interval], low: int, high: int, upper: bool) -> Rows:
        """Bound of "has a term in [low, high)" from the rank codes of the smallest and largest value (0 = none)."""
        first, last = low - feature.first_term + 1, high - feature.first_term + 1
        smallest, largest = slices
        if not feature.multi:
            return _codes_in(smallest, first, last, feature.num_terms)
        if upper:  # the smallest value lies below the end and the largest not below the start
            return conjoin(
                [
                    _codes_in(smallest, 1, last, feature.num_terms),
                    _codes_in(largest, first, feature.num_terms + 1, feature.num_terms),
                ]
            )
        if first <= 1 or last > feature.num_terms:  # one-sided: exact
            return self._sliced(feature, slices, low, high, True)
        return disjoin([_codes_in(side, first, last, feature.num_terms) for side in slices])


def _codes_in(slices: Interval, first: int, last: int, num_terms: int) -> Rows:
    """Rank codes in first … last - 1, where 1 <= first."""
    row, bits = slices
    if last == first + 1:
        return ("leaf", LEAF_EQUAL, row, bits, first)
    below_start: Rows = ("leaf", LEAF_LESS, row, bits, first)
    if last > num_terms:
        return negate(below_start)
    return conjoin([("leaf", LEAF_LESS, row, bits, last), negate(below_start)])


def negate(x: Rows) -> Rows:
    """NOT of a row expression, simplified."""
    if x in (ALL, NONE):
        return NONE if x == ALL else ALL
    return x[1] if x[0] == "not" else ("not", x)


def conjoin(parts: list[Rows]) -> Rows:
    """AND of row expressions, simplified."""
    return _combine("and", parts, ALL, NONE)


def disjoin(parts: list[Rows]) -> Rows:
    """OR of row expressions, simplified; of none: no item."""
    return _combine("or", parts, NONE, ALL)


def _combine(name: str, parts: list[Rows], neutral: Rows, absorbing: Rows) -> Rows:
    kept: dict[Rows, None] = {}
    for part in parts:
        if part == absorbing:
            return absorbing
        if part != neutral:
            kept.update(dict.fromkeys(part[1:] if part[0] == name else (part,)))
    if not kept:
        return neutral
    return next(iter(kept)) if len(kept) == 1 else (name, *kept)
