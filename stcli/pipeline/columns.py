"""The item columns that an artifact keeps, read by row."""

from __future__ import annotations

import numpy as np
import pyarrow as pa


class KeptColumns:
    """Kept item columns in row order.

    Args:
        data: uint8, the bytes of an Arrow file, or None if nothing was kept.
    """

    def __init__(self, data: np.ndarray | None) -> None:
        self._table = pa.table({}) if data is None else pa.ipc.open_file(pa.py_buffer(data)).read_all()

    @property
    def schema(self) -> pa.Schema:
        """Names and types."""
        return self._table.schema

    def take(self, name: str, rows: np.ndarray) -> pa.Array:
        """Values of a column at rows int64 [M]."""
        taken = self._table[name].take(pa.array(rows))
        return taken.combine_chunks() if isinstance(taken, pa.ChunkedArray) else taken
