"""Measured ceilings of the device, and every kernel as a share of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gpu_bench import selection_cost
from gpu_bench.corpora import TERMS_AN_ITEM, Corpus, batch_for, quantized
from gpu_bench.record import Record, seconds_of, wait
from stcli.model.planner import default_candidates
from stcli.ops import cuda
from stcli.ops.choose_probes import choose_probes
from stcli.ops.filter_match import filter_match
from stcli.ops.filter_probes import filter_probes
from stcli.ops.quantize_rows import quantize_rows
from stcli.ops.rescore import rescore
from stcli.ops.search_clusters import search_clusters
from stcli.ops.search_rows import search_rows
from stcli.ops.take_best import take_best
from stcli.ops.verify_terms import verify_terms
from stcli.types import TermProgram

MMA_PEAK = Path(__file__).with_name("mma_peak.cu")


@dataclass
class Timed:
    """A launcher that measures each launch on the device before it passes it on to the real one."""

    real: cuda.Launcher
    events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = field(default_factory=list)

    def launch(
        self,
        source: Path,
        kernel: str,
        grid: tuple[int, int, int],
        threads: int,
        shared_bytes: int,
        arguments: tuple[cuda.Argument, ...],
    ) -> None:
        """Launch between two events."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        self.real.launch(source, kernel, grid, threads, shared_bytes, arguments)
        end.record()
        self.events.append((kernel, start, end))

    def milliseconds(self) -> dict[str, float]:
        """Of each kernel in all."""
        found: dict[str, float] = defaultdict(float)
        for kernel, start, end in self.events:
            found[kernel] += start.elapsed_time(end)
        return dict(found)


