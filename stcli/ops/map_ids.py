"""Map item ids to rows, exactly; an id that is not there is row -1, never another item's row."""

from __future__ import annotations

import torch

from stcli.ops import dispatch, native
from stcli.ops.checks import Shapes
from stcli.types import PAD_ROW


def id_table(ids: torch.Tensor, *, backend: str = "auto") -> torch.Tensor:
    """Prepare a look-up of ids: rows by ascending id, or for the native form a hash table of rows.

    Args:
        ids: int64 [N], distinct.
        backend: see `ops/dispatch.py`; the same must be given to `map_ids`.

    Returns:
        int64 [N] or, native, int64 [S] with S the power of two in 2 N … 4 N.
    """
    if dispatch.resolve(backend, ids) != "native":
        return torch.argsort(ids)
    table = torch.empty(1 << max(2 * len(ids), 1).bit_length(), dtype=torch.int64)
    native.call("stcli_build_id_table", ids, len(ids), table, len(table))
    return table


def map_ids(wanted: torch.Tensor, ids: torch.Tensor, table: torch.Tensor, *, backend: str = "auto") -> torch.Tensor:
    """Find the row of each id.

    Args:
        wanted: int64 [M], any values.
        ids: int64 [N], distinct, by row.
        table: from `id_table(ids)` with the same backend.
        backend: see `ops/dispatch.py`.

    Returns:
        int64 [M], -1 where there is no such id.

    Raises:
        TensorError: a tensor has another dtype or shape than stated.
    """
    shapes = Shapes()
    shapes.check("wanted", wanted, torch.int64, "M")
    shapes.check("ids", ids, torch.int64, "N")
    if not len(ids):
        return torch.full_like(wanted, PAD_ROW)
    if dispatch.resolve(backend, ids) != "native":
        shapes.check("table", table, torch.int64, "N")
        return _torch(wanted, ids, table)
    shapes.check("table", table, torch.int64, "S")
    return _native(wanted.contiguous(), ids, table)


def _torch(wanted: torch.Tensor, ids: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    place = torch.searchsorted(ids, wanted, sorter=table)
    rows = table[place.clamp(max=len(table) - 1)]
    return torch.where(ids[rows] == wanted, rows, PAD_ROW)


def _native(wanted: torch.Tensor, ids: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    rows = torch.empty_like(wanted)
    native.call("stcli_map_ids", ids, table, len(table), wanted, len(wanted), rows, native.num_threads())
    return rows
