"""Reading query rows: embeddings, filters and item lists of a batch, with the rows that cannot be used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from stcli.errors import InputError
from stcli.filters.bind import TemplatePlan
from stcli.filters.source import BoundFilters, FilterSource, GivenFilters
from stcli.filters.template import Template
from stcli.formulas.value_model import ValueModel
from stcli.model.eligibility import Excluded, distinct_rows, excluded_rows, with_own
from stcli.model.program import ProgramTower
from stcli.model.requests import Requests
from stcli.model.retriever import Retriever
from stcli.pipeline.columns import formula_kind, formula_values
from stcli.pipeline.user_tower import UserTower
from stcli.storage.columns import BadRows, embedding_type, id_type, read_embeddings, read_ids
from stcli.storage.parquet import Table
from stcli.types import Lines

TASK_PREFIX = "user_embedding__"
"""Columns of user vectors that are named after a task."""


@dataclass(frozen=True)
class QueryBatch:
    """The usable queries of a record batch.

    Attributes:
        ids: of all rows of the batch.
        bad: the rows that cannot be used.
        usable: int64 [B], the other rows.
        requests: the usable rows.
        lists: items they must not get, or None.
        limits: int64 [B], results that each may get, or None for the k of the run.
        no_item: bool [B], the item that a query names is not in the index, so that it gets nothing; None if the queries
            are no items.
        unknown_events: events of histories whose item is not in the index.
    """

    ids: pa.Array
    bad: BadRows
    usable: np.ndarray
    requests: Requests
    lists: Excluded | None
    limits: np.ndarray | None = None
    unknown_events: int = 0
    no_item: np.ndarray | None = None

    @property
    def vectors(self) -> torch.Tensor:
        """Every user vector as a query of its own, float32 [B * T, D]."""
        return self.requests.users.flatten(0, 1)

    @property
    def filters(self) -> FilterSource:
        """Filters of these queries."""
        filters = self.requests.filters
        return filters if self.requests.users.shape[1] == 1 else filters.take(self._owner)

    @property
    def excluded(self) -> Excluded | None:
        """Items that these queries must not get, or None."""
        return self.lists and Excluded(self.lists.rows.take(torch.from_numpy(self._owner)), self.lists.unknown)

    @property
    def _owner(self) -> np.ndarray:
        """The request of each query."""
        return np.repeat(np.arange(len(self.usable)), self.requests.users.shape[1])


@dataclass
class QueryReader:
    """Reads queries for one model.

    Attributes:
        model: the packed model.
        id_column, embedding_column: columns of every query table.
        filter_column: column of filter texts, or None.
        template: one filter for all queries, its placeholders bound from query columns, or None.
        exclude_column: column with a list of item ids that a query must not get, or None.
        task_columns: column of the user vectors of each task, by its name; empty: `embedding_column` has the only one.
        candidates_column: column with the list of item ids that a request wants ranked, or None for a search.
        k_column: column with the results that a request may get, at most `k`, or None.
        k: results of a request.
        tower: makes the user vectors of other columns, or None where the table has them.
        values: value models that requests may choose from.
        value_model_column: column with the name of the value model of a request, or None for the first one.
        default_value: number of the value model where that column is null, -1 for none.
        item_column: column with the item whose embedding is the query, and which it does not get; or None.
    """

    model: Retriever
    id_column: str
    embedding_column: str
    filter_column: str | None = None
    template: str | None = None
    exclude_column: str | None = None
    task_columns: Mapping[str, str] = field(default_factory=dict)
    candidates_column: str | None = None
    k_column: str | None = None
    k: int = 100
    tower: UserTower | None = None
    values: Sequence[ValueModel] = ()
    value_model_column: str | None = None
    default_value: int = -1
    item_column: str | None = None
    plan: TemplatePlan | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.template is not None:
            self.plan = TemplatePlan(Template(self.template), self.model.planner)

    @property
    def columns(self) -> list[str]:
        """The columns that are read."""
        placeholders: Sequence[str] = self.plan.template.placeholders if self.plan else ()
        named = [
            self.filter_column, self.exclude_column, self.candidates_column, self.k_column, self.value_model_column
        ]  # fmt: skip
        given = [name for name in named if name]
        read = self.tower.columns if self.tower else self.embedding_columns
        read = [*read, self.item_column] if self.item_column else read
        return [self.id_column, *read, *given, *self.value_columns, *placeholders]

    @property
    def value_columns(self) -> dict[str, str]:
        """The columns that value models read, each with its kind."""
        return {column: value.kinds[f"query.{column}"] for value in self.values for column in value.columns("query")}

    @property
    def embedding_columns(self) -> list[str]:
        """The columns of user vectors; none with a tower, or where queries are items."""
        if self.tower or self.item_column:
            return []
        return list(self.task_columns.values()) or [self.embedding_column]

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks; () for one user vector without a name."""
        return self.tower.tasks if self.tower else tuple(self.task_columns)

    @property
    def num_vectors(self) -> int:
        """T, user vectors of a request."""
        return max(len(self.tasks), 1)

    def check(self, table: Table) -> None:
        """Check everything about a query table that its schema tells.

        Raises:
            InputError: empty, or a column is missing or has an unusable type.
        """
        name = table.name
        if table.num_rows == 0:
            raise InputError(f"{name}: has no rows; expected at least one query")
        id_type(table.column_type(self.id_column, "--id-column"), f"{name}: column {self.id_column!r}")
        if self.tower:
            self.tower.check(table)
        for column in self.embedding_columns:
            where = f"{name}: column {column!r}"
            option = "--task-embeddings" if self.task_columns else "--embedding-column"
            _, dim = embedding_type(table.column_type(column, option), where)
            if dim is not None and dim != self.model.query_dim:
                raise InputError(
                    f"{where} has {dim} dimensions, the artifact {self.model.query_dim}; "
                    "use the tower the index was built with, or rebuild the index"
                )
        if self.filter_column:
            kind = table.column_type(self.filter_column, "--filter-column")
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)):
                raise InputError(
                    f"{name}: column {self.filter_column!r} is {kind}; --filter-column expects filter texts"
                )
        lists = {"--exclude-column": self.exclude_column, "--candidates-column": self.candidates_column}
        for option, given in lists.items():
            kind = table.column_type(given, option) if given else pa.list_(pa.int64())
            if not any(test(kind) for test in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)):
                raise InputError(f"{name}: column {given!r} is {kind}; {option} expects a list of item ids")
            if given and not (self._holds_ids(kind.value_type) or pa.types.is_null(kind.value_type)):
                raise InputError(f"{name}: column {given!r} is {kind}; {option} expects item ids, {self._ids_in_words}")
        if self.item_column:
            kind = table.column_type(self.item_column, "--query-item-column")
            if not self._holds_ids(kind):
                raise InputError(
                    f"{name}: column {self.item_column!r} is {kind}; --query-item-column expects item ids, "
                    f"{self._ids_in_words}"
                )
            if not self.model.has_embeddings:
                raise InputError(
                    "the artifact holds no embeddings, so an item cannot be a query; pack it with --embedding-dtype "
                    "float16"
                )
        if self.k_column:
            kind = table.column_type(self.k_column, "--k-column")
            if not pa.types.is_integer(kind):
                raise InputError(f"{name}: column {self.k_column!r} is {kind}; --k-column expects whole numbers")
        for column, wanted in self.value_columns.items():
            found = formula_kind(table.column_type(column, f"query.{column} in a value model"))
            if found != wanted:
                raise InputError(f"{name}: column {column!r} is a {found}; the value model reads it as a {wanted}")
        if self.value_model_column:
            kind = table.column_type(self.value_model_column, "--value-model-column")
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)):
                raise InputError(
                    f"{name}: column {self.value_model_column!r} is {kind}; expected names of value models"
                )
        if self.plan is not None:
            kinds = {name: table.column_type(name, f"${name} in --filter") for name in self.plan.template.placeholders}
            self.plan.read({name: pa.array([], kind) for name, kind in kinds.items()}, [])

    def _holds_ids(self, kind: pa.DataType) -> bool:
        """Whether values of a type can be ids of items."""
        if self.model.ids.is_string:
            return pa.types.is_string(kind) or pa.types.is_large_string(kind)
        return pa.types.is_integer(kind)

    @property
    def _ids_in_words(self) -> str:
        return f"{'strings' if self.model.ids.is_string else 'integers'} as in the item table"

    def read(self, batch: pa.RecordBatch) -> QueryBatch:
        """Read one batch of query rows."""
        bad = BadRows.none(batch.num_rows)
        ids = read_ids(batch.column(self.id_column), bad, self.id_column)
        items, unknown = None, 0
        if self.item_column:
            items = self.model.lookup.rows_of(batch.column(self.item_column))
            users = self.model.vectors_of_items(items)[:, None].numpy()
        elif self.tower:
            users, unknown = self.tower.read(batch, bad)
        else:
            users = self._users(batch, bad)
        limits = self._limits(batch, bad)
        chosen = self._value_models(batch, bad)
        filters = self._filters(batch)
        failed = filters.check()
        if failed:
            mask = np.zeros(batch.num_rows, bool)
            mask[list(failed)] = True
            bad.mark(mask, [str(failed[query]) for query in sorted(failed)])
        usable = np.flatnonzero(~bad.bad)
        if len(usable) < batch.num_rows:
            batch, users, limits = batch.take(pa.array(usable)), users[usable], limits[usable]
            chosen, items = chosen[usable], None if items is None else items[usable]
            filters = filters.take(usable)
        tensor = torch.from_numpy(np.require(users, requirements="W"))  # Arrow's memory is read-only
        candidates, missing = self._candidates(batch)
        lists = self._excluded(batch)
        if items is not None:
            lists = with_own(lists, items)
        excluded = lists.rows if lists is not None else None
        values = {name: formula_values(batch.column(name)) for name in self.value_columns}
        models = torch.from_numpy(chosen) if self.value_model_column else None
        requests = Requests(tensor, filters, self.tasks, excluded, candidates, missing, values, models)
        no_item = None if items is None else items < 0
        return QueryBatch(ids, bad, usable, requests, lists, limits if self.k_column else None, unknown, no_item)

    def _users(self, batch: pa.RecordBatch, bad: BadRows) -> np.ndarray:
        """User vectors of each task, float32 [rows, T, D]."""
        users = np.empty((batch.num_rows, len(self.embedding_columns), self.model.query_dim), np.float32)
        for place, name in enumerate(self.embedding_columns):
            read = read_embeddings(batch.column(name), users.shape[2], np.dtype(np.float32), bad, name)
            if users.shape[1] == 1:
                return read[:, None]
            users[:, place] = read
        return users

    def _value_models(self, batch: pa.RecordBatch, bad: BadRows) -> np.ndarray:
        """Number of the value model of each row, int64 [rows]."""
        if self.value_model_column is None:
            return np.full(batch.num_rows, self.default_value, np.int64)
        column = batch.column(self.value_model_column).cast(pa.string())
        names = pa.array([value.name for value in self.values], pa.string())
        found = pc.fill_null(pc.index_in(column, value_set=names), -1).to_numpy(zero_copy_only=False).astype(np.int64)
        nulls = column.is_null().to_numpy(zero_copy_only=False)
        wrong = (found < 0) & ~nulls
        unknown = column.filter(pa.array(wrong)).to_pylist()
        bad.mark(wrong, [f"there is no value model {name!r} for these tasks" for name in unknown])
        return np.where(nulls, self.default_value, found)

    def _limits(self, batch: pa.RecordBatch, bad: BadRows) -> np.ndarray:
        """Results that each row may get, int64 [rows]."""
        if self.k_column is None:
            return np.full(batch.num_rows, self.k, np.int64)
        limits = pc.fill_null(batch.column(self.k_column), self.k).to_numpy(zero_copy_only=False)
        wrong = (limits < 1) | (limits > self.k)
        bad.mark(
            wrong,
            [f"column {self.k_column!r} is {limit}, outside 1 to --k {self.k}" for limit in limits[wrong].tolist()],
        )
        return limits.astype(np.int64)

    def _filters(self, batch: pa.RecordBatch) -> GivenFilters | BoundFilters:
        given = batch.column(self.filter_column).to_pylist() if self.filter_column else [None] * batch.num_rows
        if self.plan is None:
            return GivenFilters(self.model.planner, given)
        columns = {name: batch.column(name) for name in self.plan.template.placeholders}
        return BoundFilters(self.plan, columns, given)

    def _excluded(self, batch: pa.RecordBatch) -> Excluded | None:
        if self.exclude_column is None:
            return None
        return excluded_rows(self.model, *_lists(batch.column(self.exclude_column)))

    def _candidates(self, batch: pa.RecordBatch) -> tuple[Lines | None, torch.Tensor | None]:
        if self.candidates_column is None:
            return None, None
        rows, missing = distinct_rows(self.model, *_lists(batch.column(self.candidates_column)))
        return rows, torch.from_numpy(missing)


