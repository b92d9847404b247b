"""Where a term stands on the Bloom rows of a block; `kernels/bloom_hash.h` is the same in C++.

The block is part of the hash, so that a term which shares its rows with a frequent one in some block
does not do so in the next: no term is wrong across the whole corpus.
"""

from __future__ import annotations

import math

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


def in_block(terms: torch.Tensor, first_block: int) -> torch.Tensor:
    """Numbers int64 that have the Bloom rows in block b that `terms` have in block `first_block + b`.

    The hash begins with a sum of term and block, in which a block is worth a multiple of a term: the golden constant
    is odd, so it has an inverse.
    """
    return terms + _wrapped(first_block * pow(_GOLDEN, -1, 1 << 64))


def bloom_rates(lengths: torch.Tensor, width: int, num_hashes: int) -> torch.Tensor:
    """Give the share of terms that the Bloom rows of an item admit though it does not have them.

    The k rows of a term are d different ones of w with probability `S(k, d) w! / (w - d)! / w^k` (S: Stirling numbers
    of the second kind), and by inclusion and exclusion t terms set all d of them with probability `sum over i of
    (-1)^i C(d, i) (1 - i / w)^(k t)`. The usual `(1 - exp(-k t / w))^k` is the limit of many rows: with
    k = 7, w = 23 and two terms it gives 0.41 % instead of 0.60 %.

    Args:
        lengths: int64, any shape: t, Bloom terms of an item.
        width: w, Bloom rows, 1 or more.
        num_hashes: k, rows of a term.

    Returns:
        float64, the shape of `lengths`, each in 0 … 1.
    """
    throws = (num_hashes * lengths).double()
    rates = torch.zeros_like(throws)
    for i, factor in enumerate(_factors(width, num_hashes)):
        rates += factor * (1 - i / width) ** throws
    return rates.clamp(0, 1)


def _factors(width: int, num_hashes: int) -> list[float]:
    """What `(1 - i / width) ** (num_hashes * t)` counts in `bloom_rates`, for each i up to the last i <= width."""
    different = [1.0]  # probability that the rows so far are d different ones
    for _ in range(num_hashes):
        same = [d / width * p for d, p in enumerate(different)]
        new = [max(1 - d / width, 0.0) * p for d, p in enumerate(different)]
        different = [x + y for x, y in zip([*same, 0.0], [0.0, *new], strict=True)]
    most = min(num_hashes, width)
    return [(-1) ** i * sum(math.comb(d, i) * different[d] for d in range(i, most + 1)) for i in range(most + 1)]


def _wrapped(value: int) -> int:
    """The int64 with the lowest 64 bits of a number."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


def _shift(x: torch.Tensor, count: int) -> torch.Tensor:
    """Shift right as uint64 does: zeros come in from the left."""
    return (x >> count) & ((1 << (64 - count)) - 1)
