"""Clocks for the search: one batch, and the share of each operation in it."""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from stcli.filters.program import Planner
from stcli.filters.source import GivenFilters
from stcli.filters.tree import Node
from stcli.model import admitted, corpus, search, segment, segment_search
from stcli.model.planner import SearchOptions
from stcli.model.results import Results, concatenate
from stcli.model.retriever import Retriever

PLANNING, OTHER = "plan filters", "everything else"


def run_batches(
    model: Retriever,
    vectors: torch.Tensor,
    filters: Sequence[str | Node | None],
    options: SearchOptions,
    batch_size: int,
) -> tuple[Results, list[float]]:
    """Search queries in batches; the results, and the seconds of each batch.

    A batch is timed from decoded queries and filter texts to item ids and scores in memory.
    """
    parts, seconds = [], []
    for start in range(0, len(vectors), batch_size):
        part = slice(start, start + batch_size)
        begin = time.perf_counter()
        results = model.search(vectors[part], GivenFilters(model.planner, filters[part]), options)
        results.flat_ids()
        seconds.append(time.perf_counter() - begin)
        parts.append(results)
    return concatenate(parts, model.ids, options.k), seconds


def forget_plans(model: Retriever) -> None:
    """Make the model plan its filters anew, as it must for queries that it has not seen."""
    model.forget_plans()


@contextmanager
def stage_seconds(model: Retriever) -> Iterator[dict[str, float]]:
    """Seconds that each operation takes while a block runs, by its name, and those left over.

    For the time of the block, the operations that the model calls are replaced by ones that look at the clock before
    and after. On a GPU that means waiting for each, so the sum is more than an undisturbed run takes.
    """
    spent: dict[str, float] = {}
    on_gpu = model.device.type == "cuda"
    undo: list[tuple[Any, str, Any]] = []

    def clocked(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            result = function(*args, **kwargs)
            if on_gpu:
                torch.cuda.synchronize(model.device)
            spent[name] = spent.get(name, 0.0) + time.perf_counter() - begin
            return result

        return call

    def replace(owner: Any, name: str, label: str) -> None:
        original = getattr(owner, name)
        undo.append((owner, name, original))
        setattr(owner, name, clocked(label, original))

    for module in (admitted, corpus, search, segment, segment_search):
        for name, value in list(vars(module).items()):
            if inspect.isfunction(value) and value.__module__.startswith("stcli.ops."):
                replace(module, name, name)
    replace(Planner, "batch", PLANNING)
    begin = time.perf_counter()
    try:
        yield spent
    finally:
        for owner, name, original in undo:
            setattr(owner, name, original)
    spent[OTHER] = max(time.perf_counter() - begin - sum(spent.values()), 0.0)
