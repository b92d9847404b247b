"""`pack_model`: what stands in the artifact, second embeddings joined by id, bad input, and stopping half-way."""

from __future__ import annotations

import errno
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors
import safetensors.numpy

import stcli
from stcli.errors import ExistsError, FormatError, InputError, RunError
from stcli.pipeline import pack_model as module
from stcli.storage import tensors
from tests.index_tools import DIM, OPTIONS, ROWS, fixed, mixed_items, tree, vectors, write_items
from tests.oracles_index import read_index

PACKED = {"embedding_values", "embedding_exponents", "errors", "norms"}


OLD = (2).to_bytes(8, "little") + b"{}"
"""What may be an artifact."""


def build(folder, columns, name="items.index", **options):
    stcli.build_index(write_items(folder / "items.parquet", columns), folder / name, **{**OPTIONS, **options})
    return folder / name


def read(path):
    """The manifest and arrays of an artifact, by the official library."""
    with safetensors.safe_open(path, "numpy") as file:
        assert set(file.metadata()) == {"stcli"}
        manifest = json.loads(file.metadata()["stcli"])
    return manifest, safetensors.numpy.load_file(path)


def restored(arrays):
    """The packed embeddings in float64."""
    exponents = arrays.get("embedding_exponents", np.zeros(len(arrays["embedding_values"]), np.int8))
    return arrays["embedding_values"].astype(np.float64) * 2.0 ** exponents.astype(np.float64)[:, None]


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """An index of mixed columns; read-only."""
    return build(tmp_path_factory.mktemp("pack"), mixed_items(), keep_columns=["string"])


# ---- content --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "float32", "none"])
def test_the_artifact_holds_the_index(tmp_path, index, dtype):
    summary = stcli.pack_model(index, tmp_path / "m.safetensors", embedding_dtype=dtype)
    manifest, arrays = read(tmp_path / "m.safetensors")
    source = read_index(index)
    assert set(arrays) - PACKED == set(source.arrays) - {"embeddings"}
    for name in set(arrays) - PACKED:
        assert arrays[name].dtype == source.arrays[name].dtype
        assert np.array_equal(arrays[name], source.arrays[name])
    for key in (
        "num_items",
        "dim",
        "num_clusters",
        "metric",
        "seed",
        "filter",
        "columns",
        "input",
        "embedding_version",
    ):
        assert manifest[key] == source.manifest[key]
    assert manifest["index"] == source.manifest["fingerprint"]
    assert manifest["embedding_dim"] == (0 if dtype == "none" else DIM)
    assert summary["fingerprint"] == manifest["fingerprint"]
    groups = {name: size for name, size in summary["bytes"].items() if name != "total"}
    assert sum(groups.values()) == summary["bytes"]["total"] == sum(array.nbytes for array in arrays.values())
    expected = {"float16": 2 * DIM * ROWS + ROWS, "float32": 4 * DIM * ROWS, "none": 0}[dtype]
    assert groups["embeddings"] == expected
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]
    model = stcli.open_artifact(tmp_path / "m.safetensors", verify=True)
    assert len(model(vectors(3, DIM), k=5).item_ids) == 3


