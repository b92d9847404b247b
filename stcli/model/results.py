"""What a retrieval gives back."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from stcli.storage.ids import ItemIds


@dataclass(frozen=True)
class Results:
    """The results of B queries, best first; equal scores by item id.

    Attributes:
        rows: int64 [B, K], row of each result; -1 in empty slots, which stand last.
        score_matrix: float32 [B, K], -inf in empty slots.
        counts: int64 [B], results of each query.
        work: int64 [B], items scored by the int8 search.
        routes: int64 [B], `stcli.model.planner.ROUTES` number of the last search of each query.
        probes: int64 [B], clusters probed in it; 0 for a search of all admitted rows.
        admitted: int64 [B], items that the bit matrix admits.
        ids: of the artifact.
    """

    rows: torch.Tensor
    score_matrix: torch.Tensor
    counts: torch.Tensor
    work: torch.Tensor
    routes: torch.Tensor
    probes: torch.Tensor
    admitted: torch.Tensor
    ids: ItemIds

    def __len__(self) -> int:
        return len(self.counts)

    @cached_property
    def item_ids(self) -> list[Any]:
        """B arrays of item ids (int64, or str objects), best first, valid entries only."""
        flat, offsets = self.flat_ids()
        return np.split(flat.to_numpy(zero_copy_only=False), offsets[1:])[:-1]

    @cached_property
    def scores(self) -> list[np.ndarray]:
        """B float32 arrays of scores, best first, valid entries only."""
        matrix, counts = self.score_matrix.cpu().numpy(), self.counts.cpu().numpy()
        return [matrix[query, :count] for query, count in enumerate(counts)]

    def flat_rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows of all results one after another, and int64 offsets [B + 1]."""
        rows = self.rows.cpu().numpy()
        offsets = np.concatenate(([0], np.cumsum(self.counts.cpu().numpy())))
        return rows[rows >= 0], offsets

    def flat_ids(self) -> tuple[pa.Array, np.ndarray]:
        """Item ids of all results one after another, and int64 offsets [B + 1]."""
        rows, offsets = self.flat_rows()
        return self.ids.take(rows), offsets


def concatenate(parts: list[Results], ids: ItemIds, k: int) -> Results:
    """Join the results of consecutive query tiles."""
    if len(parts) == 1:
        return parts[0]
    if not parts:
        empty = torch.zeros(0, dtype=torch.int64)
        return Results(torch.zeros(0, k, dtype=torch.int64), torch.zeros(0, k), empty, empty, empty, empty, empty, ids)
    names = ("rows", "score_matrix", "counts", "work", "routes", "probes", "admitted")
    return Results(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names}, ids=ids)
