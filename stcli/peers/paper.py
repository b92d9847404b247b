"""The SilverTorch paper's own form over the same items: `build-index --preset silvertorch`, `retrieve` as it is.

Clusters, ids, terms and embeddings are those of the artifact; what differs is what the preset changes: one global int8
scale, every term on Bloom rows of one width, and no exact check of the results.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import torch

from stcli.config import BuildConfig
from stcli.errors import InputError
from stcli.filters.layout import paper_layout
from stcli.filters.program import Planner
from stcli.model.planner import SearchOptions, default_candidates
from stcli.model.retriever import Retriever
from stcli.ops.build_bit_matrix import build_bit_matrix
from stcli.ops.quantize_rows import quantize_rows
from stcli.peers.protocol import WHOLE_BATCH, Items, Queries

PROOFS = ("errors", "norms")
"""Bounds that prove exact results; the paper has none."""


class Paper:
    """Our own code in the paper's form."""

    name = "silvertorch preset"
    how = ""

    def build(self, items: Items) -> None:
        """Quantize with one scale, and put every term on Bloom rows."""
        self._model = paper_model(items.model, items.vectors)
        self._clusters = items.model.num_clusters
        options = BuildConfig()
        self.how = (
            f"{options.bloom_bits} Bloom rows, {options.bloom_hashes} a term, one int8 scale, results not verified; "
            "planned without bands: one number of clusters for all queries"
        )

    @property
    def index_bytes(self) -> int:
        """Codes, scales, centres, Bloom rows and embeddings."""
        buffers = (tensor.numel() * tensor.element_size() for tensor in self._model.buffers())
        return sum(buffers)

    def parameters(self, filtered: bool, k: int) -> Iterator[tuple[str, int]]:
        """Numbers of clusters to probe."""
        probes = max(1, self._clusters * k // (4 * self._model.num_items), self._clusters // 512)
        while probes < self._clusters:
            yield f"{probes} probes", probes
            probes *= 2
        yield f"{self._clusters} probes", self._clusters

    def search(self, queries: Queries, k: int, parameter: int) -> np.ndarray:
        """Rows of the best k; with filters some of them may not be eligible."""
        model = self._model
        model.forget_plans()
        options = SearchOptions(k, default_candidates(k), probes=parameter, verify=False)
        return model.search(queries.raw, queries.source(model), options).rows.numpy()

    def at_once(self, filtered: bool) -> int:
        """It searches a batch cluster by cluster, as ours."""
        return WHOLE_BATCH

    def refuses(self, queries: Queries) -> str | None:
        """Why it cannot express one of the filters, or None."""
        try:
            for given in dict.fromkeys(queries.given):
                self._model.planner.plan(given)
        except InputError as error:
            return str(error).splitlines()[0]
        return None


def paper_model(model: Retriever, vectors: np.ndarray) -> Retriever:
    """The model that `build-index --preset silvertorch` and `pack-model` would make of the same items and clusters.

    Args:
        model: an opened artifact; what does not differ is shared with it.
        vectors: float32 [N, D], its embeddings.
    """
    options, segment = BuildConfig(), model.only
    layout = paper_layout(segment.planner.vocabulary, options.bloom_bits, options.bloom_hashes)
    matrix = build_bit_matrix(segment.terms, layout.plan, backend=model.backend)
    narrow = torch.from_numpy(np.ascontiguousarray(vectors[:, : model.dim]))
    scale = float(narrow.abs().max()) / 127 or None
    quantized = quantize_rows(narrow, scale=scale, backend=model.backend)
    rows, described = (
        copy.copy(segment),
        {**model.manifest["filter"], "paper": True, "num_hashes": options.bloom_hashes},
    )
    rows.manifest = {**model.manifest, "scale": "global", "filter": described}
    rows.planner = Planner(segment.planner.vocabulary, layout)
    rows._buffers = {name: tensor for name, tensor in segment._buffers.items() if name not in PROOFS}
    changed = {
        "codes": quantized.codes,
        "scales": quantized.scales,
        "own_words": matrix.own,
        "bloom_words": matrix.bloom,
        "bloom_offsets": matrix.bloom_offsets,
    }
    for name, tensor in changed.items():
        rows.register_buffer(name, tensor.to(model.device), persistent=False)
    return model.with_segment(rows)
