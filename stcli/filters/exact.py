"""Which items satisfy a filter, and the best of them, found the slow and certain way: the truth for `bench` and tests.

Nothing here is shared with the search but the resolved tree of a filter: eligible items come from the exact terms
alone, without the bit matrix and without `ops/verify_terms`; scores are float64 sums over the embeddings, without the
int8 codes. Every item is scored: first by a float32 matrix product, whose error has a bound; what may reach the best k
by that bound is scored in float64. Memory is bounded: items are taken in tiles, queries in chunks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch

from stcli.filters.bounds import TermSet
from stcli.filters.program import FilterPlan, Planner
from stcli.filters.tree import And, Constant, Node, Not, Or
from stcli.ops import native
from stcli.storage.ids import ItemIds
from stcli.types import PAD_ROW, Embeddings, Postings

TILE_BYTES = 1 << 26
"""Float64 bytes of the vectors of one tile of items. Fewer rows, and most of the time goes to small masks."""

CHUNK_QUERIES = 256
SPAN_ROWS = 1 << 13
"""Items of one matrix product: its float32 scores for a chunk of queries, 8 MB, stay in the cache."""

CACHED_LEAVES = 2048
MANY = 4
"""A tile with more candidates than so many times k a query first drops those that do not reach its own k-th best."""

PAIRS_BYTES = 1 << 23
"""Bytes of the vectors of one side of the pairs that are scored in float64 at once."""

LARGEST = 1e37
"""Products of lengths above which float32 could overflow, so that everything is scored in float64."""

Tile = tuple[np.ndarray, torch.Tensor]
"""Rows int64 [n] of some items, each row once, and their vectors float [n, D]."""


class PackedModel(Protocol):
    """What `exact_search` needs of a model."""

    @property
    def ids(self) -> ItemIds:
        """Ids of the items."""

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
        parts = [self._holds(child) for child in node.children]
        if not parts:
            return np.full(self._count, isinstance(node, And))
        return functools.reduce(np.logical_and if isinstance(node, And) else np.logical_or, parts)

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
    """Find the true best k eligible items of each query by scoring every item, in float64 wherever it matters.

    A batch of B queries costs N * D * B multiply-adds, and about 100 MB a thread beside the results and the tiles.

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
        _Chunk(queries[part], plans[part], k, asked[part], model.ids.rank)
        for start in range(0, len(queries), CHUNK_QUERIES)
        for part in [slice(start, start + CHUNK_QUERIES)]
    ]
    place = np.full(model.num_items, -1, np.int32)
    seen = 0
    # Chunks share nothing that they change; a GPU takes them one after the other.
    with ThreadPoolExecutor(native.num_threads() if queries.device.type == "cpu" else 1, "truth") as pool:
        for rows, items in tiles:
            place[rows] = np.arange(len(rows))
            tile = _ScoredTile(rows, items.to(queries.device).double(), TermRows(model.terms, rows), place)
            list(pool.map(tile.give, chunks))
            place[rows] = -1
            seen += len(rows)
            done(seen)
        list(pool.map(_Chunk.settle, chunks))
    return _join(chunks, k, asked.shape[1])


class _ScoredTile:
    """Some items, as every chunk takes them; `place` int32 [N] gives the place of a row among them, or -1."""

    def __init__(self, rows: np.ndarray, items: torch.Tensor, terms: TermRows, place: np.ndarray) -> None:
        self.rows, self.items, self.terms, self.place = rows, items, terms, place
        self.narrow = items.float()
        norms = items.norm(dim=1)
        self.norms, self.longest = norms.cpu().numpy(), float(norms.max()) if len(rows) else 0.0

    def give(self, chunk: _Chunk) -> None:
        chunk.take(self)


