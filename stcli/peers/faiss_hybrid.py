"""What a careful user of Faiss writes for filters: exact search while few items are eligible, IVF above."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from stcli.peers.bitmaps import count, rows_of
from stcli.peers.faiss_flat import FaissFlat
from stcli.peers.faiss_ivf import FaissIvf
from stcli.peers.protocol import Items, Queries
from stcli.peers.workers import Workers

SETTINGS = ((0.02, 1 / 64), (0.02, 1 / 32), (0.02, 1 / 16), (0.05, 1 / 32), (0.05, 1 / 16), (0.1, 1 / 16), (0.1, 1 / 8))
"""Share of the items up to which search is exact, and share of the lists that is probed above it."""


class FaissHybrid:
    """Exact or IVF, by the number of eligible items.

    Args:
        flat: searches the eligible rows one by one.
        ivf: searches with a bitmap selector.
    """

    name = "faiss hybrid"
    how = ""

    def __init__(self, flat: FaissFlat, ivf: FaissIvf) -> None:
        self._flat, self._ivf = flat, ivf

    def build(self, items: Items) -> None:
        """Nothing but a pool: both indexes are built already."""
        import faiss

        self._items = items
        self.how = (
            f"{self._flat.name} over the eligible rows while they are few, else {self._ivf.name} with a bitmap; "
            f"one call a query in {items.threads} threads"
        )
        self._workers = Workers(items.threads, lambda: faiss.omp_set_num_threads(1))

    @property
    def index_bytes(self) -> int:
        """Both indexes."""
        return self._flat.index_bytes + self._ivf.index_bytes

    def parameters(self, filtered: bool, k: int) -> Iterator[tuple[str, tuple[int, int]]]:
        """Thresholds and numbers of lists; nothing without filters, where it would be the IVF index."""
        for share, probed in SETTINGS if filtered else ():
            limit = int(share * len(self._items.vectors))
            probes = max(int(probed * self._ivf.lists), 1)
            yield f"exact up to {limit:,}, else nprobe {probes}", (limit, probes)

    def at_once(self, filtered: bool) -> int:
        """Each query is a call of its own."""
        return 1

    def refuses(self, queries: Queries) -> str | None:
        """A bitmap expresses any filter."""
        return None

    def search(self, queries: Queries, k: int, parameter: tuple[int, int]) -> np.ndarray:
        """Rows of the best k."""
        limit, probes = parameter
        bitmaps = self._items.bitmaps

        def answer(query: int) -> np.ndarray:
            vector, tree = queries.vectors[query], queries.trees[query]
            bits = None if tree is None else bitmaps.of(tree)
            if bits is not None and count(bits) <= limit:
                return self._flat.one(vector, k, rows_of(bits))
            return self._ivf.one(vector, k, probes, bits)

        return self._workers.each(answer, len(queries), k)
