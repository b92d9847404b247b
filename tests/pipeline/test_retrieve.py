"""`retrieve`: what stands in its output, and which items a query may get."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import stcli
from stcli.errors import InputError
from tests.conftest import DIM, Tiny, lists
from tests.model.corpus import packed_values
from tests.pipeline.retrieve_cases import FILTERED, bad_queries, contents, kept, read, write_queries  # noqa: F401


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
        f"{counts['unknown_values']} filter values do not occur in the index and match nothing, "
        "such as color = 'no such colour'"
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
    names = ("item_id", "score", "color")
    expected = []
    for row in wide.to_pylist():
        expected += [{**row, **{name: row[name][place] for name in names}} for place in range(len(row["item_id"]))]
        expected += [{**row, **dict.fromkeys(names)}] if not row["item_id"] else []  # its status is not lost
    assert long.to_pylist() == expected
    assert [row["item_id"] for row in expected].count(None) == 3


def test_explain_says_how_each_query_was_searched(tiny, tmp_path):
    stcli.retrieve(tiny.model, tiny.queries, tmp_path / "out", explain=True, probes=4, **FILTERED)
    table = read(tmp_path / "out")
    assert table.column_names[-5:] == ["route", "probes", "estimated", "admitted", "items_scored"]
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


def test_unsigned_ids_beyond_those_of_items(tiny, tmp_path):
    items = best(tiny, 3)
    seen = pa.array([[2**63, line[0], 2**64 - 1] for line in items], pa.list_(pa.uint64()))
    queries = write_queries(tmp_path / "q.parquet", tiny.vectors, seen=seen)
    summary = stcli.retrieve(tiny.model, queries, tmp_path / "out", exclude_column="seen", k=2, exact=True)
    assert read(tmp_path / "out")["item_id"].to_pylist() == [line[1:] for line in items]
    assert summary["counts"]["unknown_excluded"] == 2 * len(items)


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
    with pytest.raises(InputError, match=r"the table of --only-items or --exclude-items changed"):
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