@dataclass
class _Chunk:
    """Some queries and the best that they have found in the tiles so far.

    Candidates wait until there are as many as results, so that few merges are needed; a k-th best score from before
    them lets a few more through, and hides none.
    """

    queries: torch.Tensor
    plans: Sequence[FilterPlan | None]
    k: int
    asked_rows: np.ndarray
    rank: np.ndarray
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
        self._narrow, self._lengths = self.queries.float(), self.queries.norm(dim=1)
        self._waiting: list[tuple[np.ndarray, ...]] = []

    def take(self, tile: _ScoredTile) -> None:
        """Score one tile."""
        distinct = {id(plan): plan for plan in self.plans}
        masks = {key: tile.terms.eligible(plan) for key, plan in distinct.items()}
        masked = np.stack([masks[id(plan)] for plan in self.plans])
        self.eligible += np.count_nonzero(masked, axis=1)
        where = np.where(self.asked_rows >= 0, tile.place[self.asked_rows], -1)
        line, slot = np.nonzero(where >= 0)
        kept = masked[line, where[line, slot]]
        line, slot = line[kept], slot[kept]
        self.asked[line, slot] = _dots(self.queries, tile.items, line, where[line, slot])
        eligible = torch.from_numpy(masked).to(self.queries.device)
        for start in range(0, len(tile.rows), SPAN_ROWS):
            span = slice(start, start + SPAN_ROWS)
            query, item = self._candidates(tile, span, eligible[:, span])
            scores = _dots(self.queries, tile.items[span], query, item)
            self._waiting.append((query, tile.rows[span][item], scores, tile.norms[span][item]))
            if sum(len(part[0]) for part in self._waiting) >= self.rows.size:
                self.settle()

    def _candidates(self, tile: _ScoredTile, span: slice, eligible: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Lines and places of all that may reach the k-th best, ties included: who stays is decided by score and id."""
        lengths = self._lengths * tile.longest
        # Each number is rounded once and so is each of D products and sums: the bound for a float32 sum in any order;
        # and what is lost below the smallest normal number.
        margin = lengths * ((self.queries.shape[1] + 3) * 2.0**-24) + 2.0**-120
        wide = float(lengths.max()) > LARGEST
        scores = self.queries @ tile.items[span].t() if wide else self._narrow @ tile.narrow[span].t()
        # Twice the margin, which leaves room for the rounding of the bound itself.
        last = torch.from_numpy(self.scores[:, -1]).to(scores.device) - 2 * margin
        reached = (scores >= last.to(scores.dtype)[:, None]) & eligible
        if scores.shape[1] > self.k and int(reached.count_nonzero()) > MANY * self.k * len(scores):
            best = scores.masked_fill_(~eligible, -torch.inf).topk(self.k, dim=1).values[:, -1]
            reached &= scores >= (best - 3 * margin).to(scores.dtype)[:, None]
        query, item = reached.nonzero(as_tuple=True)
        return query.cpu().numpy(), item.cpu().numpy()

    def settle(self) -> None:
        """Merge the candidates that wait."""
        old = np.nonzero(self.rows >= 0)
        kept = (old[0], self.rows[old], self.scores[old], self.norms[old])
        query, rows, scores, norms = (np.concatenate(parts) for parts in zip(kept, *self._waiting, strict=True))
        order = np.lexsort((self.rank[rows], -scores, query))
        counts = np.bincount(query, minlength=len(self.queries))
        slot = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
        order, slot = order[slot < self.k], slot[slot < self.k]
        for best, values in ((self.rows, rows), (self.scores, scores), (self.norms, norms)):
            best[query[order], slot] = values[order]
        self._waiting = []


def _dots(queries: torch.Tensor, items: torch.Tensor, line: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Float64 [n], the products of pairs of a query and an item; equal vectors have equal products."""
    found = np.empty(len(line))
    step = max(PAIRS_BYTES // (8 * queries.shape[1]), 1)
    for start in range(0, len(line), step):
        part = slice(start, start + step)
        left = queries[torch.from_numpy(line[part]).to(queries.device)]
        right = items[torch.from_numpy(place[part]).to(queries.device, torch.int64)]
        found[part] = (left * right).sum(1).cpu().numpy()
    return found


def _join(chunks: Sequence[_Chunk], k: int, num_asked: int) -> Truth:
    if not chunks:
        none = np.zeros((0, k))
        return Truth(none.astype(np.int64), none, none, np.zeros(0, np.int64), np.zeros((0, num_asked)))
    names = ("rows", "scores", "norms", "eligible", "asked")
    return Truth(*(np.concatenate([getattr(chunk, name) for chunk in chunks]) for name in names))
