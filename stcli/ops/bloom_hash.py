"""Where a term stands on the Bloom rows of a block; `kernels/bloom_hash.h` is the same in C++.

The block is part of the hash, so that a term which shares its rows with a frequent one in some block
does not do so in the next: no term is wrong across the whole corpus.
"""

from __future__ import annotations

import torch

# The 64-bit constants as the int64 with the same bits; int64 products wrap as uint64 ones do.
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)
_STEP = 0xD1342543DE82EF95 - (1 << 64)


def bloom_positions(terms: torch.Tensor, blocks: torch.Tensor, widths: torch.Tensor, num_hashes: int) -> torch.Tensor:
    """Give the Bloom rows of each term within its block.

    With `x = splitmix64((term + 1) * golden + block)`, row i is `(x >> 32) * width >> 32` after `x` was multiplied i
    times by an odd constant; a multiplication by the width stands where others take a remainder.

    Args:
        terms: int64, any shape that broadcasts with the next two.
        blocks: int64, block number of each.
        widths: int64, Bloom rows of that block, 0 … 2^31 - 1.
        num_hashes: rows of a term; the same row may come twice.

    Returns:
        int64 [..., num_hashes], each in 0 … width - 1 (0 for a block without Bloom rows).
    """
    x = (terms + 1) * _GOLDEN + blocks
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    x = x ^ _shift(x, 31)
    rows = []
    for _ in range(num_hashes):
        rows.append((_shift(x, 32) * widths) >> 32)
        x = x * _STEP
    return torch.stack(rows, -1)


def _shift(x: torch.Tensor, count: int) -> torch.Tensor:
    """Shift right as uint64 does: zeros come in from the left."""
    return (x >> count) & ((1 << (64 - count)) - 1)
