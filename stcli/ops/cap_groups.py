"""Take the best candidates with at most so many of a group: two of a seller, one of a family of variants."""

from __future__ import annotations

import torch

from stcli.ops import dispatch, native
from stcli.ops.checks import Shapes

OWN_GROUP = -1
"""Code of an item that belongs to no group: nothing caps it."""


def cap_groups(
    rows: torch.Tensor, groups: torch.Tensor, limits: torch.Tensor, k: int, *, backend: str = "auto"
) -> torch.Tensor:
    """Choose up to k candidates of each request, from the best on, skipping those of a group that is full.

    The greedy choice: a candidate is taken unless one of its groups has as many as its limit among those taken before
    it. With one kind of group no other choice has greater scores; with several kinds the order decides.

    Args:
        rows: int64 [B, M], best first; -1 in empty slots, anywhere.
        groups: int32 [G, N], the group of each item for each of G kinds, `OWN_GROUP` for none.
        limits: int64 [G], items of a group that a request may get, at least 1.
        k: items of a request, K.
        backend: see `ops/dispatch.py`.

    Returns:
        Places int64 [B, K] in `rows`, ascending, -1 behind the last. A line that ends in -1 is short: no more can be
        had from these candidates, whatever k.

    Raises:
        TensorError: a tensor has another dtype or shape than stated.
    """
    shapes = Shapes()
    shapes.check("rows", rows, torch.int64, "B M")
    shapes.check("groups", groups, torch.int32, "G N")
    shapes.check("limits", limits, torch.int64, "G")
    if dispatch.resolve(backend, rows) == "native":
        return _native(rows, groups, limits, k)
    return _torch(rows, groups, limits, k)


def _torch(rows: torch.Tensor, groups: torch.Tensor, limits: torch.Tensor, k: int) -> torch.Tensor:
    count, slots = rows.shape
    places = rows.new_full((count, k), -1)
    if not count or not slots or not groups.shape[1]:
        return places
    codes = groups[:, rows.clamp(min=0)].long()  # [G, B, M]
    grouped = codes != OWN_GROUP
    # Groups numbered within each request and kind, so that a table of M counters a request is enough.
    ordered, order = codes.sort(dim=2)
    firsts = torch.zeros_like(ordered)
    firsts[:, :, 1:] = ordered[:, :, 1:] != ordered[:, :, :-1]
    local = torch.empty_like(codes).scatter_(2, order, firsts.cumsum(2))
    taken = torch.zeros_like(codes)
    num_taken = rows.new_zeros(count)
    for slot in range(slots):
        mine, own = local[:, :, slot : slot + 1], grouped[:, :, slot]
        full = (taken.gather(2, mine)[:, :, 0] >= limits[:, None]) & own
        take = (rows[:, slot] >= 0) & (num_taken < k) & ~full.any(0)
        taken.scatter_add_(2, mine, (take & own).long()[:, :, None])
        at = num_taken.clamp(max=max(k - 1, 0))[:, None]
        if k:
            places.scatter_(1, at, torch.where(take[:, None], slot, places.gather(1, at)))
        num_taken += take
    return places


def _native(rows: torch.Tensor, groups: torch.Tensor, limits: torch.Tensor, k: int) -> torch.Tensor:
    count, slots = rows.shape
    places = torch.empty(count, k, dtype=torch.int64)
    native.call("stcli_cap_groups", rows, count, slots, groups, *groups.shape, limits, k, places, native.num_threads())
    return places
