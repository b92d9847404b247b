"""Events of requests as towers read them."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class History:
    """Events of B requests, oldest first.

    Attributes:
        items: float32 [S, D], the embeddings of their items.
        offsets: int64 [B + 1], ascending, first 0, last S.
        times: int64 [S], seconds, or None for a tower that does not read them.
    """

    items: torch.Tensor
    offsets: torch.Tensor
    times: torch.Tensor | None = None
