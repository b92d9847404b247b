"""`retrieve` with rows, options and files that cannot be used: one sentence, and nothing is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import stcli
from stcli.errors import ExistsError, FormatError, InputError
from tests.pipeline.retrieve_cases import FILTERED, bad_queries, contents, kept, read, write_queries  # noqa: F401


def test_bad_rows_are_set_aside_with_their_reason(tiny, tmp_path):
    queries = bad_queries(tmp_path / "q.parquet", tiny)
    options = {"bad_rows": "quarantine", "max_bad_fraction": 0.2, "part_rows": 4, "columns": ["filter"], **FILTERED}
    summary = stcli.retrieve(tiny.model, queries, tmp_path / "out", explain=True, **options)
    assert (summary["counts"]["queries"], summary["counts"]["rejected"]) == (40, 6)
    assert summary["outputs"]["rejected"] == str(tmp_path / "out.rejected.parquet")
    rejected = pq.read_table(tmp_path / "out.rejected.parquet").to_pylist()
    assert [row["row"] for row in rejected] == [1, 2, 3, 4, 5, 6]
    assert [row["id"] for row in rejected] == [f"q{number}" for number in range(1, 7)]
    words = ["null", "length 5 where 16", "NaN", "infinite", "^", "did you mean 'color'"]
    assert all(word in row["reason"] for word, row in zip(words, rejected, strict=True))
    table = read(tmp_path / "out").to_pylist()
    assert [row["status"] for row in table[:9]] == ["ok", *["rejected"] * 6, "ok", "ok"]
    assert all(row["item_id"] == row["score"] == [] for row in table[1:7])
    assert {row["route"] for row in table[1:7]} == {""}
    good = [0, *range(7, 40)]
    alone = pq.read_table(queries).take(pa.array(good))
    pq.write_table(alone, tmp_path / "good.parquet")
    stcli.retrieve(
        tiny.model, tmp_path / "good.parquet", tmp_path / "alone", columns=["filter"], explain=True, **FILTERED
    )
    assert read(tmp_path / "alone").to_pylist() == [table[row] for row in good]


@pytest.mark.parametrize(("bad", "warned"), [(3, False), (4, True)])
def test_a_run_that_rejects_most_queries_says_so(tiny, tmp_path, bad, warned):
    vectors = tiny.vectors[:6].copy()
    vectors[:bad] = np.nan
    queries = write_queries(tmp_path / "q.parquet", vectors)
    told = stcli.retrieve(tiny.model, queries, tmp_path / "out", bad_rows="quarantine", max_bad_fraction=1, k=3)
    text = "4 of 6 queries were rejected; the list beside the results says why"
    assert told["warnings"] == ([text] if warned else [])


def test_a_table_is_no_artifact(tiny, tmp_path):
    with pytest.raises(FormatError, match=r"items\.parquet: is a Parquet file; expected a \.safetensors file made by"):
        stcli.retrieve(tiny.items, tiny.queries, tmp_path / "out", k=3)


def test_a_batch_of_bad_rows_only(tiny, tmp_path):
    vectors = tiny.vectors[:6].copy()
    vectors[2:4] = np.nan
    queries = write_queries(tmp_path / "q.parquet", vectors)
    for explode in (False, True):
        stcli.retrieve(tiny.model, queries, tmp_path / f"out {explode}", bad_rows="quarantine", max_bad_fraction=0.5,
                       part_rows=2, k=3, explode=explode)  # fmt: skip
    assert read(tmp_path / "out False")["status"].to_pylist() == ["ok", "ok", "rejected", "rejected", "ok", "ok"]
    exploded = read(tmp_path / "out True")
    assert exploded["query_id"].to_pylist() == [0, 0, 0, 1, 1, 1, 2, 3, 4, 4, 4, 5, 5, 5]
    empty = exploded.filter(pc.equal(exploded["status"], "rejected"))
    assert empty.select(["query_id", "item_id", "score"]).to_pylist() == [
        {"query_id": row, "item_id": None, "score": None} for row in (2, 3)
    ]


def test_a_query_column_named_as_one_of_the_output(tiny, tmp_path):
    queries = write_queries(tmp_path / "q.parquet", tiny.vectors, route=pa.array(["r"] * len(tiny.vectors)))
    stcli.retrieve(tiny.model, queries, tmp_path / "out", k=3, columns=["route"])
    with pytest.raises(InputError, match="two columns 'route'; leave it out of --columns"):
        stcli.retrieve(tiny.model, queries, tmp_path / "again", k=3, columns=["route"], explain=True)


def test_the_first_bad_row_stops_the_run(tiny, tmp_path):
    queries = bad_queries(tmp_path / "q.parquet", tiny)
    message = r"q.parquet: row 1 \(id 'q1'\): column 'embedding' is null.*--bad-rows quarantine"
    with pytest.raises(InputError, match=message):
        stcli.retrieve(tiny.model, queries, tmp_path / "out", k=3)
    with pytest.raises(InputError, match=r"(?s)q.parquet: row 5.*filter.*\^.*--bad-rows quarantine"):
        stcli.retrieve(tiny.model, queries, tmp_path / "out", **FILTERED)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["q.parquet"]


def test_too_many_bad_rows(tiny, tmp_path):
    queries = bad_queries(tmp_path / "q.parquet", tiny)
    with pytest.raises(InputError, match=r"(?s)5 bad rows so far.*--max-bad-fraction 0.1 of 40 rows"):
        stcli.retrieve(tiny.model, queries, tmp_path / "out", bad_rows="quarantine", max_bad_fraction=0.1, **FILTERED)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["q.parquet"]


def test_a_run_without_bad_rows_removes_an_old_list(tiny, tmp_path):
    options = {"bad_rows": "quarantine", "max_bad_fraction": 0.2, **FILTERED}
    stcli.retrieve(tiny.model, bad_queries(tmp_path / "q.parquet", tiny), tmp_path / "out", **options)
    assert (tmp_path / "out.rejected.parquet").exists()
    stcli.retrieve(tiny.model, tiny.queries, tmp_path / "out", overwrite=True, **options)
    assert not (tmp_path / "out.rejected.parquet").exists()
    assert read(tmp_path / "out").num_rows == 120


# ---- inputs that cannot be used ------------------------------------------------------------------


def damaged(tmp_path: Path, model: Path, how: str) -> Path:
    raw = bytearray(model.read_bytes())
    if how == "truncated":
        raw = raw[: len(raw) * 2 // 3]
    elif how == "header":
        raw = raw[:20]
    elif how == "edited":
        place = raw.index(b'\\"metric\\":\\"inner_product')
        raw[place + 13 : place + 16] = b"xnn"
    elif how == "foreign":
        raw = bytearray(b"not safetensors at all " * 10)
    elif how == "empty":
        raw = bytearray()
    (tmp_path / "damaged").write_bytes(raw)
    return tmp_path / "damaged"


@pytest.mark.parametrize("how", ["truncated", "header", "edited", "foreign", "empty"])
def test_a_damaged_artifact(tiny, tmp_path, how):
    with pytest.raises(FormatError, match=r"damaged: "):
        stcli.retrieve(damaged(tmp_path, tiny.model, how), tiny.queries, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"id_column": "quer_id"}, "no column 'quer_id' .--id-column.; did you mean 'query_id'.*embedding, filter"),
        ({"embedding_column": "emb"}, "no column 'emb' .--embedding-column.*query_id, embedding, filter"),
        ({"embedding_column": "filter"}, "'filter' is string; an embedding must be a list of float"),
        ({"id_column": "embedding"}, "ids must be an integer or a string column"),
        ({"filter_column": "query"}, "no column 'query' .--filter-column"),
        ({"filter_column": "embedding"}, "--filter-column expects filter texts"),
        ({"columns": ["x"]}, "no column 'x' .--columns"),
        ({"columns": ["query_id"]}, "two columns 'query_id'"),
        ({"columns": ["filter", "filter"]}, "two columns 'filter'"),
        ({"columns": ["filter"], "item_columns": ["filter"]}, "keeps no column 'filter'"),
        ({"item_columns": ["color"]}, "keeps no column 'color'.*--keep-columns"),
        ({"exclude_column": "filter"}, "'filter' is string; --exclude-column expects a list of item ids"),
        ({"exclude_column": "embedding"}, "list.*float.*; --exclude-column expects item ids, integers"),
        ({"candidates_column": "embedding"}, "list.*float.*; --candidates-column expects item ids, integers"),
        ({"filter": "colour = $filter"}, "did you mean 'color'"),
        ({"filter": "color = $nothing"}, "no column 'nothing' .*\\$nothing in --filter"),
        ({"k": 0}, "--k 0: expected a whole number of at least 1"),
        ({"k": 100, "rescore": 50}, "--rescore 50"),
        ({"probes": 0}, "--probes 0"),
        ({"probes": 3, "exact": True}, "--exact looks at every cluster"),
        ({"target_recall": 0.0}, "--target-recall 0.0"),
        ({"target_recall": 1.5}, "--target-recall 1.5"),
        ({"limit": 0}, "--limit 0"),
        ({"part_rows": 0}, "--part-rows 0"),
        ({"batch_size": 0}, "--batch-size 0"),
        ({"score_dtype": "float64"}, "--score-dtype 'float64': expected one of float32, float16, none"),
        ({"bad_rows": "ignore"}, "--bad-rows 'ignore'"),
        ({"max_bad_fraction": 2.0}, "--max-bad-fraction 2.0"),
        ({"resume": True, "overwrite": True}, "--resume .* --overwrite"),
        ({"device": "tpu"}, "--device 'tpu'"),
        ({"device": "cuda:99"}, "--device cuda:99"),
        ({"backend": "fast"}, "backend 'fast'"),
        ({"memory_limit": "2 apples"}, "size '2 apples'"),
        ({"memory_limit": "1MB"}, "--memory-limit 1MB: expected at least"),
        ({"calibration": "nowhere.json"}, "--calibration nowhere.json: not found"),
        ({"only_items": "nowhere.parquet"}, "nowhere.parquet: no such file"),
    ],
    ids=str,
)  # fmt: skip
def test_bad_options(tiny, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        stcli.retrieve(tiny.model, tiny.queries, tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_bad_query_tables(tiny, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"nowhere.parquet: no such file"):
        stcli.retrieve(tiny.model, tmp_path / "nowhere.parquet", out)
    narrow = write_queries(tmp_path / "narrow.parquet", tiny.vectors[:, :15])
    with pytest.raises(InputError, match=r"narrow.parquet: column 'embedding' has 15 dimensions, the artifact 16"):
        stcli.retrieve(tiny.model, narrow, out)
    table = pq.read_table(tiny.queries)
    ragged = table.set_column(1, "embedding", table["embedding"].cast(pa.list_(pa.float32())))
    short = [*tiny.vectors[:3].tolist(), [1.0, 2.0]]
    ragged = ragged.slice(0, 4).set_column(1, "embedding", pa.array(short, pa.list_(pa.float32())))
    pq.write_table(ragged, tmp_path / "ragged.parquet")
    with pytest.raises(InputError, match=r"row 3 \(id 'q003'\): column 'embedding' has length 2 where 16 was expected"):
        stcli.retrieve(tiny.model, tmp_path / "ragged.parquet", out)
    pq.write_table(table.slice(0, 0), tmp_path / "empty.parquet")
    with pytest.raises(InputError, match=r"empty.parquet: has no rows"):
        stcli.retrieve(tiny.model, tmp_path / "empty.parquet", out)
    (tmp_path / "text.parquet").write_text("query_id,embedding\n")
    with pytest.raises(InputError, match=r"text.parquet: not a readable Parquet file"):
        stcli.retrieve(tiny.model, tmp_path / "text.parquet", out)
    assert not out.exists()
    assert not (tmp_path / "out.partial").exists()


def test_another_embedding_version(kept, tiny, tmp_path):
    table = pq.read_table(tiny.queries)
    pq.write_table(table.replace_schema_metadata({"embedding_version": "v2"}), tmp_path / "v2.parquet")
    pq.write_table(table.replace_schema_metadata({"embedding_version": "v1"}), tmp_path / "v1.parquet")
    with pytest.raises(InputError, match=r"version 'v2', the artifact's 'v1'"):
        stcli.retrieve(kept, tmp_path / "v2.parquet", tmp_path / "out")
    with pytest.raises(InputError, match=r"version 'v0', the artifact's 'v1'"):
        stcli.retrieve(kept, tiny.queries, tmp_path / "out", embedding_version="v0")
    assert not (tmp_path / "out").exists()
    stcli.retrieve(kept, tmp_path / "v1.parquet", tmp_path / "out", k=1)
    stcli.retrieve(kept, tiny.queries, tmp_path / "unstated", k=1)
    stcli.retrieve(tiny.model, tmp_path / "v2.parquet", tmp_path / "artifact unstated", k=1)


def test_an_output_that_is_there(tiny, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"its folder .* does not exist"):
        stcli.retrieve(tiny.model, tiny.queries, tmp_path / "no" / "out")
    stcli.retrieve(tiny.model, tiny.queries, out, k=3)
    before = contents(out)
    with pytest.raises(ExistsError, match=r"already exists.*--overwrite"):
        stcli.retrieve(tiny.model, tiny.queries, out, k=4)
    assert contents(out) == before
    stcli.retrieve(tiny.model, tiny.queries, out, k=4, overwrite=True)
    assert len(read(out)["item_id"][0]) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    with pytest.raises(FormatError, match=r"--bad-rows|expected|no whole"):
        stcli.retrieve(out, tiny.queries, tmp_path / "x")


@pytest.mark.parametrize("how", [{"overwrite": True}, {"overwrite": True, "dry_run": True}, {"resume": True}], ids=str)
def test_an_input_or_something_else_is_not_replaced(tiny, tmp_path, how):
    """Not even where the artifact or the queries are a directory, which an output is too."""
    stcli.pack_model(tiny.index, tmp_path / "shards", shards=1)
    (tmp_path / "queries").mkdir()
    queries = write_queries(tmp_path / "queries" / "q.parquet", tiny.vectors[:40], filter=pa.nulls(40, pa.string()))
    (tmp_path / "only.txt").write_text("item0\n")
    stcli.build_index(tiny.items, tmp_path / "index", feature_columns=["color"])

    def there() -> dict[Path, bytes]:
        return {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}

    before = there()
    for output, words in (
        ("shards", "would remove the input"),
        ("queries", "would remove the input"),
        ("index", "holds an index, and the output is results"),
        ("only.txt", "would remove the input"),
    ):
        options = {"only_items": str(tmp_path / "only.txt"), **how}
        with pytest.raises(InputError, match=words):
            stcli.retrieve(tmp_path / "shards", queries, tmp_path / output, **options, **FILTERED)
    assert there() == before
