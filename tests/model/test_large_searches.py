"""Searches of more than toy size: many results, wide and narrow embeddings, uneven lengths, every form alike."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import stcli
from stcli.errors import InputError
from stcli.filters.source import GivenFilters
from stcli.model.calibrate import calibrate
from stcli.model.planner import SearchOptions
from stcli.ops import native
from tests.model.corpus import Corpus, check_results, make
from tests.model.test_retriever import clustered, features, filters_for, make_random, queries_for, same

ITEMS, QUERIES = 12_000, 80
"""Enough queries and rows a cluster for the search of all rows to leave out tiles."""


@pytest.fixture(scope="module")
def uneven(tmp_path_factory) -> tuple[Corpus, np.ndarray]:
    """Clustered items whose lengths vary by log-normal factors."""
    rng = np.random.default_rng(21)
    embeddings = clustered(rng, ITEMS, 16)
    embeddings *= rng.lognormal(0, 1, (ITEMS, 1)).astype(np.float32)
    ids = (rng.permutation(ITEMS) * 3).tolist()
    corpus = make(
        tmp_path_factory.mktemp("uneven"), embeddings, ids=ids, features=features(rng, ITEMS), clusters=100
    )  # fmt: skip
    return corpus, queries_for(rng, clustered(rng, ITEMS, 16), QUERIES)


@pytest.mark.parametrize("way", [{"exact": True}, {"probes": 7}, {"target_recall": 0.9}], ids=str)
def test_uneven_lengths(uneven, way):
    corpus, queries = uneven
    filters = filters_for(queries)
    results = corpus.model(queries, filters, 50, **way)
    recall = check_results(corpus, queries, filters, 50, results, exact="exact" in way)
    assert recall > (0.85 if "target_recall" in way else 0.2)


def test_the_exact_search_uses_a_floor(uneven):
    corpus, queries = uneven
    results = corpus.model(queries, None, 50, exact=True)
    assert check_results(corpus, queries, [None] * QUERIES, 50, results, exact=True) == 1
    assert (results.work > ITEMS).all()  # all rows once, some clusters before
    assert (results.work <= 1.1 * ITEMS).float().mean() > 0.9  # and hardly ever all rows twice


@pytest.mark.parametrize("way", [{"exact": True}, {"probes": 7}, {}], ids=str)
def test_ten_thousand_results(uneven, way):
    corpus, queries = uneven[0], uneven[1][:12]
    filters = filters_for(queries)
    results = corpus.model(queries, filters, 10_000, **way)
    check_results(corpus, queries, filters, 10_000, results, exact="exact" in way)
    assert len(results.item_ids[0]) == 10_000  # without a filter


@pytest.mark.parametrize(("dim", "items"), [(2, 3000), (4096, 300)])
def test_narrow_and_wide_embeddings(tmp_path, dim, items):
    corpus, queries = make_random(tmp_path, dim=dim, count=items)
    filters = filters_for(queries)
    for way in ({"exact": True}, {}, {"probes": 2}):
        results = corpus.model(queries, filters, 40, **way)
        check_results(corpus, queries, filters, 40, results, exact="exact" in way)


@pytest.mark.parametrize("way", ["exact", "probes", "calibrated"])
def test_threads_batches_and_forms_change_nothing(uneven, way, monkeypatch):
    if native.library() is None:
        pytest.skip(native.why_missing())
    model, queries = uneven[0].model, uneven[1]
    filters = filters_for(queries)
    options = {"exact": {"exact": True}, "probes": {"probes": 7}}.get(way)
    if options is None:
        vectors, source = model.check_queries(queries), GivenFilters(model.planner, filters)
        options = {"calibration": calibrate(model, vectors, source, 30, 0.9, total=100_000)}
    expected = model(queries, filters, 30, **options)
    torch_form = stcli.open_artifact(uneven[0].path, backend="torch")
    assert same(expected, torch_form(queries, filters, 30, **options))
    try:
        for threads, tile_queries in ((1, 80), (3, 80), (5, 33), (1, 1)):
            native.set_num_threads(threads)
            monkeypatch.setattr(model, "tile_queries", tile_queries)
            found = model(queries, filters, 30, **options)
            assert same(expected, found)
            assert torch.equal(expected.work, found.work)
    finally:
        native.set_num_threads(None)


SCOPED = ({"probes": 7}, {"target_recall": None}, {"exact": True}, {"target_recall": 0.9}, {"probes": 99})


@pytest.mark.parametrize("how", SCOPED, ids=str)
@pytest.mark.parametrize("runs", [2, 256])
def test_results_do_not_depend_on_where_filters_are_evaluated(uneven, how, runs, monkeypatch):
    """Even where a sample of 16 words says little of what a filter admits."""
    monkeypatch.setattr("stcli.model.admitted.SAMPLE_RUNS", runs)
    corpus, queries = uneven
    filters = filters_for(queries)
    exclude = [corpus.ids[start : start + 300] for start in range(QUERIES)]
    everywhere = corpus.model(queries, filters, 50, exclude=exclude, filter_scope="all", **how)
    probed = corpus.model(queries, filters, 50, exclude=exclude, filter_scope="probed", **how)
    routed = probed.routes == everywhere.routes  # an estimate may send a query another way, never to a worse one
    assert (routed.all() or runs == 2) if "target_recall" in how else routed.all()
    assert torch.equal(probed.rows[routed], everywhere.rows[routed])
    assert torch.equal(probed.score_matrix[routed], everywhere.score_matrix[routed])


def test_counted_or_estimated(uneven):
    corpus, queries = uneven
    filters = GivenFilters(corpus.model.planner, filters_for(queries))
    options = SearchOptions(20, 40, probes=7, filter_scope="probed")
    vectors = torch.from_numpy(queries)
    exact = corpus.model.search(vectors, filters, replace(options, filter_scope="all")).admitted
    guessed = corpus.model.search(vectors, filters, options)
    counted = corpus.model.search(vectors, filters, replace(options, count=True))
    assert torch.equal(counted.admitted, exact)
    assert torch.equal(counted.estimates, guessed.estimates)
    assert not torch.equal(guessed.admitted, exact)
    assert ((guessed.estimates - exact).abs() <= 0.05 * exact + 64).all()


def test_an_unknown_filter_scope(uneven):
    with pytest.raises(InputError, match="filter_scope 'some': expected one of auto, probed, all"):
        uneven[0].model(uneven[1], None, 5, filter_scope="some")
