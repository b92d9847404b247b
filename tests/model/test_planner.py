"""Bands and routes as pure functions, worked out by hand."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from stcli.errors import InputError
from stcli.model.planner import (
    BANDS,
    PROBE,
    ROWS,
    SPARSE_ROW_COST,
    Calibration,
    SearchOptions,
    bands_of,
    default_candidates,
    floor_probes,
    plan,
)

N, C = 100_000, 1024
MEASURED = Calibration("abc", 10, 0.95, 0, (8, 16, 32, C, C), (0.96, 0.97, 0.96, 1.0, None),
                       (0.95, 0.96, 0.95, 1.0, None), (500, 400, 300, 20, 0))  # fmt: skip


def planned(options: SearchOptions, admitted: list[int], filtered: list[bool] | None = None):
    filters = [True] * len(admitted) if filtered is None else filtered
    routes, probes = plan(options, torch.tensor(admitted), torch.tensor(filters), N, C)
    return routes.tolist(), probes.tolist()


def test_bands():
    shares = [0, 499, 500, 1999, 2000, 9999, 10_000, 100_000, 100_000]
    filtered = torch.tensor([True] * 8 + [False])
    names = [BANDS[band] for band in bands_of(torch.tensor(shares), filtered, N).tolist()]
    assert names == ["< 0.5 %", "< 0.5 %", "0.5-2 %", "0.5-2 %", "2-10 %", "2-10 %", "> 10 %", "> 10 %", "no filter"]


def test_bands_of_an_index_without_items():
    assert bands_of(torch.tensor([0, 0]), torch.tensor([True, False]), 0).tolist() == [4, 0]


def test_exact_looks_at_every_admitted_row():
    assert planned(SearchOptions(10, 42, exact=True), [3, N]) == ([ROWS, ROWS], [C, C])


@pytest.mark.parametrize(("asked", "given"), [(1, 1), (C, C), (10 * C, C)])
def test_probes_asked_for_are_taken_as_they_are(asked, given):
    assert planned(SearchOptions(10, 42, probes=asked), [0, 5, N]) == ([PROBE] * 3, [given] * 3)


def test_a_calibration_decides_by_band():
    routes, probes = planned(SearchOptions(10, 42, calibration=MEASURED), [N, N, 9000, 600, 20], [False] + [True] * 4)
    assert probes == [8, 16, 32, C, C]
    assert routes == [PROBE, PROBE, PROBE, ROWS, ROWS]


def test_few_admitted_rows_are_cheaper_than_probing():
    """Probing 8 of 1,024 clusters scores 781 rows and 1,024 centres."""
    options = SearchOptions(10, 42, calibration=replace(MEASURED, probes=(8,) * 5))
    limit = int((8 * N / C + C) / SPARSE_ROW_COST)
    assert planned(options, [limit, limit + 1]) == ([ROWS, PROBE], [8, 8])


def test_without_a_calibration_rarer_filters_probe_more():
    routes, probes = planned(SearchOptions(10, 42), [N, N, 9000, 600, 20], [False] + [True] * 4)
    assert probes == sorted(probes)
    assert routes[-2:] == [ROWS, ROWS]


def test_one_cluster_is_searched_whole():
    routes, probes = plan(SearchOptions(10, 42), torch.tensor([5, 5]), torch.tensor([True, False]), 5, 1)
    assert routes.tolist() == [ROWS, ROWS]
    assert probes.tolist() == [1, 1]


def test_a_calibration_of_more_clusters_than_there_are_is_cut():
    options = SearchOptions(10, 42, calibration=replace(MEASURED, probes=(10**6,) * 5))
    assert planned(options, [N], [False]) == ([ROWS], [C])


def test_the_route_of_a_query_does_not_depend_on_the_others():
    admitted = torch.randint(0, N, (200,), generator=torch.Generator().manual_seed(1))
    filtered = torch.rand(200, generator=torch.Generator().manual_seed(2)) < 0.8
    for options in (SearchOptions(10, 42), SearchOptions(10, 42, calibration=MEASURED)):
        routes, probes = plan(options, admitted, filtered, N, C)
        for query in range(0, 200, 17):
            alone = slice(query, query + 1)
            assert plan(options, admitted[alone], filtered[alone], N, C) == (routes[alone], probes[alone])


@pytest.mark.parametrize(("k", "candidates"), [(1, 33), (100, 132), (106, 138), (107, 139), (1000, 1300)])
def test_default_candidates(k, candidates):
    assert default_candidates(k) == candidates


def test_a_calibration_survives_json():
    assert Calibration.from_json(json.loads(json.dumps(MEASURED.to_json()))) == MEASURED


@pytest.mark.parametrize("data", [{}, {"artifact": "x"}, None, [1]])
def test_what_is_no_calibration(data):
    with pytest.raises(InputError, match=r"calibration: .*expected a file written by stcli"):
        Calibration.from_json(data)


def test_a_calibration_is_bound_to_artifact_and_k():
    MEASURED.check("abc", 10)
    with pytest.raises(InputError, match=r"artifact abc, this one is xyz"):
        MEASURED.check("xyz", 10)
    with pytest.raises(InputError, match=r"k=10, this run has k=20"):
        MEASURED.check("abc", 20)


def test_a_floor_is_probed_for_where_all_rows_cost_much_more():
    options = SearchOptions(100, 132, exact=True)
    admitted = torch.tensor([1_000_000, 1_000_000, 500, 50_000])
    routes = torch.tensor([ROWS, PROBE, ROWS, ROWS])
    assert floor_probes(options, admitted, routes, 1_000_000, 4096).tolist() == [64, 0, 0, 64]
    assert floor_probes(SearchOptions(10_000, 13_000), admitted, routes, 1_000_000, 4096).tolist() == [656, 0, 0, 0]
    assert floor_probes(options, torch.tensor([900]), torch.tensor([ROWS]), 900, 1).tolist() == [0]
    assert floor_probes(options, torch.tensor([0]), torch.tensor([ROWS]), 0, 1).tolist() == [0]
