"""`build_index` on tables as other tools write them and under its options; the whole index against oracles."""

from __future__ import annotations

import json

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import stcli
from stcli.errors import InputError
from stcli.index import build, ingest, write
from stcli.ops import native
from tests.index_tools import DIM, OPTIONS, ROWS, fixed, mixed_items, tree, vectors, write_items
from tests.oracles_index import check_index, check_matrix, check_terms, read_index

# ---- tables as others write them --------------------------------------------------------------------------------


def as_pandas(table, folder):
    """With an index column and its metadata, as DataFrame.to_parquet leaves them."""
    index = "__index_level_0__"
    described = [{"name": None, "field_name": index, "pandas_type": "int64", "numpy_type": "int64", "metadata": None}]
    described += [{"name": name, "field_name": name, "pandas_type": "object"} for name in table.column_names]
    metadata = {"index_columns": [index], "columns": described, "pandas_version": "2.2.0"}
    table = table.append_column(index, pa.array(range(table.num_rows)))
    pq.write_table(table.replace_schema_metadata({"pandas": json.dumps(metadata)}), folder / "items.parquet")
    return folder / "items.parquet"


def as_spark(table, folder):
    """A directory of snappy part files with markers and checksums beside them."""
    folder = folder / "items.parquet"
    folder.mkdir()
    for number, start in enumerate(range(0, table.num_rows, 70)):
        name = f"part-{number:05d}-1f0c-c000.snappy.parquet"
        pq.write_table(table.slice(start, 70), folder / name, compression="snappy", store_schema=False)
        (folder / f".{name}.crc").write_bytes(b"crc\0")
    (folder / "_SUCCESS").touch()
    return folder


def as_polars(table, folder):
    """Large strings and large lists."""
    large = []
    for field in table.schema:
        kind = field.type
        if pa.types.is_string(kind):
            kind = pa.large_string()
        elif pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
            kind = pa.large_list(kind.value_type)
        large.append(field.with_type(kind))
    pq.write_table(table.cast(pa.schema(large)), folder / "items.parquet", compression="zstd", row_group_size=100)
    return folder / "items.parquet"


def as_duckdb(table, folder):
    with duckdb.connect() as connection:
        connection.register("items", table)
        connection.execute(f"COPY items TO '{folder / 'items.parquet'}' (FORMAT parquet)")
    return folder / "items.parquet"


def with_dictionaries(table, folder):
    for name in ("string", "integer"):
        place = table.column_names.index(name)
        table = table.set_column(place, name, table[name].combine_chunks().dictionary_encode())
    pq.write_table(table, folder / "items.parquet", row_group_size=50)
    return folder / "items.parquet"


def as_several_files(table, folder):
    names = []
    for number, start in enumerate((0, 100, 101, 200)):
        stop = (100, 101, 200, ROWS)[number]
        pq.write_table(table.slice(start, stop - start), folder / f"{number}.parquet")
        names.append(folder / f"{number}.parquet")
    return names


def as_uri(table, folder):
    pq.write_table(table, folder / "items.parquet")
    return (folder / "items.parquet").as_uri()


@pytest.mark.parametrize(
    "writer", [as_pandas, as_spark, as_polars, as_duckdb, with_dictionaries, as_several_files, as_uri]
)
def test_tables_as_others_write_them(tmp_path, writer):
    columns = mixed_items()
    source = writer(pa.table(columns), tmp_path)
    summary = stcli.build_index(source, tmp_path / "out", **OPTIONS)
    features = [name for name in columns if name not in ("item_id", "embedding")]
    check_index(tmp_path / "out", columns, features)
    assert summary["counts"]["num_items"] == ROWS
    assert summary["counts"]["rejected"] == 0


