"""The packed model: filter, search, verification and re-scoring as one `nn.Module`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from stcli.errors import InputError
from stcli.filters.program import FilterBatch, Planner
from stcli.filters.stored import load_layout, load_matrix, load_terms, load_vocabulary
from stcli.filters.tree import Node
from stcli.model.planner import Calibration, SearchOptions, default_candidates
from stcli.model.results import Results, concatenate
from stcli.model.search import Search
from stcli.ops.filter_match import filter_match
from stcli.storage.artifact import Artifact
from stcli.storage.ids import ItemIds
from stcli.types import BitMatrix, Clusters, Embeddings, Postings, Quantized, SearchIndex

WORDS_BYTES = 512 << 20
"""Bytes that the admitted words of one tile of queries may take."""

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
        for name in _BUFFERS:
            if name in arrays:
                self.register_buffer(name, torch.from_numpy(arrays[name]), persistent=False)
        vocabulary = load_vocabulary(arrays, manifest["filter"])
        self.planner = Planner(vocabulary, load_layout(arrays, manifest["filter"]))
        self.terms: Postings = load_terms(arrays)
        self.ids = ItemIds.from_arrays(arrays)
        self.column_bytes: np.ndarray | None = arrays.get("columns")
        matrix = load_matrix(arrays, manifest["filter"], manifest["num_items"])
        self.register_buffer("own_words", matrix.own, persistent=False)
        self.register_buffer("bloom_words", matrix.bloom, persistent=False)
        self.register_buffer("bloom_offsets", matrix.bloom_offsets, persistent=False)

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
        none = torch.zeros(self.num_items, device=self.device)
        return SearchIndex(
            self.codes,
            self.get_buffer("scales"),
            getattr(self, "errors", none),
            getattr(self, "norms", none),
            Clusters(
                Quantized(self.get_buffer("centroid_codes"), self.get_buffer("centroid_scales")),
                self.get_buffer("cluster_offsets"),
            ),
        )

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
        queries: torch.Tensor | np.ndarray,
        filters: Sequence[str | Node | None] | str | None = None,
        k: int = 100,
        *,
        probes: int | None = None,
        exact: bool = False,
        target_recall: float | None = None,
        calibration: Calibration | None = None,
        candidates: int | None = None,
    ) -> Results:
        """Retrieve the best k eligible items of each query.

        Args:
            queries: float [B, D].
            filters: one text or tree (or None) a query, or one text for all.
            k: results a query; fewer come back only when fewer items are eligible (or, with `probes`, never).
            probes: clusters to look at, for every query; default: planned for each query.
            exact: give the true best k of all eligible items by the packed embeddings.
            target_recall: recall to reach; without a `calibration`, one is measured on these queries.
            calibration: measured before, by `stcli.model.calibrate`.
            candidates: K0, candidates re-scored from the packed embeddings.

        Returns:
            `Results`, best first.

        Raises:
            InputError: shapes or options do not fit.
            FilterError: a filter does not parse or names something unknown.
        """
        vectors = self.check_queries(queries)
        if k < 1:
            raise InputError(f"k {k}: expected at least 1")
        given = [filters] * len(vectors) if isinstance(filters, str) else filters
        if given is not None and len(given) != len(vectors):
            raise InputError(
                f"filters: {len(given)} for {len(vectors)} queries; expected one a query, None for no filter"
            )
        given = list(given) if given is not None else [None] * len(vectors)
        if target_recall is not None and calibration is None and not exact and probes is None:
            from stcli.model.calibrate import calibrate

            calibration = calibrate(self, vectors, given, k, target_recall)
        if calibration is not None:
            calibration.check(self.fingerprint, k)
        options = SearchOptions(k, candidates or default_candidates(k), probes, exact, calibration)
        return self.search(vectors, given, options)

    def check_queries(self, queries: torch.Tensor | np.ndarray) -> torch.Tensor:
        """Queries as float32 on the CPU.

        Raises:
            InputError: another shape, or a value that is not finite.
        """
        vectors = torch.as_tensor(queries).float().contiguous()
        if vectors.dim() != 2 or vectors.shape[1] != self.query_dim:
            raise InputError(
                f"queries: float [B, D] expected with D={self.query_dim} (from the artifact), got {list(vectors.shape)}"
            )
        if not bool(torch.isfinite(vectors).all()):
            raise InputError("queries: hold NaN or infinite values; expected finite numbers")
        return vectors

    def search(self, vectors: torch.Tensor, filters: Sequence[str | Node | None], options: SearchOptions) -> Results:
        """Search checked queries float32 [B, D] in tiles whose filter words fit in memory."""
        parts = []
        for start in range(0, len(vectors), TILE_QUERIES):
            batch = self.planner.batch(filters[start : start + TILE_QUERIES])
            tile = vectors[start : start + TILE_QUERIES]
            step = max(WORDS_BYTES // (8 * ((self.num_items + 63) // 64)), 64)
            if batch.num_filters <= step:
                parts.append(self.search_tile(tile, batch, options))
                continue
            for first in range(start, start + len(tile), step):
                smaller = self.planner.batch(filters[first : min(first + step, start + len(tile))])
                parts.append(self.search_tile(vectors[first : first + len(smaller.filter_of_query)], smaller, options))
        return concatenate(parts, self.ids, options.k)

    def search_tile(self, vectors: torch.Tensor, filters: FilterBatch, options: SearchOptions) -> Results:
        """Search one tile of queries float32 [B, D] with its planned filters."""
        moved = filters.to(self.device)
        words = filter_match(self.matrix, moved.program, backend=self.backend) if moved.program is not None else None
        return Search(self, self.normalized(vectors.to(self.device)), moved, filters, words, options).run()

    def normalized(self, vectors: torch.Tensor) -> torch.Tensor:
        """Queries for the cosine metric have length 1; others are left alone."""
        if self.manifest["metric"] != "cosine":
            return vectors
        lengths = vectors.norm(dim=1, keepdim=True)
        return vectors / torch.where(lengths == 0, 1, lengths)


_BUFFERS = (
    "codes", "scales", "errors", "norms", "centroid_codes", "centroid_scales", "cluster_offsets",
    "embedding_values", "embedding_exponents", "id_order", "id_rank",
)  # fmt: skip
