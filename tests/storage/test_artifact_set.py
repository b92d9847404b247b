"""The artifact set: what was written is read, and a set that is not whole is refused in one sentence."""

from __future__ import annotations

import errno
import os
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stcli.errors import FormatError
from stcli.storage.artifact import write_artifact
from stcli.storage.artifact_set import Fresh, Shard, bits_of, link_file, open_set, rows_of, write_set
from stcli.storage.atomic import check_output
from stcli.storage.kinds import kind_of
from stcli.storage.manifest import SET, canonical, read_json, sealed
from tests.storage.bodies import SET_BODY, artifact_body

SIZES = {"shard-00000.safetensors": 100, "shard-00001.safetensors": 30, "fresh.safetensors": 7}
DEAD = np.array([0, 63, 64, 99, 100, 129, 130, 136])


def write_part(path, num_items):
    return write_artifact(path, {"scales": np.full(num_items, num_items, np.float32)}, artifact_body(num_items))


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "set"
    path.mkdir()
    prints = {name: write_part(path / name, size)["fingerprint"] for name, size in SIZES.items()}
    pq.write_table(pa.table({"item_id": range(7)}), path / "fresh.parquet")
    first, second, fresh = SIZES
    shards = [Shard(first, prints[first], 0, 100, 0, 4), Shard(second, prints[second], 100, 30, 4, 1)]
    write_set(
        path,
        shards,
        Fresh(fresh, prints[fresh], 7, "fresh.parquet", {"rows": 7, "files": []}),
        bits_of(DEAD, 137),
        SET_BODY,
    )
    return path


def change(folder, edit):
    """Edit `set.json`, and seal it again."""
    body = read_json(folder / "set.json", "set")
    edit(body)
    for key in ("format", "version", "fingerprint"):
        del body[key]
    (folder / "set.json").write_text(canonical(sealed(SET, body)))


def test_what_was_written_is_read(folder):
    opened = open_set(folder, verify=True)
    assert [part.arrays["scales"].shape for part in opened.parts] == [(100,), (30,), (7,)]
    assert (opened.num_main, opened.num_rows, opened.manifest["num_items"]) == (130, 137, 129)
    assert rows_of(opened.tombstones).tolist() == DEAD.tolist()
    assert opened.tombstones.shape == (3,)
    assert kind_of(folder) == SET


def test_a_set_of_one_file_has_no_tombstones_and_nothing_fresh(tmp_path):
    manifest = write_part(tmp_path / "main.safetensors", 5)
    written = write_set(
        tmp_path,
        [Shard("main.safetensors", manifest["fingerprint"], 0, 5, 0, 2)],
        None,
        bits_of(np.zeros(0, int), 5),
        SET_BODY,
    )
    opened = open_set(tmp_path)
    assert (opened.fresh, opened.tombstones, opened.fingerprint) == (None, None, written["fingerprint"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["main.safetensors", "set.json"]


@pytest.mark.parametrize("name", [*SIZES, "fresh.parquet", "tombstones.npy"])
def test_a_missing_file_is_refused(folder, name):
    (folder / name).unlink()
    with pytest.raises(FormatError, match=rf"{name}: is missing, so the set is not whole"):
        open_set(folder)


def test_without_its_manifest_it_is_no_set(folder, tmp_path):
    (folder / "set.json").unlink()
    with pytest.raises(FormatError, match=r"set.json: not found, so this is no whole artifact set"):
        open_set(folder)
    with pytest.raises(FormatError, match="is not an artifact set; expected a directory made by stcli update"):
        open_set(tmp_path / "nothing")


@pytest.mark.parametrize("name", SIZES)
def test_a_file_of_another_set_is_refused(folder, name):
    write_artifact(folder / name, {"scales": np.zeros(SIZES[name], np.float32)}, artifact_body(SIZES[name], seed=1))
    with pytest.raises(FormatError, match=rf"{name}: has fingerprint \w{{16}}, the set was made with \w{{16}}"):
        open_set(folder)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda body: body.update(num_rows=138), "its parts have 137 rows, 8 of them dead, but it states 138 rows"),
        (lambda body: body.update(num_items=137), "8 of them dead, but it states 137 rows and 137 items"),
        (lambda body: body.update(shards=[], num_rows=7), "its parts have 7 rows"),
        (lambda body: body["shards"].reverse(), "00001.safetensors starts at row 100 and cluster 4, expected row 0"),
        (lambda body: body["shards"][1].update(first_cluster=3), "and cluster 3, expected row 100 and cluster 4"),
        (
            lambda body: (body["fresh"].update(num_items=8), body.update(num_rows=138, num_items=130)),
            "fresh.safetensors: has 7 items, set.json says 8",
        ),
        (lambda body: body["fresh"].update(file="../set/fresh.safetensors"), "is missing, so the set is not whole"),
    ],
)  # fmt: skip
def test_numbers_that_do_not_add_up(folder, edit, words):
    change(folder, edit)
    with pytest.raises(FormatError, match=words):
        open_set(folder)


def test_an_edited_manifest_is_found_at_once(folder):
    path = folder / "set.json"
    path.write_text(path.read_text().replace('"num_rows":137', '"num_rows":138'))
    with pytest.raises(FormatError, match="the manifest does not match its fingerprint"):
        open_set(folder)


def test_tombstones_of_other_rows(folder):
    np.save(folder / "tombstones.npy", np.zeros(2, np.int64))
    with pytest.raises(FormatError, match=r"is int64 \[2\], expected int64 \[3\] for 137 rows"):
        open_set(folder)
    np.save(folder / "tombstones.npy", np.zeros(3, np.int64))
    open_set(folder)
    with pytest.raises(FormatError, match=r"tombstones.npy: does not match its hash"):
        open_set(folder, verify=True)
    (folder / "tombstones.npy").write_bytes(b"nothing")
    with pytest.raises(FormatError, match=r"tombstones.npy: cannot be read"):
        open_set(folder)


def test_bits_are_those_of_single_rows():
    rows = np.array([5, 5, 63, 64, 130])
    words = bits_of(rows, 131)
    assert [row for row in range(192) if words[row // 64] >> (row % 64) & 1] == [5, 63, 64, 130]
    assert rows_of(words).tolist() == [5, 63, 64, 130]
    assert bits_of(np.zeros(0, int), 0).shape == (0,)


def test_an_unchanged_file_is_linked_or_else_copied(folder, tmp_path, monkeypatch):
    source, linked, copied = folder / "fresh.safetensors", tmp_path / "linked", tmp_path / "copied"
    assert link_file(source, linked)
    assert source.samefile(linked)

    def refuse(*_):
        raise OSError(errno.EXDEV, "another filesystem")

    monkeypatch.setattr(os, "link", refuse)
    assert not link_file(source, copied)
    assert copied.read_bytes() == source.read_bytes()
    assert not source.samefile(copied)


def test_a_set_may_be_replaced_by_an_output(folder, tmp_path):
    check_output(folder, overwrite=True)
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    assert open_set(moved).fingerprint == open_set(folder).fingerprint
