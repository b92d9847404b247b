"""Writing a Parquet table batch by batch, in row groups of a useful size."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import pyarrow as pa
import pyarrow.parquet as pq

from stcli.errors import InputError

GROUP_ROWS = 1 << 16


class TableWriter:
    """A Parquet file with a fixed schema; a context manager that closes it.

    Args:
        path: the file, new.
        schema: of what is written; batches are cast to it.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.schema = schema
        self._file = pq.ParquetWriter(path, schema, compression="zstd", compression_level=1)
        self._pending: list[pa.RecordBatch] = []
        self.num_rows = 0
        self._written = 0

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self._file.close()

    def close(self) -> None:
        """Write what is left and the footer."""
        self._flush()
        self._file.close()

    def add(self, batch: pa.RecordBatch, name: str) -> None:
        """Write a batch that has the columns of the schema, perhaps among others.

        Args:
            batch: the rows.
            name: how messages call the table that they come from.

        Raises:
            InputError: a column has another type, and a value of it does not fit the schema's.
        """
        if not batch.num_rows:
            return
        columns = [_cast(batch.column(field.name), field, name) for field in self.schema]
        self._pending.append(pa.record_batch(columns, schema=self.schema))
        self.num_rows += batch.num_rows
        if self.num_rows - self._written >= GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._pending:
            self._file.write_table(pa.Table.from_batches(self._pending), GROUP_ROWS)
        self._pending, self._written = [], self.num_rows


def plain_type(kind: pa.DataType) -> pa.DataType:
    """A type without a dictionary, which another part of the table may not share."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _cast(column: pa.Array, field: pa.Field, name: str) -> pa.Array:
    if column.type == field.type:
        return column
    try:
        return column.cast(field.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise InputError(
            f"{name}: column {field.name!r} is {column.type}, but {field.type} in the index, and cannot be brought to "
            f"that ({str(error).splitlines()[0]}); write it with that type"
        ) from error
