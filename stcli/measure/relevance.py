"""Results against items that users named: a ground truth of their own, or items known to be relevant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stcli.errors import InputError
from stcli.measure.metrics import mean_recall
from stcli.model.lookup import Lookup
from stcli.storage.columns import BadRows, read_ids
from stcli.storage.parquet import Table

BATCH_ROWS = 1 << 14
UNKNOWN = -2
"""Row of an id that is no item: nothing that is returned equals it."""


def rows_of_lists(column: pa.Array, lookup: Lookup, where: str) -> list[np.ndarray]:
    """Rows of the item ids in each list, int64, in order; `UNKNOWN` for an id that is no item; null is empty.

    Raises:
        InputError: the column is no list of ids.
    """
    kind = column.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        raise InputError(f"{where} is {kind}; expected a list of item ids for each query")
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    rows = lookup.rows_of(column.flatten())
    return np.split(np.where(rows < 0, UNKNOWN, rows), np.cumsum(lengths)[:-1])


def read_truth(table: Table, id_column: str, item_column: str, ids: pa.Array, lookup: Lookup) -> list[np.ndarray]:
    """The item rows that a ground-truth table has for some queries, best first.

    Args:
        table: one row a query.
        id_column, item_column: query ids and lists of item ids.
        ids: queries, int64 or large_string.
        lookup: of the artifact.

    Raises:
        InputError: a column is missing or of the wrong type, or a query is not in the table.
    """
    table.column_type(id_column, "--id-column")
    table.column_type(item_column, "--truth-column")
    found: list[np.ndarray | None] = [None] * len(ids)
    for _, batch in table.batches([id_column, item_column], BATCH_ROWS):
        theirs = read_ids(batch.column(id_column), BadRows.none(batch.num_rows))
        if theirs.type != ids.type:
            raise InputError(f"{table.name}: column {id_column!r} is {theirs.type}, the queries have {ids.type} ids")
        place = pc.index_in(ids, value_set=theirs)
        mine = np.flatnonzero(place.is_valid().to_numpy(zero_copy_only=False))
        if len(mine):
            lists = batch.column(item_column).take(place.drop_null())
            rows = rows_of_lists(lists, lookup, f"{table.name}: column {item_column!r}")
            for query, one in zip(mine.tolist(), rows, strict=True):
                found[query] = one
    missing = [number for number, one in enumerate(found) if one is None]
    if missing:
        raise InputError(
            f"{table.name}: has no row for query {ids[missing[0]].as_py()!r} and {len(missing) - 1} more of "
            f"{len(ids)}; expected the ground truth of this query table"
        )
    return [one for one in found if one is not None]


def hits(rows: np.ndarray, wanted: Sequence[np.ndarray]) -> np.ndarray:
    """Which results are among the wanted items of their query, each item once; bool, the shape of rows."""
    found = np.zeros(rows.shape, bool)
    for query, items in enumerate(wanted):
        line = rows[query]
        _, first = np.unique(line, return_index=True)
        found[query, first] = np.isin(line[first], items) & (line[first] >= 0)
    return found


def listed_recall(rows: np.ndarray, wanted: Sequence[np.ndarray]) -> np.ndarray:
    """Share of the first k wanted items that are among the k results; float64 [B], NaN without any."""
    k = rows.shape[1]
    wanted = [items[:k] for items in wanted]
    sizes = np.array([len(np.unique(items[items >= 0])) + int((items < 0).sum()) for items in wanted])
    with np.errstate(invalid="ignore"):
        return np.where(sizes > 0, hits(rows, wanted).sum(1) / sizes, np.nan)


def relevance(rows: np.ndarray, relevant: Sequence[np.ndarray]) -> dict[str, Any]:
    """How relevant items stand in the results.

    `hit_rate`: share of the queries with a relevant item among the k results. `recall`: share of a query's relevant
    items among them, of at most k. `ndcg`: sum of 1 / log2(place + 1) over the relevant ones, places from 1, divided
    by the same sum if they stood first. Queries without relevant items do not count.

    Args:
        rows: int64 [B, k], results, -1 in empty slots.
        relevant: rows of the relevant items of each query.

    Returns:
        The three as `mean_recall` gives them.
    """
    k = rows.shape[1]
    sizes = np.array([len(np.unique(items[items >= 0])) + int((items < 0).sum()) for items in relevant])
    found = hits(rows, relevant)
    gains = 1 / np.log2(np.arange(k) + 2)
    best = np.concatenate(([0], np.cumsum(gains)))[np.minimum(sizes, k)]
    with np.errstate(invalid="ignore", divide="ignore"):
        values = {
            "hit_rate": found.any(1).astype(float),
            "recall": found.sum(1) / np.minimum(sizes, k),
            "ndcg": found @ gains / best,
        }
    return {name: mean_recall(np.where(sizes > 0, value, np.nan)) for name, value in values.items()}
