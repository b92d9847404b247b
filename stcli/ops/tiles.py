"""Learned layers whose result for a row does not depend on the batch that it comes in, nor on its place there.

A library's matrix product rounds a row differently when the number of rows differs, so layers run on tiles of one size.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

TILE_ROWS = 1024
"""For items and candidates."""

TILE_QUERIES = 32
"""For queries: one alone costs a whole tile, 0.3 ms in layers of 64 to 1,024 to 512 (7 ms with 1,024 rows)."""

MIN_OUTPUTS = 16
"""With 2 to 11 outputs the product of torch 2.13 (MKL, x86) depends on the place in the tile too (5 to 50 inputs)."""


def in_tiles(
    layers: Callable[[torch.Tensor], torch.Tensor], inputs: torch.Tensor, tile_rows: int = TILE_ROWS
) -> torch.Tensor:
    """Apply `layers` to rows [R, …] in tiles of `tile_rows`, the last one padded with zeros."""
    results = []
    for start in range(0, max(len(inputs), 1), tile_rows):
        tile = inputs[start : start + tile_rows]
        if len(tile) < tile_rows:
            tile = torch.cat([tile, tile.new_zeros(tile_rows - len(tile), *tile.shape[1:])])
        results.append(layers(tile))
    return torch.cat(results)[: len(inputs)]


def linear(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`inputs @ weight.T + bias` for a tile [R, K] and weight [O, K]; float32 [R, O]."""
    outputs = len(weight)
    if outputs < MIN_OUTPUTS:
        weight = functional.pad(weight, (0, 0, 0, MIN_OUTPUTS - outputs))
        bias = None if bias is None else functional.pad(bias, (0, MIN_OUTPUTS - outputs))
    return functional.linear(inputs, weight, bias)[:, :outputs]
