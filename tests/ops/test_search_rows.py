import pytest
import torch

from stcli.ops import native
from stcli.ops.search_clusters import search_clusters
from stcli.ops.search_rows import search_rows
from tests.ops.search_cases import NAMED, expected, make_case, named_case


@pytest.mark.parametrize("name", NAMED)
def test_equals_the_loop(name, form):
    case = named_case(name)
    found = search_rows(case.queries, case.index, case.words, case.filter_of_query, **case.rest(), backend=form)
    rows, scores = expected(name, every_cluster=True)
    assert found.rows.tolist() == rows
    assert found.scores.tolist() == scores


@pytest.mark.parametrize("queries", [3, 70, 600])
def test_threads_change_nothing(queries):
    if native.library() is None:
        pytest.skip(native.why_missing())
    case = make_case(queries, queries=queries, rows=13000, clusters=20, k0=20, planted=True, filters=2, rate=0.02)
    expected = search_rows(case.queries, case.index, case.words, case.filter_of_query, k0=20, backend="torch")
    try:
        for threads in (1, 2, 5):
            native.set_num_threads(threads)
            found = search_rows(case.queries, case.index, case.words, case.filter_of_query, k0=20, backend="native")
            assert torch.equal(found.rows, expected.rows)
            assert torch.equal(found.scores, expected.scores)
    finally:
        native.set_num_threads(None)


def test_equals_search_of_every_cluster(form):
    case = make_case(3, queries=40, rows=9000, clusters=11, dim=64, filters=4, rate=0.05, k0=100, excluded=5)
    every = torch.arange(11).repeat(40, 1)
    one = search_rows(case.queries, case.index, case.words, case.filter_of_query, **case.rest(), backend=form)
    two = search_clusters(
        case.queries, case.index, every, case.words, case.filter_of_query, **case.rest(), backend=form
    )
    assert torch.equal(one.rows, two.rows)
    assert torch.equal(one.scores, two.scores)


@pytest.mark.parametrize(
    "name", ["plain", "ties", "filters", "all_at_once", "planted", "planted_bounds", "planted_ties", "planted_wide"]
)
def test_floors_cut_the_candidates_below(name, form):
    case = named_case(name)
    rows, scores = expected(name, every_cluster=True)
    scores = torch.tensor(scores)
    places = torch.arange(len(scores)) * 7 % (case.k0 + 1)
    floors = scores.gather(1, places.clamp(max=case.k0 - 1)[:, None])[:, 0]  # equal to a score: it stays
    floors = torch.where(places == case.k0, -torch.inf, floors)
    kept = (scores >= floors[:, None]) & (scores > -torch.inf)
    found = search_rows(
        case.queries, case.index, case.words, case.filter_of_query, **case.rest(), floors=floors, backend=form
    )
    assert torch.equal(found.rows, torch.tensor(rows).masked_fill(~kept, -1))
    assert torch.equal(found.scores, scores.masked_fill(~kept, -torch.inf))
