"""Interval leaves and their bounds: from a parsed tree to what the two kinds of rows can answer.

`resolve` turns literals into intervals of term ids. `Bounder` turns a resolved tree into a row
expression whose set contains every eligible item (the upper bound), or only eligible ones (the lower bound). NOT swaps
the two; where they agree the expression is exact.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from stcli.errors import FilterError, InputError, nearest
from stcli.filters.layout import Layout
from stcli.filters.lexicon import FeatureValue
from stcli.filters.tree import And, Between, Compare, Constant, Flag, In, IsNull, Node, Not, Or
from stcli.filters.vocabulary import Feature, Vocabulary
from stcli.types import LEAF_ALL, LEAF_BLOOM, LEAF_EQUAL, LEAF_LESS, LEAF_NONE, LEAF_OWN

MAX_BLOOM_TERMS = 256
"""Bloom terms that an interval or IN list is spelled out to; beyond, its upper bound is "has a value"."""

MAX_KNOWN = 1 << 16
"""Leaves whose bounds are remembered."""

Interval = tuple[int, int]


@dataclass(frozen=True, slots=True)
class TermSet(Node):
    """A resolved leaf: the item has a term in one of the ascending, disjoint intervals."""

    feature: Feature
    intervals: tuple[Interval, ...]


Resolved = TermSet | Constant | Not | And | Or
_JOINS = (And, Or)
_LEAVES = (Compare, In, Between, IsNull, Flag)


@dataclass
class Unknown:
    """The literals that are no value of their feature, as (feature, literal); such a leaf matches nothing."""

    literals: list[FeatureValue] = field(default_factory=list)

    @property
    def values(self) -> int:
        """How many there are."""
        return len(self.literals)


def resolve(node: Node, vocabulary: Vocabulary, text: str = "", unknown: Unknown | None = None) -> Node:
    """Replace every comparison by the `TermSet` it asks for; AND, OR, NOT stay.

    Raises:
        FilterError: an unknown feature, or a literal of another type than the feature.
    """
    unknown = unknown if unknown is not None else Unknown()
    if isinstance(node, _JOINS):
        children = tuple([resolve(child, vocabulary, text, unknown) for child in node.children])
        if len(children) > 1:
            return type(node)(children)
        return children[0] if children else Constant(isinstance(node, And))
    if isinstance(node, Not):
        return Not(resolve(node.child, vocabulary, text, unknown))
    if isinstance(node, Constant):
        return node
    assert isinstance(node, _LEAVES)
    feature = find_feature(node, vocabulary, text)
    try:
        return _leaf(node, feature, unknown)
    except InputError as error:
        raise FilterError(f"filter: {error}", text, node.position) from error


def find_feature(leaf: Compare | In | Between | IsNull | Flag, vocabulary: Vocabulary, text: str = "") -> Feature:
    """The feature that a comparison names.

    Raises:
        FilterError: there is none of that name.
    """
    feature = vocabulary.by_name.get(leaf.feature)
    if feature is None:
        known = [item.name for item in vocabulary.features]
        raise FilterError(
            f"filter: no feature {leaf.feature!r} in the index; {nearest(leaf.feature, known)}", text, leaf.position
        )
    return feature


def _leaf(node: Node, feature: Feature, unknown: Unknown) -> Node:
    if isinstance(node, Flag):
        if feature.kind != "boolean":
            raise InputError(
                f"feature {feature.name!r} is {feature.kind}; only a boolean one is a condition by itself, "
                "compare others or ask IS NOT NULL"
            )
        node = Compare(node.feature, "=", True, node.position)
    if isinstance(node, Compare):
        before, after = feature.span(node.value)
        if node.op == "=":
            if before == after:
                unknown.literals.append((feature.name, node.value))
            return _term_set(feature, [(before, after)])
        if node.op in ("<", "<="):
            return _term_set(feature, [(0, before if node.op == "<" else after)])
        return _term_set(feature, [(after if node.op == ">" else before, feature.num_terms)])
    if isinstance(node, In):
        spans = [feature.span(value) for value in node.values]
        unknown.literals += [
            (feature.name, value) for value, (low, high) in zip(node.values, spans, strict=True) if low == high
        ]
        return _term_set(feature, sorted(spans))
    if isinstance(node, Between):
        return _term_set(feature, [(feature.span(node.low)[0], feature.span(node.high)[1])])
    return Not(_term_set(feature, [(0, feature.num_terms)]))  # IS NULL


def _term_set(feature: Feature, spans: list[Interval]) -> Node:
    """The leaf of some intervals of ranks, ascending by their start."""
    first = feature.first_term
    found = [(first + low, first + high) for low, high in spans if low < high]
    if not found:
        return Constant(False)
    return TermSet(feature, _merge(found) if len(found) > 1 else tuple(found))


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
Bounds = tuple[Rows, Rows]
ALL: Rows = ("leaf", LEAF_ALL, 0, 0, 0)
NONE: Rows = ("leaf", LEAF_NONE, 0, 0, 0)


class Bounder:
    """Row expressions of resolved trees over one bit matrix."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._own_row = layout.plan.own_row.numpy()
        self._known: dict[tuple[Interval, ...], Bounds] = {}

    def upper(self, node: Node) -> tuple[Rows, bool]:
        """An expression that holds for every eligible item, and whether it holds for no other."""
        upper, lower = self.bounds(node)
        return upper, not self._layout.paper and upper == lower

    def bounds(self, node: Node) -> Bounds:
        """An expression that holds for every eligible item, and one that holds for eligible items only."""
        if isinstance(node, TermSet):
            found = self._known.get(node.intervals)
            if found is None:
                found = self._term_set(node)
                if len(self._known) < MAX_KNOWN:
                    self._known[node.intervals] = found
            return found
        if isinstance(node, Not):
            upper, lower = self.bounds(node.child)
            negated = negate(lower)
            return negated, negated if lower is upper else negate(upper)
        if isinstance(node, Constant):
            return (ALL, ALL) if node.value else (NONE, NONE)
        assert isinstance(node, _JOINS)
        uppers, lowers = (
            zip(*[self.bounds(child) for child in node.children], strict=True) if node.children else ((), ())
        )
        join = conjoin if isinstance(node, And) else disjoin
        joined = join(uppers)
        return joined, joined if uppers == lowers else join(lowers)

    def _term_set(self, leaf: TermSet) -> Bounds:
        feature = leaf.feature
        place = self._layout.features[feature.name]
        presence: Rows = ("leaf", LEAF_OWN, place.presence_row, 0, 0) if place.presence_row >= 0 else ALL
        if leaf.intervals == ((feature.first_term, feature.end_term),) and place.presence_row >= 0:
            return presence, presence
        num_bloom = 0
        bounds: list[Bounds] = []
        for low, high in leaf.intervals:
            single = high == low + 1
            if single and (row := self._own_row.item(low)) >= 0:
                bounds.append(_same(("leaf", LEAF_OWN, row, 0, 0)))
            elif place.slices is not None and not (single and feature.multi):
                bounds.append(_sliced(feature, place.slices, low, high))
            else:
                rows = self._own_row[low:high]
                bounds += [_same(("leaf", LEAF_OWN, row, 0, 0)) for row in rows[rows >= 0].tolist()]
                terms = low + np.flatnonzero(rows < 0)
                num_bloom += len(terms)
                if num_bloom <= MAX_BLOOM_TERMS:
                    bounds += [(("leaf", LEAF_BLOOM, term, 0, 0), NONE) for term in terms.tolist()]
        if num_bloom > MAX_BLOOM_TERMS and self._layout.paper:
            raise InputError(too_many(feature))
        upper = presence if num_bloom > MAX_BLOOM_TERMS else disjoin([upper for upper, _ in bounds])
        if self._layout.paper or (num_bloom == 0 and all(u is v for u, v in bounds)):
            return upper, upper  # the paper has one mask for both: NOT complements it, false positives and all
        return upper, disjoin([lower for _, lower in bounds])


