"""Attention of HSTU over histories of any length: pointwise, causal, with bias by place and by time.

The formula is that of HSTU (arXiv 2402.17152, and its public code): no softmax, and a division by a constant instead.

    out_i = sum over j <= i of silu(<q_i, k_j> + place[n - 1 + j - i] + time[bucket(t_{i+1} - t_j)]) / n * v_j
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.nn import functional

from stcli.ops.checks import Shapes

SHORTEST = 16
"""Histories are padded to the next power of two from here on, each among its like."""

TILE_EVENTS = 1024
"""Events of a tile of histories, padding included; a longer history is a tile by itself."""

LINES = 256
"""Events attended from at once in a long history: their scores are LINES * heads * length numbers."""

BUCKET_WIDTH = 0.301
"""Of the logarithm of a time difference in seconds, as in the public code."""


@dataclass(frozen=True)
class Group:
    """Histories of one padded length.

    Attributes:
        events: int64 [b, L], number of each event, 0 behind the last one.
        valid: bool [b, L].
    """

    events: torch.Tensor
    valid: torch.Tensor


def groups(offsets: torch.Tensor) -> Iterator[Group]:
    """Put histories of like length together; what is in a group never depends on other lengths, nor its size.

    Args:
        offsets: int64 [B + 1]; empty histories are left out.
    """
    begins, lengths = offsets[:-1], offsets.diff()
    # The power of two that holds a length, exactly: through the bit length of length - 1.
    sizes = [max(SHORTEST, 1 << (length - 1).bit_length()) if length else 0 for length in lengths.tolist()]
    padded = torch.tensor(sizes, device=offsets.device, dtype=torch.int64)
    for size in sorted(set(sizes) - {0}):
        members = torch.nonzero(padded == size)[:, 0]
        many = max(TILE_EVENTS // size, 1)
        for some in members.split(many):
            place = torch.arange(size, device=offsets.device)
            events = torch.zeros(many, size, dtype=torch.int64, device=offsets.device)
            valid = torch.zeros(many, size, dtype=torch.bool, device=offsets.device)
            valid[: len(some)] = place < lengths[some][:, None]
            events[: len(some)] = torch.where(valid[: len(some)], begins[some][:, None] + place, 0)
            yield Group(events, valid)


def time_bounds(num_buckets: int) -> list[int]:
    """The least difference in whole seconds of each bucket from 1 on: of `floor(ln(max(d, 1)) / 0.301)`."""
    bounds = []
    for bucket in range(1, num_buckets + 1):
        bound = math.ceil(math.exp(BUCKET_WIDTH * bucket))
        # Two correctly rounded functions may disagree next to a bound; the logarithm decides.
        bound -= math.log(bound - 1) / BUCKET_WIDTH >= bucket if bound > 2 else 0
        bound += math.log(bound) / BUCKET_WIDTH < bucket
        bounds.append(min(bound, 2**63 - 1))
    return bounds


def time_buckets(times: torch.Tensor, offsets: torch.Tensor, num_buckets: int) -> list[torch.Tensor]:
    """For each group, the bucket of every pair of events (i, j): of the time from j to the event after i.

    Args:
        times: int64 [S], seconds.
        offsets: int64 [B + 1].
        num_buckets: buckets are 0 … num_buckets.

    Returns:
        int16 [b, L, L] a group, in the order of `groups`.
    """
    bounds = torch.tensor(time_bounds(num_buckets), device=times.device)
    found = []
    for group in groups(offsets):
        own = times[group.events]
        last = group.valid.sum(1, keepdim=True) - 1
        after = torch.cat([own[:, 1:], own[:, -1:]], 1)
        after = torch.where(torch.arange(own.shape[1], device=times.device) >= last, own, after)
        found.append(torch.bucketize((after[:, :, None] - own[:, None, :]).abs(), bounds, right=True).short())
    return found


def hstu_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    offsets: torch.Tensor,
    place_bias: torch.Tensor,
    time_bias: torch.Tensor | None = None,
    buckets: list[torch.Tensor] | None = None,
) -> torch.Tensor:
    """Attend in each history from every event to itself and those before it.

    What a history gives does not depend on the others of the batch: histories are computed in groups of one padded
    length and a fixed number. None is padded to more than twice its length (or SHORTEST).

    Args:
        q, k: float32 [S, H, A].
        v: float32 [S, H, V].
        offsets: int64 [B + 1], events of each history, ascending, first 0, last S; a history has at most n of them.
        place_bias: float32 [2 n - 1]; n also divides the attention.
        time_bias: float32 [buckets + 1], or None.
        buckets: from `time_buckets`, with a time bias.

    Returns:
        float32 [S, H, V]. Memory: 4 * b * H * L * min(L, LINES) bytes of scores.

    Raises:
        TensorError: a tensor has another dtype or shape than stated.
    """
    shapes = Shapes()
    shapes.check("q", q, torch.float32, "S H A")
    shapes.check("k", k, torch.float32, "S H A")
    shapes.check("v", v, torch.float32, "S H V")
    shapes.check("offsets", offsets, torch.int64, "B+1")
    shapes.check("place_bias", place_bias, torch.float32, "P")
    longest = (len(place_bias) + 1) // 2
    out = torch.zeros_like(v)
    for number, group in enumerate(groups(offsets)):
        own_q, own_k, own_v = (each[group.events].transpose(1, 2) for each in (q, k, v))  # [b, H, L, …]
        many, size = group.valid.shape
        place = torch.arange(size, device=q.device)
        result = torch.empty_like(own_v)
        for first in range(0, size, LINES):
            lines = slice(first, first + LINES)
            back = place[None, :] - place[lines, None]  # j - i
            scores = own_q[:, :, lines] @ own_k.transpose(2, 3)
            bias = place_bias[(longest - 1 + back).clamp(0, len(place_bias) - 1)].expand(many, -1, -1)
            if time_bias is not None:
                assert buckets is not None
                bias = bias + time_bias[buckets[number][:, lines].long()]
            weights = functional.silu(scores + bias[:, None]) / longest
            weights = weights.masked_fill((back > 0) | ~group.valid[:, None, None, :], 0.0)
            result[:, :, lines] = weights @ own_v
        out[group.events[group.valid]] = result.transpose(1, 2)[group.valid]
    return out
