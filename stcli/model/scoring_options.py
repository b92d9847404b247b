"""What a request is scored with after the search, and what that asks of the search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from stcli.errors import InputError, nearest
from stcli.formulas.value_model import ValueModel
from stcli.model.corpus import Corpus
from stcli.model.rules import Rules

CALIBRATED_POOL = 1000
"""Most candidates that a calibration looks for: each sample query is searched for as many, exactly."""


@dataclass(frozen=True)
class ScoringOptions:
    """What happens after the search.

    Attributes:
        combine: "union" of the tasks' results, or "intersection", items that every task found.
        pool: K0, candidates of each task that an OverArch or a value model scores; None: `default_pool` of k.
        overarch: score with the OverArch of the artifact, if it has one; otherwise with dot products.
        values: value models that requests may choose from by number.
        columns: what they read of the items, float32 or bool [N], by column.
        rules: caps on groups of items, or None.
    """

    combine: str = "union"
    pool: int | None = None
    overarch: bool = True
    values: tuple[ValueModel, ...] = ()
    columns: Mapping[str, torch.Tensor] = field(default_factory=dict)
    rules: Rules | None = None


def scored_tasks(model: Corpus, scoring: ScoringOptions, tasks: tuple[str, ...]) -> tuple[str, ...]:
    """The tasks that results are scored for: those of the user vectors, or for one without a name all of the OverArch.

    Raises:
        InputError: the OverArch does not have one of them.
    """
    if model.overarch is None or not scoring.overarch:
        return tasks
    known = model.overarch.tasks
    for task in tasks:
        if task not in known:
            raise InputError(f"task {task!r}: the artifact's OverArch has no such task; {nearest(task, list(known))}")
    return tasks or known


def needs_scoring(model: Corpus, scoring: ScoringOptions, tasks: tuple[str, ...]) -> bool:
    """Whether the results of a search are not yet those of the request."""
    learned = scoring.overarch and model.overarch is not None
    return bool(tasks) or learned or bool(scoring.values) or scoring.rules is not None


def calibrated_k(model: Corpus, k: int, scoring: ScoringOptions) -> int:
    """The k to calibrate the search for: as many of the pool as a sample can be searched for exactly at little cost."""
    if scoring.values or (scoring.overarch and model.overarch is not None):
        k = max(k, min(scoring.pool or default_pool(k), CALIBRATED_POOL))
    return min(k, model.num_items)


def default_pool(k: int) -> int:
    """K0 where an OverArch or a value model scores: the order of the search is not that of the result."""
    return max(1000, 4 * k)
