"""The item columns that an artifact keeps: read by row, or whole as what formulas and rules need."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from stcli.errors import InputError, nearest
from stcli.ops.cap_groups import OWN_GROUP
from stcli.storage.artifact import Artifact
from stcli.storage.index_dir import IndexDir
from stcli.storage.kept import check_kept, read_kept
from stcli.storage.steering import damage


class KeptColumns:
    """Kept item columns in row order. A column is checked when it is first used.

    Args:
        parts: what keeps them, for each run of rows.

    Raises:
        FormatError: no Arrow file, or one of other columns or rows than a manifest says; as does every use of a column
            whose content is damaged.
    """

    def __init__(self, *parts: Artifact | IndexDir) -> None:
        self._parts = [(str(part.path), read_kept(part)) for part in parts]
        self._columns: dict[str, pa.ChunkedArray] = {}
        for where, table in self._parts:
            if table.schema != self.schema:
                raise damage(where, "the file of kept columns", "has other types than that of the first file")

    @property
    def schema(self) -> pa.Schema:
        """Names and types."""
        return self._parts[0][1].schema

    def _column(self, name: str) -> pa.ChunkedArray:
        if name not in self._columns:
            for where, table in self._parts:
                check_kept(table[name], where, name)
            chunks = [chunk for _, table in self._parts for chunk in table[name].chunks]
            joined = pa.chunked_array(chunks, self.schema.field(name).type)
            self._columns[name] = joined if len(self._parts) < 2 else joined.unify_dictionaries()
        return self._columns[name]

    def take(self, name: str, rows: np.ndarray) -> pa.Array:
        """Values of a column at rows int64 [M]."""
        taken = self._column(name).take(pa.array(rows))
        return taken.combine_chunks() if isinstance(taken, pa.ChunkedArray) else taken

    def slice_bytes(self, first: int, end: int) -> np.ndarray:
        """Rows first … end - 1 as the bytes of an Arrow file, uint8."""
        sink, table = pa.BufferOutputStream(), pa.table([*map(self._column, self.schema.names)], schema=self.schema)
        with pa.ipc.new_file(sink, self.schema) as writer:
            writer.write_table(table.slice(first, end - first))
        return np.frombuffer(sink.getvalue(), np.uint8)

    def kinds(self) -> dict[str, str]:
        """What each column is in a formula, see `formula_kind`."""
        return {field.name: formula_kind(field.type) for field in self.schema}

    def values(self, name: str) -> torch.Tensor:
        """A whole number or boolean column as a formula reads it, see `formula_values`; [N]."""
        return formula_values(self._column(name))

    def groups(self, name: str, option: str) -> torch.Tensor:
        """A code for each item, equal for equal values of a column; int32 [N], `OWN_GROUP` for null.

        Args:
            name: the column.
            option: how a message calls what asked for it.

        Raises:
            InputError: not kept, or of a type whose values are no groups.
        """
        if name not in self.schema.names:
            raise InputError(
                f"{option} {name}: the artifact keeps no such column; {nearest(name, self.schema.names)} "
                "(build-index --keep-columns)"
            )
        column = self._column(name)
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        if pa.types.is_nested(kind) or pa.types.is_floating(kind):
            raise InputError(f"{option} {name}: is {kind}; groups need a string, integer, boolean or date column")
        codes = column.combine_chunks()
        codes = codes.chunk(0) if isinstance(codes, pa.ChunkedArray) and codes.num_chunks else codes
        codes = codes.dictionary_decode() if pa.types.is_dictionary(codes.type) else codes
        encoded = codes.dictionary_encode().indices
        found = pc.fill_null(encoded, OWN_GROUP).to_numpy(zero_copy_only=False).astype(np.int32)
        return torch.from_numpy(np.require(found, requirements="W"))


def formula_kind(kind: pa.DataType) -> str:
    """What a column is in a formula: "number", "boolean", or another word for what no formula reads."""
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return "number"
    return "boolean" if pa.types.is_boolean(kind) else str(kind)


def formula_values(column: pa.Array | pa.ChunkedArray) -> torch.Tensor:
    """A number column as float32, null as NaN, or a boolean column as bool, null as false; [rows]."""
    if pa.types.is_boolean(column.type):
        values = pc.fill_null(column, False).to_numpy(zero_copy_only=False)
    else:
        # Through float64: Arrow casts integers that float32 cannot hold only with a check off, and decimals not at all.
        wide = column.cast(pa.float64(), safe=False)
        with np.errstate(over="ignore"):
            values = pc.fill_null(wide, np.nan).to_numpy(zero_copy_only=False).astype(np.float32)
    return torch.from_numpy(np.require(values, requirements="W"))
