"""The rounds of a search on a GPU: every pair comes exactly once, whatever the sizes; nothing waits for the device."""

import dataclasses
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stcli.ops import cuda, rounds, row_tiles, scan_cuda
from stcli.ops.choose_probes import choose_probes
from stcli.ops.probe_tiles import work_over_probes
from stcli.ops.rounds import (
    LISTED,
    NARROW,
    STEP,
    WIDE,
    Fit,
    Level,
    Work,
    levels,
    rank_in_sample,
)
from stcli.ops.row_tiles import RowTiles
from stcli.ops.search_clusters import search_clusters
from stcli.ops.search_rows import search_rows
from tests.emulated import Emulated
from tests.emulation.emulate import COMPILER, WHY_MISSING
from tests.far_device import Watch, to_far
from tests.kernel_stand_in import StandIn
from tests.ops.search_cases import expected, make_case, named_case, spans_of

CPU = torch.device("cpu")
FIT = Fit(128, 163 << 10)


def pairs_of(work: Work) -> list[tuple[int, int]]:
    """(query, row) of every tile."""
    found = []
    for first, end, row, last in work.tiles.tolist():
        assert end - first <= work.form.tile_queries
        queries = range(first, end) if work.queries is None else work.queries[first:end].tolist()
        rows = [r for r in range(row, last) if r % work.row_step == 0]
        found += itertools.product(queries, rows)
    return found


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_every_row_comes_once_for_every_query(data):
    num_queries, num_rows = data.draw(st.integers(0, 70)), data.draw(st.integers(0, 700))
    row_step, large_tiles = data.draw(st.sampled_from([1, 1, 2, 7, 1000])), data.draw(st.booleans())
    listed = None
    if data.draw(st.booleans()):
        listed = torch.tensor(
            data.draw(st.lists(st.booleans(), min_size=num_queries, max_size=num_queries)), dtype=torch.bool
        )
    with pytest.MonkeyPatch.context() as patch:
        for name in ("TILE_ROWS", "LISTED_TILE_ROWS", "FEWEST_SPANS", "LEAST_TILE_ROWS"):
            patch.setattr(row_tiles, name, data.draw(st.integers(1, 50)))
        with cuda.launching_with(StandIn()):
            works = RowTiles.of(num_queries, num_rows, CPU, FIT, listed).work(row_step, large_tiles)
    assert sorted(pair for work in works for pair in pairs_of(work)) == [
        (query, row) for query in range(num_queries) for row in range(0, num_rows, row_step)
    ]
    for work in works[1:]:
        assert listed is not None
        assert {query for query, _ in pairs_of(work)} <= set(listed.nonzero().flatten().tolist())


def test_levels_of_the_documentation():
    assert levels(10_000_000, 132) == [Level(3721, 10), Level(61, 17), Level(1, 132)]
    assert levels(4096, 64) == levels(4096, 64, 600) == [Level(1, 64)]
    assert levels(4096, 64, 4096) == [Level(61, 14), Level(1, 64)]


def test_what_is_sorted_fits_the_shared_memory(monkeypatch):
    assert scan_cuda.sorts(16_384, CPU)  # taken for a device of compute capability 8.0
    assert not scan_cuda.sorts(16_385, CPU)
    monkeypatch.setattr(cuda, "most_shared_bytes", lambda device: 99 << 10)  # 8.6 and 8.9
    assert scan_cuda.sorts(9000, CPU)
    assert not scan_cuda.sorts(13_000, CPU)


@given(st.integers(0, 10**9), st.integers(1, 16_384), st.integers(0, 10**4))
def test_samples_grow_and_let_few_rows_pass(num_rows, k0, num_queries):
    *samples, last = levels(num_rows, k0, num_queries)
    assert (last.row_step, last.wanted) == (1, k0)
    capacity = scan_cuda.capacity_for(num_rows, k0)
    assert capacity > scan_cuda.most_kept(k0) or capacity >= min(num_rows, k0)
    taken = num_rows
    for sample, larger in itertools.pairwise([*samples, last]):
        assert sample.row_step == larger.row_step * STEP
        assert sample.wanted == rank_in_sample(larger.wanted)
    if samples:
        taken = -(-num_rows // samples[0].row_step)
        assert taken <= rounds.SMALL_SAMPLE or 2 * STEP * rank_in_sample(samples[0].wanted) >= taken
    assert taken <= capacity
    assert sum(1 / sample.row_step for sample in samples) < 0.017  # of the work of all rows


@pytest.mark.parametrize("k", [1, 20, 132, 1300, 13_000])
def test_a_guess_is_hardly_ever_too_high(k):
    """The number of the best k in the sample is binomial; it may not reach the rank."""
    count = rank_in_sample(k)
    chance = torch.distributions.Binomial(k, torch.tensor(1 / STEP, dtype=torch.float64))
    below = chance.log_prob(torch.arange(min(count, k + 1), dtype=torch.float64)).exp().sum()
    assert 1 - float(below) < 1e-8


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 12), st.sampled_from([1, 1, 2, 7, 1000]))
def test_every_probed_row_comes_once(seed, num_queries, num_clusters, row_step):
    case = make_case(seed, queries=num_queries, clusters=num_clusters, probes=num_clusters, rows=150)
    offsets = case.index.clusters.offsets
    with cuda.launching_with(StandIn(seed)):
        _, works = work_over_probes(case.probes, offsets, [61, row_step], FIT)
    assert sorted(pair for work in works for pair in pairs_of(work)) == sorted(
        (query, row)
        for query, line in enumerate(case.probes.tolist())
        for cluster in line
        if cluster >= 0
        for row in range(int(offsets[cluster]), int(offsets[cluster + 1]))
        if row % row_step == 0
    )


