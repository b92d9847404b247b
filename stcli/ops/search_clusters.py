"""Search the rows of the clusters that each query probes."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from stcli.ops.checks import check_range
from stcli.ops.dispatch import reads_values, resolve
from stcli.ops.scan import Bounds, Scan, Tile
from stcli.ops.scan_cuda import search_probed_rows, sorts
from stcli.ops.scan_native import run_native
from stcli.types import Candidates, Lines, Quantized, SearchIndex, Spans


def search_clusters(
    queries: Quantized,
    index: SearchIndex,
    probes: torch.Tensor,
    words: torch.Tensor | None,
    filter_of_query: torch.Tensor,
    *,
    k0: int,
    spans: Spans | None = None,
    excluded: Lines | None = None,
    bounds: Bounds | None = None,
    backend: str = "auto",
    unsure: list[torch.Tensor] | None = None,
) -> Candidates:
    """Find the best k0 admitted rows in the probed clusters of each query.

    The score is `(float32(dot) * query_scale) * row_scale`, float32, the dot exact in int32. With `bounds` it is
    instead an upper bound of the product of query and packed embedding,
    `score + (query_norms[b] * errors[r] + query_errors[b] * norms[r])`. The result of a query depends neither on
    threads nor on the rest of the batch.

    Args:
        queries: codes int8 [B, Dp], scales float32 [B].
        index: the rows, in cluster order.
        probes: int64 [B, P], each in 0 … C-1 or -1 for an unused slot, no repeats within a line.
        words: int64 [F, W], the admitted rows of each distinct filter; None if no query has one.
        filter_of_query: int64 [B], line of `words`, or -1 for a query without a filter.
        k0: candidates kept for each query.
        spans: from `filter_probes` for these probes, for queries without a line of `words`; None for none.
        excluded: rows never returned: line b has the rows of query b, in any order, perhaps repeated; numbers that are
            no row, as -1, are ignored. None for none.
        bounds: (query_norms float32 [B], query_errors float32 [B]), at least the norm of code * scale plus its error,
            and of query - code * scale; None for plain scores.
        backend: see `ops/dispatch.py`.
        unsure: takes, from the kernels, bool [B]: queries that have to be asked again, without this argument. With
            None the host waits for the device to see whether there are any.

    Returns:
        Candidates [B, k0].

    Raises:
        TensorError: a tensor has another dtype, shape or range than stated.
        InputError: k0 is below 1.
    """
    scan = Scan(queries, index, words, filter_of_query, k0, excluded, bounds, spans=spans)
    form = resolve(backend, queries.codes, kernel=sorts(k0, queries.codes.device))
    shapes = scan.check(values=reads_values(form, queries.codes))
    shapes.check("probes", probes, torch.int64, "B P")
    if spans is not None:
        shapes.check("spans.words", spans.words, torch.int64, "S")
        shapes.check("spans.starts", spans.starts, torch.int64, "B P")
    if reads_values(form, queries.codes):
        check_range("probes", probes, len(index.clusters.offsets) - 1)
    if form == "cuda":
        return _cuda(scan, probes, unsure)
    if form == "native":
        return run_native(scan, "search_clusters", probes, probes.shape[1])
    return scan.run(_tiles(probes, index.clusters.offsets, _starts(scan)))


def _starts(scan: Scan) -> torch.Tensor | None:
    return None if scan.spans is None else scan.spans.starts


def _tiles(probes: torch.Tensor, offsets: torch.Tensor, starts: torch.Tensor | None = None) -> Iterator[Tile]:
    """For each cluster that is probed at all: its queries, its rows."""
    clusters, slots = torch.sort(probes.flatten(), stable=True)
    queries = slots // max(probes.shape[1], 1)
    probed, counts = torch.unique_consecutive(clusters, return_counts=True)
    spans = torch.stack([offsets[probed.clamp_min(0)], offsets[probed.clamp_min(0) + 1]], dim=1).tolist()
    own = slots if starts is None else starts.flatten()[slots]
    parts = zip(queries.split(counts.tolist()), own.split(counts.tolist()), strict=True)
    for cluster, (first, end), (part, begin) in zip(probed.tolist(), spans, parts, strict=True):
        if cluster >= 0:
            rows = torch.arange(first, end, device=offsets.device)
            yield Tile(part, rows, None if starts is None else begin)


def _cuda(scan: Scan, probes: torch.Tensor, unsure: list[torch.Tensor] | None) -> Candidates:
    offsets = scan.index.clusters.offsets

    def torch_form(part: Scan, lost: torch.Tensor) -> Candidates:
        return part.run(_tiles(probes[lost], offsets, _starts(part)))

    return search_probed_rows(scan, probes, torch_form, unsure)
