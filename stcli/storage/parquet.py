"""Reading Parquet tables: which files, which columns, and batches with their place in the table."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from stcli.errors import FormatError, InputError, nearest
from stcli.storage.listing import find_files, partition_types

FOOTER_BYTES = 8  # 4-byte footer length and the magic PAR1


@dataclass(frozen=True)
class TableFile:
    """One Parquet file of a table.

    Attributes:
        filesystem, path: where it is.
        schema: its columns, the hive columns of its path included.
        num_rows: its rows.
        first_row: the table row at which it starts.
        partition: value of each hive column in all of its rows.
    """

    filesystem: pafs.FileSystem
    path: str
    schema: pa.Schema
    num_rows: int
    first_row: int
    partition: Mapping[str, pa.Scalar]


@dataclass(frozen=True)
class Table:
    """A Parquet table of one or more files with the same columns; nothing but footers was read.

    Attributes:
        name: how messages call it.
        files: in reading order.
        schema: of the first file.
    """

    name: str
    files: tuple[TableFile, ...]
    schema: pa.Schema

    @property
    def num_rows(self) -> int:
        """Rows in all files."""
        return sum(file.num_rows for file in self.files)

    def head(self, rows: int) -> Table:
        """The table of the first rows."""
        kept = [replace(file, num_rows=min(file.num_rows, rows - file.first_row)) for file in self.files]
        return replace(self, files=tuple(file for file in kept if file.num_rows > 0))

    def fingerprint(self) -> dict[str, object]:
        """Rows and, for each file, its size and the SHA-256 of its footer."""
        parts = []
        for file in self.files:
            with file.filesystem.open_input_file(file.path) as handle:
                size = handle.size()
                footer = int.from_bytes(handle.read_at(4, size - FOOTER_BYTES), "little")
                digest = hashlib.sha256(handle.read_at(footer + FOOTER_BYTES, size - footer - FOOTER_BYTES)).hexdigest()
            values = {"partition": {name: value.as_py() for name, value in file.partition.items()}}
            parts.append({"bytes": size, "footer_sha256": digest, **(values if file.partition else {})})
        return {"rows": self.num_rows, "files": parts}

    def column_type(self, column: str, option: str) -> pa.DataType:
        """Type of a column.

        Raises:
            InputError: there is no such column; the message lists those there are.
        """
        index = self.schema.get_field_index(column)
        if index < 0:
            raise InputError(f"{self.name}: no column {column!r} ({option}); {nearest(column, self.schema.names)}")
        return self.schema.field(index).type

    def check_same(self, columns: Sequence[str]) -> None:
        """Check that columns have one type in every file.

        Raises:
            InputError: the files disagree about a column.
        """
        for file in self.files:
            _check_same_columns(self.schema, file.schema, file.path, columns)

    def in_every_file(self, column: str) -> bool:
        """Whether every file has the column, with one type."""
        found = [file.schema.get_field_index(column) for file in self.files]
        types = {file.schema.field(place).type for file, place in zip(self.files, found, strict=True) if place >= 0}
        return min(found) >= 0 and len(types) == 1

    def batches(
        self, columns: Sequence[str], batch_rows: int, start: int = 0, stop: int | None = None
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Yield (table row, batch) over the table rows `start … stop - 1`, in order.

        Only row groups that overlap the range are read. A batch has at most `batch_rows` rows.

        Raises:
            FormatError: a file is damaged or gone.
        """
        stop = self.num_rows if stop is None else min(stop, self.num_rows)
        wanted = list(dict.fromkeys(columns))
        for file in self.files:
            if file.first_row >= stop or file.first_row + file.num_rows <= start:
                continue
            try:
                with file.filesystem.open_input_file(file.path) as handle:
                    yield from _file_batches(file, handle, wanted, batch_rows, start, stop)
            except (pa.ArrowException, OSError) as error:
                said = str(error).partition("\n")[0]
                raise FormatError(f"{file.path}: cannot be read ({said}); write the table again") from error

    def where(self, row: int) -> str:
        """`file.parquet row 4211` for a table row, for messages."""
        for file in self.files:
            if file.first_row <= row < file.first_row + file.num_rows:
                local = row - file.first_row
                return f"row {local}" if len(self.files) == 1 else f"{Path(file.path).name} row {local}"
        return f"row {row}"


