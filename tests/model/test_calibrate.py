"""A calibration reaches its target on queries that it has not seen, and is refused where it was not measured."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from stcli.errors import InputError
from stcli.filters.source import GivenFilters
from stcli.model import segment
from stcli.model.calibrate import Sample, calibrate
from stcli.model.planner import BANDS, PROBE
from tests.model.corpus import Corpus, check_results, make

TARGET, K = 0.9, 20


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> tuple[Corpus, np.ndarray]:
    """20,000 items in 128 clusters that overlap, and 600 queries that look elsewhere than the items lie."""
    rng = np.random.default_rng(21)
    centres = rng.normal(size=(200, 16))
    embeddings = (centres[rng.integers(200, size=20_000)] + 0.7 * rng.normal(size=(20_000, 16))).astype(np.float32)
    group = pa.array(rng.integers(0, 4, 20_000))
    corpus = make(tmp_path_factory.mktemp("large"), embeddings, features={"group": group}, clusters=128)
    near = embeddings[rng.integers(20_000, size=600)]
    return corpus, (near + 0.5 * rng.normal(size=near.shape)).astype(np.float32)


def given(corpus: Corpus, filters: list) -> GivenFilters:
    return GivenFilters(corpus.model.planner, filters)


@pytest.fixture(scope="module")
def measured(large):
    corpus, queries = large
    return calibrate(corpus.model, torch.from_numpy(queries), given(corpus, [None] * 600), K, TARGET)


def test_the_target_is_reached_with_few_clusters(large, measured):
    corpus, queries = large
    results = corpus.model(queries, None, K, calibration=measured)
    recall = check_results(corpus, queries, [None] * 600, K, results, exact=False)
    assert measured.probes[0] < 64
    assert TARGET <= measured.lower_bound[0] <= measured.recall[0] < TARGET + 0.06
    # The curve counts what lies in the probed clusters; int8 ranking loses a little, ties add a little.
    assert abs(recall - measured.recall[0]) < 0.005
    assert recall >= TARGET
    assert (results.routes == PROBE).all()


def test_unseen_queries_reach_it_too(large):
    """Half of the queries measure, the other half asks: the lower bound is one-sided at 95 %, so allow 3 sigma more."""
    corpus, queries = large
    half = calibrate(corpus.model, torch.from_numpy(queries[:300]), given(corpus, [None] * 300), K, TARGET)
    results = corpus.model(queries[300:], None, K, calibration=half)
    recall = check_results(corpus, queries[300:], [None] * 300, K, results, exact=False)
    sigma = (half.recall[0] - half.lower_bound[0]) / 1.645
    assert recall > TARGET - 3 * sigma


def test_a_higher_target_probes_more(large, measured):
    corpus, queries = large
    more = calibrate(corpus.model, torch.from_numpy(queries), given(corpus, [None] * 600), K, 0.99)
    assert more.probes[0] > measured.probes[0]
    every = calibrate(corpus.model, torch.from_numpy(queries), given(corpus, [None] * 600), K, 1.0)
    assert every.probes == (128,) * len(BANDS)


def test_the_same_queries_in_another_order_and_the_same_seed(large, measured):
    corpus, queries = large
    again = calibrate(corpus.model, torch.from_numpy(queries), given(corpus, [None] * 600), K, TARGET)
    assert again == measured


def test_each_band_has_its_own_probes(large):
    """Of 600 queries half have no filter and half one that a quarter of the items satisfy; both bands are large."""
    corpus, queries = large
    filters = [None, "group = 2"] * 300
    found = calibrate(corpus.model, torch.from_numpy(queries), given(corpus, filters), K, TARGET)
    assert found.queries == (300, 300, 0, 0, 0)
    assert max(found.probes[:2]) < 128
    assert found.probes[2:] == (128, 128, 128)
    assert found.recall[2:] == (None, None, None)
    results = corpus.model(queries, filters, K, calibration=found)
    recall = check_results(corpus, queries, filters, K, results, exact=False)
    assert recall >= TARGET


def test_a_small_band_is_answered_whole(large):
    corpus, queries = large
    filters = ["group = 1"] * 256 + [None] * 344
    found = calibrate(corpus.model, torch.from_numpy(queries), given(corpus, filters), K, TARGET)
    assert found.probes[1] == 128
    assert found.probes[0] < 128
    # 256 of a sample stand for 512 of a run twice as large
    found = calibrate(corpus.model, torch.from_numpy(queries), given(corpus, filters), K, TARGET, total=1200)
    assert found.probes[1] < 128


def test_the_curve_by_hand(large):
    """Recall by clusters probed, counted result by result."""
    corpus, queries = large
    model, few = corpus.model, queries[:5]
    filters = [None, "group = 3", "group = 9", None, "group < 2"]
    curve = Sample(model, torch.from_numpy(few), given(corpus, filters), 7, None).coverage()
    assert curve.shape == (5, 128)
    for probes in (1, 4, 30, 128):
        found = model(few, filters, 7, probes=probes, candidates=20_000)
        true = model(few, filters, 7, exact=True)
        for query in range(5):
            wanted = set(true.item_ids[query].tolist())
            if int(found.probes[query]) == probes:  # not widened because it found fewer than 7
                hits = len(wanted & set(found.item_ids[query].tolist()))
                assert float(curve[query, probes - 1]) == pytest.approx(hits / len(wanted) if wanted else 1)
    assert (curve[:, -1] == 1).all()
    assert (curve.diff(dim=1) >= 0).all()


def test_a_call_calibrates_itself(large, measured):
    corpus, queries = large
    alone = corpus.model(queries, None, K, target_recall=TARGET)
    passed = corpus.model(queries, None, K, calibration=measured)
    assert torch.equal(alone.rows, passed.rows)


def test_more_results_than_items(tmp_path):
    rng = np.random.default_rng(3)
    embeddings = rng.normal(size=(40, 4)).astype(np.float32)
    corpus = make(tmp_path, embeddings)
    results = corpus.model(embeddings, None, 100, target_recall=0.9)
    assert results.counts.tolist() == [40] * 40


def test_refused_for_another_artifact_or_k(large, measured, tmp_path):
    corpus, queries = large
    with pytest.raises(InputError, match="k=20, this run has k=21"):
        corpus.model(queries, None, 21, calibration=measured)
    with pytest.raises(InputError, match="measured on artifact 123"):
        corpus.model(queries, None, K, calibration=replace(measured, artifact="123"))


def test_rows_of_very_different_lengths_need_fewer_clusters_by_their_radii(tmp_path, monkeypatch):
    rng = np.random.default_rng(4)
    rows = clustered(12_000, 24, 5) * rng.lognormal(0, 1, (12_000, 1)).astype(np.float32)
    corpus = make(tmp_path, rows, clusters=128)
    queries = clustered(500, 24, 6)
    probes = {}
    for share in (0.0, segment.REACHED_SHARE):
        monkeypatch.setattr(segment, "REACHED_SHARE", share)
        found = calibrate(corpus.model, corpus.model.check_queries(queries), given(corpus, [None] * 500), 50)
        assert found.lower_bound[0] >= 0.95
        probes[share] = found.probes[0]
    assert probes[segment.REACHED_SHARE] < 0.8 * probes[0.0]


def clustered(rows, dim, seed):
    """Unit vectors around forty directions that do not depend on `seed`."""
    centres, rng = np.random.default_rng(1).normal(size=(40, dim)), np.random.default_rng(seed)
    found = centres[rng.integers(40, size=rows)] + 2 * rng.normal(size=(rows, dim))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)
