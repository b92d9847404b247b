"""What the machine can do at best, measured at bench time, and how near each stage of the search comes to it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from stcli.model.planner import PROBE, SearchOptions
from stcli.model.results import Results
from stcli.model.retriever import Retriever
from stcli.model.tiles import evaluates_everywhere
from stcli.ops import native
from stcli.types import pad_dim

SIDE = 1024
"""Rows and columns of the int8 matrices: large enough to be bound by arithmetic, small enough for the cache."""

COPIED_BYTES = 1 << 28
RUNS = 5


def measure_ceilings(device: torch.device) -> dict[str, float | None]:
    """Int8 multiply-adds a second of a matrix product, and bytes a second read and written by a copy; best of 5.

    On the CPU with as many threads as the native operations have. None for what torch cannot do here.
    """
    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(native.num_threads())
    try:
        return {"int8_multiply_adds_per_s": _int8_rate(device), "copy_bytes_per_s": _copy_rate(device)}
    finally:
        torch.set_num_threads(before)


def _int8_rate(device: torch.device) -> float | None:
    left = torch.randint(-127, 128, (SIDE, SIDE), dtype=torch.int8, device=device)
    right = torch.randint(-127, 128, (SIDE, SIDE), dtype=torch.int8, device=device).t()
    try:
        seconds = _best(lambda: torch._int_mm(left, right), device)
    except RuntimeError:
        return None
    return SIDE**3 / seconds


def _copy_rate(device: torch.device) -> float:
    source = torch.zeros(COPIED_BYTES // 8, dtype=torch.int64, device=device)
    target = torch.ones_like(source)
    return 2 * COPIED_BYTES / _best(lambda: target.copy_(source), device)


def _best(call: Callable[[], Any], device: torch.device) -> float:
    seconds = []
    for _ in range(RUNS + 1):
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def stage_work(model: Retriever, results: Results, options: SearchOptions, filters: int) -> dict[str, dict[str, float]]:
    """The work that a search cannot do without, for the stages where it is known: `multiply_adds` or `bytes`.

    A query that was searched again counts in the stage of its last search.

    Args:
        model: the opened artifact.
        results: of the search.
        options: of it.
        filters: distinct filters.
    """
    width = pad_dim(int(model.manifest["dim"]))
    probed = results.routes == PROBE
    work = {
        "choose_probes": {"multiply_adds": float(int(probed.sum()) * model.num_clusters * width)},
        "search_clusters": {"multiply_adds": float(int(results.work[probed].sum()) * width)},
        "search_rows": {"multiply_adds": float(int(results.work[~probed].sum()) * width)},
    }
    if evaluates_everywhere(model, options):
        work["filter_match"] = {"bytes": float(filters * 8 * model.num_words)}
    packed = model.embeddings
    if packed is not None:
        row = packed.values.shape[1] * packed.values.element_size()
        work["rescore"] = {"bytes": float(len(results) * options.candidates * row)}
    return work


def shares(
    work: Mapping[str, Mapping[str, float]], seconds: Mapping[str, float], ceilings: Mapping[str, float | None]
) -> dict[str, dict[str, float]]:
    """Each stage's `multiply_adds` or `bytes`, its rate, and its `share` of the ceiling for that."""
    limits = {"multiply_adds": "int8_multiply_adds_per_s", "bytes": "copy_bytes_per_s"}
    told = {}
    for stage, amounts in work.items():
        (kind, amount), spent = next(iter(amounts.items())), seconds.get(stage, 0.0)
        limit = ceilings[limits[kind]]
        if amount and spent and limit:
            told[stage] = {kind: amount, "per_s": amount / spent, "share": amount / spent / limit}
    return told
