"""The one list of a request of several queries, against a dictionary of the scores of each query."""

from __future__ import annotations

import pytest
import torch

from stcli.errors import TensorError
from stcli.ops.search_requests import search_requests
from stcli.types import Lines, Quantized
from tests import oracles_search as oracle
from tests.ops.search_cases import NAMED, Case, make_case, named_case

PLAIN = [name for name in NAMED if "bounds" not in name and name != "all_at_once"]


def search(case: Case, together: int, form: str, **changes):
    """The queries of a case as requests of so many, those that are left over cut off."""
    count = len(case.queries.scales) // together
    queries = Quantized(case.queries.codes[: count * together], case.queries.scales[: count * together])
    given = {
        "k0": case.k0,
        "excluded": None if case.excluded is None else case.excluded.take(slice(0, count)),
        "filter_of_request": case.filter_of_query[:count],
        **changes,
    }
    return search_requests(queries, case.index, case.probes[: count * together], case.words, backend=form, **given)


def expected(case: Case, together: int) -> tuple[list, list, list]:
    """Rows, scores and how many admitted rows each query saw, by plain loops."""
    offsets, arrays = case.index.clusters.offsets.tolist(), {}
    for name in ("codes", "scales", "errors", "norms"):
        arrays[name] = getattr(case.index, name).numpy()
    lines, seen = [], []
    for request in range(len(case.queries.scales) // together):
        number, hidden, best = int(case.filter_of_query[request]), set(), {}
        if case.excluded is not None:
            hidden = set(case.excluded.values[case.excluded.begins[request] : case.excluded.ends[request]].tolist())
        for query in range(request * together, (request + 1) * together):
            probed = [c for c in case.probes[query].tolist() if c >= 0]
            rows = [row for c in probed for row in range(offsets[c], offsets[c + 1])]
            admitted = [row for row in rows if oracle.admits(case.words, number, row)]
            seen.append(len(admitted))
            one = (case.queries.codes[query : query + 1].numpy(), case.queries.scales[query : query + 1].numpy())
            found = oracle.search(one, arrays, [[row for row in admitted if row not in hidden]], max(len(admitted), 1))
            for row, score in zip(found[0][0].tolist(), found[1][0].tolist(), strict=True):
                if row >= 0:
                    best[row] = max(best.get(row, score), score)
        ordered = sorted(best.items(), key=lambda pair: (-pair[1], pair[0]))[: case.k0]
        lines.append(ordered + [(-1, -torch.inf)] * (case.k0 - len(ordered)))
    return [[row for row, _ in line] for line in lines], [[score for _, score in line] for line in lines], seen


@pytest.mark.parametrize("together", [1, 3, 5])
@pytest.mark.parametrize("name", PLAIN)
def test_equals_dictionaries(name, together, form):
    case = named_case(name)
    found = search(case, together, form)
    rows, scores, seen = expected(case, together)
    assert found.rows.tolist() == rows
    assert found.scores.tolist() == scores
    assert found.seen.tolist() == seen


def test_a_request_alone_gets_the_same(form):
    case = make_case(3, queries=24, rows=900, clusters=9, probes=4, filters=2, excluded=40)
    whole = search(case, 4, form)
    for b in (0, 3, 5):
        mine = slice(4 * b, 4 * b + 4)
        alone = search_requests(
            Quantized(case.queries.codes[mine], case.queries.scales[mine]), case.index, case.probes[mine], case.words,
            case.filter_of_query[b : b + 1], k0=case.k0, excluded=case.excluded.take(slice(b, b + 1)), backend=form,
        )  # fmt: skip
        assert torch.equal(alone.rows[0], whole.rows[b])
        assert torch.equal(alone.scores[0], whole.scores[b])
        assert torch.equal(alone.seen, whole.seen[mine])


def test_bad_arguments_are_named(form):
    case = named_case("filters")
    with pytest.raises(TensorError, match=r"as many for each of B=3 requests expected, got 20 in all"):
        search(case, 1, form, filter_of_request=case.filter_of_query[:3])
    with pytest.raises(TensorError, match=r"filter_of_query: numbers in -1 … 2 expected, got 3 … 3"):
        search(case, 2, form, filter_of_request=torch.full((10,), 3))
    lines = Lines(torch.zeros(1).long(), torch.zeros(10).long(), torch.full((10,), 2))
    with pytest.raises(TensorError, match=r"excluded: lines within 0 … 1"):
        search(case, 2, form, excluded=lines)
    case.probes[0, 0] = 7
    with pytest.raises(TensorError, match=r"probes: numbers in -1 … 6 expected, got -1 … 7"):
        search(case, 2, form)
