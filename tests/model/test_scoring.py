"""Requests of several tasks, and rankings of given candidates, against separate runs and plain loops."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch

import stcli
from stcli.errors import InputError
from stcli.filters.program import Planner
from stcli.model import joint, scorer, scoring, search
from stcli.model.eligibility import words_of
from stcli.model.planner import GIVEN, SearchOptions
from stcli.model.requests import Requests
from stcli.model.scoring import Scoring
from stcli.model.scoring_options import ScoringOptions
from stcli.ops import native
from tests.model.corpus import make, packed_values

FILTERS = [None, "color = 'red'", "NOT tags = 't02' AND price < 60", "tags = 't57'", "color = 'no such colour'"]
BACKENDS = ["torch", pytest.param("native", marks=pytest.mark.skipif(native.library() is None, reason="not built"))]


def task_users(tiny, num_tasks: int, count: int = 30) -> dict[str, np.ndarray]:
    """User vectors that differ by task, but not so much that nothing is in common."""
    rng = np.random.default_rng(7)
    near = tiny.vectors[:count]
    return {f"task{n}": (near + 0.7 * rng.normal(size=near.shape)).astype(np.float32) for n in range(num_tasks)}


def filters_of(count: int) -> list[str | None]:
    return [FILTERS[number % len(FILTERS)] for number in range(count)]


def merged(separate, query: int, k: int, everywhere: bool = False) -> list[tuple[int, float]]:
    """The results of separate runs joined by a dictionary: the best score of each item, larger first, then by id."""
    best, count = {}, {}
    for results in separate:
        for item, score in zip(results.item_ids[query].tolist(), results.scores[query].tolist(), strict=True):
            best[item] = max(best.get(item, -np.inf), score)
            count[item] = count.get(item, 0) + 1
    wanted = [(item, score) for item, score in best.items() if not everywhere or count[item] == len(separate)]
    return sorted(wanted, key=lambda pair: (-pair[1], pair[0]))[:k]


@pytest.fixture(scope="module", params=BACKENDS)
def model(tiny, request):
    return stcli.open_artifact(tiny.model, backend=request.param)


@pytest.mark.parametrize("way", [{"exact": True}, {"probes": 6}, {}], ids=str)
@pytest.mark.parametrize("num_tasks", [1, 2, 12])
def test_tasks_are_as_good_as_separate_runs_merged(model, tiny, num_tasks, way):
    users, filters, k = task_users(tiny, num_tasks), filters_of(30), 40
    results = model(users, filters, k, **way)
    separate = [model(vectors, filters, k, **way) for vectors in users.values()]
    for query in range(30):
        expected = merged(separate, query, k)
        assert list(zip(results.item_ids[query].tolist(), results.scores[query].tolist(), strict=True)) == expected
        assert np.array_equal(results.ann_scores[query, : len(expected)].numpy(), results.scores[query])
    assert torch.equal(results.work, sum(one.work for one in separate))
    assert torch.equal(results.admitted, separate[0].admitted)


def counted(monkeypatch) -> dict[str, list[int]]:
    """How many requests each joint search takes, with how many candidates; how many queries any other one takes."""
    calls: dict[str, list[int]] = {"joint": [], "candidates": [], "separate": []}
    answer, run = joint.JointSearch._answer, search.Search.run

    def counting(self, requests, num_probes, k0):
        calls["joint"].append(len(requests))
        calls["candidates"].append(k0)
        return answer(self, requests, num_probes, k0)

    monkeypatch.setattr(joint.JointSearch, "_answer", counting)
    monkeypatch.setattr(search.Search, "run", lambda self: calls["separate"].append(len(self.vectors)) or run(self))
    return calls


@pytest.mark.parametrize("barred", [False, True], ids=["", "excluded"])
@pytest.mark.parametrize("probes", [2, 8, 24])
def test_tasks_that_are_searched_together_lose_nothing(model, tiny, probes, barred, monkeypatch):
    """Where a task sees fewer than k items in its clusters, it has to look further, and so is searched by itself."""
    users, filters, k = task_users(tiny, 5), filters_of(30), 12
    ids = [row["item_id"] for row in tiny.item_rows]
    rng = np.random.default_rng(probes)
    exclude = [rng.choice(ids, 60, replace=False).tolist() for _ in range(30)] if barred else None
    separate = [model(vectors, filters, k, probes=probes, exclude=exclude) for vectors in users.values()]
    calls = counted(monkeypatch)
    results = model(users, filters, k, probes=probes, exclude=exclude)
    for query in range(30):
        expected = merged(separate, query, k)
        assert list(zip(results.item_ids[query].tolist(), results.scores[query].tolist(), strict=True)) == expected
    assert torch.equal(results.work, sum(one.work for one in separate))
    assert calls["joint"][0] == 30
    assert sum(calls["separate"]) < 30 * 5 or probes == 2


def test_near_ties_at_place_k_are_looked_at_more_closely(tmp_path, monkeypatch):
    """Hundreds of items score alike to within the errors of int8: the best by int8 are not the best."""
    rng = np.random.default_rng(1)
    users = {f"task{n}": vectors for n, vectors in enumerate(rng.normal(size=(3, 4, 16)).astype(np.float32))}
    items = np.stack(list(users.values()))[:, 0].repeat(100, 0) + 1e-3 * rng.normal(size=(300, 16))
    near = make(tmp_path, items.astype(np.float32), clusters=8).model
    separate = [near(vectors, None, 10, probes=near.num_clusters - 1, candidates=300) for vectors in users.values()]
    calls = counted(monkeypatch)
    results = near(users, None, 10, probes=near.num_clusters - 1)
    assert calls["joint"][0] == 4
    assert max(calls["candidates"]) > calls["candidates"][0]
    assert list(zip(results.item_ids[0].tolist(), results.scores[0].tolist(), strict=True)) == merged(separate, 0, 10)


def test_every_result_is_scored_for_every_task(model, tiny):
    users, filters = task_users(tiny, 3), filters_of(30)
    results = model(users, filters, 25, exact=True)
    values = packed_values(tiny.embeddings, "float16")
    place = {row["item_id"]: number for number, row in enumerate(tiny.item_rows)}
    for query in range(30):
        rows = [place[item] for item in results.item_ids[query].tolist()]
        for task, vectors in users.items():
            expected = values[rows].astype(np.float64) @ vectors[query].astype(np.float64)
            # 16 dimensions: 16 roundings of 2^-24 of the sum of magnitudes, which is below 200
            assert np.abs(results.task_scores[task][query] - expected).max(initial=0) < 16 * 200 * 2**-24
        best = np.max([results.task_scores[task][query] for task in users], axis=0, initial=-np.inf)
        assert np.array_equal(best, results.scores[query])


def test_an_intersection_looks_as_deep_as_it_takes(model, tiny):
    """Items that stand in the lists of all tasks at the smallest depth that gives k, or all that are eligible."""
    users, filters, k = task_users(tiny, 3), filters_of(30), 40
    results = model(users, filters, k, exact=True, scoring=ScoringOptions("intersection"))
    depths = [k * 2**power for power in range(7)]
    by_depth = [[model(vectors, filters, depth, exact=True) for vectors in users.values()] for depth in depths]
    for query in range(30):
        eligible = len(by_depth[-1][0].item_ids[query])
        for separate in by_depth:
            expected = merged(separate, query, k, everywhere=True)
            if len(expected) >= min(k, eligible):
                break
        assert list(zip(results.item_ids[query].tolist(), results.scores[query].tolist(), strict=True)) == expected
        assert len(expected) == min(k, eligible)


def test_results_do_not_depend_on_the_tiles(tiny, monkeypatch):
    model = stcli.open_artifact(tiny.model)
    users, filters, rng = task_users(tiny, 3), filters_of(30), np.random.default_rng(3)
    ids = [row["item_id"] for row in tiny.item_rows]
    lists = [rng.choice(ids, int(size)).tolist() for size in rng.integers(0, 90, 30)]
    ways = ({"probes": 5}, {"probes": 5, "scoring": ScoringOptions("intersection")}, {"rank": lists})
    whole = [model(users, filters, 20, **way) for way in ways]
    monkeypatch.setattr(scoring, "PAIRS", 200)
    monkeypatch.setattr(scorer, "PAIRS", 200)
    monkeypatch.setattr(scoring, "SLOTS", 100)
    model.tile_queries = 7
    for way, expected in zip(ways, whole, strict=True):
        found = model(users, filters, 20, **way)
        for name in ("rows", "score_matrix", "task_matrix", "work", "routes", "probes", "admitted", "scored"):
            assert torch.equal(getattr(found, name), getattr(expected, name)), (way, name)


def test_the_filters_of_a_batch_are_planned_once(tiny, monkeypatch):
    model = stcli.open_artifact(tiny.model)
    calls = []
    batch = Planner.batch
    monkeypatch.setattr(
        type(model.planner), "batch", lambda self, given: calls.append(len(given)) or batch(self, given)
    )
    model(task_users(tiny, 12), filters_of(30), 10, probes=4)
    assert calls == [30]


# ---- rankings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_tasks", [1, 2])
def test_rankings_equal_a_loop(model, tiny, num_tasks):
    """1,000 requests of 500 candidates, 1 % of them unknown, some given twice: no wrong row, every miss counted."""
    rng = np.random.default_rng(11)
    count, k = (1000, 60) if num_tasks == 1 else (60, 700)
    ids = np.array([row["item_id"] for row in tiny.item_rows])
    known = set(ids.tolist())
    lists = rng.choice(ids, (count, 500))
    unknown = rng.random((count, 500)) < 0.01
    lists[unknown] = rng.choice(np.setdiff1d(np.arange(-50, 20_000), ids), int(unknown.sum()))
    users = {f"t{n}": rng.normal(size=(count, tiny.vectors.shape[1])).astype(np.float32) for n in range(num_tasks)}
    results = model(users if num_tasks > 1 else users["t0"], None, k, rank=lists.tolist())
    values = packed_values(tiny.embeddings, "float16").astype(np.float64)
    scores = np.max([vectors.astype(np.float64) @ values.T for vectors in users.values()], axis=0)
    place = {item: number for number, item in enumerate(ids.tolist())}
    assert results.missing.tolist() == unknown.sum(1).tolist()
    assert set(results.routes.tolist()) == {GIVEN}
    for query in range(count):
        wanted = known & set(lists[query].tolist())
        found, given = results.item_ids[query].tolist(), results.scores[query]
        assert len(found) == len(set(found)) == min(k, len(wanted))
        assert set(found) <= wanted
        true = scores[query, [place[item] for item in found]]
        assert np.abs(given - true).max() < 1e-4
        assert (np.diff(given) <= 0).all()
        left = [scores[query, place[item]] for item in wanted - set(found)]
        assert max(left, default=-np.inf) <= true.min() + 2e-4
    assert results.scored.tolist() == results.work.tolist() == [len(known & set(line.tolist())) for line in lists]


def test_rankings_obey_filters_and_lists(model, tiny):
    ids = [row["item_id"] for row in tiny.item_rows]
    lists = [ids[:300], ids[300:320], [], None, ids[:300]]
    filters = ["color = 'red'", "tags IN ('t01', 't02')", None, None, "color = 'no such colour'"]
    exclude = [ids[:100], None, None, ids, None]
    results = model(tiny.vectors[:5], filters, 500, rank=lists, exclude=exclude)
    red = {row["item_id"] for row in tiny.item_rows[100:300] if row["color"] == "red"}
    tagged = {row["item_id"] for row in tiny.item_rows[300:320] if {"t01", "t02"} & set(row["tags"])}
    assert [set(found.tolist()) for found in results.item_ids] == [red, tagged, set(), set(), set()]
    assert results.admitted.tolist() == [len(red), len(tagged), 0, 0, 0]
    assert results.missing.tolist() == [0] * 5


def test_rankings_obey_the_lists_of_a_run(model, tiny):
    ids = [row["item_id"] for row in tiny.item_rows]
    allowed, _ = words_of(model, pa.array(ids[:50]))
    options = SearchOptions(100, 132, allowed=allowed)
    rows, missing = model._given([ids[30:90]], 1)
    users = torch.from_numpy(tiny.vectors[:1])[:, None]
    requests = Requests(users, model._source(None, 1), candidates=rows, missing=missing)
    results = Scoring(model, options, ScoringOptions()).run(requests)
    assert set(results.item_ids[0].tolist()) == set(ids[30:50])


def test_nothing_to_answer(model, tiny):
    for way in ({}, {"rank": []}):
        results = model({"a": tiny.vectors[:0], "b": tiny.vectors[:0]}, [], 5, **way)
        assert len(results) == 0


def test_what_cannot_be_scored_is_said(tiny, tmp_path):
    model = stcli.open_artifact(tiny.model)
    with pytest.raises(InputError, match="as many user vectors, got a 3, b 2"):
        model({"a": tiny.vectors[:3], "b": tiny.vectors[:2]})
    with pytest.raises(InputError, match="no task was given"):
        model({})
    with pytest.raises(InputError, match="rank: 1 lists for 2 queries"):
        model(tiny.vectors[:2], rank=[[]])
    stcli.pack_model(tiny.index, tmp_path / "bare", embedding_dtype="none")
    bare = stcli.open_artifact(tmp_path / "bare")
    with pytest.raises(InputError, match="holds no embeddings to score candidates with"):
        bare({"a": tiny.vectors[:3]}, exact=True)
