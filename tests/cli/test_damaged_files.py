"""Files that are not what they should be: every command ends in one sentence and exit code 2, and changes nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import stcli
import stcli.storage.results
from stcli.storage.artifact import open_artifact_file, write_artifact
from stcli.storage.manifest import canonical


def to_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def to_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


WAYS = {
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "text": lambda path: path.write_bytes(b"no JSON"),
    "list": lambda path: path.write_bytes(b"[]"),
    "deep": lambda path: path.write_bytes(b"[" * 100_000),
    "gone": lambda path: path.unlink(),
    "directory": to_directory,
    "loop": to_loop,
}


@pytest.fixture(scope="module")
def corpus(tiny, tmp_path_factory) -> Path:
    """The tiny corpus as an index with kept columns, an artifact, an updated set, and an interrupted run."""
    folder = tmp_path_factory.mktemp("damaged")
    shutil.copy(tiny.queries, folder / "queries.parquet")
    stcli.build_index(
        tiny.items, folder / "index", feature_columns=["color", "tags"], keep_columns=["color", "price"], clusters=8
    )
    stcli.pack_model(folder / "index", folder / "model")
    pq.write_table(pq.read_table(tiny.items).slice(0, 20), folder / "new.parquet")
    stcli.update(folder / "model", folder / "set", upsert=folder / "new.parquet")
    stcli.retrieve(folder / "model", folder / "queries.parquet", folder / "run", part_rows=30, k=3, target_recall=0.9)
    return folder


def content(path: Path) -> object:
    if path.is_symlink() or not path.exists():
        return path.is_symlink()
    return {inner.name: content(inner) for inner in path.iterdir()} if path.is_dir() else path.read_bytes()


@pytest.fixture
def refused(cli):
    """Run a command that must refuse its input: stderr."""

    def call(*words: object, touched: Path) -> str:
        before = content(touched)
        code, out, err = cli(*words, "-q")
        assert (code, out) == (2, ""), err
        assert err.startswith("stcli: error: ")
        assert err.count("\n") == 1
        assert not Path("out").exists()
        assert content(touched) == before
        return err

    return call


def commands(kind: str, path: Path, corpus: Path) -> list[list[object]]:
    if kind == "index":
        return [["pack-model", path, "-o", "out"], ["pack-model", path, "-o", "out", "--dry-run"], ["inspect", path]]
    queries = corpus / "queries.parquet"
    return [
        ["retrieve", path, queries, "-o", "out", "--k", 3],
        ["bench", path, queries, "-o", "out", "--k", 3, "--sample", 9],
        ["update", path, "--upsert", corpus / "new.parquet", "-o", "out"],
        ["update", path, "--compact", "-o", "out"],
        ["explain", path, "--filter", "color = 'red'"],
        ["inspect", path],
    ]


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize(
    ("kind", "name"),
    [("index", "manifest.json"), ("index", "codes.npy"), ("index", "term_offsets.npy"), ("index", "columns.npy"),
     ("set", "set.json"), ("set", "main.safetensors"), ("set", "tombstones.npy"), ("model", "")],
)  # fmt: skip
def test_files_of_an_index_or_an_artifact(refused, corpus, tmp_path, kind, name, how):
    made = tmp_path / kind
    (shutil.copyfile if kind == "model" else shutil.copytree)(corpus / kind, made)
    WAYS[how](made / name if name else made)
    for words in commands(kind, made, corpus):
        refused(*words, touched=made)


UNREADABLE = ("empty", "text", "list", "deep", "directory")


@pytest.mark.parametrize(
    ("name", "how"),  # a calibration that is gone is made again, the same
    [
        ("_identity.json", "gone"),
        *((name, how) for name in ("_identity.json", "_calibration.json") for how in UNREADABLE),
    ],
)
def test_an_interrupted_run(refused, corpus, tmp_path, name, how):
    partial = tmp_path / "out.partial"
    shutil.copytree(corpus / "run", partial)
    manifest = stcli.storage.results.open_results(partial)
    (partial / "_manifest.json").unlink()
    for key, file in (("identity", "_identity.json"), ("calibration", "_calibration.json")):
        (partial / file).write_text(canonical(manifest[key]))
    (partial / "part-00003.parquet").unlink()
    run = [
        "retrieve",
        corpus / "model",
        corpus / "queries.parquet",
        "-o",
        "out",
        "--part-rows",
        30,
        "--k",
        3,
        "--resume",
    ]
    run += ["--target-recall", 0.9]
    if (name, how) in (("_calibration.json", "gone"), ("_calibration.json", "loop")):  # it is made again
        return
    WAYS[how](partial / name)
    refused(*run, touched=partial)


@pytest.mark.parametrize("how", [*UNREADABLE, "gone", "loop"])
def test_given_files(refused, corpus, tmp_path, how):
    given = tmp_path / "given"
    given.write_text("k = 3")
    WAYS[how](given)
    run = ["retrieve", corpus / "model", corpus / "queries.parquet", "-o", "out"]
    refused(*run, "--calibration", given, touched=given)
    if how != "empty":  # no options are a config
        refused(*run, "--config", given, touched=given)


def test_a_damaged_page_of_a_query_table(refused, corpus, tmp_path):
    data = bytearray((corpus / "queries.parquet").read_bytes())
    data[4:400] = bytes(396)
    (tmp_path / "q.parquet").write_bytes(data)
    said = refused("retrieve", corpus / "model", tmp_path / "q.parquet", "-o", "out", touched=tmp_path / "q.parquet")
    assert "q.parquet: cannot be read" in said


def test_numbers_of_another_index(refused, corpus, tmp_path):
    opened = open_artifact_file(corpus / "model")
    body = {key: value for key, value in opened.manifest.items() if key not in ("format", "version", "fingerprint")}
    for change in ({"num_items": 1999}, {"num_items": 0}, {"num_clusters": 9}, {"dim": "16"}, {"columns": ["price"]}):
        write_artifact(tmp_path / "model", {**opened.arrays}, body | change)
        run = ["retrieve", tmp_path / "model", corpus / "queries.parquet", "-o", "out"]
        said = refused(*run, "--item-columns", "price", touched=tmp_path / "model")
        assert f"{tmp_path / 'model'}: " in said


def test_a_kept_column_that_leads_astray(refused, corpus, tmp_path):
    """It was followed into a segmentation fault."""
    opened = open_artifact_file(corpus / "model")
    arrays = {name: np.array(array) for name, array in opened.arrays.items()}
    column = pa.ipc.open_file(pa.py_buffer(opened.arrays["columns"])).read_all()["color"].chunk(0)
    offsets = column.buffers()[1].to_pybytes()
    at = arrays["columns"].tobytes().index(offsets)
    arrays["columns"][at + 4 : at + len(offsets) - 4].view(np.uint8)[:] = 0x7F
    body = {key: value for key, value in opened.manifest.items() if key not in ("format", "version", "fingerprint")}
    write_artifact(tmp_path / "model", arrays, body)
    run = ["retrieve", tmp_path / "model", corpus / "queries.parquet", "-o", "out", "--k", 3]
    said = refused(*run, "--item-columns", "color", touched=tmp_path / "model")
    assert f"{tmp_path / 'model'}: the kept column 'color' leads out of its data" in said
