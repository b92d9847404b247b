"""One template and many values: the filters that come out, each distinct one written once.

A clause numbers the distinct sets of values that it is given; a filter is then a line of such numbers, one a clause,
and only the distinct lines are written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from stcli.errors import FilterError, InputError
from stcli.filters.bind_filters import Source, bind_filters
from stcli.filters.bounds import Bounder, Unknown, find_feature, resolve
from stcli.filters.clause import BoundClause, ClausePlan, Operands
from stcli.filters.layout import Layout
from stcli.filters.lexicon import FeatureValue, Placeholder
from stcli.filters.literals import Literals
from stcli.filters.pieces import Code, Ops, Pieces, join_pieces
from stcli.filters.program import FilterBatch
from stcli.filters.ragged import distinct_rows
from stcli.filters.template import Template
from stcli.filters.tree import MAX_TERMS, And, Between, Compare, In, Node, Not, Or
from stcli.filters.vocabulary import Vocabulary
from stcli.types import OP_AND, OP_NOT, OP_OR

_OPS = (OP_AND, OP_OR, OP_NOT)
"""Of the pieces that a filter is made of, the first is nothing and the next are these operations."""


@dataclass(frozen=True)
class Bound:
    """The filters of B queries.

    Attributes:
        filters: one piece a distinct filter.
        filter_of_query: int64 [B], -1 where all clauses are dropped.
        unknown_values: int64 [B], literals that are no value of their feature.
    """

    filters: Pieces
    filter_of_query: np.ndarray
    unknown_values: np.ndarray


@dataclass(frozen=True)
class _Static:
    """A part of a template without placeholders."""

    pieces: Pieces
    unknown_values: int
    num_values: int


class Binder:
    """A template over one index: everything that does not depend on the queries, done once.

    Args:
        template: the filter text with placeholders.
        vocabulary: the terms of the index.
        layout: its bit matrix.

    Attributes:
        unknown_literals: of the text, those that are no value of their feature, as (feature, literal).

    Raises:
        FilterError: it names an unknown feature, or compares one with a literal of another type.
    """

    def __init__(self, template: Template, vocabulary: Vocabulary, layout: Layout) -> None:
        self._template, self._vocabulary, self._layout = template, vocabulary, layout
        self._bounder = Bounder(layout)
        self._sources: list[ClausePlan | _Static] = []
        self._ops: list[int] = []  # the template as a program; a number >= 0 pushes that source
        self.unknown_literals: list[FeatureValue] = []
        if template.tree is not None:
            self._compile(template.tree, True)

    def read(self, literals: Mapping[str, Literals], num_queries: int) -> list[Operands]:
        """Look up the values of each clause.

        Raises:
            FilterError: a column has a type that a feature cannot be compared with.
        """
        return [source.read(literals, num_queries) for source in self._sources if isinstance(source, ClausePlan)]

    def refused(self, operands: Sequence[Operands], num_queries: int) -> dict[int, FilterError]:
        """The queries that cannot be bound, ascending, with the reason."""
        num_values = np.full(num_queries, sum(s.num_values for s in self._sources if isinstance(s, _Static)))
        found: dict[int, FilterError] = {}
        for clause in operands:
            num_values += clause.num_values
            found = clause.refused | found
        for query in np.flatnonzero(num_values > MAX_TERMS).tolist():
            message = f"filter: more than {MAX_TERMS:,} values; long lists belong in an eligibility column"
            found.setdefault(query, FilterError(message, self._template.text))
        return dict(sorted(found.items()))

    def batch(self, operands: Sequence[Operands], num_queries: int, also: BoundClause | None = None) -> FilterBatch:
        """Write the programs of the distinct filters; `also` is one more clause, ANDed."""
        remaining = iter(operands)
        sources: list[Source] = [
            (source, next(remaining)) if isinstance(source, ClausePlan) else source.pieces for source in self._sources
        ]
        given = sources if also is None else [*sources, also]
        made = bind_filters(self._program(also), given, num_queries, self._layout)
        if made is None:
            bound = self.bind(operands, num_queries, also)
            return FilterBatch.of(bound.filter_of_query, bound.filters, int(bound.unknown_values.sum()))
        unknown = num_queries * sum(source.unknown_values for source in self._sources if isinstance(source, _Static))
        unknown += int(also.unknown_values.sum()) if also is not None else 0
        return replace(made, unknown_values=made.unknown_values + unknown)

    def bind(self, operands: Sequence[Operands], num_queries: int, also: BoundClause | None = None) -> Bound:
        """The definition of `batch`, up to the programs; in numpy."""
        remaining = iter(operands)
        parts: list[BoundClause | _Static] = [
            source.bind(next(remaining)) if isinstance(source, ClausePlan) else source for source in self._sources
        ]
        if also is not None:
            parts.append(also)
        columns = [part.codes for part in parts if isinstance(part, BoundClause)]
        table = np.stack(columns, 1) if columns else np.zeros((num_queries, 0), np.int64)
        lines, line_of_query = distinct_rows(table)

        pieces, first, pushed, column = [_operations()], 1 + len(_OPS), [], iter(lines.T)
        for part in parts:
            codes = next(column) if isinstance(part, BoundClause) else np.zeros(len(lines), np.int64)
            pushed.append(np.where(codes >= 0, first + codes, 0))
            pieces.append(part.pieces)
            first += len(part.pieces.exact)
        order = _ordered(self._program(also), pushed, len(lines))
        left = order.any(1)
        number = np.where(left, np.cumsum(left) - 1, -1)
        unknown = np.zeros(num_queries, np.int64)
        for part in parts:
            unknown += part.unknown_values
        return Bound(join_pieces(pieces).arrange(order[left]), number[line_of_query], unknown)

    def _program(self, also: BoundClause | None) -> list[int]:
        """The template in postfix order; with one more clause, ANDed, which is the last source."""
        if also is None:
            return self._ops
        return [*self._ops, len(self._sources), OP_AND] if self._ops else [0]

    def _compile(self, node: Node, upper: bool) -> None:
        """Append a node to the program; `upper`: it stands under an even number of NOTs."""
        if not _has_placeholder(node):
            self._ops.append(len(self._sources))
            self._sources.append(self._static(node, upper))
        elif isinstance(node, Not):
            self._compile(node.child, not upper)
            self._ops.append(OP_NOT)
        elif isinstance(node, And | Or):
            for place, child in enumerate(node.children):
                self._compile(child, upper)
                if place:
                    self._ops.append(OP_AND if isinstance(node, And) else OP_OR)
        else:
            assert isinstance(node, Compare | In | Between)
            text = self._template.text
            feature = find_feature(node, self._vocabulary, text)
            self._ops.append(len(self._sources))
            try:
                self._sources.append(ClausePlan(node, feature, self._layout, upper, text))
            except InputError as error:
                raise FilterError(f"filter: {error}", text, node.position) from error
            if isinstance(node, In):
                fixed = In(node.feature, tuple(value for value in node.values if not isinstance(value, Placeholder)))
                unknown = Unknown()
                resolve(fixed, self._vocabulary, text, unknown)
                self.unknown_literals += unknown.literals

    def _static(self, node: Node, upper: bool) -> _Static:
        unknown = Unknown()
        terms = resolve(node, self._vocabulary, self._template.text, unknown)
        self.unknown_literals += unknown.literals
        rows, exact = self._bounder.bounds(terms)[0 if upper else 1], self._bounder.upper(terms)[1]
        code = Code.of(rows, exact, terms, unknown.values)
        return _Static(Pieces.of_codes([code]), unknown.values, _num_values(node))


def _operations() -> Pieces:
    ops = Ops(np.array(_OPS, np.int32), np.array([0, 1, 1, 1]), 0)
    leaves, spans, counts = np.zeros((0, 4), np.int64), np.zeros((0, 2), np.int32), np.zeros(0, np.int64)
    return Pieces(ops, leaves, ops, spans, counts, np.ones(4, bool))


def _ordered(ops: Sequence[int], pushed: Sequence[np.ndarray], num_filters: int) -> np.ndarray:
    """The pieces of each filter in the order of a program, int64 [F, len(ops)], where source i is piece `pushed[i]`.

    A source that is piece 0, nothing, takes its operation with it.
    """
    order = np.zeros((num_filters, len(ops)), np.int64)
    stack: list[np.ndarray] = []  # whether anything is left of each operand
    for place, op in enumerate(ops):
        if op >= 0:
            order[:, place] = pushed[op]
            stack.append(pushed[op] > 0)
            continue
        done = stack[-1]
        if op != OP_NOT:
            right = stack.pop()
            done = stack[-1] & right
            stack[-1] = stack[-1] | right
        order[:, place] = np.where(done, 1 + _OPS.index(op), 0)
    return order


def _has_placeholder(node: Node) -> bool:
    if isinstance(node, And | Or):
        return any(_has_placeholder(child) for child in node.children)
    if isinstance(node, Not):
        return _has_placeholder(node.child)
    return any(isinstance(operand, Placeholder) for operand in _operands(node))


def _num_values(node: Node) -> int:
    """Values of a tree, as `MAX_TERMS` counts them."""
    if isinstance(node, And | Or):
        return sum(_num_values(child) for child in node.children)
    if isinstance(node, Not):
        return _num_values(node.child)
    return max(1, len(node.values)) if isinstance(node, In) else 1


def _operands(node: Node) -> tuple[object, ...]:
    match node:
        case Compare(_, _, value):
            return (value,)
        case Between(_, low, high):
            return (low, high)
        case In(_, values):
            return values
    return ()
