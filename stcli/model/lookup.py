"""From item ids to rows."""

from __future__ import annotations

from functools import cached_property
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from stcli.ops.map_ids import IdTable, id_table, map_ids
from stcli.storage.ids import ItemIds


class Ids(Protocol):
    """Item ids by row."""

    @property
    def is_string(self) -> bool:
        """Ids are strings."""

    def take(self, rows: np.ndarray) -> pa.Array:
        """Ids of rows int64 [M]."""


class Lookup(Protocol):
    """Rows by item id."""

    def rows_of(self, wanted: pa.Array) -> np.ndarray:
        """Row of each id, int64 [M]; -1 for an id that is no item, is null, or has another type."""


class IdLookup:
    """Finds the rows of item ids; prepares itself at the first call.

    Args:
        ids: of the artifact.
        backend: see `ops/dispatch.py`.
    """

    def __init__(self, ids: ItemIds, backend: str = "auto") -> None:
        self.ids, self.backend = ids, backend

    @cached_property
    def _values(self) -> torch.Tensor:
        return torch.utils.dlpack.from_dlpack(self.ids.ids)

    @cached_property
    def _table(self) -> IdTable:
        return id_table(self._values, backend=self.backend)

    def rows_of(self, wanted: pa.Array) -> np.ndarray:
        """Row of each id, int64 [M]; -1 for an id that is no item, is null, or has another type."""
        if isinstance(wanted, pa.ChunkedArray):
            wanted = wanted.combine_chunks()
        if pa.types.is_integer(wanted.type) == self.ids.is_string:
            return np.full(len(wanted), -1, np.int64)
        if self.ids.is_string:
            place = pc.index_in(wanted.cast(pa.large_string()), value_set=self.ids.readable)
            return pc.fill_null(place, -1).to_numpy(zero_copy_only=False).astype(np.int64)
        if wanted.type == pa.uint64():  # what no item has becomes null
            fits = pc.less_equal(wanted, pa.scalar(2**63 - 1, pa.uint64()))
            wanted = pc.if_else(fits, wanted, pa.scalar(None, pa.uint64()))
        keys = torch.utils.dlpack.from_dlpack(pc.fill_null(wanted.cast(pa.int64()), 0))  # copies nothing
        rows = map_ids(keys, self._values, self._table, backend=self.backend).numpy()
        if wanted.null_count:
            rows[wanted.is_null().to_numpy(zero_copy_only=False)] = -1
        return rows