def too_many(feature: Feature) -> str:
    """Why the paper's form cannot express a comparison."""
    return (
        f"a comparison on feature {feature.name!r} covers more than {MAX_BLOOM_TERMS} values, which the "
        "silvertorch preset cannot express; build the index without --preset silvertorch"
    )


def _same(exact: Rows) -> Bounds:
    return exact, exact


def _sliced(feature: Feature, slices: tuple[Interval, Interval], low: int, high: int) -> Bounds:
    """Bounds of "has a term in [low, high)" from the rank codes of the smallest and largest value (0 = none)."""
    first, last = low - feature.first_term + 1, high - feature.first_term + 1
    if not feature.multi:
        return _same(_codes_in(slices[0], first, last, feature.num_terms))
    (row, bits), (largest, _) = slices
    reaches: Rows = ("not", ("leaf", LEAF_LESS, largest, bits, first))
    if last > feature.num_terms:
        return _same(reaches)
    upper = conjoin([("leaf", LEAF_LESS, row, bits, last), reaches])
    if first == 1:
        return _same(upper)
    return upper, disjoin([_codes_in(side, first, last, feature.num_terms) for side in slices])


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


def conjoin(parts: Iterable[Rows]) -> Rows:
    """AND of row expressions, simplified."""
    return _combine("and", parts, ALL, NONE)


def disjoin(parts: Iterable[Rows]) -> Rows:
    """OR of row expressions, simplified; of none: no item."""
    return _combine("or", parts, NONE, ALL)


def _combine(name: str, parts: Iterable[Rows], neutral: Rows, absorbing: Rows) -> Rows:
    kept: dict[Rows, None] = {}
    for part in parts:
        if part == absorbing:
            return absorbing
        if part[0] == name:
            kept.update(dict.fromkeys(part[1:]))
        elif part != neutral:
            kept[part] = None
    if not kept:
        return neutral
    return next(iter(kept)) if len(kept) == 1 else (name, *kept)
