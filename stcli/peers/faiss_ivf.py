"""Faiss IVF: inverted lists of float32 vectors (Flat) or of 8-bit ones (SQ8), with a bitmap selector for a filter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from stcli.index.kmeans import default_num_clusters
from stcli.peers.protocol import Items, Queries
from stcli.peers.workers import Workers, faiss_threads

POINTS_A_LIST = 128
"""Training points of k-means; Faiss itself takes up to 256, which costs twice the time for the same recall here."""

ROUNDS = 10
"""Of k-means; as many as Faiss itself takes for an IVF index."""

SCALAR_SAMPLE = 200_000


class Coarse:
    """The k-means centres, trained once for all indexes that share them."""

    def __init__(self) -> None:
        self._index: Any = None

    def of(self, items: Items) -> Any:
        """A flat index of the centres; their number is the one that `build-index` would choose."""
        import faiss

        if self._index is None:
            count, dim = items.vectors.shape
            lists = min(default_num_clusters(count), count)
            self._index = faiss.IndexFlatIP(dim)
            ivf = faiss.IndexIVFFlat(self._index, dim, lists, faiss.METRIC_INNER_PRODUCT)
            ivf.cp.min_points_per_centroid, ivf.cp.niter = 1, ROUNDS
            drawn = np.random.default_rng(items.seed).choice(count, min(count, POINTS_A_LIST * lists), replace=False)
            ivf.train(items.vectors[np.sort(drawn)])
        return self._index


class FaissIvf:
    """An IVF index.

    Args:
        kind: "Flat" or "SQ8".
        coarse: centres shared with other indexes.
    """

    def __init__(self, kind: str, coarse: Coarse) -> None:
        self._kind, self._coarse = kind, coarse
        self.name = f"faiss IVF,{kind}"
        self.how = ""

    def build(self, items: Items) -> None:
        """Train and fill the index with all threads."""
        with faiss_threads(items.threads):
            self._build(items)

    def _build(self, items: Items) -> None:
        import faiss

        count, dim = items.vectors.shape
        centres = self._coarse.of(items)
        lists = centres.ntotal
        if self._kind == "SQ8":
            index = faiss.IndexIVFScalarQuantizer(
                centres, dim, lists, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
            )
        else:
            index = faiss.IndexIVFFlat(centres, dim, lists, faiss.METRIC_INNER_PRODUCT)
        drawn = np.random.default_rng(items.seed).choice(count, min(count, SCALAR_SAMPLE), replace=False)
        index.train(items.vectors[np.sort(drawn)])
        index.add(items.vectors)
        self.index, self.lists, self._items = index, lists, items
        self.name = f"faiss IVF{lists},{self._kind}"
        self.how = (
            f"{lists:,} lists; without filters one call for the batch, with filters one call a query in "
            f"{items.threads} threads, with an IDSelectorBitmap"
        )
        self._workers = Workers(items.threads, lambda: faiss.omp_set_num_threads(1))

    @property
    def index_bytes(self) -> int:
        """Vectors or codes, ids and centres."""
        count, dim = self._items.vectors.shape
        return count * (int(self.index.code_size) + 8) + 4 * self.lists * dim

    def parameters(self, filtered: bool, k: int) -> Iterator[tuple[str, int]]:
        """Numbers of lists to probe, from few enough to miss most to all of them."""
        probes = max(1, self.lists * k // (4 * len(self._items.vectors)), self.lists // (64 if filtered else 1024))
        while probes < self.lists:
            yield f"nprobe {probes}", probes
            probes *= 2
        yield f"nprobe {self.lists}", self.lists

    def at_once(self, filtered: bool) -> int:
        """Without filters it shares the product with the centres; lists are looked through query by query."""
        return 1 if filtered else self._workers.fair_batch

    def refuses(self, queries: Queries) -> str | None:
        """A bitmap expresses any filter."""
        return None

    def search(self, queries: Queries, k: int, parameter: int) -> np.ndarray:
        """Rows of the best k."""
        import faiss

        if not queries.filtered:
            with faiss_threads(self._items.threads):
                return self.index.search(queries.vectors, k, params=faiss.SearchParametersIVF(nprobe=parameter))[1]
        bitmaps = self._items.bitmaps

        def answer(query: int) -> np.ndarray:
            tree = queries.trees[query]
            return self.one(queries.vectors[query], k, parameter, None if tree is None else bitmaps.of(tree))

        return self._workers.each(answer, len(queries), k)

    def one(self, vector: np.ndarray, k: int, probes: int, bits: np.ndarray | None) -> np.ndarray:
        """Answer one query, under a bitmap if there is one."""
        import faiss

        chosen = {} if bits is None else {"sel": faiss.IDSelectorBitmap(bits)}
        params = faiss.SearchParametersIVF(nprobe=probes, **chosen)
        return self.index.search(vector[None], k, params=params)[1][0]
