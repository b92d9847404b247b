"""Scores of candidates: for every task, joined by a value model, and which are the best that the rules allow.

Task scores are of the OverArch, or dot products. Without a value model the score of an item is its best task score.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from stcli.formulas.value_model import ValueModel
from stcli.model.corpus import Corpus
from stcli.model.requests import Requests
from stcli.model.scoring_options import ScoringOptions, scored_tasks
from stcli.model.slots import near, pick
from stcli.ops.keys import EMPTY_KEY, make_keys
from stcli.types import PAD_ROW, moved

PAIRS = 1 << 22
"""Scores held at once, candidates times tasks; 12 to 20 bytes each."""


@dataclass(frozen=True)
class Batch:
    """Some requests, and their user vectors float32 [b, T, D] on the model's device."""

    requests: Requests
    users: torch.Tensor

    def take(self, some: slice | torch.Tensor) -> Batch:
        """Some of them."""
        requests, here = self.requests, some if isinstance(some, slice) else some.cpu()
        values = {name: column[here] for name, column in requests.values.items()}
        models = None if requests.value_models is None else requests.value_models[here]
        users = self.users[some if isinstance(some, slice) else moved(some, self.users.device)]
        return Batch(replace(requests, values=values, value_models=models), users)


@dataclass(frozen=True)
class Scored:
    """The best of b requests: rows int64, scores, ann float32 [b, K]; tasks float32 [b, S, K]; scored int64 [b]."""

    rows: torch.Tensor
    scores: torch.Tensor
    ann: torch.Tensor | None
    tasks: torch.Tensor
    scored: torch.Tensor


SCORED = ("rows", "scores", "tasks", "scored")
"""The fields of `Scored` that are there whatever was scored."""


