"""OverArch, value models and rules in a retrieval, against loops over everything that is eligible."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
import torch

import stcli
from stcli.errors import FormulaError, InputError
from stcli.model import scoring as scoring_module
from stcli.model.overarch_config import parse_overarch
from stcli.ops.rescore import rescore
from stcli.storage.weights import write_weights
from tests.conftest import DIM, lists
from tests.pipeline.retrieve_cases import contents, read, write_queries

COUNT, POOL = 24, 150
MOL = {"kind": "mol", "tasks": ["like", "buy"], "dim": DIM, "query_components": 2, "item_components": 2,
       "component_dim": 8, "query_hidden": 7, "gate_hidden": 9, "tau": 0.2}  # fmt: skip
FEED = "task.like + 2 * task.buy - 0.01 * item.price + if(query.cheap, -0.05 * item.price, 0)"
MODELS = [f"feed={FEED}", "cheap=0 - item.price", "near=ann_score"]
ELIGIBLE = {
    None: lambda row: True,
    "color = 'red'": lambda row: row["color"] == "red",
    "NOT tags = 't02' AND price < 60": lambda row: "t02" not in row["tags"] and row["price"] < 60,
    "tags = 't57'": lambda row: "t57" in row["tags"],
}
FILTERS = [list(ELIGIBLE)[number % 4] for number in range(COUNT)]


@pytest.fixture(scope="module")
def artifacts(tiny, tmp_path_factory):
    """The corpus with kept columns: without and with an OverArch, both with value models."""
    folder = tmp_path_factory.mktemp("scored")
    features = ["color", "tags", "price"]
    stcli.build_index(
        tiny.items, folder / "index", feature_columns=features, keep_columns=["price", "color", "year"], clusters=32
    )
    generator = torch.Generator().manual_seed(1)
    shapes = parse_overarch(MOL, "test").shapes()
    weights = {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    write_weights(folder / "overarch.json", MOL, weights)
    stcli.pack_model(folder / "index", folder / "dot", value_models=MODELS)
    stcli.pack_model(folder / "index", folder / "mol", value_models=MODELS, overarch=str(folder / "overarch.json"))
    return folder / "dot", folder / "mol"


@pytest.fixture(scope="module")
def users(tiny):
    rng = np.random.default_rng(23)
    near = tiny.vectors[:COUNT]
    return {task: (near + 0.6 * rng.normal(size=near.shape)).astype(np.float32) for task in ("like", "buy")}


class Oracle:
    """Scores of every item for every request, and the choice among them, one at a time.

    Task scores are the model's own over all rows (OverArch and dot products have tests of their own); what is done with
    them is written here in float64 and loops.
    """

    def __init__(self, model, tiny, users, learned: bool) -> None:
        self.model = model
        self.rows = [{row["item_id"]: row for row in tiny.item_rows}[item] for item in model.ids.ids.to_pylist()]
        every = torch.arange(model.num_items).expand(COUNT, -1).contiguous()
        vectors = {task: torch.from_numpy(array) for task, array in users.items()}
        dots = {task: rescore(vector, model.embeddings, every).numpy() for task, vector in vectors.items()}
        self.dots = dots
        self.tasks = {t: model.overarch(v, every, t).numpy() for t, v in vectors.items()} if learned else dots
        self.ann = np.max(list(dots.values()), axis=0)

    def best(
        self, query: int, k: int, value=None, pool: int | None = None, caps=(), given=None
    ) -> list[tuple[int, float]]:
        """The k best (item id, score): of the `pool` best of each task, or of the rows given."""
        fits = ELIGIBLE[FILTERS[query]]
        rows = [row for row, item in enumerate(self.rows) if fits(item) and (given is None or item["item_id"] in given)]
        if pool is not None:
            found = self.found(query, pool)
            rows = [row for row in rows if found[row] > -np.inf]
        scores = [self.value(query, row, value) for row in rows]
        order = sorted(
            zip([-score for score in scores], [self.rows[row]["item_id"] for row in rows], rows, strict=True)
        )
        taken, groups = [], {}
        for negative, item, row in order:
            keys = [(column, self.rows[row][column]) for column, _ in caps if self.rows[row][column] is not None]
            if any(groups.get(key, 0) >= dict(caps)[key[0]] for key in keys):
                continue
            for key in keys:
                groups[key] = groups.get(key, 0) + 1
            taken.append((item, -negative))
            if len(taken) == k:
                break
        return taken

    def found(self, query: int, pool: int) -> np.ndarray:
        """Best search score of each row that is among the `pool` best eligible ones of some task; -inf for others."""
        best = np.full(len(self.rows), -np.inf, np.float32)
        rows = [row for row, item in enumerate(self.rows) if ELIGIBLE[FILTERS[query]](item)]
        for dots in self.dots.values():
            order = sorted((-dots[query, row], self.rows[row]["item_id"], row) for row in rows)
            for _, _, row in order[:pool]:
                best[row] = max(best[row], dots[query, row])
        return best

    def value(self, query: int, row: int, value) -> float:
        tasks = {task: float(scores[query, row]) for task, scores in self.tasks.items()}
        return (
            max(tasks.values()) if value is None else value(tasks, self.rows[row], query, float(self.ann[query, row]))
        )


def check(results, oracle: Oracle, k: int, tolerance: float = 0.0, **how) -> None:
    for query in range(COUNT):
        expected = oracle.best(query, k, **how)
        found = list(zip(results.item_ids[query].tolist(), results.scores[query].tolist(), strict=True))
        if tolerance == 0:
            assert found == expected, query
            continue
        assert len(found) == len(expected), query
        scores = np.array([score for _, score in expected])
        np.testing.assert_allclose([score for _, score in found], scores, rtol=tolerance, atol=tolerance)


def feed(tasks, item, query, ann):
    return tasks["like"] + 2 * tasks["buy"] - 0.01 * item["price"] + (-0.05 * item["price"] if query % 2 else 0)


CHEAP = np.arange(COUNT) % 2 == 1


@pytest.mark.parametrize("filters", [True, False])
def test_an_overarch_scores_the_pool_of_each_task(artifacts, tiny, users, filters, monkeypatch):
    model = stcli.open_artifact(artifacts[1])
    oracle = Oracle(model, tiny, users, learned=True)
    how = {"exact": True, "scoring": stcli.scoring_options(model, tasks=tuple(users), pool=POOL)}
    results = model(users, FILTERS, 20, **how)
    check(results, oracle, 20, pool=POOL)
    assert results.tasks == ("like", "buy")
    place = {row["item_id"]: number for number, row in enumerate(oracle.rows)}
    for query in range(COUNT):
        rows = [place[item] for item in results.item_ids[query].tolist()]
        assert results.ann_scores[query, : len(rows)].tolist() == oracle.found(query, POOL)[rows].tolist()
        for task in users:
            assert results.task_scores[task][query].tolist() == oracle.tasks[task][query, rows].tolist()
    monkeypatch.setattr(scoring_module, "PAIRS", 2000)
    monkeypatch.setattr(scoring_module, "SLOTS", 1500)
    again = model(users, FILTERS, 20, **how)
    for name in ("rows", "score_matrix", "task_matrix", "ann_scores", "scored"):
        assert torch.equal(getattr(again, name), getattr(results, name)), name


def test_one_vector_is_scored_for_every_task_of_the_overarch(artifacts, tiny, users):
    model = stcli.open_artifact(artifacts[1])
    both = dict.fromkeys(("like", "buy"), users["like"])
    results = model(users["like"], FILTERS, 20, exact=True)
    assert results.tasks == ("like", "buy")
    check(results, Oracle(model, tiny, both, learned=True), 20, pool=scoring_module.default_pool(20))
    plain = model(users["like"], FILTERS, 20, exact=True, scoring=stcli.scoring_options(model, overarch=False))
    assert plain.task_matrix is None
    assert torch.equal(plain.rows, stcli.open_artifact(artifacts[0])(users["like"], FILTERS, 20, exact=True).rows)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("feed", feed),
        ("cheap", lambda tasks, item, query, ann: -np.float32(item["price"])),
        ("near", lambda tasks, item, query, ann: ann),
    ],
)
def test_a_value_model_joins_the_tasks(artifacts, tiny, users, learned, name, value):
    model = stcli.open_artifact(artifacts[learned])
    options = stcli.scoring_options(model, tasks=("like", "buy"), value_models=[name], pool=POOL)
    results = model(users, FILTERS, 20, exact=True, scoring=options, columns={"cheap": CHEAP})
    oracle = Oracle(model, tiny, users, learned)
    # feed: six operations on numbers below 100, each rounded once to float32
    check(results, oracle, 20, value=value, pool=POOL, tolerance=6 * 100 * 2**-24 if name == "feed" else 0)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize(
    "caps", [[("color", 3)], [("year", 1)], [("color", 9), ("year", 2)], [("year", 1), ("color", 1)]], ids=str
)
def test_rules_hold_and_leave_no_request_short_without_need(artifacts, tiny, users, learned, caps):
    """With dot products equal to the greedy choice among all eligible items, however deep it must look."""
    model = stcli.open_artifact(artifacts[learned])
    oracle = Oracle(model, tiny, users, learned)
    rules = {"max_per": [f"{column}={limit}" for column, limit in caps]}
    options = stcli.scoring_options(model, tasks=tuple(users), pool=40, **rules)
    results = model(users, FILTERS, 15, exact=True, scoring=options, candidates=40)
    if not learned:
        check(results, oracle, 15, caps=caps)
        return
    by_id = {row["item_id"]: row for row in oracle.rows}
    for query in range(COUNT):
        items = [by_id[item] for item in results.item_ids[query].tolist()]
        groups = [(column, item[column]) for item in items for column, _ in caps if item[column] is not None]
        assert all(groups.count(key) <= dict(caps)[key[0]] for key in groups)
        assert all(ELIGIBLE[FILTERS[query]](item) for item in items)
        if len(items) < 15:  # then every other eligible item is in a group that is full
            full = {key for key in groups if groups.count(key) == dict(caps)[key[0]]}
            for item in by_id.values():
                if ELIGIBLE[FILTERS[query]](item) and item["item_id"] not in results.item_ids[query]:
                    assert any((column, item[column]) in full for column, _ in caps)


@pytest.mark.parametrize("learned", [False, True])
def test_given_candidates_are_scored_the_same_way(artifacts, tiny, users, learned):
    model = stcli.open_artifact(artifacts[learned])
    rng = np.random.default_rng(5)
    ids = [row["item_id"] for row in tiny.item_rows]
    given = [rng.choice(ids, 200, replace=False).tolist() for _ in range(COUNT)]
    oracle = Oracle(model, tiny, users, learned)
    options = stcli.scoring_options(model, tasks=tuple(users), distinct_by=["year"])
    results = model(users, FILTERS, 30, rank=given, scoring=options)
    near = stcli.scoring_options(model, tasks=tuple(users), value_models=["near"])
    nearest = model(users, FILTERS, 30, rank=given, scoring=near)
    for query in range(COUNT):
        for found, how in ((results, {"caps": [("year", 1)]}), (nearest, {"value": lambda t, i, q, ann: ann})):
            expected = oracle.best(query, 30, given=set(given[query]), **how)
            assert list(zip(found.item_ids[query].tolist(), found.scores[query].tolist(), strict=True)) == expected


def test_each_request_may_have_its_own_value_model(artifacts, tiny, users, tmp_path):
    names = ["cheap", None, "near", "feed"] * (COUNT // 4)
    columns = {f"user_embedding__{task}": lists(vectors) for task, vectors in users.items()}
    path = write_queries(
        tmp_path / "q.parquet", users["like"], **columns, filter=pa.array(FILTERS), vm=pa.array(names), cheap=CHEAP
    )
    options = {"embedding_column": "none", "filter_column": "filter", "k": 12, "exact": True, "rescore": POOL}
    for name in ("cheap", "near", "feed", None):
        stcli.retrieve(artifacts[1], path, tmp_path / str(name), **options, value_model=name)
    stcli.retrieve(artifacts[1], path, tmp_path / "own", **options, value_model_column="vm")
    stcli.retrieve(artifacts[1], path, tmp_path / "or", **options, value_model_column="vm", value_model="near")
    own, fallback = read(tmp_path / "own").to_pylist(), read(tmp_path / "or").to_pylist()
    whole = {name: read(tmp_path / str(name)).to_pylist() for name in (*names[:4],)}
    assert own == [whole[name][query] for query, name in enumerate(names)]
    assert fallback == [whole[name or "near"][query] for query, name in enumerate(names)]
    assert own[0].keys() == {
        "query_id", "item_id", "score", "task_like", "task_buy", "ann_score", "status"
    }  # fmt: skip


@pytest.mark.parametrize("way", [{"batch_size": 5}, {"threads": 1}, {"backend": "torch"}], ids=str)
def test_rows_do_not_depend_on(artifacts, users, tmp_path, way):
    path = write_queries(tmp_path / "q.parquet", users["like"], filter=pa.array(FILTERS), cheap=CHEAP)
    options = {"filter_column": "filter", "k": 12, "probes": 4, "value_model": "feed", "max_per": ["color=4"]}
    stcli.retrieve(artifacts[1], path, tmp_path / "one", **options)
    stcli.retrieve(artifacts[1], path, tmp_path / "two", **options, **way)
    one, two = read(tmp_path / "one"), read(tmp_path / "two")
    if "backend" not in way:
        assert one.equals(two)
        assert contents(tmp_path / "one").keys() == contents(tmp_path / "two").keys()
    else:  # learned scores may differ between forms in the last bits
        for name in ("score", "task_like"):
            np.testing.assert_allclose(
                np.concatenate(one[name].to_pylist()), np.concatenate(two[name].to_pylist()), 1e-4
            )


def test_calibration_is_for_the_pool(artifacts, users, tmp_path):
    path = write_queries(tmp_path / "q.parquet", users["like"])
    summary = stcli.retrieve(artifacts[1], path, tmp_path / "out", k=10, rescore=300)
    assert summary["calibration"]["k"] == 300
    summary = stcli.retrieve(artifacts[1], path, tmp_path / "dot", k=10, overarch="off")
    assert summary["calibration"]["k"] == 10
    assert read(tmp_path / "dot").column_names == ["query_id", "item_id", "score", "status"]


@pytest.mark.parametrize(
    ("artifact", "options", "message"),
    [
        (0, {"value_model": "fed"}, "no such value model; did you mean 'feed'"),
        (0, {"value_model": "feed"}, "there is no task"),
        (1, {"value_model": "feed"}, "no column 'cheap'"),
        (1, {"value_model_column": "nothing"}, "no column 'nothing'"),
        (1, {"value_model_column": "query_id"}, "expected .*value model"),
        (1, {"max_per": ["color"]}, "expected COLUMN=N"),
        (1, {"max_per": ["tags=2"]}, "keeps no such column"),
        (1, {"distinct_by": ["price"]}, "groups need"),
        (1, {"task_embeddings": "like=embedding,by=embedding"}, "OverArch has no such task"),
        (1, {"overarch": "maybe"}, "--overarch 'maybe': expected one of on, off"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_written(artifacts, users, tmp_path, artifact, options, message):
    path = write_queries(tmp_path / "q.parquet", users["like"])
    with pytest.raises((InputError, FormulaError), match=message):
        stcli.retrieve(artifacts[artifact], path, tmp_path / "out", **options)
    assert [file.name for file in tmp_path.iterdir()] == ["q.parquet"]


def test_unknown_value_models_of_requests_are_bad_rows(artifacts, users, tmp_path):
    columns = {"vm": pa.array(["near", "far", None] * 8), "cheap": CHEAP}
    path = write_queries(tmp_path / "q.parquet", users["like"], **columns)
    with pytest.raises(InputError, match=r"row 1.*no value model 'far'"):
        stcli.retrieve(artifacts[1], path, tmp_path / "out", value_model_column="vm")
    stcli.retrieve(
        artifacts[1], path, tmp_path / "out", value_model_column="vm", bad_rows="quarantine", max_bad_fraction=1
    )
    assert [row["status"] == "rejected" for row in read(tmp_path / "out").to_pylist()] == [False, True, False] * 8
    assert json.loads((tmp_path / "out" / "_manifest.json").read_text())["counts"]["rejected"] == 8
