"""Judges the rows that a contender returned by the truth of its workload."""

from __future__ import annotations

import numpy as np

from stcli.filters.exact import Truth
from stcli.measure.metrics import Quality, band_numbers, judge, mean_recall, recall_by_band, tie_tolerance
from stcli.peers.protocol import Items, Queries

PAIRS_AT_ONCE = 1 << 16
"""Pairs of a query and an item that are scored in float64 at once."""


class Judge:
    """Judges rows of the first queries of a workload, as many as there are lines.

    Args:
        items: what was searched.
        queries: all of the workload.
        truth: of all queries, over the same embeddings.
    """

    def __init__(self, items: Items, queries: Queries, truth: Truth) -> None:
        self._items, self._queries, self._truth = items, queries, truth
        self._tolerance = tie_tolerance(truth, queries.vectors)
        filtered = np.array([tree is not None for tree in queries.trees], bool)
        self.bands = band_numbers(truth.eligible, filtered, len(items.vectors))
        self._keys = self._keyed(truth.rows)
        self._order = np.argsort(self._keys)

    def quality(self, rows: np.ndarray) -> Quality:
        """Right and wrong in rows int64 [B, k] of the first B queries."""
        count = len(rows)
        names = ("rows", "scores", "norms", "eligible", "asked")
        truth = Truth(*(getattr(self._truth, name)[:count] for name in names))
        return judge(rows, self._scores(rows), truth, self._tolerance[:count])

    def mean(self, quality: Quality) -> float:
        """Mean recall."""
        return mean_recall(quality.recall)["mean"] or 0.0

    def least(self, quality: Quality) -> float:
        """The lowest mean recall of all bands."""
        bands = recall_by_band(quality.recall, self.bands[: len(quality.recall)])
        return min((band["mean"] for band in bands if band["queries"]), default=1.0)

    def _keyed(self, rows: np.ndarray) -> np.ndarray:
        """One number for each pair of a query and a row; an empty slot's is that of no pair."""
        pairs = np.arange(len(rows))[:, None] * len(self._items.vectors) + rows
        return np.where(rows >= 0, pairs, -1).ravel()

    def _scores(self, rows: np.ndarray) -> np.ndarray:
        """True scores float64 [B, k]; -inf in empty slots and where the item is not eligible.

        Most results stand in the truth, which has their scores; only the others are computed.
        """
        keys = self._keyed(rows)
        place = self._order[np.searchsorted(self._keys, keys, sorter=self._order).clip(max=len(self._keys) - 1)]
        known = (self._keys[place] == keys) & (keys >= 0)
        scores = np.where(known, self._truth.scores.ravel()[place], -np.inf).reshape(rows.shape)
        line, slot = np.nonzero(~known.reshape(rows.shape) & (rows >= 0))
        kept = self._eligible(line, rows[line, slot])
        line, slot = line[kept], slot[kept]
        for start in range(0, len(line), PAIRS_AT_ONCE):
            part = slice(start, start + PAIRS_AT_ONCE)
            vectors = self._items.vectors[rows[line[part], slot[part]]].astype(np.float64)
            queries = self._queries.vectors[line[part]].astype(np.float64)
            scores[line[part], slot[part]] = (vectors * queries).sum(1)
        return scores

    def _eligible(self, line: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Whether each row satisfies the filter of its query; bool, as long as `line`, which ascends."""
        found = np.ones(len(line), bool)
        edges = np.searchsorted(line, np.arange(len(self._queries) + 1))
        for query in np.unique(line):
            tree, own = self._queries.trees[query], slice(edges[query], edges[query + 1])
            if tree is not None:
                found[own] = self._items.bitmaps.holds(tree, rows[own])
        return found
