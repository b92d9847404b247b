"""examples/make_unicode_data.py: what is in the tables, and that phrases find their characters."""

from __future__ import annotations

import ast
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import make_unicode_data as example
from stcli.filters.parse import parse
from tests.examples.two_valued import count_eligible


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("unicode") / "demo"
    example.make(out, num_queries=200, say=lambda line: None)
    return out


@pytest.fixture(scope="module")
def items(folder: Path) -> pa.Table:
    return pq.read_table(folder / "items.parquet")


@pytest.fixture(scope="module")
def queries(folder: Path) -> pa.Table:
    return pq.read_table(folder / "queries.parquet")


def embeddings(table: pa.Table) -> np.ndarray:
    return np.stack(table["embedding"].to_numpy())


def test_every_named_character_is_there_once(items: pa.Table) -> None:
    ids = items["item_id"].to_pylist()
    assert ids == sorted(set(ids))
    assert items["char"].to_pylist() == [chr(code) for code in ids]
    assert items["name"].to_pylist() == [unicodedata.name(chr(code)) for code in ids]
    if unicodedata.unidata_version == "14.0.0":  # Python 3.11
        assert len(items) == 43_591


@pytest.mark.parametrize("char", "一㐀豈𗀀")
def test_a_name_that_is_only_a_code_point_is_left_out(items: pa.Table, char: str) -> None:
    """CJK UNIFIED IDEOGRAPH-4E00 and its like; the last one has no name at all in Python."""
    assert ord(char) not in items["item_id"].to_pylist()


def test_features_are_those_of_unicodedata(items: pa.Table) -> None:
    features = ["category", "bidirectional", "width", "script", "numeric", "words"]
    rows = dict(zip(items["char"].to_pylist(), items.select(features).to_pylist(), strict=True))
    words = ["LATIN", "SMALL", "LETTER", "E", "WITH", "ACUTE"]
    assert list(rows["é"].values()) == ["Ll", "L", "A", "LATIN", None, words]
    assert rows["½"]["numeric"] == 0.5
    assert rows["½"]["script"] is None
    assert rows["😍"]["words"] == ["SMILING", "FACE", "WITH", "HEART", "SHAPED", "EYES"]
    assert rows["ａ"]["width"] == "F"
    assert rows["א"]["bidirectional"] == "R"
    for char, row in rows.items():
        assert (row["script"] is not None) == unicodedata.category(char).startswith("L")
        assert len(set(row["words"])) == len(row["words"]) > 0


def test_embeddings_are_unit_vectors(items: pa.Table, queries: pa.Table) -> None:
    for table in (items, queries):
        assert table.schema.field("embedding").type == pa.list_(pa.float32(), 128)
        # float32 sums over 128 terms: 128 * 2**-24 = 8e-6
        np.testing.assert_allclose(np.linalg.norm(embeddings(table).astype(np.float64), axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("phrase", "condition", "names"),
    [
        ("smiling face with heart", "category = 'So'", {"SMILING FACE WITH HEART-SHAPED EYES"}),
        ("snowman", None, {"SNOWMAN"}),
        ("black chess queen", "category = 'So' AND NOT words = 'WHITE'", {"BLACK CHESS QUEEN"}),
        ("letter e with acute", "script = 'LATIN'", {f"LATIN {c} LETTER E WITH ACUTE" for c in ("SMALL", "CAPITAL")}),
    ],
)
def test_a_phrase_is_nearest_to_its_character(
    items: pa.Table, queries: pa.Table, phrase: str, condition: str | None, names: set[str]
) -> None:
    pairs = list(zip(queries["text"].to_pylist(), queries["filter"].to_pylist(), strict=True))
    scores = embeddings(items) @ embeddings(queries)[pairs.index((phrase, condition))]
    nearest = [items["name"][int(row)].as_py() for row in np.argsort(-scores)[: len(names)]]
    assert set(nearest) == names


def test_every_filter_parses_and_has_eligible_items(items: pa.Table, queries: pa.Table) -> None:
    filters = [text for text in queries["filter"].to_pylist() if text is not None]
    for text in filters:
        parse(text)
    assert 150 < len(filters) < 200
    assert min(count_eligible(items, filters)) >= 1


def test_a_made_filter_admits_the_character_it_was_made_from(items: pa.Table) -> None:
    rng = np.random.default_rng(7)
    for row in range(0, len(items), 401):
        item = items.slice(row, 1)
        text = example.random_filter(item.drop_columns(["embedding"]).to_pylist()[0], rng)
        assert text is None or count_eligible(item, [text]) == [1], (item["name"], text)


def test_queries_are_the_same_each_time(items: pa.Table, queries: pa.Table) -> None:
    again = [*example.PHRASES, *example.made_phrases(items, 160)]
    assert again == list(zip(queries["text"].to_pylist(), queries["filter"].to_pylist(), strict=True))


def test_only_numpy_and_pyarrow_are_needed() -> None:
    folder = Path(example.__file__).parent
    nodes = [
        node
        for name in ("make_unicode_data.py", "sparse_svd.py")
        for node in ast.walk(ast.parse((folder / name).read_text(encoding="utf-8")))
    ]
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)]
    assert {name.split(".")[0] for name in names} - sys.stdlib_module_names == {"numpy", "pyarrow", "sparse_svd"}


def test_no_queries_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, example.__file__, "--out", str(tmp_path / "demo"), "--queries", "0"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 2
    assert "--queries 0" in run.stderr
    assert not (tmp_path / "demo").exists()
