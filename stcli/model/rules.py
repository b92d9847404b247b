"""Rules on the result: at most so many items of a seller, one of a family of variants."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from stcli.ops.cap_groups import cap_groups


@dataclass(frozen=True)
class Rules:
    """Caps on groups of items, applied to candidates in the order of their final scores.

    A caller gives the candidates that it has, best first. Where `choose` finds fewer than k, it gives more of them, say
    twice as many, until there are k or no more candidates. The greedy choice among more candidates of one order begins
    with the choice among fewer, so a full line never changes.

    Attributes:
        groups: int32 [G, N], see `cap_groups`.
        limits: int64 [G], at least 1.
    """

    groups: torch.Tensor
    limits: torch.Tensor

    def to(self, device: torch.device) -> Rules:
        """The same rules on a device."""
        return Rules(self.groups.to(device), self.limits.to(device))

    def choose(self, rows: torch.Tensor, k: int, *, backend: str = "auto") -> torch.Tensor:
        """Places int64 [B, K] of the chosen ones in rows int64 [B, M]; -1 at the end of a line that is short."""
        return cap_groups(rows, self.groups, self.limits, k, backend=backend)
