"""What a retrieval gives back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from stcli.model.lookup import Ids


@dataclass(frozen=True, repr=False)
class Results:
    """The results of B queries, best first; equal scores by item id.

    Attributes:
        rows: int64 [B, K], row of each result; -1 in empty slots, which stand last.
        score_matrix: float32 [B, K], -inf in empty slots.
        counts: int64 [B], results of each query.
        work: int64 [B], items scored by the int8 search.
        routes: int64 [B], `stcli.model.planner.ROUTES` number of the last search of each query.
        probes: int64 [B], clusters probed in it; 0 for a search of all admitted rows.
        admitted: int64 [B], items that the bit matrix admits; an estimate where a query was searched without counting
            them (never with `SearchOptions.count`).
        ids: of the artifact.
        ann_scores: float32 [B, K], the best search score of each result; None where candidates were given, and for
            plain queries, whose score it is.
        task_matrix: float32 [B, T, K], score of each result for each task, or None for plain queries.
        tasks: the names of the tasks.
        missing: int64 [B], given candidates and query items that are no item; None if none were given.
        scored: int64 [B], candidates among which the results were chosen; None for plain queries.
        estimates: int64 [B], what `admitted` was taken for before it was counted; None where candidates were given.
    """

    rows: torch.Tensor
    score_matrix: torch.Tensor
    counts: torch.Tensor
    work: torch.Tensor
    routes: torch.Tensor
    probes: torch.Tensor
    admitted: torch.Tensor
    ids: Ids
    ann_scores: torch.Tensor | None = None
    task_matrix: torch.Tensor | None = None
    tasks: tuple[str, ...] = ()
    missing: torch.Tensor | None = None
    scored: torch.Tensor | None = None
    estimates: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.counts)

    def __repr__(self) -> str:
        """How much there is, as the tensors may have millions of numbers."""
        tasks = f", tasks={list(self.tasks)}" if self.tasks else ""
        return f"<Results of {len(self):,} queries, up to {self.rows.shape[1]:,} items each{tasks}; item_ids, scores>"

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

    @cached_property
    def task_scores(self) -> dict[str, list[np.ndarray]]:
        """For each task B float32 arrays of scores, in the order of `item_ids`."""
        if self.task_matrix is None:
            return {}
        counts = self.counts.cpu().numpy()
        return {
            task: [line[:count] for line, count in zip(self.task_matrix[:, place].numpy(), counts, strict=True)]
            for place, task in enumerate(self.tasks)
        }

    def flat_rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows of all results one after another, and int64 offsets [B + 1]."""
        rows = self.rows.cpu().numpy()
        offsets = np.concatenate(([0], np.cumsum(self.counts.cpu().numpy())))
        return rows[rows >= 0], offsets

    def flat_ids(self) -> tuple[pa.Array, np.ndarray]:
        """Item ids of all results one after another, and int64 offsets [B + 1]."""
        rows, offsets = self.flat_rows()
        return self.ids.take(rows), offsets


def without(results: Results, empty: torch.Tensor) -> Results:
    """The results with none for some queries, bool [B], which count as one missing item each."""
    none = empty[:, None]
    tasks = results.task_matrix
    return replace(
        results,
        rows=results.rows.masked_fill(none, -1),
        score_matrix=results.score_matrix.masked_fill(none, -torch.inf),
        counts=results.counts.masked_fill(empty, 0),
        ann_scores=None if results.ann_scores is None else results.ann_scores.masked_fill(none, -torch.inf),
        task_matrix=None if tasks is None else tasks.masked_fill(none[:, :, None], -torch.inf),
        missing=empty.long() if results.missing is None else results.missing + empty,
    )


def concatenate(parts: list[Results], ids: Ids, k: int) -> Results:
    """Join the results of consecutive query tiles."""
    if len(parts) == 1:
        return parts[0]
    if not parts:
        empty = torch.zeros(0, dtype=torch.int64)
        return Results(torch.zeros(0, k, dtype=torch.int64), torch.zeros(0, k), empty, empty, empty, empty, empty, ids)
    names = ("rows", "score_matrix", "counts", "work", "routes", "probes", "admitted")
    joined = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
    for name in ("ann_scores", "task_matrix", "missing", "scored", "estimates"):
        if getattr(parts[0], name) is not None:
            joined[name] = torch.cat([getattr(part, name) for part in parts])
    return Results(**joined, ids=ids, tasks=parts[0].tasks)
