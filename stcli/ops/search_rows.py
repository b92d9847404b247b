"""Search all admitted rows, whatever their cluster."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from stcli.ops.count_bits import count_bits
from stcli.ops.dispatch import reads_values, resolve
from stcli.ops.scan import Bounds, Scan, Tile
from stcli.ops.scan_cuda import search_all_rows, sorts
from stcli.ops.scan_native import run_native
from stcli.types import Candidates, Lines, Quantized, SearchIndex

_FEW = 16
"""A filter that admits less than one row in `_FEW` is searched row by row instead of by scanning all."""


def search_rows(
    queries: Quantized,
    index: SearchIndex,
    words: torch.Tensor | None,
    filter_of_query: torch.Tensor,
    *,
    k0: int,
    excluded: Lines | None = None,
    bounds: Bounds | None = None,
    floors: torch.Tensor | None = None,
    backend: str = "auto",
    unsure: list[torch.Tensor] | None = None,
) -> Candidates:
    """Find the best k0 of all admitted rows for each query: `search_clusters` with every cluster probed.

    Fast when few rows are admitted, since then only those are read, and when all are.

    Args:
        queries: codes int8 [B, Dp], scales float32 [B].
        index: the rows.
        words: int64 [F, W], the admitted rows of each distinct filter; None if no query has one.
        filter_of_query: int64 [B], line of `words`, or -1 for a query without a filter.
        k0: candidates kept for each query.
        excluded: rows never returned, as in `search_clusters`.
        bounds: rank by upper bounds, as in `search_clusters`.
        floors: float32 [B], candidates with a score below are left out; None for none.
        backend: see `ops/dispatch.py`.
        unsure: takes, from the kernels, bool [B]: queries that have to be asked again, without this argument. With
            None the host waits for the device to see whether there are any.

    Returns:
        Candidates [B, k0].

    Raises:
        TensorError: a tensor has another dtype, shape or range than stated.
        InputError: k0 is below 1.
    """
    scan = Scan(queries, index, words, filter_of_query, k0, excluded, bounds, floors)
    form = resolve(backend, queries.codes, kernel=sorts(k0, queries.codes.device))
    scan.check(values=reads_values(form, queries.codes))
    if form == "cuda":
        return scan.above_floors(_cuda(scan, unsure))
    if form == "native":
        return run_native(scan, "search_rows")
    return scan.above_floors(scan.run(_tiles(words, filter_of_query, len(index.scales))))


def _tiles(words: torch.Tensor | None, filter_of_query: torch.Tensor, num_rows: int) -> Iterator[Tile]:
    """The queries of each selective filter with its rows; all other queries with all rows."""
    device = filter_of_query.device
    scanned = torch.ones(len(filter_of_query), dtype=torch.bool, device=device)
    bits = torch.arange(64, device=device)
    for number in filter_of_query.unique().tolist() if words is not None else []:
        if number < 0:
            continue
        assert words is not None
        places = words[number].nonzero()  # [., 1]
        admitted = ((words[number][places] >> bits) & 1).nonzero()  # (place, bit)
        if len(admitted) * _FEW < num_rows:
            mine = filter_of_query == number
            scanned &= ~mine
            yield Tile(mine.nonzero()[:, 0], places[admitted[:, 0], 0] * 64 + admitted[:, 1])
    yield Tile(scanned.nonzero()[:, 0], torch.arange(num_rows, device=device))


def _cuda(scan: Scan, unsure: list[torch.Tensor] | None) -> Candidates:
    num_rows, words, admitted = len(scan.index.scales), scan.words, None
    if words is not None and words.numel():
        counted = count_bits(words)[scan.filter_of_query.clamp(min=0)]
        admitted = torch.where(scan.filter_of_query < 0, num_rows, counted)

    def torch_form(part: Scan, _: torch.Tensor) -> Candidates:
        return part.run(_tiles(part.words, part.filter_of_query, num_rows))

    return search_all_rows(scan, torch_form, admitted, unsure=unsure)
