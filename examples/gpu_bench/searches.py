"""Whole searches against the plain torch one on the same device, and the ablations of the SilverTorch paper."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from gpu_bench.corpora import Corpus, batch_for, quantized
from gpu_bench.kernels import scratch
from gpu_bench.record import Record, seconds_of
from stcli.model.planner import default_candidates
from stcli.ops import cuda
from stcli.ops.choose_probes import choose_probes
from stcli.ops.filter_match import filter_match
from stcli.ops.keys import EMPTY_KEY, best_keys, make_keys, split_keys
from stcli.ops.rescore import rescore
from stcli.ops.rounds import LISTED, Fit
from stcli.ops.scan import Scan
from stcli.ops.scan_cuda import fit, search_all_rows
from stcli.ops.search_clusters import search_clusters
from stcli.ops.search_rows import search_rows
from stcli.types import Candidates, Quantized

BASELINE_ROWS = 1 << 18


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


def baseline(corpus: Corpus, batch: int, k: int, filtered: bool, backend: str) -> Candidates:
    """What a user writes in torch: float16 matmul, mask, topk, in pieces of 262,144 items."""
    queries = corpus.queries[:batch]
    values = corpus.embeddings.values
    work = torch.float16 if values.device.type == "cuda" else torch.float32
    words = filter_match(corpus.matrix, corpus.program, backend=backend)[:batch] if filtered else None
    bits = torch.arange(64, device=values.device)
    best = queries.new_full((batch, 0), 0.0)
    rows = queries.new_empty((batch, 0), dtype=torch.int64)
    for first in range(0, corpus.num_items, BASELINE_ROWS):
        part = values[first : first + BASELINE_ROWS].to(work)
        scores = (queries.to(work) @ part.t()).float()
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
    return float((hits.sum(1) / valid.sum(1).clamp(min=1)).mean())


def measure_searches(
    record: Record, corpus: Corpus, backend: str, batch: int, ks: tuple[int, ...], more: Callable[[], bool]
) -> None:
    """Vectors per second, exact and probed, filtered and not, beside the baseline at the same k."""
    for k in ks:
        for filtered in (False, True):
            name = f"search: {corpus.name} {corpus.num_items:,} k={k} filtered={filtered}"
            if not more():
                record.skipped.append(name)
                continue
            with record.guard(name):
                _measure_one(record, corpus, backend, batch_for(k, batch), k, filtered, more)


def _measure_one(
    record: Record, corpus: Corpus, backend: str, batch: int, k: int, filtered: bool, more: Callable[[], bool]
) -> None:
    def plain() -> Candidates:
        return baseline(corpus, batch, k, filtered, backend)

    name = f"{corpus.name} {corpus.num_items:,} B={batch} k={k} {'filtered' if filtered else 'no filter'}"
    seconds = seconds_of(record.device, plain, repeat=2, most=1.0)
    true = baseline(corpus, min(batch, 256), k, filtered, backend).rows
    slow = batch / seconds
    record.add("search", f"{name}: torch matmul, mask, topk", vectors_per_s=slow, recall=1.0, times=1.0)
    num_clusters = len(corpus.index.clusters.offsets) - 1
    for probes in (None, *(max(num_clusters // part, 1) for part in (16, 64, 256))):
        if not more():
            break
        run = partial(search, corpus, batch, k, probes, filtered, backend)
        seconds = seconds_of(record.device, run, repeat=3, most=1.5)
        found = search(corpus, min(batch, 256), k, probes, filtered, backend).rows
        record.add(
            "search",
            f"{name}: {'exact' if probes is None else f'{probes} of {num_clusters} probes'}",
            vectors_per_s=batch / seconds,
            recall=agreement(found, true),
            times=batch / seconds / slow,
        )


def measure_ablations(record: Record, corpus: Corpus, backend: str, batch: int, more: Callable[[], bool]) -> None:
    """Filter before or after the search, dp4a or mma, fused or gathered: milliseconds and scratch bytes."""
    device, index = record.device, corpus.index
    num_clusters = len(index.clusters.offsets) - 1
    probes = max(num_clusters // 64, 1)
    queries = quantized(corpus, batch, backend)
    lines = torch.arange(batch, device=device)
    none = torch.full_like(lines, -1)
    chosen = choose_probes(queries, index.clusters.centroids, num_probes=probes, backend=backend)
    words = filter_match(corpus.matrix, corpus.program, backend=backend)
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
    if cuda.runs_on(device):
        scan = Scan(queries, index, None, none, 132, None, None)

        def form(which: Fit) -> Candidates:
            return search_all_rows(scan, lambda part, _: part.run([]), fits=which)

        dim = index.codes.shape[1]
        works[f"all rows with mma ({batch} queries)"] = lambda: form(fit(scan))
        works[f"all rows with dp4a ({batch} queries)"] = lambda: form(Fit(dim, LISTED.shared_bytes(dim)))
    for name, work in works.items():
        if not more():
            record.skipped.append(f"ablations: {name}")
            continue
        with record.guard(f"ablations: {name}"):
            record.add(
                "ablations",
                f"{corpus.name} {corpus.num_items:,}: {name}",
                ms=1e3 * seconds_of(device, work, repeat=3, most=2.0),
                scratch_bytes=scratch(device, work),
            )
    if more():
        got = probe_then_filter().sum(1).float()
        short = float((got < 100).float().mean())
        record.add("ablations", "queries left with fewer than 100 by probe, then filter", share=short)
    del words
