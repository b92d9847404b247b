"""Count the bits that are set in words."""

from __future__ import annotations

import torch

from stcli.ops import dispatch, native
from stcli.ops.checks import Shapes

_MASKS = (0x5555555555555555, 0x3333333333333333, 0x0F0F0F0F0F0F0F0F)
_PIECE = 1 << 20


def count_bits(words: torch.Tensor, *, backend: str = "auto") -> torch.Tensor:
    """Count the set bits of each line.

    Args:
        words: int64 [F, W], 64-bit patterns, contiguous.
        backend: see `ops/dispatch.py`.

    Returns:
        int64 [F].

    Raises:
        TensorError: another dtype or shape than stated.
    """
    Shapes().check("words", words, torch.int64, "F W")
    counts = torch.zeros(len(words), dtype=torch.int64, device=words.device)
    if dispatch.resolve(backend, words) == "native":
        native.call("stcli_count_bits", words, *words.shape, native.num_threads(), counts)
        return counts
    for part in words.split(max(_PIECE // max(len(words), 1), 1), dim=1):
        counts += popcount(part).sum(1)
    return counts


def popcount(x: torch.Tensor) -> torch.Tensor:
    """Set bits of words, added up in ever larger fields; the sign bit is masked away after each shift."""
    pairs, nibbles, octets = _MASKS
    x = x - ((x >> 1) & pairs)
    x = (x & nibbles) + ((x >> 2) & nibbles)
    x = (x + (x >> 4)) & octets
    return (x * 0x0101010101010101) >> 56 & 0xFF
