"""Count the bits that are set in words."""

from __future__ import annotations

import numpy as np
import torch

_MASKS = (0x5555555555555555, 0x3333333333333333, 0x0F0F0F0F0F0F0F0F)
_PIECE = 1 << 20


def count_bits(words: torch.Tensor) -> torch.Tensor:
    """Number of set bits of each line.

    Args:
        words: int64 [F, W], 64-bit patterns.

    Returns:
        int64 [F].
    """
    if words.device.type == "cpu":
        return torch.from_numpy(
            np.array(
                [int(np.bitwise_count(line).sum(dtype=np.int64)) for line in words.numpy().view(np.uint64)], np.int64
            )
        )
    total = torch.zeros(len(words), dtype=torch.int64, device=words.device)
    for part in words.split(max(_PIECE // max(len(words), 1), 1), dim=1):
        total += _popcount(part).sum(1)
    return total


def _popcount(x: torch.Tensor) -> torch.Tensor:
    """Bits of each word, added up in ever larger fields; the sign bit is masked away after each shift."""
    pairs, nibbles, octets = _MASKS
    x = x - ((x >> 1) & pairs)
    x = (x & nibbles) + ((x >> 2) & nibbles)
    x = (x + (x >> 4)) & octets
    return (x * 0x0101010101010101) >> 56 & 0xFF
