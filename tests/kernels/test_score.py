"""The score kernels and the selection together: every case of the search, bit for bit as the plain loops have it."""

from dataclasses import replace

import pytest
import torch

from tests import oracles_search as oracle
from tests.emulation.emulate import COMPILER, WHY_MISSING
from tests.kernels import launches
from tests.kernels.launches import FORMS
from tests.ops.search_cases import NAMED, expected, make_case, named_case

SHARED_BYTES = 232448  # of a block, on sm_90

pytestmark = pytest.mark.skipif(COMPILER is None, reason=WHY_MISSING)


def by_clusters(case):
    """The first probe of each query, then the others."""
    offsets = case.index.clusters.offsets.tolist()
    for slots in (slice(0, 1), slice(1, None)):
        lines = {}
        for query, probes in enumerate(case.probes[:, slots].tolist()):
            for cluster in probes:
                lines.setdefault(cluster, []).append(query)
        yield [(lines[c], offsets[c], offsets[c + 1]) for c in sorted(lines) if c >= 0]


def by_rows(case):
    """Some rows, then all others."""
    rows, queries = len(case.index.scales), list(range(len(case.queries.scales)))
    first = min(rows, 100)
    return [[(queries, 0, first)], [(queries, first, rows)]]


def check(case, name, every_cluster, form, *, capacity, tile_rows, seed=0):
    rounds = by_rows(case) if every_cluster else by_clusters(case)
    found, repeats = launches.search(case, FORMS[form], rounds, capacity, tile_rows, seed)
    rows, scores = expected(name, every_cluster)
    assert found.rows.tolist() == rows
    assert found.scores.tolist() == scores
    return repeats


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMED)
def test_equals_the_loop(name, form):
    case = named_case(name)
    if FORMS[form].shared(case.queries.codes.shape[1]) > SHARED_BYTES:
        pytest.skip("codes too wide for the shared memory of this form")
    every_cluster = len(name) % 2 == 0
    check(case, name, every_cluster, form, capacity=1024, tile_rows=1000)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_full_buffer_repeats_the_round(form, seed):
    """With room for hardly more than k0 keys, some rounds lose keys and are repeated; nothing is lost in the end."""
    repeats = check(named_case("all_at_once"), "all_at_once", False, form, capacity=120, tile_rows=300, seed=seed)
    assert repeats > 0
    repeats = check(named_case("planted_ties"), "planted_ties", True, form, capacity=160, tile_rows=65, seed=seed)
    assert repeats > 0


@pytest.mark.parametrize("form", ["mma", "mma_narrow"])
@pytest.mark.parametrize("queries", [1, 2, 3, 4, 8, 9, 16, 20])
def test_more_hits_than_a_warp_lists(form, queries):
    """128 at a time: without thresholds a warp has 64 hits a query in one form, 16 in the other."""
    case = make_case(queries, queries=queries, rows=128, k0=128)
    found, _ = launches.search(case, FORMS[form], [[(list(range(queries)), 0, 128)]], 256, 128, 0)
    index = {name: getattr(case.index, name).numpy() for name in ("codes", "scales")}
    codes = case.queries.codes.numpy(), case.queries.scales.numpy()
    rows, scores = oracle.search(codes, index, [range(128)] * queries, 128)
    assert found.rows.tolist() == rows.tolist()
    assert found.scores.tolist() == scores.tolist()


@pytest.mark.parametrize("form", FORMS)
def test_offsets_beyond_2_31(form):
    """Rows whose codes begin past 2^31 bytes; the pages of the others are never touched."""
    case, first = make_case(8, rows=200, dim=32, k0=20), 2**26 + 5
    index = case.index
    codes, scales = torch.empty(first + 200, 32, dtype=torch.int8), torch.empty(first + 200)
    codes[first:], scales[first:] = index.codes, index.scales
    far = replace(case, index=replace(index, codes=codes, scales=scales))
    queries = list(range(20))
    near_found, _ = launches.search(case, FORMS[form], [[(queries, 0, 200)]], 256, 200, 0)
    far_found, _ = launches.search(far, FORMS[form], [[(queries, first, first + 200)]], 256, 200, 0)
    assert torch.equal(far_found.rows, near_found.rows + first)
    assert torch.equal(far_found.scores, near_found.scores)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("step", [2, 61])
@pytest.mark.parametrize("options", [{"filters": 3, "excluded": 9}, {"bounds": True}], ids=["filters", "bounds"])
def test_every_nth_row(form, step, options):
    """As if a filter admitted no others."""
    case = make_case(step, rows=5000, k0=30, **options)
    queries, in_step = list(range(20)), torch.arange(5056) % step == 0
    found, _ = launches.search(case, FORMS[form], [[(queries, 0, 5000)]], 3000, 10 * step * 13, 0, step)
    words = torch.zeros(79, dtype=torch.int64)
    for bit, column in enumerate(in_step.view(79, 64).T.long()):
        words |= column << bit
    both = words[None] if case.words is None else torch.cat([case.words & words, words[None]])
    number = torch.where(case.filter_of_query < 0, len(both) - 1, case.filter_of_query)
    filtered = replace(case, words=both, filter_of_query=number)
    true, _ = launches.search(filtered, FORMS[form], [[(queries, 0, 5000)]], 3000, 1000, 0)
    assert int(found.rows.max()) % step == 0
    assert torch.equal(found.rows, true.rows)
    assert torch.equal(found.scores, true.scores)
