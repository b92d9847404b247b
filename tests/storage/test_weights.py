"""Weights from outside: what is whole is read, what could run code or lies about itself is refused in one sentence."""

from __future__ import annotations

import json
import pickle
import struct
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from stcli.errors import FormatError, InputError, StcliError
from stcli.storage.weights import MAX_CONFIG_BYTES, read_config, read_weights, weights_beside, write_weights

SHAPES = {"layer.weight": (2, 3), "layer.bias": (2,)}


def whole(path: Path) -> Path:
    save_file({name: torch.ones(shape) for name, shape in SHAPES.items()}, path)
    return path


class Trap:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def torch_zip(path: Path, trap: Trap) -> None:
    torch.save({"layer.weight": trap}, path)


def torch_legacy(path: Path, trap: Trap) -> None:
    torch.save({"layer.weight": trap}, path, _use_new_zipfile_serialization=False)


def plain_pickle(path: Path, trap: Trap) -> None:
    path.write_bytes(pickle.dumps(trap))


def oldest_pickle(path: Path, trap: Trap) -> None:
    path.write_bytes(pickle.dumps(trap, protocol=0))


def torch_script(path: Path, trap: Trap) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and what people have
        torch.jit.save(torch.jit.trace(torch.nn.Linear(3, 2), torch.zeros(1, 3)), str(path))


