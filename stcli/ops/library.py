"""The operations of the search as custom operators of torch, `torch.ops.stcli.*`, for `torch.export` and its kin.

Each calls the operation of its name with `backend="auto"`, and has a fake form that tells the shape of its result
without doing the work. Dataclasses are spelled out as tensors, in the order of their fields. A process that loads an
exported program must have imported this module.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stcli.ops.choose_probes import choose_probes
from stcli.ops.filter_match import filter_match
from stcli.ops.quantize_rows import quantize_rows
from stcli.ops.rescore import rescore
from stcli.ops.search_clusters import search_clusters
from stcli.ops.search_rows import search_rows
from stcli.ops.verify_terms import verify_terms
from stcli.types import (
    BitMatrix,
    Clusters,
    Embeddings,
    Lines,
    Postings,
    Program,
    Quantized,
    SearchIndex,
    TermProgram,
    pad_dim,
)


@torch.library.custom_op("stcli::quantize_rows", mutates_args=())
def quantize_rows_op(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and scales, a scale for each row."""
    found = quantize_rows(vectors)
    return found.codes, found.scales


@quantize_rows_op.register_fake
def _(vectors: Tensor) -> tuple[Tensor, Tensor]:
    rows, dim = vectors.shape
    return vectors.new_empty(rows, pad_dim(dim), dtype=torch.int8), vectors.new_empty(rows, dtype=torch.float32)


@torch.library.custom_op("stcli::filter_match", mutates_args=())
def filter_match_op(
    own: Tensor,
    bloom: Tensor,
    bloom_offsets: Tensor,
    num_hashes: int,
    num_items: int,
    leaves: Tensor,
    ops: Tensor,
    op_offsets: Tensor,
    max_depth: int,
) -> Tensor:
    """Words of the admitted items of each filter."""
    exact = torch.zeros(len(op_offsets) - 1, dtype=torch.bool, device=ops.device)
    matrix = BitMatrix(own, bloom, bloom_offsets, num_hashes, num_items)
    return filter_match(matrix, Program(leaves, ops, op_offsets, exact, max_depth))


@filter_match_op.register_fake
def _(
    own: Tensor,
    bloom: Tensor,
    bloom_offsets: Tensor,
    num_hashes: int,
    num_items: int,
    leaves: Tensor,
    ops: Tensor,
    op_offsets: Tensor,
    max_depth: int,
) -> Tensor:
    return own.new_empty(op_offsets.shape[0] - 1, own.shape[1])


@torch.library.custom_op("stcli::choose_probes", mutates_args=())
def choose_probes_op(
    query_codes: Tensor, query_scales: Tensor, centroid_codes: Tensor, centroid_scales: Tensor, num_probes: int
) -> Tensor:
    """Clusters of each query, best first; `num_probes` is at most their number."""
    queries, centroids = Quantized(query_codes, query_scales), Quantized(centroid_codes, centroid_scales)
    return choose_probes(queries, centroids, num_probes=num_probes)


@choose_probes_op.register_fake
def _(
    query_codes: Tensor, query_scales: Tensor, centroid_codes: Tensor, centroid_scales: Tensor, num_probes: int
) -> Tensor:
    return query_codes.new_empty(query_scales.shape[0], num_probes, dtype=torch.int64)


def _bounds(norms: Tensor | None, errors: Tensor | None) -> tuple[Tensor, Tensor] | None:
    return None if norms is None or errors is None else (norms, errors)


def _lines(values: Tensor | None, begins: Tensor | None, ends: Tensor | None) -> Lines | None:
    return None if values is None or begins is None or ends is None else Lines(values, begins, ends)


