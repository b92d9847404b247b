"""Tiles of the queries that probe the same cluster, against lists in Python."""

import pytest
import torch

from stcli.ops import cuda
from stcli.ops.probe_tiles import NO_SPAN, work_over_probes
from stcli.ops.rounds import LISTED, NARROW, WIDE, Fit
from tests.emulated import Emulated
from tests.emulation.emulate import COMPILER, WHY_MISSING
from tests.kernels import launches

pytestmark = pytest.mark.skipif(COMPILER is None, reason=WHY_MISSING)

FIT = Fit(128, 163 << 10)


class Launched:
    """Goes through `launches.run_kernel`, where a test may put another kernel."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def launch(self, source, kernel, grid, threads, shared_bytes, arguments) -> None:
        launches.run_kernel(
            source.stem, kernel, grid=grid, block=(threads,), shared=shared_bytes, args=arguments, seed=self.seed
        )


def is_right(queries: int, clusters: int, probes: int, seed: int = 0) -> bool:
    """Whether each pair is in one tile of its cluster's rows, with its query and span; with probes that are missing."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(clusters, generator=generator) ** 8 + 1e-6  # some are probed by many
    chosen = torch.multinomial(weights.expand(max(queries, 1), -1), probes, generator=generator)[:queries]
    chosen[torch.rand(chosen.shape, generator=generator) < 0.2] = -1
    offsets = torch.randint(0, 300, (clusters + 1,), generator=generator).cumsum(0)
    starts = torch.arange(chosen.numel()).view_as(chosen) * 9 - 20
    with cuda.launching_with(Launched(seed)):
        (work,), (again,) = work_over_probes(chosen, offsets, [61, 1], FIT, starts)
    found = []
    for first, end, row, end_row in work.tiles.tolist():
        if first == end:
            continue
        assert 0 < end - first <= work.form.tile_queries
        pairs = zip(work.queries[first:end].tolist(), work.span_lines[first:end].tolist(), strict=True)
        found += [(query, line, row, end_row) for query, line in pairs]
    expected = []
    for query, line in enumerate(chosen.tolist()):
        for slot, cluster in enumerate(line):
            if cluster < 0:
                continue
            start, row = int(starts[query, slot]), int(offsets[cluster])
            expected.append((query, NO_SPAN if start < 0 else start - row // 64, row, int(offsets[cluster + 1])))
    same_tiles = again.tiles is work.tiles and (work.row_step, again.row_step) == (61, 1)
    return same_tiles and sorted(found) == sorted(expected)


@pytest.mark.parametrize(
    ("queries", "clusters", "probes"),
    [(1, 1, 1), (3, 40, 40), (70, 7, 3), (300, 33, 20), (5, 2500, 64), (9, 6000, 64), (500, 5, 5), (0, 9, 2)],
)
def test_each_pair_comes_once(queries, clusters, probes):
    if queries:
        assert is_right(queries, clusters, probes)
    else:
        none = torch.empty(0, probes, dtype=torch.int64)
        assert work_over_probes(none, torch.arange(clusters + 1), [61, 1], FIT) == [[], []]


def test_the_cases_have_every_form():
    def form(queries: int, clusters: int, probes: int):
        with cuda.launching_with(Emulated()):
            ((work,),) = work_over_probes(
                torch.zeros(queries, probes, dtype=torch.int64), torch.arange(clusters + 1), [1], FIT
            )
        return work.form

    assert [form(3, 40, 40), form(70, 7, 3), form(300, 33, 20)] == [LISTED, NARROW, WIDE]


def test_without_spans_there_are_no_lines():
    with cuda.launching_with(Emulated()):
        ((work,),) = work_over_probes(torch.tensor([[1, 0]]), torch.tensor([0, 5, 9]), [1], FIT)
    assert work.span_lines is None
    tiles = [line for line in work.tiles.tolist() if line[0] < line[1]]
    assert tiles == [[0, 1, 0, 5], [1, 2, 5, 9]]
