"""The build from staged rows to a sealed index directory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from stcli import __version__
from stcli.config import BuildConfig, Progress
from stcli.events import Stages
from stcli.filters.layout import Layout, paper_layout, plan_layout
from stcli.filters.vocabulary import Vocabulary
from stcli.index import kmeans, write
from stcli.index.ingest import Staged
from stcli.ops import dispatch
from stcli.ops.build_bit_matrix import build_bit_matrix
from stcli.ops.count_bits import count_bits
from stcli.ops.filter_match import filter_match
from stcli.ops.quantize_rows import quantize_rows
from stcli.storage.index_dir import IndexWriter
from stcli.types import LEAF_BLOOM, BitMatrix, Postings, Program, Quantized

ASSIGN_ROWS = 1 << 14
RATE_SAMPLE, RATE_CHUNK = 256, 16
"""Bloom terms whose false positives are counted, and how many at once."""

ASKED = ("id_column", "embedding_column", "bloom_fpr", "filter_bytes")
"""Options that the manifest keeps as they were given, for an update; others can be told from the rest of it."""


@dataclass
class Build:
    """One build: its inputs, and what times its stages."""

    staged: Staged
    config: BuildConfig
    writer: IndexWriter
    device: torch.device
    progress: Progress
    stages: Stages

    def run(self) -> dict[str, Any]:
        """Cluster, order and write everything; return the body of the manifest."""
        staged, config, writer = self.staged, self.config, self.writer
        num_items = len(staged.keep)
        num_clusters = min(config.clusters or kmeans.default_num_clusters(num_items), num_items)
        with self.stages("cluster"):
            centroids = self._train(num_clusters)
        with self.stages("assign"):
            chosen, distances = self._assign(centroids)
            order = write.order_by_cluster(staged.keep, chosen, distances, num_clusters)
        scale = staged.largest / 127 if config.scale == "global" and staged.largest else None
        with self.stages("quantize"):
            write.write_clusters(writer, centroids, order)
            write.write_vectors(
                writer,
                staged,
                order,
                scale,
                self.device,
                config.backend,
                lambda done: self.progress("quantize", done, num_items, "items"),
            )
        with self.stages("terms"):
            vocabulary = write.write_terms(writer, staged.terms, order)
        with self.stages("filter"):
            layout, matrix = self._matrix(vocabulary, num_items)
            write.write_matrix(writer, matrix, layout)
        with self.stages("ids"):
            write.write_ids(writer, staged.ids, order)
            write.write_columns(writer, staged.columns, order)
        sizes = np.diff(order.offsets)
        return {
            "tool_version": __version__,
            "num_items": num_items,
            "dim": staged.embeddings.shape[1],
            "num_clusters": num_clusters,
            "cluster_sizes": [int(sizes.min()), int(np.median(sizes)), int(sizes.max())],
            "metric": config.metric,
            "scale": config.scale,
            "seed": config.seed,
            "embedding_version": config.embedding_version,
            "ids": "int64" if staged.ids.type == "int64" else "string",
            "lengths_differ": bool(staged.lengths_differ),
            "zero_vectors": staged.zero_vectors,
            "nulls_in_lists": staged.dropped_values,
            "filter": describe_filter(matrix, vocabulary, layout, config),
            "columns": staged.columns.column_names if staged.columns is not None else [],
            "build": {name: getattr(config, name) for name in ASKED},
        }

    def _train(self, num_clusters: int) -> Quantized:
        staged, config = self.staged, self.config
        rows = staged.keep[kmeans.sample_rows(len(staged.keep), num_clusters, config.seed)]
        points = torch.from_numpy(staged.embeddings[rows].astype(np.float32)).to(self.device)
        return kmeans.train(
            points,
            num_clusters,
            seed=config.seed,
            backend=config.backend,
            progress=lambda done: self.progress("cluster", done, kmeans.ITERATIONS, "iterations"),
        )

    def _assign(self, centroids: Quantized) -> tuple[np.ndarray, np.ndarray]:
        """The cluster of each kept row int32 [N], and its squared distance from the centroid float64 [N]."""
        keep = self.staged.keep
        chosen, distances = np.empty(len(keep), np.int32), np.empty(len(keep))
        for start in range(0, len(keep), ASSIGN_ROWS):
            part = slice(start, start + ASSIGN_ROWS)
            vectors = torch.from_numpy(self.staged.embeddings[keep[part]]).to(self.device)
            rows = quantize_rows(vectors, backend=self.config.backend)
            nearest = kmeans.assign(rows, centroids, backend=self.config.backend)
            chosen[part] = nearest.cpu().numpy()
            distances[part] = kmeans.squared_distances(rows, centroids, nearest).cpu().numpy()
            self.progress("assign", min(start + ASSIGN_ROWS, len(keep)), len(keep), "items")
        return chosen, distances

    def _matrix(self, vocabulary: Vocabulary, num_items: int) -> tuple[Layout, BitMatrix]:
        if self.config.preset == "silvertorch":
            layout = paper_layout(vocabulary, self.config.bloom_bits, self.config.bloom_hashes)
        else:
            layout = plan_layout(
                vocabulary, num_items, bloom_fpr=self.config.bloom_fpr, filter_bytes=self.config.filter_bytes
            )
        folder = self.writer.folder
        values = (
            np.load(folder / "term_values.npy", mmap_mode="c")
            if self.staged.terms.offsets[-1]
            else np.zeros(0, np.int32)
        )
        offsets = np.load(folder / "term_offsets.npy", mmap_mode="c")
        terms = Postings(torch.from_numpy(values), torch.from_numpy(offsets))
        backend = _host_backend(self.config.backend)
        if self.device.type == "cpu" or dispatch.resolve(backend, terms.values) == "native":
            # Beside a GPU too: its torch form waits for it some thirty times a block of 4,096 items.
            return layout, build_bit_matrix(terms, layout.plan, backend=backend)
        moved = {
            name: getattr(layout.plan, name).to(self.device) for name in ("own_row", "bloom", "slices", "presence")
        }
        there = Postings(terms.values.to(self.device), terms.offsets.to(self.device))
        built = build_bit_matrix(there, replace(layout.plan, **moved), backend="torch")
        return layout, replace(
            built, own=built.own.cpu(), bloom=built.bloom.cpu(), bloom_offsets=built.bloom_offsets.cpu()
        )


def _host_backend(backend: str) -> str:
    """The backend asked for, for tensors that stay on the host."""
    return "auto" if backend == "cuda" else backend


def measured_rate(matrix: BitMatrix, vocabulary: Vocabulary, layout: Layout, backend: str) -> float | None:
    """Share of the items without a term that its Bloom rows admit: the mean over terms spread over the vocabulary.

    None without Bloom terms.
    """
    terms = torch.nonzero(layout.plan.bloom).flatten()
    if not len(terms):
        return None
    terms = terms[torch.linspace(0, len(terms) - 1, min(len(terms), RATE_SAMPLE)).long()]
    counts = torch.from_numpy(vocabulary.counts)[terms]
    wrong = []
    for some, count in zip(terms.split(RATE_CHUNK), counts.split(RATE_CHUNK), strict=True):
        leaves = torch.zeros(len(some), 4, dtype=torch.int64)
        leaves[:, 0], leaves[:, 1] = LEAF_BLOOM, some
        each = torch.arange(len(some) + 1)
        program = Program(leaves, each[:-1].int(), each, torch.zeros(len(some), dtype=torch.bool), 1)
        admitted = count_bits(filter_match(matrix, program, backend=backend), backend=backend)
        wrong.append((admitted - count).double() / (matrix.num_items - count).clamp(min=1))
    return round(float(torch.cat(wrong).mean()), 9)


def describe_filter(matrix: BitMatrix, vocabulary: Vocabulary, layout: Layout, config: BuildConfig) -> dict[str, Any]:
    """The `filter` part of the manifest: sizes, and where each feature stands."""
    widths = torch.diff(matrix.bloom_offsets)
    num_bytes = 8 * (matrix.own.numel() + matrix.bloom.numel())
    return {
        "num_terms": vocabulary.num_terms,
        "own_rows": matrix.own.shape[0],
        "bloom_rows": [int(widths.min()), int(widths.median()), int(widths.max())] if len(widths) else [0, 0, 0],
        "num_hashes": matrix.num_hashes,
        "bloom_fpr": layout.plan.bloom_fpr,
        "measured_fpr": measured_rate(matrix, vocabulary, layout, _host_backend(config.backend)),
        "paper": layout.paper,
        "fixed_width": layout.plan.fixed_width,
        "bytes_per_item": round(num_bytes / matrix.num_items, 3),
        "features": [
            {
                "name": feature.name,
                "kind": feature.kind,
                "multi": feature.multi,
                "first_term": feature.first_term,
                "num_terms": feature.num_terms,
                "presence_row": layout.features[feature.name].presence_row,
                "slices": layout.features[feature.name].slices,
            }
            for feature in vocabulary.features
        ],
    }
