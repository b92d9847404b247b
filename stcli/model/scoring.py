"""Requests from user vectors to results: candidates searched or given, united, scored, cut to k, refilled.

    T user vectors -> one search of B * T queries -> union (or intersection) per request -> task scores (OverArch, or
    dot products) -> value model, or the best task score -> rules, with more candidates where they leave too few -> k

A request that brings its own candidates enters after the search. Without a value model the score of an item is its best
task score. With dot products, the k best of that score always stand among the k best of some task: an item that does
not has k better ones in the very task that gives it its score. So a plain union is exact whenever the searches are;
with an OverArch or a value model, the `pool` best of each task are scored.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from stcli.errors import InputError
from stcli.filters.program import FilterBatch
from stcli.model.corpus import Corpus, Words
from stcli.model.eligibility import all_words
from stcli.model.joint import Answer, JointSearch, queries_of
from stcli.model.planner import GIVEN, SearchOptions, default_candidates
from stcli.model.requests import Requests, padded
from stcli.model.results import Results, concatenate
from stcli.model.scorer import PAIRS, SCORED, Batch, Scored, Scorer
from stcli.model.scoring_options import ScoringOptions, default_pool
from stcli.model.search import SLOTS, Search, Tile
from stcli.model.slots import in_order, put
from stcli.model.tiles import filters_at_once, make_tile
from stcli.ops.merge_lists import merge_lists
from stcli.types import PAD_ROW, moved


@dataclass(frozen=True)
class _Pool:
    """The candidates of b requests.

    Attributes:
        rows: int64 [b, M], -1 in empty slots, which stand anywhere.
        scores: float32 [b, M], best search score.
        complete: bool [b], no other item is eligible.
    """

    rows: torch.Tensor
    scores: torch.Tensor
    complete: torch.Tensor


class Scoring:
    """Answers requests of one or several tasks.

    Args:
        model: the packed model.
        options: how to search.
        scoring: what happens after it.
        tasks: names of the user vectors that requests bring; () for one without a name.

    Raises:
        InputError: the artifact cannot score these tasks.
    """

    def __init__(
        self, model: Corpus, options: SearchOptions, scoring: ScoringOptions, tasks: tuple[str, ...] = ()
    ) -> None:
        self.model, self.options, self.scoring = model, options, scoring
        if len(tasks) > 1:  # a filter of so many searches is evaluated once, on all rows
            self.options = replace(options, filter_scope="all")
        self.k = options.k
        self.scorer = Scorer(model, options.k, scoring, tasks)
        self.tasks, self.rules = self.scorer.tasks, self.scorer.rules
        self.depth = self.k
        if self.scorer.learned:
            self.depth = max(scoring.pool or default_pool(self.k), self.k)
        elif self.rules is not None:
            self.depth = options.candidates
        if not model.has_embeddings:
            raise InputError(
                "the artifact holds no embeddings to score candidates with; pack it with --embedding-dtype float16"
            )

    def run(self, requests: Requests) -> Results:
        """Answer requests in tiles that bound the memory; results do not depend on them."""
        parts = []
        start = 0
        while start < len(requests):
            stop = min(start + self._requests_at_once(requests), len(requests))
            ranked = requests.candidates is not None  # needs no words
            most = None if ranked else filters_at_once(self.model, self.options)
            for count, batch in self.model.batches(requests.filters, start, stop, most):
                part = requests.slice(start, start + count)
                parts.append(self._rank(part, batch) if ranked else self._retrieve(part, batch))
                start += count
        return concatenate(parts, self.model.ids, self.k)

    def _requests_at_once(self, requests: Requests) -> int:
        num_tasks = requests.users.shape[1]
        queries = min(self.model.tile_queries, SLOTS // min(self.depth, self.model.num_items))
        return max(queries // num_tasks, 1)

    # ---- candidates from the index -------------------------------------------------------------------------------

    def _retrieve(self, requests: Requests, filters: tuple[FilterBatch, ...]) -> Results:
        model = self.model
        count, num_tasks, dim = requests.users.shape
        users = model.normalized(moved(requests.users, model.device).reshape(-1, dim))
        excluded = requests.excluded.to(model.device) if requests.excluded is not None else None
        tile = make_tile(model, users, filters, self.options, excluded, num_tasks)
        batch = Batch(requests, users.view(count, num_tasks, dim))
        best_dots = self.scoring.combine == "union" and not self.scorer.learned and self.rules is None
        answers = self._joint(tile, batch) if best_dots and num_tasks > 1 else [self._each(tile, batch)]
        answer = Answer.joined(answers)
        return self._results(
            requests, answer.scored, answer.work, answer.routes, answer.probes, answer.admitted, answer.estimates
        )

    def _joint(self, tile: Tile, batch: Batch) -> list[Answer]:
        """The best of all tasks by dot products: one search a request, or one a task where that falls short."""
        search = JointSearch(self.model, tile, self.options, batch.users.shape[1])
        answers = search.answers()
        left = torch.ones(len(batch.users), dtype=torch.bool)
        for answer in answers:
            left[answer.requests] = False
        if bool(left.all()):
            return [self._each(tile, batch)]
        if bool(left.any()):
            answers.append(self._each(tile, batch, torch.nonzero(left)[:, 0]))
        return answers

    def _each(self, tile: Tile, batch: Batch, which: torch.Tensor | None = None) -> Answer:
        """One search of each task, for some of the requests, int64 [b], or all."""
        num_tasks = batch.users.shape[1]
        if which is None:
            which = torch.arange(len(batch.users))
        else:
            tile, batch = tile.take(queries_of(which, num_tasks)), batch.take(which)
        pool, found = self._pool(tile, num_tasks, self.depth)
        scored = self.scorer.score(pool.rows, pool.scores, batch)
        if self.rules is not None:
            self._refill(scored, pool, tile, batch)
        assert found.estimates is not None
        effort = (found.work, found.routes, found.probes, found.admitted, found.estimates)
        work, routes, probes, admitted, estimates = (each.view(-1, num_tasks) for each in effort)
        return Answer(which, scored, work.sum(1), routes.amax(1), probes.amax(1), admitted[:, 0], estimates[:, 0])

    def _pool(self, tile: Tile, num_tasks: int, k0: int) -> tuple[_Pool, Results]:
        """The k0 best of each task, united; for an intersection as many as it takes to have k."""
        model, k = self.model, min(self.k, self.model.num_items)
        options = replace(self.options, k=k0, candidates=max(self.options.candidates, default_candidates(k0)))
        found = Search(model, tile, options).run()
        shape = (-1, num_tasks, found.rows.shape[1])
        lists, scores = moved((found.rows.view(shape), found.score_matrix.view(shape)), model.device)
        complete = (lists[:, :, -1] < 0).any(1) | (lists.shape[2] >= model.num_items)
        united = self.scoring.combine == "union"
        merged = merge_lists(lists, scores, everywhere=not united, backend=model.backend)
        pool = _Pool(merged.rows, merged.scores, complete)
        if united and num_tasks > 1 and self.rules is not None and not self.scorer.learned:
            pool = _sure(pool, scores[:, :, -1].amax(1))
        if united and k0 >= k:  # of full lists it has k, and of others there is no more
            return pool, found
        lacking = torch.nonzero(((pool.rows >= 0).sum(1) < k) & ~complete)[:, 0]
        return (pool, found) if not len(lacking) else self._deepen(pool, found, tile, num_tasks, k0, lacking)

    def _deepen(
        self, pool: _Pool, found: Results, tile: Tile, num_tasks: int, k0: int, lacking: torch.Tensor
    ) -> tuple[_Pool, Results]:
        """Look twice as deep for the requests whose lists have too few items in common."""
        step = max(SLOTS // (2 * k0 * num_tasks), 1)
        for part in lacking.split(step):
            own = queries_of(part, num_tasks)
            more, again = self._pool(tile.take(own), num_tasks, 2 * k0)
            pool = _Pool(
                put(pool.rows, part, more.rows, PAD_ROW),
                put(pool.scores, part, more.scores, -torch.inf),
                pool.complete.index_copy(0, part, more.complete),
            )
            here = own.cpu()
            found.work[here] += again.work
            found.routes[here], found.probes[here] = again.routes, again.probes
        return pool, found

    # ---- rules that leave too few ----------------------------------------------------------------------------------

    def _refill(self, scored: Scored, pool: _Pool, tile: Tile, batch: Batch) -> None:
        """Find more candidates for requests that the rules left short, until each has k or nothing more can be had.

        Items of groups that are full, and those found before, are barred from the next search, so that it finds what
        may still be taken, however many items a full group has.
        """
        k, num_tasks = min(self.k, self.model.num_items), batch.users.shape[1]
        lacking = torch.nonzero(((scored.rows >= 0).sum(1) < k) & ~pool.complete)[:, 0]
        step = max(min(self.model.filters_at_once, SLOTS // (4 * self.depth * num_tasks)), 1)
        for here in lacking.split(step):
            rows, ann = pool.rows[here], pool.scores[here]
            while len(here):
                own = queries_of(here, num_tasks)
                words = self._open_words(tile, here * num_tasks, rows, scored.rows[here])
                line = torch.arange(len(here), device=here.device).repeat_interleave(num_tasks)
                some = tile.take(own)
                admitted = tuple(
                    replace(part, words=own_words, line_of_query=line.to(own_words.device))
                    for part, own_words in zip(some.admitted, words, strict=True)
                )
                again = replace(some, admitted=admitted, filtered=torch.ones_like(some.filtered))
                more, _ = self._pool(again, num_tasks, self.depth)
                rows, ann = torch.cat([rows, more.rows], 1), torch.cat([ann, more.scores], 1)
                better = self.scorer.score(rows, ann, batch.take(here))
                for name in ("rows", "scores", "ann", "tasks", "scored"):
                    getattr(scored, name)[here] = getattr(better, name)
                going = ((better.rows >= 0).sum(1) < k) & (more.rows >= 0).any(1)
                if not self.scorer.learned:  # what comes now scores less than all before, so full groups stay full
                    going &= ~more.complete
                here, rows, ann = here[going], rows[going], ann[going]

    def _open_words(self, tile: Tile, lines: torch.Tensor, seen: torch.Tensor, taken: torch.Tensor) -> Words:
        """Words int64 [b, W] of the rows that requests may still get: admitted, not seen, of no group that is full.

        Args:
            tile: with the words of the filters.
            lines: int64 [b], a query of each request in the tile.
            seen: int64 [b, M], candidates found before, -1 in empty slots.
            taken: int64 [b, K], those among the results.
        """
        assert self.rules is not None
        model, device = self.model, self.model.device
        bits, every = torch.arange(64, device=device), [words.to(device) for words in all_words(model)]
        opened = tuple(torch.empty(len(lines), len(words), dtype=torch.int64, device=device) for words in every)
        for number in range(len(lines)):
            barred = torch.zeros(model.segments[-1].end, dtype=torch.bool, device=device)
            barred[seen[number][seen[number] >= 0]] = True
            rows = taken[number][taken[number] >= 0]
            for groups, limit in zip(self.rules.groups, self.rules.limits.tolist(), strict=True):
                codes, counts = groups[rows].unique(return_counts=True)
                full = torch.zeros(int(groups.max()) + 2, dtype=torch.bool, device=device)
                full[codes[(counts >= limit) & (codes >= 0)].long()] = True
                barred |= full[groups]  # OWN_GROUP, -1, is the last place, never full
            for segment, admitted, whole, words in zip(model.segments, tile.admitted, every, opened, strict=True):
                own_words, own_lines = admitted.whole(lines[number : number + 1])
                base = whole if own_words is None or own_lines[0] < 0 else own_words[own_lines[0]].to(device)
                own = barred[segment.base : segment.end]
                own = torch.nn.functional.pad(own, (0, 64 * segment.num_words - len(own)))
                words[number] = base & ~(own.view(-1, 64).long() << bits).sum(1)
        return tuple(words.to(segment.device) for words, segment in zip(opened, model.segments, strict=True))

    # ---- candidates that requests bring ----------------------------------------------------------------------------

    def _rank(self, requests: Requests, filters: tuple[FilterBatch, ...]) -> Results:
        assert requests.candidates is not None
        model = self.model
        users = model.normalized(moved(requests.users, model.device).flatten(0, 1)).view(requests.users.shape)
        batch = Batch(requests, users)
        parts, eligible = [], torch.zeros(len(requests), dtype=torch.int64)
        lengths = requests.candidates.ends - requests.candidates.begins
        order = torch.argsort(lengths, descending=True, stable=True)
        for some in self._pieces(lengths[order]):
            which = order[some]
            rows = self._eligible(padded(requests.candidates.take(which)), which, requests, filters)
            eligible[which] = (rows >= 0).sum(1)
            parts.append(self.scorer.score(moved(rows, model.device), None, batch.take(which)))
        joined = {name: in_order([getattr(part, name) for part in parts], order) for name in SCORED}
        scored = Scored(**joined, ann=None)
        return self._results(
            requests, scored, lengths, torch.full_like(lengths, GIVEN), torch.zeros_like(lengths), eligible
        )

    def _pieces(self, lengths: torch.Tensor) -> Iterator[slice]:
        """Slices of requests with descending numbers of candidates that bound the scores held at once."""
        start, sizes = 0, lengths.tolist()
        while start < len(sizes):
            step = max(PAIRS // max(sizes[start], 1), 1)
            yield slice(start, start + step)
            start += step

    def _eligible(
        self, rows: torch.Tensor, which: torch.Tensor, requests: Requests, filters: tuple[FilterBatch, ...]
    ) -> torch.Tensor:
        """Candidates int64 [b, M] on the CPU, with -1 for those that their request must not get."""
        allowed = self.options.allowed
        kept = self.model.verify(filters, [batch.filter_of_query[which] for batch in filters], rows)
        if allowed is not None:

            def is_allowed(number: int, own: torch.Tensor) -> torch.Tensor:
                words = allowed[number].cpu()
                return (words[own.clamp(min=0) >> 6] >> (own & 63)) & 1 > 0

            kept &= self.model.read(rows, is_allowed, False)
        if requests.excluded is not None:
            line = torch.arange(len(which))
            barred = padded(requests.excluded.take(which))
            kept &= ~torch.isin(rows + (line[:, None] << 32), (barred + (line[:, None] << 32))[barred >= 0])
        return torch.where(kept, rows, PAD_ROW)

    def _results(
        self, requests: Requests, scored: Scored, work: torch.Tensor, routes: torch.Tensor, probes: torch.Tensor,
        admitted: torch.Tensor, estimates: torch.Tensor | None = None,
    ) -> Results:  # fmt: skip
        return Results(
            scored.rows.cpu(), scored.scores.cpu(), (scored.rows >= 0).sum(1).cpu(), work, routes, probes, admitted,
            self.model.ids, None if scored.ann is None else scored.ann.cpu(), scored.tasks.cpu(), self.tasks,
            requests.missing, scored.scored.cpu(), estimates,
        )  # fmt: skip


def _sure(pool: _Pool, last: torch.Tensor) -> _Pool:
    """Only the candidates whose place in the order of best task scores is known.

    What a task did not find scores at most as much for it as the last that it found, and what scores more than every
    task's last one, float32 [b], has been found by the task that it scores best for.
    """
    sure = pool.complete[:, None] | (pool.scores >= last[:, None])
    return _Pool(pool.rows.masked_fill(~sure, PAD_ROW), pool.scores.masked_fill(~sure, -torch.inf), pool.complete)
