"""Binding in C++, a tile a call: what `Binder.bind` and `FilterBatch.of` do, and the same arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from stcli.filters.clause import BoundClause, ClausePlan, Operands
from stcli.filters.layout import Layout
from stcli.filters.pieces import Pieces
from stcli.filters.program import FilterBatch
from stcli.filters.tree import OPERATORS, Between, In
from stcli.ops import native
from stcli.types import Program, TermProgram

Source = tuple[ClausePlan, Operands] | BoundClause | Pieces
"""A clause and its values; pieces of which each query has one or none; one piece that all have."""


def bind_filters(ops: Sequence[int], sources: Sequence[Source], num_queries: int, layout: Layout) -> FilterBatch | None:
    """Write the distinct filters of B queries.

    Args:
        ops: the template in postfix order; a number >= 0 takes that source.
        sources: what stands in it.
        num_queries: B.
        layout: of the bit matrix.

    Returns:
        The filters, with the unknown values of the clauses only; None where it is left to Python: the library is
        missing, or the paper's form cannot express a set of values.
    """
    if native.library() is None:
        return None
    numbers: list[int] = []
    starts: list[int] = []
    for source in sources:
        if isinstance(source, tuple):
            starts.append(len(numbers))
            numbers += _clause(*source, layout)
        else:
            starts.append(~len(numbers))
            numbers += _pieces(source)
    sizes = torch.empty(10, dtype=torch.int64)
    given = [torch.tensor(column, dtype=torch.int64) for column in (ops, numbers, starts)]
    counts = (len(sources), num_queries)
    matrix = (layout.plan.own_row, int(layout.paper))
    native.call("stcli_bind_filters", given[0], len(ops), *given[1:], *counts, *matrix, sizes, sizes[8:], sizes[9:])
    filters, row_ops, leaves, term_ops, term_leaves, spans, row_depth, term_depth, unknown, handle = sizes.tolist()
    if not handle:
        return None
    filter_of_query = torch.empty(num_queries, dtype=torch.int64)
    rows = Program(
        leaves=torch.empty(leaves, 4, dtype=torch.int64),
        ops=torch.empty(row_ops, dtype=torch.int32),
        op_offsets=torch.empty(filters + 1, dtype=torch.int64),
        exact=torch.empty(filters, dtype=torch.bool),
        max_depth=row_depth,
    )
    terms = TermProgram(
        lows=torch.empty(spans, dtype=torch.int32),
        highs=torch.empty(spans, dtype=torch.int32),
        leaf_offsets=torch.empty(term_leaves + 1, dtype=torch.int64),
        ops=torch.empty(term_ops, dtype=torch.int32),
        op_offsets=torch.empty(filters + 1, dtype=torch.int64),
        max_depth=term_depth,
    )
    written = (rows.ops, rows.op_offsets, rows.leaves, rows.exact, terms.ops, terms.op_offsets)
    native.call("stcli_take_bound", handle, filter_of_query, *written, terms.lows, terms.highs, terms.leaf_offsets)
    return FilterBatch(filter_of_query, rows if filters else None, terms if filters else None, filters, unknown)


def _clause(plan: ClausePlan, operands: Operands, layout: Layout) -> list[int]:
    """As `bind_clause` in the kernel reads it."""
    leaf = plan.leaf
    kind = 6 if isinstance(leaf, In) else 5 if isinstance(leaf, Between) else OPERATORS.index(leaf.op)
    numbers = [kind, int(plan.upper), *layout.numbers(plan.feature), *_array(operands.dropped, np.bool_)[1:]]
    numbers.append(len(operands.owners))
    for owners, ranks in zip(operands.owners, operands.ranks, strict=True):
        numbers += _array(owners, np.int64)
        numbers += [_array(column, np.int64)[1] for column in (ranks.before, ranks.after)]
    return numbers


def _pieces(source: BoundClause | Pieces) -> list[int]:
    """As `copy_source` in the kernel reads it."""
    numbers, pieces = [0, 0], source if isinstance(source, Pieces) else source.pieces
    if isinstance(source, BoundClause):
        numbers = _array(source.codes, np.int64)
    for part in (pieces.rows, pieces.terms):
        numbers += [*_array(part.ops, np.int32), *_array(part.lengths, np.int64)]
    numbers += [*_array(pieces.leaves, np.int64), *_array(pieces.spans, np.int32)]
    return [*numbers, *_array(pieces.span_counts, np.int64), *_array(pieces.exact, np.bool_)]


def _array(array: np.ndarray, dtype: type) -> list[int]:
    """How many numbers, and where they are."""
    assert array.dtype == dtype
    assert array.flags.c_contiguous
    return [array.size, array.ctypes.data]
