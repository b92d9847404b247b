"""One int64 for a score and a row, so that a plain integer sort is the order of the search.

Larger key: larger score, then smaller row. The upper 32 bits hold the score's bits in an order-preserving form, the
lower 32 the complement of the row.
"""

from __future__ import annotations

import torch

from stcli.types import PAD_ROW, Candidates

EMPTY_KEY = -(2**63)
"""Key of an empty slot, below the key of every finite score."""

MAX_ROWS = 2**32 - 1
"""Rows of one index that a key can tell apart."""


def make_keys(scores: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Pack scores and rows; a negative zero counts as zero.

    Args:
        scores: float32, any shape, no NaN.
        rows: int64, broadcast to the shape of scores, in 0 … MAX_ROWS - 1.

    Returns:
        int64, the shape of scores.
    """
    bits = (scores + 0.0).view(torch.int32)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.long() << 32) | (0xFFFFFFFF - rows)


def split_keys(keys: torch.Tensor) -> Candidates:
    """Unpack keys [B, M] that stand in descending order; EMPTY_KEY becomes row -1 with score -inf."""
    ordered = (keys >> 32).to(torch.int32)
    scores = (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).view(torch.float32)
    empty = keys == EMPTY_KEY
    rows = 0xFFFFFFFF - (keys & 0xFFFFFFFF)
    return Candidates(rows.masked_fill(empty, PAD_ROW), scores.masked_fill(empty, -torch.inf))


def best_keys(keys: torch.Tensor, count: int) -> torch.Tensor:
    """The `count` largest keys of each line in descending order, filled up with EMPTY_KEY: int64 [B, count]."""
    found = torch.topk(keys, min(count, keys.shape[1]), dim=1).values
    return torch.nn.functional.pad(found, (0, count - found.shape[1]), value=EMPTY_KEY)
