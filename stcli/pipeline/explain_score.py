"""`explain` of a score: what each term of a value model adds for one request and one item."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from stcli.errors import InputError
from stcli.formulas.value_model import ValueModel
from stcli.model.open import open_artifact
from stcli.model.planner import SearchOptions
from stcli.model.requests import Requests
from stcli.model.retriever import Retriever
from stcli.model.scoring import Scoring
from stcli.pipeline.queries import QueryReader, task_columns, user_tower
from stcli.pipeline.scoring import scoring_options
from stcli.storage.columns import BadRows, read_ids
from stcli.storage.parquet import Table, open_table
from stcli.types import Lines

BATCH_ROWS = 1 << 14


def explain_score(
    model: str | Path,
    queries: str | Path,
    query: str,
    item: str,
    *,
    value_model: str | None = None,
    id_column: str = "query_id",
    embedding_column: str = "embedding",
    task_embeddings: str | None = None,
    allow_model_code: bool = False,
) -> dict[str, Any]:
    """Score one item for one request, and tell how.

    Args:
        model: artifact made by `pack_model`.
        queries: Parquet table of requests.
        query: id of a request; the first row that has it is taken. Its filter is not asked.
        item: id of an item.
        value_model: name of a packed value model; None: the best task score.
        id_column, embedding_column, task_embeddings: as in `stcli.config.RetrieveConfig`.
        allow_model_code: see `stcli.open_artifact`.

    Returns:
        The score that `retrieve` gives, the score of each task, the columns that the value model reads, and `parts`:
        the terms of its formula with what each adds, see `ValueModel.parts`.

    Raises:
        InputError: there is no such request, item, value model or column, or the row of the request cannot be used.
    """
    opened = open_artifact(model, allow_model_code=allow_model_code)
    table = open_table(queries)
    vectors = task_columns(table, task_embeddings, embedding_column)
    tower = user_tower(opened, table, vectors, embedding_column)
    tasks = tower.tasks if tower else tuple(vectors)
    named = [] if value_model is None else [value_model]
    scoring = scoring_options(opened, tasks=tasks, value_models=named)
    reader = QueryReader(
        opened, id_column, embedding_column, task_columns=vectors, tower=tower, values=scoring.values, default_value=0
    )
    reader.check(table)
    requests = replace(_request(reader, table, query), candidates=_candidate(opened, item))
    scorer = Scoring(opened, SearchOptions(k=1, candidates=1), scoring, tasks)
    found = scorer.run(requests)
    assert found.task_matrix is not None
    by_task = dict(zip(found.tasks or ("",), found.task_matrix[0, :, 0].tolist(), strict=True))
    told: dict[str, Any] = {
        "command": "explain",
        "query": query,
        "item": item,
        "score": _number(found.score_matrix[0, 0]),
        "tasks": {task: _number(score) for task, score in by_task.items() if task},
    }
    for value in scoring.values:
        given = _values(value, opened, requests, found.rows, by_task, scoring.columns)
        told |= {
            "value_model": value.name,
            "formula": str(value.formula),
            "reads": {name: _number(tensor[0, 0]) for name, tensor in given.items()},
            "parts": [{"term": term, "value": _number(part[0, 0])} for term, part in value.parts(given)],
        }
    return told


def _request(reader: QueryReader, table: Table, query: str) -> Requests:
    """The first row of the table with an id, as a batch of one request."""
    for row, batch in table.batches([reader.id_column], BATCH_ROWS):
        ids = read_ids(batch.column(0), BadRows.none(batch.num_rows), reader.id_column)
        here = np.flatnonzero(pc.equal(ids.cast(pa.string()), query).to_numpy(zero_copy_only=False))
        if not len(here):
            continue
        place = row + int(here[0])
        ((_, line),) = table.batches(reader.columns, 1, place, place + 1)
        read = reader.read(line)
        if len(read.usable) == 0:
            (reason,) = read.bad.reasons.values()
            raise InputError(f"{table.name}: {table.where(place)}: {reason}")
        return read.requests
    raise InputError(f"{table.name}: no row has the id {query!r} in column {reader.id_column!r} (--query)")


def _candidate(model: Retriever, item: str) -> Lines:
    wanted: pa.Array | None = pa.array([item], pa.string())
    if not model.ids.is_string:
        try:
            wanted = pa.array([int(item)], pa.int64())
        except (ValueError, OverflowError):
            wanted = None
    row = -1 if wanted is None else int(model.lookup.rows_of(wanted)[0])
    if row < 0:
        raise InputError(f"--item {item!r}: is no item of the artifact")
    return Lines(torch.tensor([row]), torch.tensor([0]), torch.tensor([1]))


def _values(
    value: ValueModel,
    model: Retriever,
    requests: Requests,
    rows: torch.Tensor,
    by_task: dict[str, float],
    columns: Any,
) -> dict[str, torch.Tensor]:
    """What a value model reads of one request and one item, [1, 1] each."""
    given = {f"task.{task}": torch.tensor([[score]]) for task, score in by_task.items()}
    given |= {f"item.{name}": column.cpu()[rows] for name, column in columns.items()}
    given |= {f"query.{name}": column[:, None] for name, column in requests.values.items()}
    if "ann_score" in value.names:
        users = model.normalized(requests.users[0])
        given["ann_score"] = model.rescore(users, rows.expand(len(users), 1)).amax(0, keepdim=True)
    return {name: given[name] for name in value.names}


def _number(value: torch.Tensor | float) -> float | bool | None:
    """A number for a summary; None for null."""
    number = value.item() if isinstance(value, torch.Tensor) else value
    return None if isinstance(number, float) and math.isnan(number) else number
