"""Which files make a table, which columns they must have, and batches with their place in the table."""

from __future__ import annotations

import hashlib
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from stcli.errors import InputError
from stcli.storage.listing import resolve_filesystem
from stcli.storage.parquet import open_table


def numbers(first: int, count: int) -> pa.Table:
    return pa.table({"n": pa.array(range(first, first + count), pa.int64()), "s": [f"v{i}" for i in range(count)]})


def write_parts(folder: Path, sizes: list[int], row_group: int = 7) -> None:
    folder.mkdir(exist_ok=True)
    first = 0
    for number, size in enumerate(sizes):
        pq.write_table(numbers(first, size), folder / f"part-{number:03d}.parquet", row_group_size=row_group)
        first += size


def read(table, **options) -> list[int]:
    return [
        n for _, batch in table.batches(["n"], options.pop("batch_rows", 5), **options) for n in batch["n"].to_pylist()
    ]


# ---- which files ----------------------------------------------------------------------------------------


def test_hidden_files_and_success_markers_do_not_count(tmp_path):
    write_parts(tmp_path / "items", [10, 5])
    folder = tmp_path / "items"
    (folder / "_SUCCESS").touch()
    (folder / "_committed_123").write_text("{}")
    (folder / ".part-000.parquet.crc").write_bytes(b"\x00\x01")
    (folder / "_temporary").mkdir()
    pq.write_table(numbers(900, 3), folder / "_temporary" / "part-009.parquet")
    (folder / "later").mkdir()
    pq.write_table(numbers(15, 4), folder / "later" / "part-000.parquet")
    table = open_table(folder)
    assert table.num_rows == 19
    assert sorted(read(table)) == list(range(19))
    assert table.name == "items"


def test_several_files_keep_the_order_given(tmp_path):
    write_parts(tmp_path / "in", [3, 3, 3])
    names = [tmp_path / "in" / f"part-{number:03d}.parquet" for number in (2, 0, 1)]
    table = open_table(names)
    assert read(table) == [6, 7, 8, 0, 1, 2, 3, 4, 5]
    assert table.name == "part-002.parquet and 2 more"


@pytest.mark.parametrize("kind", ["path", "text", "uri"])
def test_one_file_by_path_text_or_uri(tmp_path, kind):
    file = tmp_path / "with space.parquet"
    pq.write_table(numbers(0, 4), file)
    source = {"path": file, "text": str(file), "uri": file.as_uri()}[kind]
    assert read(open_table(source)) == [0, 1, 2, 3]


def test_a_relative_path(tmp_path, monkeypatch):
    pq.write_table(numbers(0, 4), tmp_path / "items.parquet")
    monkeypatch.chdir(tmp_path)
    assert read(open_table("items.parquet")) == [0, 1, 2, 3]


def test_any_filesystem_of_pyarrow_serves(tmp_path):
    write_parts(tmp_path / "items", [3, 2])
    filesystem, path = resolve_filesystem((tmp_path / "items").as_uri())
    assert isinstance(filesystem, pafs.FileSystem)
    assert path == str(tmp_path / "items")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("nothing.parquet", "nothing.parquet: no such file or directory"),
        ("ftp://host/items", "ftp://host/items: cannot be opened"),
        ([], "no Parquet input was given"),
    ],
)
def test_sources_that_are_not_there(tmp_path, monkeypatch, source, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=words):
        open_table(source)


def test_a_folder_without_parquet(tmp_path):
    (tmp_path / "items").mkdir()
    (tmp_path / "items" / "_SUCCESS").touch()
    with pytest.raises(InputError, match="items: no Parquet file found"):
        open_table(tmp_path / "items")


@pytest.mark.parametrize("content", [b"", b"id,embedding\n1,2\n", "cut"], ids=["empty", "csv", "truncated"])
def test_files_that_are_no_parquet(tmp_path, content):
    write_parts(tmp_path / "items", [20, 20])
    bad = tmp_path / "items" / "part-001.parquet"
    bad.write_bytes(bad.read_bytes()[:-20] if content == "cut" else content)
    with pytest.raises(InputError, match=r"part-001.parquet: not a readable Parquet file .*; expected Parquet"):
        open_table(tmp_path / "items")


def test_empty_markers_of_object_stores_are_passed_over(tmp_path):
    write_parts(tmp_path / "items", [4])
    (tmp_path / "items" / "2024").touch()
    assert open_table(tmp_path / "items").num_rows == 4


# ---- columns ----------------------------------------------------------------------------------------------


def test_a_missing_column_lists_those_there_are(tmp_path):
    pq.write_table(pa.table({"item_id": [1], "vector": [[1.0]], "color": ["red"]}), tmp_path / "items.parquet")
    table = open_table(tmp_path / "items.parquet")
    with pytest.raises(
        InputError, match=r"items.parquet: no column 'colour' \(--feature-columns\); did you mean 'color'\?"
    ):
        table.column_type("colour", "--feature-columns")
    with pytest.raises(InputError, match="there are: item_id, vector, color"):
        table.column_type("embedding", "--embedding-column")