def exported(path: Path, trap: Trap) -> None:
    """As `torch.export.save` lays it out, with a pickle among its members."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/archive_format", "pt2")
        archive.writestr("m/models/model.json", "{}")
        archive.writestr("m/data/sample_inputs/model.pt", pickle.dumps(trap))


def numpy_archive(path: Path, trap: Trap) -> None:
    with path.open("wb") as file:
        np.savez(file, weight=np.array([trap], object), allow_pickle=True)


def library(path: Path, trap: Trap) -> None:
    path.write_bytes(b"\x7fELF" + bytes(60))


CODE = {torch_zip: "torch.save", torch_legacy: "old version", plain_pickle: "pickle", torch_script: "TorchScript",
        exported: r"torch.export program", numpy_archive: "zip archive", library: "shared library"}  # fmt: skip


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors", "model.json"])
@pytest.mark.parametrize("make", CODE, ids=lambda make: make.__name__)
def test_what_could_run_code_is_refused_by_content(make, name, tmp_path):
    sprung = tmp_path / "sprung"
    make(tmp_path / name, Trap(sprung))
    for read in (read_config, lambda path: read_weights(path, SHAPES)):
        with pytest.raises(InputError, match=rf"{CODE[make]}.*can run code.*safetensors\.torch\.save_file") as caught:
            read(tmp_path / name)
        assert "\n" not in str(caught.value)
    assert not sprung.exists()


def test_a_pickle_in_letters_is_neither_json_nor_safetensors(tmp_path):
    oldest_pickle(tmp_path / "m", Trap(tmp_path / "sprung"))
    with pytest.raises(InputError, match="not a JSON config"):
        read_config(tmp_path / "m")
    with pytest.raises(FormatError, match="not a safetensors file"):
        read_weights(tmp_path / "m", SHAPES)
    assert not (tmp_path / "sprung").exists()


def header(entries: object, length: int | None = None, data: int = 32) -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + bytes(data)


def entry(shape=(2, 3), offsets=(0, 24), dtype="F32") -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


BIAS = {"layer.bias": entry((2,), (24, 32))}

HOSTILE = {
    "empty": b"",
    "short": b"\x05\0\0",
    "length beyond the file": header({"layer.weight": entry()} | BIAS, 1 << 20),
    "length of 2^63": header({}, 1 << 63),
    "length of 100 GB": header({}, 10**11),
    "header is no JSON": header(b"{" + b"x" * 40),
    "header is a list": header([1, 2]),
    "deep header": header(b'{"a":' * 20_000),
    "offsets beyond the file": header({"layer.weight": entry(offsets=(0, 2**40))} | BIAS),
    "offsets overlap": header({"layer.weight": entry(), "layer.bias": entry((2,), (16, 24))}),
    "offsets run backwards": header({"layer.weight": entry(offsets=(24, 0))} | BIAS),
    "negative offsets": header({"layer.weight": entry(offsets=(-24, 0))} | BIAS),
    "shape overflows": header({"layer.weight": entry((2**62, 2**62))} | BIAS),
    "negative shape": header({"layer.weight": entry((-2, -3))} | BIAS),
    "shape and offsets disagree": header({"layer.weight": entry((2, 30))} | BIAS),
    "unknown dtype": header({"layer.weight": entry(dtype="PICKLE")} | BIAS),
    "data cut": header({"layer.weight": entry()} | BIAS, data=20),
    "data beyond the tensors": header({"layer.weight": entry()} | BIAS, data=2000),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_hostile_safetensors_are_refused(content, tmp_path):
    (tmp_path / "w").write_bytes(content)
    with pytest.raises(FormatError, match=r"w: is .*save_file\(model.state_dict\(\), PATH\)") as caught:
        read_weights(tmp_path / "w", SHAPES)
    assert "\n" not in str(caught.value)


@settings(max_examples=200, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=4), cut=st.integers(0, 40))
def test_a_damaged_file_gives_one_sentence_or_tensors(changes, cut, tmp_path_factory):
    path = tmp_path_factory.mktemp("damaged") / "w"
    content = bytearray(whole(path).read_bytes())
    for place, value in changes:
        content[place % len(content)] = value
    path.write_bytes(content[: len(content) - cut] if cut > 20 else content)
    said, found = "", SHAPES
    try:
        found = {name: tuple(tensor.shape) for name, tensor in read_weights(path, SHAPES).items()}
    except StcliError as error:
        said = str(error)
    assert "\n" not in said
    assert found == SHAPES


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_floats_become_float32(dtype, tmp_path):
    save_file({"a": torch.tensor([[0.5, -2.0]], dtype=dtype)}, tmp_path / "w")
    (found,) = read_weights(tmp_path / "w", {"a": (1, 2)}).values()
    assert found.dtype == torch.float32
    assert found.tolist() == [[0.5, -2.0]]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"layer.weight": torch.ones(2, 3)}, "'layer.bias' is missing; did you mean 'layer.weight'"),
        (
            {"layer.weight": torch.ones(2, 3), "layer.bias": torch.ones(2), "other": torch.ones(1)},
            "'other' is not part",
        ),
        ({"layer.weight": torch.ones(3, 2), "layer.bias": torch.ones(2)}, r"'layer.weight' is F32 \[3, 2\].*\[2, 3\]"),
        ({"layer.weight": torch.ones(2, 3).int(), "layer.bias": torch.ones(2)}, "is I32"),
        ({"layer.weight": torch.ones(2, 3) / 0, "layer.bias": torch.ones(2)}, "NaN or infinite"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tensors, message, tmp_path):
    save_file(tensors, tmp_path / "w")
    with pytest.raises(InputError, match=message):
        read_weights(tmp_path / "w", SHAPES)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a JSON config"),
        ("[1]", "holds a JSON list"),
        ('{"a": NaN}', "NaN is no number"),
        ('{"a": 1, "a": 2}', "a key stands twice"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": ' + "1" * 5000 + "}", "not a JSON config"),
        (b"\xff\xfe{}", "not a JSON config"),
    ],
)
def test_what_is_no_config_is_refused(text, message, tmp_path):
    (tmp_path / "c.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=message):
        read_config(tmp_path / "c.json")


def test_a_long_config_is_refused_unread(tmp_path):
    with (tmp_path / "c.json").open("wb") as file:
        file.truncate(MAX_CONFIG_BYTES + 1)
    with pytest.raises(InputError, match="has 16,777,217 bytes, a config at most"):
        read_config(tmp_path / "c.json")


def test_no_file(tmp_path):
    with pytest.raises(InputError, match="is a directory"):
        read_config(tmp_path)
    with pytest.raises(InputError, match="is not there"):
        read_weights(tmp_path / "w", SHAPES)


@pytest.mark.parametrize("name", ["../w.safetensors", "/etc/passwd", "", "..", 7, "a/b"])
def test_weights_lie_beside_their_config(name, tmp_path):
    with pytest.raises(InputError, match="the name of a file in the same folder"):
        weights_beside(tmp_path / "c.json", {"weights": name})


@pytest.mark.parametrize("config", [{"kind": "mlp"}, {"kind": "mlp", "weights": "other.safetensors"}])
def test_what_is_written_is_read(config, tmp_path):
    weights = {name: torch.rand(shape) for name, shape in SHAPES.items()}
    write_weights(tmp_path / "c.json", config, weights)
    assert read_config(tmp_path / "c.json") == config
    found = read_weights(weights_beside(tmp_path / "c.json", config), SHAPES)
    assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())
