"""The search of one tile of queries: candidates by int8, exact verification, re-scoring; again where it fell short."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from stcli.model.admitted import MARGIN, Admitted, estimate
from stcli.model.corpus import Corpus
from stcli.model.planner import PROBE, ROWS, SearchOptions, floor_probes, plan, settled, spans_pay
from stcli.model.results import Results
from stcli.model.segment_search import SegmentSearch, at_once
from stcli.model.slots import best_of_runs, num_taken
from stcli.ops.choose_probes import choose_probes
from stcli.ops.quantize_rows import quantize_rows
from stcli.types import PAD_ROW, Candidates, Lines, Quantized, moved

SLOTS = 1 << 24
"""Candidate slots held at once, 12 bytes each."""

HOST_SLOTS = 1 << 22
"""Slots of one attempt on the CPU: a tensor of more than 32 MB gets fresh pages from the system each time. 2^24, 2^22,
2^21, 2^20 slots: 7,470, 9,520, 9,060, 7,780 queries a second (k = 1,000, 108 of 4,096 clusters, 1M x 128, medians of
three turns on 2 cores of AMD EPYC Zen 4); k = 100 and the exact search differ by less than the noise."""

WIDEN_PROBES = 4
WIDEN_SLOTS = 4

FLOOR_SLOTS = 4
"""Slots, in K0, of a search of all rows above a floor: enough for 98 % of the queries of Corpora R and H."""

LEAST_QUERIES = 64
"""Queries searched together, however many words their clusters have."""

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
        admitted: int64 [b], rows that the query may get: counted by a search of all rows, else as known before.
        unsure: bool [b], a GPU could not answer, and has to be asked in another way.
    """

    rows: torch.Tensor
    scores: torch.Tensor
    full: torch.Tensor
    bound: torch.Tensor
    admitted: torch.Tensor
    unsure: torch.Tensor


@dataclass(frozen=True)
class Tile:
    """A tile of queries.

    Attributes:
        vectors: float32 [B, D] on the model's device.
        admitted: what the filters admit of each segment.
        filtered: bool [B] on the host, something limits what a query may get.
        excluded: rows that each query must not get, or None.
    """

    vectors: torch.Tensor
    admitted: tuple[Admitted, ...]
    filtered: torch.Tensor
    excluded: Lines | None

    def take(self, queries: torch.Tensor) -> Tile:
        """Some of the queries, int64 [b], perhaps repeated."""
        there = moved(queries, self.vectors.device)
        return Tile(
            self.vectors[there],
            tuple(admitted.take(queries) for admitted in self.admitted),
            self.filtered[queries.cpu()],
            None if self.excluded is None else self.excluded.take(there),
        )


