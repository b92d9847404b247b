from dataclasses import replace

import pytest
import torch

from stcli.errors import InputError, TensorError
from stcli.ops.search_clusters import search_clusters
from stcli.types import Clusters, Lines, Quantized, SearchIndex
from tests.ops.search_cases import NAMED, Case, expected, make_case, named_case, spans_of


def search(case: Case, form: str, **changes):
    return search_clusters(
        case.queries, case.index, case.probes, case.words, case.filter_of_query, **case.rest() | changes, backend=form
    )


@pytest.mark.parametrize("name", NAMED)
def test_equals_the_loop(name, form):
    case = named_case(name)
    found = search(case, form)
    rows, scores = expected(name, every_cluster=False)
    assert found.rows.dtype == torch.int64
    assert found.scores.dtype == torch.float32
    assert found.rows.tolist() == rows
    assert found.scores.tolist() == scores


@pytest.mark.parametrize("name", [name for name in NAMED if NAMED[name].get("filters")])
@pytest.mark.parametrize("some", [False, True])
def test_words_of_the_probed_clusters_are_enough(name, some, form):
    case = named_case(name)
    mine, whole = case.filter_of_query >= 0, None
    if some:  # the others keep their lines of whole words
        mine, whole = mine & (torch.arange(len(mine)) % 3 > 0), case.words
    given = replace(case, words=whole, filter_of_query=case.filter_of_query.masked_fill(mine, -1))
    found = search(given, form, spans=spans_of(case, mine))
    rows, scores = expected(name, every_cluster=False)
    assert found.rows.tolist() == rows
    assert found.scores.tolist() == scores


def test_worked_example(form):
    codes = torch.zeros(3, 32, dtype=torch.int8)
    codes[:, 0] = torch.tensor([1, 2, 3])
    offsets = torch.tensor([0, 1, 3])
    index = SearchIndex(
        codes, torch.tensor([8.0, 1.0, 1.0]), *torch.ones(2, 3), Clusters(Quantized(codes[:2], torch.ones(2)), offsets)
    )
    query = Quantized(codes[1:2], torch.tensor([0.5]))  # dots 2, 4, 6; scores 8, 2, 3
    none = torch.tensor([-1])
    found = search_clusters(query, index, torch.tensor([[1, 0]]), None, none, k0=2, backend=form)
    assert found.rows.tolist() == [[0, 2]]
    assert found.scores.tolist() == [[8.0, 3.0]]
    found = search_clusters(query, index, torch.tensor([[1, -1]]), None, none, k0=3, backend=form)
    assert found.rows.tolist() == [[2, 1, -1]]
    assert found.scores.tolist() == [[3.0, 2.0, -torch.inf]]


def test_a_query_alone_gets_the_same(form):
    case = named_case("all_at_once")
    whole = search(case, form)
    for b in (0, 7, 19):
        assert case.excluded is not None
        assert case.bounds is not None
        alone = search_clusters(
            Quantized(case.queries.codes[b : b + 1], case.queries.scales[b : b + 1]),
            case.index,
            case.probes[b : b + 1],
            case.words,
            case.filter_of_query[b : b + 1],
            k0=case.k0,
            excluded=case.excluded.take(slice(b, b + 1)),
            bounds=(case.bounds[0][b : b + 1], case.bounds[1][b : b + 1]),
            backend=form,
        )
        assert torch.equal(alone.rows[0], whole.rows[b])
        assert torch.equal(alone.scores[0], whole.scores[b])


def test_rows_past_4096_and_negative_zero(form):
    case = make_case(5, queries=3, rows=9000, clusters=2, probes=2, k0=9000, high=1)
    case.index.scales.fill_(1e-38)
    case.queries.scales.fill_(1e-38)  # every score is zero, of either sign: the order is that of the rows
    found = search(case, form)
    for line, probes in zip(found.rows.tolist(), case.probes.tolist(), strict=True):
        seen = [row for row in line if row >= 0]
        assert seen == sorted(seen)
        assert bool(seen) == any(c >= 0 for c in probes)


def test_bad_arguments_are_named():
    case = named_case("filters")
    case.probes[0, 0] = 7
    with pytest.raises(TensorError, match=r"probes: numbers in -1 … 6 expected, got -1 … 7"):
        search(case, "torch")
    case = named_case("filters")
    case.filter_of_query[0] = 3
    with pytest.raises(TensorError, match=r"filter_of_query: numbers in -1 … 2 expected"):
        search(case, "torch")
    case = named_case("filters")
    case.words = case.words[:, :-1]
    with pytest.raises(TensorError, match="words: W=16 expected for N=1000, got W=15"):
        search(case, "torch")
    with pytest.raises(InputError, match="k0 is 0"):
        search(named_case("plain"), "torch", k0=0)
    for begin, end in [(0, 2), (-1, 1), (1, 0)]:
        bounds = torch.tensor([[begin, end]]).repeat(20, 1).T.contiguous()
        with pytest.raises(TensorError, match=r"excluded: lines within 0 … 1 \(from values\) expected"):
            search(named_case("plain"), "torch", excluded=Lines(torch.ones(1).long(), *bounds))
