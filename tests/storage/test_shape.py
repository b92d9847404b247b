"""Manifests whose fingerprint agrees, but which name something else than a manifest of their kind does."""

from __future__ import annotations

import copy
import json
import math

import pytest

from stcli.errors import FormatError
from stcli.storage import manifest as m
from stcli.storage.shape import COUNT, TEXT, Each, Maybe, check_shape
from tests.storage.bodies import artifact_body, index_body

SHAPE = {"n": COUNT, "name?": TEXT, "pair": Maybe((COUNT, COUNT)), "sizes": Each([COUNT])}


@pytest.mark.parametrize(
    "value",
    [
        {"n": 0, "pair": None, "sizes": {}},
        {"n": 2**63 - 1, "name": "a", "pair": [1, 2], "sizes": {"x": [], "y": [3]}, "more": 1},
    ],
)
def test_what_has_the_shape(value):
    check_shape(value, SHAPE, "m.json")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n": -1}, "m.json: its 'n' is -1, expected a whole number from 0; it was edited, make it again"),
        ({"n": True}, "its 'n' is True, expected a whole number"),
        ({"n": 1.0}, "its 'n' is 1.0"),
        ({"n": 2**63}, "its 'n' is 9223372036854775808"),
        ({"name": None}, "its 'name' is None, expected a text"),
        ({"pair": [1]}, r"its 'pair' is \[1\], expected 2 entries"),
        ({"pair": "12"}, "its 'pair' is '12', expected a list"),
        ({"sizes": []}, r"its 'sizes' is \[\], expected an object"),
        ({"sizes": {"x": [1, "a" * 99]}}, r"its 'sizes.x\[1\]' is '(a+)\.\.\., expected a whole number"),
    ],
)
def test_what_has_another(change, words):
    with pytest.raises(FormatError, match=words):
        check_shape({"n": 1, "pair": None, "sizes": {}} | change, SHAPE, "m.json")


def test_a_key_that_is_not_there():
    with pytest.raises(FormatError, match=r"m.json: has no 'n', so it was edited; make it again"):
        check_shape({"pair": None, "sizes": {}}, SHAPE, "m.json")
    with pytest.raises(FormatError, match=r"m.json: it is \[\], expected an object"):
        check_shape([], SHAPE, "m.json")


@pytest.mark.parametrize(("kind", "body"), [(m.INDEX, index_body(3)), (m.ARTIFACT, artifact_body(3))])
def test_every_part_of_a_manifest_is_looked_at(kind, body, tmp_path):
    arrays = {"codes": {"dtype": "int8", "shape": [3, 4], "sha256": "0"}}
    whole = m.sealed(kind, {**body, "arrays": arrays})
    assert m.check_sealed(kind, whole, tmp_path) == whole
    for place in places(whole):
        if place[0] not in ("format", "version", "fingerprint"):
            with pytest.raises(FormatError, match=f"its '{place[0]}"):
                m.check_sealed(kind, sealed_again(whole, place), tmp_path)


def places(value, before=()):
    for key in value:
        yield (*before, key)
        if isinstance(value[key], dict):
            yield from places(value[key], (*before, key))


def sealed_again(manifest, place):
    """The manifest with something in a place that stands nowhere in one."""
    body = copy.deepcopy({key: value for key, value in manifest.items() if key not in ("version", "fingerprint")})
    inner = body
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = [[]]
    return m.sealed(body.pop("format"), body)


@pytest.mark.parametrize("value", [math.nan, "\ud800"])
def test_what_has_no_canonical_text_has_no_fingerprint(value, tmp_path):
    edited = json.loads(json.dumps({**m.sealed(m.REPORT, {}), "a": value}))
    with pytest.raises(FormatError, match="does not match its fingerprint"):
        m.check_sealed(m.REPORT, edited, tmp_path)


def test_files_that_are_no_json(tmp_path):
    path = tmp_path / "m.json"
    for text in ("", "no JSON", "[" * 100_000, "{"):
        path.write_text(text)
        with pytest.raises(FormatError, match=r"m.json: is not JSON .*, so this index is damaged"):
            m.read_json(path, "index")
    path.write_bytes(b'{"a":"\xff"}')
    with pytest.raises(FormatError, match=r"m.json: is not JSON"):
        m.read_json(path, "index")
    with pytest.raises(FormatError, match=r"cannot be read \(Is a directory\), so this is no whole index"):
        m.read_json(tmp_path, "index")
