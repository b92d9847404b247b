"""Tiles of all rows for every query, made on the GPU."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from stcli.ops import cuda
from stcli.ops.rounds import LISTED, NARROW, WIDE, Fit, Form, Work

TILE_ROWS = 4096
LISTED_TILE_ROWS = 1 << 16
"""Rows of a tile, for kernels that read all of them and for the one that reads only the admitted ones; and for rounds
that most queries have no part in, whose tiles are closed as soon as they are opened."""

FEWEST_SPANS = 64
LEAST_TILE_ROWS = 128
"""Few rows are cut into about so many pieces, whole multiples of this."""

FEW_QUERIES = 16
"""A batch of fewer leaves most of an `mma` tile empty."""

_THREADS = 256


@dataclass(frozen=True)
class RowTiles:
    """All rows for every query.

    Attributes:
        num_queries: B.
        num_rows: N.
        device: of the tables.
        fit: which kernels the device can run.
        queries: int64 [B], those that read only their admitted rows behind the others; None where there are none.
        num_dense: int64 [], how many the others are.
    """

    num_queries: int
    num_rows: int
    device: torch.device
    fit: Fit
    queries: torch.Tensor | None = None
    num_dense: torch.Tensor | None = None

    @classmethod
    def of(
        cls, num_queries: int, num_rows: int, device: torch.device, fit: Fit, listed: torch.Tensor | None = None
    ) -> RowTiles:
        """`listed`, bool [B], has the queries that read only their admitted rows; None for none."""
        if listed is None:
            return cls(num_queries, num_rows, device, fit)
        queries = torch.sort(listed.to(torch.int8), stable=True).indices
        return cls(num_queries, num_rows, device, fit, queries, num_queries - listed.sum())

    def work(self, row_step: int, large_tiles: bool = False) -> list[Work]:
        """Every `row_step`-th row from row 0 on; in large tiles for a round that hardly any query has a part in."""
        few, many = self.num_queries < FEW_QUERIES, self.num_queries > NARROW.tile_queries
        dense = self.fit(LISTED if few else WIDE if many else NARROW)
        tile_rows = LISTED_TILE_ROWS if dense is LISTED or large_tiles else TILE_ROWS
        works = [self._cut(dense, row_step, tile_rows, listed=False)]
        if self.num_dense is not None:
            works.append(self._cut(LISTED, row_step, LISTED_TILE_ROWS, listed=True))
        return works

    def _cut(self, form: Form, row_step: int, tile_rows: int, listed: bool) -> Work:
        """Tiles of at most so many rows."""
        even = -(-self.num_rows // (row_step * FEWEST_SPANS * LEAST_TILE_ROWS)) * LEAST_TILE_ROWS
        span = row_step * min(max(even, 1), tile_rows)
        num_tiles = -(-self.num_rows // span) * -(-self.num_queries // form.tile_queries)
        tiles = torch.empty(num_tiles, 4, dtype=torch.int64, device=self.device)
        sizes = self.num_queries, form.tile_queries, self.num_rows, span
        blocks = -(-num_tiles // _THREADS)
        cuda.launch("row_tiles.cu", "cut_rows", blocks, _THREADS, *sizes, self.num_dense, int(listed), tiles, num_tiles)
        return Work(form, tiles, self.queries, None, row_step)
