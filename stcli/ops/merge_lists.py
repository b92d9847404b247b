"""Join the lists that several searches found for one request: each row once, with its best score."""

from __future__ import annotations

import torch

from stcli.ops import dispatch, native
from stcli.ops.checks import Shapes
from stcli.ops.keys import EMPTY_KEY, make_keys
from stcli.types import PAD_ROW, Candidates


def merge_lists(
    rows: torch.Tensor, scores: torch.Tensor, *, everywhere: bool = False, backend: str = "auto"
) -> Candidates:
    """Keep each row of a request once, with the best of its scores.

    Example: the lists [7, 5] with scores [0.9, 0.2] and [5, 3] with scores [0.6, 0.1] become the rows [7, 5, -1, 3]
    with the scores [0.9, 0.6, -inf, 0.1]; with `everywhere`, [-1, 5, -1, -1].

    Args:
        rows: int64 [B, T, M], the T lists of each request; -1 in empty slots, no repeats within a list.
        scores: float32 [B, T, M], no NaN, -inf in empty slots.
        everywhere: keep only the rows that stand in all T lists.
        backend: see `ops/dispatch.py`.

    Returns:
        Candidates [B, T * M]: a row stands in the slot where it comes first, list by list; the slots of its repeats are
        empty. So empty slots stand anywhere. Memory: 12 * B * T * M bytes, the torch form four times as much.

    Raises:
        TensorError: a tensor has another dtype or shape than stated.
    """
    shapes = Shapes()
    shapes.check("rows", rows, torch.int64, "B T M")
    shapes.check("scores", scores, torch.float32, "B T M")
    least = rows.shape[1] if everywhere else 1
    form = _native if dispatch.resolve(backend, rows) == "native" else _torch
    return form(rows.flatten(1), scores.flatten(1), least)


def _torch(rows: torch.Tensor, scores: torch.Tensor, least: int) -> Candidates:
    slots = torch.arange(rows.shape[1], device=rows.device)
    bits = rows.shape[1].bit_length()
    # By row, then by slot, so that the first slot of a row leads its run; the empty slots lead the line.
    ordered, _ = torch.sort((rows << bits) | slots, dim=1)
    slot, row = ordered & ((1 << bits) - 1), ordered >> bits
    first = torch.ones_like(row, dtype=torch.bool)
    first[:, 1:] = row[:, 1:] != row[:, :-1]
    run = first.cumsum(1) - 1
    count = torch.zeros_like(row).scatter_add_(1, run, torch.ones_like(row))
    keys = make_keys(scores.gather(1, slot), torch.zeros_like(row))
    best = torch.full_like(row, EMPTY_KEY).scatter_reduce_(1, run, keys, "amax")
    raw = (best >> 32).to(torch.int32)
    values = (raw ^ ((raw >> 31) & 0x7FFFFFFF)).view(torch.float32)
    kept = first & (row >= 0) & (count.gather(1, run) >= least)
    return Candidates(
        torch.empty_like(rows).scatter_(1, slot, torch.where(kept, row, PAD_ROW)),
        torch.empty_like(scores).scatter_(1, slot, torch.where(kept, values.gather(1, run), -torch.inf)),
    )


def _native(rows: torch.Tensor, scores: torch.Tensor, least: int) -> Candidates:
    found = Candidates(torch.empty_like(rows), torch.empty_like(scores))
    native.call(
        "stcli_merge_lists", rows.contiguous(), scores.contiguous(), *rows.shape, least, native.num_threads(),
        found.rows, found.scores,
    )  # fmt: skip
    return found
