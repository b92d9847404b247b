"""The explanation of a score: its parts add up to what `retrieve` gives."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import stcli
from stcli.cli.main import run
from stcli.errors import InputError
from stcli.pipeline.explain_score import explain_score
from tests.index_tools import fixed, vectors, write_items

ROWS = 60
FEED = "2 * task.like - 0.5 * task.buy * query.hour + if(item.is_new, 1, 0) + 0.25 * ann_score"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("explain")
    columns = {"embedding": fixed(vectors(ROWS)), "is_new": pa.array([i % 3 == 0 for i in range(ROWS)])}
    stcli.build_index(
        write_items(folder / "items.parquet", columns), folder / "items.index", keep_columns=["is_new"], clusters=4
    )
    stcli.pack_model(folder / "items.index", folder / "m.safetensors", value_models=[f"feed={FEED}"])
    table = {
        "query_id": pa.array([7, 8, 9]),
        "user_embedding__like": fixed(vectors(3, seed=1)),
        "user_embedding__buy": fixed(vectors(3, seed=2)),
        "hour": pa.array([3, 12, None]),
    }
    pq.write_table(pa.table(table), folder / "q.parquet")
    pq.write_table(pa.table({"query_id": ["a"], "embedding": fixed(vectors(1, seed=3))}), folder / "one.parquet")
    return folder


def explained(folder, query, item, **options):
    return explain_score(folder / "m.safetensors", folder / "q.parquet", query, item, **options)


def test_parts_add_up_to_the_score_that_retrieve_gives(folder, tmp_path):
    stcli.retrieve(
        folder / "m.safetensors", folder / "q.parquet", tmp_path / "r", k=ROWS, exact=True, value_model="feed"
    )
    results = pq.read_table(tmp_path / "r" / "part-00000.parquet").to_pylist()
    for line in results[:2]:
        for place in (0, 5, ROWS - 1):
            told = explained(folder, str(line["query_id"]), str(line["item_id"][place]), value_model="feed")
            assert told["score"] == line["score"][place]
            assert told["tasks"] == {"like": line["task_like"][place], "buy": line["task_buy"][place]}
            assert len(told["parts"]) == 4
            np.testing.assert_allclose(
                sum(part["value"] for part in told["parts"]), told["score"], rtol=1e-5, atol=1e-5
            )
            assert told["reads"]["ann_score"] == max(told["tasks"].values())
            assert told["reads"]["item.is_new"] == (line["item_id"][place] % 3 == 0)


def test_a_null_is_told_as_none(folder):
    told = explained(folder, "9", "1", value_model="feed")
    assert told["reads"]["query.hour"] is None
    assert told["parts"][1]["value"] is None
    assert told["score"] == float(np.finfo(np.float32).min)


def test_without_a_value_model_there_are_the_tasks(folder):
    told = explained(folder, "7", "1")
    assert told["score"] == max(told["tasks"].values())
    assert "parts" not in told
    told = explain_score(folder / "m.safetensors", folder / "one.parquet", "a", "5")
    truth = float(vectors(1, seed=3)[0].astype(np.float64) @ vectors(ROWS)[5].astype(np.float64))
    np.testing.assert_allclose(told["score"], truth, rtol=2e-3)


@pytest.mark.parametrize(
    ("query", "item", "options", "words"),
    [
        ("70", "1", {}, "no row has the id '70'"),
        ("7", "999", {}, "--item '999': is no item"),
        ("7", "x", {}, "--item 'x': is no item"),
        ("7", "9" * 50, {}, "is no item"),
        ("7", "1", {"value_model": "fed"}, "did you mean 'feed'"),
        ("7", "1", {"id_column": "id"}, "no column 'id'"),
    ],
)
def test_what_is_not_there_is_named(folder, query, item, options, words):
    with pytest.raises(InputError, match=words):
        explained(folder, query, item, **options)


def test_the_command(folder, capsys):
    words = [
        "explain",
        str(folder / "m.safetensors"),
        "--queries",
        str(folder / "q.parquet"),
        "--query",
        "7",
        "--item",
        "1",
    ]
    assert run([*words, "--value-model", "feed", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["parts"]) == 4
    assert run([*words, "--value-model", "feed"]) == 0
    assert "0.25 * ann_score" in capsys.readouterr().out
    assert run(words[:4]) == 2
    assert "--query and --item are missing" in capsys.readouterr().err
    assert run([*words, "--filter", "is_new"]) == 2
    assert "give one of the two" in capsys.readouterr().err