@pytest.mark.parametrize("value", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("shape", ["fixed", "list", "large_list"])
def test_embedding_types(tmp_path, value, shape):
    rows = vectors(60, DIM).astype(value)
    column = fixed(rows)
    if shape != "fixed":
        kind = pa.list_(column.type.value_type) if shape == "list" else pa.large_list(column.type.value_type)
        column = pa.array(list(rows), kind)
    columns = {"item_id": pa.array(range(60)), "embedding": column}
    stcli.build_index(write_items(tmp_path / "i.parquet", columns), tmp_path / "out", clusters=4)
    check_index(tmp_path / "out", columns, [])
    assert read_index(tmp_path / "out").arrays["embeddings"].dtype == (
        np.float16 if value == np.float16 else np.float32
    )


@pytest.mark.parametrize(
    "ids",
    [
        pa.array(range(60), pa.int32()),
        pa.array([2**63 - 1 - i for i in range(60)], pa.uint64()),
        pa.array([f"item {i % 7} ä {i}" for i in range(60)]),
        pa.array([f"{i}" for i in range(60)], pa.large_string()),
        pa.array([f"{i}" for i in range(60)]).dictionary_encode(),
    ],
    ids=["int32", "uint64", "string", "large_string", "dictionary"],
)
def test_id_types(tmp_path, ids):
    columns = {"item_id": ids, "embedding": fixed(vectors(60, DIM))}
    stcli.build_index(write_items(tmp_path / "i.parquet", columns), tmp_path / "out", clusters=4)
    check_index(tmp_path / "out", columns, [])
    read = read_index(tmp_path / "out")
    by_id = [read.ids[row] for row in read.arrays["id_order"]]
    assert by_id == sorted(ids.to_pylist(), key=lambda value: value.encode() if isinstance(value, str) else value)
    assert read.arrays["id_rank"][read.arrays["id_order"]].tolist() == list(range(60))
    assert read.manifest["ids"] == ("string" if isinstance(read.ids[0], str) else "int64")


# ---- options ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A Parquet file of all kinds of features, and its columns."""
    folder = tmp_path_factory.mktemp("items")
    columns = mixed_items()
    pq.write_table(pa.table(columns), folder / "items.parquet", row_group_size=64)
    return folder / "items.parquet", columns


def test_no_features_at_all(tmp_path, table):
    source, columns = table
    stcli.build_index(source, tmp_path / "out", feature_columns=[], **OPTIONS)
    check_index(tmp_path / "out", columns, [])
    bare = {name: columns[name] for name in ("item_id", "embedding")}
    stcli.build_index(write_items(tmp_path / "i.parquet", bare), tmp_path / "bare", **OPTIONS)
    check_index(tmp_path / "bare", bare, [])


def test_one_cluster_and_more_clusters_than_items(tmp_path):
    columns = {"item_id": pa.array([4, 2, 9]), "embedding": fixed(vectors(3, DIM))}
    source = write_items(tmp_path / "i.parquet", columns)
    for clusters, number in ((1, 1), (2, 2), (50, 3), (None, 3)):
        stcli.build_index(source, tmp_path / "out", clusters=clusters, overwrite=True)
        check_index(tmp_path / "out", columns, [])
        assert read_index(tmp_path / "out").manifest["num_clusters"] == number


def test_cosine_rows_have_length_one(tmp_path):
    columns = mixed_items(rows=80)
    rows = vectors(80, DIM) * np.logspace(-12, 12, 80)[:, None].astype(np.float32)
    rows[3] = 0
    columns["embedding"] = fixed(rows.astype(np.float32))
    source = write_items(tmp_path / "i.parquet", columns)
    summary = stcli.build_index(source, tmp_path / "out", metric="cosine", feature_columns=["date"], **OPTIONS)
    check_index(tmp_path / "out", columns, ["date"], "cosine")
    assert summary["counts"]["zero_vectors"] == 1
    assert not read_index(tmp_path / "out").manifest["lengths_differ"]


def test_one_scale_for_all(tmp_path, table):
    source, _ = table
    stcli.build_index(source, tmp_path / "out", scale="global", feature_columns=[], **OPTIONS)
    read = read_index(tmp_path / "out")
    exact = read.arrays["embeddings"].astype(np.float64)
    scale = np.float32(np.abs(exact).max() / 127)
    assert set(read.arrays["scales"].tolist()) == {float(scale)}
    assert (np.abs(read.arrays["codes"][:, :DIM] - exact / scale) <= 0.5 + 1e-4).all()
    assert np.abs(read.arrays["codes"]).max() == 127


def test_the_form_of_the_paper(tmp_path, table):
    source, columns = table
    options = {"preset": "silvertorch", "bloom_bits": 512, "bloom_hashes": 3}
    stcli.build_index(source, tmp_path / "out", feature_columns=["strings", "date"], **options, **OPTIONS)
    read = read_index(tmp_path / "out")
    check_terms(
        read,
        [columns["item_id"].to_pylist().index(row_id) for row_id in read.ids],
        {name: columns[name].to_pylist() for name in ("date", "strings")},
    )
    check_matrix(read)
    assert read.arrays["bloom_words"].shape == (512, 64)
    assert len(set(read.arrays["scales"].tolist())) == 1


def test_features_named_features_found_and_small_ones(tmp_path, table):
    source, columns = table
    all_of_them = sorted(set(columns) - {"item_id", "embedding"})
    small = ["boolean", "date", "integer", "string"]  # scalar, at most 256 distinct values, no float or timestamp
    wide = {**columns, "name": pa.array([f"n{i}" for i in range(ROWS)]), "blob": pa.array([b"x"] * ROWS)}
    wide["name"] = pa.array([f"n{i}" for i in range(ROWS)])
    source = write_items(tmp_path / "i.parquet", wide)

    def built(**options):
        stcli.build_index(source, tmp_path / "out", clusters=4, overwrite=True, **options)
        return list(read_index(tmp_path / "out").values)

    assert built() == sorted([*all_of_them, "name"])  # not the binary column
    assert built(keep_columns=["name", "blob"]) == sorted([*all_of_them, "name"])  # kept ones as any other
    assert built(feature_columns=["strings"], small_features=False) == ["strings"]
    assert built(feature_columns=["strings", "strings"]) == sorted(["name", "strings", *small])
    assert built(feature_columns=["strings"], keep_columns=["date"]) == sorted(["name", "strings", *small])
    assert built(feature_columns=["strings"], keep_columns=["date"], small_features=False) == ["strings"]
    assert built(feature_columns=[], small_features=False) == []


def test_a_scalar_column_of_many_values_is_no_feature_unasked(tmp_path):
    many = pa.array([f"n{i}" for i in range(257)])
    few = pa.array([f"n{i % 256}" for i in range(257)])
    source = write_items(tmp_path / "i.parquet", {"embedding": fixed(vectors(257, 4)), "many": many, "few": few})
    stcli.build_index(source, tmp_path / "out", feature_columns=[], clusters=2)
    assert list(read_index(tmp_path / "out").values) == ["few"]


def test_a_column_that_not_every_file_has_is_no_feature_unasked(tmp_path):
    folder = tmp_path / "items"
    folder.mkdir()
    rows = fixed(vectors(4, 4))
    write_items(folder / "0.parquet", {"embedding": rows, "a": pa.array([1, 2, 3, 4]), "b": pa.array(list("abcd"))})
    write_items(folder / "1.parquet", {"item_id": pa.array([7, 8, 9, 10]), "embedding": rows, "a": pa.array([5] * 4)})
    stcli.build_index(folder, tmp_path / "out", clusters=2)
    assert list(read_index(tmp_path / "out").values) == ["a"]
    with pytest.raises(InputError, match=r"1.parquet: no column 'b', which the other files of the table have"):
        stcli.build_index(folder, tmp_path / "out2", clusters=2, feature_columns=["b"])


def test_kept_columns_stand_in_row_order(tmp_path, table):
    source, columns = table
    wide = {**columns, "code": columns["string"].dictionary_encode()}
    source = write_items(tmp_path / "i.parquet", wide, row_group_size=50)  # each group has its own dictionary
    kept = ["code", "strings", "float", "embedding", "timestamp"]
    stcli.build_index(source, tmp_path / "out", feature_columns=["date"], keep_columns=kept, **OPTIONS)
    read = read_index(tmp_path / "out")
    found = pa.ipc.open_file(pa.py_buffer(read.arrays["columns"].tobytes())).read_all()
    assert found.column_names == kept == read.manifest["columns"]
    given = {row["item_id"]: row for row in pa.table(wide).select(["item_id", *kept]).to_pylist()}
    for row_id, row in zip(read.ids, found.to_pylist(), strict=True):
        expected = [given[row_id][name] for name in kept]
        assert repr(list(row.values())) == repr(expected)  # NaN too


@pytest.mark.parametrize("given", ["option", "metadata", "both", "none"])
def test_embedding_version(tmp_path, given):
    table = pa.table({"item_id": [1, 2], "embedding": fixed(vectors(2, 4))})
    if given in ("metadata", "both"):
        table = table.replace_schema_metadata({"embedding_version": "tower-7"})
    pq.write_table(table, tmp_path / "i.parquet")
    options = {"embedding_version": "mine"} if given in ("option", "both") else {}
    stcli.build_index(tmp_path / "i.parquet", tmp_path / "out", **options)
    expected = {"option": "mine", "metadata": "tower-7", "both": "mine", "none": None}[given]
    assert read_index(tmp_path / "out").manifest["embedding_version"] == expected


# ---- the same again ---------------------------------------------------------------------------------------------


def test_equal_bytes_whenever_and_on_any_number_of_threads(tmp_path, table):
    source, _ = table
    before = torch.get_num_threads()
    found = []
    try:
        for number, threads in enumerate((1, 1, 2)):
            torch.set_num_threads(threads)
            stcli.build_index(source, tmp_path / f"{number}", threads=threads, keep_columns=["string"], **OPTIONS)
            found.append(tree(tmp_path / f"{number}"))
    finally:
        torch.set_num_threads(before)
        native.set_num_threads(None)
    assert found[0] == found[1] == found[2]
    assert not any(b"/" + str(tmp_path.name).encode() in content for content in found[0].values())


def test_the_torch_form_builds_the_same(tmp_path, table):
    source, _ = table
    for backend in ("torch", "auto"):
        stcli.build_index(source, tmp_path / backend, backend=backend, **OPTIONS)
    assert tree(tmp_path / "torch") == tree(tmp_path / "auto")


def test_batches_may_be_cut_anywhere(tmp_path, table, monkeypatch):
    source, _ = table
    stcli.build_index(source, tmp_path / "whole", keep_columns=["string"], **OPTIONS)
    monkeypatch.setattr(ingest, "BATCH_BYTES", 0)  # 256 rows, but row groups have 64
    monkeypatch.setattr(build, "ASSIGN_ROWS", 31)
    monkeypatch.setattr(write, "CHUNK_BYTES", 0)
    stcli.build_index(source, tmp_path / "parts", keep_columns=["string"], **OPTIONS)
    assert tree(tmp_path / "whole") == tree(tmp_path / "parts")


def test_progress_ends_at_the_total(tmp_path, table):
    seen = {}
    stcli.build_index(
        table[0],
        tmp_path / "out",
        progress=lambda stage, done, total, unit: seen.update({stage: (done, total)}),
        **OPTIONS,
    )
    assert {"read", "cluster", "assign", "quantize"} <= set(seen)
    assert all(done == total for done, total in seen.values())


# ---- allowed, and counted -----------------------------------------------------------------------------------------


def test_zero_vectors_are_allowed_and_counted(tmp_path):
    rows = vectors(40, DIM)
    rows[[3, 17, 39]] = 0
    columns = {"item_id": pa.array(range(40)), "embedding": fixed(rows)}
    summary = stcli.build_index(write_items(tmp_path / "i.parquet", columns), tmp_path / "out", clusters=4)
    assert summary["counts"]["zero_vectors"] == 3
    check_index(tmp_path / "out", columns, [])
    read = read_index(tmp_path / "out")
    for row_id in (3, 17, 39):
        row = read.ids.index(row_id)
        assert read.arrays["scales"][row] == 1
        assert not read.arrays["codes"][row].any()


def test_only_zero_vectors(tmp_path):
    columns = {"item_id": pa.array(range(5)), "embedding": fixed(np.zeros((5, DIM), np.float32))}
    for scale in ("row", "global"):
        stcli.build_index(
            write_items(tmp_path / "i.parquet", columns), tmp_path / "out", clusters=2, scale=scale, overwrite=True
        )
        check_index(tmp_path / "out", columns, [])


def test_tiny_rows_are_no_zero_vectors(tmp_path):
    rows = vectors(20, DIM) * np.float32(1e-25)  # their squares are zero in float32
    columns = {"item_id": pa.array(range(20)), "embedding": fixed(rows)}
    summary = stcli.build_index(write_items(tmp_path / "i.parquet", columns), tmp_path / "out", clusters=2)
    assert summary["counts"]["zero_vectors"] == 0
    check_index(tmp_path / "out", columns, [])


def test_nulls_inside_lists_are_counted(tmp_path):
    columns = {"embedding": fixed(vectors(6, 4)), "tags": pa.array([["a", None], [None], None, [], ["b"], ["a"]])}
    stcli.build_index(write_items(tmp_path / "i.parquet", columns), tmp_path / "out")
    assert read_index(tmp_path / "out").manifest["nulls_in_lists"] == 2


def test_differing_lengths_are_noted(tmp_path):
    rows = vectors(20, DIM)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    for factor, differ in ((1.0, False), (1.5, True)):
        rows[0] *= factor
        source = write_items(tmp_path / "i.parquet", {"embedding": fixed(rows)})
        stcli.build_index(source, tmp_path / "out", overwrite=True)
        assert read_index(tmp_path / "out").manifest["lengths_differ"] is differ
