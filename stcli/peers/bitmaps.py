"""Eligible items as packed bitmaps, as somebody who filters with Faiss or NumPy keeps them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from stcli.filters.bounds import TermSet
from stcli.filters.tree import And, Constant, Node, Not, Or
from stcli.types import Postings

Intervals = tuple[tuple[int, int], ...]


class Bitmaps:
    """A bitmap of the items for each condition; those of a filter are combined when it is asked.

    Bit `i % 8` of byte `i // 8` is row `i`. They come from the exact terms, not from the index's bit matrix.

    Args:
        terms: exact terms of every row.
        num_items: N.
    """

    def __init__(self, terms: Postings, num_items: int) -> None:
        values, offsets = terms.values.numpy(), terms.offsets.numpy()
        order = np.argsort(values, kind="stable")
        self._terms = values[order]
        self._rows = np.repeat(np.arange(num_items, dtype=np.int32), np.diff(offsets))[order]
        self._num_items = num_items
        self._leaves: dict[Intervals, np.ndarray] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of the bitmaps that are kept."""
        return sum(bits.nbytes for bits in self._leaves.values())

    def prepare(self, trees: Iterable[Node | None]) -> None:
        """Make the bitmap of every condition beforehand, so that a search only combines them."""
        for tree in trees:
            if tree is not None:
                self.of(tree)

    def of(self, tree: Node) -> np.ndarray:
        """The items that satisfy a resolved filter, uint8 [ceil(N / 8)]; bits from N on are 0; not to be written to."""
        if isinstance(tree, TermSet):
            return self._leaf(tree.intervals)
        if isinstance(tree, Constant):
            return np.packbits(np.full(self._num_items, tree.value), bitorder="little")
        if isinstance(tree, Not):
            bits = ~self.of(tree.child)
            if self._num_items % 8:
                bits[-1] &= (1 << self._num_items % 8) - 1
            return bits
        assert isinstance(tree, And | Or)
        first, *rest = (self.of(child) for child in tree.children)
        for bits in rest:
            first = first & bits if isinstance(tree, And) else first | bits
        return first

    def holds(self, tree: Node, rows: np.ndarray) -> np.ndarray:
        """Which rows >= 0 satisfy a resolved filter; bool, the shape of rows."""
        if isinstance(tree, TermSet):
            return holds(self._leaf(tree.intervals), rows)
        if isinstance(tree, Constant):
            return np.full(rows.shape, tree.value)
        if isinstance(tree, Not):
            return ~self.holds(tree.child, rows)
        assert isinstance(tree, And | Or)
        parts = [self.holds(child, rows) for child in tree.children]
        return np.logical_and.reduce(parts) if isinstance(tree, And) else np.logical_or.reduce(parts)

    def _leaf(self, intervals: Intervals) -> np.ndarray:
        known = self._leaves.get(intervals)
        if known is None:
            holds = np.zeros(self._num_items, bool)
            edges = np.searchsorted(self._terms, np.asarray(intervals, self._terms.dtype).reshape(-1, 2))
            for low, high in edges:
                holds[self._rows[low:high]] = True
            known = self._leaves[intervals] = np.packbits(holds, bitorder="little")
        return known


def count(bits: np.ndarray) -> int:
    """Items in a bitmap."""
    return int(np.bitwise_count(bits).sum())


def rows_of(bits: np.ndarray) -> np.ndarray:
    """The items in a bitmap, int64, ascending."""
    return np.flatnonzero(np.unpackbits(bits, bitorder="little"))


def holds(bits: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Which rows >= 0 are in a bitmap; bool, the shape of rows."""
    return (bits[rows >> 3] >> (rows & 7).astype(np.uint8) & 1).astype(bool)
