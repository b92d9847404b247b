"""Query tables and results that the tests of `retrieve` share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import stcli
from stcli.storage.results import open_results
from tests.conftest import Tiny, lists

FILTERED = {"filter_column": "filter", "k": 10}


@pytest.fixture(scope="module")
def kept(tiny: Tiny, tmp_path_factory) -> Path:
    """The shared corpus with item columns kept and an embedding version."""
    folder = tmp_path_factory.mktemp("kept")
    stcli.build_index(
        tiny.items,
        folder / "index",
        feature_columns=["color", "tags", "price"],
        keep_columns=["color", "tags", "day"],
        embedding_version="v1",
    )
    stcli.pack_model(folder / "index", folder / "model")
    return folder / "model"


def read(path: Path) -> pa.Table:
    """All parts, in the order of the manifest."""
    return pa.concat_tables(pq.read_table(path / part["name"]) for part in open_results(path)["parts"])


def contents(path: Path) -> dict[str, bytes]:
    """Every file but the one that says when and where."""
    return {file.name: file.read_bytes() for file in path.iterdir() if file.name != "_run.json"}


def write_queries(path: Path, vectors: np.ndarray, **columns) -> Path:
    ids = columns.pop("query_id", pa.array(range(len(vectors))))
    pq.write_table(pa.table({"query_id": ids, "embedding": lists(vectors), **columns}), path, row_group_size=50)
    return path


def bad_queries(path: Path, tiny: Tiny) -> Path:
    """Rows 1 to 6 are bad, each in another way."""
    vectors: list = tiny.vectors[:40].tolist()
    vectors[1] = None
    vectors[2] = vectors[2][:5]
    vectors[3][4] = float("nan")
    vectors[4][0] = float("inf")
    filters: list = [None] * 40
    filters[5], filters[6], filters[7] = "color = ", "colr = 'red'", "color = 'red'"
    ids = [f"q{number}" for number in range(40)]
    table = pa.table({"query_id": ids, "embedding": pa.array(vectors, pa.list_(pa.float32())), "filter": filters})
    pq.write_table(table, path)
    return path
