"""From staged rows and their clusters to the arrays of the index, in row order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from stcli.filters.layout import Layout
from stcli.filters.vocabulary import Strings, Vocabulary
from stcli.index.ingest import Staged
from stcli.index.terms import CollectedTerms
from stcli.ops.quantize_rows import quantize_rows
from stcli.storage.ids import ItemIds
from stcli.storage.index_dir import IndexWriter
from stcli.types import BitMatrix, Quantized, pad_dim

CHUNK_BYTES = 1 << 25


@dataclass(frozen=True)
class RowOrder:
    """Where the rows of the index come from.

    Attributes:
        source: int64 [N], staged row of each index row: by cluster, then the farthest from the
            centroid first, then by staged row.
        offsets: int64 [C + 1], rows of each cluster.
        radii: float32 [C], distance of the farthest row from the centroid; 0 without rows.
    """

    source: np.ndarray
    offsets: np.ndarray
    radii: np.ndarray


def order_by_cluster(keep: np.ndarray, chosen: np.ndarray, distances: np.ndarray, num_clusters: int) -> RowOrder:
    """Sort the kept rows by their cluster int32 [N], within it by falling distance float64 [N] from the centroid.

    Then the rows of a tile lie in a thin shell, whose upper bound lets the exact search leave it out (`prune.h`).
    """
    order = np.lexsort((-distances, chosen))
    sizes = np.bincount(chosen, minlength=num_clusters)
    offsets = np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)
    radii = np.zeros(num_clusters, np.float32)
    radii[sizes > 0] = np.sqrt(distances[order[offsets[:-1][sizes > 0]]].clip(min=0))
    return RowOrder(keep[order], offsets, radii)


def write_vectors(
    writer: IndexWriter,
    staged: Staged,
    order: RowOrder,
    scale: float | None,
    device: torch.device,
    backend: str,
    done: Callable[[int], None],
) -> None:
    """Write `codes` and `scales`, computed on `device`, and `embeddings`."""
    num_items, dim = len(order.source), staged.embeddings.shape[1]
    embeddings = writer.create("embeddings", staged.embeddings.dtype, (num_items, dim))
    codes = writer.create("codes", np.int8, (num_items, pad_dim(dim)))
    scales = writer.create("scales", np.float32, (num_items,))
    step = max(CHUNK_BYTES // (4 * dim), 256)
    for start in range(0, num_items, step):
        part = slice(start, start + step)
        vectors = staged.embeddings[order.source[part]]
        embeddings[part] = vectors
        quantized = quantize_rows(torch.from_numpy(vectors).to(device), scale=scale, backend=backend)
        codes[part] = quantized.codes.cpu().numpy()
        scales[part] = quantized.scales.cpu().numpy()
        done(min(start + step, num_items))


def write_clusters(writer: IndexWriter, centroids: Quantized, order: RowOrder) -> None:
    """Write the cluster centres and the rows of each cluster."""
    writer.write("centroid_codes", centroids.codes.cpu().numpy())
    writer.write("centroid_scales", centroids.scales.cpu().numpy())
    writer.write("cluster_offsets", order.offsets)
    writer.write("cluster_radii", order.radii)


def write_terms(writer: IndexWriter, terms: CollectedTerms, order: RowOrder) -> Vocabulary:
    """Write `term_values`, `term_offsets` and the vocabulary; count the items of each term and feature."""
    num_items = len(order.source)
    counts = np.zeros(len(terms.final_ids), np.int64)
    firsts = np.array([feature.first_term for feature in terms.features], np.int64)
    present = np.zeros(len(terms.features), np.int64)
    offsets = writer.create("term_offsets", np.int64, (num_items + 1,))
    step = 1 << 16
    total = 0
    chunk_sizes = []
    path = writer.folder / "term_values.tmp"
    with path.open("wb") as file:
        for start in range(0, num_items, step):
            values, lengths = terms.of_rows(order.source[start : start + step])
            file.write(values.data)
            offsets[start + 1 : start + 1 + len(lengths)] = total + np.cumsum(lengths)
            total += len(values)
            counts += np.bincount(values, minlength=len(counts))
            chunk_sizes.append(len(values))
            present += _items_of_features(values, lengths, firsts)
    stored = writer.create("term_values", np.int32, (total,))
    with path.open("rb") as file:
        place = 0
        for size in chunk_sizes:
            stored[place : place + size] = np.fromfile(file, np.int32, size)
            place += size
    path.unlink()
    writer.write("term_counts", counts)
    writer.write("feature_present", present)
    for number, feature in enumerate(terms.features):
        if isinstance(feature.values, Strings):
            writer.write(f"vocabulary_{number:03d}_bytes", feature.values.data)
            writer.write(f"vocabulary_{number:03d}_offsets", feature.values.offsets)
        else:
            writer.write(f"vocabulary_{number:03d}", feature.values)
    return Vocabulary(terms.features, counts, present)


def _items_of_features(values: np.ndarray, lengths: np.ndarray, firsts: np.ndarray) -> np.ndarray:
    """Items that have a value of each feature: terms ascend within an item, so its features stand in runs."""
    feature = np.searchsorted(firsts, values, "right") - 1
    begins = np.ones(len(values), bool)
    begins[1:] = feature[1:] != feature[:-1]
    starts = np.cumsum(lengths) - lengths
    begins[starts[lengths > 0]] = True
    return np.bincount(feature[begins], minlength=len(firsts))


def write_matrix(writer: IndexWriter, matrix: BitMatrix, layout: Layout) -> None:
    """Write the bit matrix and where each term stands in it."""
    writer.write("own_words", matrix.own.cpu().numpy())
    writer.write("bloom_words", matrix.bloom.cpu().numpy())
    writer.write("bloom_offsets", matrix.bloom_offsets.cpu().numpy())
    writer.write("own_row", layout.plan.own_row.numpy())
    writer.write("bloom_terms", layout.plan.bloom.numpy())
    writer.write("slices", layout.plan.slices.numpy())
    writer.write("presence", layout.plan.presence.numpy())


def write_ids(writer: IndexWriter, ids: pa.Array, order: RowOrder) -> None:
    """Write the ids in row order and the rows in id order."""
    for name, array in ItemIds.of(ids.take(pa.array(order.source))).arrays().items():
        writer.write(name, array)


def write_columns(writer: IndexWriter, columns: pa.Table | None, order: RowOrder) -> None:
    """Write the kept columns in row order as the bytes of an Arrow file."""
    if columns is None:
        return
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, columns.schema) as file:
        for start in range(0, len(order.source), 1 << 16):
            rows = pa.array(order.source[start : start + (1 << 16)])
            for batch in columns.take(rows).combine_chunks().to_batches():
                file.write_batch(batch)
    writer.write("columns", np.frombuffer(sink.getvalue(), np.uint8))
