"""How many clusters to probe for a wanted recall, measured on queries of the run itself.

For a sample of queries the true best k are found exactly, and each lies in a cluster that its query
would probe first, second, third …; so one search gives the recall at every number of probes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from stcli.filters.source import FilterSource
from stcli.model.planner import BANDS, Calibration, SearchOptions, bands_of, default_candidates
from stcli.ops.choose_probes import choose_probes
from stcli.ops.count_bits import count_bits
from stcli.ops.quantize_rows import quantize_rows

if TYPE_CHECKING:
    from stcli.model.retriever import Retriever

SAMPLE_A_BAND = 1024
SMALL_BAND = 256
"""A band with so few queries is answered exactly: a sample of it could not promise much."""

ONE_SIDED_95 = 1.645
HEADROOM = 0.002
"""Added to the target for what the int8 ranking of the candidates loses inside the probed clusters."""

FILTERS_AT_ONCE = 512


def calibrate(
    model: Retriever,
    vectors: torch.Tensor,
    filters: FilterSource,
    k: int,
    target_recall: float = 0.95,
    *,
    seed: int = 0,
    total: int | None = None,
    allowed: torch.Tensor | None = None,
) -> Calibration:
    """Choose the clusters to probe in each band of the pass rate.

    The smallest number is chosen whose recall on at most 1,024 queries of the band has a one-sided
    95 % lower bound (normal approximation) of at least the target.

    Args:
        model: the packed model.
        vectors: float32 [S, D], queries of the run or a sample of them.
        filters: of these queries.
        k: results a query.
        target_recall: recall@k to reach in every band, above 0; 1 means exact.
        seed: of the sample within a band.
        total: queries of the whole run, if `vectors` is a sample of them.
        allowed: int64 [W] words, the only items that any query may get, or None for all.

    Returns:
        `Calibration` for this artifact and k.
    """
    k = min(k, model.num_items)
    bands = _bands(model, filters, allowed)
    scale = (total or len(vectors)) / max(len(vectors), 1)
    order = torch.from_numpy(np.random.default_rng([seed, 3]).permutation(len(vectors)))
    probes, recalls, bounds, sizes = [], [], [], []
    for band in range(len(BANDS)):
        mine = order[bands[order] == band][:SAMPLE_A_BAND]
        in_run = int((bands == band).sum()) * scale
        sizes.append(len(mine))
        if in_run <= SMALL_BAND or target_recall >= 1:
            probes.append(model.num_clusters)
            recalls.append(1.0 if in_run else None)
            bounds.append(1.0 if in_run else None)
            continue
        curve = recall_by_probes(model, vectors[mine], filters.take(mine.numpy()), k, allowed)
        mean = curve.mean(0)
        lower = mean - ONE_SIDED_95 * curve.std(0, correction=1) / len(mine) ** 0.5
        reached = torch.nonzero(lower >= min(target_recall + HEADROOM, 1.0)).flatten()
        chosen = int(reached[0]) if len(reached) else model.num_clusters - 1
        probes.append(chosen + 1)
        recalls.append(round(float(mean[chosen]), 6))
        bounds.append(round(float(lower[chosen]), 6))
    return Calibration(
        model.fingerprint, k, target_recall, seed, tuple(probes), tuple(recalls), tuple(bounds), tuple(sizes)
    )


def recall_by_probes(
    model: Retriever, vectors: torch.Tensor, filters: FilterSource, k: int, allowed: torch.Tensor | None = None
) -> torch.Tensor:
    """Recall@k of each query if its nearest 1, 2, … C clusters are probed; float64 [S, C]."""
    true = model.search(vectors, filters, SearchOptions(k, default_candidates(k), exact=True, allowed=allowed))
    index = model.index
    narrow = model.normalized(vectors.to(model.device))[:, : int(model.manifest["dim"])].contiguous()
    order = choose_probes(
        quantize_rows(narrow, backend=model.backend),
        index.clusters.centroids,
        num_probes=model.num_clusters,
        backend=model.backend,
    ).cpu()
    place = torch.empty_like(order).scatter_(1, order, torch.arange(order.shape[1]).expand_as(order))
    offsets = index.clusters.offsets.cpu()
    cluster = torch.searchsorted(offsets, true.rows.clamp(min=0), right=True) - 1
    hits = torch.zeros(len(vectors), model.num_clusters, dtype=torch.float64)
    hits.scatter_add_(1, place.gather(1, cluster), (true.rows >= 0).double())
    return hits.cumsum(1).where(true.counts[:, None] > 0, 1.0) / true.counts.clamp(min=1)[:, None]


def _bands(model: Retriever, filters: FilterSource, allowed: torch.Tensor | None) -> torch.Tensor:
    """Band int64 [S] of each query, on the CPU."""
    parts = []
    for start in range(0, len(filters), FILTERS_AT_ONCE):
        batch = filters.batch(start, min(start + FILTERS_AT_ONCE, len(filters)))
        words, lines = model.admit(batch.to(model.device), allowed)
        admitted = torch.full_like(lines, model.num_items)
        if words is not None:
            admitted = torch.where(lines >= 0, count_bits(words)[lines.clamp(min=0)], admitted)
        parts.append(bands_of(admitted, lines >= 0, model.num_items).cpu())
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64)
