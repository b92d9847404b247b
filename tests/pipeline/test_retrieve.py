"""`retrieve`: what stands in its output, what it does with bad rows, and that an interrupted run loses nothing."""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import stcli
from stcli.errors import ExistsError, FormatError, InputError
from stcli.storage.results import open_results
from tests import process
from tests.conftest import DIM, Tiny, lists
from tests.model.corpus import packed_values

FILTERED = {"filter_column": "filter", "k": 10}


@pytest.fixture(scope="module")
def kept(tiny: Tiny, tmp_path_factory) -> Path:
    """The shared corpus with item columns kept and an embedding version."""
    folder = tmp_path_factory.mktemp("kept")
    stcli.build_index(
        tiny.items,
        folder / "index",
        feature_columns=["color", "tags", "price"],
        keep_columns=["color", "tags", "day"],
        embedding_version="v1",
    )
    stcli.pack_model(folder / "index", folder / "model")
    return folder / "model"


def read(path: Path) -> pa.Table:
    """All parts, in the order of the manifest."""
    return pa.concat_tables(pq.read_table(path / part["name"]) for part in open_results(path)["parts"])


def contents(path: Path) -> dict[str, bytes]:
    """Every file but the one that says when and where."""
    return {file.name: file.read_bytes() for file in path.iterdir() if file.name != "_run.json"}


def write_queries(path: Path, vectors: np.ndarray, **columns) -> Path:
    ids = columns.pop("query_id", pa.array(range(len(vectors))))
    pq.write_table(pa.table({"query_id": ids, "embedding": lists(vectors), **columns}), path, row_group_size=50)
    return path


# ---- what stands in the output -------------------------------------------------------------------


def test_the_rows_are_those_of_the_model(tiny, tmp_path):
    summary = stcli.retrieve(tiny.model, tiny.queries, tmp_path / "out", exact=True, part_rows=50, **FILTERED)
    table = read(tmp_path / "out")
    results = stcli.open_artifact(tiny.model)(tiny.vectors, tiny.filters, 10, exact=True)
    assert table.column_names == ["query_id", "item_id", "score", "status"]
    assert table.schema.field("item_id").type == pa.list_(pa.int64())
    assert table.schema.field("score").type == pa.list_(pa.float32())
    assert table["query_id"].to_pylist() == [f"q{number:03d}" for number in range(120)]
    assert table["item_id"].to_pylist() == [items.tolist() for items in results.item_ids]
    assert table["score"].to_pylist() == [scores.tolist() for scores in results.scores]
    found = [len(items) for items in table["item_id"].to_pylist()]
    assert table["status"].to_pylist() == ["ok" if count == 10 else "short" for count in found]
    counts = summary["counts"]
    assert (counts["queries"], counts["results"], counts["parts"]) == (120, sum(found), 3)
    assert counts["short"] == sum(count < 10 for count in found) > 0
    assert counts["rejected"] == 0
    assert counts["unknown_values"] == tiny.filters.count("color = 'no such colour'")
    assert summary["warnings"] == [
        f"{counts['unknown_values']} filter values do not occur in the index and match nothing"
    ]


def test_the_same_command_twice(tiny, tmp_path):
    for name in ("one", "two"):
        stcli.retrieve(tiny.model, tiny.queries, tmp_path / name, part_rows=32, **FILTERED)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert sorted(contents(tmp_path / "one")) == ["_manifest.json", *(f"part-{n:05d}.parquet" for n in range(4))]


@pytest.mark.parametrize(
    "way", [{"batch_size": 7}, {"threads": 1}, {"backend": "torch"}, {"memory_limit": "1GB"}], ids=str
)
def test_rows_do_not_depend_on(tiny, tmp_path, way):
    stcli.retrieve(tiny.model, tiny.queries, tmp_path / "one", **FILTERED)
    stcli.retrieve(tiny.model, tiny.queries, tmp_path / "two", **FILTERED, **way)
    assert contents(tmp_path / "one").keys() == contents(tmp_path / "two").keys()
    assert read(tmp_path / "one").equals(read(tmp_path / "two"))


