"""The search of one tile of queries: candidates by int8, exact verification, re-scoring; again where it fell short."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from stcli.filters.program import FilterBatch, moved
from stcli.model.planner import PROBE, ROWS, SearchOptions, floor_probes, plan
from stcli.model.results import Results
from stcli.ops.choose_probes import choose_probes
from stcli.ops.count_bits import count_bits
from stcli.ops.quantize_rows import quantize_rows
from stcli.ops.rescore import rescore
from stcli.ops.search_clusters import search_clusters
from stcli.ops.search_rows import search_rows
from stcli.ops.take_best import take_best
from stcli.ops.verify_terms import verify_terms
from stcli.types import PAD_ROW, Candidates, Lines, Quantized

if TYPE_CHECKING:
    from stcli.model.retriever import Retriever

SLOTS = 1 << 24
"""Candidate slots held at once, 12 bytes each."""

WIDEN_PROBES = 4
WIDEN_SLOTS = 4

FLOOR_SLOTS = 4
"""Slots, in K0, of a search of all rows above a floor: enough for 98 % of the queries of Corpora R and H."""

MOST_UNASKED_PROOF = 16
"""A search of all admitted rows is widened to so many times K0 to prove its results, or as far as it takes when the
exact search was asked for: thousands of equal items could make it long."""


@dataclass
class _Found:
    """What one attempt found for some queries, best first.

    Attributes:
        rows: int64 [b, k], -1 in empty slots.
        scores: float32 [b, k].
        full: bool [b], every candidate slot was taken, so there may be more.
        bound: float32 [b], no row outside the candidates has a larger upper bound.
    """

    rows: torch.Tensor
    scores: torch.Tensor
    full: torch.Tensor
    bound: torch.Tensor


@dataclass(frozen=True)
class Tile:
    """A tile of queries with its filters evaluated.

    Attributes:
        vectors: float32 [B, D] on the model's device.
        filters: planned, on the CPU, for verification.
        words: int64 [F, W] admitted rows of each line, or None if nothing is filtered.
        line_of_query: int64 [B], line of `words`, or -1 for every item.
        excluded: rows that each query must not get, or None.
    """

    vectors: torch.Tensor
    filters: FilterBatch
    words: torch.Tensor | None
    line_of_query: torch.Tensor
    excluded: Lines | None


class Search:
    """The search of one tile.

    Args:
        model: the packed model.
        tile: the queries.
        options: how to search.
    """

    def __init__(self, model: Retriever, tile: Tile, options: SearchOptions) -> None:
        self.model, self.tile, self.options = model, tile, options
        self.index, self.backend = model.index, model.backend
        self.vectors, self.words, self.line_of_query = tile.vectors, tile.words, tile.line_of_query
        self.narrow = self.vectors[:, : int(model.manifest["dim"])].contiguous()
        self.queries = quantize_rows(self.narrow, backend=self.backend)
        self.k = min(options.k, model.num_items)
        self.embeddings = model.embeddings
        self.bounded = hasattr(model, "errors") and self.embeddings is not None
        self.unverified = tile.filters.filter_of_query
        if tile.filters.program is not None:
            exact = tile.filters.program.exact[self.unverified.clamp(min=0)]
            self.unverified = torch.where(exact | (not options.verify), -1, self.unverified)
        self.admitted = torch.full_like(self.line_of_query, model.num_items)
        if self.words is not None:
            counted = count_bits(self.words)[self.line_of_query.clamp(min=0)]
            self.admitted = torch.where(self.line_of_query >= 0, counted, self.admitted)

    def run(self) -> Results:
        """Search, and widen for queries that fell short, until each has min(k, eligible) results."""
        model, options = self.model, self.options
        count = len(self.vectors)
        device = self.vectors.device
        routes, probes = plan(options, self.admitted, self.line_of_query >= 0, model.num_items, model.num_clusters)
        slots = torch.full((count,), options.candidates, device=device)
        if self.bounded:
            slots[routes == ROWS] = max(options.candidates, 2 * self.k)  # what most proofs need
        self.floors = torch.full((count,), -torch.inf, device=device)
        work = torch.zeros(count, dtype=torch.int64, device=device)
        if self.bounded:
            self._find_floors(routes, work)
            slots[self.floors > -torch.inf] = FLOOR_SLOTS * options.candidates
        slots.clamp_(max=model.num_items)
        rows = torch.full((count, self.k), PAD_ROW, device=device)
        scores = torch.full((count, self.k), -torch.inf, device=device)
        pending = torch.arange(count, device=device)
        while len(pending):
            again = []
            for which, route, num_probes, k0 in _groups(pending, routes, probes, slots):
                found = self._attempt(which, route, num_probes, k0, work)
                rows[which, :], scores[which, :] = found.rows, found.scores
                if route == ROWS:
                    self.floors[which] = torch.maximum(self.floors[which], found.scores[:, -1])
                unfinished = which[self._unfinished(found, which, route, k0)]
                if len(unfinished):
                    again.append(unfinished)
                    self._widen(unfinished, found.full[torch.isin(which, unfinished)], routes, probes, slots)
            pending = torch.cat(again) if again else pending[:0]
        return Results(
            rows.cpu(), scores.cpu(), (rows >= 0).sum(1).cpu(), work.cpu(), routes.cpu(),
            torch.where(routes == PROBE, probes, 0).cpu(), self.admitted.cpu(), model.ids,
        )  # fmt: skip

    def _find_floors(self, routes: torch.Tensor, work: torch.Tensor) -> None:
        """Probe for queries that are going to see all rows: what is below their k-th score there is no result."""
        probes = floor_probes(self.options, self.admitted, routes, self.model.num_items, self.model.num_clusters)
        which = torch.nonzero(probes)[:, 0]
        if len(which):
            found = self._attempt(which, PROBE, int(probes.max()), self.options.candidates, work)
            self.floors[which] = found.scores[:, -1]

    def _attempt(self, which: torch.Tensor, route: int, num_probes: int, k0: int, work: torch.Tensor) -> _Found:
        """Search some queries once, in pieces that bound the candidate slots."""
        parts = [self._attempt_piece(piece, route, num_probes, k0, work) for piece in which.split(max(SLOTS // k0, 1))]
        return _Found(
            *(torch.cat([getattr(part, name) for part in parts]) for name in ("rows", "scores", "full", "bound"))
        )

    def _attempt_piece(self, which: torch.Tensor, route: int, num_probes: int, k0: int, work: torch.Tensor) -> _Found:
        queries = Quantized(self.queries.codes[which], self.queries.scales[which])
        lines = self.line_of_query[which]
        excluded = self.tile.excluded.take(which) if self.tile.excluded is not None else None
        common: dict[str, Any] = {"k0": k0, "excluded": excluded, "backend": self.backend}
        if route == ROWS:
            bounds = self._bounds(which, queries) if self.bounded else None
            floors = self.floors[which] if self.bounded and bool((self.floors[which] > -torch.inf).any()) else None
            found = search_rows(queries, self.index, self.words, lines, bounds=bounds, floors=floors, **common)
            work[which] += self.admitted[which]
        else:
            clusters = self.index.clusters
            probes = choose_probes(
                queries, clusters.centroids, num_probes=num_probes, reaches=clusters.reaches, backend=self.backend
            )
            found = search_clusters(queries, self.index, probes, self.words, lines, **common)
            work[which] += clusters.offsets.diff()[probes].sum(1)
        # With a slot for every item there is no more to find, though all slots are taken.
        full, bound = (found.rows[:, -1] >= 0) & (k0 < self.model.num_items), found.scores[:, -1]
        eligible = self._verify(found, which)
        candidates = torch.where(eligible, found.rows, PAD_ROW)
        if self.embeddings is None:
            scores = torch.where(eligible, found.scores, -torch.inf)
        else:
            place = self.embeddings.values.device  # the host's, where the device has no room for them
            scores = rescore(
                self.vectors[which].to(place), self.embeddings, candidates.to(place), backend=self._backend_at(place)
            ).to(candidates.device)
        ranks = self.model.get_buffer("id_rank")
        best = take_best(candidates, scores, ranks, k=self.k, backend=self.backend)
        return _Found(best.rows, best.scores, full, bound)

    def _bounds(self, which: torch.Tensor, queries: Quantized) -> tuple[torch.Tensor, torch.Tensor]:
        """Norms of the queries and of their quantization errors, rounded up as `errors` and `norms` of the rows are."""
        vectors = self.narrow[which]
        restored = queries.codes[:, : vectors.shape[1]].float() * queries.scales[:, None]
        slack = 1 + (vectors.shape[1] + 16) * 2.0**-23
        return vectors.norm(dim=1) * slack, (vectors - restored).norm(dim=1) * slack + vectors.norm(dim=1) * (slack - 1)

    def _verify(self, found: Candidates, which: torch.Tensor) -> torch.Tensor:
        """Which candidates satisfy their query's filter by their exact terms; bool [b, k0]."""
        filters, place = self.unverified[which.cpu()], self.model.terms.values.device
        program = self.tile.filters.terms
        if program is None or not bool((filters >= 0).any()):
            return found.rows >= 0
        eligible = verify_terms(
            self.model.terms,
            moved(program, place),
            found.rows.to(place),
            filters.to(place),
            backend=self._backend_at(place),
        )
        return eligible.to(found.rows.device)

    def _backend_at(self, place: torch.device) -> str:
        """The backend asked for, or any that runs where a tensor was left on the host."""
        return self.backend if place.type == self.vectors.device.type else "auto"

    def _unfinished(self, found: _Found, which: torch.Tensor, route: int, k0: int) -> torch.Tensor:
        """Which queries may have results that this attempt did not see; bool [b]."""
        counts = (found.rows >= 0).sum(1)
        short = counts < self.k
        if route == PROBE:
            return short & (counts < self.admitted[which])
        if self.bounded:
            unproven = found.bound >= found.scores[:, -1]
            asked = self.options.exact or k0 < MOST_UNASKED_PROOF * self.options.candidates
            return found.full & (unproven if asked else short)
        wanted = self.options.exact and self.embeddings is not None
        return found.full if wanted else found.full & short

    def _widen(
        self, which: torch.Tensor, full: torch.Tensor, routes: torch.Tensor, probes: torch.Tensor, slots: torch.Tensor
    ) -> None:
        """More candidates where all slots were taken, more clusters where they were not; at last every admitted row."""
        slots[which] = torch.where(full, slots[which] * WIDEN_SLOTS, slots[which]).clamp(max=self.model.num_items)
        probed = which[(routes[which] == PROBE)]
        probes[probed] *= WIDEN_PROBES
        routes[probed] = torch.where(probes[probed] >= self.model.num_clusters, ROWS, PROBE)


def _groups(
    pending: torch.Tensor, routes: torch.Tensor, probes: torch.Tensor, slots: torch.Tensor
) -> list[tuple[torch.Tensor, int, int, int]]:
    """The pending queries by equal route, probes and slots: (queries, route, probes, slots)."""
    kinds = torch.where(routes[pending] == ROWS, 0, probes[pending] + 1)
    _, kind = kinds.unique(return_inverse=True)
    sizes, size = slots[pending].unique(return_inverse=True)
    _, place = (kind * len(sizes) + size).unique(return_inverse=True)
    groups = [pending[place == number] for number in range(int(place.max()) + 1)]
    return [(group, int(routes[group[0]]), int(probes[group[0]]), int(slots[group[0]])) for group in groups]
