"""The heart of a search as one graph of operators, which `torch.export` can take out of Python."""

from __future__ import annotations

import torch
from torch import nn

from stcli.errors import InputError
from stcli.filters.program import FilterBatch
from stcli.model.corpus import Corpus
from stcli.model.planner import default_candidates
from stcli.ops import library
from stcli.ops.choose_probes import choose_probes
from stcli.ops.filter_match import filter_match
from stcli.ops.quantize_rows import quantize_rows
from stcli.ops.rescore import rescore
from stcli.ops.search_clusters import search_clusters
from stcli.ops.take_best import take_best
from stcli.ops.verify_terms import verify_terms
from stcli.types import Program, Quantized, TermProgram, mapped

Parts = tuple[torch.Tensor, ...]

MOST_DEPTH = 32
"""Stack of the filter programs: a graph holds one number for all batches."""


class Core(nn.Module):
    """Filter, search, verification and re-scoring of a batch of planned queries: operators alone, no host in between.

    Parsing, planning and ids stay outside, and so does a second look for queries that found fewer than k: they have
    empty slots. All others get what the model gives with as many `probes`. It holds copies of the tensors:
    `torch.export.save` cannot write those of a mapped file.

    Args:
        model: of a single file, with embeddings, where the graph will run.
        k: results of a query.
        probes: clusters of each query.
        candidates: K0, re-scored from the packed embeddings; None: the default for k.

    Raises:
        InputError: the model is a set, or holds no embeddings.
    """

    def __init__(self, model: Corpus, k: int, probes: int, candidates: int | None = None) -> None:
        super().__init__()
        segment = model.only
        if segment.embeddings is None:
            raise InputError("the artifact holds no embeddings to score with; pack it with --embedding-dtype float16")
        self.k, self.probes = min(k, model.num_items), min(probes, model.num_clusters)
        self.candidates = min(candidates or default_candidates(k), model.num_items)
        self.dim, self.normalized = model.dim, segment.normalized
        self.index, self.matrix, self.terms, self.embeddings, self.ranks = mapped(
            (segment.index, segment.matrix, segment.terms, segment.embeddings, segment.ranks), torch.clone
        )

    @staticmethod
    def inputs(filters: FilterBatch) -> tuple[torch.Tensor, Parts, Parts]:
        """Planned filters as `forward` takes them.

        Raises:
            InputError: no query has a filter, or one nests more than 32 deep.
        """
        rows, terms = filters.program, filters.terms
        if rows is None or terms is None:
            raise InputError("no query of the batch has a filter; a graph expects at least one")
        depth = max(rows.max_depth, terms.max_depth)
        if depth > MOST_DEPTH:
            raise InputError(f"a filter needs a stack of {depth}; a graph has {MOST_DEPTH}")
        return (
            filters.filter_of_query,
            (rows.leaves, rows.ops, rows.op_offsets, rows.exact),
            (terms.lows, terms.highs, terms.leaf_offsets, terms.ops, terms.op_offsets),
        )

    def forward(
        self, vectors: torch.Tensor, filter_of_query: torch.Tensor, rows: Parts, terms: Parts
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The best k admitted and verified rows in the nearest clusters.

        Args:
            vectors: float32 [B, D].
            filter_of_query: int64 [B], -1 for no filter.
            rows: tensors of a `Program`, in its order.
            terms: tensors of a `TermProgram`, in its order.

        Returns:
            rows int64 [B, k], -1 in empty slots, and scores float32 [B, k], -inf in empty slots.
        """
        program, exact = Program(rows[0], rows[1], rows[2], rows[3], MOST_DEPTH), rows[3]
        checks = TermProgram(terms[0], terms[1], terms[2], terms[3], terms[4], MOST_DEPTH)
        clusters = self.index.clusters
        vectors = self.normalized(vectors)
        queries = Quantized(
            *library.quantize_rows_op(*library.flat(quantize_rows, vectors[:, : self.dim].contiguous()))
        )
        probes = library.choose_probes_op(
            *library.flat(choose_probes, queries, clusters.centroids, num_probes=self.probes, reaches=clusters.reaches)
        )
        words = library.filter_match_op(*library.flat(filter_match, self.matrix, program))
        found, _ = library.search_clusters_op(
            *library.flat(search_clusters, queries, self.index, probes, words, filter_of_query, k0=self.candidates)
        )
        unverified = torch.where(exact[filter_of_query.clamp(min=0)], -1, filter_of_query)
        kept = library.verify_terms_op(*library.flat(verify_terms, self.terms, checks, found, unverified))
        candidates = torch.where(kept, found, -1)
        scores = library.rescore_op(*library.flat(rescore, vectors, self.embeddings, candidates))
        best: tuple[torch.Tensor, torch.Tensor] = library.take_best_op(
            *library.flat(take_best, candidates, scores, self.ranks, k=self.k)
        )
        return best
