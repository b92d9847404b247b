import pytest
import torch

from stcli.ops.search_clusters import search_clusters
from stcli.ops.search_rows import search_rows
from tests.ops.search_cases import NAMED, expected, make_case, named_case


@pytest.mark.parametrize("name", NAMED)
def test_equals_the_loop(name, form):
    case = named_case(name)
    found = search_rows(case.queries, case.index, case.words, case.filter_of_query, **case.rest(), backend=form)
    rows, scores = expected(case, every_cluster=True)
    assert found.rows.tolist() == rows
    assert found.scores.tolist() == scores


def test_equals_search_of_every_cluster(form):
    case = make_case(3, queries=40, rows=9000, clusters=11, dim=64, filters=4, rate=0.05, k0=100, excluded=5)
    every = torch.arange(11).repeat(40, 1)
    one = search_rows(case.queries, case.index, case.words, case.filter_of_query, **case.rest(), backend=form)
    two = search_clusters(
        case.queries, case.index, every, case.words, case.filter_of_query, **case.rest(), backend=form
    )
    assert torch.equal(one.rows, two.rows)
    assert torch.equal(one.scores, two.scores)
