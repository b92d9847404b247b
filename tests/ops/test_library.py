"""The custom operators pass torch's own checks, and an exported program gives what the operations give."""

import io

import pytest
import torch

from stcli.ops import library
from stcli.ops.quantize_rows import quantize_rows
from stcli.ops.search_clusters import search_clusters
from tests.ops.search_cases import named_case
from tests.ops.test_device_agnostic import filters, normal


def index_of(case):
    index = case.index
    centroids = index.clusters.centroids
    return (
        index.codes, index.scales, index.errors, index.norms, centroids.codes, centroids.scales, index.clusters.offsets,
    )  # fmt: skip


def calls():
    """Each operator with arguments."""
    case, more = named_case("plain"), named_case("all_at_once")
    terms, _, matrix, program, term_program = filters(4)
    queries = (case.queries.codes, case.queries.scales)
    lines, bounds = more.excluded, more.bounds
    rest = (lines.values, lines.begins, lines.ends, *bounds)
    embeddings = normal(60, 20)
    rows = torch.arange(40).reshape(4, 10) - 1
    leaves = [
        getattr(term_program, name) for name in ("lows", "highs", "leaf_offsets", "ops", "op_offsets", "max_depth")
    ]
    candidates = (torch.arange(9 * 20).reshape(9, 20) * 37) % 5001 - 1
    more_queries = (more.queries.codes, more.queries.scales)
    return {
        "quantize_rows": (library.quantize_rows_op, (normal(7, 20),)),
        "filter_match": (
            library.filter_match_op,
            (
                matrix.own, matrix.bloom, matrix.bloom_offsets, matrix.num_hashes, matrix.num_items, program.leaves,
                program.ops, program.op_offsets, program.max_depth,
            ),
        ),
        "choose_probes": (library.choose_probes_op, (*queries, *index_of(case)[4:6], 3)),
        "search_clusters": (
            library.search_clusters_op, (*queries, *index_of(case), case.probes, None, case.filter_of_query, 10),
        ),
        "search_clusters_all": (
            library.search_clusters_op,
            (*more_queries, *index_of(more), more.probes, more.words, more.filter_of_query, 10, *rest),
        ),
        "search_rows": (library.search_rows_op, (*queries, *index_of(case), None, case.filter_of_query, 10)),
        "search_rows_all": (
            library.search_rows_op, (*more_queries, *index_of(more), more.words, more.filter_of_query, 10, *rest),
        ),
        "rescore": (library.rescore_op, (normal(4, 20), embeddings.half(), torch.zeros(60, dtype=torch.int8), rows)),
        "rescore_float32": (library.rescore_op, (normal(4, 20), embeddings, None, rows)),
        "verify_terms": (
            library.verify_terms_op, (terms.values, terms.offsets, *leaves, candidates, torch.arange(9) - 1),
        ),
    }  # fmt: skip


CALLS = calls()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CALLS)
def test_opcheck(name):
    operator, given = CALLS[name]
    torch.library.opcheck(operator, given)


@pytest.mark.filterwarnings("ignore")
def test_a_search_exports_with_any_number_of_queries():
    case = named_case("plain")
    tensors = index_of(case)

    class Search(torch.nn.Module):
        def forward(self, vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            codes, scales = library.quantize_rows_op(vectors)
            probes = library.choose_probes_op(codes, scales, tensors[4], tensors[5], 3)
            none = torch.full_like(probes[:, 0], -1)
            return library.search_clusters_op(codes, scales, *tensors, probes, None, none, 10)

    batch = torch.export.Dim("batch", min=2, max=1000)
    program = torch.export.export(Search(), (normal(5, 32),), dynamic_shapes=({0: batch},))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    vectors = normal(9, 32, seed=8)
    rows, scores = torch.export.load(file).module()(vectors)
    queries = quantize_rows(vectors)
    probes = library.choose_probes_op(queries.codes, queries.scales, tensors[4], tensors[5], 3)
    expected = search_clusters(queries, case.index, probes, None, torch.full((9,), -1), k0=10)
    assert torch.equal(rows, expected.rows)
    assert torch.equal(scores, expected.scores)