class Search:
    """The search of one tile.

    What is decided for each query (its route, probes and slots, and who is searched again) lies on the host, so that
    the operations follow one another without it. It waits for a GPU only for

    - what the filters admit, before an attempt: the route of a query depends on it, and that decides which launches
      there are. Once, or twice where estimates lie near a threshold and are counted;
    - the candidates of an attempt, where exact terms that a filter needs lie on the host, as they do by default;
    - who is unfinished, at the end of an attempt, and with it what was counted, and whom the kernels could not answer;
    - the results.

    Meanwhile the GPU has another batch (`stcli.model.ahead`).

    Args:
        model: the packed items.
        tile: the queries.
        options: how to search.
    """

    def __init__(self, model: Corpus, tile: Tile, options: SearchOptions) -> None:
        self.model, self.tile, self.options = model, tile, options
        self.backend, self.vectors = model.backend, tile.vectors
        self.narrow = self.vectors[:, : model.dim].contiguous()
        self.queries = quantize_rows(self.narrow, backend=self.backend)
        self.k = min(options.k, model.num_items)
        self.bounded = model.bounded
        self.runs = [
            SegmentSearch(segment, admitted, tile.excluded, options.verify, self.backend)
            for segment, admitted in zip(model.segments, tile.admitted, strict=True)
        ]
        self._count()

    def _count(self) -> None:
        """Count what the filters admit, or only estimate it where that tells how a query is going to be searched."""
        model, tile, options = self.model, self.tile, self.options
        # Which of the counts are estimates, bool [B]; these and the counts lie on the host.
        self.guessed = torch.zeros_like(tile.filtered)
        if tile.admitted[0].held or model.other_planners:
            for run in self.runs:
                run.counts = run.admitted.counts().cpu()
            self.admitted = torch.stack([run.counts for run in self.runs]).sum(0)
            self.estimates = self.admitted.clone()
            return
        each, deviation = (found.cpu() for found in estimate(tile.admitted))
        middle, margin = each.sum(0), MARGIN * deviation
        low, high = (middle - margin).clamp(min=0).long(), (middle + margin).ceil().long()
        self.guessed = tile.admitted[0].filters.filter_of_query >= 0
        plain = settled(options, low, high, tile.filtered, model.num_items, model.num_clusters) & (not options.count)
        counted = torch.nonzero(self.guessed & ~plain)[:, 0]
        for run, own in zip(self.runs, each, strict=True):
            run.counts = own.round().long()
            run.counts[counted] = run.admitted.count(counted).cpu()
        self.guessed[counted] = False
        self.estimates = middle.round().long()
        exact = torch.stack([run.counts for run in self.runs]).sum(0)
        self.admitted = torch.where(self.guessed, self.estimates, exact)

    def run(self) -> Results:
        """Search, and widen for queries that fell short, until each has min(k, eligible) results."""
        model, options = self.model, self.options
        count = len(self.vectors)
        device = self.vectors.device
        routes, probes = plan(options, self.admitted, self.tile.filtered, model.num_items, model.num_clusters)
        slots = torch.full((count,), options.candidates)
        if self.bounded:
            slots[routes == ROWS] = max(options.candidates, 2 * self.k)  # what most proofs need
        self.floors = torch.full((count,), -torch.inf, device=device)
        self.floored = torch.zeros(count, dtype=torch.bool)  # where there may be a floor
        self.sure = torch.zeros(count, dtype=torch.bool)  # who is asked in a way that always has an answer
        work = torch.zeros(count, dtype=torch.int64, device=device)
        if self.bounded:
            self._find_floors(routes, work)
            slots[self.floored] = FLOOR_SLOTS * options.candidates
        slots.clamp_(max=model.num_items)
        rows = torch.empty((count, self.k), dtype=torch.int64, device=device)
        scores = torch.empty((count, self.k), device=device)
        pending = torch.arange(count)
        while len(pending):
            again = []
            for which, route, num_probes, k0 in _groups(pending, routes, probes, slots):
                told = []
                for piece in which.split(self._at_once(route, num_probes, k0)):
                    found = self._attempt(piece, route, num_probes, k0, work)
                    there = self._there(piece)
                    rows[there, :], scores[there, :] = found.rows, found.scores
                    if route == ROWS:
                        self.floors[there] = torch.maximum(self.floors[there], found.scores[:, -1])
                        self.floored[piece] = True
                        self.guessed[piece] = False
                    lines = self._unfinished(found, piece, route, k0), found.full, found.unsure, found.admitted
                    told.append(torch.stack([line.long() for line in lines]))
                *flags, self.admitted[which] = torch.cat(told, 1).cpu()
                unfinished, full, unsure = (flag.bool() for flag in flags)
                if bool((unfinished | unsure).any()):
                    again.append(which[unfinished | unsure])
                    self.sure[which[unsure]] = True
                    wider = unfinished & ~unsure
                    self._widen(which[wider], full[wider], routes, probes, slots)
            pending = torch.cat(again).sort().values if again else pending[:0]
        rows = rows.cpu()
        return Results(
            rows, scores.cpu(), num_taken(rows), work.cpu(), routes,
            torch.where(routes == PROBE, probes, 0), self.admitted, model.ids, estimates=self.estimates,
        )  # fmt: skip

    def _find_floors(self, routes: torch.Tensor, work: torch.Tensor) -> None:
        """Probe for queries that are going to see all rows: what is below their k-th score there is no result.

        Whoever finds fewer than k has no floor; and the k-th of what a GPU found without being sure is a floor too.
        """
        probes = floor_probes(self.options, self.admitted, routes, self.model.num_items, self.model.num_clusters)
        which = torch.nonzero(probes)[:, 0]
        if len(which):
            num_probes, k0 = int(probes.max()), self.options.candidates
            for piece in which.split(self._at_once(PROBE, num_probes, k0)):
                found = self._attempt(piece, PROBE, num_probes, k0, work)
                self.floors[self._there(piece)] = found.scores[:, -1]
            self.floored[which] = True

    def _there(self, which: torch.Tensor) -> torch.Tensor:
        """Numbers of queries, chosen on the host, on the device of the queries; the host does not wait."""
        return moved(which, self.vectors.device)

    def _home(self, told: torch.Tensor) -> torch.Tensor:
        """What a segment tells of queries, on the device of the queries."""
        return told.to(self.vectors.device)

    def _of(self, which: torch.Tensor, lines: torch.Tensor) -> torch.Tensor:
        """The lines of some queries, whose numbers ascend."""
        return lines if len(which) == len(lines) else lines[self._there(which)]

    def _queries(self, which: torch.Tensor) -> Quantized:
        return Quantized(self._of(which, self.queries.codes), self._of(which, self.queries.scales))

    def _choose(self, queries: Quantized, count: int) -> torch.Tensor:
        """The clusters nearest to some queries, int64 [b, count]."""
        clusters = self.runs[0].index.clusters
        return choose_probes(
            queries, clusters.centroids, num_probes=count, reaches=clusters.reaches, backend=self.backend
        )

    def _at_once(self, route: int, num_probes: int, k0: int) -> int:
        """Queries searched at once, which bounds the candidate slots and the words."""
        slots = SLOTS if self.vectors.is_cuda else HOST_SLOTS
        return min(max(slots // k0, 1), self._words_at_once(route, num_probes))

    def _words_at_once(self, route: int, num_probes: int) -> int:
        """Queries whose words may be held at once."""
        model = self.model
        if self.tile.admitted[0].held:
            return len(self.vectors)
        if route == ROWS or not spans_pay(self.options.filter_scope, num_probes, model.num_words):
            return model.filters_at_once
        each = max(run.segment.most_words(num_probes) for run in self.runs if run.segment.probed)
        return max(model.words_bytes // (8 * each), LEAST_QUERIES)

    def _attempt(self, which: torch.Tensor, route: int, num_probes: int, k0: int, work: torch.Tensor) -> _Found:
        """Search some queries once."""
        queries, there = self._queries(which), self._there(which)
        unsure: list[torch.Tensor] = []
        ask = None if bool(self.sure[which].any()) else unsure
        admitted = self._there(self.admitted[which])
        if route == ROWS:
            found = self._search_rows(queries, which, k0, ask)
            admitted = torch.stack([self._home(run.counted) for run in self.runs]).sum(0)
            work[there] += admitted
        else:
            found = self._search_clusters(queries, which, num_probes, k0, work, ask)
        # With a slot for every item there is no more to find, though all slots are taken.
        full, bound = (found.rows[:, -1] >= 0) & (k0 < self.model.num_items), found.scores[:, -1]
        candidates = self._verified(found.rows, which)
        if self.model.has_embeddings:
            scores = self.model.rescore(self._of(which, self.vectors), candidates)
        else:
            scores = torch.where(candidates >= 0, found.scores, -torch.inf)
        best = self.model.take_best(candidates, scores, self.k)
        doubts = torch.zeros_like(full)
        for doubt in unsure:
            doubts |= self._home(doubt)
        return _Found(best.rows, best.scores, full, bound, admitted, doubts)

    def _search_rows(
        self, queries: Quantized, which: torch.Tensor, k0: int, unsure: list[torch.Tensor] | None
    ) -> Candidates:
        """The best k0 of all admitted rows."""
        bounds = self._bounds(which, queries) if self.bounded else None
        floors = self.floors[self._there(which)] if self.bounded and bool(self.floored[which].any()) else None

        def search(run: SegmentSearch) -> Candidates:
            return run.search_rows(queries, which, k0, bounds, floors, unsure)

        return self._merged(at_once(search, self.runs), k0)

    def _search_clusters(
        self,
        queries: Quantized,
        which: torch.Tensor,
        num_probes: int,
        k0: int,
        work: torch.Tensor,
        unsure: list[torch.Tensor] | None,
    ) -> Candidates:
        """The best k0 of the admitted rows in the clusters nearest to each query."""
        probes, there = self._choose(queries, num_probes), self._there(which)
        spans = spans_pay(self.options.filter_scope, num_probes, self.model.num_words)

        def search(run: SegmentSearch) -> Candidates:
            if run.segment.probed:
                return run.search_clusters(queries, which, probes, k0, spans, unsure)
            return run.search_rows(queries, which, k0, None, None, unsure)  # few rows in clusters of their own

        found = self._merged(at_once(search, self.runs), k0)
        for run in self.runs:
            if run.segment.probed:
                sizes = run.index.clusters.offsets.diff().to(probes.device)
                work[there] += sizes[probes].sum(1)
            else:
                work[there] += self._home(run.counted)
        return found

    def _merged(self, parts: list[Candidates], k0: int) -> Candidates:
        """The best k0 of what each segment gave, in the rows of all."""
        if len(parts) == 1:
            return parts[0]
        home = self.vectors.device
        shifted = [
            replace(part, rows=torch.where(part.rows >= 0, part.rows + run.segment.base, PAD_ROW))
            for part, run in zip((moved(part, home) for part in parts), self.runs, strict=True)
        ]
        return best_of_runs(shifted, k0, self.backend)

    def _bounds(self, which: torch.Tensor, queries: Quantized) -> tuple[torch.Tensor, torch.Tensor]:
        """Norms of the queries and of their quantization errors, rounded up as `errors` and `norms` of the rows are."""
        vectors = self._of(which, self.narrow)
        restored = queries.codes[:, : vectors.shape[1]].float() * queries.scales[:, None]
        slack = 1 + (vectors.shape[1] + 16) * 2.0**-23
        return vectors.norm(dim=1) * slack, (vectors - restored).norm(dim=1) * slack + vectors.norm(dim=1) * (slack - 1)

    def _verified(self, rows: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
        """Candidates [b, k0] without those that do not satisfy their query's filter by their exact terms."""
        if all(run.exact for run in self.runs):
            return rows
        filters = [run.admitted.filters for run in self.runs]
        kept = self.model.verify(filters, [run.unverified[which] for run in self.runs], rows)
        return torch.where(kept, rows, PAD_ROW)

    def _unfinished(self, found: _Found, which: torch.Tensor, route: int, k0: int) -> torch.Tensor:
        """Which queries may have results that this attempt did not see; bool [b] on the device."""
        counts = num_taken(found.rows)
        short = counts < self.k
        if route == PROBE:
            return short & ((counts < found.admitted) | self._there(self.guessed[which]))
        if self.bounded:
            unproven = found.bound >= found.scores[:, -1]
            asked = self.options.exact or k0 < MOST_UNASKED_PROOF * self.options.candidates
            return found.full & (unproven if asked else short)
        wanted = self.options.exact and self.model.has_embeddings
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
