"""Globs and hive partitions, against what DuckDB reads from the same files."""

from __future__ import annotations

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stcli.errors import InputError
from stcli.storage.parquet import open_table


@pytest.fixture
def hive(tmp_path):
    """lang=…/year=…/part.parquet, with an escaped and a null value."""
    number = 0
    for lang in ("de", "f%20r", "__HIVE_DEFAULT_PARTITION__"):
        for year in (2023, 2024):
            folder = tmp_path / "t" / f"lang={lang}" / f"year={year}"
            folder.mkdir(parents=True)
            for part in range(2):
                values = list(range(number, number + 3))
                number += 3
                pq.write_table(pa.table({"n": pa.array(values, pa.int64())}), folder / f"part-{part}.parquet")
    (tmp_path / "t" / "_SUCCESS").touch()
    return tmp_path / "t"


def rows(table, columns):
    return [row for _, batch in table.batches(columns, 4) for row in zip(*batch.to_pydict().values(), strict=True)]


def test_partitions_are_columns(hive):
    table = open_table(hive, ["n", "lang", "year"])
    assert (table.schema.field("lang").type, table.schema.field("year").type) == (pa.string(), pa.int64())
    ours = sorted(rows(table, ["n", "lang", "year"]), key=lambda row: row[0])
    theirs = duckdb.sql(
        f"SELECT n, lang, year FROM read_parquet('{hive}/**/*.parquet', hive_partitioning = true) ORDER BY n"
    ).fetchall()
    theirs = [(n, None if lang in (None, "__HIVE_DEFAULT_PARTITION__") else lang, year) for n, lang, year in theirs]
    assert ours == theirs
    assert [row[0] for row in rows(table, ["lang"])] == [row[1] for row in rows(table, ["n", "lang"])]


def test_only_the_columns_asked_for_are_read(hive):
    _, batch = next(iter(open_table(hive).batches(["year", "n"], 2)))
    assert sorted(batch.schema.names) == ["n", "year"]


def test_a_column_in_the_file_wins(tmp_path):
    folder = tmp_path / "t" / "n=7"
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"n": [1, 2]}), folder / "a.parquet")
    assert rows(open_table(tmp_path / "t"), ["n"]) == [(1,), (2,)]


def test_a_moved_partition_changes_the_fingerprint(hive):
    before = open_table(hive).fingerprint()
    (hive / "lang=de").rename(hive / "lang=nl")
    assert open_table(hive).fingerprint() != before


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("t/lang=de/year=2024/*.parquet", range(6, 12)),
        ("t/lang=de/year=202[4-9]", range(6, 12)),
        ("t/*/year=2023/part-0.parquet", [0, 1, 2, 12, 13, 14, 24, 25, 26]),
        ("t/lang=*", range(36)),
        ("t/lang=[!x]*/year=*/part-1.*", [n + m for n in (3, 9, 15, 21, 27, 33) for m in range(3)]),
    ],
)
def test_globs(hive, pattern, expected):
    for source in (hive.parent / pattern, f"file://{hive.parent}/{pattern}"):
        assert sorted(row[0] for row in rows(open_table(source), ["n"])) == sorted(expected)


def test_a_glob_in_the_working_folder(hive, monkeypatch):
    monkeypatch.chdir(hive / "lang=de" / "year=2023")
    assert [row[0] for row in rows(open_table("*.parquet"), ["n"])] == list(range(6))


def test_a_name_with_a_star_is_itself(tmp_path):
    pq.write_table(pa.table({"n": [5]}), tmp_path / "a*.parquet")
    pq.write_table(pa.table({"n": [6]}), tmp_path / "ab.parquet")
    assert rows(open_table(tmp_path / "a*.parquet"), ["n"]) == [(5,)]


def test_a_glob_that_matches_nothing(tmp_path):
    with pytest.raises(InputError, match=r"x\*\.parquet: no file matches"):
        open_table(tmp_path / "x*.parquet")
    with pytest.raises(InputError, match="no file matches"):
        open_table(tmp_path / "missing" / "*.parquet")
