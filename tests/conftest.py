"""A small corpus that the tests of pipeline, model and command line share."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import stcli

NUM_ITEMS, NUM_QUERIES, DIM = 2000, 120, 16

FILTERS = (
    None,
    "color = 'red'",
    "NOT color = 'red' AND price < 40",
    "tags IN ('t01', 't44') OR in_stock",
    "year BETWEEN 2003 AND 2008 AND NOT tags = 't02'",
    "tags = 't57'",
    "color IS NULL AND day >= '2024-02-01'",
    "tags = 't03' AND tags = 't04' AND price > 90",
    "color = 'no such colour'",
)


@dataclass(frozen=True)
class Tiny:
    """Where the files of the corpus are, and its tables.

    Attributes:
        folder: holds everything; tests write elsewhere.
        items, queries: Parquet files.
        index: the index directory.
        model: the artifact, float16 embeddings.
        item_rows: the items as Python objects, in table order.
        filters: filter text (or None) of each query.
        embeddings: float32 [N, D], in table order.
        vectors: float32 [B, D], the queries.
    """

    folder: Path
    items: Path
    queries: Path
    index: Path
    model: Path
    item_rows: list[dict]
    filters: list[str | None]
    embeddings: np.ndarray
    vectors: np.ndarray


def lists(vectors: np.ndarray) -> pa.Array:
    """Vectors [R, D] as an Arrow column of fixed-size lists."""
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])


def make_items(rng: np.random.Generator) -> tuple[pa.Table, np.ndarray]:
    """2,000 items around 40 centres, some of them twins; ids in no order."""
    centres = rng.normal(size=(40, DIM))
    embeddings = centres[rng.integers(40, size=NUM_ITEMS)] + 0.6 * rng.normal(size=(NUM_ITEMS, DIM))
    embeddings *= rng.lognormal(0, 0.3, size=(NUM_ITEMS, 1))
    embeddings[1900:] = embeddings[:100]
    embeddings = embeddings.astype(np.float32)
    weights = 1 / np.arange(1, 61)
    tags = [f"t{number:02d}" for number in range(60)]
    table = pa.table(
        {
            "item_id": pa.array(rng.permutation(NUM_ITEMS).astype(np.int64) * 7 + 3),
            "embedding": lists(embeddings),
            "color": pa.array(rng.choice(np.array(["red", "green", "blue", None], object), NUM_ITEMS), pa.string()),
            "tags": pa.array(
                [
                    sorted(rng.choice(tags, size=size, replace=False, p=weights / weights.sum()))
                    for size in rng.integers(0, 6, NUM_ITEMS)
                ],
                pa.list_(pa.string()),
            ),
            "price": pa.array(np.round(rng.uniform(0, 100, NUM_ITEMS), 1)),
            "year": pa.array(rng.integers(2000, 2012, NUM_ITEMS)),
            "in_stock": pa.array(rng.random(NUM_ITEMS) < 0.05),
            "day": pa.array(
                [datetime.date(2024, 1, 1) + datetime.timedelta(int(d)) for d in rng.integers(0, 90, NUM_ITEMS)]
            ),
        }
    )
    return table, embeddings


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """The corpus, built and packed once a session; read-only."""
    folder = tmp_path_factory.mktemp("tiny")
    rng = np.random.default_rng(20240229)
    items, embeddings = make_items(rng)
    vectors = embeddings[rng.integers(NUM_ITEMS, size=NUM_QUERIES)] + 0.5 * rng.normal(size=(NUM_QUERIES, DIM))
    vectors = vectors.astype(np.float32)
    filters = [FILTERS[number % len(FILTERS)] for number in range(NUM_QUERIES)]
    queries = pa.table(
        {
            "query_id": pa.array([f"q{number:03d}" for number in range(NUM_QUERIES)]),
            "embedding": lists(vectors),
            "filter": pa.array(filters, pa.string()),
        }
    )
    pq.write_table(items, folder / "items.parquet")
    pq.write_table(queries, folder / "queries.parquet")
    stcli.build_index(
        folder / "items.parquet", folder / "items.index", feature_columns=items.column_names[2:], clusters=32
    )
    stcli.pack_model(folder / "items.index", folder / "model.safetensors")
    return Tiny(
        folder,
        folder / "items.parquet",
        folder / "queries.parquet",
        folder / "items.index",
        folder / "model.safetensors",
        items.to_pylist(),
        filters,
        embeddings,
        vectors,
    )


@pytest.fixture(autouse=True)
def one_torch_thread() -> None:
    """Small operations on two threads wait for each other; beside another busy process that costs milliseconds each.

    Before every test, since a command sets the number for itself.
    """
    torch.set_num_threads(1)
    torch.set_warn_always(True)  # else a test may pass because an earlier one has used up the warning