def test_rows_do_not_depend_on_the_parts(tiny, tmp_path):
    for rows in (1000, 7):
        stcli.retrieve(tiny.model, tiny.queries, tmp_path / str(rows), part_rows=rows, **FILTERED)
    assert read(tmp_path / "7").equals(read(tmp_path / "1000"))
    parts = [pq.read_metadata(tmp_path / "7" / f"part-{number:05d}.parquet").num_rows for number in range(18)]
    assert parts == [7] * 17 + [1]


def test_columns_of_queries_and_items(kept, tiny, tmp_path):
    user = pa.array([{"name": f"u{number}", "tags": [number]} for number in range(120)])
    queries = write_queries(tmp_path / "q.parquet", tiny.vectors, user=user, note=pa.array([None, "x"] * 60))
    stcli.retrieve(
        kept, queries, tmp_path / "out", k=3, columns=["note", "user"], item_columns=["tags", "color", "day"]
    )
    table = read(tmp_path / "out")
    assert table.column_names == ["query_id", "note", "user", "item_id", "score", "tags", "color", "day", "status"]
    assert table["user"].to_pylist() == user.to_pylist()
    by_id = {row["item_id"]: row for row in tiny.item_rows}
    for row in table.to_pylist():
        for name in ("tags", "color", "day"):
            assert row[name] == [by_id[item][name] for item in row["item_id"]]


def test_one_row_a_result(kept, tiny, tmp_path):
    options = {"k": 4, "filter_column": "filter", "columns": ["filter"], "item_columns": ["color"]}
    queries = write_queries(
        tmp_path / "q.parquet", tiny.vectors[:9], filter=pa.array(["color = 'red'", "price < 0", None] * 3)
    )
    stcli.retrieve(kept, queries, tmp_path / "lists", **options)
    stcli.retrieve(kept, queries, tmp_path / "rows", **options, explode=True)
    wide, long = read(tmp_path / "lists"), read(tmp_path / "rows")
    assert long.column_names == wide.column_names
    assert long.schema.field("item_id").type == pa.int64()
    expected = [
        {**row, **{name: row[name][place] for name in ("item_id", "score", "color")}}
        for row in wide.to_pylist()
        for place in range(len(row["item_id"]))
    ]
    assert long.to_pylist() == expected


def test_explain_says_how_each_query_was_searched(tiny, tmp_path):
    stcli.retrieve(tiny.model, tiny.queries, tmp_path / "out", explain=True, probes=4, **FILTERED)
    table = read(tmp_path / "out")
    assert table.column_names[-4:] == ["route", "probes", "admitted", "items_scored"]
    assert set(table["route"].to_pylist()) <= {"probe", "rows"}
    for row, text in zip(table.to_pylist(), tiny.filters, strict=True):
        assert row["admitted"] >= len(row["item_id"])
        assert row["probes"] >= 4 if row["route"] == "probe" else row["probes"] == 0
        assert text is not None or (row["admitted"] == 2000 and 0 < row["items_scored"] < 2000)


def test_min_score_limit_and_score_types(tiny, tmp_path):
    options = {"k": 20, "exact": True}
    for name, more in {"all": {}, "best": {"min_score": 9.5}, "few": {"limit": 7}, "half": {"score_dtype": "float16"},
                       "none": {"score_dtype": "none"}}.items():  # fmt: skip
        stcli.retrieve(tiny.model, tiny.queries, tmp_path / name, **options, **more)
    whole = read(tmp_path / "all").to_pylist()
    best = read(tmp_path / "best").to_pylist()
    for row, cut in zip(whole, best, strict=True):
        left = [score for score in row["score"] if score >= 9.5]
        assert (cut["score"], cut["item_id"]) == (left, row["item_id"][: len(left)])
        assert cut["status"] == ("ok" if len(left) == 20 else "short")
    assert {row["status"] for row in best} == {"ok", "short"}
    assert read(tmp_path / "few").to_pylist() == whole[:7]
    half = read(tmp_path / "half")
    assert half.schema.field("score").type == pa.list_(pa.float16())
    assert half["item_id"].to_pylist() == [row["item_id"] for row in whole]
    scores = [np.float16(score) for row in whole for score in row["score"]]
    assert [
        np.float16(score) for score in pa.chunked_array(half["score"]).combine_chunks().flatten().to_pylist()
    ] == scores
    assert read(tmp_path / "none").column_names == ["query_id", "item_id", "status"]


