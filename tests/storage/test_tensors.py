"""safetensors files: what the official library reads of ours, and what we refuse."""

from __future__ import annotations

import hashlib
import json
import struct

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from stcli.errors import FormatError
from stcli.storage.tensors import COPY_BYTES, LazyArray, read_safetensors, write_safetensors


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {
        "codes": rng.integers(-127, 128, (7, 5)).astype(np.int8),
        "bytes": rng.integers(0, 256, 13).astype(np.uint8),
        "flags": rng.random(9) < 0.5,
        "halves": rng.normal(size=(3, 4)).astype(np.float16),
        "terms": rng.integers(0, 9, 11).astype(np.int32),
        "scales": rng.normal(size=7).astype(np.float32),
        "offsets": rng.integers(0, 9, 3),
        "doubles": rng.normal(size=(2, 2, 2)),
        "nothing": np.zeros((0, 4), np.float32),
    }


def write(path, tensors):
    return write_safetensors(path, tensors, lambda hashes: json.dumps({"hashes": hashes}, sort_keys=True))


def test_the_official_library_reads_the_same(tmp_path):
    written = arrays()
    text = write(tmp_path / "a.safetensors", written)
    with safetensors.safe_open(tmp_path / "a.safetensors", "numpy") as file:
        assert file.metadata() == {"stcli": text}
    found = safetensors.numpy.load_file(tmp_path / "a.safetensors")
    assert set(found) == set(written)
    for name, array in written.items():
        assert found[name].dtype == array.dtype
        assert found[name].tolist() == array.tolist()


def test_we_read_the_same_and_the_hashes_are_of_the_bytes(tmp_path):
    written = arrays()
    text = write(tmp_path / "a.safetensors", written)
    again, found = read_safetensors(tmp_path / "a.safetensors")
    assert again == text
    hashes = json.loads(text)["hashes"]
    for name, array in written.items():
        assert found[name].dtype == array.dtype
        assert found[name].tolist() == array.tolist()
        assert hashes[name] == hashlib.sha256(array.tobytes()).hexdigest()
        assert found[name].ctypes.data % array.dtype.itemsize == 0


def test_equal_content_gives_equal_bytes_in_any_order(tmp_path):
    written = arrays()
    write(tmp_path / "a", written)
    write(tmp_path / "b", dict(reversed(written.items())))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_lazy_arrays_of_several_pieces(tmp_path):
    whole = np.arange(30, dtype=np.float32).reshape(10, 3)
    pieces = (whole[start : start + 4] for start in range(0, 10, 4))
    write(tmp_path / "lazy", {"x": LazyArray(whole.dtype, whole.shape, pieces), "codes": arrays()["codes"]})
    write(tmp_path / "plain", {"x": whole, "codes": arrays()["codes"]})
    assert (tmp_path / "lazy").read_bytes() == (tmp_path / "plain").read_bytes()


def test_an_array_above_the_copy_size_and_views(tmp_path):
    large = np.arange(COPY_BYTES // 4 + 5, dtype=np.int32)
    view = np.arange(12, dtype=np.int64).reshape(3, 4).T
    write(tmp_path / "a", {"large": large, "view": view})
    found = safetensors.numpy.load_file(tmp_path / "a")
    assert np.array_equal(found["large"], large)
    assert found["view"].tolist() == view.tolist()


def test_arrays_are_mapped_copy_on_write(tmp_path):
    write(tmp_path / "a", {"x": np.arange(4)})
    before = (tmp_path / "a").read_bytes()
    _, found = read_safetensors(tmp_path / "a")
    found["x"][0] = 99
    assert (tmp_path / "a").read_bytes() == before


# ---- refused --------------------------------------------------------------------------------------------------


def test_a_file_cut_anywhere_is_refused(tmp_path):
    write(tmp_path / "a", arrays())
    whole = (tmp_path / "a").read_bytes()
    for length in [0, 1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 8, len(whole) - 1]:
        (tmp_path / "cut").write_bytes(whole[:length])
        with pytest.raises(FormatError, match=r"truncated, damaged or not a safetensors file .*by stcli"):
            read_safetensors(tmp_path / "cut")


def test_a_file_with_more_at_its_end_is_refused(tmp_path):
    write(tmp_path / "a", arrays())
    (tmp_path / "more").write_bytes((tmp_path / "a").read_bytes() + b"\0" * 8)
    with pytest.raises(FormatError, match=r"truncated, damaged or not a safetensors file .*by stcli"):
        read_safetensors(tmp_path / "more")


@pytest.mark.parametrize("content", [b"PAR1" * 20, b"\x10\0\0\0\0\0\0\0[1, 2, 3]       ", b"\xff" * 64])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(FormatError, match=r"truncated, damaged or not a safetensors file .*by stcli"):
        read_safetensors(tmp_path / "a")


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_the_safetensors_of_others_are_refused(tmp_path, metadata):
    safetensors.numpy.save_file({"weight": np.zeros(3)}, tmp_path / "a", metadata)
    with pytest.raises(FormatError, match="is a safetensors file, but was not made by stcli pack-model"):
        read_safetensors(tmp_path / "a")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("dtype", "F8"),
        ("dtype", None),
        ("shape", [3]),
        ("shape", "many"),
        ("shape", [-1, -4]),
        ("data_offsets", [0]),
        ("data_offsets", [0, 10**15]),
        ("data_offsets", [-16, 16]),
    ],
)
def test_damaged_header_entries_are_refused(tmp_path, key, value):
    write(tmp_path / "a", {"x": np.arange(4)})
    raw = (tmp_path / "a").read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    header["x"][key] = value
    text = json.dumps(header).encode()
    (tmp_path / "a").write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])
    with pytest.raises(FormatError, match=r"truncated, damaged or not a safetensors file .*by stcli"):
        read_safetensors(tmp_path / "a")