def _lists(column: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """The values of a list column one after another, and the length of each list; null is an empty list."""
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    return column.flatten(), lengths


def user_tower(model: Retriever, table: Table, vectors: Mapping[str, str], embedding_column: str) -> UserTower | None:
    """The tower of the artifact, unless the table has user vectors: those go first."""
    if model.tower is None or vectors or embedding_column in table.schema.names:
        return None
    if isinstance(model.tower, ProgramTower):
        model.tower.load()  # says at once if it must not run
    return UserTower(model, model.tower)


def task_columns(table: Table, given: str | None, embedding_column: str) -> dict[str, str]:
    """The column of each task's user vectors, by name; empty: the table has one user vector a request.

    Args:
        table: of the requests.
        given: `--task-embeddings`: `like=column,share=column`, or None for columns `user_embedding__<task>` where the
            table has no column `embedding_column`.
        embedding_column: of the only user vector.

    Raises:
        InputError: `given` does not have that form.
    """
    if given is None:
        names = [name for name in table.schema.names if name.startswith(TASK_PREFIX)]
        return {} if embedding_column in table.schema.names else {name[len(TASK_PREFIX) :]: name for name in names}
    pairs = [part.partition("=") for part in given.split(",") if part.strip()]
    found = {task.strip(): column.strip() for task, _, column in pairs}
    if not pairs or len(found) < len(pairs) or not all(found) or not all(found.values()):
        raise InputError(
            f"--task-embeddings {given!r}: expected task=column pairs, such as like=like_user,buy=buy_user"
        )
    return found


def sample_queries(reader: QueryReader, table: Table, num_rows: int, count: int, seed: int) -> QueryBatch:
    """Read at most `count` of the first `num_rows` queries, drawn by the seed; unusable ones are left out."""
    rows = np.arange(num_rows)
    if num_rows > count:
        rows = np.sort(np.random.default_rng([seed, 4]).choice(num_rows, count, replace=False))
    picked = []
    for first, batch in table.batches(reader.columns, 1 << 14, 0, num_rows):
        low, high = np.searchsorted(rows, [first, first + batch.num_rows])
        if low < high:
            picked.append(batch.take(pa.array(rows[low:high] - first)))
    return reader.read(pa.Table.from_batches(picked).combine_chunks().to_batches()[0])


def check_version(table: Table, given: str | None, model: Retriever) -> None:
    """Refuse queries that state another embedding version, by option or in their metadata, than the artifact.

    Raises:
        InputError: both state one, and they differ.
    """
    stated = given or (table.schema.metadata or {}).get(b"embedding_version", b"").decode() or None
    ours = model.manifest["embedding_version"]
    if stated is not None and ours is not None and stated != ours:
        raise InputError(
            f"{table.name}: its embeddings are version {stated!r}, the artifact's {ours!r}; "
            "scores between them mean nothing, use queries of the same version"
        )
