"""The packed model: filter, search, verification and re-scoring as one `nn.Module`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from stcli.errors import InputError, RunError
from stcli.filters.program import FilterBatch, Planner
from stcli.filters.source import FilterSource, GivenFilters
from stcli.filters.stored import load_layout, load_matrix, load_terms, load_vocabulary
from stcli.filters.tree import Node
from stcli.model.eligibility import Excluded, distinct_rows, excluded_rows
from stcli.model.lookup import IdLookup
from stcli.model.overarch import load_overarch
from stcli.model.placement import GROUPS, LEAST_QUERIES, Placement
from stcli.model.planner import REACHED_SHARE, Calibration, SearchOptions, default_candidates
from stcli.model.requests import Requests
from stcli.model.results import Results, concatenate
from stcli.model.scoring import Scoring
from stcli.model.scoring_options import ScoringOptions, calibrated_k, needs_scoring
from stcli.model.search import Search, Tile
from stcli.model.tower import load_tower
from stcli.ops.filter_match import filter_match
from stcli.storage.artifact import Artifact
from stcli.storage.ids import ItemIds
from stcli.types import BitMatrix, Clusters, Embeddings, Lines, Postings, Quantized, SearchIndex

WORDS_BYTES = 512 << 20
"""Bytes that the admitted words of one tile of queries may take, unless `words_bytes` is set lower."""

TILE_QUERIES = 8192


class Retriever(nn.Module):
    """Item index, filter and embeddings as tensors of one module.

    Made by `stcli.open_artifact`. Buffers move with `.to(device)`; ids and exact terms stay on the host.

    Args:
        artifact: an opened artifact.
        backend: see `ops/dispatch.py`.
    """

    codes: torch.Tensor

    def __init__(self, artifact: Artifact, backend: str = "auto") -> None:
        super().__init__()
        manifest, arrays = artifact.manifest, artifact.arrays
        self.manifest: dict[str, Any] = manifest
        self.backend = backend
        self.words_bytes = WORDS_BYTES
        self.tile_queries = TILE_QUERIES
        self.warnings: list[str] = []
        for name in _BUFFERS:
            if name in arrays:
                self.register_buffer(name, torch.from_numpy(arrays[name]), persistent=False)
        vocabulary = load_vocabulary(arrays, manifest["filter"])
        self.planner = Planner(vocabulary, load_layout(arrays, manifest["filter"]))
        self.terms: Postings = load_terms(arrays)
        self.ids = ItemIds.from_arrays(arrays)
        self.lookup = IdLookup(self.ids, "auto" if backend == "cuda" else backend)  # ids stay on the host
        self.column_bytes: np.ndarray | None = arrays.get("columns")
        self.tower = load_tower(manifest.get("tower"), arrays)
        matrix = load_matrix(arrays, manifest["filter"], manifest["num_items"])
        self.register_buffer("own_words", matrix.own, persistent=False)
        self.register_buffer("bloom_words", matrix.bloom, persistent=False)
        self.register_buffer("bloom_offsets", matrix.bloom_offsets, persistent=False)
        self.overarch = load_overarch(manifest.get("overarch"), arrays, lambda: self.embeddings, backend)

    def place(self, device: torch.device, placement: Placement) -> Retriever:
        """Move the tensors to a GPU as a placement says; those that stay on the host are used from there."""
        if self.tower is not None:
            self.tower.to(device)
        for group in placement.gpu:
            if group == "terms":
                self.terms = Postings(self.terms.values.to(device), self.terms.offsets.to(device))
                continue
            for name in GROUPS[group]:
                if name in self._buffers:
                    setattr(self, name, self.get_buffer(name).to(device))
        if self.overarch is not None:
            self.overarch.to(device)
        self.tile_queries = placement.tile_queries
        self.words_bytes = placement.tile_queries * 8 * ((self.num_items + 63) // 64)
        return self

    @property
    def num_items(self) -> int:
        """N."""
        return int(self.manifest["num_items"])

    @property
    def num_clusters(self) -> int:
        """C."""
        return int(self.manifest["num_clusters"])

    @property
    def query_dim(self) -> int:
        """Dimensions that a query must have: those of the packed embeddings, or of the index if none are packed."""
        return int(self.manifest["embedding_dim"] or self.manifest["dim"])

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the artifact."""
        return str(self.manifest["fingerprint"])

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.codes.device

    @property
    def embeddings(self) -> Embeddings | None:
        """The packed embeddings, or None if none were packed."""
        values = getattr(self, "embedding_values", None)
        return None if values is None else Embeddings(values, getattr(self, "embedding_exponents", None))

    @property
    def index(self) -> SearchIndex:
        """What the int8 search reads; without error bounds the exact search scores every admitted row again."""
        errors, norms, radii = (getattr(self, name, None) for name in ("errors", "norms", "cluster_radii"))
        if errors is None or norms is None:
            errors = norms = torch.zeros(self.num_items, device=self.device)
        if self.manifest["filter"]["paper"]:
            radii = None
        clusters = Clusters(
            Quantized(self.get_buffer("centroid_codes"), self.get_buffer("centroid_scales")),
            self.get_buffer("cluster_offsets"),
            None if radii is None else radii * REACHED_SHARE,
        )
        return SearchIndex(self.codes, self.get_buffer("scales"), errors, norms, clusters)

    @property
    def matrix(self) -> BitMatrix:
        """The bit matrix of the filter."""
        return BitMatrix(
            self.get_buffer("own_words"),
            self.get_buffer("bloom_words"),
            self.get_buffer("bloom_offsets"),
            int(self.manifest["filter"]["num_hashes"]),
            self.num_items,
        )

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
            from stcli.model.calibrate import calibrate

            own = np.repeat(np.arange(len(users)), users.shape[1])
            every = source if users.shape[1] == 1 else source.take(own)
            calibration = calibrate(self, users.flatten(0, 1), every, wanted, target_recall)
        if calibration is not None:
            calibration.check(self.fingerprint, wanted)
        options = SearchOptions(k, candidates or default_candidates(k), probes, exact, calibration)
        if rank is None and not needs_scoring(self, scoring, tasks):
            return self.search(users[:, 0], source, options, excluded)
        given, missing = self._given(rank, len(users))
        values = {name: torch.as_tensor(column) for name, column in (columns or {}).items()}
        barred = None if excluded is None else excluded.rows
        requests = Requests(users, source, tasks, barred, given, missing, values)
        return Scoring(self, options, scoring, tasks).run(requests)

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
        """Search checked queries float32 [B, D] in tiles whose filter words fit in memory.

        Where the device runs out of memory, the tile is halved and searched again; results do not depend on tiles.
        """
        parts: list[Results] = []
        start = 0
        while start < len(vectors):
            stop = min(start + self.tile_queries, len(vectors))
            for count, batch in filters.batch(start, stop).split(self.filters_at_once):
                here = slice(start, start + count)
                lines = excluded.rows.take(here) if excluded is not None else None
                try:
                    parts.append(self._search_tile(vectors[here], batch, options, lines))
                except torch.OutOfMemoryError:
                    found = False
                else:
                    found = True
                if not found:  # outside of `except`, where the error would keep the tensors of the failed tile alive
                    self._shrink_tiles(count)
                    break
                start += count
        return concatenate(parts, self.ids, options.k)

    def _shrink_tiles(self, failed: int) -> None:
        """Half as many queries at once, after a tile of `failed` queries did not fit."""
        if failed <= LEAST_QUERIES:
            raise RunError(
                f"{self.device}: out of memory with {failed} queries at once; free memory on it, lower --rescore, or "
                "use --device cpu"
            )
        self.tile_queries = max(failed // 2, LEAST_QUERIES)
        self.words_bytes = min(self.words_bytes, self.tile_queries * 8 * ((self.num_items + 63) // 64))
        self.__dict__.pop("_words", None)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.warnings.append(f"{self.device} ran out of memory; going on with {self.tile_queries} queries at once")

    @property
    def filters_at_once(self) -> int:
        """Filters whose words are held at once, at least 64."""
        return max(self.words_bytes // (8 * ((self.num_items + 63) // 64)), 64)

    def _search_tile(
        self, vectors: torch.Tensor, filters: FilterBatch, options: SearchOptions, excluded: Lines | None
    ) -> Results:
        moved = filters.to(self.device)
        words, line_of_query = self.admit(moved, options.allowed)
        lines = excluded.to(self.device) if excluded is not None else None
        tile = Tile(self.normalized(vectors.to(self.device)), filters, words, line_of_query, lines)
        return Search(self, tile, options).run()

    def admit(
        self, filters: FilterBatch, allowed: torch.Tensor | None = None
    ) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Evaluate the filters of a tile on the bit matrix.

        Args:
            filters: on the model's device.
            allowed: int64 [W] words, the only items that any query may get, or None.

        Returns:
            Words int64 [F, W] (None if nothing is filtered), good until the next call, and the line of each query,
            int64 [B], -1 for every item.
        """
        words = self._words[: filters.num_filters + 1]
        if filters.program is not None:
            filter_match(self.matrix, filters.program, out=words[:-1], backend=self.backend)
        line_of_query = filters.filter_of_query
        if allowed is None:
            return (words[:-1] if filters.program is not None else None), line_of_query
        words[-1] = allowed
        words[:-1] &= words[-1]
        return words, torch.where(line_of_query >= 0, line_of_query, len(words) - 1)

    @cached_property
    def _words(self) -> torch.Tensor:
        """Where the words of a tile are written: the pages of a fresh tensor cost more than filling them."""
        lines = min(self.filters_at_once, TILE_QUERIES) + 1
        return torch.empty(lines, (self.num_items + 63) // 64, dtype=torch.int64, device=self.device)

    def normalized(self, vectors: torch.Tensor) -> torch.Tensor:
        """Queries for the cosine metric have length 1; others are left alone."""
        if self.manifest["metric"] != "cosine":
            return vectors
        lengths = vectors.norm(dim=1, keepdim=True)
        return vectors / torch.where(lengths == 0, 1, lengths)


_BUFFERS = (
    "codes", "scales", "errors", "norms", "centroid_codes", "centroid_scales", "cluster_offsets",
    "cluster_radii",
    "embedding_values", "embedding_exponents", "id_order", "id_rank",
)  # fmt: skip