def test_more_results_than_items(tiny, tmp_path):
    summary = stcli.retrieve(tiny.model, tiny.queries, tmp_path / "out", k=3000, limit=2)
    assert any("--k 3000 is more than the 2000 items" in text for text in summary["warnings"])
    assert [len(items) for items in read(tmp_path / "out")["item_id"].to_pylist()] == [2000, 2000]


@pytest.mark.parametrize("kind", [pa.int32(), pa.uint64(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_query_ids_of_any_type_and_repeated(tiny, tmp_path, kind):
    ids = pa.array([3, 3, 1]).cast(pa.string() if not pa.types.is_integer(kind) else kind)
    ids = ids.dictionary_encode() if pa.types.is_dictionary(kind) else ids.cast(kind)
    queries = write_queries(tmp_path / "q.parquet", tiny.vectors[:3], query_id=ids)
    stcli.retrieve(tiny.model, queries, tmp_path / "out", k=2)
    assert [str(value) for value in read(tmp_path / "out")["query_id"].to_pylist()] == ["3", "3", "1"]


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64()])
@pytest.mark.parametrize("nest", [pa.list_, pa.large_list, lambda kind: pa.list_(kind, DIM)])
def test_embeddings_of_any_type(tiny, tmp_path, kind, nest):
    rounded = tiny.vectors[:5].astype(np.float16)
    column = pa.array(rounded.tolist(), nest(pa.float64())).cast(nest(kind))
    pq.write_table(pa.table({"query_id": range(5), "embedding": column}), tmp_path / "q.parquet")
    stcli.retrieve(tiny.model, tmp_path / "q.parquet", tmp_path / "out", k=3, exact=True)
    expected = stcli.open_artifact(tiny.model)(rounded, None, 3, exact=True)
    assert read(tmp_path / "out")["score"].to_pylist() == [scores.tolist() for scores in expected.scores]


def test_queries_in_several_files(tiny, tmp_path):
    table = pq.read_table(tiny.queries)
    folder = tmp_path / "queries"
    folder.mkdir()
    for number, start in enumerate((0, 50, 110)):
        pq.write_table(table.slice(start, (50, 60, 10)[number]), folder / f"{number}.parquet", row_group_size=13)
    (folder / "_SUCCESS").touch()
    stcli.retrieve(tiny.model, folder, tmp_path / "one", part_rows=33, **FILTERED)
    stcli.retrieve(tiny.model, tiny.queries, tmp_path / "two", part_rows=33, **FILTERED)
    assert read(tmp_path / "one").equals(read(tmp_path / "two"))


def test_a_calibration_is_kept_and_reused(tiny, tmp_path):
    stcli.retrieve(tiny.model, tiny.queries, tmp_path / "one", target_recall=0.8, **FILTERED)
    again = stcli.retrieve(
        tiny.model, tiny.queries, tmp_path / "two", calibration=str(tmp_path / "one/_manifest.json"), **FILTERED
    )
    assert again["calibration"]["target_recall"] == 0.8
    assert read(tmp_path / "one").equals(read(tmp_path / "two"))
    with pytest.raises(InputError, match=r"measured for k=10, this run has k=11"):
        stcli.retrieve(tiny.model, tiny.queries, tmp_path / "x", calibration=str(tmp_path / "one/_manifest.json"), k=11)


def test_progress_reaches_the_end(tiny, tmp_path):
    seen = []
    stcli.retrieve(tiny.model, tiny.queries, tmp_path / "out", part_rows=50, batch_size=20,
                   progress=lambda *told: seen.append(told), **FILTERED)  # fmt: skip
    stages = [told for told in seen if told[0] == "retrieve"]
    assert stages[-1] == ("retrieve", 120, 120, "queries")
    assert [told[1] for told in stages] == sorted(told[1] for told in stages)


# ---- what a query may get ------------------------------------------------------------------------


def best(tiny: Tiny, k: int, eligible=lambda row, query: True) -> list[list[int]]:
    """The true best items of each query among those eligible, by float64 over the packed embeddings."""
    scores = tiny.vectors.astype(np.float64) @ packed_values(tiny.embeddings, "float16").T
    found = []
    for query, line in enumerate(scores):
        rows = [row for row in range(len(line)) if eligible(tiny.item_rows[row], query)]
        rows.sort(key=lambda row: (-line[row], tiny.item_rows[row]["item_id"]))
        found.append([tiny.item_rows[row]["item_id"] for row in rows[:k]])
    return found


def test_items_that_a_query_must_not_get(tiny, tmp_path):
    seen = [[*items[:5], 10**12, None, items[0]] if number % 3 else None for number, items in enumerate(best(tiny, 5))]
    queries = write_queries(tmp_path / "q.parquet", tiny.vectors, seen=pa.array(seen, pa.list_(pa.int64())))
    summary = stcli.retrieve(tiny.model, queries, tmp_path / "out", exclude_column="seen", k=8, exact=True)
    expected = best(tiny, 8, lambda row, query: row["item_id"] not in (seen[query] or ()))
    assert read(tmp_path / "out")["item_id"].to_pylist() == expected
    assert summary["counts"]["unknown_excluded"] == 80


def test_items_that_nobody_or_only_somebody_gets(tiny, tmp_path):
    ids = [row["item_id"] for row in tiny.item_rows]
    only, never = set(ids[:300]), set(ids[200:400])
    for name, chosen in (("only", only), ("never", never)):
        pq.write_table(pa.table({"item_id": pa.array([*chosen, None, -5], pa.int64())}), tmp_path / f"{name}.parquet")
    options = {"only_items": str(tmp_path / "only.parquet"), "exclude_items": str(tmp_path / "never.parquet")}
    summary = stcli.retrieve(tiny.model, tiny.queries, tmp_path / "out", k=250, exact=True, **options)
    expected = best(tiny, 250, lambda row, query: row["item_id"] in only - never)
    found = read(tmp_path / "out")
    assert [set(items) for items in found["item_id"].to_pylist()] == [set(items) for items in expected]
    assert set(found["status"].to_pylist()) == {"short"}
    assert len([text for text in summary["warnings"] if "are no items" in text]) == 2
    assert {len(set(items) & never) for items in found["item_id"].to_pylist()} == {0}
    with pytest.raises(InputError, match=r"item_lists changed"):
        stcli.retrieve(tiny.model, tiny.queries, tmp_path / "out", k=250, exact=True, resume=True)


def test_null_is_no_item_of_a_list(tiny, tmp_path):
    """A null must not stand for the id 0."""
    vectors = np.random.default_rng(1).normal(size=(10, 4)).astype(np.float32)
    pq.write_table(pa.table({"item_id": range(10), "embedding": lists(vectors)}), tmp_path / "items.parquet")
    stcli.build_index(tmp_path / "items.parquet", tmp_path / "index")
    stcli.pack_model(tmp_path / "index", tmp_path / "model")
    pq.write_table(pa.table({"item_id": pa.array([None, 7], pa.int64())}), tmp_path / "list.parquet")
    queries = write_queries(tmp_path / "q.parquet", vectors[:1])
    stcli.retrieve(tmp_path / "model", queries, tmp_path / "only", k=10, only_items=str(tmp_path / "list.parquet"))
    assert read(tmp_path / "only")["item_id"].to_pylist() == [[7]]


def test_one_template_for_all_queries(tiny, tmp_path):
    colors = pa.array([["red", "blue"], None, ["green"], []] * 30, pa.list_(pa.string()))
    below = pa.array([30.0, 60.5, None] * 40)
    queries = write_queries(tmp_path / "q.parquet", tiny.vectors, colors=colors, below=below,
                            filter=pa.array(["in_stock", None, "year > 2005", "NOT in_stock"] * 30))  # fmt: skip
    template = "color IN $colors AND price <= $below"
    stcli.retrieve(tiny.model, queries, tmp_path / "out", filter=template, filter_column="filter", k=6, exact=True)

    def eligible(row, query):
        chosen, limit = colors[query].as_py(), below[query].as_py()
        text = [row["in_stock"], True, row["year"] > 2005, not row["in_stock"]][query % 4]
        return text and (chosen is None or row["color"] in chosen) and (limit is None or row["price"] <= limit)

    assert read(tmp_path / "out")["item_id"].to_pylist() == best(tiny, 6, eligible)


def test_the_papers_form_says_that_it_does_not_verify(tiny, tmp_path):
    stcli.build_index(tiny.items, tmp_path / "index", preset="silvertorch", bloom_bits=512, bloom_hashes=1)
    stcli.pack_model(tmp_path / "index", tmp_path / "model")
    wanted = {"t50", "t51"}
    text = pa.array(["tags IN ('t50', 't51')"] * 120)
    queries = write_queries(tmp_path / "q.parquet", tiny.vectors, filter=text)
    by_id = {row["item_id"]: row for row in tiny.item_rows}
    ineligible = {}
    for verify in ("auto", "off", "on"):
        summary = stcli.retrieve(tmp_path / "model", queries, tmp_path / verify, verify=verify, **FILTERED)
        found = [
            by_id[item]["tags"] or [] for items in read(tmp_path / verify)["item_id"].to_pylist() for item in items
        ]
        ineligible[verify] = sum(not wanted & set(tags) for tags in found)
        assert any("ineligible items may appear" in text for text in summary["warnings"]) == (verify != "on")
    assert ineligible["auto"] == ineligible["off"] > 0
    assert ineligible["on"] == 0
    queries = write_queries(tmp_path / "r.parquet", tiny.vectors, filter=pa.array(["price < 50"] * 120))
    with pytest.raises(InputError, match=r"silvertorch preset cannot express"):
        stcli.retrieve(tmp_path / "model", queries, tmp_path / "range", **FILTERED)
    assert not (tmp_path / "range").exists()


# ---- rows that cannot be used --------------------------------------------------------------------


def bad_queries(path: Path, tiny: Tiny) -> Path:
    """Rows 1 to 6 are bad, each in another way."""
    vectors: list = tiny.vectors[:40].tolist()
    vectors[1] = None
    vectors[2] = vectors[2][:5]
    vectors[3][4] = float("nan")
    vectors[4][0] = float("inf")
    filters: list = [None] * 40
    filters[5], filters[6], filters[7] = "color = ", "colr = 'red'", "color = 'red'"
    ids = [f"q{number}" for number in range(40)]
    table = pa.table({"query_id": ids, "embedding": pa.array(vectors, pa.list_(pa.float32())), "filter": filters})
    pq.write_table(table, path)
    return path


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


def test_a_batch_of_bad_rows_only(tiny, tmp_path):
    vectors = tiny.vectors[:6].copy()
    vectors[2:4] = np.nan
    queries = write_queries(tmp_path / "q.parquet", vectors)
    for explode in (False, True):
        stcli.retrieve(tiny.model, queries, tmp_path / f"out {explode}", bad_rows="quarantine", max_bad_fraction=0.5,
                       part_rows=2, k=3, explode=explode)  # fmt: skip
    assert read(tmp_path / "out False")["status"].to_pylist() == ["ok", "ok", "rejected", "rejected", "ok", "ok"]
    assert read(tmp_path / "out True")["query_id"].to_pylist() == [0, 0, 0, 1, 1, 1, 4, 4, 4, 5, 5, 5]


def test_the_first_bad_row_stops_the_run(tiny, tmp_path):
    queries = bad_queries(tmp_path / "q.parquet", tiny)
    with pytest.raises(InputError, match=r"q.parquet: row 1 \(id 'q1'\): embedding is null.*--bad-rows quarantine"):
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
        ({"exclude_column": "filter"}, "expected a list of item ids"),
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
        ({"calibration": "nowhere.json"}, "--calibration nowhere.json: cannot be read"),
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
    with pytest.raises(InputError, match=r"row 3 \(id 'q003'\): embedding has length 2 where 16 was expected"):
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


# ---- interrupted runs ----------------------------------------------------------------------------

RUN = {"part_rows": 30, "bad_rows": "quarantine", "max_bad_fraction": 0.2, "columns": ["filter"], **FILTERED}


class Killed(BaseException):
    """The process ends here; nothing below catches it."""


def test_killed_before_any_step_and_resumed(tiny, tmp_path, monkeypatch):
    """Every rename, removal and write of a small file, one after another, is the last that does not happen."""
    queries = bad_queries(tmp_path / "q.parquet", tiny)
    stcli.retrieve(tiny.model, queries, tmp_path / "whole", **RUN)
    expected, rejected = contents(tmp_path / "whole"), (tmp_path / "whole.rejected.parquet").read_bytes()
    resumed = set()
    for last in range(100):
        out = tmp_path / f"out{last}"
        steps = 0

        def step(function):
            def run(*args, **more):
                nonlocal steps
                steps += 1
                if steps > last:  # noqa: B023
                    raise Killed
                return function(*args, **more)

            return run

        with monkeypatch.context() as patch:
            for where, name in (
                (os, "replace"),
                (os, "rename"),
                (Path, "unlink"),
                (Path, "write_text"),
                (Path, "mkdir"),
            ):
                patch.setattr(where, name, step(getattr(where, name)))
            try:
                stcli.retrieve(tiny.model, queries, out, **RUN)
            except Killed:
                pass
        broken = steps > last
        summary = stcli.retrieve(tiny.model, queries, out, resume=True, **RUN)
        resumed.add(summary["counts"]["parts_resumed"])
        assert contents(out) == expected, last
        assert (tmp_path / f"out{last}.rejected.parquet").read_bytes() == rejected
        assert not (tmp_path / f"out{last}.partial").exists()
        if not broken:
            break
    assert not broken
    assert last > 10
    assert resumed == {0, 1, 2}


def stop_at(count: int):
    """A progress callback that interrupts once so many queries are answered."""

    def progress(stage: str, done: int, total: int, unit: str) -> None:
        if stage == "retrieve" and done >= count:
            raise KeyboardInterrupt

    return progress


def interrupted(tiny: Tiny, out: Path, **more) -> None:
    with pytest.raises(KeyboardInterrupt):
        stcli.retrieve(tiny.model, tiny.queries, out, progress=stop_at(60), **{**RUN, **more})


def test_resume_writes_only_what_is_missing(tiny, tmp_path):
    out = tmp_path / "out"
    stcli.retrieve(tiny.model, tiny.queries, tmp_path / "whole", **RUN)
    interrupted(tiny, out)
    assert not out.exists()
    there = tmp_path / "out.partial" / "part-00000.parquet"
    before = there.stat().st_mtime_ns, there.stat().st_ino
    summary = stcli.retrieve(tiny.model, tiny.queries, out, resume=True, **RUN)
    assert summary["counts"]["parts_resumed"] in (1, 2)
    after = (out / "part-00000.parquet").stat()
    assert (after.st_mtime_ns, after.st_ino) == before
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"k": 11}, "k changed since that run .k was 10, is 11"),
        ({"filter_column": None}, "filter_column changed.*is null"),
        ({"part_rows": 31, "target_recall": 0.9}, "part_rows, target_recall changed"),
        ({"columns": []}, "columns changed"),
        ({"explode": True}, "explode changed"),
        ({"seed": 1}, "seed changed"),
        ({"exact": True}, "exact changed"),
    ],
    ids=str,
)
def test_resume_with_other_options_is_refused(tiny, tmp_path, changed, named):
    interrupted(tiny, tmp_path / "out")
    before = contents(tmp_path / "out.partial")
    with pytest.raises(InputError, match=named):
        stcli.retrieve(tiny.model, tiny.queries, tmp_path / "out", resume=True, **{**RUN, **changed})
    assert contents(tmp_path / "out.partial") == before