def test_equal_bytes_each_time(tmp_path, index):
    for name in ("a", "b"):
        stcli.pack_model(index, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_pieces_may_be_cut_anywhere(tmp_path, index, monkeypatch):
    stcli.pack_model(index, tmp_path / "a")
    monkeypatch.setattr(module, "CHUNK_ROWS", 17)
    monkeypatch.setattr(tensors, "COPY_BYTES", 101)
    stcli.pack_model(index, tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_float32_is_packed_as_it_is(tmp_path, index):
    stcli.pack_model(index, tmp_path / "m", embedding_dtype="float32")
    _, arrays = read(tmp_path / "m")
    assert np.array_equal(arrays["embedding_values"], read_index(index).arrays["embeddings"])
    assert "embedding_exponents" not in arrays


FACTORS = [1e-30, 1e-20, 1e-5, 1.0, 1e6, 1e20, 1e30]


@pytest.fixture(scope="module")
def scaled(tmp_path_factory):
    """An index whose rows are 1e-30 … 1e30 long, some zero, some with values of very different size."""
    rows = vectors(140, DIM).astype(np.float64) * np.repeat(FACTORS, 20)[:, None]
    rows[::19] = 0
    rows[5::20, 0] *= 1e-4
    return build(tmp_path_factory.mktemp("scaled"), {"embedding": fixed(rows.astype(np.float32))})


def test_float16_keeps_rows_of_any_length(tmp_path, scaled):
    stcli.pack_model(scaled, tmp_path / "m")
    _, arrays = read(tmp_path / "m")
    exact = read_index(scaled).arrays["embeddings"].astype(np.float64)
    packed = restored(arrays)
    largest = np.abs(exact).max(1, keepdims=True)
    # A half has eleven significant bits down to 2^-14; the largest of a row stands at 2^14 or above, so that a value
    # down to 2^-28 of it loses at most 2^-11 of itself, and a smaller one 2^-11 of that.
    assert (np.abs(packed - exact) <= 2.0**-11 * np.maximum(np.abs(exact), 2.0**-28 * largest)).all()
    assert arrays["embedding_values"].dtype == np.float16
    assert arrays["embedding_exponents"].dtype == np.int8
    assert not arrays["embedding_exponents"][largest[:, 0] == 0].any()


def test_a_float16_table_is_packed_without_loss(tmp_path):
    rows = (vectors(60, DIM) * np.repeat([1e-4, 1.0, 300.0], 20)[:, None]).astype(np.float16)
    rows[7] = np.array([6e-8, -6e-8, 3.05e-5] + [0] * (DIM - 3), np.float16)  # below the least normal half
    path = build(tmp_path, {"embedding": fixed(rows)})
    stcli.pack_model(path, tmp_path / "m")
    assert np.array_equal(restored(read(tmp_path / "m")[1]), read_index(path).arrays["embeddings"].astype(np.float64))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("which", ["index", "scaled"])
def test_errors_and_norms_bound_what_they_say(tmp_path, request, dtype, which):
    stcli.pack_model(request.getfixturevalue(which), tmp_path / "m", embedding_dtype=dtype)
    _, arrays = read(tmp_path / "m")
    approximate = arrays["codes"][:, :DIM] * arrays["scales"].astype(np.float64)[:, None]
    norms = np.sqrt((approximate**2).sum(1))
    errors = np.sqrt(((restored(arrays) - approximate) ** 2).sum(1))
    assert (arrays["norms"] >= norms).all()
    assert (arrays["errors"] >= errors).all()
    # They are no more generous than the float32 rounding that they allow for.
    least = np.finfo(np.float32).tiny
    assert (arrays["norms"] <= norms * (1 + 1e-5) + least).all()
    assert (arrays["errors"] <= errors * (1 + 1e-5) + norms * 1e-5 + least).all()
    assert arrays["errors"].dtype == arrays["norms"].dtype == np.float32


def test_progress_ends_at_the_total(tmp_path, index):
    seen = {}
    stcli.pack_model(
        index, tmp_path / "m", progress=lambda stage, done, total, unit: seen.update({stage: (done, total)})
    )
    assert seen == {"pack": (ROWS, ROWS)}


# ---- second embeddings, joined by id -----------------------------------------------------------------------------


def wide_rows(rows=ROWS, dim=DIM + 6):
    return vectors(rows, dim, seed=9)


def write_wide(folder, ids, rows):
    """A table of second embeddings: another order, other column names, and items that the index lacks."""
    order = np.random.default_rng(4).permutation(len(ids))
    embedding = rows if isinstance(rows, pa.Array) else fixed(rows)
    table = pa.table({"key": pa.array(ids), "wide": embedding}).take(pa.array(order))
    pq.write_table(table, folder / "wide.parquet", row_group_size=50)
    return folder / "wide.parquet"


def pack_wide(index, folder, path, **options):
    options = {"embeddings": str(path), "id_column": "key", "embedding_column": "wide", **options}
    return stcli.pack_model(index, folder / "m", **options)


@pytest.mark.parametrize("ids", ["int64", "string"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_second_embeddings_are_joined_by_id(tmp_path, ids, dtype, monkeypatch):
    monkeypatch.setattr("stcli.pipeline.wide.BATCH_ROWS", 37)
    columns = mixed_items()
    more = [10**6 + i for i in range(25)]
    if ids == "string":
        columns["item_id"] = pa.array([f"item {i}" for i in columns["item_id"].to_pylist()])
        more = [f"more {i}" for i in more]
    index = build(tmp_path, columns)
    given = columns["item_id"].to_pylist() + more
    rows = wide_rows(len(given))
    summary = pack_wide(index, tmp_path, write_wide(tmp_path, given, rows), embedding_dtype=dtype)
    manifest, arrays = read(tmp_path / "m")
    expected = rows[[given.index(row_id) for row_id in read_index(index).ids]].astype(np.float64)
    packed = restored(arrays)
    if dtype == "float32":
        assert np.array_equal(packed, expected)
    else:
        np.testing.assert_allclose(packed, expected, rtol=2**-11)
    assert manifest["embedding_dim"] == summary["counts"]["embedding_dim"] == DIM + 6
    assert manifest["dim"] == DIM
    assert "errors" not in arrays
    assert len(stcli.open_artifact(tmp_path / "m")(wide_rows(2), k=4, exact=True).item_ids) == 2
    assert not list(tmp_path.glob("m.*"))


def test_second_embeddings_of_a_cosine_index_have_length_one(tmp_path):
    columns = mixed_items()
    index = build(tmp_path, columns, metric="cosine")
    rows = wide_rows() * np.float32(7)
    pack_wide(index, tmp_path, write_wide(tmp_path, columns["item_id"].to_pylist(), rows))
    np.testing.assert_allclose(np.linalg.norm(restored(read(tmp_path / "m")[1]), axis=1), 1, rtol=1e-3)


def wide_table(**columns):
    """Second embeddings of the 240 items; columns may be replaced, or cut with `keep`."""
    keep = columns.pop("keep", slice(None))
    return {"key": pa.array(INDEX_IDS[keep], pa.int64()), "wide": fixed(wide_rows()[keep]), **columns}


INDEX_IDS = sorted(mixed_items()["item_id"].to_pylist())

WIDE = {
    "missing": (
        r"no embedding for item .* and 1 more of 240; every item of the index needs one",
        wide_table(keep=slice(2, None)),
    ),
    "empty": (r"no embedding for item .* and 239 more of 240", wide_table(keep=slice(0))),
    "twice": (
        r"an item id stands twice near row \d+; ids must be unique",
        wide_table(key=pa.array([*INDEX_IDS[:-1], INDEX_IDS[3]])),
    ),
    "narrow": (
        r"embeddings have 8 dimensions, the index 10; expected at least as many",
        wide_table(wide=fixed(wide_rows()[:, :8])),
    ),
    "texts": (
        r"column 'key' holds string ids, the index int64; expected the ids of its items",
        wide_table(key=pa.array([str(row_id) for row_id in INDEX_IDS])),
    ),
    "no ids": (
        r"column 'key' is double; ids must be an integer or a string",
        wide_table(key=pa.array([float(row_id) for row_id in INDEX_IDS])),
    ),
    "no floats": (
        r"column 'wide' is .*; an embedding must be a list of float16",
        wide_table(wide=fixed(wide_rows().astype(np.int32))),
    ),
    "NaN": (
        r"row \d+: column 'wide' holds a NaN",
        wide_table(wide=fixed(np.where(wide_rows() > 2, np.nan, wide_rows()))),
    ),
    "length": (
        r"row \d+: column 'wide' has length 3 where 16 was expected",
        wide_table(wide=pa.array([[1.0] * 3, *wide_rows()[1:].tolist()])),
    ),
}


@pytest.mark.parametrize("name", WIDE)
def test_second_embeddings_that_do_not_fit(tmp_path, index, name):
    words, columns = WIDE[name]
    path = write_wide(tmp_path, columns["key"], columns["wide"])
    with pytest.raises(InputError, match=f"wide.parquet: {words}") as caught:
        pack_wide(index, tmp_path, path)
    assert caught.value.exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["wide.parquet"]


def test_a_bad_row_of_an_item_that_the_index_lacks_does_not_matter(tmp_path, index):
    rows = wide_rows(ROWS + 1)
    rows[-1] = np.nan
    pack_wide(index, tmp_path, write_wide(tmp_path, [*INDEX_IDS, 10**9], rows))
    assert stcli.open_artifact(tmp_path / "m", verify=True).query_dim == DIM + 6


def test_columns_of_second_embeddings_are_checked(tmp_path, index):
    path = write_wide(tmp_path, INDEX_IDS, wide_rows())
    with pytest.raises(InputError, match=r"wide.parquet: no column 'item_id' \(--id-column\); .*there are: key, wide"):
        stcli.pack_model(index, tmp_path / "m", embeddings=str(path))
    with pytest.raises(InputError, match=r"nothing.parquet: no such file"):
        stcli.pack_model(index, tmp_path / "m", embeddings=str(tmp_path / "nothing.parquet"))


# ---- bad input -----------------------------------------------------------------------------------------------------


def test_bad_options(tmp_path, index):
    with pytest.raises(InputError, match="--embedding-dtype 'int4': expected one of float16, float32, none"):
        stcli.pack_model(index, tmp_path / "m", embedding_dtype="int4")
    with pytest.raises(InputError, match="--embeddings names what --embedding-dtype none leaves out"):
        stcli.pack_model(index, tmp_path / "m", embedding_dtype="none", embeddings="wide.parquet")
    assert list(tmp_path.iterdir()) == []


def test_inputs_that_are_no_index(tmp_path, index):
    stcli.pack_model(index, tmp_path / "m")
    before = tree(tmp_path)
    for path in (tmp_path / "nothing", tmp_path / "m", index.parent / "items.parquet"):
        with pytest.raises(FormatError, match="is not an index directory; expected the output of stcli build-index"):
            stcli.pack_model(path, tmp_path / "new")
    with pytest.raises(FormatError, match=r"manifest.json: not found, so this is no whole index"):
        stcli.pack_model(tmp_path, tmp_path / "new")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("damage", ["truncated", "gone", "edited manifest", "other dtype"])
def test_a_damaged_index(tmp_path, index, damage):
    copy = tmp_path / "items.index"
    shutil.copytree(index, copy)
    codes = copy / "codes.npy"
    if damage == "truncated":
        codes.write_bytes(codes.read_bytes()[:-5])
    elif damage == "gone":
        codes.unlink()
    elif damage == "other dtype":
        np.save(codes, np.load(codes).astype(np.int16))
    else:
        manifest = json.loads((copy / "manifest.json").read_text())
        (copy / "manifest.json").write_text(json.dumps({**manifest, "metric": "cosine"}))
    with pytest.raises(FormatError, match=r"(codes.npy|manifest.json): .* again") as caught:
        stcli.pack_model(copy, tmp_path / "m")
    assert caught.value.exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["items.index"]


def test_outputs_that_cannot_be(tmp_path, index):
    (tmp_path / "m").write_text("old")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ExistsError, match="m: already exists; choose another -o or add --overwrite"):
        stcli.pack_model(index, tmp_path / "m")
    with pytest.raises(InputError, match="folder: is a directory, and the output is a file"):
        stcli.pack_model(index, tmp_path / "folder", overwrite=True)
    with pytest.raises(InputError, match="--overwrite would remove the input"):
        stcli.pack_model(index, index, overwrite=True)
    with pytest.raises(InputError, match="nowhere does not exist"):
        stcli.pack_model(index, tmp_path / "nowhere" / "m")
    assert tree(tmp_path) == {"m": b"old"}


def test_an_artifact_that_is_cut_or_edited(tmp_path, index):
    stcli.pack_model(index, tmp_path / "m")
    raw = (tmp_path / "m").read_bytes()
    for size in (0, 10, 3000, len(raw) - 1):
        (tmp_path / "cut").write_bytes(raw[:size])
        with pytest.raises(FormatError, match="cut: "):
            stcli.open_artifact(tmp_path / "cut")
    edited = bytearray(raw)
    edited[-1] ^= 1
    (tmp_path / "edited").write_bytes(edited)
    stcli.open_artifact(tmp_path / "edited")
    with pytest.raises(FormatError, match=r"edited: tensor '.*' does not match its hash"):
        stcli.open_artifact(tmp_path / "edited", verify=True)
    (tmp_path / "edited").write_bytes(raw.replace(b"inner_product", b"inner_distant"))
    with pytest.raises(FormatError, match="edited: the manifest does not match its fingerprint"):
        stcli.open_artifact(tmp_path / "edited")


# ---- stopped half-way ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("old", [None, OLD], ids=["new", "old"])
@pytest.mark.parametrize(
    ("error", "seen"),
    [(OSError(errno.ENOSPC, "No space left on device"), RunError), (KeyboardInterrupt(), KeyboardInterrupt)],
    ids=["disk full", "Ctrl-C"],
)
def test_a_failure_half_way_keeps_the_old_artifact(tmp_path, index, monkeypatch, error, seen, old):
    if old is not None:
        (tmp_path / "m").write_bytes(old)
    before = tree(tmp_path)
    pieces = tensors.array_chunks

    def some(tensor):
        yield next(pieces(tensor))
        raise error

    monkeypatch.setattr(tensors, "array_chunks", some)
    with pytest.raises(seen) as caught:
        stcli.pack_model(index, tmp_path / "m", overwrite=True)
    if seen is RunError:
        assert caught.value.exit_code == 1
        assert "m.partial: the disk is full; nothing was published" in str(caught.value)
    assert tree(tmp_path) == before


def test_a_full_disk_at_the_second_embeddings(tmp_path, index, monkeypatch):
    def full(_path):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = write_wide(tmp_path, INDEX_IDS, wide_rows())
    monkeypatch.setattr("stcli.pipeline.wide.allocate", full)
    with pytest.raises(RunError, match="the disk is full"):
        pack_wide(index, tmp_path, path)
    assert [path.name for path in tmp_path.iterdir()] == ["wide.parquet"]


def test_overwrite_replaces_the_old(tmp_path, index):
    (tmp_path / "m").write_bytes(OLD)
    stcli.pack_model(index, tmp_path / "m", overwrite=True)
    stcli.open_artifact(tmp_path / "m", verify=True)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
