"""The scale example at a toy size: chunks join to one table, filters are right, and the report has what ran."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import scale as example
from stcli.filters.parse import parse


def test_chunks_do_not_depend_on_the_length_of_the_table(tmp_path, monkeypatch):
    monkeypatch.setattr(example, "CHUNK", 40)
    corpus = example.Corpus.draw()
    tables = []
    for count in (100, 80):
        example.write_items(tmp_path / f"{count}", corpus, count)
        tables.append(pq.read_table(tmp_path / f"{count}"))
    assert tables[0].slice(0, 80).equals(tables[1])
    assert tables[0]["item_id"].to_pylist() == list(range(100))
    lengths = np.linalg.norm(np.stack(tables[0]["embedding"].to_pylist()), axis=1)
    np.testing.assert_allclose(lengths, 1, rtol=1e-6)
    kinds = {name: tables[0].schema.field(name).type for name in example.FEATURES}
    assert len({str(kind) for kind in kinds.values()}) == 7
    assert kinds["countries"] == pa.list_(pa.string())
    assert 0 < tables[0]["brand"].null_count < 30


def test_every_query_has_a_filter_of_its_own():
    queries = example.Corpus.draw().queries(200)
    texts = queries["filter"].to_pylist()
    assert all(text.count(" AND ") >= 1 for text in texts)
    assert len(set(texts)) > 190
    assert all(parse(text) is not None for text in texts)


@pytest.mark.slow
def test_reports_time_memory_and_recall(tmp_path, capsys):
    example.main(
        [
            "--out",
            str(tmp_path),
            "--items",
            "2000",
            "--queries",
            "60",
            "--k",
            "5",
            "--audit",
            "20",
            "--memory-limit",
            "1GB",
        ]
    )
    record = json.loads((tmp_path / "scale.json").read_text())
    (run,) = record["runs"]
    assert record["options"]["memory_limit"] == "1GB"
    assert run["items"] == 2000
    assert run["audit"]["all queries"]["recall"] == 1.0  # so few queries a band are answered exactly
    for step in ("build-index", "pack-model", "retrieve"):
        assert 50e6 < run[step]["peak_private"] < 1e9
    assert all(size > 0 for size in run["bytes"].values())
    text = (tmp_path / "scale.md").read_text()
    assert text.rstrip().endswith(capsys.readouterr().out.rstrip())
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []
