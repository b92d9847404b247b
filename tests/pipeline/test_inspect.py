import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import stcli
from stcli.errors import FormatError, InputError
from stcli.pipeline import bench as bench_module
from stcli.pipeline.invariants import check_arrays
from stcli.storage.artifact import open_artifact_file
from stcli.storage.artifact_set import Shard, bits_of, write_set
from stcli.storage.index_dir import open_index
from tests.conftest import DIM, NUM_ITEMS, NUM_QUERIES


@pytest.fixture(scope="module")
def results(tiny, tmp_path_factory):
    output = tmp_path_factory.mktemp("inspect") / "results"
    stcli.retrieve(tiny.model, tiny.queries, output, filter_column="filter", k=10, part_rows=50)
    return output


def test_parquet_file_and_directory(tiny, tmp_path):
    told = stcli.inspect(tiny.items, verify=True)
    assert told["kind"] == "parquet"
    assert told["counts"] == {"rows": NUM_ITEMS, "files": 1, "columns": 8}
    assert told["bytes"]["total"] == tiny.items.stat().st_size
    assert told["columns"]["embedding"].endswith(f"[{DIM}]")
    assert told["verified"]
    (tmp_path / "t").mkdir()
    for name in ("a", "b"):
        shutil.copy(tiny.items, tmp_path / "t" / f"{name}.parquet")
    (tmp_path / "t" / "_SUCCESS").touch()
    assert stcli.inspect(tmp_path / "t")["counts"]["rows"] == 2 * NUM_ITEMS
    assert stcli.inspect((tmp_path / "t").as_uri())["counts"]["files"] == 2


def test_index(tiny):
    told = stcli.inspect(tiny.index, verify=True)
    assert told["kind"] == "stcli-index"
    assert told["counts"]["num_items"] == NUM_ITEMS
    assert told["counts"]["num_clusters"] == 32
    sizes = np.diff(np.load(tiny.index / "cluster_offsets.npy"))
    assert told["cluster_sizes"] == {"min": sizes.min(), "median": int(np.median(sizes)), "max": sizes.max()}
    assert told["bytes"]["total"] == sum(np.load(file).nbytes for file in tiny.index.glob("*.npy"))
    assert told["features"]["tags"] == "string, 60 values, several an item"
    assert told["features"]["in_stock"] == "boolean, 2 values"
    assert told["arrays"]["codes"] == f"int8 [{NUM_ITEMS}, 32]"
    assert told["origin"]["input_rows"] == NUM_ITEMS
    assert len(told["verified"]) > 5


def test_artifact(tiny):
    told = stcli.inspect(tiny.model, verify=True)
    assert told["kind"] == "stcli-artifact"
    assert told["options"]["embedding_dtype"] == "float16"
    assert told["origin"]["index"] == stcli.inspect(tiny.index)["fingerprint"]
    assert told["bytes"]["embeddings"] == NUM_ITEMS * (2 * DIM + 1)
    assert list(told["placement"]) == ["gpu", "gpu where it fits", "host"]
    assert told["placement"]["host"].startswith("terms ")


def test_string_ids_and_an_index_without_features(tmp_path):
    items = {"item_id": ["b", "ä", "a", "c"], "embedding": pa.array([[1.0, 2.0]] * 4, pa.list_(pa.float32()))}
    pq.write_table(pa.table(items), tmp_path / "i.parquet")
    stcli.build_index(tmp_path / "i.parquet", tmp_path / "i.index")
    told = stcli.inspect(tmp_path / "i.index", verify=True)
    assert told["features"] == {}
    assert told["options"]["ids"] == "string"


def test_results(results):
    told = stcli.inspect(results, verify=True)
    assert told["kind"] == "stcli-results"
    assert told["counts"]["queries"] == NUM_QUERIES
    assert told["counts"]["parts"] == 3
    assert told["options"]["k"] == 10
    assert told["bytes"]["total"] == sum(file.stat().st_size for file in results.glob("part-*.parquet"))
    assert told["columns"]["item_id"].startswith("list")
    json.dumps(told)


def test_exploded_results_without_scores(tiny, tmp_path):
    options = {"filter_column": "filter", "k": 3, "explode": True, "score_dtype": "none"}
    summary = stcli.retrieve(tiny.model, tiny.queries, tmp_path / "r", **options)
    told = stcli.inspect(tmp_path / "r", verify=True)
    assert told["counts"]["results"] == summary["counts"]["results"]
    assert told["columns"] == {"query_id": "string", "item_id": "int64", "status": "string"}
    rows = sum(len(pq.read_table(part)) for part in (tmp_path / "r").glob("*.parquet"))
    assert rows > told["counts"]["results"]  # a query without results has a row, too


