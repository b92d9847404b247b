"""Reading query rows: embeddings, filters and exclusions of a batch, with the rows that cannot be used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from stcli.errors import InputError
from stcli.filters.bind import TemplatePlan
from stcli.filters.source import BoundFilters, FilterSource, GivenFilters
from stcli.filters.template import Template
from stcli.model.eligibility import Excluded, excluded_rows
from stcli.model.retriever import Retriever
from stcli.storage.columns import BadRows, embedding_type, id_type, read_embeddings, read_ids
from stcli.storage.parquet import Table


@dataclass(frozen=True)
class QueryBatch:
    """The usable queries of a record batch.

    Attributes:
        ids: of all rows of the batch.
        bad: the rows that cannot be used.
        usable: int64 [B], the other rows.
        vectors: float32 [B, D].
        filters: of the usable rows.
        excluded: items they must not get, or None.
    """

    ids: pa.Array
    bad: BadRows
    usable: np.ndarray
    vectors: torch.Tensor
    filters: FilterSource
    excluded: Excluded | None


@dataclass
class QueryReader:
    """Reads queries for one model.

    Attributes:
        model: the packed model.
        id_column, embedding_column: columns of every query table.
        filter_column: column of filter texts, or None.
        template: one filter for all queries, its placeholders bound from query columns, or None.
        exclude_column: column with a list of item ids that a query must not get, or None.
    """

    model: Retriever
    id_column: str
    embedding_column: str
    filter_column: str | None = None
    template: str | None = None
    exclude_column: str | None = None
    plan: TemplatePlan | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.template is not None:
            self.plan = TemplatePlan(Template(self.template), self.model.planner)

    @property
    def columns(self) -> list[str]:
        """The columns that are read."""
        placeholders: Sequence[str] = self.plan.template.placeholders if self.plan else ()
        named = [self.filter_column, self.exclude_column]
        return [self.id_column, self.embedding_column, *(name for name in named if name), *placeholders]

    def check(self, table: Table) -> None:
        """Check everything about a query table that its schema tells.

        Raises:
            InputError: empty, or a column is missing or has an unusable type.
        """
        name = table.name
        if table.num_rows == 0:
            raise InputError(f"{name}: has no rows; expected at least one query")
        id_type(table.column_type(self.id_column, "--id-column"), f"{name}: column {self.id_column!r}")
        where = f"{name}: column {self.embedding_column!r}"
        _, dim = embedding_type(table.column_type(self.embedding_column, "--embedding-column"), where)
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
        if self.exclude_column:
            kind = table.column_type(self.exclude_column, "--exclude-column")
            if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
                raise InputError(f"{name}: column {self.exclude_column!r} is {kind}; expected a list of item ids")
        if self.plan is not None:
            kinds = {name: table.column_type(name, f"${name} in --filter") for name in self.plan.template.placeholders}
            self.plan.check({name: pa.array([], kind) for name, kind in kinds.items()}, [])

    def read(self, batch: pa.RecordBatch) -> QueryBatch:
        """Read one batch of query rows."""
        bad = BadRows.none(batch.num_rows)
        ids = read_ids(batch.column(self.id_column), bad, self.id_column)
        dim = self.model.query_dim
        column = batch.column(self.embedding_column)
        vectors = read_embeddings(column, dim, np.dtype(np.float32), bad, self.embedding_column)
        texts = self._texts(batch)
        bound = self._bound(batch)
        failed = self.plan.check(bound, texts) if self.plan else self.model.planner.check(texts)
        if failed:
            mask = np.zeros(batch.num_rows, bool)
            mask[list(failed)] = True
            bad.mark(mask, [str(failed[query]) for query in sorted(failed)])
        usable = np.flatnonzero(~bad.bad)
        if len(usable) < batch.num_rows:
            batch, vectors = batch.take(pa.array(usable)), vectors[usable]
            texts = [texts[query] for query in usable.tolist()]
            bound = self._bound(batch)
        filters: FilterSource = GivenFilters(self.model.planner, texts)
        if self.plan is not None:
            filters = BoundFilters(self.plan, bound, texts)
        tensor = torch.from_numpy(np.require(vectors, requirements="W"))  # Arrow's memory is read-only
        return QueryBatch(ids, bad, usable, tensor, filters, self._excluded(batch))

    def _texts(self, batch: pa.RecordBatch) -> list[str | None]:
        if self.filter_column is None:
            return [None] * batch.num_rows
        return batch.column(self.filter_column).to_pylist()

    def _bound(self, batch: pa.RecordBatch) -> dict[str, pa.Array]:
        """The columns that the template's placeholders are bound from."""
        return {name: batch.column(name) for name in self.plan.template.placeholders} if self.plan else {}

    def _excluded(self, batch: pa.RecordBatch) -> Excluded | None:
        if self.exclude_column is None:
            return None
        column = batch.column(self.exclude_column)
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False).astype(np.int64)
        return excluded_rows(self.model, column.flatten(), lengths)


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