def test_resume_with_other_inputs_is_refused(tiny, kept, tmp_path):
    interrupted(tiny, tmp_path / "out")
    other = write_queries(tmp_path / "q.parquet", tiny.vectors, filter=pa.array(tiny.filters, pa.string()))
    with pytest.raises(InputError, match=r"queries changed"):
        stcli.retrieve(tiny.model, other, tmp_path / "out", resume=True, **RUN)
    with pytest.raises(InputError, match=r"artifact changed"):
        stcli.retrieve(kept, tiny.queries, tmp_path / "out", resume=True, **{**RUN, "filter_column": "filter"})


@pytest.mark.parametrize("more", [{"batch_size": 5}, {"threads": 1}, {"memory_limit": "2GB"}], ids=str)
def test_resume_with_what_changes_no_result(tiny, tmp_path, more):
    stcli.retrieve(tiny.model, tiny.queries, tmp_path / "whole", **RUN)
    interrupted(tiny, tmp_path / "out")
    stcli.retrieve(tiny.model, tiny.queries, tmp_path / "out", resume=True, **RUN, **more)
    assert read(tmp_path / "out").equals(read(tmp_path / "whole"))


def test_an_interrupted_run_is_not_started_over_unasked(tiny, tmp_path):
    interrupted(tiny, tmp_path / "out")
    with pytest.raises(ExistsError, match=r"out.partial: an interrupted run is there; add --resume"):
        stcli.retrieve(tiny.model, tiny.queries, tmp_path / "out", **RUN)
    summary = stcli.retrieve(tiny.model, tiny.queries, tmp_path / "out", overwrite=True, **RUN)
    assert summary["counts"]["parts_resumed"] == 0


