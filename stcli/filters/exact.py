"""Which items satisfy a filter, and the best of them, found the slow and certain way: the truth for `bench` and tests.

Nothing here is shared with the search but the resolved tree of a filter: eligible items come from the exact terms
alone, without the bit matrix and without `ops/verify_terms`; scores are float64 sums over the embeddings, without the
int8 codes. Memory is bounded: items are taken in tiles, queries in chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch

from stcli.filters.bounds import TermSet
from stcli.filters.program import FilterPlan, Planner
from stcli.filters.tree import And, Constant, Node, Not, Or
from stcli.storage.ids import ItemIds
from stcli.types import PAD_ROW, Embeddings, Postings

TILE_BYTES = 1 << 26
"""Float64 bytes of the vectors of one tile of items, and of its scores for one chunk of queries."""

CHUNK_QUERIES = 256
CACHED_LEAVES = 2048
MANY = 4
"""A tile with more candidates than so many times k a query first drops those that do not reach its own k-th best."""

Tile = tuple[np.ndarray, torch.Tensor]
"""Rows int64 [n] of some items, each row once, and their vectors float [n, D]."""


class PackedModel(Protocol):
    """What `exact_search` needs of a model."""

    ids: ItemIds

    @property
    def planner(self) -> Planner:
        """Of its vocabulary."""

    @property
    def terms(self) -> Postings:
        """Exact terms of the items."""

    @property
    def num_items(self) -> int:
        """N."""

    @property
    def embeddings(self) -> Embeddings | None:
        """The packed embeddings."""

    def normalized(self, vectors: torch.Tensor) -> torch.Tensor:
        """Queries as the metric wants them."""


class TermRows:
    """The terms of some rows sorted by term, so that the rows of a leaf are a few slices.

    Example: row 0 has the terms {2, 5} and row 1 has {3}; the leaf [2, 4) holds for both, the leaf [4, 9) for row 0.

    Args:
        terms: exact terms of all rows.
        rows: int64 [n], rows in any order.
    """

    def __init__(self, terms: Postings, rows: np.ndarray) -> None:
        values, offsets = terms.values.numpy(), terms.offsets.numpy()
        starts, counts = offsets[rows], offsets[rows + 1] - offsets[rows]
        owners = np.repeat(np.arange(len(rows)), counts)
        within = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)
        found = values[starts[owners] + within]
        order = np.argsort(found, kind="stable")
        self._terms, self._owners, self._count = found[order], owners[order], len(rows)
        self._leaves: dict[tuple[tuple[int, int], ...], np.ndarray] = {}

    def eligible(self, plan: FilterPlan | None) -> np.ndarray:
        """Which of the rows satisfy a filter; bool [n]."""
        return np.ones(self._count, bool) if plan is None else self._holds(plan.terms)

    def _holds(self, node: Node | TermSet) -> np.ndarray:
        if isinstance(node, TermSet):
            return self._leaf(node.intervals)
        if isinstance(node, Constant):
            return np.full(self._count, node.value)
        if isinstance(node, Not):
            return ~self._holds(node.child)
        assert isinstance(node, And | Or)
        result = np.full(self._count, isinstance(node, And))
        for child in node.children:
            result = result & self._holds(child) if isinstance(node, And) else result | self._holds(child)
        return result

    def _leaf(self, intervals: tuple[tuple[int, int], ...]) -> np.ndarray:
        known = self._leaves.get(intervals)
        if known is None:
            known = np.zeros(self._count, bool)
            edges = np.searchsorted(self._terms, np.asarray(intervals, self._terms.dtype).reshape(-1, 2))
            for low, high in edges:
                known[self._owners[low:high]] = True
            if len(self._leaves) < CACHED_LEAVES:
                self._leaves[intervals] = known
        return known


def eligible(terms: Postings, plan: FilterPlan, num_items: int) -> np.ndarray:
    """Find the items that satisfy a planned filter, by their exact terms alone.

    Args:
        terms: exact terms, N lines.
        plan: from `Planner.plan`.
        num_items: N.

    Returns:
        bool [N].
    """
    step = 1 << 16
    spans = (np.arange(start, min(start + step, num_items)) for start in range(0, num_items, step))
    parts = [TermRows(terms, rows).eligible(plan) for rows in spans]
    return np.concatenate(parts) if parts else np.zeros(0, bool)


@dataclass(frozen=True)
class Truth:
    """The true best k eligible items of B queries, larger score first, then smaller item id.

    Attributes:
        rows: int64 [B, k], -1 in empty slots, which stand last.
        scores: float64 [B, k], -inf in empty slots.
        norms: float64 [B, k], length of each item's vector, 0 in empty slots.
        eligible: int64 [B], items that satisfy the filter.
        asked: float64 [B, M], true scores of the rows asked for; -inf where the item is not eligible.
    """

    rows: np.ndarray
    scores: np.ndarray
    norms: np.ndarray
    eligible: np.ndarray
    asked: np.ndarray


def packed_tiles(embeddings: Embeddings, tile_rows: int) -> Iterator[Tile]:
    """The packed embeddings in row order, `tile_rows` at a time, as float64."""
    for start in range(0, len(embeddings.values), tile_rows):
        part = slice(start, start + tile_rows)
        vectors = embeddings.values[part].double()
        if embeddings.exponents is not None:
            vectors = torch.ldexp(vectors, embeddings.exponents[part, None].int())
        yield np.arange(start, start + len(vectors)), vectors


def tile_rows_for(dim: int) -> int:
    """Rows of a tile of items with `dim` dimensions."""
    return max(TILE_BYTES // (8 * max(dim, CHUNK_QUERIES)), 1)


def exact_search(
    model: PackedModel,
    vectors: torch.Tensor,
    filters: Sequence[str | Node | None],
    k: int,
    *,
    tiles: Iterable[Tile] | None = None,
    asked: np.ndarray | None = None,
    done: Callable[[int], None] = lambda items: None,
) -> Truth:
    """Find the true best k eligible items of each query by scoring every item in float64.

    A batch of B queries costs N * D * B multiply-adds, and about 350 MB beside the results and the tiles.

    Args:
        model: gives terms, planner, ids and, without `tiles`, the packed embeddings.
        vectors: float [B, D].
        filters: a text or tree or None a query.
        k: results a query.
        tiles: vectors of all items, each item once; default: the packed embeddings.
        asked: int64 [B, M], rows whose true scores are wanted too; -1 in empty slots.
        done: called with the number of items scored so far.

    Returns:
        `Truth`.
    """
    if tiles is None:
        assert model.embeddings is not None
        tiles = packed_tiles(model.embeddings, tile_rows_for(vectors.shape[1]))
    queries = model.normalized(vectors).double()
    plans = [model.planner.plan(item) for item in filters]
    asked = np.full((len(vectors), 0), PAD_ROW) if asked is None else asked
    chunks = [
        _Chunk(queries[start : start + CHUNK_QUERIES], plans[start : start + CHUNK_QUERIES], k, part)
        for start in range(0, len(queries), CHUNK_QUERIES)
        for part in [asked[start : start + CHUNK_QUERIES]]
    ]
    place = np.full(model.num_items, -1, np.int32)
    seen = 0
    for rows, items in tiles:
        items = items.to(queries.device).double()
        place[rows] = np.arange(len(rows))
        terms = TermRows(model.terms, rows)
        norms = items.norm(dim=1).cpu().numpy()
        for chunk in chunks:
            chunk.take(rows, items, norms, terms, place, model.ids.rank)
        place[rows] = -1
        seen += len(rows)
        done(seen)
    return _join(chunks, k, asked.shape[1])


@dataclass
class _Chunk:
    """Some queries and the best that they have found in the tiles so far."""

    queries: torch.Tensor
    plans: Sequence[FilterPlan | None]
    k: int
    asked_rows: np.ndarray
    rows: np.ndarray = field(init=False)
    scores: np.ndarray = field(init=False)
    norms: np.ndarray = field(init=False)
    eligible: np.ndarray = field(init=False)
    asked: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        shape = (len(self.queries), self.k)
        self.rows, self.scores, self.norms = np.full(shape, PAD_ROW), np.full(shape, -np.inf), np.zeros(shape)
        self.eligible = np.zeros(len(self.queries), np.int64)
        self.asked = np.full(self.asked_rows.shape, -np.inf)

    def take(
        self,
        rows: np.ndarray,
        items: torch.Tensor,
        norms: np.ndarray,
        terms: TermRows,
        place: np.ndarray,
        rank: np.ndarray,
    ) -> None:
        """Score one tile; `place` int32 [N] gives the place of a row in it, or -1."""
        scores = self.queries @ items.t()
        distinct = {id(plan): plan for plan in self.plans}
        masks = {key: terms.eligible(plan) for key, plan in distinct.items()}
        masked = np.stack([masks[id(plan)] for plan in self.plans])
        self.eligible += masked.sum(1)
        scores.masked_fill_(torch.from_numpy(~masked).to(scores.device), -torch.inf)
        where = np.where(self.asked_rows >= 0, place[self.asked_rows], -1)
        line, slot = np.nonzero(where >= 0)
        self.asked[line, slot] = (
            scores[torch.from_numpy(line), torch.from_numpy(where[line, slot]).long()].cpu().numpy()
        )
        # All that reach the k-th best, ties included: which of them stay is decided by item id, not by topk.
        threshold = torch.from_numpy(self.scores[:, -1]).to(scores.device)[:, None]
        reached = (scores >= threshold) & (scores > -torch.inf)
        if len(rows) > self.k and int(reached.count_nonzero()) > MANY * self.k * len(scores):
            reached &= scores >= scores.topk(self.k, dim=1).values[:, -1:]
        query, item = (axis.cpu().numpy() for axis in reached.nonzero(as_tuple=True))
        self._merge(query, rows[item], scores[reached].cpu().numpy(), norms[item], rank)

    def _merge(
        self, query: np.ndarray, rows: np.ndarray, scores: np.ndarray, norms: np.ndarray, rank: np.ndarray
    ) -> None:
        old = np.nonzero(self.rows >= 0)
        query = np.concatenate((old[0], query))
        rows = np.concatenate((self.rows[old], rows))
        scores = np.concatenate((self.scores[old], scores))
        norms = np.concatenate((self.norms[old], norms))
        order = np.lexsort((rank[rows], -scores, query))
        counts = np.bincount(query, minlength=len(self.queries))
        slot = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
        order, slot = order[slot < self.k], slot[slot < self.k]
        for kept, values in ((self.rows, rows), (self.scores, scores), (self.norms, norms)):
            kept[query[order], slot] = values[order]


def _join(chunks: Sequence[_Chunk], k: int, num_asked: int) -> Truth:
    if not chunks:
        none = np.zeros((0, k))
        return Truth(none.astype(np.int64), none, none, np.zeros(0, np.int64), np.zeros((0, num_asked)))
    names = ("rows", "scores", "norms", "eligible", "asked")
    return Truth(*(np.concatenate([getattr(chunk, name) for chunk in chunks]) for name in names))
