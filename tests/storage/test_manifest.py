"""Canonical JSON, fingerprints, and the checks when a file of ours is opened."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

from stcli.errors import FormatError
from stcli.storage import manifest as m


@pytest.fixture(autouse=True)
def _reports_of_any_shape(monkeypatch):
    monkeypatch.setitem(m.SHAPES, m.REPORT, {})


BODY = {"num_items": 3, "name": "ä", "list": [1, 2.5, None], "nested": {"b": 1, "a": 2}}


def test_equal_values_give_equal_text():
    assert m.canonical({"b": 1, "a": [1, {"d": None, "c": "ä"}]}) == '{"a":[1,{"c":"ä","d":null}],"b":1}'
    with pytest.raises(ValueError, match="not JSON compliant"):
        m.canonical({"a": float("nan")})


def test_the_fingerprint_is_the_hash_of_everything_else(tmp_path):
    sealed = m.sealed(m.REPORT, BODY)
    rest = {key: value for key, value in sealed.items() if key != "fingerprint"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert sealed["fingerprint"] == hashlib.sha256(text.encode()).hexdigest()
    assert m.check_sealed(m.REPORT, json.loads(m.canonical(sealed)), tmp_path) == sealed


@pytest.mark.parametrize("dtype", [np.int8, bool, np.float16, np.int64])
@pytest.mark.parametrize("shape", [(0,), (5,), (3, 4), (0, 4)])
def test_hash_array_is_of_its_bytes(dtype, shape, monkeypatch):
    monkeypatch.setattr(m, "HASH_CHUNK", 7)
    array = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    assert m.hash_array(array) == hashlib.sha256(array.tobytes()).hexdigest()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "stcli-artifact"}, "is 'stcli-artifact', expected 'stcli-report'"),
        ({"format": None}, "is None, expected 'stcli-report'"),
        ({"version": [2, 0]}, r"format version 2.0, this stcli reads 1.0 to 1.\d"),
        ({"version": [1, 99]}, r"format version 1.99, this stcli reads 1.0 to 1.\d"),
        ({"version": [0, 9]}, r"format version 0.9"),
        ({"version": None}, "states no format version"),
        ({"version": "1.0"}, "states no format version"),
        ({"version": [1]}, "states no format version"),
        ({"num_items": 4}, "does not match its fingerprint, so it was edited or damaged"),
        ({"more": 1}, "does not match its fingerprint"),
        ({"fingerprint": "0"}, "does not match its fingerprint"),
    ],
)
def test_foreign_and_edited_manifests_are_refused(tmp_path, change, words):
    with pytest.raises(FormatError, match=words) as caught:
        m.check_sealed(m.REPORT, {**m.sealed(m.REPORT, BODY), **change}, tmp_path / "manifest.json")
    assert "manifest.json" in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("value", [None, [], "text", 3])
def test_json_that_is_no_object_is_refused(tmp_path, value):
    with pytest.raises(FormatError, match="expected an object; it was edited, make it again"):
        m.check_sealed(m.REPORT, value, tmp_path)


def test_read_json_says_what_is_wrong(tmp_path):
    with pytest.raises(FormatError, match=r"a.json: not found, so this is no whole index"):
        m.read_json(tmp_path / "a.json", "index")
    for content in (b"", b'{"a": ', b"\xff\xfe"):
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(FormatError, match=r"a.json: is not JSON .* so this index is damaged"):
            m.read_json(tmp_path / "a.json", "index")
