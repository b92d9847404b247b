"""Bad input of `build_index`: one sentence, exit code 2, nothing written; or set aside, row by row."""

from __future__ import annotations

import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import stcli
from stcli.errors import DeviceError, ExistsError, InputError
from tests.index_tools import DIM, OPTIONS, mixed_items, tree, vectors, write_items
from tests.oracles_index import check_index, read_index


def lists(changed: dict[int, list | None]) -> pa.Array:
    """Six embeddings of length 4, some of them changed."""
    rows = dict(enumerate(vectors(6, 4).tolist())) | changed
    return pa.array([rows[row] for row in range(6)], pa.list_(pa.float32()))


def case(words: str, columns: dict | None = None, **options):
    """A table of six items with some columns changed, the options, and the words of the message."""
    return {"embedding": lists({}), **(columns or {})}, options, words


def bad_rows(words: str, changed: dict[int, list | None]):
    return case(words, {"embedding": lists(changed)})


def bad_ids(words: str, ids: list, kind: pa.DataType | None = None):
    return case(words, {"item_id": pa.array(ids, kind)})


BAD_TABLES = {
    "no id column": case(r"i.parquet: no column 'key' \(--id-column\); there are: item_id, embedding", id_column="key"),
    "no embedding column": case(
        r"i.parquet: no column 'vector' \(--embedding-column\); there are: item_id, embedding",
        embedding_column="vector",
    ),
    "no feature column": case(
        r"i.parquet: no column 'tag' \(--feature-columns\); did you mean 'tags'\? there are: item_id, embedding, tags",
        {"tags": pa.array(["a"] * 6)},
        feature_columns=["tag"],
    ),
    "no kept column": case(r"i.parquet: no column 'title' \(--keep-columns\); there are", keep_columns=["title"]),
    "float ids": bad_ids(r"i.parquet: column 'item_id' is double; ids must be an integer or a string", [0.5] * 6),
    "scalar embedding": case(
        r"i.parquet: column 'embedding' is double; an embedding must be a list of", {"embedding": pa.array([0.5] * 6)}
    ),
    "integer embedding": case(
        r"i.parquet: column 'embedding' is list<.*; an embedding must be a list", {"embedding": pa.array([[1]] * 6)}
    ),
    "binary feature": case(
        r"i.parquet: column 'f' is binary; a feature must be", {"f": pa.array([b"a"] * 6)}, feature_columns=["f"]
    ),
    "large feature": case(
        r"i.parquet: column 'f' holds an integer above 2\^63 - 1",
        {"f": pa.array([2**63] * 6, pa.uint64())},
        feature_columns=["f"],
    ),
    "no rows": case(
        r"i.parquet: has no rows; expected at least one item",
        {"item_id": pa.array([], pa.int64()), "embedding": pa.array([], pa.list_(pa.float32()))},
    ),
    "no embedding at all": bad_rows(
        r"i.parquet: column 'embedding' holds no embedding with at least one value", dict.fromkeys(range(6))
    ),
    "another length": bad_rows(
        r"parquet: row 4 \(id 4\): column 'embedding' has length 2 where 4 was expected; mend it, or use --bad-rows",
        {4: [1.0, 2.0]},
    ),
    "another length first": bad_rows(r"row 0 \(id 0\): column 'embedding' has length 2 where 4", {0: [1.0, 2.0]}),
    "empty": bad_rows(r"i.parquet: row 0 \(id 0\): column 'embedding' has length 0 where 4 was expected", {0: []}),
    "null": bad_rows(r"i.parquet: row 3 \(id 3\): column 'embedding' is null", {3: None}),
    "null inside": bad_rows(r"i.parquet: row 3 \(id 3\): column 'embedding' holds a null", {3: [1.0, None, 2.0, 3.0]}),
    "NaN": bad_rows(r"i.parquet: row 5 \(id 5\): column 'embedding' holds a NaN", {5: [1.0, math.nan, 0.0, 0.0]}),
    "infinite": bad_rows(
        r"row 1 \(id 1\): column 'embedding' holds an infinite value", {1: [1.0, -math.inf, 0.0, 0.0]}
    ),
    "null id": bad_ids(r"i.parquet: row 2 \(id None\): column 'item_id' is null", [1, 2, None, 4, 5, 6]),
    "null text id": bad_ids(r"i.parquet: row 2 \(id None\): column 'item_id' is null", ["", "b", None, "d", "e", "f"]),
    "large id": bad_ids(
        r"row 3 \(id 9223372036854775808\): column 'item_id' is above 2\^63 - 1", [1, 2, 3, 2**63, 5, 6], pa.uint64()
    ),
    "repeated id": bad_ids(r"i.parquet: row 3 \(id 2\): id occurs at an earlier row already", [1, 2, 3, 2, 5, 1]),
    "repeated text id": bad_ids(r"row 5 \(id 'a'\): id occurs at an earlier row already", list("abcdea")),
}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A good item table."""
    return write_items(tmp_path_factory.mktemp("items") / "items.parquet", {"embedding": lists({})})


@pytest.mark.parametrize("name", BAD_TABLES)
def test_bad_tables(tmp_path, name):
    columns, options, words = BAD_TABLES[name]
    source = write_items(tmp_path / "i.parquet", columns)
    before = tree(tmp_path)
    with pytest.raises(InputError, match=words) as caught:
        stcli.build_index(source, tmp_path / "out", **options)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    assert tree(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["i.parquet"]


def test_a_bad_row_of_a_later_file_is_named_with_its_file(tmp_path):
    folder = tmp_path / "items"
    folder.mkdir()
    write_items(folder / "a.parquet", {"embedding": lists({})})
    write_items(folder / "b.parquet", {"item_id": pa.array(range(6, 12)), "embedding": lists({2: None})})
    with pytest.raises(InputError, match=r"items: b.parquet row 2 \(id 8\): column 'embedding' is null"):
        stcli.build_index(folder, tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"metric": "euclid"}, "--metric 'euclid': expected one of inner_product, cosine"),
        ({"scale": "column"}, "--scale 'column': expected one of row, global"),
        ({"bad_rows": "skip"}, "--bad-rows 'skip': expected one of fail, quarantine"),
        ({"clusters": 0}, "--clusters 0: expected a whole number of at least 1"),
        ({"bloom_fpr": 0.0}, "--bloom-fpr 0.0: expected a share above 0 and below 1"),
        ({"bloom_bits": 512}, "--bloom-bits and --bloom-hashes: only --preset silvertorch .*--bloom-fpr"),
        ({"bloom_fpr": 1.5}, "--bloom-fpr 1.5: expected a share above 0 and below 1"),
        ({"max_bad_fraction": 2}, "--max-bad-fraction 2: expected a fraction from 0 to 1"),
        ({"seed": -1}, "--seed -1: expected a whole number of at least 0"),
        ({"threads": 0}, "--threads 0: expected a whole number of at least 1"),
        ({"memory_limit": "lots"}, "size 'lots': expected a number with a unit, such as 2GB"),
        ({"memory_limit": "10MB"}, "--memory-limit 10MB: expected at least 256MB"),
    ],
)
def test_bad_options(tmp_path, table, options, words):
    with pytest.raises(InputError, match=words):
        stcli.build_index(table, tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("device", ["tpu", "cuda:99", "meta"])
def test_a_device_that_is_not_there(tmp_path, table, device):
    with pytest.raises(DeviceError, match=f"--device '?{device}"):
        stcli.build_index(table, tmp_path / "out", device=device)
    assert list(tmp_path.iterdir()) == []


def test_outputs_that_cannot_be(tmp_path, table, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.json").write_text("{}")
    before = tree(tmp_path)
    with pytest.raises(ExistsError, match=r"out: already exists; choose another -o or add --overwrite"):
        stcli.build_index(table, tmp_path / "out")
    with pytest.raises(InputError, match=r"its folder .*nowhere does not exist"):
        stcli.build_index(table, tmp_path / "nowhere" / "out")
    with pytest.raises(InputError, match="no such file or directory"):
        stcli.build_index(tmp_path / "items.parquet", tmp_path / "new")
    assert tree(tmp_path) == before


def test_the_input_is_never_the_output(tmp_path):
    folder = tmp_path / "items"
    folder.mkdir()
    write_items(folder / "a.parquet", {"embedding": lists({})})
    before = tree(tmp_path)
    with pytest.raises(InputError, match="--overwrite would remove the input"):
        stcli.build_index(folder, folder, overwrite=True)
    assert tree(tmp_path) == before


# ---- quarantine -----------------------------------------------------------------------------------------------------


def table_with_bad_rows(path, rows=200):
    """Ten bad rows among good ones; the columns of the good rows."""
    columns = {name: column.to_pylist() for name, column in mixed_items(rows=rows).items()}
    columns["item_id"] = [i * 2 for i in range(rows)]
    bad = {
        0: ("embedding", None, "column 'embedding' is null"),
        1: ("embedding", [1.0], "column 'embedding' has length 1 where 10 was expected"),
        64: ("embedding", [math.nan] * DIM, "column 'embedding' holds a NaN"),
        65: ("item_id", None, "column 'item_id' is null"),
        66: ("embedding", [math.inf] * DIM, "column 'embedding' holds an infinite value"),
        100: ("item_id", 4, "id occurs at an earlier row already"),
        101: ("item_id", 4, "id occurs at an earlier row already"),
        150: ("embedding", [None, *[1.0] * (DIM - 1)], "column 'embedding' holds a null"),
        rows - 1: ("item_id", 130, None),  # row 65 had the id 130, but was rejected
        rows - 2: ("item_id", 396, None),
    }
    for row, (name, value, _) in bad.items():
        columns[name][row] = value
    good = [row for row in range(rows) if row not in bad or bad[row][2] is None]
    schema = {name: column.type for name, column in mixed_items(rows=4).items()} | {"embedding": pa.list_(pa.float32())}
    arrays = {name: pa.array(values, schema[name]) for name, values in columns.items()}
    pq.write_table(pa.table(arrays), path, row_group_size=50)
    expected = [
        {"row": row, "id": None if columns["item_id"][row] is None else str(columns["item_id"][row]), "reason": why}
        for row, (_, _, why) in sorted(bad.items())
        if why is not None
    ]
    return {name: array.take(pa.array(good)) for name, array in arrays.items()}, expected


def test_quarantine_sets_bad_rows_aside(tmp_path):
    good, expected = table_with_bad_rows(tmp_path / "i.parquet")
    options = {"bad_rows": "quarantine", "max_bad_fraction": 0.05, **OPTIONS}
    summary = stcli.build_index(tmp_path / "i.parquet", tmp_path / "out", keep_columns=["item_id"], **options)
    features = [name for name in good if name not in ("item_id", "embedding")]
    check_index(tmp_path / "out", good, features)
    assert summary["counts"]["rejected"] == len(expected)
    assert pq.read_table(summary["outputs"]["rejected"]).to_pylist() == expected
    read = read_index(tmp_path / "out")
    assert read.manifest["rejected"] == len(expected)
    kept = pa.ipc.open_file(pa.py_buffer(read.arrays["columns"].tobytes())).read_all()
    assert kept["item_id"].to_pylist() == read.ids
    assert sorted(path.name for path in tmp_path.iterdir()) == ["i.parquet", "out", "out.rejected.parquet"]


@pytest.mark.parametrize("first", [None, [], [1.0], [1.0] * 5])
def test_the_first_row_may_be_a_bad_one(tmp_path, first):
    source = write_items(tmp_path / "i.parquet", {"embedding": lists({0: first})})
    summary = stcli.build_index(source, tmp_path / "out", bad_rows="quarantine", max_bad_fraction=0.5)
    assert summary["counts"] == {"num_items": 5, "dim": 4, "num_clusters": 5, "zero_vectors": 0, "rejected": 1}


def test_too_many_bad_rows_fail(tmp_path):
    table_with_bad_rows(tmp_path / "i.parquet")
    options = {"bad_rows": "quarantine", "max_bad_fraction": 0.039, **OPTIONS}
    with pytest.raises(
        InputError, match=r"i.parquet: 8 bad rows so far, .*more than --max-bad-fraction 0.039 of 200 rows"
    ):
        stcli.build_index(tmp_path / "i.parquet", tmp_path / "out", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["i.parquet"]


def test_nothing_but_bad_rows(tmp_path):
    source = write_items(tmp_path / "i.parquet", {"embedding": pa.array([[math.nan] * 4] * 6)})
    with pytest.raises(InputError, match="no usable row is left; every one of 6 was rejected"):
        stcli.build_index(source, tmp_path / "out", bad_rows="quarantine", max_bad_fraction=1.0)
    assert [path.name for path in tmp_path.iterdir()] == ["i.parquet"]
