"""A few lines of PyTorch: float32 product, mask, top-k."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from stcli.peers.protocol import Items, Queries

SCORE_BYTES = 1 << 28
"""Bytes of the scores of one block of queries."""


class TorchExact:
    """Exact search in blocks of queries."""

    name = "torch"
    how = "float32 matrix product, a bool mask for each filter, torch.topk; exact, in blocks of queries"

    def build(self, items: Items) -> None:
        """Keep the vectors as a tensor."""
        self._items = items
        self._vectors = torch.from_numpy(items.vectors)
        self._step = max(SCORE_BYTES // (4 * len(items.vectors)), 1)

    @property
    def index_bytes(self) -> int:
        """The vectors."""
        return self._items.vectors.nbytes

    def parameters(self, filtered: bool, k: int) -> Iterator[tuple[str, None]]:
        """There is one setting."""
        yield "exact", None

    def at_once(self, filtered: bool) -> int:
        """It takes blocks of queries, whatever their number."""
        return self._step

    def refuses(self, queries: Queries) -> str | None:
        """A bitmap expresses any filter."""
        return None

    def search(self, queries: Queries, k: int, parameter: None) -> np.ndarray:
        """Rows of the best k."""
        before = torch.get_num_threads()
        torch.set_num_threads(self._items.threads)
        try:
            return self._search(torch.from_numpy(queries.vectors), queries, k)
        finally:
            torch.set_num_threads(before)

    def _search(self, vectors: torch.Tensor, queries: Queries, k: int) -> np.ndarray:
        num_items = len(self._vectors)
        step = self._step
        found = np.full((len(vectors), k), -1, np.int64)
        for start in range(0, len(vectors), step):
            scores = vectors[start : start + step] @ self._vectors.T
            for line, tree in enumerate(queries.trees[start : start + step]):
                if tree is not None:
                    bits = self._items.bitmaps.of(tree)
                    eligible = np.unpackbits(bits, count=num_items, bitorder="little").view(bool)
                    scores[line].masked_fill_(torch.from_numpy(~eligible), -torch.inf)
            best = scores.topk(k)
            found[start : start + step] = torch.where(best.values > -torch.inf, best.indices, -1).numpy()
        return found
