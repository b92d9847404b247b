"""Cases of `search_clusters` and `search_rows`: an index, filters, excluded rows, and the oracle's answer."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from stcli.types import Clusters, Lines, Quantized, SearchIndex, Spans
from tests import oracles_search as oracle


@dataclass
class Case:
    """Arguments of a search; `probes` -1 where a slot is unused."""

    queries: Quantized
    index: SearchIndex
    probes: torch.Tensor
    words: torch.Tensor | None
    filter_of_query: torch.Tensor
    excluded: Lines | None
    bounds: tuple[torch.Tensor, torch.Tensor] | None
    k0: int

    def rest(self) -> dict:
        return {"k0": self.k0, "excluded": self.excluded, "bounds": self.bounds}


def make_case(
    seed, *, queries=20, rows=500, dim=32, clusters=7, probes=3, k0=10, high=127, filters=0, rate=0.3, excluded=0,
    bounds=False, shift=0.0, planted=False,
) -> Case:  # fmt: skip
    """A random case.

    Args:
        high: codes are in -high … high; 1 makes many equal scores.
        filters: distinct filters, each admitting `rate` of the rows; query b has filter b % (filters + 1) - 1.
        excluded: rows excluded for each second query.
        shift: makes most clusters empty or tiny when large.
        planted: rows lie near their centroids and queries near rows, so that bounds of clusters exclude most rows.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return torch.rand(*shape, generator=generator)

    def codes(count):
        values = torch.randint(-high, high + 1, (count, dim), generator=generator, dtype=torch.int8)
        return Quantized(values, torch.ones(count) if high == 1 else uniform(count) + 0.01)

    cuts = (uniform(clusters - 1) ** (1 + shift) * (rows + 1)).long().clamp_max(rows).sort().values
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), cuts, torch.tensor([rows])])
    row_codes, centroids, query_codes = codes(rows), codes(clusters), codes(queries)
    norms = row_codes.codes.float().norm(dim=1) * row_codes.scales * (1.00001 + uniform(rows))
    if planted:
        cluster_of_row = torch.arange(clusters).repeat_interleave(offsets.diff())
        row_codes = near(row_codes, centroids.codes[cluster_of_row])
        query_codes = near(query_codes, row_codes.codes[torch.arange(queries) * 31 % rows])
        norms = row_codes.codes.float().norm(dim=1) * row_codes.scales * 1.00001
    index = SearchIndex(row_codes.codes, row_codes.scales, uniform(rows), norms, Clusters(centroids, offsets))
    order = uniform(queries, clusters).argsort(dim=1)[:, :probes]
    order[uniform(order.shape) < 0.1] = -1
    words = None
    if filters:
        bits = uniform(filters, -(-rows // 64), 64) < rate
        bits.view(filters, -1)[:, rows:] = False
        words = (bits.long() << torch.arange(64)).sum(2)
    lines = [torch.randperm(rows, generator=generator)[: excluded * (b % 2)] for b in range(queries)]
    lines = [torch.cat([line, line[:3], -torch.ones(b % 3).long()]) for b, line in enumerate(lines)]
    counts = torch.tensor([0] + [len(line) for line in lines])
    return Case(
        queries=query_codes,
        index=index,
        probes=order,
        words=words,
        filter_of_query=torch.arange(queries) % (filters + 1) - 1,
        excluded=Lines(torch.cat(lines), counts.cumsum(0)[:-1], counts.cumsum(0)[1:]) if excluded else None,
        bounds=(uniform(queries) * 100, uniform(queries)) if bounds else None,
        k0=k0,
    )


def near(rows: Quantized, centres: torch.Tensor) -> Quantized:
    """The rows pulled towards the centres, with scales much alike."""
    codes = (0.55 * centres.float() + 0.4 * rows.codes.float()).round().to(torch.int8)
    return Quantized(codes, 1 + 0.1 * rows.scales)


NAMED = {
    "plain": {},
    "one_item": {"rows": 1, "clusters": 1, "probes": 1},
    "no_rows": {"rows": 0, "clusters": 2, "probes": 2},
    "no_queries": {"queries": 0},
    "empty_clusters": {"clusters": 40, "probes": 30, "shift": 8.0},
    "k0_above_candidates": {"rows": 50, "k0": 64},
    "ties": {"high": 1, "rows": 900, "k0": 37, "clusters": 5, "probes": 5},
    "two_dimensions": {"rows": 130, "high": 2},
    "wide": {"dim": 4096, "rows": 70, "queries": 5},
    "odd_width": {"dim": 96, "rows": 301, "queries": 33},
    "one_query_k0_1": {"queries": 1, "k0": 1},
    "filters": {"filters": 3, "rows": 1000, "rate": 0.3},
    "selective_filters": {"filters": 5, "rows": 3000, "rate": 0.01},
    "nothing_admitted": {"filters": 1, "rate": 0.0},
    "filters_and_ties": {"filters": 2, "high": 1, "rows": 700, "k0": 50},
    "excluded": {"excluded": 200, "k0": 40},
    "all_excluded": {"excluded": 500},
    "bounds": {"bounds": True},
    "all_at_once": {
        "filters": 3,
        "rows": 999,
        "clusters": 13,
        "probes": 13,
        "excluded": 50,
        "bounds": True,
        "k0": 30,
        "high": 3,
    },
    "many_queries": {"queries": 120, "rows": 900, "clusters": 3, "probes": 2, "k0": 5, "filters": 7},
    "planted": {"queries": 70, "rows": 1300, "clusters": 12, "k0": 7, "planted": True},
    "planted_bounds": {
        "queries": 130,
        "rows": 900,
        "clusters": 9,
        "k0": 5,
        "planted": True,
        "bounds": True,
        "filters": 1,
    },
    "planted_wide": {"queries": 80, "rows": 700, "clusters": 5, "k0": 6, "dim": 160, "planted": True},
    "planted_ties": {"queries": 66, "rows": 800, "clusters": 6, "k0": 40, "planted": True, "high": 2, "excluded": 9},
}
"""Names of the cases and how they differ from the plain one."""


def named_case(name: str) -> Case:
    return make_case(len(name), **NAMED[name])


def spans_of(case: Case, mine: torch.Tensor) -> Spans:
    """The words of a case cut out for each pair of a query, bool [B], and a cluster that it probes."""
    starts, words = torch.full_like(case.probes, -1), []
    for query, line in enumerate(case.probes.tolist()):
        for slot, cluster in enumerate(line):
            begin, end = case.index.clusters.offsets[cluster : cluster + 2].tolist() if cluster >= 0 else (0, 0)
            if begin < end and mine[query]:
                starts[query, slot] = len(words)
                words += case.words[case.filter_of_query[query], begin // 64 : -(-end // 64)].tolist()
    return Spans(torch.tensor([*words, 0]), starts)


@functools.cache
def expected(name: str, every_cluster: bool) -> tuple[list, list]:
    """Rows and scores of a named case by the oracle."""
    case = named_case(name)
    offsets, rows = case.index.clusters.offsets.tolist(), len(case.index.scales)
    seen = []
    for b, number in enumerate(case.filter_of_query.tolist()):
        line = range(rows)
        if not every_cluster:
            line = [r for c in case.probes[b].tolist() if c >= 0 for r in range(offsets[c], offsets[c + 1])]
        hidden = set()
        if case.excluded is not None:
            first, end = int(case.excluded.begins[b]), int(case.excluded.ends[b])
            hidden = set(case.excluded.values[first:end].tolist())
        seen.append([r for r in line if oracle.admits(case.words, number, r) and r not in hidden])
    arrays = {name: getattr(case.index, name).numpy() for name in ("codes", "scales", "errors", "norms")}
    bounds = None if case.bounds is None else [bound.numpy() for bound in case.bounds]
    found = oracle.search((case.queries.codes.numpy(), case.queries.scales.numpy()), arrays, seen, case.k0, bounds)
    return found[0].tolist(), found[1].tolist()
