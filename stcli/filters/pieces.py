"""Pieces of filter programs as arrays, and the programs of a batch put together from them without a Python loop."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch

from stcli.filters.bounds import Rows, TermSet
from stcli.filters.ragged import distinct_lines, distinct_rows, offsets_of, places
from stcli.filters.tree import And, Constant, Node, Not, Or
from stcli.types import OP_AND, OP_NOT, OP_OR, Program, TermProgram

PUSH = 0
"""In a `Code`, pushes the next leaf; the operations are as in `Program`, as one signed byte."""

_AND, _OR, _NOT = (op & 0xFF for op in (OP_AND, OP_OR, OP_NOT))
_JOINS = (And, Or)
_GROWTH = np.array([1, 0, -1, -1], np.int32)
"""How the stack grows by a push, and, counted from the end, by AND, OR and NOT."""


class Code(NamedTuple):
    """One filter in postfix order; as bytes, since those of thousands of filters are joined at once.

    Attributes:
        row_ops, term_ops: int8, PUSH or an operation, of the row program and of the term program.
        leaves: int64 [pushes, 4], of the row program.
        spans: int32 [intervals, 2], of all pushes of the term program.
        span_counts: int64 [pushes], intervals of each.
        exact: the row program holds for eligible items only.
        unknown_values: literals that are no value of their feature.
    """

    row_ops: bytes
    leaves: bytes
    term_ops: bytes
    spans: bytes
    span_counts: bytes
    exact: bool
    unknown_values: int

    @classmethod
    def of(cls, rows: Rows, exact: bool, terms: Node, unknown_values: int) -> Code:
        """Write a row expression and a resolved tree."""
        row_ops, leaves = bytearray(), array("q")
        _write_rows(rows, row_ops, leaves)
        term_ops, spans, counts = bytearray(), array("i"), array("q")
        _write_terms(terms, term_ops, spans, counts)
        leaf_bytes, span_bytes, count_bytes = leaves.tobytes(), spans.tobytes(), counts.tobytes()
        return cls(bytes(row_ops), leaf_bytes, bytes(term_ops), span_bytes, count_bytes, exact, unknown_values)


def _write_rows(x: Rows, ops: bytearray, leaves: array[int]) -> None:
    if x[0] == "leaf":
        ops.append(PUSH)
        leaves.fromlist([*x[1:]])
    elif x[0] == "not":
        _write_rows(x[1], ops, leaves)
        ops.append(_NOT)
    else:
        op = _AND if x[0] == "and" else _OR
        _write_rows(x[1], ops, leaves)
        for part in x[2:]:
            _write_rows(part, ops, leaves)
            ops.append(op)


def _write_terms(node: Node, ops: bytearray, spans: array[int], counts: array[int]) -> None:
    if isinstance(node, TermSet):
        ops.append(PUSH)
        counts.append(len(node.intervals))
        for span in node.intervals:
            spans.fromlist([*span])
    elif isinstance(node, Not):
        _write_terms(node.child, ops, spans, counts)
        ops.append(_NOT)
    elif isinstance(node, Constant):
        ops.append(PUSH)
        counts.append(0)
        if node.value:
            ops.append(_NOT)
    else:
        assert isinstance(node, _JOINS)
        op = _AND if isinstance(node, And) else _OR
        _write_terms(node.children[0], ops, spans, counts)
        for child in node.children[1:]:
            _write_terms(child, ops, spans, counts)
            ops.append(op)


@dataclass(frozen=True)
class Ops:
    """Operations of n pieces in postfix order.

    Attributes:
        ops: int32, >= 0 pushes that leaf, else an operation.
        lengths: int64 [n], operations of each piece.
        num_leaves: leaves that the operations name.
    """

    ops: np.ndarray
    lengths: np.ndarray
    num_leaves: int

    def arrange(self, order: np.ndarray) -> Ops:
        """Pieces that consist of other pieces: `order` [n, m] names m of them for each."""
        lengths = self.lengths[order]
        starts = offsets_of(self.lengths)[:-1][order]
        return Ops(self.ops[places(starts.ravel(), lengths.ravel())], lengths.sum(1), self.num_leaves)

    def finish(self) -> dict[str, Any]:
        """The fields `ops`, `op_offsets` and `max_depth` of a program; no piece is empty."""
        offsets = offsets_of(self.lengths)
        level = np.cumsum(_GROWTH[np.minimum(self.ops, 0)])  # a piece leaves one mask more than it found
        depth = np.maximum.reduceat(level, offsets[:-1]) - np.arange(len(self.lengths))
        return {
            "ops": torch.from_numpy(self.ops),
            "op_offsets": torch.from_numpy(offsets),
            "max_depth": int(depth.max()),
        }


def lines(values: np.ndarray, offsets: np.ndarray) -> list[bytes]:
    """The bytes of each line of a ragged map; entries are the rows of `values`."""
    data = values.tobytes()
    ends = (offsets * (len(data) // max(len(values), 1))).tolist()
    return [data[start:end] for start, end in pairwise(ends)]


def _numbered(codes: Sequence[bytes], leaves: np.ndarray) -> Ops:
    """Operations of codes whose pushes push those leaves, one after the other."""
    ops = np.frombuffer(b"".join(codes), np.int8).astype(np.int32)
    ops[ops == PUSH] = leaves
    lengths = np.fromiter(map(len, codes), np.int64, len(codes))
    return Ops(ops, lengths, int(leaves.max(initial=-1)) + 1)


def join_ops(parts: Sequence[Ops]) -> Ops:
    """All pieces of all parts; the leaves of a part come after those of the parts before it."""
    shifted, first = [], 0
    for part in parts:
        shifted.append(np.where(part.ops >= 0, part.ops + np.int32(first), part.ops))
        first += part.num_leaves
    return Ops(np.concatenate(shifted), np.concatenate([part.lengths for part in parts]), first)


@dataclass(frozen=True)
class Pieces:
    """Pieces of n filters, each as rows of the bit matrix and as exact terms.

    Attributes:
        rows: operations over the bit matrix.
        leaves: int64 [row leaves, 4], as in `Program`.
        terms: operations over exact terms.
        spans: int32 [intervals, 2], intervals of the term leaves, one leaf after the other.
        span_counts: int64 [term leaves], intervals of each.
        exact: bool [n], the row form holds for the same items as the term form.
    """

    rows: Ops
    leaves: np.ndarray
    terms: Ops
    spans: np.ndarray
    span_counts: np.ndarray
    exact: np.ndarray

    @classmethod
    def of_codes(cls, codes: Sequence[Code]) -> Pieces:
        """One piece a filter."""
        leaves = np.frombuffer(b"".join([code.leaves for code in codes]), np.int64).reshape(-1, 4)
        spans = np.frombuffer(b"".join([code.spans for code in codes]), np.int32).reshape(-1, 2)
        counts = np.frombuffer(b"".join([code.span_counts for code in codes]), np.int64)
        spans, offsets, numbers = distinct_lines(spans, offsets_of(counts))
        rows = _numbered([code.row_ops for code in codes], np.arange(len(leaves)))
        terms = _numbered([code.term_ops for code in codes], numbers)
        exact = np.fromiter([code.exact for code in codes], bool, len(codes))
        return cls(rows, leaves, terms, spans, np.diff(offsets), exact)

    def arrange(self, order: np.ndarray) -> Pieces:
        """Filters that consist of pieces: `order` [n, m] names m of them for each; exact if all of them are."""
        exact = self.exact[order].all(1)
        return Pieces(
            self.rows.arrange(order), self.leaves, self.terms.arrange(order), self.spans, self.span_counts, exact
        )

    def program(self) -> Program:
        """The row programs, one a piece; each distinct leaf once, in the order in which the operations name them."""
        pushes = self.rows.ops >= 0
        named = self.rows.ops[pushes]
        used = np.zeros(len(self.leaves), bool)
        used[named] = True
        leaves, numbers = distinct_rows(self.leaves[used])
        codes = np.zeros(len(used), np.int32)
        codes[used] = numbers
        codes = codes[named]
        first = np.zeros(len(leaves), np.int64)
        first[codes[::-1]] = np.arange(len(codes))[::-1]  # where a leaf is named first is written last
        order = np.argsort(first)
        ops = self.rows.ops.copy()
        ops[pushes] = np.argsort(order)[codes]
        rows = Ops(ops, self.rows.lengths, len(leaves))
        return Program(leaves=torch.from_numpy(leaves[order]), exact=torch.from_numpy(self.exact), **rows.finish())

    def term_program(self) -> TermProgram:
        """The term programs, one a piece."""
        lows, highs = torch.from_numpy(self.spans.T.copy())
        offsets = torch.from_numpy(offsets_of(self.span_counts))
        return TermProgram(lows=lows, highs=highs, leaf_offsets=offsets, **self.terms.finish())


def join_pieces(parts: Sequence[Pieces]) -> Pieces:
    """All pieces of all parts."""
    return Pieces(
        join_ops([part.rows for part in parts]),
        np.concatenate([part.leaves for part in parts]),
        join_ops([part.terms for part in parts]),
        np.concatenate([part.spans for part in parts]),
        np.concatenate([part.span_counts for part in parts]),
        np.concatenate([part.exact for part in parts]),
    )