def _file_batches(
    file: TableFile, handle: pa.NativeFile, columns: list[str], batch_rows: int, start: int, stop: int
) -> Iterator[tuple[int, pa.RecordBatch]]:
    reader = pq.ParquetFile(handle, pre_buffer=False)
    stored = [name for name in columns if name not in file.partition]
    sizes = [reader.metadata.row_group(group).num_rows for group in range(reader.metadata.num_row_groups)]
    ends = [file.first_row + end for end in itertools.accumulate(sizes)]
    groups = [group for group, end in enumerate(ends) if end > start and end - sizes[group] < stop]
    row = ends[groups[0]] - sizes[groups[0]] if groups else stop
    # All groups in one call: a batch may then have rows of several.
    for batch in reader.iter_batches(batch_rows, row_groups=groups, columns=stored, use_threads=True):
        low, high = max(start - row, 0), min(stop - row, batch.num_rows)
        if low < high:
            yield row + low, _with_partition(batch.slice(low, high - low), file, columns)
        row += batch.num_rows
        if row >= stop:
            return


def _with_partition(batch: pa.RecordBatch, file: TableFile, columns: list[str]) -> pa.RecordBatch:
    """The batch with the hive columns that were asked for."""
    for name in columns:
        if name in file.partition:
            batch = batch.append_column(name, pa.repeat(file.partition[name], batch.num_rows))
    return batch


def open_table(sources: str | Path | Sequence[str | Path], columns: Sequence[str] = ()) -> Table:
    """Open one file, several, a directory, a glob, or any URI that a pyarrow filesystem knows.

    In a directory every file below it counts except hidden ones and those with a leading
    underscore (`_SUCCESS`, `_metadata`). Hive partitions (`lang=de/part.parquet`) are columns, int64
    where every value is a whole number, else string; a column of that name in the file itself wins.

    Args:
        sources: paths or URIs.
        columns: columns that must have the same type in every file.

    Raises:
        InputError: nothing there, not Parquet, or the files disagree about a column.
    """
    given = [sources] if isinstance(sources, str | Path) else list(sources)
    if not given:
        raise InputError("no Parquet input was given; name a file, a directory or a URI")
    name = Path(str(given[0])).name or str(given[0])
    name += f" and {len(given) - 1} more" if len(given) > 1 else ""
    found = [file for source in given for file in find_files(str(source))]
    types = partition_types(found)
    files: list[TableFile] = []
    schema: pa.Schema | None = None
    row = 0
    for file in found:
        file_schema, num_rows = _read_footer(file.filesystem, file.path)
        partition = {}
        for name in file.partition:
            if name not in file_schema.names:
                partition[name] = _scalar(file.partition[name], types[name])
                file_schema = file_schema.append(pa.field(name, types[name]))
        schema = file_schema if schema is None else schema
        _check_same_columns(schema, file_schema, file.path, columns)
        files.append(TableFile(file.filesystem, file.path, file_schema, num_rows, row, partition))
        row += num_rows
    if schema is None:
        raise InputError(f"{name}: no Parquet file found; expected *.parquet files that are not hidden")
    return Table(name, tuple(files), schema)


def _scalar(text: str | None, kind: pa.DataType) -> pa.Scalar:
    return pa.scalar(None if text is None else int(text) if kind == pa.int64() else text, kind)


def _read_footer(filesystem: pafs.FileSystem, path: str) -> tuple[pa.Schema, int]:
    try:
        with filesystem.open_input_file(path) as handle:
            reader = pq.ParquetFile(handle)
            return reader.schema_arrow, reader.metadata.num_rows
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(
            f"{path}: not a readable Parquet file ({str(error).splitlines()[0]}); expected Parquet"
        ) from error


def _check_same_columns(first: pa.Schema, other: pa.Schema, path: str, columns: Sequence[str]) -> None:
    for column in columns:
        if column not in first.names:
            continue
        if column not in other.names:
            raise InputError(
                f"{path}: no column {column!r}, which the other files of the table have; {nearest(column, other.names)}"
            )
        expected, found = first.field(column).type, other.field(column).type
        if found != expected:
            raise InputError(
                f"{path}: column {column!r} is {found}, but {expected} in the first file; "
                "every file needs the same type"
            )