def test_resume_of_a_whole_run_does_nothing(tiny, tmp_path):
    out = tmp_path / "out"
    first = stcli.retrieve(tiny.model, tiny.queries, out, resume=True, **RUN)  # nothing there: begins
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    again = stcli.retrieve(tiny.model, tiny.queries, out, resume=True, **RUN)
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before
    assert again["fingerprint"] == first["fingerprint"]
    assert again["counts"] == first["counts"] | {"parts_resumed": 4}
    assert any("whole already" in text for text in again["warnings"])
    with pytest.raises(InputError, match=r"k changed"):
        stcli.retrieve(tiny.model, tiny.queries, out, resume=True, **{**RUN, "k": 5})
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_a_damaged_part_is_named(tiny, tmp_path):
    interrupted(tiny, tmp_path / "out")
    part = tmp_path / "out.partial" / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(FormatError, match=r"part-00000.parquet: is no whole part.*remove it and resume"):
        stcli.retrieve(tiny.model, tiny.queries, tmp_path / "out", resume=True, **RUN)
    part.unlink()
    stcli.retrieve(tiny.model, tiny.queries, tmp_path / "out", resume=True, **RUN)
    assert read(tmp_path / "out").num_rows == 120


def test_a_full_disk_keeps_what_is_whole(tiny, tmp_path, monkeypatch):
    stcli.retrieve(tiny.model, tiny.queries, tmp_path / "whole", **RUN)
    write, calls = pq.ParquetWriter.write_batch, iter(range(100))

    def full(self, *args, **more):
        if next(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, *args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(pq.ParquetWriter, "write_batch", full)
        with pytest.raises(OSError, match=r"No space left"):
            stcli.retrieve(tiny.model, tiny.queries, tmp_path / "out", **RUN)
    assert not (tmp_path / "out").exists()
    summary = stcli.retrieve(tiny.model, tiny.queries, tmp_path / "out", resume=True, **RUN)
    assert summary["counts"]["parts_resumed"] == 2
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


LONG = {"part_rows": 4, "batch_size": 4, "k": 20, "filter_column": "filter"}


@pytest.fixture(scope="module")
def long_run(tiny, tmp_path_factory) -> tuple[Path, Path]:
    """A query table of 60 parts, and its results from an unbroken run."""
    folder = tmp_path_factory.mktemp("long")
    rows = np.arange(240) % 120
    filters = pa.array([tiny.filters[row] for row in rows], pa.string())
    queries = write_queries(folder / "q.parquet", tiny.vectors[rows], filter=filters)
    stcli.retrieve(tiny.model, queries, folder / "whole", **LONG)
    return queries, folder / "whole"


@pytest.mark.parametrize(
    ("after", "how", "code"),
    [
        (0, signal.SIGKILL, -9),
        (30, signal.SIGKILL, -9),
        (3, signal.SIGINT, 130),
        (3, signal.SIGTERM, 143),
    ],
    ids=str,
)
def test_a_process_that_is_ended_can_be_resumed(tiny, long_run, tmp_path, after, how, code):
    queries, whole = long_run
    out = tmp_path / "out"
    options = [word for name, value in LONG.items() for word in ("--" + name.replace("_", "-"), value)]
    running = process.start("retrieve", tiny.model, queries, "-o", out, *options)
    partial = tmp_path / "out.partial"
    first = partial / "_identity.json" if not after else partial / f"part-{after - 1:05d}.parquet"
    while not first.exists():
        assert running.poll() is None, running.communicate()
        time.sleep(0.002)
    running.send_signal(how)
    stdout, stderr = running.communicate()
    assert (running.returncode, stdout) == (code, "")
    assert "Traceback" not in stderr
    assert ("--resume" in stderr) == (how == signal.SIGINT)
    assert not out.exists()
    summary = stcli.retrieve(tiny.model, queries, out, resume=True, **LONG)
    assert summary["counts"]["parts_resumed"] >= after
    assert contents(out) == contents(whole)