def test_the_kernel_fits_the_batch():
    def first(queries, fit=FIT):
        with cuda.launching_with(StandIn()):
            return RowTiles.of(queries, 10**4, CPU, fit).work(1)[0].form

    assert [first(queries) for queries in (1, 20, 4096)] == [LISTED, NARROW, WIDE]
    assert first(4096, Fit(1024, 163 << 10)) == NARROW
    assert first(4096, Fit(4096, 163 << 10)) == LISTED

    def clustered(queries, clusters):
        probes = torch.zeros(queries, 1, dtype=torch.int64)
        with cuda.launching_with(StandIn()):
            ((work,),) = work_over_probes(probes, torch.arange(clusters + 1), [1], FIT)
        return work.form

    assert [clustered(*sizes) for sizes in ((10, 100), (1000, 100), (10_000, 100))] == [LISTED, NARROW, WIDE]


# ---- whole searches, with the kernels' contracts in Python -----------------------------------------------------------


def small_buffers(monkeypatch, room, redos=2, step=7):
    """Buffers of `room` places beside k0, and samples and pieces that make several rounds of small cases."""
    monkeypatch.setattr(scan_cuda, "capacity_for", lambda num_rows, k0: k0 + room)
    monkeypatch.setattr(scan_cuda, "REDOS", redos)
    monkeypatch.setattr(scan_cuda, "SORTED_AT_ONCE", 0)
    for name, value in (("TILE_ROWS", 37), ("LEAST_TILE_ROWS", 5)):
        monkeypatch.setattr(row_tiles, name, value)
    for name, value in (("STEP", step), ("SMALL_SAMPLE", 20)):
        monkeypatch.setattr(rounds, name, value)
    monkeypatch.setattr(rounds, "rank_in_sample", lambda k: -(-k // step) + 1)


FEW = ["one_item", "no_rows", "no_queries", "empty_clusters", "k0_above_candidates", "all_at_once", "nothing_admitted"]
OVERFLOWING = ["plain", "ties", "all_at_once"]


@pytest.mark.parametrize(
    ("name", "room", "redos"),
    [(name, 10_000, 2) for name in FEW] + [(name, *way) for name in OVERFLOWING for way in ((64, 2), (3, 1), (1, 0))],
)
def test_searches_equal_the_loop(name, room, redos, monkeypatch):
    small_buffers(monkeypatch, room, redos)
    case = named_case(name)
    given = (case.queries, case.index)
    stand_in = StandIn(seed=room)
    with cuda.launching_with(stand_in):
        some = search_clusters(*given, case.probes, case.words, case.filter_of_query, **case.rest(), backend="cuda")
        every = search_rows(*given, case.words, case.filter_of_query, **case.rest(), backend="cuda")
    for found, every_cluster in ((some, False), (every, True)):
        rows, scores = expected(name, every_cluster)
        assert found.rows.tolist() == rows
        assert found.scores.tolist() == scores
    assert bool(stand_in.overflows) == (room <= 64)


@pytest.mark.skipif(COMPILER is None, reason=WHY_MISSING)
@pytest.mark.parametrize("name", OVERFLOWING)
def test_samples_with_the_kernels_themselves(name, monkeypatch):
    small_buffers(monkeypatch, 64)
    case = named_case(name)
    with cuda.launching_with(Emulated()):
        filters = (case.words, case.filter_of_query)
        every = search_rows(case.queries, case.index, *filters, **case.rest(), backend="cuda")
        some = search_clusters(case.queries, case.index, case.probes, *filters, **case.rest(), backend="cuda")
    for found, every_cluster in ((some, False), (every, True)):
        rows, scores = expected(name, every_cluster)
        assert found.rows.tolist() == rows
        assert found.scores.tolist() == scores


@pytest.mark.skipif(COMPILER is None, reason=WHY_MISSING)
def test_a_sample_of_real_size_with_the_kernels_themselves():
    """What is above its threshold is sorted at once."""
    case = make_case(3, queries=5, rows=30_000, dim=32)
    filters = (None, torch.full((5,), -1))
    with cuda.launching_with(Emulated()):
        found = search_rows(case.queries, case.index, *filters, k0=132, backend="cuda")
    expected = search_rows(case.queries, case.index, *filters, k0=132, backend="torch")
    assert torch.equal(found.rows, expected.rows)
    assert torch.equal(found.scores, expected.scores)


class Steps(Emulated):
    """Remembers the row steps of what it scores; runs the listing kernel or, for many queries a cluster, the others."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def launch(self, source, kernel, grid, threads, shared_bytes, arguments):
        if kernel.startswith("score"):
            self.seen.add((kernel, arguments[-5]))
        super().launch(source, kernel, grid, threads, shared_bytes, arguments)


@pytest.mark.skipif(COMPILER is None, reason=WHY_MISSING)
@pytest.mark.parametrize(
    ("queries", "kernel"), [(3, "score_dp4a"), (30, "score_mma_narrow"), (160, "score_mma")], ids=str
)
def test_samples_of_words_on_clusters(queries, kernel, monkeypatch):
    small_buffers(monkeypatch, 64)
    case = make_case(queries, queries=queries, rows=900, clusters=4, probes=4, filters=2, rate=0.5)
    spans = spans_of(case, case.filter_of_query >= 0)
    given = (case.queries, case.index, case.probes)
    nobody = torch.full_like(case.filter_of_query, -1)
    steps = Steps()
    with cuda.launching_with(steps):
        found = search_clusters(*given, None, nobody, spans=spans, k0=10, backend="cuda")
    true = search_clusters(*given, case.words, case.filter_of_query, k0=10, backend="torch")
    assert torch.equal(found.rows, true.rows)
    assert torch.equal(found.scores, true.scores)
    assert steps.seen == {(kernel, 49), (kernel, 7), (kernel, 1)}


@pytest.mark.parametrize("probed", [False, True])
@pytest.mark.parametrize(("room", "redos"), [(10_000, 2), (20, 2), (5, 1), (5, 0)])
def test_a_guess_that_was_too_high(room, redos, probed, monkeypatch):
    """The best rows are all in the sample, as if the index repeated itself in step with it."""
    small_buffers(monkeypatch, room, redos)
    case = make_case(6, rows=700, k0=30, excluded=3)
    scales = torch.where(torch.arange(700) % 7 == 0, case.index.scales, 1e-4 * case.index.scales)
    index = dataclasses.replace(case.index, scales=scales)
    nobody = torch.full((20,), -1)
    stand_in = StandIn()
    given = (None, nobody)
    search = search_rows
    if probed:
        given, search = (torch.arange(7).repeat(20, 1), *given), search_clusters
    with cuda.launching_with(stand_in):
        found = search(case.queries, index, *given, **case.rest(), backend="cuda")
    true = search(case.queries, index, *given, **case.rest(), backend="torch")
    assert stand_in.guessed_too_high > 0
    assert torch.equal(found.rows, true.rows)
    assert torch.equal(found.scores, true.scores)


def test_queries_that_see_few_rows_need_no_sample(monkeypatch):
    small_buffers(monkeypatch, 40)
    case = make_case(2, rows=700, filters=5, rate=0.03)
    launched = []

    class Watching(StandIn):
        def score(self, kernel, grid, *given):
            step, thresholds = given[-5:-3]
            launched.append((step, bool((thresholds[case.filter_of_query >= 0] == 2**63 - 1).all())))
            super().score(kernel, grid, *given)

    with cuda.launching_with(Watching()):
        found = search_rows(case.queries, case.index, case.words, case.filter_of_query, k0=10, backend="cuda")
    true = search_rows(case.queries, case.index, case.words, case.filter_of_query, k0=10, backend="torch")
    assert torch.equal(found.rows, true.rows)
    absent = dict(reversed(launched))  # at the first round of each step
    assert absent == {49: True, 7: True, 1: False}


@pytest.mark.parametrize(("room", "redos"), [(10_000, 2), (5, 1)])
@pytest.mark.parametrize("num_probes", [1, 7, 99])
def test_choose_probes(room, redos, num_probes, monkeypatch):
    small_buffers(monkeypatch, room, redos)
    case = make_case(3, clusters=60)
    expected_probes = choose_probes(case.queries, case.index.clusters.centroids, num_probes=num_probes, backend="torch")
    with cuda.launching_with(StandIn()):
        found = choose_probes(case.queries, case.index.clusters.centroids, num_probes=num_probes, backend="cuda")
    assert torch.equal(found, expected_probes)


def test_the_host_waits_once_a_search_at_most(monkeypatch):
    """On a far device: no number is read while rounds run, only who did not fit, at the end, unless the caller does."""
    small_buffers(monkeypatch, 300)
    case = named_case("all_at_once")
    rest = {name: to_far(value) for name, value in case.rest().items()}
    given = [to_far(value) for value in (case.queries, case.index)]
    far = [to_far(value) for value in (case.words, case.filter_of_query)]
    probes = to_far(case.probes)
    with cuda.launching_with(StandIn()):
        for unsure, waits in ((None, ["aten::nonzero"]), ([], [])):
            with Watch() as watch:
                search_clusters(*given, probes, *far, **rest, backend="cuda", unsure=unsure)
            assert watch.waits == waits
            with Watch() as watch:
                search_rows(*given, *far, **rest, backend="cuda", unsure=unsure)
            assert watch.waits == waits
        with Watch() as watch:
            choose_probes(given[0], given[1].clusters.centroids, num_probes=3, backend="cuda")
        assert watch.waits == [], "there is room for all clusters"
