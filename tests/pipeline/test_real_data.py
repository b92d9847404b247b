"""Real packages with real filters: every eligible item comes back and no other, in every family of filters."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import stcli
from stcli.filters.parse import parse
from tests.filters import duckdb_oracle

FOLDER = Path(os.environ.get("STCLI_TEST_DATA", "")) / "debian-12k"
FEATURES = ["section", "priority", "architecture", "multi_arch", "maintainer", "tags", "depends"]


@pytest.mark.data
@pytest.mark.skipif(not (FOLDER / "items.parquet").exists(), reason="STCLI_TEST_DATA names no folder with debian-12k")
def test_every_eligible_package_and_no_other(tmp_path):
    items = pq.read_table(FOLDER / "items.parquet", columns=["item_id", *FEATURES])
    asked = pq.read_table(FOLDER / "queries.parquet", columns=["filter", "family"]).to_pylist()
    texts, ids = list(dict.fromkeys(query["filter"] for query in asked)), items["item_id"].to_numpy()
    trees = [None if text is None else parse(text) for text in texts]
    eligible = duckdb_oracle.eligible_many(items.drop_columns("item_id"), trees)
    expected = {text: set(ids[holds].tolist()) for text, holds in zip(texts, eligible, strict=True)}
    stcli.build_index(FOLDER / "items.parquet", tmp_path / "i", feature_columns=FEATURES)
    stcli.pack_model(tmp_path / "i", tmp_path / "m.safetensors")
    options = {"filter_column": "filter", "exact": True, "score_dtype": "none"}
    stcli.retrieve(tmp_path / "m.safetensors", FOLDER / "queries.parquet", tmp_path / "out", k=12_000, **options)
    results = pq.read_table(tmp_path / "out", columns=["item_id"])["item_id"].to_pylist()
    wrong = {query["family"]: query["filter"] for query, found in zip(asked, results, strict=True)
             if len(found) != len(set(found)) or set(found) != expected[query["filter"]]}  # fmt: skip
    assert wrong == {}
    assert [len(expected[query["filter"]]) for query in asked] == (
        pq.read_table(FOLDER / "groundtruth.parquet", columns=["n_pass"])["n_pass"].to_pylist()
    )
