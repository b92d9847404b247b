"""How each query is searched: plain data in, plain data out.

The route is a pure function of the admitted count, the sizes of the artifact and the calibration;
never of time, threads, batch size, device or free memory.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch

from stcli.errors import InputError
from stcli.storage.shape import COUNT, NUMBER, SOME, TEXT, Maybe, Shape, check_shape

ROUTES = ("probe", "rows", "given")
"""`probe` scores the nearest clusters; `rows` scores every admitted row and proves the result; `given`: the request
brings its candidates."""

PROBE, ROWS, GIVEN = range(3)

BANDS = ("no filter", "> 10 %", "2-10 %", "0.5-2 %", "< 0.5 %")
"""Shares of the items that a query's filter admits; calibrated one by one."""

BAND_EDGES = (0.005, 0.02, 0.10)

DEFAULT_PROBED_SHARE = 1 / 16
"""Clusters probed without a calibration."""

REACHED_SHARE = 0.2
"""The share of its radius by which the best rows of a cluster count as better than its centroid. Probes (and items
scored) that hold 95 % of the true best 100, without and with it: Corpus R 22 (6,300) and 18 (5,200), Corpus H 382
(38,600) and 247 (15,100), Corpus R with rows times log-normal factors 577 (35,500) and 189 (4,800). 0.1 and 0.3 are
worse or equal in sum; the mean distance of the rows in place of the largest is worse on uneven lengths."""

SPARSE_ROW_COST = 12.0
"""Scoring one admitted row picked by its bit, in units of a row scored in a full tile: 12.8 ns against 1.0 ns
(1 M x 128, 10,000 filtered queries, 2 cores of AMD EPYC Zen 4)."""


FILTER_SCOPES = ("auto", "probed", "all")
"""Where the filters of queries that probe are evaluated: on the clusters that they probe, on all rows, or by cost."""

SPAN_WORDS = 64
"""Evaluating a filter on one cluster, in words of a filter evaluated on all rows: 85 ns against 1.55 (1 M x 128, 8,192
queries with 4,168 filters, CPU time on 2 cores of AMD EPYC Zen 4)."""

LEAST_WORDS = 1 << 15
"""Words of all rows from which on it pays to evaluate filters where queries look and to estimate what they admit: on
Corpus R with 1 million items it takes 8 % longer, with 4 million 20 % less (151 for 190 us a query)."""


FLOOR_SHARE = 1 / 64
"""Clusters probed before all rows are searched: the true k-th score found there is a floor for the search of the rest.
Of 1M rows, k = 100, the upper bounds of so many rows reach it after 1/512, 1/256, 1/128, 1/64, 1/32 of the clusters:
241, 206, 192, 186, 184 (Corpus R; none has fewer than 100), and after 1/256, 1/128 on Corpus H: 1,228, 404."""

FLOOR_ROWS = 16
"""Rows probed for a floor, for each of the k results, at least."""

FLOOR_GAIN = 4
"""A floor is looked for where searching all admitted rows costs so many times as much."""


_SHAPE: Shape = {
    "artifact": TEXT, "k": SOME, "target_recall": NUMBER, "seed": COUNT, "probes": (COUNT,) * len(BANDS),
    "recall": (Maybe(NUMBER),) * len(BANDS), "lower_bound": (Maybe(NUMBER),) * len(BANDS),
    "queries": (COUNT,) * len(BANDS),
}  # fmt: skip


@dataclass(frozen=True)
class Calibration:
    """Clusters to probe in each band, measured on a sample of queries.

    Attributes:
        artifact: fingerprint of the artifact it was measured on.
        k: results a query that it was measured for.
        target_recall: recall that each band's lower bound reaches.
        seed: of the sample.
        probes: for each band; the number of clusters means every admitted row.
        recall: mean recall of the sample at that setting, for each band; None without queries.
        lower_bound: one-sided 95 % lower bound of it.
        queries: sample queries of each band.
    """

    artifact: str
    k: int
    target_recall: float
    seed: int
    probes: tuple[int, ...]
    recall: tuple[float | None, ...]
    lower_bound: tuple[float | None, ...]
    queries: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        """As plain data; `from_json` is the inverse."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, data: Any, where: str = "calibration") -> Calibration:
        """Read what `to_json` wrote; `where` is how messages call it.

        Raises:
            InputError: a key is missing, or its value is of another type.
        """
        given = data if isinstance(data, dict) else {}
        missing = [name for name in cls.__dataclass_fields__ if name not in given]
        if missing:
            raise InputError(
                f"{where}: {', '.join(missing)} missing; expected a file written by stcli retrieve, not --exact"
            )
        check_shape(given, _SHAPE, where)
        values: dict[str, Any] = {name: given[name] for name in cls.__dataclass_fields__}
        values |= {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        return cls(**values)

    def check(self, artifact: str, k: int, where: str = "calibration") -> None:
        """Refuse a calibration of another artifact or k; `where` is how messages call it.

        Raises:
            InputError: it was measured on something else.
        """
        if self.artifact != artifact:
            raise InputError(
                f"{where}: was measured on artifact {self.artifact[:12]}, this one is {artifact[:12]}; calibrate again"
            )
        if self.k != k:
            raise InputError(f"{where}: was measured for k={self.k}, this run has k={k}; calibrate again")


@dataclass(frozen=True)
class SearchOptions:
    """How a batch is searched.

    Attributes:
        k: results a query.
        candidates: K0, candidates that are re-scored.
        probes: clusters probed for every query, or None to plan each query.
        exact: prove that the results are the best k of all eligible items.
        calibration: clusters to probe in each band, or None for the default share.
        allowed: the only rows that any query may get, as words int64 [W] of each segment, or None for all.
        verify: check candidates by their exact terms; without it, ineligible items may be returned.
        filter_scope: one of `FILTER_SCOPES`; results depend on it only where an estimate plans a query in another way
            than the count would have (20 of 10,000 queries of Corpus R with 4 million items).
        count: count what the filters admit even where an estimate does.
    """

    k: int
    candidates: int
    probes: int | None = None
    exact: bool = False
    calibration: Calibration | None = None
    allowed: tuple[torch.Tensor, ...] | None = None
    verify: bool = True
    filter_scope: str = "auto"
    count: bool = False


def default_candidates(k: int) -> int:
    """K0: the candidates that are re-scored for k results."""
    return max(k + 32, int(1.3 * k))


def bands_of(admitted: torch.Tensor, filtered: torch.Tensor, num_items: int) -> torch.Tensor:
    """Band number int64 [B] of queries with admitted int64 [B] items and a filter or not, bool [B]."""
    share = admitted.double() / max(num_items, 1)
    below = sum((share < edge).long() for edge in BAND_EDGES)
    return torch.where(filtered, 1 + below, 0)


def plan(
    options: SearchOptions, admitted: torch.Tensor, filtered: torch.Tensor, num_items: int, num_clusters: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose the route and the number of probes of each query.

    Args:
        options: of the batch.
        admitted: int64 [B], items that the bit matrix admits.
        filtered: bool [B], the query has a filter.
        num_items: N.
        num_clusters: C.

    Returns:
        routes int64 [B] (PROBE or ROWS) and probes int64 [B].
    """
    if options.exact:
        return torch.full_like(admitted, ROWS), torch.full_like(admitted, num_clusters)
    if options.probes is not None:
        probes = torch.full_like(admitted, min(options.probes, num_clusters))
        return torch.full_like(admitted, PROBE), probes
    bands = bands_of(admitted, filtered, num_items)
    if options.calibration is not None:
        per_band = torch.tensor(options.calibration.probes, dtype=torch.int64, device=admitted.device)
    else:
        share = max(round(num_clusters * DEFAULT_PROBED_SHARE), 1)
        per_band = torch.tensor([share, 2 * share, 4 * share, num_clusters, num_clusters], device=admitted.device)
    probes = per_band.clamp(max=num_clusters)[bands]
    probe_cost = probes.double() * num_items / num_clusters + num_clusters
    few = rows_cost(admitted, num_items) <= probe_cost
    routes = torch.where(few | (probes >= num_clusters), ROWS, PROBE)
    return routes, probes


def settled(
    options: SearchOptions,
    low: torch.Tensor,
    high: torch.Tensor,
    filtered: torch.Tensor,
    num_items: int,
    num_clusters: int,
) -> torch.Tensor:
    """Which plans are the same wherever the admitted items lie in low … high; bool [B], arguments as for `plan`."""
    (low_routes, low_probes), (high_routes, high_probes) = (
        plan(options, admitted, filtered, num_items, num_clusters) for admitted in (low, high)
    )
    same_band = bands_of(low, filtered, num_items) == bands_of(high, filtered, num_items)
    same = (low_routes == high_routes) & (low_probes == high_probes) & same_band
    return same | ((low_routes == ROWS) & (high_routes == ROWS))


def floor_probes(
    options: SearchOptions, admitted: torch.Tensor, routes: torch.Tensor, num_items: int, num_clusters: int
) -> torch.Tensor:
    """Clusters probed for a floor before all rows are searched, int64 [B]; 0 where it does not pay.

    Args:
        options: of the batch.
        admitted: int64 [B], items that the bit matrix admits.
        routes: int64 [B], as planned.
        num_items: N.
        num_clusters: C.
    """
    rows = max(num_items * FLOOR_SHARE, FLOOR_ROWS * min(options.k, num_items))
    probes = min(max(math.ceil(rows * num_clusters / max(num_items, 1)), 1), num_clusters)
    cost = probes * num_items / max(num_clusters, 1) + num_clusters
    pays = (routes == ROWS) & (rows_cost(admitted, num_items) >= FLOOR_GAIN * cost)
    return torch.where(pays, probes, 0)


def rows_cost(admitted: torch.Tensor, num_items: int) -> torch.Tensor:
    """Cost of scoring all admitted rows, in rows scored in full tiles; float64 [B]."""
    return (admitted.double() * SPARSE_ROW_COST).clamp(max=float(num_items))


def spans_pay(scope: str, num_probes: int, num_words: int) -> bool:
    """Whether to evaluate a filter on the clusters that its query probes, rather than on all rows.

    Args:
        scope: one of `FILTER_SCOPES`.
        num_probes: clusters of the query.
        num_words: words of a bit for every row.
    """
    return scope == "probed" or (scope == "auto" and num_probes * SPAN_WORDS <= num_words)