class Scorer:
    """Scores the candidates of requests.

    Args:
        model: the packed model.
        k: results of a request.
        scoring: what happens after the search.
        tasks: names of the user vectors that requests bring; () for one without a name.

    Raises:
        InputError: the OverArch does not have one of the tasks.
    """

    def __init__(self, model: Corpus, k: int, scoring: ScoringOptions, tasks: tuple[str, ...]) -> None:
        self.model, self.k, self.scoring = model, k, scoring
        self.overarch = model.overarch if scoring.overarch else None
        self.tasks = scored_tasks(model, scoring, tasks)
        self.learned = self.overarch is not None or bool(scoring.values)
        self.rules = scoring.rules.to(model.device) if scoring.rules is not None else None
        self.columns = {name: column.to(model.device) for name, column in scoring.columns.items()}

    def score(self, rows: torch.Tensor, ann: torch.Tensor | None, batch: Batch) -> Scored:
        """Score candidates int64 [b, M] and keep the k best that the rules allow.

        Args:
            rows: int64 [b, M], -1 in empty slots, anywhere.
            ann: float32 [b, M], their best search scores, or None for candidates that requests bring.
            batch: the b requests.
        """
        step = max(PAIRS // max(rows.shape[1] * (max(len(self.tasks), 1) + 3), 1), 1)
        parts = []
        for start in range(0, max(len(rows), 1), step):
            some = slice(start, start + step)
            parts.append(self._score_piece(rows[some], None if ann is None else ann[some], batch.take(some)))
        if len(parts) == 1:
            return parts[0]
        joined = {name: torch.cat([getattr(part, name) for part in parts]) for name in SCORED}
        found = [part.ann for part in parts if part.ann is not None]
        return Scored(**joined, ann=torch.cat(found) if found else None)

    def _score_piece(self, rows: torch.Tensor, ann: torch.Tensor | None, batch: Batch) -> Scored:
        scored = (rows >= 0).sum(1)
        if not self.learned and ann is not None:
            # The search score is the result's: tasks score only what is kept.
            best, scores = self._best_found(rows, ann)
            tasks = scores[:, None] if batch.users.shape[1] == 1 else self._task_scores(batch.users, best)
            return Scored(best, scores, scores, tasks, scored)
        tasks = self._task_scores(batch.users, rows)
        if ann is None and self._reads_ann:
            ann = tasks.amax(1) if self.overarch is None else self._dots(batch.users, rows).amax(1)
        values = self._values(tasks, rows, ann, batch)
        slots = self._best_slots(rows, values)
        return Scored(
            pick(rows, slots, PAD_ROW),
            pick(values, slots, -torch.inf),
            None if ann is None else pick(ann, slots, -torch.inf),
            torch.stack([pick(task, slots, -torch.inf) for task in tasks.unbind(1)], 1),
            scored,
        )

    def _best_found(self, rows: torch.Tensor, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The k best by search score that the rules allow: rows and scores [b, K]."""
        k = min(self.k, self.model.num_items)
        if self.rules is None:
            found = self.model.take_best(*near(rows, scores, k), k)
            return found.rows, found.scores
        found = self.model.take_best(rows, scores, rows.shape[1])
        places = self.rules.choose(found.rows, k, backend=self.model.backend)
        return pick(found.rows, places, PAD_ROW), pick(found.scores, places, -torch.inf)

    def _best_slots(self, rows: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Slots int64 [b, K] of the k best that the rules allow: by score, then item id; -1 at the end."""
        k = min(self.k, self.model.num_items)
        keys = make_keys(scores, self.model.ranks(rows))
        keys = torch.where(rows >= 0, keys, EMPTY_KEY)
        slots = torch.topk(keys, min(k if self.rules is None else keys.shape[1], keys.shape[1]), dim=1).indices
        ordered = rows.gather(1, slots)
        if self.rules is not None:
            return pick(slots, self.rules.choose(ordered, k, backend=self.model.backend), -1)
        return torch.nn.functional.pad(slots.masked_fill(ordered < 0, -1), (0, k - slots.shape[1]), value=-1)

    def _task_scores(self, users: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Scores of candidates [b, M] for each task, float32 [b, S, M]; -inf in empty slots."""
        if self.overarch is None:
            return self._dots(users, rows)
        scores = [
            self._learned(users[:, place if users.shape[1] > 1 else 0], rows, task)
            for place, task in enumerate(self.tasks)
        ]
        return torch.stack(scores, 1)

    def _learned(self, users: torch.Tensor, rows: torch.Tensor, task: str) -> torch.Tensor:
        """Scores of candidates [b, M] by the OverArch for one task, whose user vectors are float32 [b, D]."""

        def score(number: int, own: torch.Tensor) -> torch.Tensor:
            segment = self.model.segments[number]
            assert segment.overarch is not None
            scores: torch.Tensor = segment.overarch(users.to(segment.device), own.to(segment.device), task)
            return scores.to(own.device)

        return self.model.read(rows, score, -torch.inf)

    def _dots(self, users: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Dot products of candidates [b, M] with each user vector, float32 [b, T, M]; -inf in empty slots."""
        count, num_tasks, dim = users.shape
        # The tasks of a request one after another, so that its rows come from the cache for all but the first.
        lines = rows[:, None].expand(-1, num_tasks, -1).reshape(count * num_tasks, rows.shape[1])
        return self.model.rescore(users.reshape(-1, dim), lines).view(count, num_tasks, -1)

    @property
    def _reads_ann(self) -> bool:
        return any("ann_score" in value.names for value in self.scoring.values)

    def _values(self, tasks: torch.Tensor, rows: torch.Tensor, ann: torch.Tensor | None, batch: Batch) -> torch.Tensor:
        """Final scores float32 [b, M]: of the value model of each request, or its best task score."""
        best = tasks.amax(1)
        models = self.scoring.values
        if not models:
            return best
        chosen = batch.requests.value_models
        if chosen is None:
            return self._evaluate(models[0], tasks, rows, ann, batch)
        for number, value in enumerate(models):
            mine = torch.nonzero(chosen == number)[:, 0]
            if len(mine):
                here = moved(mine, rows.device)
                some = None if ann is None else ann[here]
                best[here] = self._evaluate(value, tasks[here], rows[here], some, batch.take(mine))
        return best

    def _evaluate(
        self, value: ValueModel, tasks: torch.Tensor, rows: torch.Tensor, ann: torch.Tensor | None, batch: Batch
    ) -> torch.Tensor:
        given: dict[str, torch.Tensor] = {}
        for name in value.names:
            scope, _, column = name.partition(".")
            if scope == "task":
                given[name] = tasks[:, self.tasks.index(column)]
            elif scope == "item":
                given[name] = self.columns[column][rows.clamp(min=0)]
            elif scope == "query":
                given[name] = moved(batch.requests.values[column], rows.device)[:, None]
            elif ann is not None:
                given[name] = ann
        return value.evaluate(given, rows >= 0)
