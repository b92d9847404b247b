"""What `search_clusters` and `search_rows` share: their checks, and the torch form that scores tiles.

A tile is some queries times some rows. Its scores become int64 keys (see `ops/keys.py`), rows that a query may not
see become the empty key, and the best k0 keys of each query are carried from tile to tile.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from stcli.errors import InputError, TensorError
from stcli.ops.checks import Shapes, check_range
from stcli.ops.int_dot import int_dot
from stcli.ops.keys import EMPTY_KEY, MAX_ROWS, best_keys, make_keys, split_keys
from stcli.types import PAD_ROW, Candidates, Lines, Quantized, SearchIndex, Spans

_TILE_QUERIES = 512
_TILE_ROWS = 4096

Bounds = tuple[torch.Tensor, torch.Tensor]


class Tile(NamedTuple):
    """Some queries times some rows.

    Attributes:
        queries: int64 [q].
        rows: int64 [r], ascending.
        starts: int64 [q], where the words of each query on these rows begin in `Spans.words`, -1 for none; or None.
    """

    queries: torch.Tensor
    rows: torch.Tensor
    starts: torch.Tensor | None = None


@dataclass(frozen=True)
class Scan:
    """The arguments that both searches take; see `search_clusters` for shapes and meaning."""

    queries: Quantized
    index: SearchIndex
    words: torch.Tensor | None
    filter_of_query: torch.Tensor
    k0: int
    excluded: Lines | None
    bounds: Bounds | None
    floors: torch.Tensor | None = None
    spans: Spans | None = None

    def check(self, *, values: bool = True) -> Shapes:
        """Check dtypes, shapes and, with `values`, ranges; returns the bound letters.

        To read values, the host must wait for a GPU, see `stcli.ops.dispatch.reads_values`.

        Raises:
            TensorError: a tensor has another dtype, shape or range than stated.
            InputError: k0 is below 1, or the index has more rows than a key can hold.
        """
        shapes, index, clusters = Shapes(), self.index, self.index.clusters
        shapes.check("index.codes", index.codes, torch.int8, "N Dp")
        for name in ("scales", "errors", "norms"):
            shapes.check(f"index.{name}", getattr(index, name), torch.float32, "N")
        shapes.check("clusters.centroids.scales", clusters.centroids.scales, torch.float32, "C")
        shapes.check("clusters.centroids.codes", clusters.centroids.codes, torch.int8, "C Dp")
        shapes.check("clusters.offsets", clusters.offsets, torch.int64, "C+1")
        shapes.check("queries.codes", self.queries.codes, torch.int8, "B Dp")
        shapes.check("queries.scales", self.queries.scales, torch.float32, "B")
        shapes.check("filter_of_query", self.filter_of_query, torch.int64, "B")
        num_rows, num_filters = len(index.scales), 0
        if self.words is not None:
            shapes.check("words", self.words, torch.int64, "F W")
            num_filters = len(self.words)
            if self.words.shape[1] != -(-num_rows // 64):
                raise TensorError(
                    f"words: W={-(-num_rows // 64)} expected for N={num_rows}, got W={self.words.shape[1]}"
                )
        if values:
            check_range("filter_of_query", self.filter_of_query, num_filters)
        if self.excluded is not None:
            shapes.check("excluded.values", self.excluded.values, torch.int64, "E")
            shapes.check("excluded.begins", self.excluded.begins, torch.int64, "B")
            shapes.check("excluded.ends", self.excluded.ends, torch.int64, "B")
            if values:
                check_lines("excluded", self.excluded)
        if self.bounds is not None:
            shapes.check("query_norms", self.bounds[0], torch.float32, "B")
            shapes.check("query_errors", self.bounds[1], torch.float32, "B")
        if self.floors is not None:
            shapes.check("floors", self.floors, torch.float32, "B")
        if self.k0 < 1:
            raise InputError(f"k0 is {self.k0}; expected at least 1")
        if num_rows > MAX_ROWS:
            raise InputError(f"the index has {num_rows} rows; one index holds at most {MAX_ROWS}; make shards")
        return shapes

    def run(self, tiles: Iterable[Tile]) -> Candidates:
        """Score the tiles and keep the best; no (query, row) pair comes twice."""
        shape = (len(self.queries.scales), self.k0)
        best = torch.full(shape, EMPTY_KEY, dtype=torch.int64, device=self.queries.codes.device)
        excluded = self._excluded_pairs()
        for tile in split_tiles(tiles):
            queries, rows = tile.queries, tile.rows
            keys = make_keys(self._scores(queries, rows), rows)
            keys.masked_fill_(~self._allowed(tile, excluded), EMPTY_KEY)
            best[queries] = best_keys(torch.cat([best[queries], best_keys(keys, self.k0)], dim=1), self.k0)
        return split_keys(best)

    def above_floors(self, found: Candidates) -> Candidates:
        """Candidates, best first, without those below their query's floor."""
        if self.floors is None:
            return found
        below = found.scores < self.floors[:, None]
        return Candidates(found.rows.masked_fill(below, PAD_ROW), found.scores.masked_fill(below, -torch.inf))

    def _scores(self, queries: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        index = self.index
        dots = int_dot(self.queries.codes[queries], index.codes[rows])
        scores = (dots.float() * self.queries.scales[queries, None]) * index.scales[rows]
        if self.bounds is not None:
            norms, errors = (bound[queries, None] for bound in self.bounds)
            scores = scores + (norms * index.errors[rows] + errors * index.norms[rows])
        return scores

    def _allowed(self, tile: Tile, excluded: torch.Tensor | None) -> torch.Tensor:
        queries, rows, starts = tile
        allowed = torch.ones((len(queries), len(rows)), dtype=torch.bool, device=rows.device)
        if self.words is not None and len(self.words):
            filters = self.filter_of_query[queries, None]
            bits = (self.words[filters.clamp_min(0), rows >> 6] >> (rows & 63)) & 1
            allowed = (bits != 0) | (filters < 0)
        if self.spans is not None and starts is not None:
            open_ = (starts < 0) | (self.filter_of_query[queries] >= 0)
            places = (starts.clamp(min=0)[:, None] + (rows >> 6) - (rows[:1] >> 6)) * ~open_[:, None]
            allowed &= ((self.spans.words[places] >> (rows & 63)) & 1 != 0) | open_[:, None]
        if excluded is not None and len(excluded):
            pairs = queries[:, None] * len(self.index.scales) + rows
            places = torch.searchsorted(excluded, pairs).clamp_max(len(excluded) - 1)
            allowed &= excluded[places] != pairs
        return allowed

    def _excluded_pairs(self) -> torch.Tensor | None:
        """Query * N + row of the excluded pairs, ascending."""
        if self.excluded is None:
            return None
        num_rows, lines = len(self.index.scales), self.excluded
        lengths = lines.ends - lines.begins
        queries = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)
        starts = lines.begins - (lengths.cumsum(0) - lengths)
        rows = lines.values[starts[queries] + torch.arange(len(queries), device=lengths.device)]
        known = (rows >= 0) & (rows < num_rows)
        return (queries * num_rows + rows)[known].sort().values


def split_tiles(tiles: Iterable[Tile]) -> Iterator[Tile]:
    """Cut large tiles, so that one takes some 100 MB at most; leave out empty ones."""
    for tile in tiles:
        for place, rows in enumerate(tile.rows.split(_TILE_ROWS)):
            starts = tile.starts
            if starts is not None and place:
                words = (rows[0] >> 6) - (tile.rows[0] >> 6)
                starts = torch.where(starts < 0, starts, starts + words)
            for queries in torch.arange(len(tile.queries), device=rows.device).split(_TILE_QUERIES):
                if len(queries) and len(rows):
                    yield Tile(tile.queries[queries], rows, None if starts is None else starts[queries])


def check_lines(name: str, lines: Lines) -> None:
    """Fail unless every line lies within the values.

    Raises:
        TensorError: naming the lines' bounds.
    """
    if len(lines.begins) and not (
        int(lines.begins.min()) >= 0
        and bool((lines.begins <= lines.ends).all())
        and int(lines.ends.max()) <= len(lines.values)
    ):
        raise TensorError(
            f"{name}: lines within 0 … {len(lines.values)} (from values) expected, each beginning before it ends; "
            f"got {int(lines.begins.min())} … {int(lines.ends.max())}"
        )
