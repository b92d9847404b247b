"""A run of rows: the tensors of one file, and what is asked of the rows in it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from stcli.filters.program import FilterBatch, Planner
from stcli.filters.stored import load_layout, load_matrix, load_terms, load_vocabulary
from stcli.model.lookup import IdLookup
from stcli.model.overarch import load_overarch
from stcli.model.placement import GROUPS, Placement
from stcli.model.planner import REACHED_SHARE
from stcli.ops.bloom_hash import in_block
from stcli.ops.count_bits import count_bits
from stcli.ops.filter_match import filter_match
from stcli.ops.filter_probes import cluster_words, filter_probes
from stcli.storage.artifact import Artifact
from stcli.storage.ids import ItemIds
from stcli.storage.steering import check_opened, check_own_rows, check_placed
from stcli.types import (
    BLOCK_ROWS,
    BLOCK_WORDS,
    LEAF_BLOOM,
    BitMatrix,
    Clusters,
    Embeddings,
    Postings,
    Program,
    Quantized,
    SearchIndex,
    Spans,
)  # fmt: skip

RUN_WORDS = 8
"""Words of a run of the sample that pass rates are estimated from: a cache line. For filters that admit 2 to 10 % of
Corpus R, estimates from 1/16 of the words, one here and there, are off by 6.8 %, from 1/8, in runs, by 5.8 %; both read
as much memory."""


class Segment(nn.Module):
    """The items of one file as tensors. Buffers move with `.to(device)`; ids and exact terms stay on the host.

    Attributes:
        artifact: what it was made from.
        base: row of its first item among the rows of all segments.
        first_block: block of the bit matrix that its first row has in the index it was cut from.
        living_words: int64 [W] words of the rows that may be returned, on the host, or None for all.
        probed: its clusters are those of the first segment, so that probes chosen there hold here.
        planner: of its vocabulary.
        terms: exact terms of its items.

    Args:
        artifact: an opened artifact.
        backend: see `ops/dispatch.py`.
        base: see above.
        planner: see above; made from the artifact if None.
        living: int64 [W] words of the rows that may be returned, or None for all.
    """

    codes: torch.Tensor

    def __init__(
        self,
        artifact: Artifact,
        backend: str = "auto",
        base: int = 0,
        planner: Planner | None = None,
        living: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        manifest, arrays = artifact.manifest, artifact.arrays
        self.artifact = artifact
        check_opened(manifest, arrays, str(artifact.path))
        self.manifest: dict[str, Any] = manifest
        self.backend, self.base = backend, base
        for name in _BUFFERS:
            if name in arrays:
                self.register_buffer(name, torch.from_numpy(arrays[name]), persistent=False)
        described = manifest["filter"]
        self.planner = planner or Planner(load_vocabulary(arrays, described), load_layout(arrays, described))
        self.first_block = int(manifest.get("shard", {}).get("first_row", 0)) // BLOCK_ROWS
        self.register_buffer("living", living, persistent=False)
        self.living_words = living
        self.probed = True
        self.terms: Postings = load_terms(arrays)
        self.ids = ItemIds.from_arrays(arrays, str(artifact.path))
        self.lookup = IdLookup(self.ids, "auto" if backend == "cuda" else backend)  # ids stay on the host
        matrix = load_matrix(arrays, described, manifest["num_items"])
        self.register_buffer("own_words", matrix.own, persistent=False)
        self.register_buffer("bloom_words", matrix.bloom, persistent=False)
        self.register_buffer("bloom_offsets", matrix.bloom_offsets, persistent=False)
        self.overarch = load_overarch(manifest.get("overarch"), arrays, lambda: self.embeddings, backend)
        self._words: torch.Tensor | None = None
        self._own_rows_checked = False
        lengths = cluster_words(torch.from_numpy(arrays["cluster_offsets"]))
        self._most_words = lengths.sort(descending=True).values.cumsum(0)

    def place(self, device: torch.device, placement: Placement) -> None:
        """Move the tensors to a GPU as a placement says; those that stay on the host are used from there.

        Raises:
            FormatError: an array is damaged that a kernel would follow, see `stcli.storage.steering`.
        """
        self._check_placed(device, terms="terms" in placement.gpu)
        for group in placement.gpu:
            if group == "terms":
                self.terms = Postings(self.terms.values.to(device), self.terms.offsets.to(device))
                continue
            for name in GROUPS[group]:
                if name in self._buffers:
                    setattr(self, name, self.get_buffer(name).to(device))
        if self.overarch is not None:
            self.overarch.to(device)

    def _apply(self, fn: Any, recurse: bool = True) -> Segment:
        """What `.to(device)` does."""
        super()._apply(fn, recurse)
        self._check_placed(self.device, terms=False)
        return self

    def _check_placed(self, device: torch.device, *, terms: bool) -> None:
        if device.type != "cpu":
            artifact = self.artifact
            check_placed(artifact.manifest, artifact.arrays, str(artifact.path), terms=terms)

    @property
    def num_rows(self) -> int:
        """N, the rows of this segment."""
        return int(self.manifest["num_items"])

    @property
    def num_items(self) -> int:
        """N, where the segment is read by itself."""
        return self.num_rows

    @property
    def end(self) -> int:
        """The row after its last one among the rows of all segments."""
        return self.base + self.num_rows

    @property
    def num_words(self) -> int:
        """W, words of a bit a row."""
        return (self.num_rows + 63) // 64

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.codes.device

    def living_rows(self) -> np.ndarray:
        """The rows that may be returned, int64, ascending."""
        if self.living_words is None:
            return np.arange(self.num_rows)
        return np.flatnonzero(np.unpackbits(self.living_words.numpy().view(np.uint8), bitorder="little"))

    @property
    def embeddings(self) -> Embeddings | None:
        """The packed embeddings, or None if none were packed."""
        values = getattr(self, "embedding_values", None)
        return None if values is None else Embeddings(values, getattr(self, "embedding_exponents", None))

    @property
    def bounded(self) -> bool:
        """Every score has an upper bound, so that results can be proven."""
        return hasattr(self, "errors") and self.embeddings is not None

    @property
    def ranks(self) -> torch.Tensor:
        """Place of each item in the order of all ids, int64 [N]."""
        return self.get_buffer("id_rank")

    def set_ranks(self, ranks: np.ndarray) -> None:
        """Say the place of each item in the order of the ids of all segments, int64 [N]."""
        self.register_buffer("id_rank", torch.from_numpy(ranks).to(self.device), persistent=False)

    @property
    def index(self) -> SearchIndex:
        """What the int8 search reads; without error bounds the exact search scores every admitted row again."""
        errors, norms, radii = (getattr(self, name, None) for name in ("errors", "norms", "cluster_radii"))
        if errors is None or norms is None:
            errors = norms = torch.zeros(self.num_rows, device=self.device)
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
            self.num_rows,
        )

    def normalized(self, vectors: torch.Tensor) -> torch.Tensor:
        """Queries for the cosine metric have length 1; others are left alone."""
        if self.manifest["metric"] != "cosine":
            return vectors
        lengths = vectors.norm(dim=1, keepdim=True)
        return vectors / torch.where(lengths == 0, 1, lengths)

    def barrier(self, allowed: torch.Tensor | None) -> torch.Tensor | None:
        """Words int64 [W] of the rows that any query may get, of those allowed (None: all); None for every row."""
        living = self._optional("living")
        if allowed is not None:
            allowed = allowed.to(self.device)
        return living if allowed is None else allowed if living is None else living & allowed

    def match(self, filters: FilterBatch, barrier: torch.Tensor | None, most: int) -> torch.Tensor:
        """Evaluate filters on all rows.

        Args:
            filters: planned for this segment, on its device.
            barrier: int64 [W] words, the only rows that any query may get, or None.
            most: filters that a tile usually has at most; room for so many is kept.

        Returns:
            int64 [F + 1, W], good until the next call; the last line is the barrier, and meaningless without one.
        """
        words = self._room(filters.num_filters + 1, most + 1)
        if filters.program is not None:
            filter_match(self.matrix, self._local(filters.program), out=words[:-1], backend=self.backend)
        if barrier is not None:
            words[-1] = barrier
            words[:-1] &= barrier
        return words

    def match_probed(
        self, program: Program, filter_of_query: torch.Tensor, probes: torch.Tensor, barrier: torch.Tensor | None
    ) -> Spans:
        """Evaluate filters on the clusters that their queries probe; see `stcli.ops.filter_probes`."""
        offsets, room = self.get_buffer("cluster_offsets"), len(probes) * self.most_words(probes.shape[1])
        return filter_probes(
            self.matrix, self._local(program), filter_of_query, probes, offsets, allowed=barrier, room=room,
            backend=self.backend,
        )  # fmt: skip

    def most_words(self, num_probes: int) -> int:
        """Words on the clusters that a query probes, at most: those of so many of the largest clusters."""
        return int(self._most_words[:num_probes][-1]) if num_probes else 0

    def match_sample(self, filters: FilterBatch, barrier: torch.Tensor | None, step: int, most: int) -> torch.Tensor:
        """Evaluate filters on one run of `RUN_WORDS` words in `step`.

        Returns:
            Rows that are admitted of each run, int64 [F, S].
        """
        assert filters.program is not None
        first = self.first_block * (BLOCK_WORDS // RUN_WORDS)  # the same runs whichever file the rows are in
        end = self.num_rows // (64 * RUN_WORDS)
        runs = torch.arange(min((step // 2 - first) % step, end), end, step, device=self.device)
        places = (runs[:, None] * RUN_WORDS + torch.arange(RUN_WORDS, device=self.device)).flatten()
        room = self._room(-(-filters.num_filters * len(places) // max(self.num_words, 1)), most)
        words = room.flatten()[: filters.num_filters * len(places)].view(filters.num_filters, len(places))
        filter_match(self.matrix, self._local(filters.program), places=places, out=words, backend=self.backend)
        if barrier is not None:
            words &= barrier[places]
        return count_bits(words.view(-1, RUN_WORDS), backend=self.backend).view(filters.num_filters, len(runs))

    def _local(self, program: Program) -> Program:
        """A program whose Bloom leaves read the blocks of this segment as blocks of the index it was cut from.

        Raises:
            FormatError: the own rows that programs are made of are damaged; they are looked at once.
        """
        if not self._own_rows_checked:
            check_own_rows(self.manifest, self.artifact.arrays, str(self.artifact.path))
            self._own_rows_checked = True
        if not self.first_block:
            return program
        leaves = program.leaves.clone()
        bloom = leaves[:, 0] == LEAF_BLOOM
        leaves[:, 1] = torch.where(bloom, in_block(leaves[:, 1], self.first_block), leaves[:, 1])
        return replace(program, leaves=leaves)

    def _optional(self, name: str) -> torch.Tensor | None:
        tensor: torch.Tensor | None = getattr(self, name, None)
        return tensor

    def _room(self, lines: int, most: int) -> torch.Tensor:
        """Where words are written, int64 [lines, W].

        On the CPU the same for all tiles, which are searched one after another: to fill the pages of a fresh tensor
        costs more than the words.
        """
        if self.device.type != "cpu":
            return torch.empty(lines, self.num_words, dtype=torch.int64, device=self.device)
        if self._words is None or len(self._words) < lines or self._words.device != self.device:
            self._words = torch.empty(max(lines, most), self.num_words, dtype=torch.int64, device=self.device)
        return self._words[:lines]

    def forget_words(self) -> None:
        """Give back the room for the words of a tile."""
        self._words = None


_BUFFERS = (
    "codes", "scales", "errors", "norms", "centroid_codes", "centroid_scales", "cluster_offsets",
    "cluster_radii",
    "embedding_values", "embedding_exponents", "id_rank",
)  # fmt: skip
