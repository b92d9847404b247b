"""How many clusters to probe for a wanted recall, measured on queries of the run itself.

For a sample of queries the true best k are found exactly, and each lies in a cluster that its query
would probe first, second, third …; so one search gives the recall at every number of probes.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from stcli.errors import FormatError, InputError
from stcli.filters.source import FilterSource
from stcli.model.admitted import admitted_counts
from stcli.model.corpus import Corpus, Words
from stcli.model.planner import BANDS, Calibration, SearchOptions, bands_of, default_candidates
from stcli.model.tiles import search
from stcli.ops.choose_probes import choose_probes
from stcli.ops.quantize_rows import quantize_rows
from stcli.storage.manifest import read_json

SAMPLE_A_BAND = 1024
SMALL_BAND = 256
"""A band with so few queries is answered exactly: a sample of it could not promise much."""

ONE_SIDED_95 = 1.645
MORE_PROBES = 8
"""While the target is missed, an eighth more clusters are tried."""

FILTERS_AT_ONCE = 512


def calibrate(
    model: Corpus,
    vectors: torch.Tensor,
    filters: FilterSource,
    k: int,
    target_recall: float = 0.95,
    *,
    seed: int = 0,
    total: int | None = None,
    allowed: Words | None = None,
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
        allowed: the only rows that any query may get, or None for all.

    Returns:
        `Calibration` for this artifact and k.
    """
    k = min(k, model.num_items)
    bands = bands_of_queries(model, filters, allowed)
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
        sample = Sample(model, vectors[mine], filters.take(mine.numpy()), k, allowed)
        chosen, mean, lower = sample.choose(target_recall)
        probes.append(chosen)
        recalls.append(round(mean, 6))
        bounds.append(round(lower, 6))
    return Calibration(
        model.fingerprint, k, target_recall, seed, tuple(probes), tuple(recalls), tuple(bounds), tuple(sizes)
    )


class Sample:
    """Sample queries of one band with their true best k.

    Args:
        model: the packed model.
        vectors: float32 [S, D].
        filters: of these queries.
        k: results a query.
        allowed: the only rows that any query may get, or None.
    """

    def __init__(
        self, model: Corpus, vectors: torch.Tensor, filters: FilterSource, k: int, allowed: Words | None
    ) -> None:
        self.model, self.vectors, self.filters = model, vectors, filters
        self.options = SearchOptions(k, default_candidates(k), allowed=allowed)
        self.true = search(model, vectors, filters, replace(self.options, exact=True))

    def choose(self, target_recall: float) -> tuple[int, float, float]:
        """The clusters to probe, and the mean recall measured with them and its lower bound.

        The clusters of the true results tell where to begin; the search itself, which also loses a little by ranking
        its candidates on int8, says when it is enough.
        """
        num_clusters = self.model.num_clusters
        _, lower = mean_and_bound(self.coverage())
        reached = torch.nonzero(lower >= target_recall).flatten()
        probes = int(reached[0]) + 1 if len(reached) else num_clusters
        while probes < num_clusters:
            recall, bound = mean_and_bound(self.recall(probes)[:, None])
            if bound[0] >= target_recall:
                return probes, float(recall[0]), float(bound[0])
            probes += max(probes // MORE_PROBES, 1)
        return num_clusters, 1.0, 1.0

    def coverage(self) -> torch.Tensor:
        """Share of each query's true results in its nearest 1, 2, … C clusters; float64 [S, C]."""
        model, true = self.model, self.true
        narrow = model.normalized(self.vectors.to(model.device))[:, : model.dim].contiguous()
        queries = quantize_rows(narrow, backend=model.backend)
        clusters = model.segments[0].index.clusters
        order = choose_probes(
            queries,
            clusters.centroids,
            num_probes=model.num_clusters,
            reaches=clusters.reaches,
            backend=model.backend,
        ).cpu()
        place = torch.empty_like(order).scatter_(1, order, torch.arange(order.shape[1]).expand_as(order))
        offsets = [segment.get_buffer("cluster_offsets").cpu() for segment in model.segments]

        def place_of(number: int, own: torch.Tensor) -> torch.Tensor:
            if not model.segments[number].probed:
                return torch.zeros_like(own)  # found with any number of probes
            return place.gather(1, torch.searchsorted(offsets[number], own.clamp(min=0), right=True) - 1)

        hits = torch.zeros(len(narrow), model.num_clusters, dtype=torch.float64)
        hits.scatter_add_(1, model.read(true.rows, place_of, 0), (true.rows >= 0).double())
        return self._share(hits.cumsum(1))

    def recall(self, probes: int) -> torch.Tensor:
        """Recall@k of each query with a number of probes, measured; float64 [S]."""
        found = search(self.model, self.vectors, self.filters, replace(self.options, probes=probes))
        line = torch.arange(len(self.vectors))[:, None] << 32
        hits = torch.isin(self.true.rows + line, found.rows + line) & (self.true.rows >= 0)
        return self._share(hits.sum(1, keepdim=True).double())[:, 0]

    def _share(self, hits: torch.Tensor) -> torch.Tensor:
        """Hits [S, n] as a share of the true results; 1 where there are none."""
        counts = self.true.counts[:, None]
        return torch.where(counts > 0, hits / counts.clamp(min=1), 1.0)


def mean_and_bound(recall: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean over the queries of recall [S, n], and its one-sided 95 % lower bound."""
    mean = recall.mean(0)
    return mean, mean - ONE_SIDED_95 * recall.std(0, correction=1) / len(recall) ** 0.5


def bands_of_queries(model: Corpus, filters: FilterSource, allowed: Words | None) -> torch.Tensor:
    """Band int64 [S] of each query by the items that its filter admits, on the CPU."""
    admitted, filtered = count_admitted(model, filters, allowed)
    return bands_of(admitted, filtered, model.num_items)


def count_admitted(
    model: Corpus, filters: FilterSource, allowed: Words | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Items that the bit matrix admits for each query, int64 [S], and whether anything limits it, bool [S]."""
    counts, filtered = [torch.zeros(0, dtype=torch.int64)], [torch.zeros(0, dtype=torch.bool)]
    step = min(FILTERS_AT_ONCE, model.filters_at_once)
    for start in range(0, len(filters), step):
        ((_, batch),) = model.batches(filters, start, min(start + step, len(filters)))
        counts.append(admitted_counts(model.admit(batch, allowed)).cpu())
        filtered.append((batch[0].filter_of_query >= 0) | (allowed is not None))
    return torch.cat(counts), torch.cat(filtered)


def read_calibration(path: str | None, model: Corpus, k: int) -> Calibration | None:
    """The calibration in a file written by stcli, for a model and k; None for no path.

    Raises:
        InputError: it cannot be read, is no calibration, or belongs to another artifact or k.
    """
    if path is None:
        return None
    try:
        data = read_json(Path(path), "calibration")
    except FormatError as error:
        raise InputError(f"--calibration {error}; expected a file written by stcli retrieve") from error
    where = f"--calibration {path}"
    found = Calibration.from_json(data.get("calibration", data) if isinstance(data, dict) else {}, where)
    found.check(model.fingerprint, k, where)
    return found