def test_an_exploded_item_without_a_score(tiny, tmp_path):
    stcli.retrieve(tiny.model, tiny.queries, tmp_path / "r", k=3, explode=True)
    stcli.inspect(tmp_path / "r", verify=True)
    part = tmp_path / "r" / "part-00000.parquet"
    table = pq.read_table(part)
    scores = pa.array([None, *table["score"].to_pylist()[1:]], table.schema.field("score").type)
    pq.write_table(table.set_column(table.schema.names.index("score"), "score", scores), part)
    with pytest.raises(FormatError, match="an item has no score"):
        stcli.inspect(tmp_path / "r", verify=True)


def test_report(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(bench_module, "LATENCY_SECONDS", 0.05)
    options = {"filter_column": "filter", "k": 5, "sample": 20, "repeat": 1, "probes": (8,)}
    stcli.bench(tiny.model, tiny.queries, tmp_path / "r", **options)
    told = stcli.inspect(tmp_path / "r", verify=True)
    assert told["kind"] == "stcli-report"
    assert told["counts"] == {"queries": 20, "settings": 3, "k": 5}
    assert told["recall"]["exact"] == 1
    (tmp_path / "r" / "report.html").unlink()
    with pytest.raises(FormatError, match=r"report\.html: missing"):
        stcli.inspect(tmp_path / "r", verify=True)


def test_nothing_there(tmp_path):
    with pytest.raises(InputError, match="no such file or directory; expected Parquet"):
        stcli.inspect(tmp_path / "nothing")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip", b"{}"])
def test_foreign_file(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(FormatError, match=r"is none of ours, or is truncated; expected Parquet .* an artifact"):
        stcli.inspect(tmp_path / "x")


def test_foreign_directories(tmp_path):
    with pytest.raises(FormatError, match=r"the directory is none of ours, without manifest\.json"):
        stcli.inspect(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": "other"}')
    with pytest.raises(FormatError, match="format is 'other'"):
        stcli.inspect(tmp_path)
    (tmp_path / "manifest.json").write_text("not json")
    with pytest.raises(FormatError, match="not JSON"):
        stcli.inspect(tmp_path)


def test_a_directory_of_tables_and_other_files_is_none(tiny, tmp_path):
    shutil.copy(tiny.items, tmp_path / "items.parquet")
    (tmp_path / "_SUCCESS").touch()
    (tmp_path / ".hidden").write_text("x")
    assert stcli.inspect(tmp_path)["kind"] == "parquet"
    shutil.copytree(tiny.index, tmp_path / "items.index")
    with pytest.raises(FormatError, match=r"the directory is none of ours, and no table either: .*npy is not Parquet"):
        stcli.inspect(tmp_path)


def test_unfinished_output(tmp_path):
    (tmp_path / "out.partial").mkdir()
    with pytest.raises(FormatError, match="not finished"):
        stcli.inspect(tmp_path / "out.partial")


def test_truncated(tiny, tmp_path):
    whole = tiny.model.read_bytes()
    (tmp_path / "m.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FormatError, match="truncated"):
        stcli.inspect(tmp_path / "m.safetensors")
    (tmp_path / "p.parquet").write_bytes(tiny.items.read_bytes()[:5000])
    with pytest.raises(InputError, match="not a readable Parquet file"):
        stcli.inspect(tmp_path / "p.parquet")


def test_an_edited_byte_is_found(tiny, tmp_path):
    shutil.copytree(tiny.index, tmp_path / "i.index")
    with (tmp_path / "i.index" / "codes.npy").open("r+b") as file:
        file.seek(200)
        file.write(b"\x55")
    stcli.inspect(tmp_path / "i.index")
    with pytest.raises(FormatError, match=r"codes\.npy: its content does not match the hash"):
        stcli.inspect(tmp_path / "i.index", verify=True)


def test_a_damaged_parquet_page_is_found(tiny, tmp_path):
    whole = bytearray(tiny.items.read_bytes())
    whole[4:400] = bytes(396)
    (tmp_path / "p.parquet").write_bytes(whole)
    stcli.inspect(tmp_path / "p.parquet")
    with pytest.raises(FormatError, match="cannot be read"):
        stcli.inspect(tmp_path / "p.parquet", verify=True)


def edit(arrays, name, place, value):
    """`arrays` with one number of one array changed; `value` may be a function of the old one."""
    changed = np.array(arrays[name])
    changed[place] = value(changed[place]) if callable(value) else value
    return {**arrays, name: changed}


@pytest.mark.parametrize(
    ("name", "place", "value", "words"),
    [
        ("cluster_offsets", 0, 1, "does not run from 0"),
        ("cluster_offsets", 5, lambda old: old + 10_000, "descends"),
        ("term_offsets", -1, lambda old: old - 1, "does not run"),
        ("codes", (7, 3), -128, "hold -128"),
        ("codes", (7, 30), 1, "not zero beyond 16 dimensions"),
        ("scales", 9, 0, "negative, zero or not finite"),
        ("centroid_scales", 1, np.nan, "negative, zero or not finite"),
        ("cluster_radii", 1, -1, "negative, zero or not finite"),
        ("embeddings", (3, 3), np.inf, "not finite"),
        ("item_ids", 11, 3, "does not sort the ids"),
        ("id_order", 4, 0, "not the inverse"),
        ("id_rank", 4, NUM_ITEMS, "not the inverse"),
        ("term_values", 0, -1, "not all in 0"),
        ("term_counts", 0, lambda old: old + 1, "differ from the items of the terms"),
        ("feature_present", 0, lambda old: old + 1, "differ from the items with a value"),
        ("own_words", (0, -1), lambda old: old | (1 << 62), "beyond the last item"),
        ("own_words", (0, 0), lambda old: old ^ 1, "own_words"),
    ],
)
def test_a_broken_invariant_is_named(tiny, name, place, value, words):
    opened = open_index(tiny.index)
    with pytest.raises(FormatError, match=words):
        check_arrays(opened.manifest, edit(opened.arrays, name, place, value), "where")


def test_bloom_bits_beyond_the_last_item(tiny):
    opened = open_index(tiny.index)
    arrays = {**opened.arrays, "bloom_words": np.zeros((3, 64), np.int64), "bloom_offsets": np.array([0, 3])}
    last = NUM_ITEMS // 64
    check_arrays(opened.manifest, edit(arrays, "bloom_words", (2, last), (1 << NUM_ITEMS % 64) - 1), "where")
    for place, word in ((last, 1 << NUM_ITEMS % 64), (63, 1)):
        with pytest.raises(FormatError, match="bloom_words have bits beyond the last item"):
            check_arrays(opened.manifest, edit(arrays, "bloom_words", (2, place), word), "where")


def test_terms_that_repeat_within_an_item(tiny):
    opened = open_index(tiny.index)
    offsets = opened.arrays["term_offsets"]
    row = int(np.argmax(np.diff(offsets)))
    changed = edit(opened.arrays, "term_values", offsets[row] + 1, opened.arrays["term_values"][offsets[row]])
    with pytest.raises(FormatError, match="do not ascend within an item"):
        check_arrays(opened.manifest, changed, "where")


def test_an_unsorted_vocabulary(tiny):
    opened = open_index(tiny.index)
    numbers = [
        n for n, feature in enumerate(opened.manifest["filter"]["features"]) if feature["name"] in ("color", "price")
    ]
    changed = edit(opened.arrays, f"vocabulary_{numbers[0]:03d}_bytes", 0, ord("z"))
    with pytest.raises(FormatError, match="vocabulary of 'color' is not sorted"):
        check_arrays(opened.manifest, changed, "where")
    changed = edit(opened.arrays, f"vocabulary_{numbers[1]:03d}", 0, 1e9)
    with pytest.raises(FormatError, match="vocabulary of 'price' is not sorted"):
        check_arrays(opened.manifest, changed, "where")


def test_results_with_a_missing_part_or_swapped_scores(results, tmp_path):
    shutil.copytree(results, tmp_path / "a")
    (tmp_path / "a" / "part-00001.parquet").unlink()
    with pytest.raises(FormatError, match="part-00001"):
        stcli.inspect(tmp_path / "a")
    shutil.copytree(results, tmp_path / "b")
    part = tmp_path / "b" / "part-00000.parquet"
    table = pq.read_table(part)
    scores = [list(reversed(line)) for line in table["score"].to_pylist()]
    place = table.schema.get_field_index("score")
    pq.write_table(table.set_column(place, "score", pa.array(scores, table.schema.field("score").type)), part)
    stcli.inspect(tmp_path / "b")
    with pytest.raises(FormatError, match=r"part-00000\.parquet: the scores of a query do not descend"):
        stcli.inspect(tmp_path / "b", verify=True)


def test_a_set_is_told_by_its_parts(tiny, tmp_path):
    shutil.copy(tiny.model, tmp_path / "main.safetensors")
    manifest = open_artifact_file(tiny.model).manifest
    shard = Shard("main.safetensors", manifest["fingerprint"], 0, NUM_ITEMS, 0, 32)
    written = write_set(tmp_path, [shard], tombstones=bits_of(np.arange(100), NUM_ITEMS), body={"tool_version": "1"})
    told = stcli.inspect(tmp_path, verify=True)
    assert told["kind"] == "stcli-set"
    counts = {"num_items": NUM_ITEMS - 100, "main": NUM_ITEMS, "fresh": 0, "tombstones": 100, "dim": DIM}
    assert told["counts"] == counts
    assert told["drift"] == {"tombstone_share": 0.05, "fresh_share": 0.0}
    assert told["bytes"]["total"] == tiny.model.stat().st_size
    assert told["features"]["in_stock"] == "boolean, 2 values"
    assert told["fingerprint"] == written["fingerprint"]
    assert len(told["verified"]) > 5