@torch.library.custom_op("stcli::search_clusters", mutates_args=())
def search_clusters_op(
    query_codes: Tensor,
    query_scales: Tensor,
    codes: Tensor,
    scales: Tensor,
    errors: Tensor,
    norms: Tensor,
    centroid_codes: Tensor,
    centroid_scales: Tensor,
    cluster_offsets: Tensor,
    probes: Tensor,
    words: Tensor | None,
    filter_of_query: Tensor,
    k0: int,
    excluded_values: Tensor | None = None,
    excluded_begins: Tensor | None = None,
    excluded_ends: Tensor | None = None,
    query_norms: Tensor | None = None,
    query_errors: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Rows and scores [B, k0] of the probed clusters."""
    clusters = Clusters(Quantized(centroid_codes, centroid_scales), cluster_offsets)
    found = search_clusters(
        Quantized(query_codes, query_scales),
        SearchIndex(codes, scales, errors, norms, clusters),
        probes,
        words,
        filter_of_query,
        k0=k0,
        excluded=_lines(excluded_values, excluded_begins, excluded_ends),
        bounds=_bounds(query_norms, query_errors),
    )
    return found.rows, found.scores


@search_clusters_op.register_fake
def _(
    query_codes: Tensor,
    query_scales: Tensor,
    codes: Tensor,
    scales: Tensor,
    errors: Tensor,
    norms: Tensor,
    centroid_codes: Tensor,
    centroid_scales: Tensor,
    cluster_offsets: Tensor,
    probes: Tensor,
    words: Tensor | None,
    filter_of_query: Tensor,
    k0: int,
    excluded_values: Tensor | None = None,
    excluded_begins: Tensor | None = None,
    excluded_ends: Tensor | None = None,
    query_norms: Tensor | None = None,
    query_errors: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    return _empty_candidates(query_scales, k0)


def _empty_candidates(query_scales: Tensor, k0: int) -> tuple[Tensor, Tensor]:
    num_queries = query_scales.shape[0]  # len() would fix the number
    return query_scales.new_empty(num_queries, k0, dtype=torch.int64), query_scales.new_empty(num_queries, k0)


@torch.library.custom_op("stcli::search_rows", mutates_args=())
def search_rows_op(
    query_codes: Tensor,
    query_scales: Tensor,
    codes: Tensor,
    scales: Tensor,
    errors: Tensor,
    norms: Tensor,
    centroid_codes: Tensor,
    centroid_scales: Tensor,
    cluster_offsets: Tensor,
    words: Tensor | None,
    filter_of_query: Tensor,
    k0: int,
    excluded_values: Tensor | None = None,
    excluded_begins: Tensor | None = None,
    excluded_ends: Tensor | None = None,
    query_norms: Tensor | None = None,
    query_errors: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Rows and scores [B, k0] of all admitted rows."""
    clusters = Clusters(Quantized(centroid_codes, centroid_scales), cluster_offsets)
    found = search_rows(
        Quantized(query_codes, query_scales),
        SearchIndex(codes, scales, errors, norms, clusters),
        words,
        filter_of_query,
        k0=k0,
        excluded=_lines(excluded_values, excluded_begins, excluded_ends),
        bounds=_bounds(query_norms, query_errors),
    )
    return found.rows, found.scores


@search_rows_op.register_fake
def _(
    query_codes: Tensor,
    query_scales: Tensor,
    codes: Tensor,
    scales: Tensor,
    errors: Tensor,
    norms: Tensor,
    centroid_codes: Tensor,
    centroid_scales: Tensor,
    cluster_offsets: Tensor,
    words: Tensor | None,
    filter_of_query: Tensor,
    k0: int,
    excluded_values: Tensor | None = None,
    excluded_begins: Tensor | None = None,
    excluded_ends: Tensor | None = None,
    query_norms: Tensor | None = None,
    query_errors: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    return _empty_candidates(query_scales, k0)


@torch.library.custom_op("stcli::rescore", mutates_args=())
def rescore_op(queries: Tensor, values: Tensor, exponents: Tensor | None, rows: Tensor) -> Tensor:
    """Scores of candidates from the packed embeddings."""
    return rescore(queries, Embeddings(values, exponents), rows)


@rescore_op.register_fake
def _(queries: Tensor, values: Tensor, exponents: Tensor | None, rows: Tensor) -> Tensor:
    return queries.new_empty(rows.shape)


@torch.library.custom_op("stcli::verify_terms", mutates_args=())
def verify_terms_op(
    term_values: Tensor,
    term_offsets: Tensor,
    lows: Tensor,
    highs: Tensor,
    leaf_offsets: Tensor,
    ops: Tensor,
    op_offsets: Tensor,
    max_depth: int,
    rows: Tensor,
    filter_of_query: Tensor,
) -> Tensor:
    """Which candidates satisfy the filter of their query."""
    program = TermProgram(
        lows=lows, highs=highs, leaf_offsets=leaf_offsets, ops=ops, op_offsets=op_offsets, max_depth=max_depth
    )
    return verify_terms(Postings(term_values, term_offsets), program, rows, filter_of_query)


@verify_terms_op.register_fake
def _(
    term_values: Tensor,
    term_offsets: Tensor,
    lows: Tensor,
    highs: Tensor,
    leaf_offsets: Tensor,
    ops: Tensor,
    op_offsets: Tensor,
    max_depth: int,
    rows: Tensor,
    filter_of_query: Tensor,
) -> Tensor:
    return rows.new_empty(rows.shape, dtype=torch.bool)