def test_files_must_agree_about_the_columns_that_are_read(tmp_path):
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"a": [1], "b": [1], "c": [1]}), tmp_path / "in" / "0.parquet")
    pq.write_table(pa.table({"a": [1], "b": ["x"]}), tmp_path / "in" / "1.parquet")
    table = open_table(tmp_path / "in", ["a"])
    assert [table.in_every_file(name) for name in ("a", "b", "c")] == [True, False, False]
    with pytest.raises(InputError, match=r"1.parquet: column 'b' is string, but int64 in the first file"):
        open_table(tmp_path / "in", ["b"])
    with pytest.raises(InputError, match=r"1.parquet: no column 'c', which the other files of the table have"):
        open_table(tmp_path / "in", ["c"])


def test_columns_come_in_any_order_and_others_are_not_read(tmp_path):
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"n": [1, 2], "s": ["a", "b"]}), tmp_path / "in" / "0.parquet")
    pq.write_table(pa.table({"s": ["c"], "n": [3], "more": [0.5]}), tmp_path / "in" / "1.parquet")
    table = open_table(tmp_path / "in", ["n", "s"])
    rows = [
        (n, s)
        for _, batch in table.batches(["s", "n", "s"], 10)
        for n, s in zip(*batch.select(["n", "s"]), strict=True)
    ]
    assert [(n.as_py(), s.as_py()) for n, s in rows] == [(1, "a"), (2, "b"), (3, "c")]


# ---- batches ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_rows", [1, 4, 7, 1000])
def test_batches_over_any_range(tmp_path, batch_rows):
    write_parts(tmp_path / "in", [10, 1, 23, 0, 9])
    table = open_table(tmp_path / "in")
    for start in range(0, 44, 3):
        for stop in (None, start, start + 1, start + 12, 43, 99):
            seen = []
            for row, batch in table.batches(["n"], batch_rows, start, stop):
                assert row == start + len(seen)
                assert 0 < batch.num_rows <= batch_rows
                seen += batch["n"].to_pylist()
            assert seen == list(range(start, min(43, 43 if stop is None else stop)))


def test_a_batch_has_rows_of_several_row_groups(tmp_path):
    write_parts(tmp_path / "in", [40], row_group=7)
    batches = open_table(tmp_path / "in").batches(["n"], 16)
    assert [(row, batch.num_rows) for row, batch in batches] == [(0, 16), (16, 16), (32, 8)]


def test_only_row_groups_of_the_range_are_read(tmp_path):
    file = tmp_path / "in.parquet"
    pq.write_table(numbers(0, 100), file, row_group_size=10, compression="none", use_dictionary=False)
    raw = bytearray(file.read_bytes())
    column = pq.ParquetFile(file).metadata.row_group(0).column(0)
    start = column.data_page_offset
    raw[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    file.write_bytes(raw)
    assert read(open_table(file), start=10) == list(range(10, 100))


def test_where_names_file_and_row(tmp_path):
    write_parts(tmp_path / "in", [10, 5])
    assert open_table(tmp_path / "in").where(12) == "part-001.parquet row 2"
    assert open_table(tmp_path / "in" / "part-000.parquet").where(7) == "row 7"


# ---- fingerprint --------------------------------------------------------------------------------------------


def test_fingerprint_is_size_and_hash_of_the_footer(tmp_path):
    write_parts(tmp_path / "in", [10, 5])
    found = open_table(tmp_path / "in").fingerprint()
    assert found["rows"] == 15
    for part, file in zip(found["files"], sorted((tmp_path / "in").iterdir()), strict=True):
        raw = file.read_bytes()
        length = int.from_bytes(raw[-8:-4], "little")
        assert raw[-4:] == b"PAR1"
        assert part == {"bytes": len(raw), "footer_sha256": hashlib.sha256(raw[-8 - length :]).hexdigest()}


def test_fingerprint_changes_with_the_content(tmp_path):
    first, second = tmp_path / "a.parquet", tmp_path / "b.parquet"
    pq.write_table(numbers(0, 10), first)
    pq.write_table(numbers(1, 10), second)
    assert open_table(first).fingerprint() != open_table(second).fingerprint()


# ---- writers --------------------------------------------------------------------------------------------------


def test_as_duckdb_writes(tmp_path):
    file = tmp_path / "items.parquet"
    duckdb.sql("SELECT range AS n, 'v' || range AS s, [range, NULL] AS l FROM range(5000)").write_parquet(str(file))
    table = open_table(file)
    assert read(table, batch_rows=512) == list(range(5000))
    assert table.schema.field("l").type.value_type == pa.int64()


def test_as_duckdb_writes_a_folder_of_files(tmp_path):
    folder = tmp_path / "items"
    rows = "SELECT range AS n, range % 3 AS kind FROM range(100)"
    duckdb.sql(f"COPY ({rows}) TO '{folder}' (FORMAT parquet, PARTITION_BY (kind))")
    assert sorted(read(open_table(folder))) == list(range(100))


@pytest.mark.parametrize("compression", ["snappy", "gzip", "zstd", "none"])
def test_compressions(tmp_path, compression):
    pq.write_table(numbers(0, 50), tmp_path / "in.parquet", compression=compression)
    assert read(open_table(tmp_path / "in.parquet")) == list(np.arange(50))
