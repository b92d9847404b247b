"""Reading the item table once: ids, embeddings and terms go to files, bad rows are set aside."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stcli.config import BuildConfig, Progress
from stcli.errors import InputError
from stcli.index.terms import CollectedTerms, TermCollector
from stcli.storage.columns import (
    BadRows,
    embedding_type,
    feature_kind,
    id_type,
    read_embeddings,
    read_feature,
    read_ids,
    row_norms,
    unit_rows,
    usual_length,
)
from stcli.storage.ids import id_order, repeated
from stcli.storage.parquet import Table
from stcli.storage.quarantine import Quarantine

BATCH_BYTES = 1 << 25  # decoded embeddings of one batch

SMALL_DISTINCT = 256
"""A scalar column with at most so many values among its first SMALL_SAMPLE rows is a feature unasked."""

SMALL_SAMPLE = 1 << 16


@dataclass(frozen=True)
class Staged:
    """The item table as files of the build, in table order without the bad rows.

    Attributes:
        ids: int64 or large_string [N].
        keep: int64 [n], the staged rows that become items, ascending: those without a repeated id.
        embeddings: float16 or float32 [N, D], memory-mapped.
        terms: of every row.
        columns: the kept columns as a memory-mapped Arrow table, or None.
        largest: largest absolute value in any embedding.
        zero_vectors: rows whose embedding is zero.
        dropped_values: nulls inside lists and NaN in lists, which count as no value.
        lengths_differ: embedding norms are not all within 1 % of each other.
    """

    ids: pa.Array
    keep: np.ndarray
    embeddings: np.ndarray
    terms: CollectedTerms
    columns: pa.Table | None
    largest: float
    zero_vectors: int
    dropped_values: int
    lengths_differ: bool


class Vectors(Protocol):
    """Where the embeddings of items come from.

    Attributes:
        columns: of the item table that are read.
        dim: D.
        dtype: in which they are kept, float16 or float32.
    """

    columns: list[str]
    dim: int
    dtype: np.dtype

    def read(self, batch: pa.RecordBatch, bad: BadRows) -> np.ndarray:
        """The embeddings of a batch, dtype [rows, D]; rows without a usable one are marked bad."""


class VectorColumn:
    """Embeddings that stand in a column of the table; reads only as far as the first one.

    Args:
        table: of the items.
        column: its name.

    Raises:
        InputError: no such column, or it holds no embeddings.
    """

    def __init__(self, table: Table, column: str) -> None:
        where = f"{table.name}: column {column!r}"
        self.columns = [column]
        self.dtype, dim = embedding_type(table.column_type(column, "--embedding-column"), where)
        if dim is None:
            for _, batch in table.batches([column], 1024):
                dim = usual_length(batch.column(0))
                if dim is not None:
                    break
        if not dim:
            raise InputError(f"{where} holds no embedding with at least one value")
        self.dim = dim

    def read(self, batch: pa.RecordBatch, bad: BadRows) -> np.ndarray:
        """See `Vectors`."""
        (column,) = self.columns
        return read_embeddings(batch.column(column), self.dim, self.dtype, bad, column)


@dataclass(frozen=True)
class ItemSchema:
    """What the build reads from the item table, checked against the schema.

    Attributes:
        features: name -> (kind, is_list).
        vectors: the embeddings.
        dtype: in which embeddings are kept, float16 or float32.
        ids_are_strings: ids are kept as text.
    """

    features: dict[str, tuple[str, bool]]
    vectors: Vectors
    dtype: np.dtype
    ids_are_strings: bool


def feature_columns(table: Table, config: BuildConfig) -> list[str]:
    """The columns that become features.

    Without `feature_columns` in the options, every other column that can be one, kept ones too. With them, those
    named, and every scalar column with few distinct values, which costs a few bits an item and lets
    a filter name it (not with `small_features=False`).
    """
    taken = {config.id_column, config.embedding_column, *(config.feature_columns or ())}
    free = [field for field in table.schema if field.name not in taken and table.in_every_file(field.name)]
    others = [field.name for field in free if _can_be_feature(field)]
    if config.feature_columns is None:
        return others
    named = list(dict.fromkeys(config.feature_columns))
    return named + (_small(table, others) if config.small_features else [])


def _can_be_feature(field: pa.Field) -> bool:
    if re.fullmatch(r"__index_level_\d+__", field.name):  # the index of a pandas table, numbers of no meaning
        return False
    try:
        feature_kind(field.type, field.name)
    except InputError:
        return False
    return True


def _small(table: Table, columns: list[str]) -> list[str]:
    """The scalar string, integer, boolean and date columns with few distinct values in the first rows."""
    kinds = {name: feature_kind(table.schema.field(name).type, name) for name in columns}
    scalar = [name for name, (kind, is_list) in kinds.items() if not is_list and kind not in ("float", "timestamp")]
    if not scalar:
        return []
    first = [batch for _, batch in table.batches(scalar, SMALL_SAMPLE, stop=SMALL_SAMPLE)]
    sample = pa.Table.from_batches(first)
    return [name for name in scalar if pc.count_distinct(sample[name]).as_py() <= SMALL_DISTINCT]


def check_schema(table: Table, config: BuildConfig, vectors: Vectors | None = None) -> ItemSchema:
    """Check the columns that the build needs.

    Args:
        table: of the items.
        config: options of the build.
        vectors: the embeddings; None: those of the embedding column.

    Raises:
        InputError: a column is missing or has an unusable type, or the table is empty.
    """
    if table.num_rows == 0:
        raise InputError(f"{table.name}: has no rows; expected at least one item")
    name = table.name
    ids = id_type(table.column_type(config.id_column, "--id-column"), f"{name}: column {config.id_column!r}")
    vectors = vectors or VectorColumn(table, config.embedding_column)
    features = {
        column: feature_kind(table.column_type(column, "--feature-columns"), f"{name}: column {column!r}")
        for column in feature_columns(table, config)
    }
    for column in config.keep_columns:
        table.column_type(column, "--keep-columns")
    kept = np.dtype(np.float32) if config.metric == "cosine" else vectors.dtype
    return ItemSchema(features, vectors, kept, ids.is_string)


def ingest(
    table: Table, schema: ItemSchema, config: BuildConfig, folder: Path, quarantine: Quarantine, progress: Progress
) -> Staged:
    """Read the table once, batch by batch, into files under `folder`.

    Raises:
        InputError: a bad row in mode "fail", too many of them, or nothing left.
    """
    read = [config.id_column, *schema.vectors.columns, *schema.features, *config.keep_columns]
    columns = list(dict.fromkeys(read))
    batch_rows = int(np.clip(BATCH_BYTES // (4 * schema.vectors.dim), 256, 65_536))
    collector = TermCollector({name: kind for name, (kind, _) in schema.features.items()}, folder)
    ids: list[pa.Array] = []
    kept = _ColumnFile(folder, table.schema, config.keep_columns)
    norms = np.array([np.inf, 0.0])
    largest, zeros = 0.0, 0
    with (folder / "embeddings.bin").open("wb") as embeddings:
        for row, batch in table.batches(columns, batch_rows):
            bad = BadRows.none(batch.num_rows)
            batch_ids = read_ids(batch.column(config.id_column), bad, config.id_column)
            vectors = schema.vectors.read(batch, bad).astype(schema.dtype, copy=False)
            quarantine.take(row, bad, batch.column(config.id_column))
            if bad.bad.any():
                good = pa.array(~bad.bad)
                batch, batch_ids, vectors = batch.filter(good), batch_ids.filter(good), vectors[~bad.bad]
            lengths = row_norms(vectors)
            zeros += int((lengths == 0).sum())
            if config.metric == "cosine":
                vectors = unit_rows(vectors)
            elif len(lengths):
                norms = np.array([min(norms[0], lengths.min()), max(norms[1], lengths.max())])
            largest = max(largest, float(vectors.max(initial=0)), -float(vectors.min(initial=0)))
            embeddings.write(np.ascontiguousarray(vectors).data)
            collector.add(
                {
                    name: read_feature(batch.column(name), kind, is_list, f"{table.name}: column {name!r}")
                    for name, (kind, is_list) in schema.features.items()
                },
                batch.num_rows,
            )
            kept.add(batch)
            ids.append(batch_ids)
            progress("read", row + batch.num_rows, table.num_rows, "items")
    all_ids = pa.concat_arrays(ids)
    if not len(all_ids):
        raise InputError(f"{table.name}: no usable row is left; every one of {table.num_rows} was rejected")
    keep = _without_repeats(all_ids, table, quarantine)
    return Staged(
        ids=all_ids,
        keep=keep,
        embeddings=np.memmap(folder / "embeddings.bin", schema.dtype, "r", shape=(len(all_ids), schema.vectors.dim)),
        terms=collector.finish(),
        columns=kept.finish(),
        largest=largest,
        zero_vectors=zeros,
        dropped_values=collector.dropped,
        lengths_differ=config.metric != "cosine" and norms[1] > 1.01 * norms[0],
    )


def _without_repeats(ids: pa.Array, table: Table, quarantine: Quarantine) -> np.ndarray:
    repeats = repeated(ids, id_order(ids))
    rejected = np.sort(np.asarray(quarantine.rows, np.int64))
    for place in repeats:
        quarantine.add(_table_row(int(place), rejected), ids[int(place)].as_py(), "id occurs at an earlier row already")
    return np.setdiff1d(np.arange(len(ids)), repeats, assume_unique=True)


def _table_row(place: int, rejected: np.ndarray) -> int:
    """The table row of the `place`-th row that was not rejected."""
    row = place
    while (passed := place + int(np.searchsorted(rejected, row, "right"))) != row:
        row = passed
    return row


def _plain(kind: pa.DataType) -> pa.DataType:
    """Without dictionaries: an Arrow file holds one dictionary a column, each Parquet row group has its own."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


class _ColumnFile:
    """The kept columns as an Arrow file that can be mapped."""

    def __init__(self, folder: Path, schema: pa.Schema, names: Sequence[str]) -> None:
        self._schema = pa.schema([(name, _plain(schema.field(name).type)) for name in names])
        self._path = folder / "columns.arrow"
        self._writer = pa.ipc.new_file(self._path, self._schema) if len(self._schema) else None

    def add(self, batch: pa.RecordBatch) -> None:
        if self._writer is not None:
            columns = [batch.column(field.name).cast(field.type) for field in self._schema]
            self._writer.write_batch(pa.record_batch(columns, schema=self._schema))

    def finish(self) -> pa.Table | None:
        if self._writer is None:
            return None
        self._writer.close()
        return pa.ipc.open_file(pa.memory_map(str(self._path))).read_all()
