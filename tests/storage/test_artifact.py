"""The artifact file: manifest and tensors agree, and a damaged one is refused."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest

from stcli.errors import FormatError
from stcli.storage.artifact import open_artifact_file, write_artifact
from stcli.storage.manifest import canonical, sealed
from tests.storage.bodies import artifact_body

ARRAYS = {"codes": np.arange(12, dtype=np.int8).reshape(3, 4), "scales": np.array([0.5, 1, 2], np.float32)}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.safetensors"
    write_artifact(path, ARRAYS, artifact_body(3))
    return path


def edit(file, change):
    """Write the file again with another header; `change` is given the header and the manifest, both dictionaries."""
    raw = file.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    manifest = json.loads(header["__metadata__"]["stcli"])
    change(header, manifest)
    header["__metadata__"]["stcli"] = canonical(manifest)
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])


def seal(manifest):
    """Give an edited manifest the fingerprint it needs."""
    body = {key: value for key, value in manifest.items() if key not in ("format", "version", "fingerprint")}
    manifest.update(sealed(manifest["format"], body))


def test_what_was_written_is_read(file):
    artifact = open_artifact_file(file, verify=True)
    assert artifact.manifest["num_items"] == 3
    assert {name: array.tolist() for name, array in artifact.arrays.items()} == {
        name: array.tolist() for name, array in ARRAYS.items()
    }


def test_a_path_that_is_no_file(tmp_path):
    for path, words in ((tmp_path, "is a directory"), (tmp_path / "nothing", "is not there")):
        with pytest.raises(FormatError, match=rf"{words}; expected a .safetensors file made by stcli pack-model"):
            open_artifact_file(path)


def test_an_edited_manifest_is_found_at_once(file):
    edit(file, lambda header, manifest: manifest.update(num_items=4))
    with pytest.raises(FormatError, match="the manifest does not match its fingerprint"):
        open_artifact_file(file)


def test_a_manifest_of_something_else(file):
    edit(file, lambda header, manifest: manifest.update(format="stcli-index"))
    with pytest.raises(FormatError, match=r"model.safetensors: its format is 'stcli-index', expected 'stcli-artifact'"):
        open_artifact_file(file)


def test_a_manifest_that_is_no_json(file):
    raw = file.read_bytes()
    file.write_bytes(raw.replace(b'"stcli":"{', b'"stcli":"[', 1))
    with pytest.raises(FormatError, match=r"model.safetensors: its manifest is not JSON"):
        open_artifact_file(file)


def test_tensors_that_are_not_those_of_the_manifest(file):
    def drop(header, manifest):
        del manifest["arrays"]["scales"]
        seal(manifest)

    edit(file, drop)
    with pytest.raises(FormatError, match="its tensors are not those of its manifest"):
        open_artifact_file(file)


def test_a_tensor_of_another_shape(file):
    edit(file, lambda header, manifest: header["codes"].update(shape=[4, 3]))
    with pytest.raises(FormatError, match=r"tensor 'codes' is int8 \[4, 3\], its manifest says int8 \[3, 4\]"):
        open_artifact_file(file)


def test_an_edited_tensor_is_found_by_verify(file):
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    open_artifact_file(file)
    with pytest.raises(FormatError, match=r"tensor 'codes' does not match its hash"):
        open_artifact_file(file, verify=True)
