"""Faiss Flat: every vector in float32, exact."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from stcli.peers.bitmaps import rows_of
from stcli.peers.protocol import Items, Queries
from stcli.peers.workers import Workers, faiss_threads

SHARED_QUERIES = 2048
"""Queries at once from which on Flat's matrix product has its full speed."""


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
            f"float32, exact; without filters one call for the batch, with filters one call a query in "
            f"{items.threads} threads, with an IDSelectorArray of the eligible rows"
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
        return 1 if filtered else SHARED_QUERIES

    def refuses(self, queries: Queries) -> str | None:
        """A bitmap expresses any filter."""
        return None

    def search(self, queries: Queries, k: int, parameter: None) -> np.ndarray:
        """Rows of the best k."""
        if not queries.filtered:
            with faiss_threads(self._items.threads):
                return self.index.search(queries.vectors, k)[1]

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
