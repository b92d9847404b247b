"""Calls in a pool of Python threads, each with one thread of Faiss: how it takes a filter for each query."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np

AT_ONCE = 16
"""Queries that a thread takes at a time."""


@contextmanager
def faiss_threads(threads: int) -> Iterator[None]:
    """Let Faiss use so many threads for a block.

    It may share its OpenMP library with torch; left at two, torch's small operations wait for a second thread, and what
    is measured next is several times slower.
    """
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(threads)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


SHARE = 1024
"""Queries of one call from which on Faiss multiplies matrices instead of looping.

Flat, 100,000 x 128, faiss 1.15.1 on AVX2: 1.7 G multiply-adds a CPU second with 768 queries, 24 with 1,024.
"""


class Workers:
    """A pool of threads that is kept between searches.

    Args:
        threads: how many.
        start: called once in each thread.
    """

    def __init__(self, threads: int, start: Callable[[], None]) -> None:
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, "peer", start)

    def each(self, answer: Callable[[int], np.ndarray], queries: int, k: int) -> np.ndarray:
        """Rows int64 [queries, k] from a call of `answer` for each query, which gives at most k; -1 behind them."""
        found = np.full((queries, k), -1, np.int64)

        def some(start: int) -> None:
            for query in range(start, min(start + AT_ONCE, queries)):
                rows = answer(query)
                found[query, : len(rows)] = rows

        list(self._pool.map(some, range(0, queries, AT_ONCE)))
        return found

    @property
    def fair_batch(self) -> int:
        """Queries that fill the shares of all threads."""
        return SHARE * self._threads

    def shares(self, search: Callable[[np.ndarray], np.ndarray], vectors: np.ndarray) -> np.ndarray:
        """Rows int64 [queries, k] of a batch without filters, an equal share a thread; one call if they were too small.

        Two OpenMP threads of one call wait for each other in every block of items: they took twice the CPU time of two
        calls (9.8 and 24.7 G multiply-adds a CPU second, Flat on 2,048 queries).
        """
        if len(vectors) < self.fair_batch:
            with faiss_threads(self._threads):
                return search(vectors)
        return np.concatenate(list(self._pool.map(search, np.array_split(vectors, self._threads))))
