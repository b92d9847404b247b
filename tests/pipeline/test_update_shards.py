"""A sharded index that was updated, through `retrieve`: the rows of a rebuild, and of no dead item."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import stcli
from stcli.storage.artifact_set import open_set, rows_of
from tests.conftest import lists
from tests.model.test_sets import DIM, FEATURES, make_items
from tests.pipeline.sets import living_ids

NUM, NEW, GONE = 13_000, 300, 400
FILTERS = (None, "color = 'red'", "tags = 'n001'", "NOT tags IN ('t000', 'n000') AND price < 300")


@dataclass(frozen=True)
class Updated:
    """A set of three shards and fresh items, an artifact built from what lives in it, and queries.

    Attributes:
        path: the set.
        rebuilt: the artifact.
        living, deleted, replaced, added: ids; the last two are in the fresh file.
        queries: a table; its lists name items of each kind.
    """

    path: Path
    rebuilt: Path
    living: np.ndarray
    deleted: np.ndarray
    replaced: np.ndarray
    added: np.ndarray
    queries: Path


@pytest.fixture(scope="module")
def updated(tmp_path_factory):
    """Items all over the shards are deleted in a first update and replaced in a second one."""
    folder, rng = tmp_path_factory.mktemp("shards"), np.random.default_rng(3)
    build = {"feature_columns": FEATURES, "keep_columns": ["price", "color"], "clusters": 64}
    old = make_items(rng, NUM)
    ids = old["item_id"].to_numpy()
    chosen = rng.permutation(ids)
    deleted, replaced, living = chosen[:GONE], chosen[GONE : GONE + NEW], chosen[GONE + NEW :]
    fresh = make_items(rng, 2 * NEW, NUM * 3, tag="n")
    added = fresh["item_id"].to_numpy()[NEW:]
    fresh = fresh.set_column(0, "item_id", pa.array(np.concatenate((replaced, added))))
    pq.write_table(old, folder / "old.parquet")
    pq.write_table(fresh, folder / "new.parquet")
    pq.write_table(pa.table({"item_id": deleted}), folder / "gone.parquet")
    kept = pa.array(np.isin(ids, living))
    pq.write_table(pa.concat_tables([old.filter(kept), fresh]), folder / "all.parquet")
    for items, model, shards in (("old", "main", {"shards": 3}), ("all", "rebuilt.safetensors", {})):
        stcli.build_index(folder / f"{items}.parquet", folder / f"{items}.index", **build)
        stcli.pack_model(folder / f"{items}.index", folder / model, **shards)
    stcli.update(folder / "main", folder / "first", delete=folder / "gone.parquet")
    stcli.update(folder / "first", folder / "set", upsert=folder / "new.parquet")
    named = [
        [*deleted[:9], *replaced[query : query + 9], *added[:9], *living[query : query + 9]] for query in range(40)
    ]
    kinds = (deleted, replaced, added, living)
    queries = {
        "query_id": np.arange(40),
        "embedding": lists(rng.normal(size=(40, DIM)).astype(np.float32)),
        "filter": FILTERS * 10,
        "items": pa.array([list(map(int, line)) for line in named]),
        "item": [int(kinds[query % 4][query]) for query in range(40)],
    }
    pq.write_table(pa.table(queries), folder / "queries.parquet")
    return Updated(
        folder / "set", folder / "rebuilt.safetensors", living, deleted, replaced, added, folder / "queries.parquet"
    )


def retrieved(updated, folder, **options):
    """The results of the set; those of the rebuild are the same, and no dead item is among them."""
    options = {"filter_column": "filter", "item_columns": ("price", "color"), "k": 15, "part_rows": 20, **options}
    stcli.retrieve(updated.path, updated.queries, folder / "set", **options)
    stcli.retrieve(updated.rebuilt, updated.queries, folder / "rebuilt", **(options | {"workers": 1}))
    found, expected = pq.read_table(folder / "set"), pq.read_table(folder / "rebuilt")
    assert found.equals(expected)
    ids = found["item_id"].combine_chunks().flatten().to_numpy()
    assert len(ids)
    assert not np.isin(ids, updated.deleted).any()
    return found, ids


def test_tombstones_and_living_rows_of_several_shards(updated):
    opened = open_set(updated.path, verify=True)
    edges = [shard["first_row"] for shard in opened.manifest["shards"]]
    owners = np.searchsorted(edges, rows_of(opened.tombstones), side="right")
    assert len(opened.shards) == 3
    assert np.bincount(owners, minlength=4)[1:].min() > 50
    assert len(owners) == GONE + NEW
    assert living_ids(updated.path) == sorted([*updated.living, *updated.replaced, *updated.added])


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_exact_search_gives_the_rows_of_a_rebuild(updated, tmp_path, workers):
    found, ids = retrieved(updated, tmp_path, exact=True, workers=workers)
    assert set(found["status"].to_pylist()) == {"ok"}
    assert np.isin(ids, updated.added).any()
    assert np.isin(ids, updated.replaced).any()


def test_dead_candidates_are_missing(updated, tmp_path):
    found, ids = retrieved(updated, tmp_path, candidates_column="items", filter_column=None, k=36)
    assert found["missing"].to_pylist() == [9] * 40
    assert len(ids) == 40 * 27


def test_a_replaced_item_asks_with_its_new_embedding(updated, tmp_path):
    found, _ = retrieved(updated, tmp_path, query_item_column="item", filter_column=None, exact=True)
    asked = pq.read_table(updated.queries)["item"].to_pylist()
    missing = np.isin(asked, updated.deleted)
    assert (found["missing"].to_numpy() > 0).tolist() == missing.tolist()
    for item, line, none in zip(asked, found["item_id"].to_pylist(), missing, strict=True):
        assert item not in line
        assert bool(line) != none


def test_excluded_items_are_left_out_in_their_new_version(updated, tmp_path):
    found, _ = retrieved(updated, tmp_path, exclude_column="items", exact=True)
    excluded = pq.read_table(updated.queries)["items"].to_pylist()
    lines = found["item_id"].to_pylist()
    assert all(not set(line) & set(given) for line, given in zip(lines, excluded, strict=True))
    pq.write_table(pa.table({"item_id": np.concatenate((updated.deleted, updated.added))}), tmp_path / "only.parquet")
    (tmp_path / "only").mkdir()
    _, ids = retrieved(updated, tmp_path / "only", only_items=str(tmp_path / "only.parquet"), exact=True)
    assert np.isin(ids, updated.added).all()


def test_a_compacted_set_holds_what_lives_in_it(updated, tmp_path):
    stcli.update(updated.path, tmp_path / "c", compact=True)
    stcli.retrieve(tmp_path / "c", updated.queries, tmp_path / "compacted", filter_column="filter", k=15, exact=True)
    stcli.retrieve(updated.rebuilt, updated.queries, tmp_path / "rebuilt", filter_column="filter", k=15, exact=True)
    assert pq.read_table(tmp_path / "compacted").equals(pq.read_table(tmp_path / "rebuilt"))


def test_a_value_of_fresh_items_alone_is_known(updated, tmp_path):
    queries = pq.read_table(updated.queries)
    texts = ["tags IN ('n001', 't001')", "tags = 'n002' AND color = 'red'", "tags = 't150'", "tags = 'nowhere'"] * 10
    pq.write_table(queries.set_column(2, "filter", pa.array(texts)), tmp_path / "q.parquet")
    told = stcli.retrieve(updated.path, tmp_path / "q.parquet", tmp_path / "out", filter_column="filter", k=5)
    assert [text for text in told["warnings"] if "match nothing" in text] == [
        "10 filter values do not occur in the index and match nothing, such as tags = 'nowhere'"
    ]
    assert stcli.explain(updated.path, texts[0])["unknown_values"] == {}
    assert len(stcli.explain(updated.path, "tags IN ('n001', 'x', 'y')")["unknown_values"]) == 2


def test_explain_and_inspect_tell_of_which_part_they_speak(updated):
    told = stcli.explain(updated.path, "tags = 'n001'")
    assert told["items"]["eligible"] > 0
    assert told["plan"]["main"] == "nothing"
    assert "tags" in told["plan"]["fresh"]
    assert told["rows_read"]["main"] == 0 < told["rows_read"]["fresh"]
    main = open_set(updated.path).shards[0].manifest["filter"]["features"]
    tags = next(feature["num_terms"] for feature in main if feature["name"] == "tags")
    known = pq.read_table(updated.path.parent / "new.parquet", columns=["tags"])["tags"].to_pylist()
    fresh = len({tag for line in known for tag in line or ()})
    line = f"string, {tags:,} values in the main part and {fresh:,} in the fresh one, several an item"
    assert stcli.inspect(updated.path)["features"]["tags"] == line
