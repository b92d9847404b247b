"""The search of requests of several queries that want the k best of all that these find, by one list a request.

A request costs little more than scoring the rows that its queries probe: its K0 candidates are those with the best
score for any of them, and only these are verified, scored again and sorted. Results are those of a search for each
query, merged: an item that is among the k best of all is among the k best of the query that it scores best for. The
k-th of all has more items close to it than the k-th of one query, so K0 is doubled for the requests where the errors
of the int8 scores may change which are the best: 1 to 2 % of requests of 12 queries on Corpus R, k = 1,024.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from stcli.model.corpus import Corpus
from stcli.model.planner import PROBE, SearchOptions, plan
from stcli.model.scorer import Scored
from stcli.model.search import MOST_UNASKED_PROOF, SLOTS, Search, Tile
from stcli.model.slots import in_order, pick
from stcli.ops.search_requests import Requested, search_requests
from stcli.ops.take_best import take_best
from stcli.types import PAD_ROW, Candidates, Quantized, moved

MOST_QUERIES = 64
"""Queries of a request: each is a bit of a number."""


def queries_of(requests: torch.Tensor, together: int) -> torch.Tensor:
    """The queries of some requests int64 [b] of `together` queries each: int64 [b * together]."""
    return (requests[:, None] * together + torch.arange(together, device=requests.device)).flatten()


@dataclass(frozen=True)
class Answer:
    """Results of b requests.

    Attributes:
        requests: int64 [b] on the host, their numbers, ascending.
        scored: the results.
        work, routes, probes, admitted, estimates: int64 [b] on the host, see `stcli.model.results.Results`.
    """

    requests: torch.Tensor
    scored: Scored
    work: torch.Tensor
    routes: torch.Tensor
    probes: torch.Tensor
    admitted: torch.Tensor
    estimates: torch.Tensor

    @classmethod
    def joined(cls, parts: Sequence[Answer]) -> Answer:
        """Several answers as one, in the order of their requests."""
        if len(parts) == 1:
            return parts[0]
        order = torch.cat([part.requests for part in parts])
        scored = (in_order([getattr(part.scored, name) for part in parts], order) for name in _SCORED)
        return cls(
            order.sort().values,
            Scored(*scored),
            *(in_order([getattr(part, name) for part in parts], order) for name in _EFFORT),
        )

    def take(self, some: torch.Tensor) -> Answer:
        """Some of them, int64 [c] on the host, ascending."""
        there = moved(some, self.scored.rows.device)
        scored = (getattr(self.scored, name)[there] for name in _SCORED)
        return Answer(self.requests[some], Scored(*scored), *(getattr(self, name)[some] for name in _EFFORT))


_SCORED = ("rows", "scores", "ann", "tasks", "scored")
_EFFORT = ("work", "routes", "probes", "admitted", "estimates")


class JointSearch(Search):
    """The search of a tile of requests.

    Args:
        model: the packed items.
        tile: queries, those of one request after another, their filters evaluated on all rows.
        options: how to search.
        together: T, queries of a request.
    """

    def __init__(self, model: Corpus, tile: Tile, options: SearchOptions, together: int) -> None:
        super().__init__(model, tile, options)
        self.together = together

    def answers(self) -> list[Answer]:
        """Answer the requests that probe clusters, but for those with a query that has to look further for k items."""
        if self.together > MOST_QUERIES or not all(run.segment.probed for run in self.runs):
            return []
        model = self.model
        routes, probes = plan(self.options, self.admitted, self.tile.filtered, model.num_items, model.num_clusters)
        probes = torch.where(routes == PROBE, probes, 0)[:: self.together]
        k0 = min(self.options.candidates, model.num_items)
        pending = [(torch.nonzero(probes == count)[:, 0], count, k0) for count in probes.unique().tolist() if count]
        answers = []
        while pending:
            requests, count, k0 = pending.pop()
            for piece in requests.split(max(SLOTS // (k0 * self.together), 1)):
                answer, unsure = self._answer(piece, count, k0)
                answers.append(answer)
                if len(unsure):
                    pending.append((unsure, count, min(2 * k0, model.num_items)))
        return answers

    def _answer(self, requests: torch.Tensor, num_probes: int, k0: int) -> tuple[Answer, torch.Tensor]:
        """Answer some requests, as far as the answer stands; and say which of them need more candidates."""
        first, count = requests * self.together, len(requests)
        own = queries_of(requests, self.together)
        queries, vectors = self._queries(own), self.vectors[self._there(own)]
        probes = self._choose(queries, num_probes)
        found, seen, lost = self._candidates(queries, first, probes, k0)
        rows = self._verified(found.rows, first)
        tasks = self.model.rescore(vectors, rows.repeat_interleave(self.together, 0)).view(count, -1, k0)
        scores = tasks.masked_fill(~self._looked_at(rows, probes), -torch.inf).amax(1)
        scored = self._best(rows, scores, tasks)
        stands = self._stands(first, found.rows, rows, seen.view(count, -1).amin(1)) & ~lost.view(count, -1).any(1)
        unsure = torch.zeros_like(stands)
        if k0 < min(MOST_UNASKED_PROOF * self.options.candidates, self.model.num_items):
            unsure = stands & (found.rows[:, -1] >= 0) & (scored.scores[:, -1] <= _reach(found, scores))
        stands, unsure = torch.stack([stands & ~unsure, unsure]).cpu()
        work = torch.zeros(len(own), dtype=torch.int64, device=probes.device)
        for run in self.runs:
            work += run.index.clusters.offsets.diff().to(probes.device)[probes].sum(1)
        answer = Answer(
            requests, scored, work.view(count, -1).sum(1).cpu(), torch.full_like(requests, PROBE),
            torch.full_like(requests, num_probes), self.admitted[first], self.estimates[first],
        )  # fmt: skip
        return answer if bool(stands.all()) else answer.take(torch.nonzero(stands)[:, 0]), requests[unsure]

    def _best(self, rows: torch.Tensor, scores: torch.Tensor, tasks: torch.Tensor) -> Scored:
        """The k best of candidates int64 [b, M] with scores float32 [b, M], and their scores of all [b, T, M]."""
        slots = torch.arange(rows.numel(), device=rows.device).view_as(rows)
        named = torch.where(rows >= 0, slots, PAD_ROW)
        best = take_best(named, scores, self.model.ranks(rows).flatten(), k=self.k, backend=self.backend)
        slots = torch.where(best.rows >= 0, best.rows - slots[:, :1], PAD_ROW)
        kept = torch.stack([pick(task, slots, -torch.inf) for task in tasks.unbind(1)], 1)
        return Scored(pick(rows, slots, PAD_ROW), best.scores, best.scores, kept, (rows >= 0).sum(1))

    def _stands(
        self, first: torch.Tensor, candidates: torch.Tensor, rows: torch.Tensor, seen: torch.Tensor
    ) -> torch.Tensor:
        """Whether each query of a request saw k eligible items, or all that there are; bool [b].

        Args:
            first: int64 [b] on the host, a query of each request.
            candidates: int64 [b, M].
            rows: int64 [b, M], those that are eligible.
            seen: int64 [b], admitted rows that its queries saw at least; as many of them are taken to be eligible as of
                the candidates.
        """
        lists = self.tile.excluded
        there = self._there(first)
        wanted = self.k if lists is None else self.k + (lists.ends - lists.begins)[there]
        eligible = (rows >= 0).sum(1)
        share = eligible / (candidates >= 0).sum(1).clamp(min=1)
        everything = seen >= self._there(self.admitted[first])
        short = everything & (candidates[:, -1] < 0)
        return torch.where(eligible >= self.k, everything | (seen * share >= wanted), short)

    def _candidates(
        self, queries: Quantized, first: torch.Tensor, probes: torch.Tensor, k0: int
    ) -> tuple[Candidates, torch.Tensor, torch.Tensor]:
        """The k0 best candidates of requests; of each query the admitted rows that it saw, int64 [b * T], and whether a
        GPU could not answer it, bool [b * T].
        """
        parts: list[Requested] = []
        lost = [torch.zeros(probes.shape[0], dtype=torch.bool, device=probes.device)]
        for run in self.runs:
            words, lines = run.admitted.whole(first)
            here, there = moved((queries, probes), run.segment.device)
            parts.append(
                search_requests(
                    here, run.index, there, words, lines, k0=k0, excluded=run.barred(first), backend=self.backend,
                    unsure=lost,
                )
            )  # fmt: skip
        seen = torch.stack([part.seen.to(probes.device) for part in parts]).sum(0)
        found = self._merged([Candidates(part.rows, part.scores) for part in parts], k0)
        return found, seen, torch.stack([self._home(line) for line in lost]).any(0)

    def _looked_at(self, rows: torch.Tensor, probes: torch.Tensor) -> torch.Tensor:
        """Whether each query of a request probed the clusters of its rows int64 [b, M]; bool [b, T, M]."""

        def cluster(number: int, own: torch.Tensor) -> torch.Tensor:
            offsets = self.runs[number].index.clusters.offsets.to(own.device)
            return torch.searchsorted(offsets, own.clamp(min=0), right=True) - 1

        number = torch.arange(self.together, device=probes.device)
        bits = torch.zeros(len(rows), self.model.num_clusters, dtype=torch.int64, device=probes.device)
        own = (1 << number)[:, None].expand(-1, probes.shape[1]).flatten().expand(len(rows), -1)
        bits.scatter_add_(1, probes.view(len(rows), -1), own)
        there = bits.gather(1, self.model.read(rows, cluster, 0))
        return (there[:, None] >> number[:, None]) & 1 > 0


def _reach(found: Candidates, scores: torch.Tensor) -> torch.Tensor:
    """What a row that is no candidate may score, float32 [b]: as the last candidate, and wrong by as much as any is."""
    errors = (scores - found.scores).abs().masked_fill(scores == -torch.inf, 0)
    return found.scores[:, -1] + errors.amax(1)
