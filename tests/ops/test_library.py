"""The custom operators pass torch's own checks, and an exported program gives what the operations give."""

import io

import pytest
import torch

from stcli.ops import library
from stcli.ops.choose_probes import choose_probes
from stcli.ops.filter_match import filter_match
from stcli.ops.filter_probes import filter_probes
from stcli.ops.quantize_rows import quantize_rows
from stcli.ops.rescore import rescore
from stcli.ops.search_clusters import search_clusters
from stcli.ops.search_rows import search_rows
from stcli.ops.take_best import take_best
from stcli.ops.verify_terms import verify_terms
from stcli.types import Embeddings, Quantized
from tests.ops.search_cases import named_case
from tests.ops.test_device_agnostic import filters, normal


def call(operation, *given, **named):
    """An operator and its arguments."""
    return getattr(library, f"{operation.__name__}_op"), tuple(library.flat(operation, *given, **named))


def calls():
    """Each operator with arguments."""
    case, more = named_case("plain"), named_case("all_at_once")
    terms, _, matrix, program, term_program = filters(4)
    embeddings = normal(60, 20)
    rows = torch.arange(40).reshape(4, 10) - 1
    candidates = (torch.arange(9 * 20).reshape(9, 20) * 37) % 5001 - 1
    centroids = case.index.clusters.centroids
    floors = torch.full_like(more.queries.scales, -1.0)
    everything = {"k0": 10, "excluded": more.excluded, "bounds": more.bounds}
    halves = Embeddings(embeddings.half(), torch.zeros(60, dtype=torch.int8))
    return {
        "quantize_rows": call(quantize_rows, normal(7, 20)),
        "quantize_rows_wide": call(quantize_rows, normal(7, 20), scale=0.5, pad_to=64),
        "filter_match": call(filter_match, matrix, program),
        "filter_probes": call(
            filter_probes,
            matrix,
            program,
            torch.tensor([0, -1, 2]),
            torch.tensor([[0, 1], [1, 0], [1, -1]]),
            torch.tensor([0, 2000, 5000]),
        ),
        "filter_probes_room": call(
            filter_probes,
            matrix,
            program,
            torch.tensor([0]),
            torch.tensor([[0, 1]]),
            torch.tensor([0, 2000, 5000]),
            room=100,
        ),
        "choose_probes": call(choose_probes, case.queries, centroids, num_probes=3),
        "choose_probes_reaching": call(
            choose_probes, case.queries, centroids, num_probes=3, reaches=centroids.scales * 0.1
        ),
        "search_clusters": call(
            search_clusters, case.queries, case.index, case.probes, None, case.filter_of_query, k0=10
        ),
        "search_clusters_all": call(
            search_clusters, more.queries, more.index, more.probes, more.words, more.filter_of_query, **everything
        ),
        "search_rows": call(search_rows, case.queries, case.index, None, case.filter_of_query, k0=10),
        "search_rows_all": call(
            search_rows, more.queries, more.index, more.words, more.filter_of_query, floors=floors, **everything
        ),
        "take_best": call(take_best, rows, normal(4, 10), torch.arange(60), k=3),
        "rescore": call(rescore, normal(4, 20), halves, rows),
        "rescore_float32": call(rescore, normal(4, 20), Embeddings(embeddings, None), rows),
        "verify_terms": call(verify_terms, terms, term_program, candidates, torch.arange(9) - 1),
    }


CALLS = calls()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CALLS)
def test_opcheck(name):
    operator, given = CALLS[name]
    torch.library.opcheck(operator, given)


@pytest.mark.filterwarnings("ignore")
def test_a_search_exports_with_any_number_of_queries():
    case = named_case("plain")
    centroids = case.index.clusters.centroids

    class Search(torch.nn.Module):
        def forward(self, vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            queries = Quantized(*library.quantize_rows_op(vectors))
            probes = library.choose_probes_op(*library.flat(choose_probes, queries, centroids, num_probes=3))
            none = torch.full_like(probes[:, 0], -1)
            return library.search_clusters_op(
                *library.flat(search_clusters, queries, case.index, probes, None, none, k0=10)
            )

    batch = torch.export.Dim("batch", min=2, max=1000)
    program = torch.export.export(Search(), (normal(5, 32),), dynamic_shapes=({0: batch},))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    vectors = normal(9, 32, seed=8)
    rows, scores = torch.export.load(file).module()(vectors)
    queries = quantize_rows(vectors)
    probes = choose_probes(queries, centroids, num_probes=3)
    expected = search_clusters(queries, case.index, probes, None, torch.full((9,), -1), k0=10)
    assert torch.equal(rows, expected.rows)
    assert torch.equal(scores, expected.scores)


def test_a_missing_dataclass_leaves_a_gap_for_each_of_its_parts():
    case = named_case("all_at_once")
    operator, given = call(
        search_rows,
        case.queries,
        case.index,
        None,
        torch.full_like(case.filter_of_query, -1),
        k0=10,
        bounds=case.bounds,
    )
    rows, scores = operator(*given)
    expected = search_rows(
        case.queries, case.index, None, torch.full_like(case.filter_of_query, -1), k0=10, bounds=case.bounds
    )
    assert torch.equal(rows, expected.rows)
    assert torch.equal(scores, expected.scores)
