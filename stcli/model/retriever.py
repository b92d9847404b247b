"""The packed model: filter, search, verification and re-scoring as one `nn.Module`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from stcli.errors import InputError
from stcli.filters.source import FilterSource, GivenFilters
from stcli.filters.tree import Node
from stcli.model.calibrate import calibrate
from stcli.model.corpus import Corpus
from stcli.model.eligibility import Excluded, distinct_rows, excluded_rows
from stcli.model.planner import FILTER_SCOPES, Calibration, SearchOptions, default_candidates
from stcli.model.requests import Requests
from stcli.model.results import Results, without
from stcli.model.scoring import Scoring
from stcli.model.scoring_options import ScoringOptions, calibrated_k, needs_scoring
from stcli.model.tiles import search
from stcli.types import Lines


class Retriever(Corpus):
    """Item index, filter and embeddings as tensors of one module, to be called with queries.

    Made by `stcli.open_artifact`. Buffers move with `.to(device)`; ids and exact terms stay on the host.
    """

    def forward(
        self,
        queries: torch.Tensor | np.ndarray | Mapping[str, torch.Tensor | np.ndarray],
        filters: Sequence[str | Node | None] | FilterSource | str | None = None,
        k: int = 100,
        *,
        exclude: Sequence[Sequence[Any] | None] | None = None,
        probes: int | None = None,
        exact: bool = False,
        target_recall: float | None = 0.95,
        calibration: Calibration | None = None,
        candidates: int | None = None,
        filter_scope: str = "auto",
        rank: Sequence[Sequence[Any] | None] | None = None,
        scoring: ScoringOptions | None = None,
        columns: Mapping[str, torch.Tensor | np.ndarray] | None = None,
    ) -> Results:
        """Retrieve the best k eligible items of each query; fewer come back only when fewer are eligible.

        Args:
            queries: float [B, D], or for each task by name its user vectors, float [B, D].
            filters: one text or tree (or None) a query, or one text for all.
            k: results a query.
            exclude: for each query, item ids that it must not get (or None).
            probes: clusters to look at, for every query; default: planned for each query.
            exact: give the true best k of all eligible items by the packed embeddings.
            target_recall: recall to reach in every band of the pass rate; without a `calibration`, one is measured on
                these queries, and bands of 256 queries or fewer are answered exactly. None: a fixed share of clusters.
            calibration: measured before, by `stcli.model.calibrate`.
            candidates: K0, candidates re-scored from the packed embeddings.
            filter_scope: where filters are evaluated: `all` items, the clusters `probed`, or what costs less (see
                `SearchOptions`).
            rank: for each query, the item ids to rank by score instead of searching; those that are no items are
                counted in `missing`, those that the filter or `exclude` rules out are left out.
            scoring: what happens after the search, from `stcli.scoring_options`.
            columns: query columns that its value models read, float32 or bool [B], by name.

        Returns:
            `Results`, best first. The score of several tasks is the best of them, see `stcli.model.scoring`.

        Raises:
            InputError: shapes or options do not fit.
            FilterError: a filter does not parse or names something unknown.
        """
        tasks = tuple(queries) if isinstance(queries, Mapping) else ()
        if k < 1:
            raise InputError(f"k {k}: expected at least 1")
        users = self._users(queries)
        scoring = scoring or ScoringOptions()
        wanted = calibrated_k(self, k, scoring)
        source = self._source(filters, len(users))
        excluded = self._excluded(exclude, len(users))
        if target_recall is not None and calibration is None and not exact and probes is None and rank is None:
            own = np.repeat(np.arange(len(users)), users.shape[1])
            every = source if users.shape[1] == 1 else source.take(own)
            calibration = calibrate(self, users.flatten(0, 1), every, wanted, target_recall)
        if calibration is not None:
            calibration.check(self.fingerprint, wanted)
        if filter_scope not in FILTER_SCOPES:
            raise InputError(f"filter_scope {filter_scope!r}: expected one of {', '.join(FILTER_SCOPES)}")
        options = SearchOptions(
            k, candidates or default_candidates(k), probes, exact, calibration, filter_scope=filter_scope
        )
        if rank is None and not needs_scoring(self, scoring, tasks):
            return self.search(users[:, 0], source, options, excluded)
        given, missing = self._given(rank, len(users))
        values = {name: torch.as_tensor(column) for name, column in (columns or {}).items()}
        barred = None if excluded is None else excluded.rows
        requests = Requests(users, source, tasks, barred, given, missing, values)
        return Scoring(self, options, scoring, tasks).run(requests)

    def similar(
        self,
        items: Sequence[Any],
        filters: Sequence[str | Node | None] | FilterSource | str | None = None,
        k: int = 100,
        *,
        exclude: Sequence[Sequence[Any] | None] | None = None,
        **more: Any,
    ) -> Results:
        """Retrieve the items nearest to each of some items, by their packed embeddings, without these themselves.

        Args:
            items: ids. One that is no item gets no results and is counted in `missing`.
            filters, k, exclude: as in a call of the model.
            more: its other arguments.

        Raises:
            InputError: as a call of the model; or no embeddings are packed.
        """
        if not self.has_embeddings:
            raise InputError("similar: the artifact holds no embeddings; pack it with --embedding-dtype float16")
        given, _ = self._lists("items", [[item] for item in items], len(items))
        rows = self.lookup.rows_of(given)
        barred = [[item, *(ids or ())] for item, ids in zip(items, exclude or [None] * len(items), strict=True)]
        found = self(self.vectors_of_items(rows), filters, k, exclude=barred, **more)
        return without(found, torch.from_numpy(rows < 0))

    def _users(self, queries: Any) -> torch.Tensor:
        """User vectors float32 [B, T, D], checked."""
        if not isinstance(queries, Mapping):
            return self.check_queries(queries)[:, None]
        if not queries:
            raise InputError("queries: no task was given; expected user vectors for at least one")
        checked = {task: self.check_queries(vectors) for task, vectors in queries.items()}
        if len({len(vectors) for vectors in checked.values()}) > 1:
            lengths = ", ".join(f"{task} {len(vectors)}" for task, vectors in checked.items())
            raise InputError(f"queries: every task needs as many user vectors, got {lengths}")
        return torch.stack(list(checked.values()), 1)

    def _source(self, filters: Any, count: int) -> FilterSource:
        if filters is None or isinstance(filters, str):
            return GivenFilters(self.planner, [filters] * count)
        if len(filters) != count:
            raise InputError(f"filters: {len(filters)} for {count} queries; expected one a query, None for no filter")
        return GivenFilters(self.planner, list(filters)) if isinstance(filters, Sequence) else filters

    def _excluded(self, exclude: Sequence[Sequence[Any] | None] | None, count: int) -> Excluded | None:
        return None if exclude is None else excluded_rows(self, *self._lists("exclude", exclude, count))

    def _given(
        self, rank: Sequence[Sequence[Any] | None] | None, count: int
    ) -> tuple[Lines | None, torch.Tensor | None]:
        if rank is None:
            return None, None
        rows, missing = distinct_rows(self, *self._lists("rank", rank, count))
        return rows, torch.from_numpy(missing)

    def _lists(self, name: str, lists: Sequence[Sequence[Any] | None], count: int) -> tuple[pa.Array, np.ndarray]:
        """Lists of item ids, one after another, and their lengths."""
        if len(lists) != count:
            raise InputError(f"{name}: {len(lists)} lists for {count} queries; expected one a query, or None")
        lengths = np.array([len(ids) if ids is not None else 0 for ids in lists], np.int64)
        flat = [item for ids in lists if ids is not None for item in ids]
        return pa.array(flat, pa.string() if self.ids.is_string else pa.int64()), lengths

    def check_queries(self, queries: torch.Tensor | np.ndarray) -> torch.Tensor:
        """Queries as float32 on the CPU.

        Raises:
            InputError: another shape, or a value that is not finite.
        """
        if isinstance(queries, np.ndarray):
            queries = np.require(queries, requirements="W")  # torch warns of arrays that it could write to by mistake
        vectors = torch.as_tensor(queries).float().contiguous()
        if vectors.dim() != 2 or vectors.shape[1] != self.query_dim:
            raise InputError(
                f"queries: float [B, D] expected with D={self.query_dim} (from the artifact), got {list(vectors.shape)}"
            )
        if not bool(torch.isfinite(vectors).all()):
            raise InputError("queries: hold NaN or infinite values; expected finite numbers")
        return vectors

    def search(
        self, vectors: torch.Tensor, filters: FilterSource, options: SearchOptions, excluded: Excluded | None = None
    ) -> Results:
        """Search checked queries float32 [B, D], see `stcli.model.tiles.search`."""
        return search(self, vectors, filters, options, excluded)
