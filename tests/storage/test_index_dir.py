"""The index directory as files: written, read back, and refused when it is not whole."""

from __future__ import annotations

import errno
import json
import os

import numpy as np
import pytest

from stcli.errors import FormatError
from stcli.storage.index_dir import IndexWriter, open_index
from stcli.storage.tensors import map_npy
from tests.storage.bodies import index_body

ARRAYS = {
    "codes": np.arange(12, dtype=np.int8).reshape(3, 4),
    "scales": np.array([0.5, 1, 2], np.float32),
    "nothing": np.zeros((0, 3), np.int64),
    "flags": np.array([True, False]),
}


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "items.index"
    path.mkdir()
    writer = IndexWriter(path)
    for name, array in ARRAYS.items():
        if name == "codes":
            writer.create(name, array.dtype, array.shape)[...] = array
        else:
            writer.write(name, array)
    writer.finish(index_body(3))
    return path


def test_what_was_written_is_read(folder):
    opened = open_index(folder, verify=True)
    assert opened.manifest["num_items"] == 3
    assert set(opened.arrays) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert opened.arrays[name].dtype == array.dtype
        assert opened.arrays[name].tolist() == array.tolist()
        assert not opened.arrays[name].flags.writeable or not array.size
    assert sorted(path.name for path in folder.iterdir()) == sorted(["manifest.json", *(f"{n}.npy" for n in ARRAYS)])


def test_arrays_are_plain_npy_files(folder):
    assert np.load(folder / "codes.npy").tolist() == ARRAYS["codes"].tolist()


def test_a_manifest_written_last_seals_it(folder):
    (folder / "manifest.json").unlink()
    with pytest.raises(FormatError, match=r"manifest.json: not found, so this is no whole index"):
        open_index(folder)


def test_a_path_that_is_no_directory(tmp_path):
    (tmp_path / "model.safetensors").touch()
    for name in ("nothing", "model.safetensors"):
        with pytest.raises(FormatError, match=f"{name}: is not an index directory; expected the output of stcli build"):
            open_index(tmp_path / name)


@pytest.mark.parametrize("change", ["gone", "short", "shape", "dtype", "text", "pickle"])
def test_arrays_that_are_not_whole_are_refused(folder, change):
    file = folder / "scales.npy"
    if change == "gone":
        file.unlink()
    elif change == "short":
        file.write_bytes(file.read_bytes()[:-1])
    elif change == "text":
        file.write_text("scales")
    elif change == "pickle":
        np.save(file, np.array([{}, {}, {}]), allow_pickle=True)
    else:
        np.save(file, ARRAYS["scales"].astype(np.float64) if change == "dtype" else ARRAYS["scales"][:2])
    with pytest.raises(FormatError, match=r"scales.npy: .*(make it|build the index) again"):
        open_index(folder)


@pytest.mark.parametrize("other", [ARRAYS["codes"].T.copy().T, ARRAYS["codes"].astype(">i8")], ids=["axes", "bytes"])
def test_another_order_of_axes_or_bytes_is_refused(tmp_path, other):
    np.save(tmp_path / "a.npy", other)
    with pytest.raises(FormatError, match=r"a.npy: has another order of bytes or axes than was written"):
        map_npy(tmp_path / "a.npy", "r")


@pytest.mark.parametrize(
    "text", [b"", b"\x93NUMPY", b"\x93NUMPY\x01\x00\x0a\x00{'descr': (", b"PK\x03\x04" + bytes(99)]
)
def test_headers_that_are_none_are_refused(tmp_path, text):
    (tmp_path / "a.npy").write_bytes(text)
    for mode in ("r", None):
        with pytest.raises(FormatError, match=r"a.npy: cannot be read .*copy it or make it again") as said:
            map_npy(tmp_path / "a.npy", mode)
        assert "\n" not in str(said.value)


def test_an_edited_array_is_found_by_verify(folder):
    file = folder / "codes.npy"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    open_index(folder)
    with pytest.raises(FormatError, match=r"codes.npy: its content does not match the hash in the manifest"):
        open_index(folder, verify=True)


def test_an_edited_manifest_is_found_at_once(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "num_items": 4}))
    with pytest.raises(FormatError, match=r"manifest.json: the manifest does not match its fingerprint"):
        open_index(folder)


def test_space_is_claimed_before_it_is_mapped(tmp_path, monkeypatch):
    # A write to a mapping of a sparse file on a full disk would kill the process by SIGBUS.
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        IndexWriter(tmp_path).create("codes", np.int8, (10, 10))
