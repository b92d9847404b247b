"""Quantize float rows to int8 with a scale for each row."""

from __future__ import annotations

import torch

from stcli.errors import InputError
from stcli.ops import native
from stcli.ops.checks import Shapes
from stcli.ops.dispatch import resolve
from stcli.types import Quantized

_TILE_NUMBERS = 1 << 22


def quantize_rows(
    vectors: torch.Tensor, *, scale: float | None = None, pad_to: int = 32, backend: str = "auto"
) -> Quantized:
    """Round each row to int8 codes in -127 … 127 and one float32 scale.

    The scale is `max|x| / 127` and the code is `x / scale` rounded half to even, both in float32. A zero row has
    scale 1 and codes 0. `[1.0, -0.5, 0.0]` has the scale 1/127 and the codes 127, -64, 0.

    Args:
        vectors: float16 or float32 [R, D], finite.
        scale: one positive scale for all rows, zero rows included; larger values are clamped. None: one for each row.
        pad_to: columns are filled up with zeros to a multiple of this.
        backend: see `ops/dispatch.py`.

    Returns:
        Quantized with codes int8 [R, Dp] and scales float32 [R].

    Raises:
        TensorError: vectors has another dtype or rank.
        InputError: scale is not a positive float32 number.
    """
    Shapes().check("vectors", vectors, (torch.float16, torch.float32), "R D")
    if scale is not None and not torch.finfo(torch.float32).tiny <= scale <= torch.finfo(torch.float32).max:
        raise InputError(f"scale is {scale}; expected a positive number that float32 holds, or None")
    form = _native if resolve(backend, vectors) == "native" else _torch
    return form(vectors, scale, pad_to)


def _torch(vectors: torch.Tensor, scale: float | None, pad_to: int) -> Quantized:
    num_rows, dim = vectors.shape
    codes = vectors.new_zeros((num_rows, -(-dim // pad_to) * pad_to), dtype=torch.int8)
    scales = vectors.new_empty(num_rows, dtype=torch.float32)
    step = max(1, _TILE_NUMBERS // max(dim, 1))
    for start in range(0, num_rows, step):
        tile = vectors[start : start + step].float()
        if scale is not None:
            tile_scales = torch.full_like(scales[start : start + step], scale)
        else:
            largest = tile.abs().amax(1) if dim else torch.zeros_like(scales[start : start + step])
            # A tensor as divisor: CUDA divides by a Python number as a product with its rounded inverse.
            tile_scales = largest / torch.full_like(largest, 127.0)
            tile_scales = tile_scales.clamp_min(torch.finfo(torch.float32).tiny).masked_fill(largest == 0, 1.0)
        codes[start : start + step, :dim] = (tile / tile_scales[:, None]).round().clamp(-127, 127).to(torch.int8)
        scales[start : start + step] = tile_scales
    return Quantized(codes, scales)


def _native(vectors: torch.Tensor, scale: float | None, pad_to: int) -> Quantized:
    num_rows, dim = vectors.shape
    padded = -(-dim // pad_to) * pad_to
    codes = torch.empty((num_rows, padded), dtype=torch.int8)
    scales = torch.empty(num_rows, dtype=torch.float32)
    half, threads = vectors.dtype == torch.float16, native.num_threads()
    native.call(
        "stcli_quantize_rows", vectors, half, num_rows, dim, padded, float(scale or 0.0), threads, codes, scales
    )
    return Quantized(codes, scales)
