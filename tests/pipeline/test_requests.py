"""`retrieve` with several tasks, given candidates and a k for each request."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import stcli
from stcli.errors import InputError
from tests.conftest import lists
from tests.pipeline.retrieve_cases import contents, read, write_queries

COUNT = 60


@pytest.fixture(scope="module")
def requests(tiny, tmp_path_factory):
    """A table of requests with two tasks, filters, candidates and a k for each."""
    folder = tmp_path_factory.mktemp("requests")
    rng = np.random.default_rng(17)
    ids = [row["item_id"] for row in tiny.item_rows]
    users = [(tiny.vectors[:COUNT] + 0.5 * rng.normal(size=(COUNT, 16))).astype(np.float32) for _ in ("like", "buy")]
    candidates = [rng.choice(ids, int(size)).tolist() for size in rng.integers(0, 60, COUNT)]
    candidates[3], candidates[4] = None, [*ids[:20], -1, -2, ids[0]]
    columns = {
        "filter": pa.array(tiny.filters[:COUNT], pa.string()),
        "user_embedding__like": lists(users[0]),
        "user_embedding__buy": lists(users[1]),
        "candidates": pa.array(candidates, pa.list_(pa.int64())),
        "top": pa.array([None, 1, 5, 12, 20, 3] * (COUNT // 6), pa.int32()),
    }
    path = write_queries(folder / "requests.parquet", tiny.vectors[:COUNT], **columns)
    return path, users, candidates


def test_one_row_a_request_with_a_score_for_each_task(tiny, requests, tmp_path):
    path, users, _ = requests
    tasks = "like=user_embedding__like, buy=user_embedding__buy"
    options = {"task_embeddings": tasks, "filter_column": "filter", "k": 15, "exact": True}
    summary = stcli.retrieve(tiny.model, path, tmp_path / "out", columns=["top"], part_rows=25, **options)
    table = read(tmp_path / "out")
    assert table.column_names == [
        "query_id", "top", "item_id", "score", "task_like", "task_buy", "ann_score", "status"
    ]  # fmt: skip
    model = stcli.open_artifact(tiny.model)
    results = model({"like": users[0], "buy": users[1]}, tiny.filters[:COUNT], 15, exact=True)
    assert table["item_id"].to_pylist() == [items.tolist() for items in results.item_ids]
    for name, values in {"score": results.scores, **{f"task_{t}": s for t, s in results.task_scores.items()}}.items():
        assert table[name].to_pylist() == [line.tolist() for line in values], name
        assert table.schema.field(name).type == pa.list_(pa.float32())
    assert table["ann_score"].to_pylist() == table["score"].to_pylist()
    assert summary["counts"]["results"] == int(results.counts.sum())
    assert summary["counts"]["items_scored"] == int(results.work.sum())


def test_tasks_are_found_by_the_names_of_columns(tiny, requests, tmp_path):
    """Where the table has no column --embedding-column; where it has one, that is the user vector."""
    path, _, _ = requests
    given = "like=user_embedding__like,buy=user_embedding__buy"
    stcli.retrieve(tiny.model, path, tmp_path / "given", task_embeddings=given, k=5)
    stcli.retrieve(tiny.model, path, tmp_path / "found", embedding_column="no_such", k=5)
    assert read(tmp_path / "found").equals(read(tmp_path / "given"))
    stcli.retrieve(tiny.model, path, tmp_path / "plain", k=5)
    assert "task_like" not in read(tmp_path / "plain").column_names


@pytest.mark.parametrize("way", [{"batch_size": 7}, {"part_rows": 11}, {"threads": 1}, {"backend": "torch"}], ids=str)
@pytest.mark.parametrize("kind", ["tasks", "intersection", "candidates"])
def test_rows_do_not_depend_on(tiny, requests, tmp_path, kind, way):
    path, _, _ = requests
    options = {
        "tasks": {"embedding_column": "none"},
        "intersection": {"embedding_column": "none", "combine": "intersection", "probes": 3},
        "candidates": {"candidates_column": "candidates"},
    }[kind] | {"k": 9, "filter_column": "filter", "explain": True}
    stcli.retrieve(tiny.model, path, tmp_path / "one", **options)
    stcli.retrieve(tiny.model, path, tmp_path / "two", **options, **way)
    assert read(tmp_path / "one").equals(read(tmp_path / "two"))


def test_candidates_are_ranked(tiny, requests, tmp_path):
    path, _, candidates = requests
    options = {"candidates_column": "candidates", "filter_column": "filter", "k": 30}
    summary = stcli.retrieve(tiny.model, path, tmp_path / "out", explain=True, **options)
    table = read(tmp_path / "out")
    assert table.column_names == [
        "query_id", "item_id", "score", "status", "missing", "route", "probes", "estimated", "admitted", "items_scored"
    ]  # fmt: skip
    results = stcli.open_artifact(tiny.model)(tiny.vectors[:COUNT], tiny.filters[:COUNT], 30, rank=candidates)
    assert table["item_id"].to_pylist() == [items.tolist() for items in results.item_ids]
    assert table["score"].to_pylist() == [scores.tolist() for scores in results.scores]
    assert table["missing"].to_pylist() == [2 if query == 4 else 0 for query in range(COUNT)]
    assert set(table["route"].to_pylist()) == {"given"}
    for row, given in zip(table.to_pylist(), candidates, strict=True):
        wanted = min(30, len(set(given or [])))
        assert row["status"] == ("short" if len(row["item_id"]) < wanted else "ok")
    assert summary["counts"]["missing"] == 2
    assert "2 candidates are no items of the index" in summary["warnings"]
    assert summary["calibration"] is None


def test_tasks_are_audited_as_queries_of_their_own(tiny, requests, tmp_path):
    options = {"embedding_column": "none", "k": 5, "exact": True, "audit": 20}
    audited = stcli.retrieve(tiny.model, requests[0], tmp_path / "out", **options)["audit"]
    assert audited["all queries"]["queries"] == 40
    assert audited["all queries"]["recall"] == 1


@pytest.mark.parametrize("kind", [{}, {"candidates_column": "candidates"}, {"embedding_column": "none"}], ids=str)
def test_each_request_has_its_own_k(tiny, requests, tmp_path, kind):
    path, _, _ = requests
    options = {"k": 20, "filter_column": "filter", **kind}
    stcli.retrieve(tiny.model, path, tmp_path / "all", **options)
    stcli.retrieve(tiny.model, path, tmp_path / "own", k_column="top", **options)
    whole, own = read(tmp_path / "all").to_pylist(), read(tmp_path / "own").to_pylist()
    for row, (full, cut) in enumerate(zip(whole, own, strict=True)):
        k = [20, 1, 5, 12, 20, 3][row % 6]
        for name in ("item_id", "score"):
            assert cut[name] == full[name][:k]
        if not kind:
            assert cut["status"] == ("ok" if len(cut["item_id"]) == k else "short")


def test_bad_rows_are_named(tiny, requests, tmp_path):
    users = tiny.vectors[:6].tolist()
    broken = [users[0], None, users[2][:4], *users[3:]]
    columns = {
        "user_embedding__like": pa.array(users, pa.list_(pa.float32())),
        "user_embedding__buy": pa.array(broken, pa.list_(pa.float32())),
        "top": pa.array([5, 5, 5, 0, 11, None]),
    }
    path = write_queries(tmp_path / "q.parquet", tiny.vectors[:6], **columns)
    options = {"embedding_column": "none", "k_column": "top", "k": 10}
    with pytest.raises(InputError, match=r"row 1.*user_embedding__buy. is null"):
        stcli.retrieve(tiny.model, path, tmp_path / "out", **options)
    stcli.retrieve(
        tiny.model, path, tmp_path / "out", **options, bad_rows="quarantine", max_bad_fraction=1, explode=True
    )
    table = read(tmp_path / "out").to_pylist()
    rejected = [row for row in table if row["status"] == "rejected"]
    assert [(row["query_id"], row["item_id"], row["task_buy"]) for row in rejected] == [
        (number, None, None) for number in (1, 2, 3, 4)
    ]
    reasons = {row["row"]: row["reason"] for row in rejected_rows(tmp_path / "out")}
    assert reasons == {
        1: "column 'user_embedding__buy' is null",
        2: "column 'user_embedding__buy' has length 4 where 16 was expected",
        3: "column 'top' is 0, outside 1 to --k 10",
        4: "column 'top' is 11, outside 1 to --k 10",
    }


def rejected_rows(output):
    return pq.read_table(output.with_name(output.name + ".rejected.parquet")).to_pylist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task_embeddings": "like"}, "--task-embeddings 'like': expected task=column pairs"),
        ({"task_embeddings": "like=a,like=b"}, "expected task=column pairs"),
        ({"task_embeddings": "like=nothing"}, r"no column 'nothing' \(--task-embeddings\)"),
        ({"candidates_column": "top"}, "--candidates-column expects a list of item ids"),
        ({"k_column": "filter"}, "--k-column expects whole numbers"),
        ({"candidates_column": "candidates", "audit": 5}, "there is no recall to --audit"),
        ({"combine": "both"}, "--combine 'both': expected one of union, intersection"),
        ({"embedding_column": "none", "columns": ["top", "top"]}, "two columns 'top'"),
    ],
)
def test_what_does_not_fit_is_said(tiny, requests, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        stcli.retrieve(tiny.model, requests[0], tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_the_same_command_twice_and_resumed(tiny, requests, tmp_path):
    options = {"embedding_column": "none", "k": 5, "part_rows": 20}
    for name in ("one", "two"):
        stcli.retrieve(tiny.model, requests[0], tmp_path / name, **options)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    with pytest.raises(InputError, match="combine changed"):
        stcli.retrieve(tiny.model, requests[0], tmp_path / "two", **options, combine="intersection", resume=True)
