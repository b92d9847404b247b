"""Keep the best candidates of each query."""

from __future__ import annotations

import torch

from stcli.ops import cuda, native
from stcli.ops.checks import Shapes, check_range
from stcli.ops.dispatch import resolve
from stcli.ops.keys import EMPTY_KEY, make_keys
from stcli.ops.scan_cuda import OWN_SHARED_BYTES, threads_for
from stcli.types import PAD_ROW, Candidates

MOST_SLOTS = 65_535
"""Of a line, for the kernel."""


def take_best(
    rows: torch.Tensor, scores: torch.Tensor, ranks: torch.Tensor, *, k: int, backend: str = "auto"
) -> Candidates:
    """Order the candidates of each line by score, equal scores by rank, and cut them at k.

    Args:
        rows: int64 [B, M], each in 0 … N-1 and at most once in a line, or -1 for an empty slot, anywhere.
        scores: float32 [B, M], no NaN; not read in empty slots.
        ranks: int64 [N], in 0 … 2^32 - 2, all different; of equal scores the smaller rank comes first.
        k: candidates kept for each query.
        backend: see `ops/dispatch.py`.

    Returns:
        Candidates [B, k], a negative zero counting as zero.

    Raises:
        TensorError: a tensor has another dtype, shape or range than stated.
    """
    shapes = Shapes()
    shapes.check("rows", rows, torch.int64, "B M")
    shapes.check("scores", scores, torch.float32, "B M")
    shapes.check("ranks", ranks, torch.int64, "N")
    if rows.device.type == "cpu":  # elsewhere the host would wait, between a batch's operations
        check_range("rows", rows, len(ranks))
    forms = {"torch": _torch, "native": _native, "cuda": _cuda}
    return forms[resolve(backend, rows, kernel=orders(rows.shape[1], rows.device))](rows, scores, ranks, k)


def orders(num_slots: int, device: torch.device) -> bool:
    """Whether the kernel can order lines of so many slots."""
    fitting = shared_bytes(num_slots) + OWN_SHARED_BYTES <= cuda.most_shared_bytes(device)
    return num_slots <= MOST_SLOTS and fitting


def shared_bytes(num_slots: int) -> int:
    """Dynamic shared memory of a block of the kernel."""
    return 16 * threads_for(num_slots) + 8 * num_slots


def _torch(rows: torch.Tensor, scores: torch.Tensor, ranks: torch.Tensor, k: int) -> Candidates:
    best_rows = torch.full((len(rows), k), PAD_ROW, device=rows.device)
    best_scores = torch.full((len(rows), k), -torch.inf, device=rows.device)
    if not rows.numel():
        return Candidates(best_rows, best_scores)
    filled = rows >= 0
    keys = make_keys(scores, ranks[rows.clamp(0, len(ranks) - 1)] if len(ranks) else rows).masked_fill(
        ~filled, EMPTY_KEY
    )
    slots = torch.topk(keys, min(k, rows.shape[1]), dim=1).indices
    empty = ~filled.gather(1, slots)
    best_rows[:, : slots.shape[1]] = rows.gather(1, slots)
    best_scores[:, : slots.shape[1]] = (scores.gather(1, slots) + 0.0).masked_fill(empty, -torch.inf)
    return Candidates(best_rows, best_scores)


def _native(rows: torch.Tensor, scores: torch.Tensor, ranks: torch.Tensor, k: int) -> Candidates:
    best = Candidates(torch.empty(len(rows), k, dtype=torch.int64), torch.empty(len(rows), k))
    native.call("stcli_take_best", rows, scores, ranks, *rows.shape, k, native.num_threads(), best.rows, best.scores)
    return best


def _cuda(rows: torch.Tensor, scores: torch.Tensor, ranks: torch.Tensor, k: int) -> Candidates:
    num_queries, num_slots = rows.shape
    best = Candidates(rows.new_empty(num_queries, k), scores.new_empty(num_queries, k))
    cuda.launch(
        "take_best.cu",
        "take_best",
        num_queries,
        threads_for(num_slots),
        rows.contiguous(),
        scores.contiguous(),
        ranks.contiguous(),
        num_slots,
        k,
        best.rows,
        best.scores,
        shared_bytes=shared_bytes(num_slots),
    )
    return best