def measure_ceilings(record: Record, small: bool) -> dict[str, float]:
    """Copy bandwidth in bytes/s, read and written, and int8 operations/s; both measured."""
    device = record.device
    source = torch.ones(1 << (22 if small else 30), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = seconds_of(device, lambda: target.copy_(source))
    found = {"copy": 2 * source.numel() / seconds}
    record.add("ceilings", "copy", gb_per_s=found["copy"] / 1e9)
    size = 256 if small else 8192
    left, right = (torch.ones(size, size, dtype=torch.int8, device=device) for _ in range(2))
    seconds = seconds_of(device, lambda: torch._int_mm(left, right.t()))
    record.add("ceilings", f"torch int8 matmul, {size} cubed", tops=2 * size**3 / seconds / 1e12)
    found["int8"] = 2 * size**3 / seconds
    if device.type == "cuda":
        blocks, steps = 4 * torch.cuda.get_device_properties(device).multi_processor_count, 20_000
        sums = torch.empty(blocks * 256, dtype=torch.int32, device=device)
        seconds = seconds_of(device, lambda: cuda.launch(str(MMA_PEAK), "mma_peak", blocks, 256, sums, steps))
        found["int8"] = blocks * 8 * steps * 8 * 2 * 16 * 8 * 32 / seconds
        record.add("ceilings", "mma.m16n8k32 from registers", tops=found["int8"] / 1e12)
    return found


def measure_kernels(
    record: Record,
    corpus: Corpus,
    ceilings: dict[str, float],
    backend: str,
    batch: int,
    ks: tuple[int, ...],
    more: Callable[[], bool],
) -> None:
    """Each operation once as a whole and, on a GPU, its kernels one by one, with bytes and operations."""
    index, num_items, dim = corpus.index, corpus.num_items, corpus.index.codes.shape[1]
    queries = quantized(corpus, batch, backend)
    words = filter_match(corpus.matrix, corpus.program, backend=backend)[:batch].contiguous()
    lines = torch.arange(batch, device=record.device)
    none = torch.full_like(lines, -1)
    clusters = index.clusters
    num_probes = max(len(clusters.offsets) // 64, 1)
    probes = choose_probes(queries, clusters.centroids, num_probes=num_probes, backend=backend)
    rows = torch.randint(num_items, (batch, 132), device=record.device)
    spanned = corpus.matrix, corpus.program, lines, probes, clusters.offsets
    spans = filter_probes(*spanned, backend=backend)
    probed = int((clusters.offsets[1:] - clusters.offsets[:-1])[probes].sum())
    filters = len(corpus.program.exact)
    row_bytes = corpus.matrix.own.shape[1] * 8
    terms = make_term_program(batch, record.device)

    def scanned(pairs: int) -> dict[str, float]:
        return {"ops": 2.0 * pairs * dim, "bytes": float(min(pairs, num_items * -(-batch // 128)) * dim)}

    def all_rows(k: int) -> tuple[Callable[[], Any], dict[str, float]]:
        count, k0 = batch_for(k, batch), min(default_candidates(k), num_items)
        some = quantized(corpus, count, backend)
        return (
            lambda: search_rows(some, index, None, none[:count], k0=k0, backend=backend),
            scanned(count * num_items),
        )

    ranks = torch.randperm(num_items, device=record.device)

    def last_order(k: int) -> tuple[Callable[[], Any], dict[str, float]]:
        count, k0 = batch_for(k, batch), min(default_candidates(k), num_items)
        places = torch.arange(k0, device=record.device) * 104_729 + torch.arange(count, device=record.device)[:, None]
        rows, scores = places % num_items, torch.randn(count, k0, device=record.device)
        return (
            lambda: take_best(rows, scores, ranks, k=k, backend=backend),
            {"bytes": count * (52.0 * k0 + 12 * k)},
        )

    works: dict[str, tuple[Callable[[], Any], dict[str, float]]] = {
        f"quantize_rows {batch} queries": (
            lambda: quantize_rows(corpus.queries[:batch], backend=backend),
            {"bytes": batch * dim * 5.0},
        ),
        f"filter_match {filters} filters": (
            lambda: filter_match(corpus.matrix, corpus.program, backend=backend),
            {"bytes": row_bytes * (len(corpus.matrix.own) + filters)},
        ),
        f"filter_probes {filters} filters, {num_probes} probes": (
            lambda: filter_probes(*spanned, room=len(spans.words) - 1, backend=backend),
            {"bytes": 8.0 * len(spans.words) * (1 + corpus.program.ops.numel() / filters)},
        ),
        f"choose_probes {num_probes} of {len(clusters.offsets) - 1}": (
            lambda: choose_probes(queries, clusters.centroids, num_probes=num_probes, backend=backend),
            scanned(batch * (len(clusters.offsets) - 1)),
        ),
        **{f"search_rows, no filter, k={k}": all_rows(k) for k in ks},
        "search_rows, filters": (
            lambda: search_rows(queries, index, words, lines, k0=132, backend=backend),
            scanned(batch * num_items),
        ),
        f"search_clusters, {num_probes} probes, no filter": (
            lambda: search_clusters(queries, index, probes, None, none, k0=132, backend=backend),
            scanned(probed),
        ),
        f"search_clusters, {num_probes} probes, filters": (
            lambda: search_clusters(queries, index, probes, words, lines, k0=132, backend=backend),
            scanned(probed),
        ),
        f"search_clusters, {num_probes} probes, filters on these": (
            lambda: search_clusters(queries, index, probes, None, none, k0=132, spans=spans, backend=backend),
            scanned(probed),
        ),
        "rescore 132 candidates": (
            lambda: rescore(corpus.queries[:batch], corpus.embeddings, rows, backend=backend),
            {"bytes": batch * 132.0 * dim * 2},
        ),
        **{f"take_best, k={k}": last_order(k) for k in ks},
        "verify_terms 132 candidates": (
            lambda: verify_terms(corpus.terms, terms, rows, lines, backend=backend),
            {"bytes": batch * 132.0 * TERMS_AN_ITEM * 4},
        ),
    }
    for name, (work, cost) in works.items():
        if not more():
            record.skipped.append(f"kernels: {name}")
            continue
        with record.guard(f"kernels: {name}"):
            seconds = seconds_of(record.device, work, most=2.0)
            record.add(
                "operations",
                f"{corpus.name} {num_items:,}: {name}",
                ms=1e3 * seconds,
                **shares(cost, seconds, ceilings),
            )
            if cuda.runs_on(record.device):
                measure_launches(record, name, work, cost, ceilings)
    if cuda.runs_on(record.device):
        for k in ks:
            k0 = min(default_candidates(k), num_items)
            expected = selection_cost.shares(num_items, batch_for(k, batch), k, k0, dim)
            selecting = {"ms": expected["select_ms"] + expected["sort_ms"], "share": expected["share_of_search"]}
            record.add("selection", f"by arithmetic: search_rows, no filter, k={k}", **selecting)


def measure_launches(
    record: Record, name: str, work: Callable[[], Any], cost: dict[str, float], ceilings: dict[str, float]
) -> None:
    """The kernels of an operation, each with its share of the time that all of them take; and of selecting in all."""
    timed = Timed(cuda.current_launcher())
    with cuda.launching_with(timed):
        work()
    wait(record.device)
    found = timed.milliseconds()
    in_all = sum(found.values()) or 1
    selecting = found.get("select_keys", 0) + found.get("sort_keys", 0)
    if selecting:
        record.add("selection", name, ms=selecting, share=selecting / in_all)
    for kernel, ms in found.items():
        own = cost if "score" in kernel or kernel.split("_")[0] in name else {}
        record.add("kernels", f"{name}: {kernel}", ms=ms, share=ms / in_all, **shares(own, ms / 1e3, ceilings))


def shares(cost: dict[str, float], seconds: float, ceilings: dict[str, float]) -> dict[str, float]:
    """Bytes and operations, and what they are of the measured ceilings."""
    found = dict(cost)
    if "bytes" in cost:
        found["of_copy"] = cost["bytes"] / seconds / ceilings["copy"]
    if "ops" in cost:
        found["of_int8"] = cost["ops"] / seconds / ceilings["int8"]
    return found


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
