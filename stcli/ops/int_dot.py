"""Exact int32 dot products of int8 rows on any device; the arithmetic of every torch form of the search."""

from __future__ import annotations

import functools

import torch


def int_dot(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Multiply int8 rows with int8 rows, exactly.

    Args:
        left: int8 [M, Dp].
        right: int8 [R, Dp].

    Returns:
        int32 [M, R]. Memory: 4 * M * R bytes; off the CPU also 8 bytes for every number in and out.
    """
    if left.device.type == "cpu" and left.shape[0] and right.shape[0] and _int_mm_is_exact():
        return torch._int_mm(left, right.t())
    return (left.double() @ right.double().t()).to(torch.int32)


@functools.cache
def _int_mm_is_exact() -> bool:
    # On a CPU without VNNI the library may add pairs of products in 16 bits, which saturates at the extremes.
    left = torch.full((16, 64), 127, dtype=torch.int8)
    right = torch.cat([left, -left])
    dots = torch._int_mm(left, right.t())
    return bool((dots[:, :16] == 64 * 127 * 127).all() and (dots[:, 16:] == -64 * 127 * 127).all())
