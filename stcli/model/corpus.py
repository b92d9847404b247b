"""The items of an artifact in one or several segments, read by row wherever a row lies.

Rows are numbered through: those of a segment follow on those of the one before it. What is said of a row is read where
the row lies, so that nothing here depends on how the items are spread.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import nn

from stcli.errors import InputError
from stcli.filters.lexicon import feature_text, value_text
from stcli.filters.program import FilterBatch, Planner
from stcli.filters.source import FilterSource
from stcli.model.admitted import Admitted
from stcli.model.joined import JoinedIds, LivingLookup, interleave_ranks, open_segments
from stcli.model.lookup import Ids, Lookup
from stcli.model.overarch import OverArch, embeddings_at
from stcli.model.placement import Spread
from stcli.model.segment import Segment
from stcli.model.tower import load_tower
from stcli.ops.rescore import rescore
from stcli.ops.take_best import take_best
from stcli.ops.verify_terms import verify_terms
from stcli.storage.artifact import Artifact
from stcli.storage.artifact_set import ArtifactSet
from stcli.storage.sizes import bytes_by_group
from stcli.types import PAD_ROW, Candidates, Embeddings, Postings, SearchIndex, moved

WORDS_BYTES = 512 << 20
"""Bytes that the admitted words of one tile of queries may take, unless `words_bytes` is set lower."""

TILE_QUERIES = 8192

Words = tuple[torch.Tensor, ...]
"""A bit for every row: int64 words [W] for each segment."""


class Corpus(nn.Module):
    """The items of an artifact.

    Attributes:
        manifest: of the artifact, or of the first one of a set.
        num_items: N, the items that may be returned.
        fingerprint: of the artifact or set.
        ids: of the rows.
        lookup: rows by id.
        rank_shift: how ranks of fresh items lie among those of the others, see `interleave_ranks`; None without any.
        words_bytes: bytes that the admitted words of a tile of queries may take.
        tile_queries: queries that are searched at once.
        warnings: what its user should know of what happened.

    Args:
        artifact: an opened artifact, or a set of several.
        backend: see `ops/dispatch.py`.
    """

    def __init__(self, artifact: Artifact | ArtifactSet, backend: str = "auto") -> None:
        super().__init__()
        self.backend = backend
        self.words_bytes = WORDS_BYTES
        self.tile_queries = TILE_QUERIES
        self.warnings: list[str] = []
        segments = open_segments(artifact, backend)
        first, self.parts = segments[0], nn.ModuleList(segments)
        self.manifest = first.manifest
        self.num_items, self.fingerprint = first.num_rows, str(artifact.manifest["fingerprint"])
        self.ids: Ids = first.ids
        self.lookup: Lookup = first.lookup
        self.rank_shift: torch.Tensor | None = None
        if isinstance(artifact, ArtifactSet):
            self.num_items = int(artifact.manifest["num_items"])
            self.ids, self.lookup = JoinedIds(segments), LivingLookup(segments)
            self.rank_shift = None if artifact.fresh is None else interleave_ranks(segments)
        arrays = artifact.arrays if isinstance(artifact, Artifact) else artifact.shards[0].arrays
        self.tower = load_tower(self.manifest.get("tower"), arrays)

    def place(self, spread: Spread) -> None:
        """Move the tensors of each segment to a GPU; those that stay on the host are used from there."""
        if self.tower is not None:
            self.tower.to(spread.devices[0])
        for segment, device in zip(self.segments, spread.devices, strict=True):
            segment.place(device, spread.each[device])
        self.tile_queries = spread.tile_queries
        self.words_bytes = spread.tile_queries * 8 * self.num_words

    # ---- what it is ------------------------------------------------------------------------------------------------

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The runs of rows, in order."""
        return tuple(self.parts)  # type: ignore[arg-type]

    @property
    def num_words(self) -> int:
        """Words of a bit for every row."""
        return sum(segment.num_words for segment in self.segments)

    @property
    def num_clusters(self) -> int:
        """C."""
        return int(self.manifest["num_clusters"])

    @property
    def dim(self) -> int:
        """D of the int8 search; a query may have more, see `query_dim`."""
        return int(self.manifest["dim"])

    @property
    def query_dim(self) -> int:
        """Dimensions that a query must have: those of the packed embeddings, or of the index if none are packed."""
        return int(self.manifest["embedding_dim"] or self.manifest["dim"])

    @property
    def device(self) -> torch.device:
        """Where queries are searched: the device of the first segment, while others may be on others."""
        return self.segments[0].device

    @property
    def bounded(self) -> bool:
        """Every score has an upper bound, so that results can be proven."""
        return all(segment.bounded for segment in self.segments)

    @property
    def has_embeddings(self) -> bool:
        """Embeddings were packed."""
        return bool(self.manifest["embedding_dim"])

    @property
    def planner(self) -> Planner:
        """Plans filters over the vocabulary of the first segment."""
        return self.segments[0].planner

    @property
    def other_planners(self) -> list[Planner]:
        """Those of the segments with another vocabulary than the first."""
        others = {id(segment.planner): segment.planner for segment in self.segments}
        return [planner for planner in others.values() if planner is not self.planner]

    def forget_plans(self) -> None:
        """Plan filters anew, as for filters that were never seen."""
        made: dict[int, Planner] = {}
        for old, segment in [(segment.planner, segment) for segment in self.segments]:
            if id(old) not in made:
                made[id(old)] = Planner(old.vocabulary, old.layout)
            segment.planner = made[id(old)]

    def bytes_by_group(self) -> dict[str, int]:
        """Bytes of what serves each purpose, of all segments; see `stcli.storage.sizes`."""
        sizes: Counter[str] = Counter()
        for segment in self.segments:
            sizes.update(bytes_by_group(segment.manifest["arrays"]))
        return dict(sizes)

    @property
    def artifacts(self) -> list[Artifact]:
        """What each segment was made from."""
        return [segment.artifact for segment in self.segments]

    # ---- an artifact of one segment, looked into -------------------------------------------------------------------

    @property
    def only(self) -> Segment:
        """The only segment.

        Raises:
            InputError: there are several.
        """
        if len(self.segments) > 1:
            updated = self.rank_shift is not None  # with fresh items
            raise InputError(
                f"the artifact is a set of {len(self.segments)} files; this needs one of a single file: "
                + ("make one of it with stcli update --compact" if updated else "pack the index without --shards")
            )
        return self.segments[0]

    def with_segment(self, segment: Segment) -> Self:
        """The same with another only segment."""
        made = copy.copy(self)
        made._modules = {**self._modules, "parts": nn.ModuleList([segment])}
        made.manifest = segment.manifest
        segment.forget_words()
        return made

    @property
    def codes(self) -> torch.Tensor:
        """Int8 codes of the only segment."""
        return self.only.codes

    @property
    def index(self) -> SearchIndex:
        """What the int8 search reads of the only segment."""
        return self.only.index

    @property
    def terms(self) -> Postings:
        """Exact terms of the only segment."""
        return self.only.terms

    @property
    def embeddings(self) -> Embeddings | None:
        """The packed embeddings of the only segment."""
        return self.only.embeddings

    @property
    def overarch(self) -> OverArch | None:
        """The OverArch of the first segment; the others have one of the same config and weights, over their items."""
        return self.segments[0].overarch

    # ---- filters ---------------------------------------------------------------------------------------------------

    @property
    def filters_at_once(self) -> int:
        """Filters whose words are held at once, at least 64."""
        return max(self.words_bytes // (8 * self.num_words), 64)

    def forget_words(self) -> None:
        """Give back the room for the words of a tile."""
        for segment in self.segments:
            segment.forget_words()

    def unknown_values(self, filters: FilterSource) -> int:
        """Literals in the filter texts that are no value of their feature in any segment."""
        return filters.unknown_values(self.other_planners)

    def first_unknown(self, filters: FilterSource) -> str | None:
        """The first of them with its feature, as a filter would say it."""
        found = filters.first_unknown(self.other_planners)
        return None if found is None else f"{feature_text(found[0])} = {value_text(found[1])}"

    def batches(
        self, filters: FilterSource, start: int, stop: int, most: int | None = None
    ) -> Iterator[tuple[int, tuple[FilterBatch, ...]]]:
        """Plan the filters of queries `start … stop - 1` for every segment.

        Args:
            filters: of all queries.
            start: first query.
            stop: query after the last.
            most: distinct filters at once, or None for any number.

        Yields:
            Runs of queries: how many, and their filters for each segment.
        """
        planned = filters.batch(start, stop)
        others = [filters.over(segment.planner) for segment in self.segments if segment.planner is not self.planner]
        for count, batch in planned.split(planned.num_filters if most is None else most):
            own = iter([other.batch(start, start + count) for other in others])
            yield count, tuple(batch if segment.planner is self.planner else next(own) for segment in self.segments)
            start += count

    def admit(
        self, filters: Sequence[FilterBatch], allowed: Words | None = None, everywhere: bool = True
    ) -> tuple[Admitted, ...]:
        """What the filters of a tile admit of each segment.

        Args:
            filters: of the same queries, for each segment.
            allowed: the only rows that any query may get, or None.
            everywhere: evaluate them at once for all rows; their words are good until the next call. Otherwise where
                and when they are asked for.
        """
        most, found = min(self.filters_at_once, TILE_QUERIES), []
        for place, (segment, batch) in enumerate(zip(self.segments, filters, strict=True)):
            made = Admitted.of(segment, batch, segment.barrier(None if allowed is None else allowed[place]), most)
            found.append(made.everywhere() if everywhere else made)
        return tuple(found)

    def normalized(self, vectors: torch.Tensor) -> torch.Tensor:
        """Queries for the cosine metric have length 1; others are left alone."""
        return self.segments[0].normalized(vectors)

    # ---- rows ------------------------------------------------------------------------------------------------------

    def read(
        self, rows: torch.Tensor, reading: Callable[[int, torch.Tensor], torch.Tensor], empty: Any
    ) -> torch.Tensor:
        """Read something of rows, each where it lies.

        Args:
            rows: int64 [b, M], -1 in empty slots.
            reading: gives [b, m] for the number of a segment and own rows of it, int64 [b, m], -1 in empty slots.
            empty: what stands in empty slots.

        Returns:
            [b, M].
        """
        if len(self.segments) == 1:
            return reading(0, rows)
        # Slots of other segments are empty ones to a reading, which passes over them: to move the slots of each segment
        # together took 3.3 of the 6.8 s of CPU time of 2,048 exact searches in 7 shards.
        whole: torch.Tensor | None = None
        for number, segment in enumerate(self.segments):
            own = rows - segment.base
            outside = (own < 0) | (own >= segment.num_rows)
            values = reading(number, own.masked_fill_(outside, PAD_ROW))
            if whole is None:
                whole = torch.full_like(values, empty)
            whole = torch.where(outside, whole, values)
        assert whole is not None
        return whole

    def embeddings_of(self, rows: torch.Tensor) -> torch.Tensor:
        """The packed embeddings of rows int64 [S], float32 [S, D], where they lie."""
        found: torch.Tensor | None = None
        for segment in self.segments:
            embeddings = segment.embeddings
            assert embeddings is not None
            mine = ((rows >= segment.base) & (rows < segment.end)).nonzero()[:, 0]
            values = embeddings_at(embeddings, (rows[mine] - segment.base).to(embeddings.values.device))
            if found is None:
                found = values.new_empty(len(rows), values.shape[1])
            found[mine.to(found.device)] = values.to(found.device)
        assert found is not None
        return found

    def vectors_of_items(self, rows: np.ndarray) -> torch.Tensor:
        """Items as queries: their packed embeddings, float32 [B, D] on the CPU, of rows int64 [B]; zeros for row -1."""
        found = torch.zeros(len(rows), self.query_dim)
        known = torch.from_numpy(np.flatnonzero(rows >= 0))
        if len(known):
            found[known] = self.embeddings_of(torch.from_numpy(rows)[known]).cpu()
        return found

    def rescore(self, vectors: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Scores of candidates [b, M] by the packed embeddings, for vectors float32 [b, D]; -inf in empty slots."""

        def score(number: int, own: torch.Tensor) -> torch.Tensor:
            embeddings = self.segments[number].embeddings
            assert embeddings is not None
            place = embeddings.values.device  # the host's, where the device has no room for them
            backend = self.backend_at(place, own.device)
            scores = rescore(vectors.to(place), embeddings, own.to(place), backend=backend)
            return moved(scores, own.device)

        return self.read(rows, score, -torch.inf)

    def verify(
        self, filters: Sequence[FilterBatch], filter_of_query: Sequence[torch.Tensor], rows: torch.Tensor
    ) -> torch.Tensor:
        """Which candidates satisfy a filter by their exact terms.

        Args:
            filters: planned for each segment.
            filter_of_query: for each segment the filter that each line has to satisfy, int64 [b], -1 for none.
            rows: int64 [b, M], -1 in empty slots.

        Returns:
            bool [b, M], False in empty slots.
        """

        def keep(number: int, own: torch.Tensor) -> torch.Tensor:
            wanted, program, terms = filter_of_query[number], filters[number].terms, self.segments[number].terms
            if program is None or not bool((wanted >= 0).any()):
                return own >= 0
            place = terms.values.device
            backend = self.backend_at(place, own.device)
            eligible = verify_terms(terms, moved(program, place), own.to(place), wanted.to(place), backend=backend)
            return moved(eligible, own.device)

        return self.read(rows, keep, False)

    def backend_at(self, place: torch.device, device: torch.device) -> str:
        """The backend asked for, or any that runs where a tensor was left on the host."""
        return self.backend if place.type == device.type else "auto"

    def ranks(self, rows: torch.Tensor) -> torch.Tensor:
        """Place of each item in the order of all ids, int64 [b, M]; any number in empty slots."""

        def rank(number: int, own: torch.Tensor) -> torch.Tensor:
            ranks = self.segments[number].ranks
            ranks = moved(ranks[own.to(ranks.device).clamp(min=0)], own.device)
            if self.rank_shift is None or number == len(self.segments) - 1:
                return ranks
            return ranks + torch.searchsorted(moved(self.rank_shift, ranks.device), ranks, right=True)

        return self.read(rows, rank, 0)

    def take_best(self, rows: torch.Tensor, scores: torch.Tensor, k: int) -> Candidates:
        """The k best of candidates [b, M], by score, then by id; see `stcli.ops.take_best`."""
        if len(self.segments) == 1 or not rows.numel():
            return take_best(rows, scores, self.segments[0].ranks, k=k, backend=self.backend)
        slots = torch.arange(rows.numel(), device=rows.device).view_as(rows)
        named = torch.where(rows >= 0, slots, -1)
        best = take_best(named, scores, self.ranks(rows).flatten(), k=k, backend=self.backend)
        return Candidates(torch.where(best.rows < 0, -1, rows.flatten()[best.rows.clamp(min=0)]), best.scores)
