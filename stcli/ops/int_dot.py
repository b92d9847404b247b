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
        int32 [M, R]. Memory: 4 * M * R bytes; without an int8 product also 8 bytes for every number in or out.
    """
    if left.device.type == "cuda" and left.shape[0] and right.shape[0] and _gpu_mm_is_exact(left.device):
        return _gpu_mm(left, right)
    if left.device.type == "cpu" and left.shape[0] and right.shape[0] and _int_mm_is_exact():
        return torch._int_mm(left, right.t())
    return (left.double() @ right.double().t()).to(torch.int32)


def _gpu_mm(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """The library wants more than 16 rows on the left and a multiple of 8 on the right."""
    num_left, num_right = left.shape[0], right.shape[0]
    left = torch.nn.functional.pad(left, (0, 0, 0, max(32 - num_left, 0)))
    right = torch.nn.functional.pad(right, (0, 0, 0, -num_right % 8))
    return torch._int_mm(left.contiguous(), right.contiguous().t())[:num_left, :num_right]


@functools.cache
def _gpu_mm_is_exact(device: torch.device) -> bool:
    left = torch.full((5, 64), 127, dtype=torch.int8, device=device)
    right = torch.cat([left, -left])[:9]
    try:
        dots = _gpu_mm(left, right)
    except RuntimeError:  # a GPU or a CUDA version without it
        return False
    return bool((dots[:, :5] == 64 * 127 * 127).all() and (dots[:, 5:] == -64 * 127 * 127).all())


@functools.cache
def _int_mm_is_exact() -> bool:
    # On a CPU without VNNI the library may add pairs of products in 16 bits, which saturates at the extremes.
    left = torch.full((16, 64), 127, dtype=torch.int8)
    right = torch.cat([left, -left])
    dots = torch._int_mm(left, right.t())
    return bool((dots[:, :16] == 64 * 127 * 127).all() and (dots[:, 16:] == -64 * 127 * 127).all())
