"""What becomes of candidates after the search: united, scored for every task, joined by a value model, cut to k.

    T user vectors -> one search of B * T queries -> union (or intersection) per request -> task scores (OverArch, or
    dot products) -> value model, or the best task score -> the k best

A request that brings its own candidates enters after the search. Without a value model the score of an item is its best
task score. Of that score the k best always stand among the k best of some task: an item that is not has k better ones
in the very task that gives it its score. So a plain union is exact whenever the searches are; with an OverArch or a
value model, the `pool` best of each task are scored.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from stcli.errors import InputError
from stcli.filters.program import FilterBatch, moved
from stcli.model.planner import GIVEN, SearchOptions, default_candidates
from stcli.model.requests import Requests, padded
from stcli.model.results import Results, concatenate
from stcli.model.search import SLOTS, Search, Tile
from stcli.ops.keys import EMPTY_KEY, make_keys
from stcli.ops.merge_lists import merge_lists
from stcli.ops.rescore import rescore
from stcli.ops.verify_terms import verify_terms
from stcli.types import PAD_ROW

if TYPE_CHECKING:
    from stcli.model.retriever import Retriever

PAIRS = 1 << 22
"""Scores held at once, candidates times tasks; 12 to 20 bytes each."""


@dataclass(frozen=True)
class ScoringOptions:
    """What happens after the search.

    Attributes:
        combine: "union" of the tasks' results, or "intersection", items that every task found.
        pool: K0, candidates of each task that an OverArch or a value model scores.
    """

    combine: str = "union"
    pool: int | None = None


def default_pool(k: int) -> int:
    """K0 where an OverArch or a value model scores: the order of the search is not that of the result."""
    return max(1000, 4 * k)


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


@dataclass(frozen=True)
class _Scored:
    """The best of b requests: rows int64, scores, ann float32 [b, K]; tasks float32 [b, S, K]; scored int64 [b]."""

    rows: torch.Tensor
    scores: torch.Tensor
    ann: torch.Tensor | None
    tasks: torch.Tensor
    scored: torch.Tensor


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
        self, model: Retriever, options: SearchOptions, scoring: ScoringOptions, tasks: tuple[str, ...] = ()
    ) -> None:
        self.model, self.options, self.scoring, self.tasks = model, options, scoring, tasks
        self.k = options.k
        if model.embeddings is None:
            raise InputError(
                "the artifact holds no embeddings to score candidates with; pack it with --embedding-dtype float16"
            )

    def run(self, requests: Requests) -> Results:
        """Answer requests in tiles that bound the memory; results do not depend on them."""
        parts = []
        start = 0
        while start < len(requests):
            stop = min(start + self._requests_at_once(requests), len(requests))
            batch = requests.filters.batch(start, stop)
            if requests.candidates is None and batch.num_filters > self.model.filters_at_once:
                stop = start + self.model.filters_at_once
                batch = requests.filters.batch(start, stop)
            part = requests.slice(start, stop)
            parts.append(self._rank(part, batch) if part.candidates is not None else self._retrieve(part, batch))
            start = stop
        return concatenate(parts, self.model.ids, self.k)

    def _requests_at_once(self, requests: Requests) -> int:
        num_tasks = requests.users.shape[1]
        queries = min(self.model.tile_queries, SLOTS // min(self.k, self.model.num_items))
        return max(queries // num_tasks, 1)

    # ---- candidates from the index -------------------------------------------------------------------------------

    def _retrieve(self, requests: Requests, filters: FilterBatch) -> Results:
        model = self.model
        count, num_tasks, dim = requests.users.shape
        words, lines = model.admit(filters.to(model.device), self.options.allowed)
        users = model.normalized(requests.users.to(model.device).reshape(-1, dim))
        own = torch.arange(count).repeat_interleave(num_tasks)
        excluded = requests.excluded.to(model.device) if requests.excluded is not None else None
        tile = Tile(
            users,
            replace(filters, filter_of_query=filters.filter_of_query[own]),
            words,
            lines[own.to(lines.device)],
            excluded.take(own.to(model.device)) if excluded is not None else None,
        )
        pool, found = self._pool(tile, num_tasks, self.k)
        scored = self._best_found(pool, users.view(count, num_tasks, dim))
        line = found.work.view(count, num_tasks)
        return self._results(
            requests, scored, line.sum(1), found.routes.view_as(line).amax(1), found.probes.view_as(line).amax(1),
            found.admitted.view_as(line)[:, 0],
        )  # fmt: skip

    def _pool(self, tile: Tile, num_tasks: int, k0: int) -> tuple[_Pool, Results]:
        """The k0 best of each task, united; for an intersection as many as it takes to have k."""
        model, k = self.model, min(self.k, self.model.num_items)
        options = replace(self.options, k=k0, candidates=max(self.options.candidates, default_candidates(k0)))
        found = Search(model, tile, options).run()
        lists = found.rows.view(-1, num_tasks, found.rows.shape[1]).to(model.device)
        scores = found.score_matrix.view_as(lists).to(model.device)
        complete = (lists[:, :, -1] < 0).any(1) | (lists.shape[2] >= model.num_items)
        merged = merge_lists(lists, scores, everywhere=self.scoring.combine == "intersection", backend=model.backend)
        pool = _Pool(merged.rows, merged.scores, complete)
        lacking = torch.nonzero(((pool.rows >= 0).sum(1) < k) & ~complete)[:, 0]
        return (pool, found) if not len(lacking) else self._deepen(pool, found, tile, num_tasks, k0, lacking)

    def _deepen(
        self, pool: _Pool, found: Results, tile: Tile, num_tasks: int, k0: int, lacking: torch.Tensor
    ) -> tuple[_Pool, Results]:
        """Look twice as deep for the requests whose lists have too few items in common."""
        step = max(SLOTS // (2 * k0 * num_tasks), 1)
        for part in lacking.split(step):
            own = (part[:, None] * num_tasks + torch.arange(num_tasks, device=part.device)).flatten()
            more, again = self._pool(_take(tile, own), num_tasks, 2 * k0)
            pool = _Pool(
                _put(pool.rows, part, more.rows, PAD_ROW),
                _put(pool.scores, part, more.scores, -torch.inf),
                pool.complete.index_copy(0, part, more.complete),
            )
            here = own.cpu()
            found.work[here] += again.work
            found.routes[here], found.probes[here] = again.routes, again.probes
        return pool, found

    def _best_found(self, pool: _Pool, users: torch.Tensor) -> _Scored:
        """The k best by search score; tasks score only these."""
        _, rows, scores = self._best(*self._near(pool.rows, pool.scores))
        if users.shape[1] == 1:
            return _Scored(rows, scores, scores, scores[:, None], (pool.rows >= 0).sum(1))
        return _Scored(rows, scores, scores, self._task_scores(users, rows), (pool.rows >= 0).sum(1))

    # ---- candidates that requests bring ----------------------------------------------------------------------------

    def _rank(self, requests: Requests, filters: FilterBatch) -> Results:
        assert requests.candidates is not None
        model = self.model
        users = model.normalized(requests.users.to(model.device).flatten(0, 1)).view(requests.users.shape)
        parts, eligible = [], torch.zeros(len(requests), dtype=torch.int64)
        lengths = requests.candidates.ends - requests.candidates.begins
        order = torch.argsort(lengths, descending=True, stable=True)
        for some in self._pieces(lengths[order]):
            which = order[some]
            rows = self._eligible(padded(requests.candidates.take(which)), which, requests, filters)
            eligible[which] = (rows >= 0).sum(1)
            parts.append(self._score(rows.to(model.device), users[which.to(model.device)]))
        names = ("rows", "scores", "tasks", "scored")
        joined = {name: _joined([getattr(part, name) for part in parts], order) for name in names}
        scored = _Scored(**joined, ann=None)
        return self._results(
            requests, scored, lengths, torch.full_like(lengths, GIVEN), torch.zeros_like(lengths), eligible
        )

    def _pieces(self, lengths: torch.Tensor) -> Iterator[slice]:
        """Slices of requests with descending numbers of candidates that bound the scores held at once."""
        start, sizes = 0, lengths.tolist()
        while start < len(sizes):
            step = max(PAIRS // (max(sizes[start], 1) * (len(self.tasks) + 2)), 1)
            yield slice(start, start + step)
            start += step

    def _eligible(
        self, rows: torch.Tensor, which: torch.Tensor, requests: Requests, filters: FilterBatch
    ) -> torch.Tensor:
        """Candidates int64 [b, M] on the CPU, with -1 for those that their request must not get."""
        kept = rows >= 0
        own = filters.filter_of_query[which]
        if filters.terms is not None and bool((own >= 0).any()):
            place = self.model.terms.values.device
            program = moved(filters.terms, place)
            kept &= verify_terms(self.model.terms, program, rows.to(place), own.to(place)).cpu()
        allowed = self.options.allowed
        if allowed is not None:
            kept &= (allowed.cpu()[rows.clamp(min=0) >> 6] >> (rows & 63)) & 1 > 0
        if requests.excluded is not None:
            line = torch.arange(len(which))
            barred = padded(requests.excluded.take(which))
            kept &= ~torch.isin(rows + (line[:, None] << 32), (barred + (line[:, None] << 32))[barred >= 0])
        return torch.where(kept, rows, PAD_ROW)

    # ---- scores ------------------------------------------------------------------------------------------------------

    def _score(self, rows: torch.Tensor, users: torch.Tensor, ann: torch.Tensor | None = None) -> _Scored:
        """Score candidates int64 [b, M] for each task and keep the k best."""
        tasks = self._task_scores(users, rows)
        order, best, scores = self._best(rows, tasks.amax(1))
        chosen = tasks.gather(2, order[:, None].expand(-1, tasks.shape[1], -1))
        return _Scored(
            best, scores, None if ann is None else ann.gather(1, order), _blank(chosen, best), (rows >= 0).sum(1)
        )

    def _task_scores(self, users: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Scores of candidates [b, M] for each task, float32 [b, S, M]; -inf in empty slots."""
        embeddings = self.model.embeddings
        assert embeddings is not None
        place = embeddings.values.device
        rows = rows.to(place)
        scores = [
            rescore(users[:, task].contiguous().to(place), embeddings, rows, backend=self.model.backend)
            for task in range(users.shape[1])
        ]
        return torch.stack(scores, 1).to(users.device)

    def _near(self, rows: torch.Tensor, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The slots of each line whose score is not below the k-th best, ties included, moved together."""
        if rows.shape[1] <= self.k:
            return rows, scores
        last = torch.topk(scores, self.k, dim=1).values[:, -1:]
        near = (scores >= last) & (rows >= 0)
        counts = near.sum(1)
        inside = torch.arange(int(counts.max()) if len(rows) else 0, device=rows.device) < counts[:, None]
        few = torch.full(inside.shape, PAD_ROW, device=rows.device)
        values = torch.full(inside.shape, -torch.inf, device=rows.device)
        few[inside], values[inside] = rows[near], scores[near]
        return few, values

    def _best(self, rows: torch.Tensor, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The k best slots of each line by score, then item id: slots, rows and scores [b, K]."""
        rank = self.model.get_buffer("id_rank")[rows.clamp(min=0)]
        keys = torch.where(rows >= 0, make_keys(scores, rank), EMPTY_KEY)
        width = min(self.k, self.model.num_items)
        order = torch.topk(keys, min(width, keys.shape[1]), dim=1).indices
        rows, scores = rows.gather(1, order), scores.gather(1, order)
        if order.shape[1] < width:
            more = (0, width - order.shape[1])
            rows = torch.nn.functional.pad(rows, more, value=PAD_ROW)
            scores = torch.nn.functional.pad(scores, more, value=-torch.inf)
            order = torch.nn.functional.pad(order, more)
        return order, rows, scores.masked_fill(rows < 0, -torch.inf)

    def _results(
        self, requests: Requests, scored: _Scored, work: torch.Tensor, routes: torch.Tensor, probes: torch.Tensor,
        admitted: torch.Tensor,
    ) -> Results:  # fmt: skip
        return Results(
            scored.rows.cpu(), scored.scores.cpu(), (scored.rows >= 0).sum(1).cpu(), work, routes, probes, admitted,
            self.model.ids, None if scored.ann is None else scored.ann.cpu(), scored.tasks.cpu(), self.tasks,
            requests.missing, scored.scored.cpu(),
        )  # fmt: skip


def _blank(tasks: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Task scores [b, S, K] with -inf where there is no row."""
    return tasks.masked_fill((rows < 0)[:, None], -torch.inf)


def _joined(parts: list[torch.Tensor], order: torch.Tensor) -> torch.Tensor:
    """Pieces of lines that were taken in `order`, back in their own order."""
    whole = torch.cat(parts)
    return torch.empty_like(whole).index_copy_(0, order.to(whole.device), whole)


def _put(old: torch.Tensor, lines: torch.Tensor, new: torch.Tensor, empty: float) -> torch.Tensor:
    """`old` with some lines replaced by wider ones; the others are filled up."""
    wide = torch.nn.functional.pad(old, (0, max(new.shape[1] - old.shape[1], 0)), value=empty)
    wide[lines] = empty
    wide[lines, : new.shape[1]] = new
    return wide


def _take(tile: Tile, queries: torch.Tensor) -> Tile:
    """Some queries of a tile, int64 [b]."""
    return Tile(
        tile.vectors[queries],
        replace(tile.filters, filter_of_query=tile.filters.filter_of_query[queries.cpu()]),
        tile.words,
        tile.line_of_query[queries],
        None if tile.excluded is None else tile.excluded.take(queries),
    )
