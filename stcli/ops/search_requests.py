"""Search the clusters that the queries of each request probe, for one list of candidates a request."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from stcli.errors import TensorError
from stcli.ops.checks import check_range
from stcli.ops.count_bits import popcount
from stcli.ops.dispatch import resolve
from stcli.ops.keys import EMPTY_KEY, best_keys, make_keys, split_keys
from stcli.ops.merge_lists import merge_lists
from stcli.ops.scan import Scan
from stcli.ops.scan_native import run_native
from stcli.ops.search_clusters import search_clusters
from stcli.types import Candidates, Lines, Quantized, SearchIndex


@dataclass(frozen=True)
class Requested:
    """What `search_requests` finds.

    Attributes:
        rows: int64 [B, k0], best first, -1 in empty slots.
        scores: float32 [B, k0], the best score that a row has for a query whose probed clusters it lies in.
        seen: int64 [B * T], admitted rows in the probed clusters of each query, excluded ones among them.
    """

    rows: torch.Tensor
    scores: torch.Tensor
    seen: torch.Tensor


def search_requests(
    queries: Quantized,
    index: SearchIndex,
    probes: torch.Tensor,
    words: torch.Tensor | None,
    filter_of_request: torch.Tensor,
    *,
    k0: int,
    excluded: Lines | None = None,
    backend: str = "auto",
    unsure: list[torch.Tensor] | None = None,
) -> Requested:
    """Find the k0 best admitted rows of each request: those with the best score for one of its T queries.

    The same as `search_clusters`, its T lists of a request merged and cut at k0; but a request needs no more room and
    sorting than one query, and what is no candidate of the request is thrown away early.

    Args:
        queries: codes int8 [B * T, Dp], scales float32 [B * T], the queries of one request after another.
        index: the rows, in cluster order.
        probes: int64 [B * T, P], each in 0 … C-1 or -1 for an unused slot, no repeats within a line.
        words: int64 [F, W], the admitted rows of each distinct filter; None if no request has one.
        filter_of_request: int64 [B], line of `words`, or -1 for a request without a filter.
        k0: candidates kept for each request.
        excluded: rows never returned: line b has those of request b, as in `search_clusters`. None for none.
        backend: see `ops/dispatch.py`.
        unsure: takes bool [B * T], as in `search_clusters`.

    Raises:
        TensorError: a tensor has another dtype, shape or range than stated.
        InputError: k0 is below 1.
    """
    num_queries, num_requests = len(queries.scales), len(filter_of_request)
    if num_queries % max(num_requests, 1):
        raise TensorError(f"queries: as many for each of B={num_requests} requests expected, got {num_queries} in all")
    together = num_queries // max(num_requests, 1)
    own = torch.arange(num_requests, device=probes.device).repeat_interleave(together)
    each = None if excluded is None else excluded.take(own)
    scan = Scan(queries, index, words, filter_of_request[own], k0, each, None)
    if resolve(backend, queries.codes) == "native" and num_requests:
        scan.check().check("probes", probes, torch.int64, "B P")
        check_range("probes", probes, len(index.clusters.offsets) - 1)
        seen = torch.empty(num_queries, dtype=torch.int64)
        once = replace(scan, excluded=excluded)
        found = run_native(once, "search_requests", probes, probes.shape[1], together, seen, lists=num_requests)
        return Requested(found.rows, found.scores, seen)
    found = search_clusters(
        queries, index, probes, words, scan.filter_of_query, k0=k0, excluded=each, backend=backend, unsure=unsure
    )  # fmt: skip
    lists = (num_requests, together, k0)
    merged = merge_lists(found.rows.view(lists), found.scores.view(lists), backend=backend)
    keys = make_keys(merged.scores, merged.rows).masked_fill_(merged.rows < 0, EMPTY_KEY)
    best: Candidates = split_keys(best_keys(keys, k0))
    return Requested(best.rows, best.scores, _seen(scan, probes))


def _seen(scan: Scan, probes: torch.Tensor) -> torch.Tensor:
    """Admitted rows in the probed clusters of each query, int64 [B * T]."""
    offsets = scan.index.clusters.offsets
    sizes = offsets.diff()[None]
    if scan.words is not None and len(scan.words):
        words, bits = scan.words, offsets & 63
        before = torch.nn.functional.pad(popcount(words).cumsum(1), (1, 0))
        # The words that the offsets lie in, without the bits from there on; none lies after the last.
        cut = torch.nn.functional.pad(words, (0, 1))[:, offsets >> 6] & ((torch.ones_like(bits) << bits) - 1)
        sizes = torch.cat([(before[:, offsets >> 6] + popcount(cut)).diff(dim=1), sizes])  # the last line: no filter
    line = scan.filter_of_query[:, None].expand_as(probes)
    return torch.where(probes >= 0, sizes[line, probes.clamp(min=0)], 0).sum(1)
