"""`retrieve` on shards: every kind of run writes the rows that it writes of the whole artifact."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import stcli
from tests.conftest import lists

NUM, DIM, QUERIES, SHARDS = 9_000, 8, 60, 3
FILTERS = (None, "color = 'red'", "price < 40 AND NOT tags = 't1'")


@dataclass(frozen=True)
class Sharded:
    """One corpus with string ids, whole and in three shards.

    Attributes:
        items: the table.
        whole, shards: the artifact, and the set of the same index.
        queries: with lists of ids, `items`, of which the last is no item.
        ids: of the items, in table order.
    """

    items: pa.Table
    whole: Path
    shards: Path
    queries: Path
    ids: list[str]


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("sharded"), np.random.default_rng(4)
    ids = [f"{'äßz'[number % 3]}{number}" for number in rng.permutation(NUM).tolist()]
    vectors = rng.normal(size=(32, DIM))[rng.integers(32, size=NUM)] + 0.7 * rng.normal(size=(NUM, DIM))
    vectors[-90:] = vectors[:90]  # twins, in other shards perhaps
    items = pa.table(
        {
            "item_id": ids,
            "embedding": lists(vectors.astype(np.float32)),
            "color": rng.choice(np.array(["red", "green", None], object), NUM).tolist(),
            "tags": [[f"t{tag}" for tag in rng.integers(0, 300, 2)] for _ in range(NUM)],
            "price": rng.integers(0, 100, NUM),
        }
    )
    pq.write_table(items, folder / "items.parquet")
    stcli.build_index(
        folder / "items.parquet", folder / "index", feature_columns=["color", "tags", "price"],
        keep_columns=["price", "color"], clusters=64,
    )  # fmt: skip
    stcli.pack_model(folder / "index", folder / "whole.safetensors")
    stcli.pack_model(folder / "index", folder / "shards", shards=SHARDS)
    chosen = rng.integers(NUM, size=(QUERIES, 40))
    queries = {
        "query_id": np.arange(QUERIES),
        "embedding": lists((vectors[chosen[:, 0]] + 0.3 * rng.normal(size=(QUERIES, DIM))).astype(np.float32)),
        "filter": FILTERS * (QUERIES // len(FILTERS)),
        "items": [[*(ids[row] for row in line), "none"] for line in chosen],
    }
    pq.write_table(pa.table(queries), folder / "queries.parquet")
    return Sharded(items, folder / "whole.safetensors", folder / "shards", folder / "queries.parquet", ids)


def both(sharded, folder, **options):
    """Rows and summaries of a run on the whole and on the shards; the rows are equal."""
    told = []
    options = {"k": 12, "filter_column": "filter", "part_rows": 25, **options}
    for name, more in (("whole", {"workers": 1}), ("shards", {})):
        told.append(stcli.retrieve(getattr(sharded, name), sharded.queries, folder / name, **(options | more)))
    rows = pq.read_table(folder / "whole")
    assert rows.equals(pq.read_table(folder / "shards"))
    assert rows.num_rows == QUERIES
    return rows, *told


@pytest.mark.parametrize("how", [{"exact": True}, {"probes": 4}, {}], ids=str)
def test_items_with_names(sharded, tmp_path, how):
    rows, *_ = both(sharded, tmp_path, item_columns=("price", "color"), **how)
    prices = dict(zip(sharded.ids, sharded.items["price"].to_pylist(), strict=True))
    found = rows["item_id"].combine_chunks().flatten().to_pylist()
    assert [prices[name] for name in found] == rows["price"].combine_chunks().flatten().to_pylist()


def test_the_audit_of_shards(sharded, tmp_path):
    _, whole, shards = both(sharded, tmp_path, probes=3, audit=40)
    assert whole["audit"] == shards["audit"]
    assert whole["audit"]["all queries"]["queries"] == 40
    assert whole["audit"]["all queries"]["recall"] < 1


def test_lists_of_a_query_and_of_the_run(sharded, tmp_path):
    pq.write_table(pa.table({"item_id": [*sharded.ids[::3], "none"]}), tmp_path / "only.parquet")
    pq.write_table(pa.table({"item_id": sharded.ids[::6]}), tmp_path / "barred.parquet")
    rows, *_ = both(
        sharded, tmp_path, exclude_column="items", only_items=str(tmp_path / "only.parquet"),
        exclude_items=str(tmp_path / "barred.parquet"), exact=True,
    )  # fmt: skip
    allowed = set(sharded.ids[3::6])
    given = pq.read_table(sharded.queries)["items"].to_pylist()
    for found, excluded in zip(rows["item_id"].to_pylist(), given, strict=True):
        assert found
        assert set(found) <= allowed - set(excluded)


def test_candidates_are_ranked(sharded, tmp_path):
    rows, *_ = both(sharded, tmp_path, candidates_column="items", filter_column=None, k=50)
    assert rows["missing"].to_pylist() == [1] * QUERIES
    given = pq.read_table(sharded.queries)["items"].to_pylist()
    assert all(
        set(found) == set(line) - {"none"} for found, line in zip(rows["item_id"].to_pylist(), given, strict=True)
    )


@pytest.mark.slow
def test_two_workers(sharded, tmp_path):
    both(sharded, tmp_path, workers=2, audit=20, part_rows=10)


def test_an_update_of_shards(sharded, tmp_path):
    """Items of all shards are replaced by others and deleted; what is found is what a build of the rest finds."""
    ids, items = np.array(sharded.ids, object), sharded.items
    new, gone = ids[:600:3], ids[1:600:3]
    upserts = items.take(np.arange(600, 800)).set_column(0, "item_id", pa.array(new.tolist()))
    pq.write_table(upserts, tmp_path / "new.parquet")
    pq.write_table(pa.table({"item_id": gone.tolist()}), tmp_path / "gone.parquet")
    counts = stcli.update(
        sharded.shards, tmp_path / "set", upsert=tmp_path / "new.parquet", delete=tmp_path / "gone.parquet"
    )["counts"]
    assert (counts["superseded"], counts["deleted"], counts["num_items"]) == (200, 200, NUM - 200)
    left = items.filter(pa.array(~np.isin(ids, [*new, *gone])))
    pq.write_table(pa.concat_tables([left, upserts]), tmp_path / "rest.parquet")
    stcli.build_index(tmp_path / "rest.parquet", tmp_path / "index", feature_columns=["color", "tags", "price"])
    stcli.pack_model(tmp_path / "index", tmp_path / "rest.safetensors")
    for name in ("set", "rest.safetensors"):
        stcli.retrieve(
            tmp_path / name, sharded.queries, tmp_path / f"{name}.out", k=12, filter_column="filter", exact=True
        )
    expected = pq.read_table(tmp_path / "rest.safetensors.out")
    assert pq.read_table(tmp_path / "set.out").equals(expected)
    assert np.isin(expected["item_id"].combine_chunks().flatten().to_numpy(zero_copy_only=False), new).any()
