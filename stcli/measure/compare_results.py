"""Two results directories side by side: do the same queries get the same items, and are they spread as before?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stcli.errors import InputError
from stcli.measure.metrics import mean_recall
from stcli.storage.parquet import Table, open_table
from stcli.storage.results import open_results

BATCH_ROWS = 1 << 13
MERGED_ROWS = 1 << 22
TOP_SHARE = 0.01
"""The most returned hundredth of the items that were returned at all."""


def compare_results(
    before: Path, after: Path, k: int | None, min_recall: float | None
) -> tuple[dict[str, Any], list[str]]:
    """Overlap of the lists, coverage of the items, the share of the top items, short queries.

    Overlap of a query: items in both lists over the length of the longer one. With an exact run as `before` it is the
    recall of `after`.

    Returns:
        Part of the summary, and which thresholds are missed.
    """
    first, second = Side.open(before, k), Side.open(after, k)
    if first.ids.type != second.ids.type:
        raise InputError(f"{before} has {first.ids.type} query ids, {after} has {second.ids.type}; nothing to compare")
    if first.kind != second.kind:
        raise InputError(f"{before} has items as {first.kind}, {after} as {second.kind}; nothing to compare")
    place = _places(first.ids, second.ids)
    overlaps, same = [], 0
    for start, mine in first.lists():
        there = place[start : start + len(mine)]
        theirs = second.take(there[there >= 0])
        mine = mine.filter(pa.array(there >= 0))
        shared, longest = _shared(mine, theirs)
        with np.errstate(invalid="ignore"):
            overlaps.append(np.where(longest > 0, shared / np.maximum(longest, 1), np.nan))
        same += int((shared == longest).sum())
    overlap = mean_recall(np.concatenate(overlaps) if overlaps else np.zeros(0))
    second.count_all()
    both = int((place >= 0).sum())
    told = {
        "queries": {"in both": both, "only before": len(place) - both, "only after": len(second.ids) - both},
        "overlap": {name: overlap[name] for name in ("mean", "low", "high", "worst_tenth")} | {"equal lists": same},
        "results": _beside(first.results, second.results),
        "short_queries": _beside(first.short, second.short),
        "distinct_items": _beside(first.counts.distinct, second.counts.distinct),
        "items_new": second.counts.beyond(first.counts),
        "items_gone": first.counts.beyond(second.counts),
        "share_of_top_items": _beside(first.counts.top(), second.counts.top()),
    }
    missed = []
    if min_recall is not None and overlap["mean"] is not None and overlap["mean"] < min_recall:
        missed.append(
            f"{after}: mean overlap with {before} is {overlap['mean']:.4f}, below --min-recall {min_recall:g}"
        )
    return told, missed


@dataclass
class Counts:
    """How often each item was returned.

    Attributes:
        parts: tables of `item` and `count`; an item may stand in several.
        rows: rows of these since they were last merged.
    """

    parts: list[pa.Table] = field(default_factory=list)
    rows: int = 0

    def add(self, items: pa.Array) -> None:
        """Count some more."""
        counted = pc.value_counts(items)
        self.parts.append(pa.table({"item": counted.field(0), "count": counted.field(1)}))
        self.rows += len(counted)
        if self.rows > MERGED_ROWS:
            self.merge()

    def merge(self) -> pa.Table:
        """All counts, each item once."""
        if not self.parts:
            return pa.table({"item": pa.array([], pa.int64()), "count": pa.array([], pa.int64())})
        merged = pa.concat_tables(self.parts).group_by("item").aggregate([("count", "sum")])
        merged = merged.rename_columns(["item", "count"])
        self.parts, self.rows = [merged], 0
        return merged

    @property
    def distinct(self) -> int:
        """Items that were returned at all."""
        return self.merge().num_rows

    def top(self) -> float:
        """Share of all results that are items of the most returned hundredth."""
        counts = np.sort(self.merge()["count"].to_numpy())[::-1]
        return float(counts[: max(int(len(counts) * TOP_SHARE), 1)].sum() / max(counts.sum(), 1))

    def beyond(self, other: Counts) -> int:
        """Items that the other never returned."""
        mine, theirs = self.merge()["item"], other.merge()["item"]
        return int(pc.sum(pc.invert(pc.is_in(mine, value_set=theirs))).as_py() or 0) if len(mine) else 0


@dataclass
class Side:
    """One results directory.

    Attributes:
        table: its parts.
        ids: query ids in order.
        k: results of each query that are looked at, or None for all.
        short: queries with fewer than k results.
        counts: of the items.
        results: how many in all.
    """

    table: Table
    ids: pa.Array
    k: int | None
    short: int
    counts: Counts = field(default_factory=Counts)
    results: int = 0

    @classmethod
    def open(cls, path: Path, k: int | None) -> Side:
        """Open a directory and read its query ids and counts of short queries.

        Raises:
            InputError: it has no queries, or one row a result.
        """
        manifest = open_results(path)
        if not any(part["rows"] for part in manifest["parts"]):
            raise InputError(f"{path}: has no queries; nothing to compare, retrieve some")
        table = open_table([path / part["name"] for part in manifest["parts"]])
        if not pa.types.is_list(table.column_type("item_id", "item_id")):
            raise InputError(f"{path}: has one row a result (--explode); compare needs lists, so retrieve without it")
        name = table.schema.names[0]
        ids = pa.chunked_array([batch.column(0) for _, batch in table.batches([name], BATCH_ROWS)])
        return cls(table, ids.combine_chunks(), k, int(manifest["counts"]["short"]))

    @property
    def kind(self) -> pa.DataType:
        """Type of the lists of items."""
        return self.table.column_type("item_id", "item_id")

    def lists(self) -> Iterator[tuple[int, pa.ListArray]]:
        """(first row, lists of items) of some queries after others; every item is counted."""
        for start, batch in self.table.batches(["item_id"], BATCH_ROWS):
            column = self._cut(batch.column(0))
            self.results += len(column.flatten())
            self.counts.add(column.flatten())
            yield start, column

    def count_all(self) -> None:
        """Count every item without looking further."""
        for _ in self.lists():
            pass

    def take(self, rows: np.ndarray) -> pa.ListArray:
        """The lists of some rows, int64, in their order."""
        if not len(rows):
            return pa.array([], self.kind)
        first, last = int(rows.min()), int(rows.max()) + 1
        found = [batch.column(0) for _, batch in self.table.batches(["item_id"], BATCH_ROWS, first, last)]
        return self._cut(pa.chunked_array(found).combine_chunks().take(pa.array(rows - first)))

    def _cut(self, column: pa.ListArray) -> pa.ListArray:
        return column if self.k is None else pc.list_slice(column, 0, self.k)


def _places(first: pa.Array, second: pa.Array) -> np.ndarray:
    """Row of each query of the first among those of the second, int64, -1 if it is not there.

    Ids that repeat are told apart by their order only if both tables are the same.
    """
    if first.equals(second):
        return np.arange(len(first))
    place = pc.index_in(first, value_set=second)
    return pc.fill_null(place, -1).to_numpy(zero_copy_only=False).astype(np.int64)


def _shared(mine: pa.ListArray, theirs: pa.ListArray) -> tuple[np.ndarray, np.ndarray]:
    """Items in both lists of each query, and the length of the longer one; int64 each."""
    sizes = [pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False) for lists in (mine, theirs)]
    items = pa.concat_arrays([mine.flatten(), theirs.flatten()]).dictionary_encode("encode")
    codes = items.indices.to_numpy().astype(np.int64)
    owners = [np.repeat(np.arange(len(size)), size) for size in sizes]
    split = len(owners[0])
    keys = [owner * len(items.dictionary) + code for owner, code in zip(owners, np.split(codes, [split]), strict=True)]
    both = np.intersect1d(*keys)
    shared = np.bincount(both // max(len(items.dictionary), 1), minlength=len(mine))
    return shared, np.maximum(*sizes)


def _beside(before: float, after: float) -> dict[str, Any]:
    return {"before": before, "after": after}
