"""Queries that are items: `retrieve --query-item-column` and `model.similar`, against brute force in float64."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import stcli
from stcli.errors import InputError
from stcli.filters.parse import parse
from tests.model.corpus import packed_values
from tests.oracles_tree import eligible_rows
from tests.pipeline.retrieve_cases import read

FILTERS = [None, "color = 'red'", "NOT tags = 't02' AND price < 60"]
COUNT, K = 30, 8


@pytest.fixture(scope="module")
def queries(tiny, tmp_path_factory):
    """Items 5, 12, 19 … as queries, one of them unknown and one null; each bars one item more."""
    ids = [row["item_id"] for row in tiny.item_rows]
    named = [ids[7 * place + 5] for place in range(COUNT)]
    named[4], named[9] = -12345, None
    barred = [[ids[place], ids[place]] if place % 3 else None for place in range(COUNT)]
    filters = [FILTERS[place % 3] for place in range(COUNT)]
    path = tmp_path_factory.mktemp("items") / "queries.parquet"
    columns = {
        "query_id": pa.array(range(COUNT)),
        "near": pa.array(named, pa.int64()),
        "seen": pa.array(barred, pa.list_(pa.int64())),
        "filter": pa.array(filters, pa.string()),
    }
    pq.write_table(pa.table(columns), path)
    return path, named, barred, filters


def best(tiny, item, barred, text) -> list[int]:
    """The K nearest of the eligible items by the packed embeddings; none for what is no item."""
    ids = [row["item_id"] for row in tiny.item_rows]
    if item not in ids:
        return []
    values = packed_values(tiny.embeddings, "float16")
    scores = values @ values[ids.index(item)]
    may = np.ones(len(ids), bool) if text is None else np.array(eligible_rows(tiny.item_rows, parse(text)))
    rows = [row for row in np.lexsort((ids, -scores)) if may[row] and ids[row] not in (item, *(barred or []))]
    return [ids[row] for row in rows[:K]]


def test_items_find_their_neighbours(tiny, queries, tmp_path):
    path, named, barred, filters = queries
    options = {"query_item_column": "near", "filter_column": "filter", "exclude_column": "seen", "k": K, "exact": True}
    summary = stcli.retrieve(tiny.model, path, tmp_path / "out", batch_size=7, **options)
    table = read(tmp_path / "out")
    expected = [best(tiny, *row) for row in zip(named, barred, filters, strict=True)]
    assert table["item_id"].to_pylist() == expected
    assert [row for row, missing in enumerate(table["missing"].to_pylist()) if missing] == [4, 9]
    assert {table["status"][row].as_py() for row in (4, 9)} == {"short"}
    assert summary["counts"]["missing"] == 2
    assert "2 query items are no items of the index" in " ".join(summary["warnings"])


def test_the_same_in_python(tiny, queries):
    _, named, barred, filters = queries
    model = stcli.open_artifact(tiny.model)
    found = model.similar(named, filters, K, exclude=barred, exact=True)
    expected = [best(tiny, *row) for row in zip(named, barred, filters, strict=True)]
    assert [items.tolist() for items in found.item_ids] == expected
    assert found.missing is not None
    assert found.missing.nonzero()[:, 0].tolist() == [4, 9]


def test_the_id_of_a_query_may_be_its_item(tiny, tmp_path):
    """As in the example of the help: the item table is the query table."""
    options = {"query_item_column": "item_id", "id_column": "item_id", "k": 3, "limit": 20}
    summary = stcli.retrieve(tiny.model, tiny.items, tmp_path / "out", **options)
    table = read(tmp_path / "out")
    assert summary["counts"]["results"] == 60
    assert all(
        one not in near for one, near in zip(*(table.column(place).to_pylist() for place in (0, 1)), strict=True)
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"query_item_column": "filter"}, "'filter' is string; --query-item-column expects item ids, integers"),
        ({"query_item_column": "no"}, "no column 'no'"),
        ({"query_item_column": "near", "task_embeddings": "a=b"}, "leave one out"),
    ],
)
def test_what_is_no_item_column_is_refused(tiny, queries, tmp_path, options, words):
    with pytest.raises(InputError, match=words):
        stcli.retrieve(tiny.model, queries[0], tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
