"""Map item ids to rows, exactly; an id that is not there is row -1, never another item's row."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from stcli.ops import dispatch, native
from stcli.ops.checks import Shapes
from stcli.types import PAD_ROW

DENSE = 4
"""Ids within a span of so many times their number are found in a list of the span, no larger than the hash table."""


@dataclass(frozen=True)
class IdTable:
    """What finds the rows of ids fast.

    Attributes:
        slots: where `first` is given int32 [S], slot i with the row of id `first + i`, or -1. Else rows int64: [N] by
            ascending id or, native, a hash table [S] with S the power of two in 2 N … 4 N.
        first: smallest id, if the ids are dense.
    """

    slots: torch.Tensor
    first: int | None = None


def id_table(ids: torch.Tensor, *, backend: str = "auto") -> IdTable:
    """Prepare a look-up of ids.

    Args:
        ids: int64 [N], distinct.
        backend: see `ops/dispatch.py`; the same must be given to `map_ids`.
    """
    form = dispatch.resolve(backend, ids)
    if len(ids):
        first, last = (int(bound) for bound in torch.aminmax(ids))
        if last - first < DENSE * len(ids) and len(ids) < 2**31:
            slots = torch.full((last - first + 1,), PAD_ROW, dtype=torch.int32, device=ids.device)
            slots[ids - first] = torch.arange(len(ids), dtype=torch.int32, device=ids.device)
            return IdTable(slots, first)
    if form != "native":
        return IdTable(torch.argsort(ids))
    slots = torch.empty(1 << max(2 * len(ids), 1).bit_length(), dtype=torch.int64)
    native.call("stcli_build_id_table", ids, len(ids), slots, len(slots))
    return IdTable(slots)


def map_ids(wanted: torch.Tensor, ids: torch.Tensor, table: IdTable, *, backend: str = "auto") -> torch.Tensor:
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
    form = dispatch.resolve(backend, ids)
    dense = table.first is not None
    kind = "S" if dense or form == "native" else "N"
    shapes.check("table.slots", table.slots, torch.int32 if dense else torch.int64, kind)
    run = _native if form == "native" else _torch
    return run(wanted, ids, table)


def _torch(wanted: torch.Tensor, ids: torch.Tensor, table: IdTable) -> torch.Tensor:
    slots = table.slots
    if table.first is not None:
        place = wanted - table.first  # wraps for numbers far apart, but never into the span
        inside = (place >= 0) & (place < len(slots))
        return torch.where(inside, slots[place.clamp(0, len(slots) - 1)].long(), PAD_ROW)
    place = torch.searchsorted(ids, wanted, sorter=slots)
    rows = slots[place.clamp(max=len(slots) - 1)]
    return torch.where(ids[rows] == wanted, rows, PAD_ROW)


def _native(wanted: torch.Tensor, ids: torch.Tensor, table: IdTable) -> torch.Tensor:
    rows = torch.empty(len(wanted), dtype=torch.int64)
    slots, threads = table.slots, native.num_threads()
    if table.first is not None:
        native.call("stcli_map_dense_ids", slots, len(slots), table.first, wanted, len(wanted), rows, threads)
    else:
        native.call("stcli_map_ids", ids, slots, len(slots), wanted, len(wanted), rows, threads)
    return rows
