"""Small tools on ragged lines (`Postings`), on any device."""

from __future__ import annotations

from collections.abc import Iterator

import torch


def expand(starts: torch.Tensor, counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """List the entries of the segments `starts[i] … starts[i] + counts[i] - 1`, one after the other.

    Args:
        starts, counts: int64 [S].

    Returns:
        Segment number and position of each entry, int64 [sum of counts] both.
    """
    segment = torch.repeat_interleave(counts)
    first = counts.cumsum(0) - counts
    position = torch.arange(len(segment), device=counts.device) + (starts - first)[segment]
    return segment, position


def lower_bound(values: torch.Tensor, starts: torch.Tensor, ends: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
    """Find in each segment, whose values ascend, the first position with a value >= its bound, or the segment's end.

    Args:
        values: int32 or int64 [X].
        starts, ends: int64 [S], the segments are `values[starts[i]:ends[i]]`.
        bounds: int64 [S].

    Returns:
        int64 [S], position in `values`.
    """
    if len(values) == 0 or len(starts) == 0:
        return starts.clone()
    low, high = starts, ends
    for _ in range(int((ends - starts).max()).bit_length()):
        open_, middle = low < high, (low + high) >> 1
        below = values[middle.clamp(max=len(values) - 1)] < bounds
        low = torch.where(open_ & below, middle + 1, low)
        high = torch.where(open_ & ~below, middle, high)
    return low


def split(counts: torch.Tensor, limit: int) -> Iterator[tuple[int, int]]:
    """Cut lines into runs `(first, end)` of at most `limit` entries, or of one line that has more."""
    totals, first, before = counts.cumsum(0), 0, 0
    while first < len(counts):
        end = max(first + 1, int(torch.searchsorted(totals, before + limit, right=True)))
        yield first, end
        first, before = end, int(totals[end - 1])
