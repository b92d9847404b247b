"""Faiss Flat: every vector in float32, exact."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from stcli.peers.bitmaps import rows_of
from stcli.peers.protocol import Items, Queries
from stcli.peers.workers import Workers


class FaissFlat:
    """An exact index; with a filter, only the eligible vectors are scored."""

    name = "faiss Flat"
    how = ""

    def build(self, items: Items) -> None:
        """Copy the vectors into an index."""
        import faiss

        self.index: Any = faiss.IndexFlatIP(items.vectors.shape[1])
        self.index.add(items.vectors)
        self._items = items
        self.how = (
            f"float32, exact; {items.threads} threads, without filters one call each for a share of the batch, with "
            "filters one call a query, with an IDSelectorArray of the eligible rows"
        )
        self._workers = Workers(items.threads, lambda: faiss.omp_set_num_threads(1))

    @property
    def index_bytes(self) -> int:
        """The vectors."""
        return self._items.vectors.nbytes

    def parameters(self, filtered: bool, k: int) -> Iterator[tuple[str, None]]:
        """There is one setting."""
        yield "exact", None

    def at_once(self, filtered: bool) -> int:
        """Without filters it shares a matrix product among the queries; with them each is alone."""
        return 1 if filtered else self._workers.fair_batch

    def refuses(self, queries: Queries) -> str | None:
        """A bitmap expresses any filter."""
        return None

    def search(self, queries: Queries, k: int, parameter: None) -> np.ndarray:
        """Rows of the best k."""
        if not queries.filtered:
            return self._workers.shares(lambda vectors: self.index.search(vectors, k)[1], queries.vectors)

        def answer(query: int) -> np.ndarray:
            tree = queries.trees[query]
            if tree is None:
                return self.index.search(queries.vectors[query][None], k)[1][0]
            return self.one(queries.vectors[query], k, rows_of(self._items.bitmaps.of(tree)))

        return self._workers.each(answer, len(queries), k)

    def one(self, vector: np.ndarray, k: int, rows: np.ndarray) -> np.ndarray:
        """The best k of some rows; given as an array, Faiss scores these and looks at no other (a bitmap it scans)."""
        import faiss

        params = faiss.SearchParameters(sel=faiss.IDSelectorArray(rows))
        return self.index.search(vector[None], k, params=params)[1][0]
