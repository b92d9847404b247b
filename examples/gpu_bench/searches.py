"""Whole searches against the plain torch one on the same device, and the ablations of the SilverTorch paper."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import patch

import torch

from gpu_bench.corpora import Corpus, batch_for, quantized
from gpu_bench.kernels import scratch
from gpu_bench.record import Record, seconds_of
from stcli.model.planner import default_candidates
from stcli.ops import cuda, row_tiles, scan_cuda
from stcli.ops.choose_probes import choose_probes
from stcli.ops.filter_match import filter_match
from stcli.ops.keys import EMPTY_KEY, best_keys, make_keys, split_keys
from stcli.ops.rescore import rescore
from stcli.ops.search_clusters import search_clusters
from stcli.ops.search_rows import search_rows
from stcli.types import Candidates, Quantized

PLAIN = "torch matmul, mask, topk"

BASELINE_ROWS = 1 << 18

AUDITED = 256
"""Queries of a batch whose recall is measured."""

SELECTIVE = (16, 64, 256, 1024)
"""Filters that admit one row in so many, powers of two on both sides of LISTED_SHARE."""

SELECTIVE_FILTERS = 64
"""Distinct ones: at 10 M rows their words are 80 MB, more than a cache holds."""


def search(corpus: Corpus, batch: int, k: int, probes: int | None, filtered: bool, backend: str) -> Candidates:
    """Quantize, filter, choose clusters, search, re-score, keep the best k."""
    vectors = corpus.queries[:batch]
    queries = quantized(corpus, batch, backend)
    lines = (
        torch.arange(batch, device=vectors.device) if filtered else vectors.new_full((batch,), -1, dtype=torch.int64)
    )
    words = filter_match(corpus.matrix, corpus.program, backend=backend) if filtered else None
    k0 = min(default_candidates(k), corpus.num_items)
    if probes is None:
        found = search_rows(queries, corpus.index, words, lines, k0=k0, backend=backend)
    else:
        chosen = choose_probes(queries, corpus.index.clusters.centroids, num_probes=probes, backend=backend)
        found = search_clusters(queries, corpus.index, chosen, words, lines, k0=k0, backend=backend)
    scores = rescore(vectors, corpus.embeddings, found.rows, backend=backend)
    keys = torch.where(found.rows >= 0, make_keys(scores, found.rows.clamp(min=0)), EMPTY_KEY)
    return split_keys(best_keys(keys, k))


def baseline(
    corpus: Corpus, batch: int, k: int, filtered: bool, backend: str, dtype: torch.dtype = torch.float32
) -> Candidates:
    """What a user writes in torch: matmul, mask, topk, in pieces of 262,144 items. In float32 it is the truth."""
    queries = corpus.queries[:batch]
    values = corpus.embeddings.values
    words = filter_match(corpus.matrix, corpus.program, backend=backend)[:batch] if filtered else None
    bits = torch.arange(64, device=values.device)
    best = queries.new_full((batch, 0), 0.0)
    rows = queries.new_empty((batch, 0), dtype=torch.int64)
    for first in range(0, corpus.num_items, BASELINE_ROWS):
        part = values[first : first + BASELINE_ROWS].to(dtype)
        scores = (queries.to(dtype) @ part.t()).float()
        if words is not None:
            some = words[:, first // 64 : -(-(first + len(part)) // 64)]
            mask = ((some[:, :, None] >> bits) & 1).bool().flatten(1)[:, : len(part)]
            scores.masked_fill_(~mask, -torch.inf)
        found = scores.topk(min(k, len(part)), dim=1)
        best, rows = torch.cat([best, found.values], 1), torch.cat([rows, found.indices + first], 1)
        top = best.topk(min(k, best.shape[1]), dim=1)
        best, rows = top.values, rows.gather(1, top.indices)
    return Candidates(rows.masked_fill(best == -torch.inf, -1), best)


def agreement(found: torch.Tensor, true: torch.Tensor) -> float:
    """Mean share of the true rows [B, K] that were found."""
    line = torch.arange(len(true), device=true.device)[:, None] << 32
    valid = true >= 0
    hits = torch.isin(true + line, found + line) & valid
    return float((hits.sum(1) / valid.sum(1))[valid.any(1)].mean())


def measure_searches(record: Record, corpus: Corpus, backend: str, batch: int, ks: tuple[int, ...]) -> None:
    """Vectors per second, exact and probed, filtered and not, beside the baseline at the same k."""
    for k in ks:
        for filtered in (False, True):
            name = f"search: {corpus.name} {corpus.num_items:,} k={k} filtered={filtered}"
            record.attempt(name, partial(_measure_one, record, corpus, backend, batch_for(k, batch), k, filtered))


def _measure_one(record: Record, corpus: Corpus, backend: str, batch: int, k: int, filtered: bool) -> None:
    """The baseline multiplies in float16, as on a GPU one would; recall is against float32 for some of the queries."""
    dtype = torch.float16 if record.device.type == "cuda" else torch.float32
    audited = min(batch, AUDITED)
    true = baseline(corpus, audited, k, filtered, backend).rows
    name = f"{corpus.name} {corpus.num_items:,} B={batch} k={k} {'filtered' if filtered else 'no filter'}"
    num_clusters = len(corpus.index.clusters.offsets) - 1
    fixed: dict[str, Any] = {"k": k, "filtered": filtered, "backend": backend}
    ways: dict[str, Callable[[int], Candidates]] = {PLAIN: partial(baseline, corpus, dtype=dtype, **fixed)}
    for probes in (None, *(max(num_clusters // part, 1) for part in (16, 64, 256))):
        way = "exact" if probes is None else f"{probes} of {num_clusters} probes"
        ways[way] = partial(search, corpus, probes=probes, **fixed)
    slow = 0.0

    def measure(way: str) -> None:
        nonlocal slow
        rate = batch / seconds_of(record.device, lambda: ways[way](batch), repeat=3, most=1.5)
        slow = rate if way == PLAIN else slow
        times = {"times": rate / slow} if slow else {}  # the baseline may have failed, for want of memory
        recall = agreement(ways[way](audited).rows, true)
        record.add("search", f"{name}: {way}", vectors_per_s=rate, recall=recall, **times)

    for way in ways:
        record.attempt(f"search: {name}: {way}", partial(measure, way))


def measure_ablations(record: Record, corpus: Corpus, backend: str, batch: int) -> None:
    """Filter before or after the search, fused or gathered, in milliseconds and scratch bytes; forms of scoring."""
    device, index = record.device, corpus.index
    num_clusters = len(index.clusters.offsets) - 1
    probes = max(num_clusters // 64, 1)
    queries = quantized(corpus, batch, backend)
    lines = torch.arange(batch, device=device)
    none = torch.full_like(lines, -1)
    chosen = choose_probes(queries, index.clusters.centroids, num_probes=probes, backend=backend)
    few = min(batch, 64)

    def filter_then_probe() -> Candidates:
        admitted = filter_match(corpus.matrix, corpus.program, backend=backend)
        return search_clusters(queries, index, chosen, admitted, lines, k0=132, backend=backend)

    def probe_then_filter() -> torch.Tensor:
        found = search_clusters(queries, index, chosen, None, none, k0=min(1320, corpus.num_items), backend=backend)
        admitted = filter_match(corpus.matrix, corpus.program, backend=backend)
        rows = found.rows.clamp(min=0)
        return ((admitted.gather(1, rows >> 6) >> (rows & 63)) & 1).bool() & (found.rows >= 0)

    def gathered() -> torch.Tensor:
        """The rows of the probed clusters copied side by side, padded to the widest."""
        begins, ends = index.clusters.offsets[chosen[:few]], index.clusters.offsets[chosen[:few] + 1]
        widest = int((ends - begins).max())
        rows = begins[..., None] + torch.arange(widest, device=device)
        inside = rows < ends[..., None]
        codes = index.codes[rows.clamp(max=corpus.num_items - 1)].flatten(1, 2)
        dots = torch.bmm(codes.float(), queries.codes[:few].float()[:, :, None])[..., 0]
        return dots.masked_fill(~inside.flatten(1), -torch.inf).topk(min(132, dots.shape[1]), dim=1).values

    def fused() -> Candidates:
        some = Quantized(queries.codes[:few].contiguous(), queries.scales[:few].contiguous())
        return search_clusters(
            some, index, chosen[:few].contiguous(), None, none[:few].contiguous(), k0=132, backend=backend
        )

    works: dict[str, Callable[[], object]] = {
        f"filter, then probe ({batch} queries)": filter_then_probe,
        f"probe for ten times as many, then filter ({batch} queries)": probe_then_filter,
        f"fused score and select ({few} queries)": fused,
        f"gathered rows, bmm, topk ({few} queries)": gathered,
    }

    def measure(name: str, work: Callable[[], object]) -> None:
        record.add(
            "ablations",
            f"{corpus.name} {corpus.num_items:,}: {name}",
            ms=1e3 * seconds_of(device, work, repeat=3, most=2.0),
            scratch_bytes=scratch(device, work),
        )

    def left_with_few() -> None:
        got = probe_then_filter().sum(1).float()
        short = float((got < 100).float().mean())
        record.add("ablations", "queries left with fewer than 100 by probe, then filter", share=short)

    for name, work in works.items():
        record.attempt(f"ablations: {name}", partial(measure, name, work))
    record.attempt("ablations: queries left with few", left_with_few)
    if cuda.runs_on(device):
        record.attempt("ablations: forms of scoring", partial(measure_forms, record, corpus, backend, batch))


def measure_forms(record: Record, corpus: Corpus, backend: str, batch: int) -> None:
    """All rows with `mma` and with `dp4a`, for few queries and for selective filters.

    FEW_QUERIES and LISTED_SHARE choose between the two; here they are set to choose the one, and then the other.
    """
    num_items, device = corpus.num_items, record.device

    def measure(name: str, count: int, words: torch.Tensor | None, few: int, share: int) -> None:
        queries = quantized(corpus, count, backend)
        lines = torch.arange(count, device=device)
        lines = torch.full_like(lines, -1) if words is None else lines % len(words)

        def work() -> Candidates:
            return search_rows(queries, corpus.index, words, lines, k0=132, backend=backend)

        with patch.object(row_tiles, "FEW_QUERIES", few), patch.object(scan_cuda, "LISTED_SHARE", share):
            seconds = seconds_of(device, work, repeat=3, most=1.0)
        record.add("forms", f"{corpus.name} {num_items:,}: {name}", ms=1e3 * seconds)

    def both(what: str, count: int, words: torch.Tensor | None) -> None:
        for form, few, share in (("mma", 0, num_items + 1), ("dp4a", count + 1, 0)):
            name = f"{what}, {count} queries, {form}"
            record.attempt(f"forms: {name}", partial(measure, name, count, words, few, share))

    for count in sorted({min(count, batch) for count in (1, 8, 16, 64, batch)}):
        both("no filter", count, None)
    for one_in in SELECTIVE:
        words = random_words(SELECTIVE_FILTERS, num_items, one_in, device)
        for count in sorted({min(count, batch) for count in (16, 64, batch)}):
            both(f"one row in {one_in} admitted", count, words)


def random_words(num_filters: int, num_items: int, one_in: int, device: torch.device) -> torch.Tensor:
    """Int64 words [F, W] that admit one row in `one_in`, a power of two."""
    size, ends = (num_filters, -(-num_items // 64)), (-(2**63), 2**63 - 1)
    words = torch.full(size, -1, dtype=torch.int64, device=device)
    for _ in range(one_in.bit_length() - 1):
        words &= torch.randint(*ends, size, dtype=torch.int64, device=device)
    if num_items % 64:
        words[:, -1] &= (1 << num_items % 64) - 1
    return words
