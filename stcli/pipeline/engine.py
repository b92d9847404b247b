"""The engine of `retrieve`: an iterator of query batches in, an iterator of result batches out.

Whoever has record batches can feed it: the command, a worker process, Ray or Spark.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from stcli.errors import InputError, nearest
from stcli.model.ahead import Arrival, Upload, plan_ahead, search_stream, searches_at_once
from stcli.model.planner import ROUTES, SearchOptions
from stcli.model.results import Results, without
from stcli.model.retriever import Retriever
from stcli.model.scoring import Scoring
from stcli.model.scoring_options import ScoringOptions, calibrated_k, needs_scoring, scored_tasks
from stcli.pipeline.columns import KeptColumns
from stcli.pipeline.prefetch import in_turn, prefetch
from stcli.pipeline.queries import QueryBatch, QueryReader
from stcli.storage.columns import BadRows

SCORE_TYPES = {"float32": pa.float32(), "float16": pa.float16()}

EXPLAINED = ("route", "probes", "estimated", "admitted", "items_scored")
"""Columns that `explain` adds."""


@dataclass
class Counts:
    """What a run did, added up over its batches."""

    queries: int = 0
    results: int = 0
    short: int = 0
    rejected: int = 0
    items_scored: int = 0
    unknown_values: int = 0
    unknown_excluded: int = 0
    missing: int = 0
    unknown_events: int = 0

    def add(self, other: Counts) -> None:
        """Add the counts of another batch or part."""
        for name in self.__dataclass_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass(frozen=True)
class _Ready:
    """A batch that only has to be searched.

    Attributes:
        row: of the table, where it starts.
        batch: as it was read.
        queries: its filters are planned, and what the search reads of it is on the device.
        unknown_values: literals of the filters that no item has.
        first_unknown: one of them as text, or None.
        arrival: of what was sent to the device.
    """

    row: int
    batch: pa.RecordBatch
    queries: QueryBatch
    unknown_values: int
    first_unknown: str | None
    arrival: Arrival


@dataclass
class Engine:
    """Turns batches of query rows into batches of result rows, one for one and in order.

    Attributes:
        reader: of the query rows.
        options: how to search.
        query_schema: of the batches that will come.
        columns: query columns copied to the output.
        item_columns: kept item columns, given for each result.
        score_type: Arrow type of scores, or None to leave them out.
        min_score: results below are dropped, or None.
        explain: add how each query was searched.
        explode: one row a result instead of one a query; a query without results has one with nulls.
        scoring: what happens after the search, for requests of several tasks or with candidates.
        calibrated_k: k to calibrate the search for.
        reject: called with (table row of the batch, its bad rows, its ids).
        first_unknown: a comparison with a value that no item has, if a filter had one.
    """

    reader: QueryReader
    options: SearchOptions
    query_schema: pa.Schema
    columns: Sequence[str]
    item_columns: Sequence[str]
    score_type: pa.DataType | None
    min_score: float | None
    explain: bool
    explode: bool
    scoring: ScoringOptions
    reject: Callable[[int, BadRows, pa.Array], None]
    counts: Counts = field(default_factory=Counts)
    first_unknown: str | None = None
    model: Retriever = field(init=False)
    kept: KeptColumns = field(init=False)
    ranks: bool = field(init=False)
    misses: bool = field(init=False)
    id_name: str = field(init=False)
    plain: bool = field(init=False)
    tasks: tuple[str, ...] = field(init=False)
    calibrated_k: int = field(init=False)

    def __post_init__(self) -> None:
        self.model = self.reader.model
        self.kept = KeptColumns(*self.model.artifacts)
        for name in self.item_columns:
            if name not in self.kept.schema.names:
                raise InputError(
                    f"--item-columns: the artifact keeps no column {name!r}; "
                    f"{nearest(name, self.kept.schema.names)} (build-index --keep-columns)"
                )
        self.ranks = self.reader.candidates_column is not None
        self.misses = self.ranks or self.reader.item_column is not None
        given = self.reader.tasks
        self.plain = not self.ranks and not needs_scoring(self.model, self.scoring, given)
        self.tasks = () if self.plain else scored_tasks(self.model, self.scoring, given)
        self.calibrated_k = calibrated_k(self.model, self.options.k, self.scoring)
        if not self.plain:
            Scoring(self.model, self.options, self.scoring, given)  # says what it lacks before anything is written
        # Where the item table is the query table, the results have the name.
        self.id_name = "query_id" if self.reader.id_column == "item_id" else self.reader.id_column
        taken = [self.id_name, *self.columns, "item_id", "score", "status", *self.item_columns]
        taken += self._score_columns + ["missing"] * self.misses
        taken += EXPLAINED if self.explain else ()
        twice = sorted({name for name in taken if taken.count(name) > 1})
        if twice:
            raise InputError(
                f"the output would have two columns {twice[0]!r}; leave it out of --columns or --item-columns"
            )

    @property
    def _score_columns(self) -> list[str]:
        """Columns of scores beside `score`."""
        if self.plain or self.score_type is None:
            return []
        return [f"task_{task}" for task in self.tasks] + ([] if self.ranks else ["ann_score"])

    @property
    def schema(self) -> pa.Schema:
        """Schema of the result batches."""
        source = self.query_schema
        nest = (lambda kind: kind) if self.explode else pa.list_
        fields = [source.field(self.reader.id_column).with_name(self.id_name), *map(source.field, self.columns)]
        fields.append(pa.field("item_id", nest(pa.string() if self.model.ids.is_string else pa.int64())))
        if self.score_type is not None:
            fields += [pa.field(name, nest(self.score_type)) for name in ("score", *self._score_columns)]
        fields += [pa.field(name, nest(self.kept.schema.field(name).type)) for name in self.item_columns]
        fields.append(pa.field("status", pa.string()))
        if self.misses:
            fields.append(pa.field("missing", pa.int64()))
        if self.explain:
            fields.append(pa.field("route", pa.string()))
            fields += [pa.field(name, pa.int64()) for name in EXPLAINED[1:]]
        return pa.schema(fields)

    def run(self, batches: Iterable[tuple[int, pa.RecordBatch]]) -> Generator[pa.RecordBatch, None, None]:
        """Yield the results of each (table row, batch).

        A batch is read, planned and sent to the device while the ones before it are searched, and written by the caller
        while those after it are: two at once on a GPU, so that it has the other where the host works on one or waits.
        """
        upload = Upload()
        ready = prefetch(self._prepare(row, batch, upload) for row, batch in batches)
        for batch, results in in_turn(self._search, ready, searches_at_once(self.model)):
            yield self._answer(batch, results)

    def _prepare(self, row: int, batch: pa.RecordBatch, upload: Upload) -> _Ready:
        queries = self.reader.read(batch)
        requests, lists, place = queries.requests, queries.lists, self.model.device
        unknown = self.model.unknown_values(requests.filters)
        first = self.model.first_unknown(requests.filters) if unknown else None
        filters = plan_ahead(self.model, requests.filters, upload)
        requests = replace(requests, filters=filters, users=upload.send(requests.users, place))
        if self.plain:  # else they are looked up on the host
            lists = upload.send(lists, place)
        return _Ready(row, batch, replace(queries, requests=requests, lists=lists), unknown, first, upload.sent())

    def _search(self, ready: _Ready) -> tuple[_Ready, Results]:
        with search_stream(self.model):
            ready.arrival.wait()
            return ready, self._results(ready.queries)

    def _answer(self, ready: _Ready, results: Results) -> pa.RecordBatch:
        queries = ready.queries
        self.reject(ready.row, queries.bad, queries.ids)
        if queries.no_item is not None:
            results = without(results, torch.from_numpy(queries.no_item))
        self.counts.unknown_values += ready.unknown_values
        self.first_unknown = self.first_unknown or ready.first_unknown
        self.counts.unknown_events += queries.unknown_events
        self.counts.unknown_excluded += queries.lists.unknown if queries.lists else 0
        return self._table(ready.batch, queries, results)

    def _results(self, queries: QueryBatch) -> Results:
        if self.plain:
            requests = queries.requests
            return self.model.search(requests.users[:, 0], requests.filters, self.options, queries.lists)
        return Scoring(self.model, self.options, self.scoring, self.reader.tasks).run(queries.requests)

    def _table(self, batch: pa.RecordBatch, queries: QueryBatch, results: Results) -> pa.RecordBatch:
        usable = queries.usable
        rows, scores = results.rows.numpy(), results.score_matrix.numpy()
        valid = rows >= 0
        most = np.full(len(usable), min(self.options.k, self.model.num_items))
        if queries.limits is not None:
            valid &= np.arange(rows.shape[1]) < queries.limits[:, None]
            most = np.minimum(most, queries.limits)
        missing = np.zeros(batch.num_rows, np.int64)
        if results.missing is not None:
            missing[usable] = results.missing.numpy()
        if self.ranks:
            most = np.minimum(most, results.work.numpy() + missing[usable])
        if self.min_score is not None:
            valid &= scores >= self.min_score
        found = np.zeros(batch.num_rows, np.int64)
        found[usable] = valid.sum(1)
        every = bool(valid.all())  # and then nothing is copied

        def taken(matrix: np.ndarray) -> np.ndarray:
            return matrix.ravel() if every else matrix[valid]

        flat = taken(rows)
        status = np.full(batch.num_rows, "rejected", object)
        status[usable] = np.where(found[usable] < most, "short", "ok")
        self.counts.add(
            Counts(
                queries=batch.num_rows,
                results=len(flat),
                short=int((status == "short").sum()),
                rejected=batch.num_rows - len(usable),
                items_scored=int(results.work.sum()),
                missing=int(missing.sum()),
            )
        )
        lists = {"item_id": self.model.ids.take(flat).cast(pa.string() if self.model.ids.is_string else pa.int64())}
        if self.score_type is not None:
            lists |= {name: self._scores(taken(matrix)) for name, matrix in self._matrices(results).items()}
        for name in self.item_columns:
            lists[name] = self.kept.take(name, flat)
        plain = {
            self.id_name: batch.column(self.reader.id_column),
            **{name: batch.column(name) for name in self.columns},
        } | {
            "status": pa.array(status, pa.string()),
            "missing": pa.array(missing),
        }
        if self.explain:
            plain |= _explained(batch.num_rows, usable, results)
        schema = self.schema
        if self.explode:
            owner, place = _exploded(found)
            arrays = {name: column.take(owner) for name, column in plain.items()}
            arrays |= {name: column.take(place) for name, column in lists.items()}
        else:
            offsets = pa.array(np.concatenate(([0], np.cumsum(found))), pa.int32())
            nested = {name: pa.ListArray.from_arrays(offsets, values) for name, values in lists.items()}
            arrays = {**plain, **nested}
        return pa.RecordBatch.from_arrays(
            [pc.cast(arrays[name], schema.field(name).type) for name in schema.names], schema=schema
        )

    def _matrices(self, results: Results) -> dict[str, np.ndarray]:
        """The score columns, float32 [B, K] each."""
        found = {"score": results.score_matrix.numpy()}
        if results.ann_scores is not None:
            found["ann_score"] = results.ann_scores.numpy()
        if results.task_matrix is not None:
            found |= {f"task_{task}": results.task_matrix[:, n].numpy() for n, task in enumerate(results.tasks)}
        return found

    def _scores(self, values: np.ndarray) -> pa.Array:
        return pa.array(values.astype(np.float16 if self.score_type == pa.float16() else np.float32, copy=False))


def _exploded(found: np.ndarray) -> tuple[pa.Array, pa.Array]:
    """For one row a result: the query of each row, and which result it has; null where a query has none."""
    owner = np.repeat(np.arange(len(found)), np.maximum(found, 1))
    place = np.zeros(len(owner), np.int64)
    empty = found[owner] == 0
    place[~empty] = np.arange(len(owner) - empty.sum())
    return pa.array(owner), pa.array(place, mask=empty)


def _explained(count: int, usable: np.ndarray, results: Results) -> dict[str, pa.Array]:
    def spread(values: np.ndarray) -> pa.Array:
        full = np.zeros(count, np.int64)
        full[usable] = values
        return pa.array(full)

    routes = np.full(count, "", object)
    routes[usable] = np.array(ROUTES, object)[results.routes.numpy()]
    return {
        "route": pa.array(routes, pa.string()),
        "probes": spread(results.probes.numpy()),
        "estimated": spread((results.admitted if results.estimates is None else results.estimates).numpy()),
        "admitted": spread(results.admitted.numpy()),
        "items_scored": spread(results.work.numpy()),
    }
