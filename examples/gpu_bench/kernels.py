"""Measured ceilings of the device, and every operation and kernel as a share of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gpu_bench import selection_cost
from gpu_bench.corpora import TERMS_AN_ITEM, Corpus, batch_for, quantized
from gpu_bench.launches import Cost, measure_launches, shares
from gpu_bench.record import Record, seconds_of, wait
from stcli.model.planner import default_candidates
from stcli.ops import cuda
from stcli.ops.choose_probes import choose_probes
from stcli.ops.count_bits import count_bits
from stcli.ops.filter_match import filter_match
from stcli.ops.filter_probes import filter_probes
from stcli.ops.quantize_rows import quantize_rows
from stcli.ops.rescore import rescore
from stcli.ops.rounds import LISTED_SHARE
from stcli.ops.search_clusters import search_clusters
from stcli.ops.search_rows import search_rows
from stcli.ops.take_best import take_best
from stcli.ops.verify_terms import verify_terms
from stcli.types import TermProgram

MMA_PEAK = Path(__file__).with_name("mma_peak.cu")

Work = tuple[Callable[[], Any], dict[str, Cost]]
"""An operation, and what it costs by how the names of the kernels begin that do it."""


def measure_ceilings(record: Record, small: bool) -> dict[str, float]:
    """Copy bandwidth in bytes/s, read and written, and int8 operations/s; what could be measured of them."""
    device = record.device
    found: dict[str, float] = {}

    def copy() -> None:
        source = torch.ones(1 << (22 if small else 30), dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        seconds = seconds_of(device, lambda: target.copy_(source))
        found["copy"] = 2 * source.numel() / seconds
        record.add("ceilings", "copy", gb_per_s=found["copy"] / 1e9)

    def matmul() -> None:
        size = 256 if small else 8192
        left, right = (torch.ones(size, size, dtype=torch.int8, device=device) for _ in range(2))
        seconds = seconds_of(device, lambda: torch._int_mm(left, right.t()))
        found["int8"] = 2 * size**3 / seconds
        record.add("ceilings", f"torch int8 matmul, {size} cubed", tops=found["int8"] / 1e12)

    def mma() -> None:
        blocks, steps = 4 * torch.cuda.get_device_properties(device).multi_processor_count, 20_000
        sums = torch.empty(blocks * 256, dtype=torch.int32, device=device)
        seconds = seconds_of(device, lambda: cuda.launch(str(MMA_PEAK), "mma_peak", blocks, 256, sums, steps))
        found["int8"] = blocks * 8 * steps * 8 * 2 * 16 * 8 * 32 / seconds
        record.add("ceilings", "mma.m16n8k32 from registers", tops=found["int8"] / 1e12)

    for work in (copy, matmul, *((mma,) if device.type == "cuda" else ())):
        record.attempt(f"ceilings: {work.__name__}", work)
    return found


def measure_kernels(
    record: Record, corpus: Corpus, ceilings: dict[str, float], backend: str, batch: int, ks: tuple[int, ...]
) -> None:
    """Each operation once as a whole and, on a GPU, its kernels one by one, with bytes and operations."""
    with_kernels = cuda.runs_on(record.device)

    def measure(name: str, work: Callable[[], Any], costs: dict[str, Cost]) -> None:
        seconds = seconds_of(record.device, work, most=2.0)
        whole = {key: sum(cost.get(key, 0) for cost in costs.values()) for key in ("bytes", "ops")}
        told = shares({key: value for key, value in whole.items() if value}, seconds, ceilings)
        record.add("operations", f"{corpus.name} {corpus.num_items:,}: {name}", ms=1e3 * seconds, **told)
        if with_kernels:
            measure_launches(record, name, work, costs, ceilings)

    for name, (work, costs) in operations(corpus, backend, batch, ks).items():
        record.attempt(f"kernels: {name}", partial(measure, name, work, costs))
    for k in ks if with_kernels else ():
        k0 = min(default_candidates(k), corpus.num_items)
        expected = selection_cost.shares(corpus.num_items, batch_for(k, batch), k, k0, corpus.index.codes.shape[1])
        selecting = {"ms": expected["select_ms"] + expected["sort_ms"], "share": expected["share_of_search"]}
        record.add("selection", f"by arithmetic: search_rows, no filter, k={k}", **selecting)


def operations(corpus: Corpus, backend: str, batch: int, ks: tuple[int, ...]) -> dict[str, Work]:
    """What is measured of a corpus, by its name in the report."""
    index, num_items, dim = corpus.index, corpus.num_items, corpus.index.codes.shape[1]
    device = corpus.queries.device
    queries = quantized(corpus, batch, backend)
    words = filter_match(corpus.matrix, corpus.program, backend=backend)[:batch].contiguous()
    lines = torch.arange(batch, device=device)
    none = torch.full_like(lines, -1)
    clusters = index.clusters
    num_probes = max(len(clusters.offsets) // 64, 1)
    probes = choose_probes(queries, clusters.centroids, num_probes=num_probes, backend=backend)
    rows = torch.randint(num_items, (batch, 132), device=device)
    spanned = corpus.matrix, corpus.program, lines, probes, clusters.offsets
    spans = filter_probes(*spanned, backend=backend)
    probed = int((clusters.offsets[1:] - clusters.offsets[:-1])[probes].sum())
    grouped = {"count_probes": {"bytes": 12.0 * probes.numel()}, "place_probes": {"bytes": 20.0 * probes.numel()}}
    filters = len(corpus.program.exact)
    row_bytes = corpus.matrix.own.shape[1] * 8
    terms = make_term_program(batch, device)

    def scanned(pairs: int) -> Cost:
        return {"ops": 2.0 * pairs * dim, "bytes": float(min(pairs, num_items * -(-batch // 128)) * dim)}

    def all_rows(k: int) -> Work:
        count, k0 = batch_for(k, batch), min(default_candidates(k), num_items)
        some = quantized(corpus, count, backend)
        return (
            lambda: search_rows(some, index, None, none[:count], k0=k0, backend=backend),
            {"score": scanned(count * num_items)},
        )

    ranks = torch.randperm(num_items, device=device)

    def last_order(k: int) -> Work:
        count, k0 = batch_for(k, batch), min(default_candidates(k), num_items)
        places = torch.arange(k0, device=device) * 104_729 + torch.arange(count, device=device)[:, None]
        rows, scores = places % num_items, torch.randn(count, k0, device=device)
        return (
            lambda: take_best(rows, scores, ranks, k=k, backend=backend),
            {"take_best": {"bytes": 12.0 * count * (k0 + k)}},
        )

    # The rows of a query that admits few are listed, and only these are multiplied, each with that query alone.
    admitted = count_bits(words)
    listed = admitted * LISTED_SHARE < num_items
    few = float(admitted[listed].sum())
    filtered = {
        "score_mma": scanned(int((~listed).sum()) * num_items),
        "score_dp4a": {"ops": 2 * few * dim, "bytes": few * dim},
    }
    return {
        f"quantize_rows {batch} queries": (
            lambda: quantize_rows(corpus.queries[:batch], backend=backend),
            {"quantize": {"bytes": batch * dim * 5.0}},
        ),
        # filter_leaves has nothing to do, since every leaf is a row of the matrix.
        f"filter_match {filters} filters": (
            lambda: filter_match(corpus.matrix, corpus.program, backend=backend),
            {"filter_match": {"bytes": float(row_bytes * (len(corpus.matrix.own) + filters))}},
        ),
        f"filter_probes {filters} filters, {num_probes} probes": (
            lambda: filter_probes(*spanned, room=len(spans.words) - 1, backend=backend),
            {"filter_probes": {"bytes": 8.0 * len(spans.words) * (1 + corpus.program.ops.numel() / filters)}},
        ),
        f"choose_probes {num_probes} of {len(clusters.offsets) - 1}": (
            lambda: choose_probes(queries, clusters.centroids, num_probes=num_probes, backend=backend),
            {"score": scanned(batch * (len(clusters.offsets) - 1))},
        ),
        **{f"search_rows, no filter, k={k}": all_rows(k) for k in ks},
        "search_rows, filters": (
            lambda: search_rows(queries, index, words, lines, k0=132, backend=backend),
            filtered,
        ),
        f"search_clusters, {num_probes} probes, no filter": (
            lambda: search_clusters(queries, index, probes, None, none, k0=132, backend=backend),
            {"score": scanned(probed)} | grouped,
        ),
        f"search_clusters, {num_probes} probes, filters": (
            lambda: search_clusters(queries, index, probes, words, lines, k0=132, backend=backend),
            {"score": scanned(probed)} | grouped,
        ),
        f"search_clusters, {num_probes} probes, filters on these": (
            lambda: search_clusters(queries, index, probes, None, none, k0=132, spans=spans, backend=backend),
            {"score": scanned(probed)} | grouped,
        ),
        "rescore 132 candidates": (
            lambda: rescore(corpus.queries[:batch], corpus.embeddings, rows, backend=backend),
            {"rescore": {"bytes": batch * 132.0 * dim * 2}},
        ),
        **{f"take_best, k={k}": last_order(k) for k in ks},
        "verify_terms 132 candidates": (
            lambda: verify_terms(corpus.terms, terms, rows, lines, backend=backend),
            {"verify_terms": {"bytes": batch * 132.0 * TERMS_AN_ITEM * 4}},
        ),
    }


def make_term_program(count: int, device: torch.device) -> TermProgram:
    """For each of `count` filters: has one of 300 values of a feature, and none of 10 of another."""
    base = 1000 * (torch.arange(count) % (TERMS_AN_ITEM - 1))
    lows = torch.stack([base, base + 1000], 1).flatten().int()
    highs = torch.stack([base + 300, base + 1010], 1).flatten().int()
    leaf = 2 * torch.arange(count, dtype=torch.int32)
    ops = torch.stack([leaf, leaf + 1, torch.full_like(leaf, -3), torch.full_like(leaf, -1)], 1).flatten()
    return TermProgram(
        lows=lows.to(device),
        highs=highs.to(device),
        leaf_offsets=torch.arange(2 * count + 1, device=device),
        ops=ops.to(device),
        op_offsets=4 * torch.arange(count + 1, device=device),
        max_depth=2,
    )


def scratch(device: torch.device, work: Callable[[], Any]) -> int:
    """Bytes that `work` holds at most beside what was there before; 0 on the CPU, where torch does not tell."""
    if device.type != "cuda":
        work()
        return 0
    wait(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work()
    wait(device)
    return int(torch.cuda.max_memory_allocated(device) - before)
